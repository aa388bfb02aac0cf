"""CoCoOp for segmentation (Zhou et al., CVPR 2022, arXiv 2203.05557; github.com/KaiyangZhou/CoOp, ff61507, MIT).

VCP-CLIP's paper compares VCP-CLIP with a variant of CoCoOp that segments anomalies; no code of this variant is public.
The paper says that templates of a normal and of an abnormal state replace CoCoOp's, that maps are computed as in
VCP-CLIP's baseline, and that everything else is CoCoOp's. This implementation joins CoOp's prompt learner and text
encoder with the patch adapters, maps and losses of VCP-CLIP's baseline. What neither source states is marked "our
choice" below.

Shapes: B images, N patches, K feature layers, m context vectors, d the joint width, d_t the text width. The two states
are always ordered normal, abnormal.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, PreTrainedTokenizerBase
from transformers import initialization as init

from ..losses import segmentation_loss
from ..modeling_frozen_clip import with_blocks_of
from ..prompts import check_tokenizer
from .base import AnomalyMethodModel, AnomalyMethodOutput, ImageFeatures, ProductText
from .configuration import AnomalyMethodConfig
from .learned_context import ContextTextEncoder, encode_with_context
from .patch_adapters import PatchAdapters, image_logits, patch_logits, upsample


__all__ = ["CoCoOpConfig", "CoCoOpModel", "CoCoOpPrompts"]

# CoCoOp's first words, and their ids in the vocabulary of OpenAI's CLIP, which has this number of entries
_CONTEXT_INIT = "a photo of a"
_CONTEXT_INIT_IDS = [320, 1125, 539, 320]
_VOCAB_SIZE = 49408

# Standard deviation of the context vectors' initial values where no words are given
_INITIAL_STD = 0.02
_INITIAL_TEMPERATURE = 0.07


@strict
class CoCoOpConfig(AnomalyMethodConfig):
    r"""
    Configuration of a [`CoCoOpModel`]. The defaults are those of the CoCoOp paper for the prompts and of VCP-CLIP's
    baseline for the rest, on ViT-L/14-336 at 518 pixels.

    Plain GELU in both towers is our choice, as in VCP-CLIP's code; CoCoOp itself runs OpenAI's QuickGELU. For a
    pretrained backbone, pass `hidden_act` to `from_clip`.

    Args:
        num_context_tokens (`int`, *optional*, defaults to 4):
            Number m of learned context vectors.
        context_init (`str`, *optional*, defaults to `"a photo of a"`):
            Words whose embeddings are the initial context vectors (setting `ctxv1` of CoCoOp's configurations, the one
            of its paper); their number of tokens must be m. `None`: normal distribution with standard deviation 0.02.
        context_init_ids (`list[int]`, *optional*):
            Token ids of `context_init`. [`CoCoOpModel.from_clip`] computes them if words or vocabulary differ from
            CoCoOp's.
        meta_net_reduction (`int`, *optional*, defaults to 16):
            Ratio of the joint width to the width of the meta-net's hidden layer.
        normal_state, abnormal_state (`str`, *optional*, default to `"good"` and `"damaged"`):
            Words of the states, between the context and the product's name. Our choice, because the paper does not
            state its templates for CoCoOp.
        image_score (`"max"` or `"top_pixels"`, *optional*, defaults to `"max"`):
            Image score: maximum of the map (VCP-CLIP's paper, table 10), or mean of its largest pixels (VCP-CLIP's
            test code).
        num_top_pixels (`int`, *optional*, defaults to 2000):
            Number of pixels in that mean.
        kwargs: fields of [`AnomalyMethodConfig`]. Smoothing with sigma 8 in the image processor is our choice, from
            VCP-CLIP's test code.

    Raises:
        ValueError: values contradict each other; the message names both.
    """

    model_type = "cocoop"
    title = "CoCoOp"
    source = (
        "Zhou et al., CVPR 2022, [arXiv 2203.05557](https://arxiv.org/abs/2203.05557); code: "
        "[CoOp](https://github.com/KaiyangZhou/CoOp) (MIT); for segmentation as VCP-CLIP's paper "
        "describes it"
    )
    image_processing = {"smoothing_sigma": 8.0, "score_mode": "image_head"}

    num_context_tokens: int = 4
    context_init: str | None = _CONTEXT_INIT
    context_init_ids: list[int] | None = None
    meta_net_reduction: int = 16
    normal_state: str = "good"
    abnormal_state: str = "damaged"
    image_score: Literal["max", "top_pixels"] = "max"
    num_top_pixels: int = 2000

    def _fill_defaults(self) -> None:
        super()._fill_defaults()
        text = self.text_config
        vocab_size = text.get("vocab_size", _VOCAB_SIZE) if isinstance(text, dict) else text.vocab_size
        if self.context_init is None:
            self.context_init_ids = None
        elif self.context_init_ids is None and (self.context_init, vocab_size) == (_CONTEXT_INIT, _VOCAB_SIZE):
            self.context_init_ids = list(_CONTEXT_INIT_IDS)

    def check_consistency(self) -> None:
        """
        Check the fields against each other.

        Raises:
            ValueError: fields contradict each other; the message names both.
        """
        super().check_consistency()
        ids, vocab_size = self.context_init_ids, self.text_config.vocab_size
        if self.context_init is not None and ids is None:
            raise ValueError(
                f"context_init={self.context_init!r} came without context_init_ids: a configuration has no tokenizer."
                " Give both, set context_init=None, or use CoCoOpModel.from_clip."
            )
        if self.num_context_tokens < 1:
            raise ValueError(f"num_context_tokens={self.num_context_tokens} must be at least 1.")
        if ids is not None and len(ids) != self.num_context_tokens:
            raise ValueError(
                f"context_init={self.context_init!r} has {len(ids)} tokens, but num_context_tokens is"
                f" {self.num_context_tokens}. Set it to {len(ids)}, or context_init to null."
            )
        if ids is not None and not all(0 <= each < vocab_size for each in ids):
            raise ValueError(f"context_init_ids={ids} do not fit a vocabulary of vocab_size={vocab_size} entries.")
        if not 1 <= self.meta_net_reduction <= self.projection_dim:
            raise ValueError(
                f"meta_net_reduction={self.meta_net_reduction} must lie in 1..{self.projection_dim}, projection_dim."
            )
        if self.num_top_pixels < 1:
            raise ValueError(f"num_top_pixels={self.num_top_pixels} must be at least 1.")


class CoCoOpPrompts(nn.Module):
    """The prompt learner of CoCoOp: context vectors, and a network that shifts all of them depending on the image."""

    def __init__(self, config: CoCoOpConfig):
        super().__init__()
        hidden, width = config.projection_dim // config.meta_net_reduction, config.text_config.hidden_size
        self.context = nn.Parameter(torch.empty(config.num_context_tokens, width))
        self.meta_net = nn.Sequential(nn.Linear(config.projection_dim, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """
        Make the context of each image.

        Args:
            image_embeds (`torch.Tensor` of shape `(B, d)`): global image features, not normalized.

        Returns:
            `torch.Tensor` of shape `(B, m, d_t)`.
        """
        shift = self.meta_net(nn.functional.normalize(image_embeds, dim=-1))
        return self.context + shift.unsqueeze(1)


class CoCoOpModel(AnomalyMethodModel):
    r"""
    CoCoOp for segmentation: prompts of both states whose learned context depends on the image.

    The map is the mean over `feature_layers` of the abnormal probability. The learned part is the context vectors and
    the meta-net (`prompts`), one linear map for each feature layer (`adapters`) and the temperature
    (`map_logit_scale`).

    The paper does not state how this variant was trained. `hub_configs/cocoop` has the training of VCP-CLIP's baseline
    (our choice), which has the same adapters and temperature. CoCoOp itself has neither, and learns classification,
    one image at a time, by SGD with momentum 0.9, weight decay 5e-4 and a cosine schedule from 2e-3 over 10 epochs.

    Args:
        config ([`CoCoOpConfig`]): the configuration.
    """

    config: CoCoOpConfig
    _no_split_modules = [*AnomalyMethodModel._no_split_modules, "CoCoOpPrompts"]

    def __init__(self, config: CoCoOpConfig):
        super().__init__(config)
        self.prompts = CoCoOpPrompts(config)
        self.adapters = PatchAdapters(
            len(config.feature_layers), config.vision_config.hidden_size, config.projection_dim
        )
        self.map_logit_scale = nn.Parameter(torch.empty(()))
        self.post_init()

    def _make_clip(self) -> CLIPModel:
        clip = super()._make_clip()
        clip.text_model.encoder = with_blocks_of(clip.text_model.encoder, ContextTextEncoder)
        return clip

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialize the prompts as CoCoOp does and the temperature as VCP-CLIP does."""
        if isinstance(module, CoCoOpPrompts):
            ids = self.config.context_init_ids
            if ids is None:
                init.normal_(module.context, std=_INITIAL_STD)
            else:
                # CLIP is the model's first part, so that the word embeddings have their values by now
                init.copy_(module.context, self.get_input_embeddings().weight[ids].to(module.context))
        elif isinstance(module, CoCoOpModel):
            init.constant_(module.map_logit_scale, math.log(1 / _INITIAL_TEMPERATURE))
        else:
            super()._init_weights(module)

    @classmethod
    def _config_on_backbone(
        cls,
        clip_config: CLIPConfig,
        name: str | None,
        tokenizer: PreTrainedTokenizerBase | None,
        hub_arguments: dict[str, Any],
        **fields,
    ) -> CoCoOpConfig:
        words = fields.get("context_init", _CONTEXT_INIT)
        vocab_size = clip_config.text_config.vocab_size
        known = words is None or (words == _CONTEXT_INIT and vocab_size == _VOCAB_SIZE)
        if not known and fields.get("context_init_ids") is None:
            if tokenizer is None and name is None:
                raise ValueError(
                    f"context_init={words!r} must be tokenized for a vocabulary of {vocab_size} entries: pass the"
                    " backbone's tokenizer as `tokenizer`, or context_init=None."
                )
            tokenizer = AutoTokenizer.from_pretrained(name, **hub_arguments) if tokenizer is None else tokenizer
            check_tokenizer(tokenizer, vocab_size)
            fields["context_init_ids"] = tokenizer(words, add_special_tokens=False).input_ids
        if fields.get("context_init_ids"):
            fields.setdefault("num_context_tokens", len(fields["context_init_ids"]))
        return super()._config_on_backbone(clip_config, name, tokenizer, hub_arguments, **fields)

    # --- text -------------------------------------------------------------------------------------------------------

    def prompt_name(self, product: str) -> str:
        """Return a product's name as the prompts contain it: CoOp's code replaces underscores by spaces."""
        return product.replace("_", " ")

    def encode_product(self, product: str) -> ProductText:
        """Refuse: the text embeddings depend on the image too."""
        raise ValueError("CoCoOp has no text embeddings of a product alone; call `encode_text` with image features.")

    def prompt_ids(self, product: str) -> list[list[int]]:
        """
        Return the ids of both prompts, normal first: start token, words, end token, without the context.

        Args:
            product (`str`): the product's name.
        """
        states = (self.config.normal_state, self.config.abnormal_state)
        return self.tokenize([f"{state} {self.prompt_name(product)}." for state in states])

    def encode_text(self, image_embeds: torch.Tensor, product_names: list[str]) -> torch.Tensor:
        """
        Run the text tower for both states of each image.

        Args:
            image_embeds (`torch.Tensor` of shape `(batch_size, d)`): global image features, not normalized.
            product_names (`list[str]`): one name for each image.

        Returns:
            `torch.Tensor` of shape `(batch_size, 2, d)`: L2-normalized, normal first.
        """
        ids = {name: self.prompt_ids(name) for name in dict.fromkeys(product_names)}
        context = self.prompts(image_embeds).unsqueeze(1)
        return encode_with_context(self.clip, [ids[name] for name in product_names], context)

    # --- images -----------------------------------------------------------------------------------------------------

    def segment(
        self, features: ImageFeatures, product_names: list[str], references: Mapping[str, torch.Tensor] | None = None
    ) -> AnomalyMethodOutput:
        """Compute maps and scores."""
        image_embeds = self.clip.visual_projection(features.pooled)
        text_embeds = self.encode_text(image_embeds, product_names)
        tokens = [features.states[layer][:, 1:] for layer in self.config.feature_layers]
        logits = patch_logits(self.adapters(tokens), text_embeds, self.map_logit_scale.float().exp())
        layer_maps = upsample(logits, features.grid, features.size, align_corners=True).sigmoid()
        anomaly_map = layer_maps.mean(dim=1)
        return AnomalyMethodOutput(
            anomaly_map=anomaly_map,
            image_scores=self._image_scores(anomaly_map),
            layer_maps=layer_maps,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
        )

    def class_logits(self, image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """
        Return CoCoOp's own logits of both states, with CLIP's temperature; VCP-CLIP's paper does not use them.

        Args:
            image_embeds, text_embeds (`torch.Tensor`): as in the output of `forward`.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, 2)`: normal first.
        """
        return image_logits(image_embeds, text_embeds, self.clip.logit_scale.float().exp())

    def _image_scores(self, anomaly_map: torch.Tensor) -> torch.Tensor:
        pixels = anomaly_map.flatten(1)
        if self.config.image_score == "max":
            return pixels.amax(dim=1)
        return pixels.topk(min(self.config.num_top_pixels, pixels.shape[1]), dim=1).values.mean(dim=1)

    def compute_loss(
        self, outputs: AnomalyMethodOutput, labels: torch.Tensor, is_anomalous: torch.Tensor
    ) -> torch.Tensor:
        """Return focal plus dice loss of the abnormal state, summed over the layers; `is_anomalous` is not used."""
        return segmentation_loss(outputs.layer_maps, labels)
