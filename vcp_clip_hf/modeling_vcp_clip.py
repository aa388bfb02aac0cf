"""PyTorch VCP-CLIP: a frozen CLIP with two visual-context prompting modules that segments anomalies, zero-shot.

Shapes use B images, S the image side (H x W where it is not square), N = (H / patch) * (W / patch) patches, K feature
layers, T prompt templates of each state, r category tokens, n deep prompt tokens, L text blocks, d the text width and
d_v the image width. The two states are always ordered normal, abnormal.
"""

import copy
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_utils import unwrap_model
from transformers.utils import ModelOutput, can_return_tuple
from transformers.utils.quantization_config import QuantizationMethod

from .backbone_loading import (
    HUB_ARGUMENTS,
    check_backbone,
    config_on_backbone,
    load_adapter_weights,
    load_backbone_weights,
    quantize_backbone_only,
    read_backbone_config,
)
from .clip_blocks import image_block, linear
from .configuration_vcp_clip import VCPCLIPConfig
from .inference_cache import InferenceCache
from .losses import segmentation_loss
from .prompted_text import encode_after_prefix, encode_prefix, encode_sequences
from .prompts import PromptPlan, check_tokenizer, tokenize_prompts
from .visual_context_prompting import VCPCLIPDeepPrompts, VCPCLIPPostVCP, VCPCLIPPreVCP


__all__ = ["VCPCLIPModel", "VCPCLIPOutput", "VCPCLIPPreTrainedModel"]


