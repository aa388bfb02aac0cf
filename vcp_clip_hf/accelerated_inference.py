"""Fast inference: a frozen copy of a [`VCPCLIPModel`] with the same `forward`.

The copy shares the weights' memory. Its differences from the plain model are all in this file and those named here:

- the text tower is computed as `accelerated_text` describes, mostly once for each set of prompts;
- the image tower is computed as `accelerated_vision` describes;
- on a CPU, linear layers and attention are computed as `cpu_kernels` describes;
- on a GPU, repeated forward passes are replayed, as `cuda_graphs` describes.

Each fast module is a subclass of the plain one with the same parameters. In float32 the results equal those of the
plain model to 1e-6.
"""

import copy
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as _module_hooks
from transformers import PreTrainedModel
from transformers.utils import logging

from .accelerated_text import PREFIX_ATTENTION, TextConstants
from .accelerated_vision import accelerate_image_tower, copied_parts
from .acceleration_settings import Acceleration, computes_in_float8
from .computed_constants import ComputedConstants
from .configuration_vcp_clip import VCPCLIPConfig
from .cpu_kernels import use_convolutions
from .cuda_graphs import CapturedForwards
from .modeling_vcp_clip import VCPCLIPModel
from .visual_context_prompting import VCPCLIPPostVCP
from .weight_snapshot import WeightSnapshot


__all__ = [
    "AcceleratedVCPCLIPModel",
    "accelerate_inference",
    "accelerated_or_plain",
    "acceleration_obstacle",
    "freeze_for_export",
]

logger = logging.get_logger(__name__)

# Arguments of `forward` that a recorded pass may have, besides its tensors
_RECORDED_OPTIONS = {"prompt_input_ids", "output_layer_maps", "output_attentions", "output_hidden_states"}


def accelerate_inference(model: VCPCLIPModel, settings: Acceleration | None = None) -> "AcceleratedVCPCLIPModel":
    """
    Make a frozen copy of a model for fast inference.

    The copy has the model's `forward` and shares the memory of its weights. It computes no gradients and cannot be
    trained, prompted anew or saved: do that with the model itself, and accelerate it again.
    [`accelerated_or_plain`] does so whenever the model has changed.

    Args:
        model ([`VCPCLIPModel`]): model in evaluation mode, on any device, of any dtype. It is not changed.
        settings ([`Acceleration`], *optional*): settings for a GPU; its defaults if absent.

    Returns:
        [`AcceleratedVCPCLIPModel`]: maps equal to the model's within 1e-6 in float32.

    Raises:
        ValueError: the model has forward hooks, adapters, quantized or offloaded layers, or is in training mode:
            these would have no effect in the copy, and the message names the module. Or the settings have `float8`,
            which the model or its device cannot compute in.
        TypeError: other settings.

    ```python
    >>> import torch
    >>> from vcp_clip_hf import EMBEDDED_CHECKPOINT, VCPCLIPModel, accelerate_inference

    >>> model = VCPCLIPModel.from_pretrained(EMBEDDED_CHECKPOINT)
    >>> fast = accelerate_inference(model)
    >>> outputs = fast(torch.zeros(1, 3, 224, 224))
    ```
    """
    if not isinstance(settings, (Acceleration, type(None))):
        raise TypeError(f"settings={settings!r} must be Acceleration(...), or be left out.")
    obstacle = acceleration_obstacle(model)
    if obstacle is not None:
        raise ValueError(f"This model cannot be accelerated: {obstacle}. Use the model itself.")
    return AcceleratedVCPCLIPModel.copy_of(model, settings)


def accelerated_or_plain(
    model: PreTrainedModel,
    former: PreTrainedModel | None = None,
    settings: Acceleration | None = None,
    values: bool = True,
) -> PreTrainedModel:
    """
    Return a fast copy of the model's present state. If it cannot be copied, return the model itself, with a warning.

    Args:
        model (`PreTrainedModel`): the model; other kinds than VCP-CLIP are returned as they are.
        former (`PreTrainedModel`, *optional*): an earlier result for this model, used again if the model is unchanged.
        settings ([`Acceleration`], *optional*): settings of the copy; its defaults if absent.
        values (`bool`, *optional*, defaults to `True`): as in [`AcceleratedVCPCLIPModel.is_copy_of`].

    Raises:
        ValueError: the settings have `float8`, which the model or its device cannot compute in.
    """
    if isinstance(model, AcceleratedVCPCLIPModel):
        return model
    if model.config.model_type != VCPCLIPConfig.model_type:
        if computes_in_float8(settings):
            raise ValueError(f"float8=True is for VCP-CLIP, not for {type(model).__name__}. Leave it out.")
        return model
    settings = settings or Acceleration()
    is_of_this_kind = isinstance(former, AcceleratedVCPCLIPModel) and former.settings == settings
    # A model that is unchanged has no obstacle, except hooks that are registered outside of it
    if is_of_this_kind and not _hooks_for_all_modules() and former.is_copy_of(model, values):
        return former
    obstacle = acceleration_obstacle(model)
    if obstacle is not None:
        logger.warning_once(f"Inference is not accelerated: {obstacle}. The plain model is used.")
        return model
    try:
        return AcceleratedVCPCLIPModel.copy_of(model, settings)
    except (TypeError, RuntimeError) as error:  # an attribute that cannot be copied, such as a lock
        logger.warning_once(f"Inference is not accelerated, because the model cannot be copied: {error}")
        return model


