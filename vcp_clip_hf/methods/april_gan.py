"""APRIL-GAN (Chen et al., arXiv 2305.17382; github.com/ByChelsea/VAND-APRIL-GAN, MIT)."""

from collections.abc import Mapping, Sequence

import torch
from huggingface_hub.dataclasses import strict

from ..losses import segmentation_loss
from ..nearest_patches import nearest_distance
from .base import AnomalyMethodOutput, ImageFeatures, PromptEnsembleModel, scaled_over_product
from .configuration import PromptEnsembleConfig
from .patch_adapters import PatchAdapters, image_logits, patch_logits, upsample


__all__ = ["AprilGANConfig", "AprilGANModel"]


@strict
class AprilGANConfig(PromptEnsembleConfig):
    r"""
    Configuration of an [`AprilGANModel`]. The defaults are those of the published runs, on ViT-L/14-336 at 518 pixels
    with plain GELU, as the authors' code runs OpenAI's weights at this size.

    Args:
        few_shot_layers (`list[int]`, *optional*, defaults to `feature_layers`):
            Image blocks (1-based, ascending) whose patch tokens are compared with those of normal images
            (`few_shot_features` of the authors' code).
        logit_scale (`float`, *optional*, defaults to 100):
            Factor of the cosines, for maps and image score; a constant in the authors' code, not CLIP's parameter.
        kwargs: fields of [`PromptEnsembleConfig`].
    """

    model_type = "april_gan"
    title = "APRIL-GAN"
    source = (
        "Chen et al. 2023, [arXiv 2305.17382](https://arxiv.org/abs/2305.17382); code: "
        "[VAND-APRIL-GAN](https://github.com/ByChelsea/VAND-APRIL-GAN) (MIT)"
    )

    few_shot_layers: list[int] | tuple[int, ...] | None = None
    logit_scale: float | int = 100.0

    def _complete(self) -> None:
        super()._complete()
        self.few_shot_layers = list(self.feature_layers if self.few_shot_layers is None else self.few_shot_layers)

    def check_consistency(self) -> None:
        """Check the fields against each other."""
        super().check_consistency()
        self._check_layers("few_shot_layers", self.few_shot_layers)


class AprilGANModel(PromptEnsembleModel):
    r"""
    APRIL-GAN: linear maps of the patch tokens compared with a prompt ensemble; zero-shot and few-shot.

    Zero-shot, the map is the mean over `feature_layers` of the abnormal probability (the authors take the sum), and
    the image score comes from CLIP's global feature alone, without a learned part.

    Few-shot, the distance to the nearest patch of normal images, summed over `few_shot_layers`, is added to the sum of
    the zero-shot maps. The result is divided by the largest possible value, so that the map lies in [0, 1].

    Args:
        config ([`AprilGANConfig`]): the configuration.
    """

    config: AprilGANConfig
    supports_references = True
    few_shot_scores_depend_on_product = True

    def __init__(self, config: AprilGANConfig):
        super().__init__(config)
        self.adapters = PatchAdapters(
            len(config.feature_layers), config.vision_config.hidden_size, config.projection_dim
        )
        self.post_init()

    def required_layers(self) -> list[int]:
        """Return the blocks that maps and reference memory read."""
        return sorted({*self.config.feature_layers, *self.config.few_shot_layers})

    def segment(
        self, features: ImageFeatures, product_names: list[str], references: Mapping[str, torch.Tensor] | None = None
    ) -> AnomalyMethodOutput:
        """Compute maps and scores."""
        scale, text_embeds = self.config.logit_scale, self.text_embeds(product_names)
        tokens = [features.states[layer][:, 1:] for layer in self.config.feature_layers]
        logits = patch_logits(self.adapters(tokens), text_embeds, scale)
        layer_maps = upsample(logits, features.grid, features.size, align_corners=True).sigmoid()
        image_embeds = self.clip.visual_projection(features.pooled)
        text_logits = image_logits(image_embeds, text_embeds, scale)
        outputs = AnomalyMethodOutput(
            anomaly_map=layer_maps.mean(dim=1),
            text_scores=text_logits.softmax(dim=-1)[:, 1],
            image_logits=text_logits,
            layer_maps=layer_maps,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
        )
        outputs.image_scores = outputs.text_scores
        return outputs if references is None else self._with_references(outputs, features, references)

    def _with_references(
        self, outputs: AnomalyMethodOutput, features: ImageFeatures, references: Mapping[str, torch.Tensor]
    ) -> AnomalyMethodOutput:
        """Add the distances to the nearest patches of normal images to the maps and to the scores."""
        distances = self.reference_distances(features, references)
        # The sum of upsampled maps is the upsampled sum
        summed = distances.sum(dim=1, keepdim=True)
        reference_sum = upsample(summed, features.grid, features.size, align_corners=True).squeeze(1)
        num_layers, highest = outputs.layer_maps.shape[1], 2 * distances.shape[1]
        fused = (num_layers * outputs.anomaly_map + reference_sum) / (num_layers + highest)
        outputs.anomaly_map, outputs.reference_map = fused, reference_sum / highest
        outputs.image_scores = (outputs.text_scores + fused.flatten(1).amax(dim=1)) / 2
        return outputs

    def reference_distances(self, features: ImageFeatures, references: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """
        Compare patches with those of normal images.

        Args:
            features ([`ImageFeatures`]): result of the image tower.
            references (`Mapping[str, torch.Tensor]`): banks as in `reference_tokens`, L2-normalized rows.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_few_shot_layers, num_patches)`: 1 - largest cosine, in
            [0, 2].
        """
        layers = self.config.few_shot_layers
        return torch.stack(
            [nearest_distance(features.states[layer][:, 1:], references[f"layer_{layer}"]) for layer in layers], dim=1
        )

    def scores_of_product(self, text_scores: torch.Tensor, map_maxima: torch.Tensor) -> torch.Tensor:
        """
        Return the published image scores of the few-shot mode, for all images of a product together: the mean of the
        zero-shot score and of the maximum of the map, scaled to [0, 1] over the product.

        Args:
            text_scores, map_maxima (`torch.FloatTensor` of shape `(num_images,)`): `text_scores` of the output, and
                the maximum of each `anomaly_map`.

        Returns:
            `torch.FloatTensor` of shape `(num_images,)`: not a number where all maxima are equal, as in the
            authors' code.
        """
        return (text_scores + scaled_over_product(map_maxima)) / 2

    def compute_loss(
        self, outputs: AnomalyMethodOutput, labels: torch.Tensor, is_anomalous: torch.Tensor
    ) -> torch.Tensor:
        """Return focal plus dice loss, summed over the layers."""
        return segmentation_loss(outputs.layer_maps, labels)

    def reference_banks(self) -> list[str]:
        """Return `layer_<number>` of each of the `few_shot_layers`."""
        return [f"layer_{layer}" for layer in self.config.few_shot_layers]

    def reference_tokens(
        self, pixel_values: torch.FloatTensor, product_names: Sequence[str] | str | None = None
    ) -> dict[str, torch.Tensor]:
        """Return the patch tokens of `few_shot_layers`: bank `layer_<number>`, `(batch_size, num_patches, d_v)`."""
        layers = self.config.few_shot_layers
        states = self.image_features(pixel_values, layers).states
        return {f"layer_{layer}": states[layer][:, 1:] for layer in layers}
