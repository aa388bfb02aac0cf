"""CLIP-AD: SDP and SDP+ (Chen et al. 2023, arXiv 2311.00453; github.com/ByChelsea/CLIP-AD).

That repository has no license: this file is written from what the method computes, without copied code. Facts that
only the authors' code states are marked (code).

Shapes: B images, N patches, K feature layers, D the image width, E the joint one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from ..losses import segmentation_loss
from .base import AnomalyMethodOutput, ImageFeatures, ProductText, PromptEnsembleModel, scaled_over_product
from .configuration import VIT_B_16_PLUS_240_TEXT, VIT_B_16_PLUS_240_VISION, AnomalyMethodConfig, PromptEnsembleConfig
from .patch_adapters import PatchAdapters, image_logits, patch_logits, text_cosines, upsample
from .representative_vectors import representative_vector
from .vv_attention import staged_value_stream


__all__ = ["ClipADConfig", "ClipADModel", "TwoPaths"]


@strict
class ClipADConfig(PromptEnsembleConfig):
    r"""
    Configuration of a [`ClipADModel`]. The default towers are open_clip's ViT-B-16-plus-240.

    Args:
        use_adapters (`bool`, *optional*, defaults to `False`):
            Whether to add trained linear maps of the original path (SDP+). `False`: SDP, without a learned part.
        representative (`str`, *optional*, defaults to `"dbscan"`):
            Way to choose one vector for each state, see `representative_vector`: `"dbscan"` (the published results),
            `"mean"`, `"pca"`, `"kde"` or `"mean_shift"`.
        dbscan_eps (`float`, *optional*, defaults to 0.5):
            Radius of DBSCAN. For VisA, the authors use 1.5 with `dbscan_min_samples=25`, which gives the mean.
        dbscan_min_samples (`int`, *optional*, defaults to 15):
            Neighbors of a core point of DBSCAN, itself included.
        published_feature_shift (`bool`, *optional*, defaults to `True`):
            Whether the original path of a feature layer contains the attention output of the next block. The authors'
            code adds it in place to the tensor that it has already returned, and the published numbers contain it.
            `False`: the output of the block itself.
        logit_scale (`float`, *optional*, defaults to 100):
            Factor of the cosines of the image score and of the adapters; a constant in the authors' code.
        kwargs: fields of [`PromptEnsembleConfig`].
    """

    model_type = "clip_ad"
    title = "CLIP-AD"
    source = (
        "Chen et al. 2023, [arXiv 2311.00453](https://arxiv.org/abs/2311.00453); code: "
        "[CLIP-AD](https://github.com/ByChelsea/CLIP-AD) (no license)"
    )
    default_text_config = VIT_B_16_PLUS_240_TEXT
    default_vision_config = VIT_B_16_PLUS_240_VISION
    # 8 for both datasets with SDP, and for MVTec-AD with SDP+; 2 for VisA with SDP+ (code)
    image_processing = {**AnomalyMethodConfig.image_processing, "smoothing_sigma": 8.0}

    projection_dim: int = 640
    image_size: int | list[int] | tuple[int, ...] = 240
    use_adapters: bool = False
    representative: Literal["dbscan", "mean", "pca", "kde", "mean_shift"] = "dbscan"
    dbscan_eps: float | int = 0.5
    dbscan_min_samples: int = 15
    published_feature_shift: bool = True
    logit_scale: float | int = 100.0


@dataclass
class TwoPaths:
    """
    Features of both paths, feature layer by feature layer.

    Args:
        original (`list[torch.Tensor]`): K tensors `(B, 1 + N, D)`: residual stream, neither normalized nor projected.
        surgery (`list[torch.Tensor]`): K tensors `(B, 1 + N, E)`: class token of the original path and patches of the
            second one, projected.
    """

    original: list[torch.Tensor]
    surgery: list[torch.Tensor]


class ClipADModel(PromptEnsembleModel):
    """
    CLIP-AD: a second path of value-value attention in four stages, compared with one representative vector for each
    state (SDP), and linear maps of the original path (SDP+).

    `anomaly_map` is the published sum over K layers, divided by K and moved to [0, 1]: (1 + SDP / K) / 2, and
    (1 + SDP / K + adapters / K) / 3 with adapters. `image_scores` is the published text score; its sum with the
    maximum of the map needs all images of a product, see `scores_of_product`.

    Args:
        config ([`ClipADConfig`]): the configuration.
    """

    config: ClipADConfig
    scores_depend_on_product = True
    trained_fields = {"use_adapters": True}

    def __init__(self, config: ClipADConfig):
        super().__init__(config)
        sizes = len(config.feature_layers), config.vision_config.hidden_size, config.projection_dim
        self.adapters = PatchAdapters(*sizes) if config.use_adapters else None
        self.post_init()

    def encode_product(self, product: str) -> ProductText:
        """Embed both states of a product: one vector chosen from the sentences' L2-normalized embeddings."""
        config = self.config
        vectors = [
            representative_vector(
                nn.functional.normalize(self.encode_sentences(each).float(), dim=-1),
                config.representative,
                config.dbscan_eps,
                config.dbscan_min_samples,
            )
            for each in config.prompt_ensemble().sentences(product)
        ]
        return ProductText(torch.stack(vectors).to(self.dtype))

    def required_layers(self) -> range:
        """Return all blocks: each gives the input of the next one's value-value attention."""
        return range(self.config.vision_config.num_hidden_layers + 1)

    def two_paths(self, features: ImageFeatures) -> TwoPaths:
        """
        Return the features of both paths.

        Args:
            features ([`ImageFeatures`]): result of the image tower.
        """
        vision, layers = self.clip.vision_model, self.config.feature_layers
        blocks = vision.encoder.layers
        original = [self._original(blocks, features.states, layer) for layer in layers]
        stages = staged_value_stream(blocks, features.states, layers)
        surgery = [
            torch.cat([own[:, :1], stages[layer][:, 1:]], dim=1) for layer, own in zip(layers, original, strict=True)
        ]
        return TwoPaths(original, [self.clip.visual_projection(vision.post_layernorm(each)) for each in surgery])

    def _original(self, blocks: nn.ModuleList, states: Mapping[int, torch.Tensor], layer: int) -> torch.Tensor:
        if not self.config.published_feature_shift or layer == len(blocks):
            return states[layer]
        following = blocks[layer]
        return states[layer] + following.self_attn(following.layer_norm1(states[layer]))[0]

    def similarity(self, surgery: list[torch.Tensor], text_embeds: torch.Tensor) -> torch.Tensor:
        """
        Compare the second path with the text, and subtract the part that both states have in common.

        For unit tokens f and text t, with q the softmax over the states of the class token's cosines: channel s is
        2 q_s f.t_s minus its mean over the states.

        Args:
            surgery (`list[torch.Tensor]`): K tensors `(B, 1 + N, E)`, as in [`TwoPaths`].
            text_embeds (`torch.Tensor` of shape `(B, 2, E)`): L2-normalized, normal first.

        Returns:
            `torch.FloatTensor` of shape `(B, K, 1 + N, 2)`: normal first, in [-1, 1].
        """
        cosines = text_cosines(torch.stack(surgery, dim=1), text_embeds[:, None])
        weighted = 2 * cosines[:, :, :1].softmax(dim=-1) * cosines
        return weighted - weighted.mean(dim=-1, keepdim=True)

    def segment(
        self, features: ImageFeatures, product_names: list[str], references: Mapping[str, torch.Tensor] | None = None
    ) -> AnomalyMethodOutput:
        """Compute maps and scores."""
        grid, size, text_embeds = features.grid, features.size, self.text_embeds(product_names)
        paths = self.two_paths(features)
        values = self.similarity(paths.surgery, text_embeds)[:, :, 1:, 1].mean(dim=1, keepdim=True)
        anomaly_map = (1 + upsample(values, grid, size, align_corners=False)[:, 0]) / 2
        layer_maps = None
        if self.adapters is not None:
            tokens = self.adapters([each[:, 1:] for each in paths.original])
            logits = patch_logits(tokens, text_embeds, self.config.logit_scale)
            layer_maps = upsample(logits, grid, size, align_corners=True).sigmoid()
            anomaly_map = (2 * anomaly_map + layer_maps.mean(dim=1)) / 3
        image_embeds = paths.surgery[-1][:, 0]
        text_logits = image_logits(image_embeds, text_embeds, self.config.logit_scale)
        scores = text_logits.softmax(dim=-1)[:, 1]
        return AnomalyMethodOutput(
            anomaly_map=anomaly_map,
            image_scores=scores,
            text_scores=scores,
            image_logits=text_logits,
            layer_maps=layer_maps,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
        )

    def compute_loss(
        self, outputs: AnomalyMethodOutput, labels: torch.Tensor, is_anomalous: torch.Tensor
    ) -> torch.Tensor:
        """
        Return focal plus dice loss of the adapters' maps, summed over the layers.

        Raises:
            ValueError: there are no adapters.
        """
        if self.adapters is None:
            raise ValueError("SDP has no learned part, so labels give no loss. Set use_adapters=True for SDP+.")
        return segmentation_loss(outputs.layer_maps, labels)

    def scores_of_product(self, text_scores: torch.Tensor, map_maxima: torch.Tensor) -> torch.Tensor:
        """
        Return the published image scores, for all images of a product together: text score and maximum of the map,
        both scaled to [0, 1] over the product, added.

        Args:
            text_scores, map_maxima (`torch.FloatTensor` of shape `(num_images,)`): `text_scores` of the output, and
                the maximum of each smoothed `anomaly_map`.

        Returns:
            `torch.FloatTensor` of shape `(num_images,)`: in [0, 2]; not a number where all values of a part are equal.
        """
        return scaled_over_product(text_scores) + scaled_over_product(map_maxima)