def acceleration_obstacle(model: VCPCLIPModel, training_mode_matters: bool = True) -> str | None:
    """
    Return why a model cannot be accelerated, or `None`.

    Args:
        model ([`VCPCLIPModel`]): the model.
        training_mode_matters (`bool`, *optional*, defaults to `True`): whether training mode is a reason.
    """
    if isinstance(model, AcceleratedVCPCLIPModel):
        return "it is an accelerated copy already"
    if _hooks_for_all_modules():
        return "hooks for all modules are registered"
    for name in ("encode_image", "encode_image_with_states", "encode_text"):
        if name in vars(model):
            return f"its method {name} was replaced"
    attention = model.clip.text_model.config._attn_implementation
    if attention not in ("eager", "sdpa") and "flash" not in attention:  # also kernels of the Hub by their names
        return f"the text tower has the attention implementation {attention!r}"
    for name, module in model.named_modules():
        place = name or "the model"
        if module.training and training_mode_matters:
            return f"{place} is in training mode (call model.eval())"
        if "forward" in vars(module) or module._compiled_call_impl is not None:
            return f"the forward method of {place} was replaced, for example by offloading, autocast or compile"
        hooks = (
            *module._forward_hooks.values(),
            *module._forward_pre_hooks.values(),
            *module._backward_hooks.values(),
            *module._backward_pre_hooks.values(),
        )
        if any(getattr(hook, "__module__", "") != "transformers.utils.output_capturing" for hook in hooks):
            return f"{place} has hooks"
        if not _is_plain(module):
            return f"{place} is a {type(module).__name__}, such as an adapter or a quantized layer"
    for name, parameter in model.named_parameters():
        if type(parameter.data) is not torch.Tensor or parameter.is_inference():
            return f"{name} is not an ordinary tensor, for example quantized or made in inference mode"
    return None


def _hooks_for_all_modules() -> bool:
    return bool(_module_hooks._global_forward_hooks or _module_hooks._global_forward_pre_hooks)


