"""APRIL-GAN (Chen et al., arXiv 2305.17382; github.com/ByChelsea/VAND-APRIL-GAN, MIT)."""

from collections.abc import Mapping, Sequence

import torch
from huggingface_hub.dataclasses import strict

from ..losses import segmentation_loss
from .base import AnomalyMethodOutput, ImageFeatures, PromptEnsembleModel
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

    Few-shot, the distance to the nearest patch of normal images, a sum over `few_shot_layers`, is added to the sum of
    the zero-shot maps. Both together are divided by the largest possible value, so that the map lies in [0, 1].

    Args:
        config ([`AprilGANConfig`]): the configuration.
    """

    config: AprilGANConfig
    supports_references = True

    def __init__(self, config: AprilGANConfig):
        super().__init__(config)
        self.adapters = PatchAdapters(
            len(config.feature_layers), config.vision_config.hidden_size, config.projection_dim
        )
        self.post_init()

    def segment(
        self, features: ImageFeatures, product_names: list[str], references: Mapping[str, torch.Tensor] | None = None
    ) -> AnomalyMethodOutput:
        """Compute maps and scores."""
        scale, text_embeds = self.config.logit_scale, self.text_embeds(product_names)
        tokens = [features.states[layer][:, 1:] for layer in self.config.feature_layers]
        logits = patch_logits(self.adapters(tokens), text_embeds, scale)
        layer_maps = upsample(logits, features.grid, features.size, align_corners=True).sigmoid()
        image_embeds = self.clip.visual_projection(features.pooled)
        class_logits = image_logits(image_embeds, text_embeds, scale)
        scores = class_logits.softmax(dim=-1)[:, 1]
        return AnomalyMethodOutput(
            anomaly_map=layer_maps.mean(dim=1),
            image_scores=scores,
            text_scores=scores,
            image_logits=class_logits,
            layer_maps=layer_maps,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
        )

    def compute_loss(
        self, outputs: AnomalyMethodOutput, labels: torch.Tensor, image_labels: torch.Tensor
    ) -> torch.Tensor:
        """Return focal plus dice loss, summed over the layers."""
        return segmentation_loss(outputs.layer_maps, labels)

    def reference_tokens(
        self, pixel_values: torch.FloatTensor, product_names: Sequence[str] | str | None = None
    ) -> dict[str, torch.Tensor]:
        """Return the patch tokens of `few_shot_layers`: bank `layer_<number>`, `(batch_size, num_patches, d_v)`."""
        layers = self.config.few_shot_layers
        states = self.image_features(pixel_values, layers).states
        return {f"layer_{layer}": states[layer][:, 1:] for layer in layers}
