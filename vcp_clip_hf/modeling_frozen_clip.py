"""Base class of every model on a frozen CLIP: loading, saving, the image tower, and checks of inputs."""

import copy
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers import initialization as init
from transformers.modeling_utils import unwrap_model
from transformers.models.clip.modeling_clip import CLIPEncoder
from transformers.utils import logging
from transformers.utils.quantization_config import QuantizationMethod

from .backbone_loading import (
    BACKBONE_PREFIX,
    HUB_ARGUMENTS,
    LEARNED_MODULES,
    check_backbone,
    check_model_type,
    fields_on_backbone,
    learned_state,
    load_adapter_weights,
    load_backbone,
    load_backbone_weights,
    quantize_backbone_only,
    read_backbone_config,
    refuse_incomplete_backbone,
    without_load_report,
)
from .checkpoint_errors import check_dtype, explained, explained_writing, read_config_values, refuse_pickles
from .configuration_frozen_clip import FrozenCLIPConfig
from .convolutional_stem import STEM_LAYER, check_stem_layer, without_stem_layer
from .vision_tower import LayerStates, RecordedImages, VCPCLIPBackbone, VCPCLIPVisionEncoder


__all__ = [
    "FrozenCLIPPreTrainedModel",
    "check_labels",
    "check_zero_or_one",
    "requested_states",
    "state_outputs",
    "with_blocks_of",
]

logger = logging.get_logger(__name__)

# Hub arguments that find a further file of a checkpoint
_FURTHER_FILES = ("cache_dir", "local_files_only", "revision", "subfolder")


