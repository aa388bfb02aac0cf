"""PyTorch VCP-CLIP: a frozen CLIP with two visual-context prompting modules that segments anomalies, zero-shot.

Shapes use B images, S the image side (H x W where it is not square), N = (H / patch) * (W / patch) patches, K feature
layers, T prompt templates of each state, r category tokens, n deep prompt tokens, L text blocks, d the text width, d_v
the image width and d_s the width of a stem's features. The two states are always ordered normal, abnormal.
"""

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import CLIPConfig, PreTrainedTokenizerBase
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, logging

from .backbone_loading import config_on_backbone, without_load_report
from .checkpoint_errors import read_config_values
from .configuration_vcp_clip import VCPCLIPConfig
from .convolutional_stem import STEM_CELLS, STEM_LAYER, layer_width
from .image_head import VCPCLIPImageHead, image_head_loss
from .losses import segmentation_loss, stem_branch_loss
from .map_fusion import fused_by_logits
from .modeling_frozen_clip import (
    FrozenCLIPPreTrainedModel,
    check_labels,
    check_zero_or_one,
    requested_states,
    state_outputs,
    with_blocks_of,
)
from .prompted_text import LearnedTokens, VCPCLIPTextEncoder
from .prompts import PromptPlan, check_states_differ, check_tokenizer, tokenize_prompts
from .stem_branch import VCPCLIPStemBranch, upsampled_cells
from .visual_context_prompting import (
    VCPCLIPDeepPrompts,
    VCPCLIPPostVCP,
    VCPCLIPPreVCP,
    as_products_read,
    contrast,
    inverse_norm,
)


__all__ = ["VCPCLIPModel", "VCPCLIPOutput", "VCPCLIPPreTrainedModel"]

logger = logging.get_logger(__name__)

# Probabilities that are fused with the logits of the stem branch keep this distance from 0 and 1
_LOGIT_EPS = 1e-6


class _OptionalPart(NamedTuple):
    """A part that a field of the configuration adds, and that a checkpoint is loaded with or without."""

    name: str
    field: str
    prefix: str
    advice: str


_OPTIONAL_PARTS = (
    _OptionalPart("stem branch", "use_stem_branch", "stem_branch.", "Its map is random until the branch is trained."),
    _OptionalPart(
        "image head",
        "use_image_head",
        "image_head.",
        "Its scores say little before it is trained, for example with `vcp-clip train --trainable image_head`.",
    ),
)


@dataclass
class VCPCLIPOutput(ModelOutput):
    """
    Output of [`VCPCLIPModel`]. All maps are probabilities of the abnormal state in [0, 1], float32 whatever the
    model's dtype, at the size of `pixel_values`, not smoothed.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, returned when `labels` or `is_anomalous` are given):
            Focal + dice loss, summed over feature layers and branches (equation 10), if `labels` are given; with a
            stem branch, plus its own loss, see [`~vcp_clip_hf.losses.stem_branch_loss`]; with an
            image head, plus its binary cross-entropy.
        anomaly_map (`torch.FloatTensor` of shape `(batch_size, height, width)`):
            `(1 - fusion_weight) * base_map + fusion_weight * vcp_map`; with a stem branch, pooled with `stem_map`: the
            sigmoid of the mean of both logits with the weights `1 - stem_branch_weight` and `stem_branch_weight`.
        base_map (`torch.FloatTensor` of shape `(batch_size, height, width)`):
            Mean over the feature layers of the base branch (equation 3).
        vcp_map (`torch.FloatTensor` of shape `(batch_size, height, width)`, *optional*, returned with `use_post_vcp`):
            Mean over the feature layers of the Post-VCP branch (equation 9).
        base_layer_maps (`torch.FloatTensor` of shape `(batch_size, num_feature_layers, height, width)`, *optional*,
            returned with `output_layer_maps=True`): the base branch, layer by layer.
        vcp_layer_maps (`torch.FloatTensor` of shape `(batch_size, num_feature_layers, height, width)`, *optional*,
            returned with `output_layer_maps=True` and `use_post_vcp`): the Post-VCP branch, layer by layer.
        text_embeds (`torch.FloatTensor` of shape `(batch_size, 2, projection_dim)`):
            L2-normalized text embeddings, normal first; the mean over templates is normalized again.
        image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
            The global image features that the prompts were made from, not normalized.
        attentions (`tuple(torch.FloatTensor)`, *optional*, returned with `output_attentions=True` and `use_post_vcp`):
            Post-VCP attention, one tensor per feature layer, of shape
            `(batch_size, post_vcp_num_heads, 2, num_patches)`; patches row by row, each distribution sums to 1.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned with `output_hidden_states=True`):
            The image tower's residual stream: the embedded patches, then the output of each block, each of shape
            `(batch_size, 1 + num_patches, d_v)`.
        stem_features (`torch.FloatTensor` of shape `(batch_size, num_patches, d_s)`, *optional*, returned with
            `output_hidden_states=["stem", ...]`): the features of the image tower's convolutional stem.
        stem_cells (`torch.FloatTensor` of shape `(batch_size, num_patches, 224)`, *optional*, returned with
            `stem_features` and `use_stem_branch`): the stem's features of the 2 x 2 cells of each patch.
        image_logits (`torch.FloatTensor` of shape `(batch_size,)`, *optional*, returned with `use_image_head`):
            Logits of the image head, positive for anomalous images, float32.
        image_scores (`torch.FloatTensor` of shape `(batch_size,)`, *optional*, returned with `use_image_head`):
            Their sigmoid: the probability that the image is anomalous, in [0, 1], float32.
        stem_map (`torch.FloatTensor` of shape `(batch_size, height, width)`, *optional*, returned with
            `use_stem_branch`): map of the stem branch, the sigmoid of the mean of its heads' logits.
        stem_head_logits (`torch.FloatTensor` of shape `(batch_size, num_heads, height, width)`, *optional*, returned
            with `output_layer_maps=True` and `use_stem_branch`): the logits of its heads, float32.
    """

    loss: torch.FloatTensor | None = None
    anomaly_map: torch.FloatTensor | None = None
    base_map: torch.FloatTensor | None = None
    vcp_map: torch.FloatTensor | None = None
    base_layer_maps: torch.FloatTensor | None = None
    vcp_layer_maps: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    stem_features: torch.FloatTensor | None = None
    stem_cells: torch.FloatTensor | None = None
    image_logits: torch.FloatTensor | None = None
    image_scores: torch.FloatTensor | None = None
    stem_map: torch.FloatTensor | None = None
    stem_head_logits: torch.FloatTensor | None = None


