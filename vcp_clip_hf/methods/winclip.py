"""WinCLIP and WinCLIP+ (Jeong et al., CVPR 2023, arXiv 2303.14814): windows of CLIP against prompts and references.

No code of the authors is public. The defaults are those of anomalib's implementation (Apache-2.0); where
zqhang/Accurate-WinCLIP-pytorch and caoyunkang/WinClip (both MIT) differ, an option of the configuration says so.

Shapes: B images, a grid of g_h x g_w patches, N = g_h * g_w, W windows of one scale, D the image width, E the joint one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers.utils import can_return_tuple

from ..references import nearest_distance
from .base import MethodConfig, MethodModel, MethodOutput
from .patch_adapters import upsample
from .windows import mean_over_windows, window_index, window_sequences


__all__ = ["WinCLIPConfig", "WinCLIPEmbeddings", "WinCLIPModel"]

# Tokens of one pass over windows: the widest layer of a ViT-B then needs 235 MB in float32
_PASS_TOKENS = 2**14


@strict
class WinCLIPConfig(MethodConfig):
    r"""
    Configuration of a [`WinCLIPModel`]. The default towers are open_clip's ViT-B-16-plus-240.

    Args:
        scales (`list[int]`, *optional*, defaults to `[2, 3]`):
            Sides of the windows in patches.
        use_image_scale (`bool`, *optional*, defaults to `True`):
            Whether the score of the full image takes part in the zero-shot map; not in caoyunkang/WinClip.
        temperature (`float`, *optional*, defaults to 0.07):
            Divisor of the cosines; 0.01 in caoyunkang/WinClip.
        harmonic_of (`"abnormality"` or `"normality"`, *optional*, defaults to `"abnormality"`):
            Probability whose harmonic mean over windows and scales is the zero-shot map; with `"normality"`
            (caoyunkang/WinClip) the map is one minus that mean.
        association_mean (`"harmonic"` or `"arithmetic"`, *optional*, defaults to `"harmonic"`):
            Mean of the distances to references over the windows that cover a patch; arithmetic in caoyunkang/WinClip.
        use_patch_scale (`bool`, *optional*, defaults to `True`):
            Whether patch tokens are compared with references beside the windows.
        patch_post_layernorm (`bool`, *optional*, defaults to `True`):
            Whether `post_layernorm` is applied to these patch tokens; not in zqhang/Accurate-WinCLIP-pytorch.
        fusion (`"mean"` or `"harmonic"`, *optional*, defaults to `"mean"`):
            Fusion of zero-shot map Z and association map M: `(Z + M) / 2`, or `1 / (1 / Z + 1 / M)` in
            caoyunkang/WinClip. zqhang/Accurate-WinCLIP-pytorch takes `Z + M`, which ranks like the mean.
        image_score (`"text"` or `"map_maximum"`, *optional*, defaults to `"text"`):
            Image score: the full image's text score, averaged with the maximum of M if there are references; or the
            maximum of the fused map (caoyunkang/WinClip).
        normalize_prompts (`bool`, *optional*, defaults to `False`):
            Whether prompt embeddings are L2-normalized before their mean; an unused variant ("V2") of
            caoyunkang/WinClip.
    """

    model_type = "winclip"

    scales: list[int] | tuple[int, ...] = (2, 3)
    use_image_scale: bool = True
    temperature: float | int = 0.07
    harmonic_of: Literal["abnormality", "normality"] = "abnormality"
    association_mean: Literal["harmonic", "arithmetic"] = "harmonic"
    use_patch_scale: bool = True
    patch_post_layernorm: bool = True
    fusion: Literal["mean", "harmonic"] = "mean"
    image_score: Literal["text", "map_maximum"] = "text"
    normalize_prompts: bool = False


@dataclass
class WinCLIPEmbeddings:
    """
    Everything of one batch that is compared with text or references; nothing is normalized.

    Args:
        image (`torch.Tensor` of shape `(B, E)`): class token of the full image, projected.
        windows (`dict[int, torch.Tensor]`): scale -> class tokens of its windows, projected, `(B, W, E)`.
        patches (`torch.Tensor` of shape `(B, N, D)`): patch tokens of the last block, not projected.
        grid (`tuple[int, int]`): patches in a column and in a row.
    """

    image: torch.Tensor
    windows: dict[int, torch.Tensor]
    patches: torch.Tensor
    grid: tuple[int, int]


@dataclass
class ZeroShotScores:
    """
    Comparison with the prompts.

    Args:
        image (`torch.FloatTensor` of shape `(B,)`): probability that the full image is abnormal.
        windows (`dict[int, torch.FloatTensor]`): scale -> probability of each window, `(B, W)`.
        scales (`dict[int, torch.FloatTensor]`): scale -> harmonic mean over the windows of each patch,
            `(B, g_h, g_w)`.
        grid_map (`torch.FloatTensor` of shape `(B, g_h, g_w)`): harmonic mean over the scales.
    """

    image: torch.Tensor
    windows: dict[int, torch.Tensor]
    scales: dict[int, torch.Tensor]
    grid_map: torch.Tensor


@dataclass
class AssociationScores:
    """
    Comparison with references; every distance is (1 - maximum cosine) / 2.

    Args:
        windows (`dict[int, torch.FloatTensor]`): scale -> distance of each window, `(B, W)`.
        scales (`dict[int, torch.FloatTensor]`): scale -> mean over the windows of each patch, `(B, g_h, g_w)`.
        patches (`torch.FloatTensor` of shape `(B, g_h, g_w)`, *optional*): distance of each patch token.
        grid_map (`torch.FloatTensor` of shape `(B, g_h, g_w)`): arithmetic mean of patches and scales.
    """

    grid_map: torch.Tensor
    patches: torch.Tensor | None = None
    windows: dict[int, torch.Tensor] = field(default_factory=dict)
    scales: dict[int, torch.Tensor] = field(default_factory=dict)


class WinCLIPModel(MethodModel):
    """
    WinCLIP: windows of the image at several scales, each compared with an ensemble of prompts, and with references if
    there are any (WinCLIP+). Nothing is trained.

    Args:
        config ([`WinCLIPConfig`]): the architecture.
    """

    config: WinCLIPConfig

    def encode_windows(self, pixel_values: torch.FloatTensor) -> WinCLIPEmbeddings:
        """
        Run the image tower over the full images and over every window. No window sees another.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, 3, height, width)`): images; sides are multiples of the
                patch size.

        Raises:
            ValueError: a wrong shape, or a window that is larger than the image.
        """
        vision = self.clip.vision_model
        depth = len(vision.encoder.layers)
        states, class_token = self.run_image_tower(pixel_values, (0, depth))
        grid = self.grid_of(pixel_values)
        patches = states[depth][:, 1:]
        return WinCLIPEmbeddings(
            image=self.clip.visual_projection(class_token),
            windows={scale: self._window_embeds(states[0], window_index(grid, scale)) for scale in self.config.scales},
            patches=vision.post_layernorm(patches) if self.config.patch_post_layernorm else patches,
            grid=grid,
        )

    def _window_embeds(self, embedded: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Run all windows of one scale as one batch, in several passes where it is large: (B, W, E)."""
        vision = self.clip.vision_model
        windows_of_a_pass = max(1, _PASS_TOKENS // (len(embedded) * (1 + len(index))))
        parts = []
        for columns in index.split(windows_of_a_pass, dim=1):
            tokens = vision.encoder(inputs_embeds=window_sequences(embedded, columns)).last_hidden_state[:, 0]
            parts.append(self.clip.visual_projection(vision.post_layernorm(tokens)).unflatten(0, (len(embedded), -1)))
        return torch.cat(parts, dim=1)

    def compare_with_text(self, embeddings: WinCLIPEmbeddings, text_embeds: torch.Tensor) -> ZeroShotScores:
        """
        Compare images and windows with the prompts.

        Args:
            embeddings ([`WinCLIPEmbeddings`]): result of `encode_windows`.
            text_embeds (`torch.Tensor` of shape `(B, 2, E)`): one vector of each state, normal first.
        """
        config = self.config

        def abnormality(embeds: torch.Tensor) -> torch.Tensor:
            unit, text = (nn.functional.normalize(each.float(), dim=-1) for each in (embeds, text_embeds))
            return ((unit @ text.transpose(1, 2)) / config.temperature).softmax(dim=-1)[..., 1]

        image = abnormality(embeddings.image[:, None])[:, 0]
        windows = {scale: abnormality(embeds) for scale, embeds in embeddings.windows.items()}
        of_normality = config.harmonic_of == "normality"
        scales = {}
        for scale, scores in windows.items():
            means = mean_over_windows(1 - scores if of_normality else scores, embeddings.grid, scale)
            scales[scale] = 1 - means if of_normality else means
        maps = [*scales.values()]
        if config.use_image_scale:
            maps.append(image[:, None, None].expand(-1, *embeddings.grid))
        stacked = torch.stack(maps)
        inverse = 1 / (1 - stacked if of_normality else stacked)
        mean = 1 / inverse.mean(dim=0)
        return ZeroShotScores(image, windows, scales, 1 - mean if of_normality else mean)

    def compare_with_references(
        self, embeddings: WinCLIPEmbeddings, banks: Mapping[str, torch.Tensor]
    ) -> AssociationScores:
        """
        Compare windows and patches with those of references, whatever their position.

        Args:
            embeddings ([`WinCLIPEmbeddings`]): result of `encode_windows`.
            banks (`Mapping[str, torch.Tensor]`): unit vectors of all references by the names of `reference_tokens`.
        """
        harmonic = self.config.association_mean == "harmonic"
        windows, scales, patches = {}, {}, None
        for scale, embeds in embeddings.windows.items():
            windows[scale] = nearest_distance(embeds, banks[f"window_{scale}"]) / 2
            scales[scale] = mean_over_windows(windows[scale], embeddings.grid, scale, harmonic)
        maps = [*scales.values()]
        if self.config.use_patch_scale:
            patches = (nearest_distance(embeddings.patches, banks["patch"]) / 2).unflatten(1, embeddings.grid)
            maps.append(patches)
        return AssociationScores(torch.stack(maps).mean(dim=0), patches, windows, scales)

    @torch.no_grad()
    def reference_tokens(self, pixel_values: torch.FloatTensor) -> dict[str, torch.Tensor]:
        """
        Return what the memory keeps of normal images: the embeddings of windows and patches.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, 3, height, width)`): normal images.

        Returns:
            `dict[str, torch.Tensor]`: `"window_<scale>"` -> `(B, W, E)` and `"patch"` -> `(B, N, D)`.
        """
        embeddings = self.encode_windows(pixel_values)
        tokens = {f"window_{scale}": embeds for scale, embeds in embeddings.windows.items()}
        if self.config.use_patch_scale:
            tokens["patch"] = embeddings.patches
        return tokens

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        product_names: str | Sequence[str] | None = None,
        labels: torch.Tensor | None = None,
        references: Mapping[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> MethodOutput:
        r"""
        Compute anomaly maps and image scores.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, 3, height, width)`): images, normalized with CLIP's mean
                and standard deviation; sides are multiples of the patch size.
            product_names (`str` or `Sequence[str]`, *optional*, defaults to `"object"`): name of the product, one for
                all images or one for each.
            labels (`torch.Tensor`, *optional*): must be `None`: nothing is trained.
            references (`Mapping[str, torch.Tensor]`, *optional*): unit vectors `(rows, width)` of normal images, by
                the names of `reference_tokens`; with them, this is WinCLIP+.
            return_dict (`bool`, *optional*): `False` for a plain tuple.

        Returns:
            [`MethodOutput`]
        """
        embeddings = self.encode_windows(pixel_values)
        zero_shot = self.compare_with_text(embeddings, self.text_embeds(product_names, len(pixel_values)))
        grid_map, image_scores = zero_shot.grid_map, zero_shot.image
        if references is not None:
            association = self.compare_with_references(embeddings, references).grid_map
            image_scores = (image_scores + association.flatten(1).amax(dim=1)) / 2
            if self.config.fusion == "mean":
                grid_map = (grid_map + association) / 2
            else:
                grid_map = 1 / (1 / grid_map + 1 / association)
        if self.config.image_score == "map_maximum":
            image_scores = grid_map.flatten(1).amax(dim=1)
        anomaly_map = upsample(grid_map.flatten(1)[:, None], embeddings.grid, pixel_values.shape[-2:], False)[:, 0]
        return MethodOutput(anomaly_map=anomaly_map, image_scores=image_scores)