class FrozenCLIPPreTrainedModel(PreTrainedModel):
    """
    A model with a frozen CLIP as `self.clip`, and anything else as its learned part.

    CLIP is frozen: its parameters do not require gradients, and a tower without trainable parameters stays in
    evaluation mode inside `model.train()`.
    """

    config: FrozenCLIPConfig
    # CLIP's own prefix: a CLIP checkpoint loads straight into `self.clip`, and CLIPModel loads from our checkpoints
    base_model_prefix = "clip"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["VCPCLIPVisionEmbeddings"]
    # Modules that are not quantized
    _learned_modules = LEARNED_MODULES
    # The loss is a mean over the batch, whatever the keyword arguments of `forward`: Trainer must divide it itself
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Keep PyTorch's default initialization of linear and convolution layers."""
        if isinstance(module, (nn.Linear, nn.Conv1d)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)

    def _make_clip(self) -> CLIPModel:
        """Make the frozen CLIP, whose image tower resizes its position table and returns chosen layers."""
        clip = VCPCLIPBackbone._from_config(self.config.to_clip_config())
        # The same parameters and names
        clip.vision_model.encoder = with_blocks_of(clip.vision_model.encoder, VCPCLIPVisionEncoder)
        return clip.requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        """Return CLIP's token embedding."""
        return self.clip.text_model.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace CLIP's token embedding."""
        self.clip.text_model.embeddings.token_embedding = value

    def train(self, mode: bool = True):
        """Set training mode for the learned part and for what is trained of CLIP; the rest of CLIP stays in eval."""
        super().train(mode)
        for part in (self.clip, self.clip.text_model, self.clip.vision_model):
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *model_args, config=None, output_loading_info: bool = False, **kwargs
    ):
        """
        Load a checkpoint from the Hub or a folder: a full one, or one with the learned part only, whose CLIP is then
        loaded from `config.backbone_name_or_path`.

        Args are those of [`~transformers.PreTrainedModel.from_pretrained`]. `backbone_name_or_path="..."` names
        another place for the backbone of an adapter-only checkpoint, for example a local copy. A
        `quantization_config` applies to the backbone only.

        Raises:
            OSError: the checkpoint or its backbone is missing; the message says which one and what to do.
            ValueError: the backbone's sizes are not those the checkpoint was trained with, or some of its weights are
                missing.
        """
        location = pretrained_model_name_or_path
        if kwargs.get("use_safetensors") is False:
            raise ValueError("use_safetensors=False would load pickles, which can run code. Convert the weights.")
        kwargs["use_safetensors"] = True
        check_dtype(kwargs.get("dtype"))
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = quantize_backbone_only(kwargs["quantization_config"], cls._learned_modules)
        hub_arguments = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        model, report = cls._from_checkpoint(
            location, *model_args, config=config, hub_arguments=hub_arguments, output_loading_info=True, **kwargs
        )
        source = model.config.backbone_name_or_path or "the given model" if location is None else str(location)
        refuse_incomplete_backbone(report["missing_keys"], source)
        # Keyword arguments may have replaced fields of the configuration
        model.config.check_consistency()
        # Loading makes new parameters, which require gradients again
        model.clip.requires_grad_(False)
        # Where further files of the checkpoint lie; never the token, which would be pickled with the model
        model.hub_arguments = {name: value for name, value in hub_arguments.items() if name in _FURTHER_FILES}
        return (model, report) if output_loading_info else model

    @classmethod
    def _from_checkpoint(cls, location, *model_args, config, hub_arguments: dict, **kwargs):
        """Load a checkpoint as it is stored, and return the model and transformers' report."""
        if location is None or cls._includes_backbone(location, config, hub_arguments):
            if location is not None:
                refuse_pickles(location, hub_arguments.get("subfolder") or "")
            with explained(location):
                return super().from_pretrained(location, *model_args, config=config, **kwargs)
        return cls._from_adapter(location, *model_args, config=config, hub_arguments=hub_arguments, **kwargs)

    @classmethod
    def _includes_backbone(cls, location, config, hub_arguments: dict) -> bool:
        """Return whether the weight file of a checkpoint includes CLIP, or only the learned part."""
        if isinstance(config, PreTrainedConfig):
            return config.backbone_included
        values = read_config_values(config or location, **hub_arguments)
        check_model_type(values, location, cls)
        return values.get("backbone_included", True)

    @classmethod
    def _from_adapter(cls, location, *model_args, config, hub_arguments: dict, variant: str | None = None, **kwargs):
        # 1. the configuration, with overrides among the keyword arguments; the rest says how to build the model
        loading = {name: value for name, value in kwargs.items() if name not in HUB_ARGUMENTS}
        if not isinstance(config, PreTrainedConfig):
            # Arguments that a configuration would take as its own fields
            building = {name: loading.pop(name) for name in ("attn_implementation", "dtype") if name in loading}
            config, loading = cls.config_class.from_pretrained(
                config or location, return_unused_kwargs=True, **hub_arguments, **loading
            )
            loading.update(building)
        # 2. the learned part, 3. the frozen backbone, 4. both together
        state_dict = load_adapter_weights(location, variant, hub_arguments)
        state_dict.update(load_backbone_weights(config, location, hub_arguments))
        model, report = super().from_pretrained(None, *model_args, config=config, state_dict=state_dict, **loading)
        model.name_or_path = model.config.name_or_path = str(location)
        return model, report

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        *args,
        adapter_only: bool = False,
        **kwargs,
    ):
        """
        Save configuration and weights as safetensors.

        Args:
            save_directory (`str` or `os.PathLike`): folder, made if missing.
            is_main_process, args, kwargs: as in [`~transformers.PreTrainedModel.save_pretrained`].
            state_dict (`dict[str, torch.Tensor]`, *optional*): weights to save instead of the model's own.
            adapter_only (`bool`, *optional*, defaults to `False`):
                Save the learned tensors only (31 MB for ViT-L). The configuration then names the CLIP backbone, and
                `from_pretrained` loads it from there.

        Raises:
            ValueError: `adapter_only` without a named backbone, or while CLIP itself is trained; a model that is
                quantized with torchao.
        """
        model = unwrap_model(self)
        config = model.config
        quantization = getattr(config, "quantization_config", None)
        if getattr(quantization, "quant_method", None) == QuantizationMethod.TORCHAO:
            raise ValueError(
                "A model quantized with torchao can be saved but not loaded again: its file format cannot store"
                " parameters outside of modules, such as base_logit_scale. Keep the checkpoint as it was before, and"
                " quantize it whenever it is loaded."
            )
        if adapter_only:
            if not config.backbone_name_or_path:
                raise ValueError(
                    "adapter_only=True saves no CLIP weights, so the checkpoint must name their place, but"
                    " config.backbone_name_or_path is not set. Set it to a Hub repository or a folder with the CLIP"
                    " model, or save with adapter_only=False."
                )
            if any(parameter.requires_grad for parameter in model.clip.parameters()):
                raise ValueError(
                    "adapter_only=True leaves CLIP's weights out, but some of them require gradients and differ from"
                    " the backbone's once they are trained. Save with adapter_only=False, or freeze CLIP again with"
                    " model.clip.requires_grad_(False) if they are unchanged."
                )
            state_dict = learned_state(model.state_dict() if state_dict is None else state_dict)
            if not state_dict:
                raise ValueError(
                    f"adapter_only=True would save nothing: {type(model).__name__} has no learned part. Save with"
                    " adapter_only=False."
                )
        included = config.backbone_included
        config.backbone_included = not adapter_only
        try:
            with explained_writing(save_directory):
                super().save_pretrained(save_directory, is_main_process, state_dict, *args, **kwargs)
        finally:
            config.backbone_included = included

    @classmethod
    def from_clip(
        cls,
        backbone: str | os.PathLike | CLIPModel,
        config: FrozenCLIPConfig | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **kwargs,
    ) -> "FrozenCLIPPreTrainedModel":
        """
        Build a model on a pretrained CLIP; a learned part is newly initialized, as the start of a training.

        Args:
            backbone (`str`, `os.PathLike` or `CLIPModel`):
                Hub repository, folder, or a loaded model. Of another checkpoint of this package, only its CLIP is
                used.
            config ([`FrozenCLIPConfig`], *optional*):
                The architecture; its towers must be the backbone's. Made from the backbone and `kwargs` if absent.
            tokenizer (`PreTrainedTokenizerBase`, *optional*):
                Tokenizer of the backbone, to turn prompts into ids; loaded from `backbone` where it is needed.
            kwargs:
                Without `config`: fields of the configuration, and `hidden_act`, to run both towers with another
                activation than the backbone's own (the authors run OpenAI's weights with `"gelu"`). Always:
                arguments of `from_pretrained` such as `dtype`, `attn_implementation`, `revision`, `token`.

        Returns:
            The model in evaluation mode.

        Raises:
            OSError: the backbone is missing.
            ValueError: not a CLIP model, not the one of `config`, weights that are not complete, or fields that
                contradict it.
        """
        # The learned part is trained in float32, whatever the backbone is stored in
        loading = {"dtype": torch.float32, **kwargs}
        hub_arguments = {name: loading[name] for name in HUB_ARGUMENTS if name in loading}
        clip_config, name = read_backbone_config(backbone, hub_arguments)
        if config is None:
            fields = {
                name: loading.pop(name)
                for name in list(loading)
                if name == "hidden_act" or (name in cls.config_class.__dataclass_fields__ and name != "dtype")
            }
            config = cls._config_on_backbone(clip_config, name, tokenizer, hub_arguments, **fields)
        else:
            check_backbone(config, clip_config, name or "the given model")
            config = copy.deepcopy(config)
            config.backbone_name_or_path = name or config.backbone_name_or_path
            config.backbone_included = True

        if not isinstance(backbone, CLIPModel):
            backbone = load_backbone(name, clip_config, "auto", hub_arguments)
        state_dict = {BACKBONE_PREFIX + key: value for key, value in backbone.state_dict().items()}
        loading = {name: value for name, value in loading.items() if name not in HUB_ARGUMENTS}
        with without_load_report():  # the learned part has no weights yet
            model = cls.from_pretrained(None, config=config, state_dict=state_dict, **loading)
        if len(learned_state(model.state_dict())):
            logger.info("The learned part is newly initialized: train the model before use.")
        model.name_or_path = model.config.name_or_path = ""
        return model

    @classmethod
    def _config_on_backbone(
        cls,
        clip_config: CLIPConfig,
        name: str | None,
        tokenizer: PreTrainedTokenizerBase | None,
        hub_arguments: dict[str, Any],
        **fields,
    ) -> FrozenCLIPConfig:
        """Make a configuration on the towers of a CLIP, as `fields_on_backbone` reads them."""
        return cls.config_class(**fields_on_backbone(clip_config, name, hub_arguments, **fields))

    # --- the image tower --------------------------------------------------------------------------------------------

    def run_image_tower(
        self, pixel_values: torch.FloatTensor, layers: Iterable[int | str], **kwargs
    ) -> tuple[dict[int | str, torch.Tensor], torch.Tensor]:
        """
        Run CLIP's image tower.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`): normalized with CLIP's mean
                and standard deviation; both sides multiples of the patch size.
            layers (`Iterable[int | str]`): blocks, counted from 1, whose residual stream is returned; 0: the input of
                the first, after `pre_layrnorm`; `"stem"`: the features of a convolutional stem; with it,
                `"stem_cells"`: those of the 2 x 2 cells of each patch.
            kwargs: arguments of transformers' attention functions.

        Returns:
            `tuple`: layer -> residual stream after that block, `(batch_size, 1 + num_patches, d_v)`, class token
            first, or the stem's features `(batch_size, num_patches, d_s)`, of cells `(batch_size, num_patches, 224)`;
            and the class token after the last block and `post_layernorm`, `(batch_size, d_v)`.

        Raises:
            ValueError: a wrong shape of `pixel_values`, or `"stem"` for an image tower without one.
        """
        self._check_pixel_values(pixel_values)
        recorded = LayerStates(layers)
        check_stem_layer(recorded.layers, self.config.vision_config)
        outputs = self.clip.vision_model(
            RecordedImages(pixel_values, recorded) if STEM_LAYER in recorded.layers else pixel_values,
            interpolate_pos_encoding=True,
            layer_states=recorded,
            output_hidden_states=False,
            output_attentions=False,
            **kwargs,
        )
        return recorded.states, outputs.pooler_output

    def _check_pixel_values(self, pixel_values: torch.Tensor) -> None:
        channels = self.config.vision_config.num_channels
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, expected (batch_size, {channels}, height,"
                " width)."
            )
        if not pixel_values.shape[0]:
            raise ValueError(f"pixel_values has shape {tuple(pixel_values.shape)}, expected at least one image.")
        height, width = pixel_values.shape[-2:]
        patch_size = self.config.vision_config.patch_size
        if height % patch_size or width % patch_size or not height or not width:
            raise ValueError(
                f"pixel_values is {height} x {width} pixels; both sides must be multiples of patch_size={patch_size}."
                " VCPCLIPImageProcessor makes such sizes."
            )


