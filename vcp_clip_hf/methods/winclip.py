"""WinCLIP and WinCLIP+ (Jeong et al., CVPR 2023, arXiv 2303.14814): windows of CLIP against prompts and references.

No code of the authors is public. The defaults are those of anomalib's implementation (Apache-2.0); where
zqhang/Accurate-WinCLIP-pytorch and caoyunkang/WinClip (both MIT) differ, an option of the configuration says so.

Shapes: B images, a grid of g_h x g_w patches, N = g_h * g_w, W windows of one scale, D the image width, E the joint
one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from huggingface_hub.dataclasses import strict

from ..nearest_patches import nearest_distance
from .base import AnomalyMethodOutput, ImageFeatures, PromptEnsembleModel
from .configuration import VIT_B_16_PLUS_240_TEXT, VIT_B_16_PLUS_240_VISION, PromptEnsembleConfig
from .patch_adapters import abnormal_probability, upsample
from .windows import mean_over_windows, window_index, window_sequences


__all__ = ["WinCLIPConfig", "WinCLIPEmbeddings", "WinCLIPModel"]

# Number of tokens in one pass over windows: the widest layer of a ViT-B then needs 235 MB in float32
_PASS_TOKENS = 2**14


@strict
class WinCLIPConfig(PromptEnsembleConfig):
    r"""
    Configuration of a [`WinCLIPModel`]. The default towers are open_clip's ViT-B-16-plus-240.

    Args:
        scales (`list[int]`, *optional*, defaults to `[2, 3]`):
            Sides of the windows in patches.
        use_image_scale (`bool`, *optional*, defaults to `True`):
            Whether the score of the full image takes part in the zero-shot map; caoyunkang/WinClip leaves it out.
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
            Whether `post_layernorm` is applied to these patch tokens; zqhang/Accurate-WinCLIP-pytorch leaves it out.
        fusion (`"mean"` or `"harmonic"`, *optional*, defaults to `"mean"`):
            Fusion of zero-shot map Z and association map M: `(Z + M) / 2`, or `1 / (1 / Z + 1 / M)` in
            caoyunkang/WinClip. zqhang/Accurate-WinCLIP-pytorch takes `Z + M`, which ranks like the mean.
        image_score (`"text"` or `"map_maximum"`, *optional*, defaults to `"text"`):
            Image score: the full image's text score, averaged with the maximum of M if there are references; or the
            maximum of the fused map (caoyunkang/WinClip).
        normalize_prompts (`bool`, *optional*, defaults to `False`):
            Whether prompt embeddings are L2-normalized before their mean; an unused variant ("V2") of
            caoyunkang/WinClip.
        kwargs: fields of [`PromptEnsembleConfig`]. The default templates are anomalib's 21, one of them twice;
            caoyunkang/WinClip has 22 distinct ones. `feature_layers` has no effect.
    """

    model_type = "winclip"
    title = "WinCLIP"
    source = (
        "Jeong et al., CVPR 2023, [arXiv 2303.14814](https://arxiv.org/abs/2303.14814); after "
        "[anomalib](https://github.com/open-edge-platform/anomalib) (Apache-2.0)"
    )
    default_text_config = VIT_B_16_PLUS_240_TEXT
    default_vision_config = VIT_B_16_PLUS_240_VISION

    projection_dim: int = 640
    image_size: int | list[int] | tuple[int, ...] = 240
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

    def _complete(self) -> None:
        super()._complete()
        self.scales = list(self.scales)

    def check_consistency(self) -> None:
        """Check the fields against each other."""
        super().check_consistency()
        if not self.scales or self.scales != sorted(set(self.scales)) or self.scales[0] < 1:
            raise ValueError(f"scales={self.scales} must be ascending, distinct, 1 or more, and not empty.")
        patches = min(self.input_size) // self.vision_config.patch_size
        if self.scales[-1] > patches:
            raise ValueError(
                f"scales={self.scales} has windows of {self.scales[-1]} patches a side, but image_size="
                f"{self.image_size} has {patches} only."
            )
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be above 0.")


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


class WinCLIPModel(PromptEnsembleModel):
    """
    WinCLIP: windows of the image at several scales, each compared with an ensemble of prompts, and with references if
    there are any (WinCLIP+). Nothing is trained.

    Args:
        config ([`WinCLIPConfig`]): the configuration.
    """

    config: WinCLIPConfig
    supports_references = True

    def __init__(self, config: WinCLIPConfig):
        super().__init__(config)
        self.post_init()

    @property
    def normalize_prompts(self) -> bool:
        """Return whether the sentences' embeddings are L2-normalized before their mean."""
        return self.config.normalize_prompts

    def required_layers(self) -> tuple[int, int]:
        """Return the input of the first block, from which windows are gathered, and the last block."""
        return 0, self.config.vision_config.num_hidden_layers

    def embed_windows(self, features: ImageFeatures) -> WinCLIPEmbeddings:
        """
        Run the image tower over every window separately.

        Args:
            features ([`ImageFeatures`]): result of the image tower for the full images.

        Raises:
            ValueError: a window is larger than the image.
        """
        first, last = self.required_layers()
        embedded, patches = features.states[first], features.states[last][:, 1:]
        if self.config.patch_post_layernorm:
            patches = self.clip.vision_model.post_layernorm(patches)
        return WinCLIPEmbeddings(
            image=self.clip.visual_projection(features.pooled),
            windows={
                scale: self._embed_scale(embedded, window_index(features.grid, scale)) for scale in self.config.scales
            },
            patches=patches,
            grid=features.grid,
        )

    def _embed_scale(self, embedded: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of all windows of one scale, (B, W, E), computed in passes of limited size."""
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
            embeddings ([`WinCLIPEmbeddings`]): result of `embed_windows`.
            text_embeds (`torch.Tensor` of shape `(B, 2, E)`): L2-normalized, normal first.
        """
        config, grid = self.config, embeddings.grid

        def abnormality(embeds: torch.Tensor) -> torch.Tensor:
            return abnormal_probability(embeds, text_embeds, config.temperature)

        def averaged(scores: torch.Tensor) -> torch.Tensor:
            return 1 - scores if config.harmonic_of == "normality" else scores

        image = abnormality(embeddings.image[:, None])[:, 0]
        windows = {scale: abnormality(embeds) for scale, embeds in embeddings.windows.items()}
        scales = {scale: averaged(mean_over_windows(averaged(each), grid, scale)) for scale, each in windows.items()}
        maps = list(scales.values())
        if config.use_image_scale:
            maps.append(image[:, None, None].expand(-1, *grid))
        grid_map = averaged(1 / (1 / averaged(torch.stack(maps))).mean(dim=0))
        return ZeroShotScores(image, windows, scales, grid_map)

    def compare_with_references(
        self, embeddings: WinCLIPEmbeddings, references: Mapping[str, torch.Tensor]
    ) -> AssociationScores:
        """
        Compare windows and patches with those of normal images, whatever their position.

        Args:
            embeddings ([`WinCLIPEmbeddings`]): result of `embed_windows`.
            references (`Mapping[str, torch.Tensor]`): banks of unit vectors by the names of `reference_tokens`.
        """
        windows = {
            scale: nearest_distance(each, references[f"window_{scale}"]) / 2
            for scale, each in embeddings.windows.items()
        }
        harmonic = self.config.association_mean == "harmonic"
        scales = {scale: mean_over_windows(each, embeddings.grid, scale, harmonic) for scale, each in windows.items()}
        patches = None
        if self.config.use_patch_scale:
            patches = (nearest_distance(embeddings.patches, references["patch"]) / 2).unflatten(1, embeddings.grid)
        maps = [*scales.values(), *([] if patches is None else [patches])]
        return AssociationScores(torch.stack(maps).mean(dim=0), patches, windows, scales)

    def reference_banks(self) -> list[str]:
        """Return `window_<scale>` of each scale, and `patch` if patch tokens are compared."""
        return [
            *(f"window_{scale}" for scale in self.config.scales),
            *(["patch"] if self.config.use_patch_scale else []),
        ]

    def reference_tokens(
        self, pixel_values: torch.FloatTensor, product_names: Sequence[str] | str | None = None
    ) -> dict[str, torch.Tensor]:
        """Return the embeddings of windows, `window_<scale>`: `(B, W, E)`, and `patch` tokens: `(B, N, D)`."""
        embeddings = self.embed_windows(self.image_features(pixel_values))
        tokens = {f"window_{scale}": embeds for scale, embeds in embeddings.windows.items()}
        return {**tokens, "patch": embeddings.patches} if self.config.use_patch_scale else tokens

    def segment(
        self, features: ImageFeatures, product_names: list[str], references: Mapping[str, torch.Tensor] | None = None
    ) -> AnomalyMethodOutput:
        """Compute maps and scores; with references, this is WinCLIP+."""
        embeddings, text_embeds = self.embed_windows(features), self.text_embeds(product_names)
        zero_shot = self.compare_with_text(embeddings, text_embeds)
        grid_map, image_scores, reference_map = zero_shot.grid_map, zero_shot.image, None
        if references is not None:
            association = self.compare_with_references(embeddings, references).grid_map
            image_scores = (image_scores + association.flatten(1).amax(dim=1)) / 2
            if self.config.fusion == "mean":
                grid_map = (grid_map + association) / 2
            else:
                grid_map = 1 / (1 / grid_map + 1 / association)
            reference_map = self._to_pixels(association, features)
        if self.config.image_score == "map_maximum":
            image_scores = grid_map.flatten(1).amax(dim=1)
        return AnomalyMethodOutput(
            anomaly_map=self._to_pixels(grid_map, features),
            image_scores=image_scores,
            text_scores=zero_shot.image,
            reference_map=reference_map,
            text_embeds=text_embeds,
            image_embeds=embeddings.image,
        )

    @staticmethod
    def _to_pixels(grid_map: torch.Tensor, features: ImageFeatures) -> torch.Tensor:
        return upsample(grid_map.flatten(1)[:, None], features.grid, features.size, align_corners=False)[:, 0]