class VCPCLIPPreTrainedModel(FrozenCLIPPreTrainedModel):
    """Load, save and initialize VCP-CLIP models."""

    config: VCPCLIPConfig
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "VCPCLIPPreVCP",
        "VCPCLIPDeepPrompts",
        "VCPCLIPPostVCP",
        "VCPCLIPVisionEmbeddings",
        "VCPCLIPImageHead",
        "VCPCLIPStemBranch",
    ]
    _keys_to_ignore_on_load_unexpected = [rf"^{re.escape(part.prefix)}" for part in _OPTIONAL_PARTS]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialize as the authors do."""
        if isinstance(module, VCPCLIPPreVCP):
            init.trunc_normal_(module.category_embeddings, std=1.0)
        elif isinstance(module, VCPCLIPDeepPrompts):
            init.uniform_(module.embeddings, -1.0, 1.0)
            init.kaiming_normal_(module.projection.weight, mode="fan_out", a=0, nonlinearity="leaky_relu")
        elif isinstance(module, (VCPCLIPImageHead, VCPCLIPStemBranch)):
            module.initialize()
        elif isinstance(module, VCPCLIPModel):
            init.constant_(module.base_logit_scale, math.log(1 / 0.07))
            if module.vcp_logit_scale is not None:
                init.constant_(module.vcp_logit_scale, math.log(1 / 0.07))
        else:
            super()._init_weights(module)

    @classmethod
    def _from_checkpoint(cls, location, *model_args, config, hub_arguments: dict, **kwargs):
        """Load a checkpoint as it is stored; `use_image_head` and `use_stem_branch` add or leave out a part."""
        added = [] if location is None else _added_parts(location, config, kwargs, hub_arguments)
        if added:
            return cls._with_new_parts(
                added, location, *model_args, config=config, hub_arguments=hub_arguments, **kwargs
            )
        model, report = super()._from_checkpoint(
            location, *model_args, config=config, hub_arguments=hub_arguments, **kwargs
        )
        for part in _OPTIONAL_PARTS if location is not None else ():
            missing = sorted(name for name in report["missing_keys"] if name.startswith(part.prefix))
            if missing:
                raise OSError(
                    f"The {part.name} of {str(location)!r} is incomplete, or of another version: {len(missing)}"
                    f" tensors are missing, such as {missing[0]}. Copy or download the checkpoint again, or load it"
                    f" with {part.field}=False."
                )
        return model, report

    @classmethod
    def _with_new_parts(cls, added: list["_OptionalPart"], location, *model_args, **kwargs):
        """Load a checkpoint into a model with parts that it does not have, without a table of missing weights."""
        with without_load_report():
            model, report = super()._from_checkpoint(location, *model_args, **kwargs)
        prefixes = tuple(part.prefix for part in added)
        missing = sorted(name for name in report["missing_keys"] if not name.startswith(prefixes))
        if missing:
            raise OSError(
                f"The weights of {str(location)!r} are incomplete: {len(missing)} tensors are missing, such as"
                f" {missing[0]}. Copy or download the checkpoint again."
            )
        for part in added:
            logger.warning(f"{location} has no {part.name}; a new one is initialized. {part.advice}")
        return model, report


class VCPCLIPModel(VCPCLIPPreTrainedModel):
    r"""
    VCP-CLIP for zero-shot anomaly segmentation: images in, maps of the probability of being abnormal out.

    CLIP is frozen: its parameters do not require gradients, and a tower without trainable parameters stays in
    evaluation mode inside `model.train()`. Trained are the category tokens and the Mini-Net (`pre_vcp`), the deep
    prompts (`deep_prompts`), `prompt_norm`, one linear map per feature layer (`feature_projections`), `post_vcp` and
    both temperatures. `model.clip.requires_grad_(True)` or adapters train the towers too.

    With `use_stem_branch`, `stem_branch` makes a further map from the features of the image tower's convolutional
    stem. With `use_image_head`, `image_head` scores whole images. No gradient flows from these two into the other
    parts, which therefore train exactly as without them; `freeze_all_but_image_head` leaves the image head as the
    only trained part.

    The model keeps nothing between calls. [`accelerate_inference`] makes a faster copy for inference.

    Args:
        config ([`VCPCLIPConfig`]): the architecture. The weights are random; see [`~VCPCLIPModel.from_pretrained`]
            and [`~VCPCLIPModel.from_clip`].

    ```python
    >>> from PIL import Image
    >>> from vcp_clip_hf import VCPCLIPImageProcessor, VCPCLIPModel

    >>> model = VCPCLIPModel.from_pretrained("path/to/checkpoint")
    >>> processor = VCPCLIPImageProcessor.from_pretrained("path/to/checkpoint")
    >>> inputs = processor(Image.open("part.png"), return_tensors="pt")
    >>> result = processor.post_process_anomaly_segmentation(model(**inputs), target_sizes=[(900, 1600)])[0]
    >>> result["anomaly_map"].shape
    torch.Size([900, 1600])
    ```
    """

    def __init__(self, config: VCPCLIPConfig):
        super().__init__(config)
        text, vision = config.text_config, config.vision_config
        self.clip = self._make_clip()
        text_model = self.clip.text_model
        text_model.encoder = with_blocks_of(text_model.encoder, VCPCLIPTextEncoder)

        self.pre_vcp = VCPCLIPPreVCP(config)
        self.deep_prompts = VCPCLIPDeepPrompts(config) if config.num_deep_prompt_tokens else None
        self.prompt_norm = nn.LayerNorm(text.hidden_size, eps=config.prompt_norm_eps)
        self.feature_projections = nn.ModuleList(
            nn.Linear(vision.hidden_size, config.projection_dim) for _ in config.feature_layers
        )
        self.base_logit_scale = nn.Parameter(torch.empty(()))
        self.post_vcp = VCPCLIPPostVCP(config) if config.use_post_vcp else None
        self.vcp_logit_scale = nn.Parameter(torch.empty(())) if config.use_post_vcp else None
        self.stem_branch = VCPCLIPStemBranch(config) if config.use_stem_branch else None
        self.image_head = VCPCLIPImageHead(config) if config.use_image_head else None

        self.post_init()

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs) -> nn.Module:
        """
        Resize the vocabulary, as in [`~transformers.PreTrainedModel.resize_token_embeddings`], and keep the category
        slot's id outside of it.
        """
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        self.config.move_category_slot(embeddings.weight.shape[0])
        return embeddings

    def train(self, mode: bool = True):
        """Set training mode for what is trained; frozen parts of CLIP and frozen deep prompts stay in eval."""
        super().train(mode)
        deep = self.deep_prompts
        if deep is not None and not any(parameter.requires_grad for parameter in deep.parameters()):
            deep.eval()
        return self

    def freeze_all_but_image_head(self) -> None:
        """
        Leave the image head as the only part that requires gradients.

        Raises:
            ValueError: the model has no image head.
        """
        if self.image_head is None:
            raise ValueError(
                "This model has no image head to train. Load it with from_pretrained(..., use_image_head=True)."
            )
        self.requires_grad_(False)
        self.image_head.requires_grad_(True)

    @classmethod
    def _config_on_backbone(
        cls,
        clip_config: CLIPConfig,
        name: str | None,
        tokenizer: PreTrainedTokenizerBase | None,
        hub_arguments: dict[str, Any],
        **fields,
    ) -> VCPCLIPConfig:
        return config_on_backbone(clip_config, name, tokenizer, hub_arguments, **fields)

    def set_prompts(self, normal: Sequence[str], abnormal: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        """
        Replace the text prompts. They become part of the configuration and are saved with it.

        Args:
            normal, abnormal (`Sequence[str]`): templates with one `{}` each, the same number for both states, e.g.
                `["a photo of a good {}"]` and `["a photo of a damaged {}"]`.
            tokenizer (`PreTrainedTokenizerBase`): the tokenizer of the CLIP backbone.

        Raises:
            ValueError: another tokenizer, no or several `{}`, unequal numbers, too long, or both states alike; the
                former prompts stay.
        """
        check_tokenizer(tokenizer, self.config.text_config.vocab_size)
        values = {}
        for state, prompts in (("normal", normal), ("abnormal", abnormal)):
            prompts = [prompts] if isinstance(prompts, str) else list(prompts)
            values[f"{state}_prompts"] = prompts
            values[f"{state}_prompt_input_ids"] = tokenize_prompts(prompts, tokenizer, self.config.category_token_id)
        check_states_differ(values["normal_prompt_input_ids"], values["abnormal_prompt_input_ids"])
        former = {name: getattr(self.config, name) for name in values}
        try:
            for name, value in values.items():
                setattr(self.config, name, value)
            self.config.check_consistency()
        except ValueError:
            for name, value in former.items():
                setattr(self.config, name, value)
            raise

    # --- the image tower ------------------------------------------------------------------------------------------

    def encode_image(self, pixel_values: torch.FloatTensor) -> tuple[tuple[torch.FloatTensor, ...], torch.FloatTensor]:
        """
        Run the image tower.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`): normalized with CLIP's mean
                and standard deviation; both sides multiples of the patch size.

        Returns:
            `tuple`: the patch tokens of each feature layer, a tuple of K tensors `(batch_size, num_patches, d_v)`
            (residual stream, neither normalized nor projected), and the global features
            `(batch_size, projection_dim)`, not normalized.
        """
        patch_tokens, image_embeds, _, _ = self.encode_image_with_states(pixel_values)
        return patch_tokens, image_embeds

    def encode_image_with_states(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | int | Sequence[int | str] = False, **kwargs
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None, dict[str, Any]]:
        """
        Run `encode_image`, and return more of what the image tower computes.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`): as in `encode_image`.
            output_hidden_states (`bool`, `int` or `Sequence[int | str]`, *optional*, defaults to `False`): as in
                `forward`.
            kwargs: arguments of transformers' attention functions.

        Returns:
            `tuple`: both results of `encode_image`; what the stem branch reads, or `None` without one: the stem's
            features of patches `(batch_size, num_patches, d_s)` and of their cells `(batch_size, num_patches, 224)`; a
            `dict` with the output fields of the requested hidden states.
        """
        layers = self.config.feature_layers
        read = layers if self.stem_branch is None else (*layers, STEM_LAYER, STEM_CELLS)
        num_states = len(self.clip.vision_model.encoder.layers) + 1
        requested = requested_states(output_hidden_states, num_states)
        states, pooled = self.run_image_tower(pixel_values, (*read, *requested), **kwargs)
        patch_tokens = tuple(states[layer][:, 1:] for layer in layers)
        image_embeds = self.clip.visual_projection(pooled)
        fields, stem = state_outputs(states, requested, num_states), None
        if self.stem_branch is not None:
            stem = states[STEM_LAYER], states[STEM_CELLS]
            fields["stem_cells"] = states[STEM_CELLS] if STEM_LAYER in requested else None
        return patch_tokens, image_embeds, stem, fields

    # --- the text tower -------------------------------------------------------------------------------------------

    def encode_text(
        self, image_embeds: torch.FloatTensor, prompt_input_ids: torch.LongTensor | None = None
    ) -> torch.FloatTensor:
        """
        Run the text tower for both states, prompted by the images.

        Args:
            image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`): result of `encode_image`.
            prompt_input_ids (`torch.LongTensor` of shape `(2, templates, length)`, *optional*): ids as in `forward`.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, 2, projection_dim)`: L2-normalized, normal first.
        """
        # The device of the images: replicas on several GPUs have no parameters, and offloaded ones no device
        plan = PromptPlan(self._prompt_ids(prompt_input_ids), self.config, image_embeds.device)
        text = self.clip.text_model
        category = self.pre_vcp(image_embeds)
        learned_tokens = LearnedTokens(
            plan=plan,
            category=text.embeddings(inputs_embeds=category[:, plan.category_index], position_ids=plan.position_ids),
            deep=self._deep_prompt_tokens(category.shape[0], plan),
            norm=self.prompt_norm,
        )
        # Once for all images if the category tokens do not depend on them
        repeats = (category.shape[0], 1)
        outputs = text(
            input_ids=plan.token_ids.repeat(repeats),
            position_ids=plan.position_ids.repeat(repeats),
            learned_tokens=learned_tokens,
            output_hidden_states=False,
            output_attentions=False,
        )
        states = outputs.last_hidden_state.unflatten(0, (category.shape[0], len(plan.rows)))
        return self._project_text(states[:, plan.rows, plan.end]).expand(image_embeds.shape[0], -1, -1)

    def _prompt_ids(self, prompt_input_ids: torch.LongTensor | None) -> list[list[int]]:
        """Return the ids of the normal prompts, then of the abnormal ones, without padding."""
        if prompt_input_ids is None:
            return [*self.config.normal_prompt_input_ids, *self.config.abnormal_prompt_input_ids]
        if prompt_input_ids.ndim != 3 or prompt_input_ids.shape[0] != 2:
            raise ValueError(
                f"prompt_input_ids has shape {tuple(prompt_input_ids.shape)}, expected (2, templates, length):"
                " the normal prompts, then the abnormal ones."
            )
        return [self._up_to_end(ids) for ids in prompt_input_ids.flatten(0, 1).tolist()]

    def _up_to_end(self, ids: list[int]) -> list[int]:
        end, slot = self.config.prompt_eos_token_id, self.config.category_token_id
        if end not in ids or ids[: ids.index(end)].count(slot) != 1:
            raise ValueError(
                f"Each row of prompt_input_ids needs one category slot (id {slot}) before its end token (id {end});"
                f" got {ids}."
            )
        ids = ids[: ids.index(end) + 1]
        self.config.check_prompt_ids(ids)
        return ids

    def _deep_prompt_tokens(self, batch_size: int, plan: PromptPlan) -> torch.Tensor | None:
        """Return the tokens of all blocks, (L, 1 or B, 1 or R, n, d); each sequence has its own dropout."""
        if self.deep_prompts is None:
            return None
        num_prompts = len(plan.rows)
        own_dropout = self.deep_prompts.training
        return self.deep_prompts(batch_size * num_prompts).unflatten(1, (-1, num_prompts if own_dropout else 1))

    def _project_text(self, end_states: torch.Tensor) -> torch.Tensor:
        """Project the states at the end tokens, (B, R, d), to (B, 2, projection_dim), L2-normalized."""
        embeds = nn.functional.normalize(self.clip.text_projection(end_states), dim=-1)
        if embeds.shape[1] > 2:
            # Several templates of one state: the mean of the normalized embeddings, normalized again
            embeds = nn.functional.normalize(embeds.unflatten(1, (2, -1)).mean(dim=2), dim=-1)
        return embeds

    # --- patches against text ---------------------------------------------------------------------------------------

    def _layer_contrasts(
        self, patch_tokens: tuple[torch.Tensor, ...], text_embeds: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, tuple[torch.Tensor, ...]]:
        """
        Compare the patches of every feature layer with the text.

        A softmax over two states is the sigmoid of the difference of their logits, and bilinear upsampling is linear:
        one channel is upsampled, not two.

        Returns:
            `tuple`: abnormal minus normal cosine of every patch, `(B, K, N)` float32, of the base branch and of the
            Post-VCP branch (or `None`), and the Post-VCP attentions.
        """
        device = text_embeds.device
        inverse_norms = [inverse_norm(tokens) for tokens in patch_tokens] if self.post_vcp is not None else []
        patch_tokens = [as_products_read(tokens) for tokens in patch_tokens]
        base, difference = [], text_embeds[:, 1] - text_embeds[:, 0]
        for tokens, projection in zip(patch_tokens, self.feature_projections, strict=True):
            projected = projection(tokens)
            base.append(contrast(projected, difference, inverse_norm(projected)).to(device))
        base = torch.stack(base, dim=1)
        if self.post_vcp is None:
            return base, None, ()

        updated, attentions = self.post_vcp(text_embeds, patch_tokens, inverse_norms)
        differences = updated[:, :, 1] - updated[:, :, 0]
        vcp = [
            contrast(tokens, difference, norms).to(device)
            for tokens, difference, norms in zip(patch_tokens, differences.unbind(), inverse_norms, strict=True)
        ]
        return base, torch.stack(vcp, dim=1), attentions

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        prompt_input_ids: torch.LongTensor | None = None,
        output_layer_maps: bool = False,
        output_attentions: bool | None = None,
        image_embeds: torch.FloatTensor | None = None,
        patch_tokens: torch.FloatTensor | None = None,
        output_hidden_states: bool | int | Sequence[int | str] | None = None,
        is_anomalous: torch.Tensor | None = None,
        stem_features: torch.FloatTensor | None = None,
        stem_cells: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VCPCLIPOutput:
        r"""
        Compute anomaly maps, and the loss if labels are given.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`, *optional*):
                Images from [`VCPCLIPImageProcessor`]; sides are multiples of the patch size. Needed unless
                `patch_tokens` are given.
            labels (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*):
                Ground truth, 1 where abnormal, else 0. Gives `loss`. Values of other dtypes than `torch.bool` are
                range-checked, which synchronizes with the GPU.
            prompt_input_ids (`torch.LongTensor` of shape `(2, templates, length)`, *optional*):
                Prompts for this call instead of the configuration's: normal, then abnormal; the category slot holds
                `config.category_token_id`; any padding after the end token is ignored.
            output_layer_maps (`bool`, *optional*, defaults to `False`):
                Whether to also return the maps of each feature layer and, with a stem branch, `stem_head_logits`.
            output_attentions (`bool`, *optional*, defaults to `config.output_attentions`):
                Whether to also return the Post-VCP attention.
            image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)` or `(1, projection_dim)`,
                *optional*): global features that prompt instead of those of `pixel_values`, for example those of the
                whole image when `pixel_values` are its tiles.
            patch_tokens (`torch.FloatTensor` of shape `(batch_size, num_feature_layers, num_patches, d_v)`,
                *optional*): patch tokens that `encode_image` returned for images of `config.image_size`, stacked,
                instead of `pixel_values`; they need `image_embeds`, and `stem_features` and `stem_cells` for a stem
                branch.
            output_hidden_states (`bool`, `int` or `Sequence[int | str]`, *optional*, defaults to
                `config.output_hidden_states`): also return the image tower's hidden states, or those of the given
                indices only, with `None` in the place of the others, and with `"stem"` among them `stem_features`
                and, for a model with a stem branch, `stem_cells`; needs `pixel_values`.
            is_anomalous (`torch.Tensor` of shape `(batch_size,)`, *optional*):
                1 for anomalous images, else 0, for the loss of the image head. Default with `labels`: 1 if the mask
                has an abnormal pixel. Without `labels`, `loss` is that of the image head alone. (transformers' Trainer
                evaluates a loss only if every argument with "label" in its name is given.)
            stem_features, stem_cells (`torch.FloatTensor` of shape `(batch_size, num_patches, d_s)` and
                `(batch_size, num_patches, 224)`, *optional*): features of the stem, with `patch_tokens`, for a model
                with a stem branch; the outputs of the same names for `output_hidden_states=["stem"]`.
            return_dict (`bool`, *optional*): `False` for a plain tuple.
            kwargs: arguments of transformers' attention functions, for the image tower.

        Returns:
            [`VCPCLIPOutput`]

        Raises:
            ValueError: a wrong shape, labels outside 0 and 1, `is_anomalous` for a model without an image head, or
                features of the stem that are missing or not taken; the message says what was expected.
            TypeError: an unknown keyword argument.
        """
        _refuse_unknown(kwargs)
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states

        # 1. the image tower, or its results
        states: dict[str, Any] = {}
        if (pixel_values is None) == (patch_tokens is None) or (patch_tokens is not None and image_embeds is None):
            raise ValueError(
                "Give either pixel_values, or the results of encode_image: patch_tokens (stacked) with image_embeds."
            )
        if pixel_values is not None:
            if stem_features is not None or stem_cells is not None:
                raise ValueError(
                    "stem_features and stem_cells belong to patch_tokens; the model computes those of pixel_values"
                    " itself. Leave them out."
                )
            patch_tokens, own_embeds, of_stem, states = self.encode_image_with_states(
                pixel_values, output_hidden_states, **kwargs
            )
            batch_size, size = pixel_values.shape[0], tuple(pixel_values.shape[-2:])
        else:
            of_stem = (stem_features, stem_cells)
            self._check_patch_tokens(patch_tokens, of_stem)
            batch_size, size, own_embeds = patch_tokens.shape[0], self.config.input_size, image_embeds
            patch_tokens = patch_tokens.to(self.base_logit_scale.dtype).unbind(dim=1)
        image_embeds = (
            own_embeds if image_embeds is None else self._prompting_embeds(image_embeds, own_embeds, batch_size)
        )

        # 2. the prompted text tower, once for all images that share their global features
        text_embeds = self.encode_text(image_embeds, prompt_input_ids).expand(batch_size, -1, -1)

        # 3. patches against text, in all branches: (B, K, N) differences of cosines, then of logits
        base, vcp, attentions = self._layer_contrasts(patch_tokens, text_embeds)
        base_logits = self.base_logit_scale.float().exp() * base
        vcp_logits = None if vcp is None else self.vcp_logit_scale.float().exp() * vcp
        stem = None  # of every head, (B, H, 2h, 2w)
        if self.stem_branch is not None:
            features, cells = (values.to(self.base_logit_scale.dtype) for values in of_stem)
            stem = self.stem_branch(features, cells, self._grid(size), text_embeds)

        # 4. to pixels and probabilities, then the mean over layers and the fusion
        base_layer_maps, vcp_layer_maps = self._layer_maps(base_logits, vcp_logits, size)
        anomaly_map = base_map = base_layer_maps.mean(dim=1)
        vcp_map = None
        if vcp_layer_maps is not None:
            vcp_map = vcp_layer_maps.mean(dim=1)
            anomaly_map = torch.lerp(base_map, vcp_map, float(self.config.fusion_weight))
        stem_map = stem_head_logits = None
        if stem is not None:
            stem_logits = upsampled_cells(stem.mean(dim=1, keepdim=True), size).squeeze(1).to(anomaly_map.device)
            weight = float(self.config.stem_branch_weight)
            anomaly_map = fused_by_logits(anomaly_map, stem_logits, weight, _LOGIT_EPS)
            stem_map = stem_logits.sigmoid()
            if output_layer_maps or labels is not None:
                stem_head_logits = upsampled_cells(stem, size)

        # 5. the score of the image
        image_logits = None
        if self.image_head is not None:
            embeds = own_embeds.expand(batch_size, -1)
            # the mean of heads and of the cells of each patch
            stem_evidence = None if stem is None else nn.functional.avg_pool2d(stem.mean(dim=1), 2).flatten(1)
            image_logits = self.image_head(embeds, text_embeds, patch_tokens, base, vcp, stem_evidence)

        # 6. the loss of all branches and of the image head
        loss = None
        if labels is not None:
            check_labels(labels, (batch_size, *size))
            labels = labels.to(base_layer_maps.device)
            loss = segmentation_loss(base_layer_maps, labels)
            if vcp_layer_maps is not None:
                loss = loss + segmentation_loss(vcp_layer_maps, labels)
            if stem_head_logits is not None:
                loss = loss + stem_branch_loss(stem_head_logits.to(labels.device), labels)
        if is_anomalous is not None:
            self._check_is_anomalous(is_anomalous, batch_size)
        elif labels is not None and image_logits is not None:
            is_anomalous = labels.flatten(1).amax(dim=1)
        if is_anomalous is not None:
            image_loss = image_head_loss(image_logits, is_anomalous.to(image_logits.device))
            loss = image_loss if loss is None else loss + image_loss

        return VCPCLIPOutput(
            loss=loss,
            anomaly_map=anomaly_map,
            base_map=base_map,
            vcp_map=vcp_map,
            base_layer_maps=base_layer_maps if output_layer_maps else None,
            vcp_layer_maps=vcp_layer_maps if output_layer_maps else None,
            text_embeds=text_embeds,
            image_embeds=image_embeds.expand(batch_size, -1),
            attentions=attentions if output_attentions and attentions else None,
            image_logits=image_logits,
            image_scores=None if image_logits is None else image_logits.sigmoid(),
            stem_map=stem_map,
            stem_head_logits=stem_head_logits if output_layer_maps else None,
            **states,
        )

    def _prompting_embeds(self, image_embeds: torch.Tensor, own_embeds: torch.Tensor, batch_size: int) -> torch.Tensor:
        """Return the given global features, checked, on the device and in the dtype of the images' own."""
        if image_embeds.ndim != 2 or image_embeds.shape[0] not in (1, batch_size):
            raise ValueError(
                f"image_embeds has shape {tuple(image_embeds.shape)}, expected"
                f" ({batch_size} or 1, {self.config.projection_dim})."
            )
        return image_embeds.to(own_embeds.device, self.base_logit_scale.dtype)

    def _layer_maps(
        self, base_logits: torch.Tensor, vcp_logits: torch.Tensor | None, size: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Upsample the logits of base and Post-VCP branch, (B, K, N), to probabilities, (B, K, H, W)."""
        logits = base_logits if vcp_logits is None else torch.cat([base_logits, vcp_logits], dim=1)
        maps = self._upsampled(logits, size).sigmoid_()  # in place: these are the largest tensors of the heads
        num_layers = base_logits.shape[1]
        return maps[:, :num_layers], None if vcp_logits is None else maps[:, num_layers:]

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the number of patches in a column and in a row of an image."""
        patch_size = self.config.vision_config.patch_size
        return size[0] // patch_size, size[1] // patch_size

    def _upsampled(self, values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Upsample values of patches, (B, K, N), to the image size, (B, K, H, W)."""
        values = values.unflatten(-1, self._grid(size))
        return nn.functional.interpolate(values, size=size, mode="bilinear", align_corners=True)

    def _check_patch_tokens(self, patch_tokens: torch.Tensor, of_stem: Sequence[torch.Tensor | None]) -> None:
        height, width = self.config.input_size
        vision = self.config.vision_config
        num_patches = (height // vision.patch_size) * (width // vision.patch_size)
        expected = (len(self.config.feature_layers), num_patches, vision.hidden_size)
        if patch_tokens.ndim != 4 or tuple(patch_tokens.shape[1:]) != expected:
            raise ValueError(
                f"patch_tokens has shape {tuple(patch_tokens.shape)}, expected (batch_size, {expected[0]}"
                f" feature layers, {expected[1]} patches of a {height} x {width} image, {expected[2]})."
            )
        layers = {"stem_features": STEM_LAYER, "stem_cells": STEM_CELLS}
        for (name, layer), values in zip(layers.items(), of_stem, strict=True):
            if (values is None) != (self.stem_branch is None):
                raise ValueError(
                    f"This model has no stem branch, so it takes no {name}."
                    if self.stem_branch is None
                    else f"This model has a stem branch: give {name} with patch_tokens, the output of the same name"
                    ' for output_hidden_states=["stem"].'
                )
            if values is not None:
                expected = (patch_tokens.shape[0], num_patches, layer_width(layer, vision))
                if tuple(values.shape) != expected:
                    raise ValueError(f"{name} has shape {tuple(values.shape)}, expected {expected}.")

    def _check_is_anomalous(self, is_anomalous: torch.Tensor, batch_size: int) -> None:
        if self.image_head is None:
            raise ValueError(
                "is_anomalous is for the image head, and this model has none. Leave it out, or load the model with"
                " from_pretrained(..., use_image_head=True)."
            )
        if tuple(is_anomalous.shape) != (batch_size,):
            raise ValueError(
                f"is_anomalous has shape {tuple(is_anomalous.shape)}, expected ({batch_size},): one value for each"
                " image."
            )
        check_zero_or_one("is_anomalous", is_anomalous, "0 (normal) or 1 (anomalous)")


def _added_parts(
    location: Any, config: Any, arguments: dict[str, Any], hub_arguments: dict[str, Any]
) -> list[_OptionalPart]:
    """Return the requested parts that a checkpoint lacks. Raises ValueError if its image head does not fit them."""
    fields = [part.field for part in _OPTIONAL_PARTS]
    if config is None and not any(field in arguments for field in fields):
        return []
    stored = read_config_values(location, **hub_arguments)
    has = {field: stored.get(field, False) for field in fields}
    requested = {field: arguments.get(field, getattr(config, field, has[field])) for field in fields}
    keeps_head = has["use_image_head"] and requested["use_image_head"]
    if keeps_head and requested["use_stem_branch"] != has["use_stem_branch"]:
        raise ValueError(
            f"The image head of {location} was trained {'with' if has['use_stem_branch'] else 'without'} a stem branch"
            f" and cannot be used with use_stem_branch={requested['use_stem_branch']}. Load the checkpoint with"
            " use_image_head=False too, or as it is stored."
        )
    return [part for part in _OPTIONAL_PARTS if requested[part.field] is True and not has[part.field]]


def _refuse_unknown(arguments: dict[str, Any]) -> None:
    """Raise for unknown keyword arguments, such as a misspelled one of ours; transformers' own are passed on."""
    known = ("pixel_values", "labels", "prompt_input_ids", "output_layer_maps", "output_attentions", "image_embeds")
    known += ("patch_tokens", "output_hidden_states", "is_anomalous", "stem_features", "stem_cells")
    for name in arguments.keys() - TransformersKwargs.__annotations__.keys():
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise TypeError(f"VCPCLIPModel.forward() has no argument {name!r}{hint}")