def check_labels(labels: torch.Tensor, expected: tuple[int, ...]) -> None:
    """
    Check masks.

    Args:
        labels (`torch.Tensor` of shape `expected`): ground truth, 1 where abnormal, else 0.
        expected (`tuple[int, ...]`): `(batch_size, height, width)` of the images.

    Raises:
        ValueError: another shape, or values outside 0 and 1.
    """
    if tuple(labels.shape) != expected:
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}, expected {expected}: one mask for each image, at the size of"
            " pixel_values. VCPCLIPImageProcessor makes them from `segmentation_maps`."
        )
    check_zero_or_one("labels", labels, "0 (normal) or 1 (abnormal)", " Divide a 0/255 mask by 255.")


def check_zero_or_one(name: str, values: torch.Tensor, meaning: str, advice: str = "") -> None:
    """
    Check the range of ground truth; not in a compiled graph, which cannot raise.

    Args:
        name (`str`): name of the argument, for the message.
        values (`torch.Tensor`): ground truth of any shape and dtype.
        meaning (`str`): the two values with their meaning.
        advice (`str`, *optional*): end of the message.

    Raises:
        ValueError: values lie outside 0 and 1.
    """
    if not torch.compiler.is_compiling() and values.dtype != torch.bool:
        low, high = values.aminmax()
        if low < 0 or high > 1:
            raise ValueError(f"{name} must be {meaning}, got values from {low.item()} to {high.item()}.{advice}")