_PLAIN_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Dropout, nn.Embedding, nn.GroupNorm, nn.LayerNorm, nn.Linear, nn.ModuleList)
_PLAIN_SOURCES = ("transformers.activations", "transformers.models.clip.", "torch.nn.modules.activation")


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module is one that VCP-CLIP is built of, and not one that replaces it."""
    kind = type(module)
    # By name: in remote code, our classes exist more than once
    ours = kind.__name__.startswith("VCPCLIP") and kind.__module__.split(".")[0] in (
        "vcp_clip_hf",
        "transformers_modules",
    )
    return kind in _PLAIN_LAYERS or ours or kind.__module__.startswith(_PLAIN_SOURCES)


def _refuse_gradients(name: str, tensor: torch.Tensor) -> None:
    """Raise if a tensor requires gradients, which an accelerated model does not compute."""
    if tensor.requires_grad:
        raise ValueError(
            f"{name} requires gradients, but an accelerated model computes none. Call the model that it was made from,"
            " or pipeline(..., accelerate=False)."
        )


class AcceleratedVCPCLIPModel(VCPCLIPModel):
    """A frozen copy of a [`VCPCLIPModel`] for inference, made by [`accelerate_inference`]."""

    @classmethod
    def copy_of(cls, model: VCPCLIPModel, settings: Acceleration | None = None) -> "AcceleratedVCPCLIPModel":
        """Make the copy, without the checks of [`accelerate_inference`]."""
        # Modules are copied; the parameters are new objects on the same memory, so that moving the copy to another
        # device or dtype leaves the model alone
        memo = {id(each): nn.Parameter(each.detach(), requires_grad=False) for each in model.parameters()}
        fast = copy.deepcopy(model, memo)
        fast.__class__ = cls
        fast.eval()
        fast.settings = settings or Acceleration()
        fast._source = _Snapshot(model, fast.settings)
        fast.captured = CapturedForwards()
        fast._text_constants = ComputedConstants()
        accelerate_image_tower(fast.clip.vision_model, fast.settings)
        if fast.post_vcp is not None:
            fast.post_vcp.__class__ = _FastPostVCP
        use_convolutions(fast.clip.text_model, fast.clip.text_projection, fast.clip.visual_projection)
        use_convolutions(fast.feature_projections, *([] if fast.image_head is None else [fast.image_head]))
        fast.clip.text_model.config._attn_implementation = PREFIX_ATTENTION
        return fast

    def is_copy_of(self, model: VCPCLIPModel, values: bool = True) -> bool:
        """
        Return whether a model is still in the state that was copied: weights, modules, hooks and configuration.

        Args:
            model ([`VCPCLIPModel`]): the model.
            values (`bool`, *optional*, defaults to `True`): whether to look for changes through `.data` too, which
                makes the host wait for a GPU.
        """
        return self._source.holds(model, values)

    @wraps(VCPCLIPModel.forward)
    @torch.no_grad()
    def forward(self, pixel_values: torch.FloatTensor | None = None, *args, **kwargs):
        """Run [`VCPCLIPModel.forward`] without gradients; on a GPU, replayed as a CUDA graph where possible."""
        inputs = {"pixel_values": pixel_values}
        if kwargs.get("image_embeds") is not None:
            inputs["image_embeds"] = kwargs["image_embeds"]
        rest = {name: value for name, value in kwargs.items() if name != "image_embeds"}
        if pixel_values is None or args or rest.keys() - _RECORDED_OPTIONS or not self._is_recorded(inputs):
            return super().forward(pixel_values, *args, **kwargs)
        for name, tensor in inputs.items():
            _refuse_gradients(name, tensor)
        if rest.get("prompt_input_ids") is not None:
            rest["prompt_input_ids"] = rest["prompt_input_ids"].cpu()  # the host reads them, which no graph can record
        return self.captured.run(
            lambda tensors: super(AcceleratedVCPCLIPModel, self).forward(**tensors, **rest),
            inputs,
            self._options_key(rest),
            lambda: [constants.values for constants in self._constants()],
        )

    def _is_recorded(self, inputs: dict[str, torch.Tensor]) -> bool:
        return self.settings.cuda_graphs and self.captured.applies(inputs)

    def _options_key(self, options: dict[str, Any]) -> Hashable:
        """Return what a pass depends on besides its inputs."""
        prompts, states = options.get("prompt_input_ids"), options.get("output_hidden_states")
        prompts = None if prompts is None else tuple(map(tuple, self._prompt_ids(prompts)))
        states = self.config.output_hidden_states if states is None else states
        states = states if isinstance(states, (bool, int, type(None))) else tuple(states)
        attentions = options.get("output_attentions")
        attentions = self.config.output_attentions if attentions is None else attentions
        return prompts, states, bool(attentions), bool(options.get("output_layer_maps"))

    def _constants(self) -> Iterator[ComputedConstants]:
        """Return everything that was computed from the weights beforehand."""
        for module in self.modules():
            yield from (value for value in vars(module).values() if isinstance(value, ComputedConstants))

    def encode_image_with_states(self, pixel_values: torch.Tensor, *args, **kwargs):
        """Run [`VCPCLIPModel.encode_image_with_states`], without gradients."""
        _refuse_gradients("pixel_values", pixel_values)
        return super().encode_image_with_states(pixel_values, *args, **kwargs)

    def _check_patch_tokens(self, patch_tokens: torch.Tensor, of_stem: Sequence[torch.Tensor | None]) -> None:
        _refuse_gradients("patch_tokens", patch_tokens)
        for name, values in zip(("stem_features", "stem_cells"), of_stem, strict=True):
            if values is not None:
                _refuse_gradients(name, values)
        super()._check_patch_tokens(patch_tokens, of_stem)

    @torch.no_grad()
    def encode_text(
        self, image_embeds: torch.FloatTensor, prompt_input_ids: torch.LongTensor | None = None
    ) -> torch.FloatTensor:
        """Run [`VCPCLIPModel.encode_text`], with everything that does not depend on the image computed beforehand."""
        _refuse_gradients("image_embeds", image_embeds)
        prompt_ids = self._prompt_ids(prompt_input_ids)
        key = tuple(map(tuple, prompt_ids))
        constants = self._text_constants.get(key, lambda: TextConstants.of(self, prompt_ids))
        if constants.text_embeds is not None:
            text_embeds = constants.text_embeds
        else:
            text_embeds = constants.encode(self, self.pre_vcp(image_embeds))
        return text_embeds.expand(image_embeds.shape[0], -1, -1)

    # --- refused methods ------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> "AcceleratedVCPCLIPModel":
        """Refuse training mode."""
        if mode:
            raise ValueError("An accelerated model is frozen. Train the model that it was made from.")
        return super().train(mode)

    def set_prompts(self, *args, **kwargs) -> None:
        """Refuse other prompts; `forward` takes them for one call."""
        raise ValueError(
            "An accelerated model is frozen. Set the prompts of the model that it was made from and accelerate that"
            " again, or pass prompt_input_ids to this call."
        )

    def save_pretrained(self, *args, **kwargs) -> None:
        """Refuse to save."""
        raise ValueError("An accelerated model is a copy for inference. Save the model that it was made from.")

    def set_attn_implementation(self, *args, **kwargs) -> None:
        """Refuse another attention."""
        raise ValueError("An accelerated model is frozen. Set the attention of the model that it was made from.")

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Module:
        """Refuse another vocabulary."""
        raise ValueError("An accelerated model is frozen. Resize the vocabulary of the model that it was made from.")

    def load_state_dict(self, *args, **kwargs) -> Any:
        """Refuse other weights."""
        raise ValueError("An accelerated model is frozen. Load the weights into the model that it was made from.")

    def _apply(self, fn: Callable, recurse: bool = True):
        # `to`, `half` and similar methods change the tensors that the constants were computed from
        super()._apply(fn, recurse)
        for constants in self._constants():
            constants.clear()
        self.captured.clear()
        return self


def freeze_for_export(model: VCPCLIPModel, image_size: tuple[int, int]) -> AcceleratedVCPCLIPModel:
    """
    Make an accelerated float32 copy on the CPU for one image size and the configuration's prompts, whose constants
    are all computed: what an exported graph contains.

    The vocabulary is left out, because the embedded words are constants (150 MB for OpenAI's CLIP).

    Args:
        model ([`VCPCLIPModel`]): model to copy, not changed; float32 weights on the CPU share their memory.
        image_size (`tuple[int, int]`): height and width of the input in pixels.

    Raises:
        ValueError: the model has hooks, adapters, quantized or offloaded layers.
    """
    obstacle = acceleration_obstacle(model, training_mode_matters=False)
    if obstacle is not None:
        raise ValueError(
            f"This model cannot be exported: {obstacle}. Remove hooks, merge adapters into the weights, and load the"
            " checkpoint without quantization and offloading."
        )
    frozen = AcceleratedVCPCLIPModel.copy_of(model).to("cpu", torch.float32)
    frozen(torch.zeros(1, frozen.config.vision_config.num_channels, *image_size))
    for constants in frozen._constants():
        constants.freeze()
    vocabulary = frozen.clip.text_model.embeddings.token_embedding
    frozen.clip.text_model.embeddings.token_embedding = nn.Embedding(1, vocabulary.embedding_dim)
    return frozen


class _FastPostVCP(VCPCLIPPostVCP):
    """Read the weight of the key projection instead of calling it."""

    def _key_matrix(self, like: torch.Tensor) -> torch.Tensor:
        """Return the weight itself: a copy has no adapter or hook that a call would respect."""
        return self.key_projection.weight.T


class _Snapshot:
    """
    Weights, modules and configuration of a model, to be compared later.

    The copy keeps the memory of the former values in use, so that no other tensor can take its address. Constants are
    computed from the sampled parts; the copy reads all other weights from the shared memory.
    """

    def __init__(self, model: VCPCLIPModel, settings: Acceleration):
        self._settings = self._read_settings(model)
        sampled = [model.clip.text_model, *copied_parts(model.clip.vision_model, settings)]
        sampled += [model.pre_vcp, model.prompt_norm, model.clip.text_projection]
        sampled += [] if model.deep_prompts is None else [model.deep_prompts]
        self._weights = WeightSnapshot([model], sampled)

    def holds(self, model: VCPCLIPModel, values: bool) -> bool:
        """Return whether a model is still in this state."""
        return self._weights.holds([model], values) and self._settings == self._read_settings(model)

    @staticmethod
    def _read_settings(model: VCPCLIPModel) -> str:
        config = model.config
        fields = [*config.own_fields(), "output_hidden_states", "output_attentions"]
        attention = [tower.config._attn_implementation for tower in (model.clip.text_model, model.clip.vision_model)]
        return repr([getattr(config, name) for name in fields] + attention)