@dataclass
class VCPCLIPOutput(ModelOutput):
    """
    Output of [`VCPCLIPModel`]. All maps are probabilities of the abnormal state in [0, 1], float32 whatever the
    model's dtype, at the size of `pixel_values`, not smoothed.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, returned when `labels` are given):
            Focal + dice loss, summed over feature layers and branches (equation 10).
        anomaly_map (`torch.FloatTensor` of shape `(batch_size, height, width)`):
            `(1 - fusion_weight) * base_map + fusion_weight * vcp_map`.
        base_map (`torch.FloatTensor` of shape `(batch_size, height, width)`):
            Mean over the feature layers of the base branch (equation 3).
        vcp_map (`torch.FloatTensor` of shape `(batch_size, height, width)`, *optional*, returned with `use_post_vcp`):
            Mean over the feature layers of the Post-VCP branch (equation 9).
        base_layer_maps (`torch.FloatTensor` of shape `(batch_size, num_feature_layers, height, width)`, *optional*,
            returned with `output_layer_maps=True`): the base branch, layer by layer.
        vcp_layer_maps (`torch.FloatTensor` of shape `(batch_size, num_feature_layers, height, width)`, *optional*,
            returned with `output_layer_maps=True` and `use_post_vcp`): the Post-VCP branch, layer by layer.
        text_embeds (`torch.FloatTensor` of shape `(batch_size, 2, projection_dim)`):
            L2-normalised text embeddings, normal first, the mean over templates normalised again.
        image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
            The global image features the prompts were made from, not normalised.
        attentions (`tuple(torch.FloatTensor)`, *optional*, returned with `output_attentions=True` and `use_post_vcp`):
            Post-VCP attention, one tensor per feature layer, of shape
            `(batch_size, post_vcp_num_heads, 2, num_patches)`; patches row by row, each row of it sums to 1.
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


class VCPCLIPPreTrainedModel(PreTrainedModel):
    """Loading, saving and weight initialisation of VCP-CLIP models."""

    config: VCPCLIPConfig
    # CLIP's own name: a CLIP checkpoint loads straight into `self.clip`, and CLIPModel loads from ours
    base_model_prefix = "clip"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["VCPCLIPPreVCP", "VCPCLIPDeepPrompts", "VCPCLIPPostVCP"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """The authors' initialisation; linear and convolution layers keep PyTorch's default."""
        if isinstance(module, VCPCLIPPreVCP):
            init.trunc_normal_(module.category_embeddings, std=1.0)
        elif isinstance(module, VCPCLIPDeepPrompts):
            init.uniform_(module.embeddings, -1.0, 1.0)
            init.kaiming_normal_(module.projection.weight, mode="fan_out", a=0, nonlinearity="leaky_relu")
        elif isinstance(module, (nn.Linear, nn.Conv1d)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, VCPCLIPModel):
            init.constant_(module.base_logit_scale, math.log(1 / 0.07))
            if module.vcp_logit_scale is not None:
                init.constant_(module.vcp_logit_scale, math.log(1 / 0.07))
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """
        Load a checkpoint from the Hub or a folder: a full one, or one with the learned part only, whose CLIP is then
        loaded from `config.backbone_name_or_path`.

        Args are those of [`~transformers.PreTrainedModel.from_pretrained`]. `backbone_name_or_path="..."` names
        another place for the backbone of an adapter-only checkpoint (a local copy, say). A `quantization_config` holds
        for the backbone; the learned part is left as it is.

        Raises:
            OSError: the checkpoint, or its backbone, is not there; the message says which and what to do.
            ValueError: the backbone's sizes are not those the checkpoint was trained with.
        """
        location = pretrained_model_name_or_path
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = quantize_backbone_only(kwargs["quantization_config"])
        hub_arguments = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        if location is None or cls._holds_backbone(location, config, hub_arguments):
            loaded = super().from_pretrained(location, *model_args, config=config, **kwargs)
        else:
            loaded = cls._from_adapter(location, *model_args, config=config, hub_arguments=hub_arguments, **kwargs)
        # Loading makes new parameters, which require gradients again
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.clip.requires_grad_(False)
        return loaded

    @classmethod
    def _holds_backbone(cls, location, config, hub_arguments: dict) -> bool:
        """Whether the weight file of a repository has CLIP in it, or only the learned part."""
        if isinstance(config, PreTrainedConfig):
            return config.backbone_included
        values, _ = cls.config_class.get_config_dict(config or location, **hub_arguments)
        if values.get("model_type") == CLIPConfig.model_type:
            raise ValueError(
                f"{location} is a CLIP model without VCP-CLIP's learned part. To train one on it, start with"
                f" VCPCLIPModel.from_clip({str(location)!r})."
            )
        return values.get("backbone_included", True)

    @classmethod
    def _from_adapter(cls, location, *model_args, config, hub_arguments: dict, variant: str | None = None, **kwargs):
        # 1. the configuration, with overrides among the keyword arguments; the rest says how to build the model
        loading = {name: value for name, value in kwargs.items() if name not in HUB_ARGUMENTS}
        if not isinstance(config, PreTrainedConfig):
            attention = {name: loading.pop(name) for name in ("attn_implementation",) if name in loading}
            config, loading = cls.config_class.from_pretrained(
                config or location, return_unused_kwargs=True, **hub_arguments, **loading
            )
            loading.update(attention)
        # 2. the learned part, 3. the frozen backbone, 4. both together
        state_dict = load_adapter_weights(location, variant, hub_arguments)
        state_dict.update(load_backbone_weights(config, location, hub_arguments))
        loaded = super().from_pretrained(None, *model_args, config=config, state_dict=state_dict, **loading)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.name_or_path = model.config.name_or_path = str(location)
        return loaded

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args, adapter_only: bool = False, state_dict=None, **kwargs
    ):
        """
        Save configuration and weights as safetensors.

        Args:
            save_directory (`str` or `os.PathLike`): folder, made if missing.
            adapter_only (`bool`, *optional*, defaults to `False`):
                Save the learned tensors only (31 MB for ViT-L). The CLIP backbone is then named in the configuration
                and loaded from there by `from_pretrained`.
            state_dict (`dict`, *optional*): weights to save instead of the model's own.
            kwargs: of [`~transformers.PreTrainedModel.save_pretrained`].

        Raises:
            ValueError: `adapter_only` without a known backbone; a model quantised with torchao.
        """
        config = unwrap_model(self).config
        quantization = getattr(config, "quantization_config", None)
        if getattr(quantization, "quant_method", None) == QuantizationMethod.TORCHAO:
            raise ValueError(
                "A model quantised with torchao can be saved but not be read again: its file format has no place for"
                " parameters outside of modules, such as base_logit_scale. Keep the checkpoint as it was before, and"
                " quantise it whenever it is loaded."
            )
        if adapter_only:
            if not config.backbone_name_or_path:
                raise ValueError(
                    "adapter_only=True saves no CLIP weights, so that the checkpoint must say where they are, but"
                    " config.backbone_name_or_path is not set. Set it to a Hub repository or a folder with the CLIP"
                    " model, or save with adapter_only=False."
                )
            weights = unwrap_model(self).state_dict() if state_dict is None else state_dict
            state_dict = {name: tensor for name, tensor in weights.items() if not name.startswith("clip.")}
        included = config.backbone_included
        config.backbone_included = not adapter_only
        try:
            super().save_pretrained(save_directory, *args, state_dict=state_dict, **kwargs)
        finally:
            config.backbone_included = included

    def push_to_hub(self, repo_id: str, **kwargs):
        """
        Push a whole checkpoint to the Hub: model, image processor, tokenizer, card and code, in one commit.

        Args:
            repo_id (`str`): `"owner/name"`; made if missing.
            kwargs:
                Of [`~vcp_clip_hf.hub.push_checkpoint`], among them `adapter_only`, `image_processor`, `revision` and
                `tag`.

        Returns:
            `huggingface_hub.CommitInfo`
        """
        # by name: copies of this file in Hub repositories travel without it
        return import_module("vcp_clip_hf.hub").push_checkpoint(self, repo_id, **kwargs)


class VCPCLIPModel(VCPCLIPPreTrainedModel):
    r"""
    VCP-CLIP for zero-shot anomaly segmentation: images in, maps of the probability of being abnormal out.

    CLIP is frozen: its parameters do not require gradients and its modules stay in evaluation mode, also inside
    `model.train()`. Trained are the category tokens and the Mini-Net (`pre_vcp`), the deep prompts (`deep_prompts`),
    `prompt_norm`, one linear map per feature layer (`feature_projections`), `post_vcp` and both temperatures.

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
        self.clip = CLIPModel._from_config(config.to_clip_config())
        self.pre_vcp = VCPCLIPPreVCP(config)
        self.deep_prompts = VCPCLIPDeepPrompts(config) if config.num_deep_prompt_tokens else None
        self.prompt_norm = nn.LayerNorm(text.hidden_size, eps=config.prompt_norm_eps)
        self.feature_projections = nn.ModuleList(
            nn.Linear(vision.hidden_size, config.projection_dim) for _ in config.feature_layers
        )
        self.base_logit_scale = nn.Parameter(torch.empty(()))
        self.post_vcp = VCPCLIPPostVCP(config) if config.use_post_vcp else None
        self.vcp_logit_scale = nn.Parameter(torch.empty(())) if config.use_post_vcp else None

        # CLIP's layers checkpoint themselves in training mode only, which they never are in: we do it for them
        self.gradient_checkpointing = False
        self._prompt_plans: dict = {}
        self._cache = InferenceCache()
        self.clip.requires_grad_(False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """CLIP's token embedding."""
        return self.clip.text_model.embeddings.token_embedding

    def train(self, mode: bool = True):
        """Training mode for the learned part; CLIP stays in evaluation mode."""
        super().train(mode)
        self.clip.eval()
        self._cache.clear()
        return self

    def _apply(self, fn, recurse: bool = True):
        """Where `to`, `half` and the like come through: what was kept is let go of at once, and its memory with it."""
        super()._apply(fn, recurse)
        self._cache.clear()
        return self

    @classmethod
    def from_clip(
        cls,
        backbone: str | os.PathLike | CLIPModel,
        config: VCPCLIPConfig | None = None,
        tokenizer=None,
        **kwargs,
    ) -> "VCPCLIPModel":
        """
        A model on a pretrained CLIP, its learned part freshly initialised: where training starts.

        Args:
            backbone (`str`, `os.PathLike` or `CLIPModel`):
                Hub repository, folder, or a loaded model; of a VCP-CLIP checkpoint, its CLIP is taken.
            config ([`VCPCLIPConfig`], *optional*):
                The architecture; its towers must be the backbone's. Made from the backbone and `kwargs` if absent.
            tokenizer (*optional*):
                Tokenizer of the backbone, to turn `normal_prompts` / `abnormal_prompts` into ids. Needed only where
                the prompts are not the paper's or the vocabulary is not OpenAI's; loaded from `backbone` if absent.
            kwargs:
                Without `config`: fields of [`VCPCLIPConfig`], and `hidden_act`, to run both towers with another
                activation than the backbone's own (the authors run OpenAI's weights with `"gelu"`). Always:
                arguments of `from_pretrained` such as `dtype`, `attn_implementation`, `revision`, `token`.

        Returns:
            [`VCPCLIPModel`] in evaluation mode.

        Raises:
            OSError: the backbone is not there.
            ValueError: not a CLIP model, not the one of `config`, or fields that contradict it.
        """
        # The learned part is trained in float32, whatever the backbone is stored in
        loading = {"dtype": torch.float32, **kwargs}
        hub_arguments = {name: loading[name] for name in HUB_ARGUMENTS if name in loading}
        clip_config, name = read_backbone_config(backbone, hub_arguments)
        if config is None:
            fields = {
                name: loading.pop(name)
                for name in list(loading)
                if name == "hidden_act" or (name in VCPCLIPConfig.__dataclass_fields__ and name != "dtype")
            }
            config = config_on_backbone(clip_config, name, tokenizer, hub_arguments, **fields)
        else:
            check_backbone(config, clip_config, name or "the given model")
            config = copy.deepcopy(config)
            config.backbone_name_or_path = name or config.backbone_name_or_path
            config.backbone_included = True

        if not isinstance(backbone, CLIPModel):
            # the towers only, also where the checkpoint has a learned part of its own
            backbone = CLIPModel.from_pretrained(name, config=clip_config, dtype="auto", **hub_arguments)
        state_dict = {f"clip.{key}": value for key, value in backbone.state_dict().items()}
        loading = {name: value for name, value in loading.items() if name not in HUB_ARGUMENTS}
        model = cls.from_pretrained(None, config=config, state_dict=state_dict, **loading)
        model.name_or_path = model.config.name_or_path = ""
        return model

    def set_prompts(self, normal: Sequence[str], abnormal: Sequence[str], tokenizer) -> None:
        """
        Ask with other words. The prompts become part of the configuration and are saved with it.

        Args:
            normal, abnormal (`Sequence[str]`): templates with one `{}` each, as many of one as of the other, e.g.
                `["a photo of a good {}"]` and `["a photo of a damaged {}"]`.
            tokenizer: the tokenizer of the CLIP backbone.

        Raises:
            ValueError: another tokenizer, no or several `{}`, unequal numbers, too long; the former prompts stay.
        """
        check_tokenizer(tokenizer, self.config.text_config.vocab_size)
        values = {}
        for state, prompts in (("normal", normal), ("abnormal", abnormal)):
            prompts = [prompts] if isinstance(prompts, str) else list(prompts)
            values[f"{state}_prompts"] = prompts
            values[f"{state}_prompt_input_ids"] = tokenize_prompts(prompts, tokenizer, self.config.category_token_id)
        former = {name: getattr(self.config, name) for name in values}
        try:
            for name, value in values.items():
                setattr(self.config, name, value)
            self.config.check_consistency()
        except ValueError:
            for name, value in former.items():
                setattr(self.config, name, value)
            raise

    def _prompt_plan(self, prompt_input_ids: torch.LongTensor | None) -> PromptPlan:
        """The plan of the given ids `(2, T, length)`, or of the configuration's; kept, since prompts seldom change."""
        config = self.config
        if prompt_input_ids is None:
            prompts = [*config.normal_prompt_input_ids, *config.abnormal_prompt_input_ids]
        else:
            if prompt_input_ids.ndim != 3 or prompt_input_ids.shape[0] != 2:
                raise ValueError(
                    f"prompt_input_ids has shape {tuple(prompt_input_ids.shape)}, expected (2, templates, length):"
                    " the normal prompts, then the abnormal ones."
                )
            prompts = [self._up_to_end(ids) for ids in prompt_input_ids.flatten(0, 1).tolist()]
        key = (self.device, tuple(tuple(ids) for ids in prompts))
        plan = self._prompt_plans.get(key)
        if plan is None:
            with torch.inference_mode(False):  # its tensors are used in training too
                plan = PromptPlan(prompts, config, self.device)
            if not torch.compiler.is_compiling():  # a change made while compiling would have it compiled again
                self._prompt_plans = {key: plan}
        return plan

    def _up_to_end(self, ids: list[int]) -> list[int]:
        end, slot = self.config.prompt_eos_token_id, self.config.category_token_id
        if end not in ids or ids[: ids.index(end)].count(slot) != 1:
            raise ValueError(
                f"Each row of prompt_input_ids needs one category slot (id {slot}) before its end token (id {end});"
                f" got {ids}."
            )
        return ids[: ids.index(end) + 1]

    def encode_image(self, pixel_values: torch.FloatTensor) -> tuple[tuple[torch.FloatTensor, ...], torch.FloatTensor]:
        """
        The frozen image tower.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`): normalised with CLIP's mean
                and standard deviation; both sides multiples of the patch size.

        Returns:
            `tuple`: the patch tokens of each feature layer, a tuple of K tensors `(batch_size, num_patches, d_v)`
            (residual stream, neither normalised nor projected), and the global features
            `(batch_size, projection_dim)`, not normalised.
        """
        vision = self.clip.vision_model
        channels = self.config.vision_config.num_channels
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, expected (batch_size, {channels}, height,"
                " width)."
            )
        height, width = pixel_values.shape[-2:]
        patch_size = self.config.vision_config.patch_size
        if height % patch_size or width % patch_size or not height or not width:
            raise ValueError(
                f"pixel_values is {height} x {width} pixels; both sides must be multiples of patch_size={patch_size}."
                " VCPCLIPImageProcessor makes such sizes."
            )
        with torch.no_grad():
            kernel = vision.embeddings.patch_embedding
            patches = kernel(pixel_values.to(kernel.weight.dtype))
            grid = patches.shape[-2:]
            class_token = vision.embeddings.class_embedding.expand(patches.shape[0], 1, -1)
            hidden_states = torch.cat([class_token, patches.flatten(2).transpose(1, 2)], dim=1)
            hidden_states = hidden_states + self._position_embeddings(tuple(grid)).to(hidden_states.dtype)
            hidden_states = vision.pre_layrnorm(hidden_states)
            patch_tokens = []
            for number, layer in enumerate(vision.encoder.layers, start=1):
                hidden_states = image_block(layer, hidden_states)
                if number in self.config.feature_layers:
                    patch_tokens.append(hidden_states[:, 1:])
            image_embeds = self.clip.visual_projection(vision.post_layernorm(hidden_states[:, 0]))
        return tuple(patch_tokens), image_embeds

    def _position_embeddings(self, grid: tuple[int, int]) -> torch.Tensor:
        """CLIP's table `(1 + N, d_v)` at another grid: bicubic with antialiasing, as the authors resize it."""
        table = self.clip.vision_model.embeddings.position_embedding.weight
        side = math.isqrt(len(table) - 1)
        if grid == (side, side):
            return table

        def resize() -> torch.Tensor:
            patches = table[1:].float().view(1, side, side, -1).permute(0, 3, 1, 2)
            # Not `interpolate_pos_encoding`: it has no antialias, and with that even upsampling takes another kernel
            patches = nn.functional.interpolate(
                patches, size=grid, mode="bicubic", align_corners=False, antialias=True
            )
            return torch.cat([table[:1], patches[0].flatten(1).T.to(table.dtype)])

        return self._cache.get("positions", grid, [table], resize) if self._cache.usable() else resize()

    def encode_text(
        self, image_embeds: torch.FloatTensor, prompt_input_ids: torch.LongTensor | None = None
    ) -> torch.FloatTensor:
        """
        Text embeddings of both states, prompted by the images.

        Args:
            image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`): from `encode_image`.
            prompt_input_ids (`torch.LongTensor` of shape `(2, templates, length)`, *optional*): as in `forward`.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, 2, projection_dim)`: L2-normalised, normal first.
        """
        plan = self._prompt_plan(prompt_input_ids)
        if not self._cache.usable() or self.training:
            return self._read_out(self._text_states(image_embeds, plan)).expand(image_embeds.shape[0], -1, -1)

        # In inference, what no image changes is computed once: all of it without Pre-VCP, else what stands before the
        # category tokens
        text = self.clip.text_model
        used = list(text.parameters())
        if self.deep_prompts is not None:
            used += self.deep_prompts.parameters()
        if self.pre_vcp.mini_net is None:
            for part in (self.pre_vcp, self.prompt_norm, self.clip.text_projection):
                used += part.parameters()
            embeds = self._cache.get("text", plan, used, lambda: self._read_out(self._text_states(image_embeds, plan)))
            return embeds.expand(image_embeds.shape[0], -1, -1)
        if text.config._attn_implementation != "sdpa":
            return self._read_out(self._text_states(image_embeds, plan))
        prefix = self._cache.get("prefix", plan, used, lambda: encode_prefix(text, plan, self._deep_tokens(1, plan)))
        return self._read_out(encode_after_prefix(text, plan, self.pre_vcp(image_embeds), prefix))

    def _deep_tokens(self, batch_size: int, plan: PromptPlan) -> torch.Tensor | None:
        """-> (L, 1 or B, 1 or R, n, d); in training each sequence has its own dropout."""
        if self.deep_prompts is None:
            return None
        num_prompts = len(plan.rows)
        deep = self.deep_prompts(batch_size * num_prompts).to(self.dtype)
        return deep.unflatten(1, (-1, num_prompts if self.training else 1))

    def _text_states(self, image_embeds: torch.Tensor, plan: PromptPlan) -> torch.Tensor:
        """-> (1 or B, R, d): the text tower at the end tokens."""
        category = self.pre_vcp(image_embeds)
        checkpoint = self._gradient_checkpointing_func if self.gradient_checkpointing and self.training else None
        deep = self._deep_tokens(category.shape[0], plan)
        return encode_sequences(self.clip.text_model, plan, category, deep, checkpoint)

    def _read_out(self, ends: torch.Tensor) -> torch.Tensor:
        """(B, R, d) at the end tokens -> (B, 2, projection_dim), L2-normalised."""
        normed = self.clip.text_model.final_layer_norm(self.prompt_norm(ends))
        embeds = nn.functional.normalize(self.clip.text_projection(normed), dim=-1)
        if embeds.shape[1] > 2:
            # several templates of one state: mean of the normalised embeddings, normalised again
            embeds = nn.functional.normalize(embeds.unflatten(1, (2, -1)).mean(dim=2), dim=-1)
        return embeds

    def _layer_logits(
        self, patch_tokens: tuple[torch.Tensor, ...], text_embeds: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, tuple[torch.Tensor, ...]]:
        """
        Abnormal minus normal logit of every patch, `(B, K, N)` float32, for the base and for the Post-VCP branch, and
        the Post-VCP attentions. A softmax over two states is the sigmoid of this difference, and bilinear upsampling
        is linear: one channel is upsampled, not two.
        """
        base_scale = self.base_logit_scale.float().exp()
        text_contrast = (text_embeds[:, 1] - text_embeds[:, 0]).unsqueeze(-1)
        folded_queries = self.post_vcp.fold_queries(text_embeds) if self.post_vcp is not None else None

        base, vcp, attentions = [], [], []
        for tokens, projection in zip(patch_tokens, self.feature_projections, strict=True):
            projected = linear(projection, tokens)
            # Products of the unnormalised tokens, divided by their norms: no normalised copy is written
            contrast = (projected @ text_contrast.to(projected.dtype)).squeeze(-1).float()
            base.append(base_scale * contrast * _inverse_norm(projected))
            if self.post_vcp is not None:
                inverse_norms = _inverse_norm(tokens)
                updated, attention = self.post_vcp(folded_queries, tokens, inverse_norms.unsqueeze(1))
                contrast = (tokens @ (updated[:, 1] - updated[:, 0]).unsqueeze(-1).to(tokens.dtype)).squeeze(-1)
                vcp.append(self.vcp_logit_scale.float().exp() * contrast.float() * inverse_norms)
                attentions.append(attention)
        return torch.stack(base, dim=1), torch.stack(vcp, dim=1) if vcp else None, tuple(attentions)

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
    ) -> VCPCLIPOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`, *optional*):
                Images from [`VCPCLIPImageProcessor`]; sides are multiples of the patch size. Needed unless
                `patch_tokens` are given.
            labels (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*):
                Ground truth, 1 where abnormal, else 0. Gives `loss`. The values of other dtypes than `torch.bool` are
                checked, for which a GPU has to be waited for.
            prompt_input_ids (`torch.LongTensor` of shape `(2, templates, length)`, *optional*):
                Prompts for this call instead of the configuration's: normal, then abnormal; the category slot holds
                `config.category_token_id`; padded behind the end token with anything.
            output_layer_maps (`bool`, *optional*, defaults to `False`): also return the maps of each feature layer.
            output_attentions (`bool`, *optional*): also return the Post-VCP attention.
            image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)` or `(1, projection_dim)`,
                *optional*): global features to prompt with instead of those of `pixel_values`: the whole image's,
                when `pixel_values` are its tiles.
            patch_tokens (`torch.FloatTensor` of shape `(batch_size, num_feature_layers, num_patches, d_v)`,
                *optional*): what `encode_image` gave before for images of `config.image_size`, instead of
                `pixel_values`; with `image_embeds`.
            return_dict (`bool`, *optional*): `False` for a plain tuple.

        Returns:
            [`VCPCLIPOutput`]

        Raises:
            ValueError: a wrong shape, or labels outside 0 and 1; the message says what was expected.
        """
        # 1. the frozen image tower
        if (pixel_values is None) == (patch_tokens is None) or (patch_tokens is not None and image_embeds is None):
            raise ValueError("Give either pixel_values, or what encode_image gave: patch_tokens with image_embeds.")
        if pixel_values is not None:
            patch_tokens, own_embeds = self.encode_image(pixel_values)
            batch_size, size = pixel_values.shape[0], tuple(pixel_values.shape[-2:])
        else:
            batch_size, size, own_embeds = patch_tokens.shape[0], self.config.input_size, image_embeds
            patch_tokens = patch_tokens.to(self.dtype).unbind(dim=1)
        if image_embeds is None:
            image_embeds = own_embeds
        elif image_embeds.ndim != 2 or image_embeds.shape[0] not in (1, batch_size):
            raise ValueError(
                f"image_embeds has shape {tuple(image_embeds.shape)}, expected"
                f" ({batch_size} or 1, {self.config.projection_dim})."
            )
        else:
            image_embeds = image_embeds.to(own_embeds.device, self.dtype)

        # 2. the prompted text tower (once for all images that share their global features)
        text_embeds = self.encode_text(image_embeds, prompt_input_ids).expand(batch_size, -1, -1)
        image_embeds = image_embeds.expand(batch_size, -1)

        # 3. patches against text, in both branches: (B, K, N) differences of logits
        base, vcp, attentions = self._layer_logits(patch_tokens, text_embeds)

        # 4. to pixels, to probabilities, to the mean over layers
        patch_size = self.config.vision_config.patch_size
        grid = (size[0] // patch_size, size[1] // patch_size)
        logits = base if vcp is None else torch.cat([base, vcp], dim=1)
        layer_maps = nn.functional.interpolate(
            logits.unflatten(-1, grid), size=size, mode="bilinear", align_corners=True
        ).sigmoid_()  # in place: these are the largest tensors of the heads
        base_layer_maps, vcp_layer_maps = layer_maps[:, : base.shape[1]], None
        anomaly_map = base_map = base_layer_maps.mean(dim=1)
        vcp_map = None
        if vcp is not None:
            vcp_layer_maps = layer_maps[:, base.shape[1] :]
            vcp_map = vcp_layer_maps.mean(dim=1)
            anomaly_map = torch.lerp(base_map, vcp_map, float(self.config.fusion_weight))

        # 5. the loss of both branches
        loss = None
        if labels is not None:
            self._check_labels(labels, (batch_size, *size))
            labels = labels.to(layer_maps.device)
            loss = segmentation_loss(base_layer_maps, labels)
            if vcp_layer_maps is not None:
                loss = loss + segmentation_loss(vcp_layer_maps, labels)

        return VCPCLIPOutput(
            loss=loss,
            anomaly_map=anomaly_map,
            base_map=base_map,
            vcp_map=vcp_map,
            base_layer_maps=base_layer_maps if output_layer_maps else None,
            vcp_layer_maps=vcp_layer_maps if output_layer_maps else None,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            attentions=attentions if output_attentions and attentions else None,
        )

    @staticmethod
    def _check_labels(labels: torch.Tensor, expected: tuple[int, ...]) -> None:
        if tuple(labels.shape) != expected:
            raise ValueError(
                f"labels has shape {tuple(labels.shape)}, expected {expected}: one mask for each image, at the size of"
                " pixel_values. VCPCLIPImageProcessor makes them from `segmentation_maps`."
            )
        if not torch.compiler.is_compiling() and labels.dtype != torch.bool:
            low, high = labels.aminmax()
            if low < 0 or high > 1:
                raise ValueError(
                    f"labels must be 0 (normal) or 1 (abnormal), got values from {low.item()} to {high.item()}."
                    " Divide a 0/255 mask by 255."
                )


def _inverse_norm(tokens: torch.Tensor) -> torch.Tensor:
    """1 / L2 norm over the last axis, in float32."""
    return torch.linalg.vector_norm(tokens, dim=-1, dtype=torch.float32).clamp_min(1e-12).reciprocal()