def with_blocks_of(encoder: CLIPEncoder, cls: type[CLIPEncoder]) -> CLIPEncoder:
    """
    Return an encoder of another class with the blocks of a given one.

    Args:
        encoder (`CLIPEncoder`): encoder of a tower.
        cls (`type[CLIPEncoder]`): class without parameters of its own.
    """
    with torch.device("meta"):  # the blocks made here are replaced at once
        replacement = cls(encoder.config)
    replacement.layers = encoder.layers
    return replacement


def requested_states(output_hidden_states: bool | int | Sequence[int | str], num_states: int) -> list[int | str]:
    """
    Return the indices of the hidden states that `output_hidden_states` selects, as in transformers, after `"stem"` if
    that is selected too.

    Args:
        output_hidden_states (`bool`, `int` or `Sequence[int | str]`): argument of a forward pass.
        num_states (`int`): number of hidden states: the input of the first block, and the output of each.

    Raises:
        ValueError: another name than `"stem"`.
    """
    if isinstance(output_hidden_states, bool) or output_hidden_states is None:
        return list(range(num_states)) if output_hidden_states else []
    layers = [output_hidden_states] if isinstance(output_hidden_states, int) else output_hidden_states
    stem = [STEM_LAYER] if STEM_LAYER in layers else []
    indices = [layer for layer in layers if layer != STEM_LAYER]
    if any(isinstance(index, str) for index in indices):
        raise ValueError(
            f"output_hidden_states={output_hidden_states!r} must be numbers of blocks, and {STEM_LAYER!r} for all"
            " features of a convolutional stem."
        )
    return stem + sorted({index % num_states for index in indices if -num_states <= index < num_states})


def state_outputs(
    states: Mapping[int | str, torch.Tensor], requested: Sequence[int | str], num_states: int
) -> dict[str, Any]:
    """
    Return the output fields `hidden_states` and `stem_features`; `None` for what is not requested.

    Args:
        states (`Mapping[int | str, torch.Tensor]`): states of the requested layers, and possibly of others.
        requested (`Sequence[int | str]`): result of `requested_states`.
        num_states (`int`): number of hidden states.
    """
    blocks = without_stem_layer(requested)
    hidden_states = tuple(states[each] if each in blocks else None for each in range(num_states))
    stem_features = states[STEM_LAYER] if STEM_LAYER in requested else None
    return {"hidden_states": hidden_states if blocks else None, "stem_features": stem_features}
