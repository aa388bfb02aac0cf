"""AnomalyCLIP (Zhou et al., ICLR 2024, arXiv 2310.18961; github.com/zqhang/AnomalyCLIP, commit 45ed4dd, MIT).

Shapes: B images, N patches, K feature layers, n context vectors, t deep prompt tokens, d the text width, d_v the image
width. The two states are always ordered normal, abnormal.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import CLIPConfig, CLIPModel
from transformers import initialization as init

from ..configuration_frozen_clip import FrozenCLIPConfig
from ..losses import dice_loss, segmentation_loss
from ..modeling_frozen_clip import with_blocks_of
from .base import AnomalyMethodModel, AnomalyMethodOutput, ImageFeatures, ProductText
from .configuration import AnomalyMethodConfig
from .learned_context import ContextTextEncoder, encode_with_context
from .patch_adapters import image_logits, patch_logits, upsample
from .value_stream_tower import SharedValueAttention, ValueStream, ValueStreamEncoder


__all__ = ["AnomalyCLIPConfig", "AnomalyCLIPModel", "AnomalyCLIPPrompts"]

# The authors' words, and their ids in the vocabulary of OpenAI's CLIP, which has this number of entries
_NORMAL_PROMPT = "object."
_ABNORMAL_PROMPT = "damaged object."
_NORMAL_PROMPT_IDS = [49406, 14115, 269, 49407]
_ABNORMAL_PROMPT_IDS = [49406, 13568, 14115, 269, 49407]
_VOCAB_SIZE = 49408

# Standard deviation of the initial values of learned vectors
_INITIAL_STD = 0.02


@strict
class AnomalyCLIPConfig(AnomalyMethodConfig):
    r"""
    Configuration of an [`AnomalyCLIPModel`]. The defaults are those of the authors' released scripts and weights, on
    ViT-L/14-336 at 518 pixels with QuickGELU.

    Args:
        feature_layers (`list[int]`, *optional*, defaults to the last block):
            Image blocks (1-based, ascending) whose patch features are compared with the text. The paper and the
            default of the code name 6, 12, 18, 24; the released scripts, the released weights and all published
            results use the last block only (the authors' answer in issue 82 of their repository).
        dpam_layer (`int`, *optional*, defaults to 20 with 24 blocks, else the same share):
            D (`DPAM_layer` in the code): the last D - 1 blocks have value-value attention, for ViT-L/14 blocks 6 to
            24. At least 2: with 1, the authors' forward pass fails.
        num_context_tokens (`int`, *optional*, defaults to 12):
            Number n of learned vectors before the words of each prompt.
        deep_prompt_depth (`int`, *optional*, defaults to 9):
            Number of text blocks with learned tokens. The first block has the context vectors, the others have deep
            prompts; 1 switches deep prompts off.
        num_deep_prompt_tokens (`int`, *optional*, defaults to 4):
            Number t of positions after the start token that deep prompts overwrite. The first versions of the paper
            concatenate them; overwriting is right (issue 75 of the authors' repository).
        deep_prompt_cast (`"float16"` or `"none"`, *optional*, defaults to `"float16"`):
            Rounding of the deep prompts on their way into a block. The authors' code casts them to float16, in a model
            that is float32 otherwise. It changes the text embeddings by less than 1e-4; gradients of the deep prompts
            are rounded to float16 too (4e-4 relative), and those below 6e-8 become 0. `"none"` does not round.
        temperature (`float`, *optional*, defaults to 0.07):
            Divisor of the cosines, for maps and image score; a constant in the authors' code.
        global_post_layernorm (`bool`, *optional*, defaults to `False`):
            Whether the global image feature passes CLIP's `post_layernorm`. In the authors' code it does not (issue 14
            of their repository: both were tried, without effect on the results).
        local_loss_weight (`float`, *optional*, defaults to 4):
            Factor lambda of the losses of the maps. Since April 2025, the authors' code has one layer and the factor
            4; before, it had the same layer four times and the factor 1, which is the same loss.
        normal_prompt, abnormal_prompt (`str`, *optional*, default to `"object."` and `"damaged object."`):
            Words after the context vectors of each prompt.
        normal_prompt_ids, abnormal_prompt_ids (`list[int]`, *optional*):
            Their ids with start and end token. By default the model's tokenizer makes them, unless words and
            vocabulary are the authors'.
        kwargs: fields of [`AnomalyMethodConfig`]. `position_interpolation` is `"bilinear"`. (In the authors' code,
            images of a second size would get the positions of the first one's grid; here each size is interpolated
            from the pretrained grid.)

    Raises:
        ValueError: values contradict each other; the message names both.
    """

    model_type = "anomaly_clip"
    title = "AnomalyCLIP"
    source = (
        "Zhou et al., ICLR 2024, [arXiv 2310.18961](https://arxiv.org/abs/2310.18961); code: "
        "[AnomalyCLIP](https://github.com/zqhang/AnomalyCLIP) (MIT)"
    )
    image_processing = {"smoothing_sigma": 4.0, "score_mode": "image_head"}
    default_text_config = {**FrozenCLIPConfig.default_text_config, "hidden_act": "quick_gelu"}
    default_vision_config = {**FrozenCLIPConfig.default_vision_config, "hidden_act": "quick_gelu"}

    position_interpolation: Literal["bicubic_antialias", "bicubic", "bilinear"] = "bilinear"
    dpam_layer: int | None = None
    num_context_tokens: int = 12
    deep_prompt_depth: int = 9
    num_deep_prompt_tokens: int = 4
    deep_prompt_cast: Literal["float16", "none"] = "float16"
    temperature: float | int = 0.07
    global_post_layernorm: bool = False
    local_loss_weight: float | int = 4
    normal_prompt: str = _NORMAL_PROMPT
    abnormal_prompt: str = _ABNORMAL_PROMPT
    normal_prompt_ids: list[int] | None = None
    abnormal_prompt_ids: list[int] | None = None

    def __post_init__(self, **kwargs):
        given_layers = self.feature_layers
        super().__post_init__(**kwargs)
        depth = self.vision_config.num_hidden_layers
        if given_layers is None:
            self.feature_layers = [depth]
        if self.dpam_layer is None:
            self.dpam_layer = max(2, depth * 20 // 24)
        if self.text_config.vocab_size == _VOCAB_SIZE:
            for state, words, ids in (
                ("normal", _NORMAL_PROMPT, _NORMAL_PROMPT_IDS),
                ("abnormal", _ABNORMAL_PROMPT, _ABNORMAL_PROMPT_IDS),
            ):
                if getattr(self, f"{state}_prompt") == words and getattr(self, f"{state}_prompt_ids") is None:
                    setattr(self, f"{state}_prompt_ids", list(ids))
        self.check_consistency()

    def check_consistency(self) -> None:
        """
        Check the fields against each other.

        Raises:
            ValueError: fields contradict each other; the message names both.
        """
        super().check_consistency()
        depth, text_depth = self.vision_config.num_hidden_layers, self.text_config.num_hidden_layers
        if self.dpam_layer is not None and not 2 <= self.dpam_layer <= depth + 1:
            raise ValueError(
                f"dpam_layer={self.dpam_layer} must lie in 2..{depth + 1}: the last dpam_layer - 1 of"
                f" num_hidden_layers={depth} image blocks have value-value attention."
            )
        if not 1 <= self.deep_prompt_depth <= text_depth:
            raise ValueError(
                f"deep_prompt_depth={self.deep_prompt_depth} must lie in 1..{text_depth}, the number of text blocks."
            )
        for name in ("num_context_tokens", "num_deep_prompt_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be positive.")
        self._check_prompt_ids()

    def _check_prompt_ids(self) -> None:
        vocab_size, limit = self.text_config.vocab_size, self.text_config.max_position_embeddings
        for name in ("normal_prompt_ids", "abnormal_prompt_ids"):
            ids = getattr(self, name)
            if ids is None:
                continue
            if len(ids) < 2 or min(ids) < 0 or max(ids) >= vocab_size:
                raise ValueError(
                    f"{name}={ids} must be a start token, words and an end token of a vocabulary of {vocab_size}"
                    " entries."
                )
            if len(ids) + self.num_context_tokens > limit:
                raise ValueError(
                    f"{name} and num_context_tokens={self.num_context_tokens} make"
                    f" {len(ids) + self.num_context_tokens} tokens, more than max_position_embeddings={limit}."
                )
            if self.num_deep_prompt_tokens > self.num_context_tokens + len(ids) - 2:
                raise ValueError(
                    f"num_deep_prompt_tokens={self.num_deep_prompt_tokens} would overwrite the end token of {name},"
                    f" which has {len(ids) - 2} words after num_context_tokens={self.num_context_tokens}."
                )

    @classmethod
    def fitted_fields(cls, clip_config: CLIPConfig) -> dict[str, Any]:
        """Return the fields whose defaults may not fit a CLIP, with values that do."""
        depth = min(cls.deep_prompt_depth, clip_config.text_config.num_hidden_layers)
        return {**super().fitted_fields(clip_config), "deep_prompt_depth": depth}

    @property
    def first_value_block(self) -> int:
        """Return the first image block with value-value attention, counted from 1."""
        return self.vision_config.num_hidden_layers - self.dpam_layer + 2


class AnomalyCLIPPrompts(nn.Module):
    """The learned part of AnomalyCLIP: the context vectors of both prompts, and the deep prompts that both share."""

    def __init__(self, config: AnomalyCLIPConfig):
        super().__init__()
        self.config = config
        width, num_blocks = config.text_config.hidden_size, config.deep_prompt_depth - 1
        self.normal_context = nn.Parameter(torch.empty(config.num_context_tokens, width))
        self.abnormal_context = nn.Parameter(torch.empty(config.num_context_tokens, width))
        # Parameters of this module itself, not of a list: offloading loads what a called module has
        for index in range(num_blocks):
            tokens = nn.Parameter(torch.empty(config.num_deep_prompt_tokens, width))
            self.register_parameter(f"deep_prompts_{index}", tokens)
        self.num_blocks = num_blocks

    @property
    def deep_prompts(self) -> list[nn.Parameter]:
        """Return one tensor of deep prompts `(t, d)` for each block from the second to `deep_prompt_depth`."""
        return [getattr(self, f"deep_prompts_{index}") for index in range(self.num_blocks)]

    def forward(self) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """
        Return the learned vectors that the text tower inserts.

        Returns:
            `tuple`: context vectors `(1, 2, n, d)`, and one tensor of deep prompts `(2, t, d)` for each block from the
            second to `deep_prompt_depth`.
        """
        context = torch.stack([self.normal_context, self.abnormal_context]).unsqueeze(0)
        # As in the authors' code, the cast follows the expansion: each prompt's gradient is rounded before the sum
        deep = [tokens.expand(2, -1, -1) for tokens in self.deep_prompts]
        if self.config.deep_prompt_cast == "float16":
            deep = [tokens.half() for tokens in deep]
        return context, deep


@dataclass
class AnomalyCLIPImageFeatures(ImageFeatures):
    """
    Result of the image tower with both streams.

    Args:
        value_states (`dict[int, torch.Tensor]`): value-value stream `(B, 1 + N, d_v)` after each feature layer.
        class_token (`torch.Tensor` of shape `(B, d_v)`): class token of the ordinary stream after the last block.
    """

    value_states: dict[int, torch.Tensor]
    class_token: torch.Tensor


class AnomalyCLIPModel(AnomalyMethodModel):
    r"""
    AnomalyCLIP: one learned prompt for each state, the same for all products, and patches from value-value attention.

    The map is the mean over `feature_layers` of the abnormal probability (the authors take the sum); the image score
    compares CLIP's global feature with the prompts. The learned part, `prompts`, has 43,008 numbers for ViT-L/14.

    Args:
        config ([`AnomalyCLIPConfig`]): the configuration.
    """

    config: AnomalyCLIPConfig
    uses_product_names = False
    _no_split_modules = [*AnomalyMethodModel._no_split_modules, "AnomalyCLIPPrompts"]

    def __init__(self, config: AnomalyCLIPConfig):
        super().__init__(config)
        self.prompts = AnomalyCLIPPrompts(config)
        self.post_init()

    def _make_clip(self) -> CLIPModel:
        clip = super()._make_clip()
        image_tower, text_tower = clip.vision_model, clip.text_model
        image_tower.encoder = with_blocks_of(image_tower.encoder, ValueStreamEncoder)
        for layer in image_tower.encoder.layers:
            layer.self_attn.__class__ = SharedValueAttention
        text_tower.encoder = with_blocks_of(text_tower.encoder, ContextTextEncoder)
        return clip

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialize the learned vectors as the authors do."""
        if isinstance(module, AnomalyCLIPPrompts):
            for parameter in module.parameters():
                init.normal_(parameter, std=_INITIAL_STD)
        else:
            super()._init_weights(module)

    # --- text -------------------------------------------------------------------------------------------------------

    def text_modules(self) -> list[nn.Module]:
        """Return the modules that text embeddings are computed from."""
        return [*super().text_modules(), self.prompts]

    def prompt_ids(self) -> list[list[int]]:
        """Return the ids of both prompts, normal first: start token, words, end token, without the context."""
        return [
            self.tokenize([words])[0] if ids is None else ids
            for words, ids in (
                (self.config.normal_prompt, self.config.normal_prompt_ids),
                (self.config.abnormal_prompt, self.config.abnormal_prompt_ids),
            )
        ]

    def encode_product(self, product: str) -> ProductText:
        """Embed both prompts, which contain no product name."""
        return ProductText(encode_with_context(self.clip, [self.prompt_ids()], *self.prompts())[0])

    # --- images -----------------------------------------------------------------------------------------------------

    def required_layers(self) -> Iterable[int]:
        """Return no layers: `segment` reads the value-value stream instead of the residual stream."""
        return ()

    def image_features(
        self, pixel_values: torch.FloatTensor, layers: Iterable[int] | None = None, **kwargs
    ) -> AnomalyCLIPImageFeatures:
        """
        Run both streams of the image tower.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`): normalized images.
            layers (`Iterable[int]`, *optional*, defaults to none): blocks whose ordinary stream is returned as
                `states`.
            kwargs: arguments of transformers' attention functions.

        Returns:
            [`AnomalyCLIPImageFeatures`]
        """
        stream = ValueStream(self.config.feature_layers, self.config.first_value_block)
        features = super().image_features(pixel_values, layers, value_stream=stream, **kwargs)
        return AnomalyCLIPImageFeatures(**vars(features), value_states=stream.states, class_token=stream.class_token)

    def project(self, states: torch.Tensor) -> torch.Tensor:
        """
        Map a stream of the image tower to the joint space: CLIP's `post_layernorm` and projection.

        Args:
            states (`torch.Tensor` of shape `(..., d_v)`): tokens.

        Returns:
            `torch.Tensor` of shape `(..., projection_dim)`, not normalized.
        """
        return self.clip.visual_projection(self.clip.vision_model.post_layernorm(states))

    def segment(
        self,
        features: AnomalyCLIPImageFeatures,
        product_names: list[str],
        references: Mapping[str, torch.Tensor] | None = None,
    ) -> AnomalyMethodOutput:
        """Compute maps and scores."""
        scale, text_embeds = 1 / self.config.temperature, self.text_embeds(product_names)
        patches = [self.project(features.value_states[layer][:, 1:]) for layer in self.config.feature_layers]
        # The softmax over both states comes before the upsampling
        probabilities = patch_logits(patches, text_embeds, scale).sigmoid()
        layer_maps = upsample(probabilities, features.grid, features.size, align_corners=False)
        global_feature = features.pooled if self.config.global_post_layernorm else features.class_token
        image_embeds = self.clip.visual_projection(global_feature)
        logits = image_logits(image_embeds, text_embeds, scale)
        return AnomalyMethodOutput(
            anomaly_map=layer_maps.mean(dim=1),
            image_scores=logits.softmax(dim=-1)[:, 1],
            image_logits=logits,
            layer_maps=layer_maps,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
        )

    def compute_loss(
        self, outputs: AnomalyMethodOutput, labels: torch.Tensor, is_anomalous: torch.Tensor
    ) -> torch.Tensor:
        """
        Return the cross-entropy of the image scores plus `local_loss_weight` times the loss of the maps: focal loss
        and the dice losses of both states, summed over the layers.
        """
        maps = outputs.layer_maps
        normal_dice = maps.shape[1] * dice_loss(1 - maps, 1 - labels.to(maps.dtype).unsqueeze(1))
        local_loss = segmentation_loss(maps, labels) + normal_dice
        global_loss = nn.functional.cross_entropy(outputs.image_logits, is_anomalous)
        return global_loss + self.config.local_loss_weight * local_loss
