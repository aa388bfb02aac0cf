"""Load a CLIP backbone: its configuration, its weights, and adapter-only checkpoints, which leave it out."""

import copy
import logging as pylogging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import (
    CONFIG_MAPPING,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file, logging
from transformers.utils.hub import get_checkpoint_shard_files

from .checkpoint_errors import explained, read_config_values, refuse_pickles
from .configuration_frozen_clip import FrozenCLIPConfig
from .configuration_segmenter import SegmenterConfig
from .configuration_vcp_clip import VCPCLIPConfig
from .convolutional_stem import projects_stem, stem_of
from .prompts import check_tokenizer, tokenize_prompts
from .vision_tower import VCPCLIPBackbone


__all__ = [
    "BACKBONE_PREFIX",
    "FROZEN_PREFIXES",
    "HUB_ARGUMENTS",
    "LEARNED_MODULES",
    "backbone_location",
    "check_backbone",
    "check_model_type",
    "config_on_backbone",
    "fields_on_backbone",
    "learned_state",
    "load_adapter_weights",
    "load_backbone",
    "load_backbone_weights",
    "quantize_backbone_only",
    "read_backbone_config",
    "refuse_incomplete_backbone",
    "segmenter_config_class",
    "without_load_report",
]

# Names of CLIP's parameters start with it
BACKBONE_PREFIX = "clip."
# Names of parameters that are never trained start with one of these: CLIP, or other pretrained networks
FROZEN_PREFIXES = (BACKBONE_PREFIX, "frozen_")

# Arguments of `from_pretrained` that locate files, as opposed to those that say how the model is built
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")

# VCP-CLIP's learned part is small: quantizing it saves little memory and costs accuracy
LEARNED_MODULES = (
    "pre_vcp",
    "deep_prompts",
    "prompt_norm",
    "feature_projections",
    "post_vcp",
    "stem_branch",
    "image_head",
)
# Names that the quantization methods use for their list of skipped modules
_KEPT_MODULES_FIELDS = ("modules_to_not_convert", "llm_int8_skip_modules", "skip_modules")


def read_backbone_config(
    backbone: str | os.PathLike | CLIPModel, hub_arguments: dict
) -> tuple[CLIPConfig, str | None]:
    """
    Read the configuration of a CLIP backbone.

    Args:
        backbone (`str`, `os.PathLike` or `CLIPModel`):
            Hub repository, folder, or a loaded model. If it is a checkpoint of this package that includes its
            backbone, the configuration is that of this backbone.
        hub_arguments (`dict`): the given arguments among `HUB_ARGUMENTS`.

    Returns:
        `tuple[CLIPConfig, str | None]`: the configuration, and its source (`None` for a model made in memory).

    Raises:
        OSError: the backbone is missing.
        ValueError: not a CLIP model.
    """
    if isinstance(backbone, CLIPModel):
        return backbone.config, getattr(backbone, "name_or_path", "") or None
    name = str(backbone)
    values = read_config_values(name, **hub_arguments)
    kind = _config_class(values.get("model_type"))
    if kind is not None and issubclass(kind, FrozenCLIPConfig) and values.get("backbone_included", True):
        return kind.from_pretrained(name, **hub_arguments).to_clip_config(), name
    if values.get("model_type") != CLIPConfig.model_type:
        raise ValueError(
            f"{name} has model_type={values.get('model_type')!r}, expected {CLIPConfig.model_type!r}: a CLIP model"
            " with a text and an image tower."
        )
    return CLIPConfig.from_pretrained(name, **hub_arguments), name


def _config_class(model_type: str | None) -> type[PreTrainedConfig] | None:
    # VCP-CLIP's is not registered in remote code
    if model_type == VCPCLIPConfig.model_type:
        return VCPCLIPConfig
    try:
        return CONFIG_MAPPING[model_type]  # `get` does not read what transformers imports on first use
    except KeyError:
        return None


def segmenter_config_class(values: Mapping[str, Any], location: str | os.PathLike) -> type[SegmenterConfig]:
    """
    Return the configuration class of a checkpoint of this package: VCP-CLIP, or a registered method.

    Args:
        values (`Mapping`): contents of its `config.json`.
        location (`str` or `os.PathLike`): the checkpoint.

    Raises:
        ValueError: a CLIP model without a learned part, or a model of another type.
    """
    kind = _config_class(values.get("model_type"))
    if kind is None or not issubclass(kind, SegmenterConfig):
        check_model_type(values, location)
    return kind


def check_model_type(
    values: Mapping[str, Any], location: str | os.PathLike, model_class: type[PreTrainedModel] | None = None
) -> None:
    """
    Check that a `config.json` describes a model of a class.

    Args:
        values (`Mapping`): its contents.
        location (`str` or `os.PathLike`): its checkpoint.
        model_class (`type[PreTrainedModel]`, *optional*, defaults to VCP-CLIP's): class of the expected model.

    Raises:
        ValueError: a CLIP model without a learned part, or a model of another type.
    """
    config_class = VCPCLIPConfig if model_class is None else model_class.config_class
    name = "VCPCLIPModel" if model_class is None else model_class.__name__
    expected = config_class.model_type
    model_type = values["model_type"]
    if model_type == CLIPConfig.model_type:
        raise ValueError(
            f"{location} is a CLIP model without the learned part of {config_class.title}. To train one on it,"
            f" start with {name}.from_clip({str(location)!r})."
        )
    if model_type != expected:
        raise ValueError(
            f"{location} is a model of type {model_type!r}, expected {expected!r}. Pass a checkpoint of"
            f" {config_class.title}."
        )


def config_on_backbone(
    clip_config: CLIPConfig,
    name: str | None,
    tokenizer: PreTrainedTokenizerBase | None,
    hub_arguments: dict[str, Any],
    hidden_act: str | None = None,
    **fields,
) -> VCPCLIPConfig:
    """
    Make a configuration on the towers of a CLIP.

    Args:
        clip_config (`CLIPConfig`): the backbone's configuration.
        name (`str`, *optional*): the backbone's source; its tokenizer is loaded from there if needed.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): the backbone's, for prompts that have no ids yet.
        hub_arguments (`dict`): the given arguments among `HUB_ARGUMENTS`.
        hidden_act (`str`, *optional*): another activation for both towers.
        fields: fields of [`VCPCLIPConfig`].

    Raises:
        ValueError: prompts that need a tokenizer, without one, or fields that contradict the backbone.
    """
    default, vocab_size = VCPCLIPConfig(), clip_config.text_config.vocab_size
    prompts = {
        f"{state}_prompts": list(fields.get(f"{state}_prompts") or getattr(default, f"{state}_prompts"))
        for state in ("normal", "abnormal")
    }
    are_default = all(prompts[field] == getattr(default, field) for field in prompts)
    if "normal_prompt_input_ids" not in fields and not (are_default and vocab_size == default.text_config.vocab_size):
        if tokenizer is None:
            if name is None:
                raise ValueError(
                    f"The prompts {prompts} must be tokenized for a vocabulary of {vocab_size} entries: pass the"
                    " backbone's tokenizer as `tokenizer`."
                )
            tokenizer = AutoTokenizer.from_pretrained(name, **hub_arguments)
        check_tokenizer(tokenizer, vocab_size)
        fields.update(prompts)
        for field, words in prompts.items():
            ids = tokenize_prompts(words, tokenizer, vocab_size)
            fields[field.replace("_prompts", "_prompt_input_ids")] = ids

    return VCPCLIPConfig(**fields_on_backbone(clip_config, name, hub_arguments, hidden_act, **fields))


def fields_on_backbone(
    clip_config: CLIPConfig,
    name: str | None,
    hub_arguments: dict[str, Any],
    hidden_act: str | None = None,
    **fields,
) -> dict[str, Any]:
    """
    Return the fields of a configuration on the towers of a CLIP. Arguments are those of [`config_on_backbone`].
    """
    text_config, vision_config = clip_config.text_config.to_dict(), clip_config.vision_config.to_dict()
    if hidden_act is not None:
        text_config["hidden_act"] = vision_config["hidden_act"] = hidden_act
    return {
        "text_config": text_config,
        "vision_config": vision_config,
        "projection_dim": clip_config.projection_dim,
        "logit_scale_init_value": clip_config.logit_scale_init_value,
        "backbone_name_or_path": name,
        "backbone_revision": hub_arguments.get("revision"),
        **fields,
    }


def learned_state(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the entries of a state dict that do not belong to CLIP or to other frozen networks."""
    return {name: tensor for name, tensor in state_dict.items() if not name.startswith(FROZEN_PREFIXES)}


def backbone_location(name: str, checkpoint: str | os.PathLike) -> str:
    """Return where a backbone is: a relative folder that does not exist may be relative to its checkpoint."""
    beside = os.path.join(str(checkpoint), name)
    return beside if not os.path.isdir(name) and os.path.isdir(beside) else name


def load_adapter_weights(
    location: str | os.PathLike, variant: str | None, hub_arguments: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """
    Load the learned tensors of an adapter-only checkpoint: one safetensors file, or shards with an index.

    Raises:
        OSError: no such file, a damaged one, or weights in a pickle only.
    """
    refuse_pickles(location, hub_arguments.get("subfolder") or "")

    def named(filename: str) -> str:
        # "model.safetensors" -> "model.fp16.safetensors", as save_pretrained(variant="fp16") writes
        stem, extension = filename.split(".", 1)
        return filename if variant is None else f"{stem}.{variant}.{extension}"

    find = partial(cached_file, location, _raise_exceptions_for_missing_entries=False, **hub_arguments)
    single = find(named(SAFE_WEIGHTS_NAME))
    if single is not None:
        with explained(location):
            return load_file(single)
    index_name = SAFE_WEIGHTS_INDEX_NAME
    if variant is not None:
        index_name = SAFE_WEIGHTS_INDEX_NAME.replace("index", f"index.{variant}")
    index = find(index_name)
    if index is None:
        raise OSError(f"{location} has neither {named(SAFE_WEIGHTS_NAME)} nor {index_name}: no weights to load.")
    shards, _ = get_checkpoint_shard_files(location, index, **hub_arguments)
    with explained(location):
        return {name: tensor for shard in shards for name, tensor in load_file(shard).items()}


def load_backbone_weights(
    config: FrozenCLIPConfig, location: str | os.PathLike, hub_arguments: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """
    Load CLIP's weights for an adapter-only checkpoint, with the names of a VCP-CLIP model.

    Raises:
        OSError: the backbone could not be loaded; the message says what to do.
        ValueError: the configuration names no backbone, or one of other sizes.
    """
    name = config.backbone_name_or_path
    if name is None:
        raise ValueError(
            f"{location} has the learned part only and its configuration names no backbone. Pass"
            " backbone_name_or_path=..., a Hub repository or a folder with the CLIP model."
        )
    source = backbone_location(name, location)
    arguments = {key: value for key, value in hub_arguments.items() if key not in ("revision", "subfolder")}
    if config.backbone_revision is not None:
        arguments["revision"] = config.backbone_revision
    try:
        clip_config, _ = read_backbone_config(source, arguments)
        check_backbone(config, clip_config, source)
        clip = load_backbone(source, clip_config, config.dtype or "auto", arguments)
    except OSError as error:
        revision = f" (revision {config.backbone_revision})" if config.backbone_revision else ""
        raise OSError(
            f"{location} has the learned part only; its CLIP backbone {source!r}{revision} could not be loaded:"
            f" {error}\nConnect to the network, or download it and pass backbone_name_or_path=<its folder>."
        ) from error
    return {BACKBONE_PREFIX + key: value for key, value in clip.state_dict().items()}


def load_backbone(
    name: str, clip_config: CLIPConfig, dtype: torch.dtype | str, hub_arguments: dict[str, Any]
) -> CLIPModel:
    """
    Load a CLIP. Of a VCP-CLIP checkpoint, only its CLIP is taken, without a report on the rest.

    Args:
        name (`str`): Hub repository or folder.
        clip_config (`CLIPConfig`): its configuration.
        dtype (`torch.dtype` or `str`): dtype of the weights; "auto": as stored.
        hub_arguments (`dict`): the given arguments among `HUB_ARGUMENTS`.

    Raises:
        OSError: the weights are missing, damaged, or in a pickle only.
        ValueError: the weights are not complete, or have other shapes than the configuration says.
    """
    refuse_pickles(name)
    with explained(name), without_load_report():
        clip, report = VCPCLIPBackbone.from_pretrained(
            name, config=clip_config, dtype=dtype, use_safetensors=True, output_loading_info=True, **hub_arguments
        )
    refuse_incomplete_backbone({BACKBONE_PREFIX + key for key in report["missing_keys"]}, name)
    return clip


def refuse_incomplete_backbone(missing_keys: Iterable[str], source: str) -> None:
    """
    Raise if weights of CLIP are missing.

    Args:
        missing_keys (`Iterable[str]`): names of the missing weights of a model.
        source (`str`): the backbone, for the message.

    Raises:
        ValueError: some of them are CLIP's.
    """
    missing = sorted(key.removeprefix(BACKBONE_PREFIX) for key in missing_keys if key.startswith(BACKBONE_PREFIX))
    if missing:
        raise ValueError(
            f"The weights of {source!r} are not a complete CLIP: {len(missing)} tensors are missing, such as"
            f" {missing[0]}. Copy or download the model again, or use another backbone."
        )


@contextmanager
def without_load_report() -> Iterator[None]:
    """Hide transformers' table of missing and unexpected weights, where these are intended."""

    def other_records(record: pylogging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.get_logger("transformers.modeling_utils")
    logger.addFilter(other_records)
    try:
        yield
    finally:
        logger.removeFilter(other_records)


def check_backbone(config: FrozenCLIPConfig, clip_config: CLIPConfig, source: str) -> None:
    """
    Check that a backbone has the sizes of the one used in training.

    Raises:
        ValueError: it has not; the message lists the differences.
    """
    compared = {
        "text_config": ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
        "vision_config": ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size"),
    }
    differences = [
        f"{part}.{field}: {ours} in the checkpoint, {theirs} in the backbone"
        for part, fields in compared.items()
        for field in fields
        if (ours := getattr(getattr(config, part), field)) != (theirs := getattr(getattr(clip_config, part), field))
    ]
    for field, value_of in (("stem", stem_of), ("stem_projection", projects_stem)):
        ours, theirs = value_of(config.vision_config), value_of(clip_config.vision_config)
        if ours != theirs:
            differences.append(f"vision_config.{field}: {ours} in the checkpoint, {theirs} in the backbone")
    if differences:
        raise ValueError(
            f"The backbone {source!r} is not the one the checkpoint was trained with. {'; '.join(differences)}."
        )


def quantize_backbone_only(quantization_config: Any, learned_modules: Collection[str] = LEARNED_MODULES) -> Any:
    """
    Return a copy of a `quantization_config` of transformers (object or dictionary) that also skips the learned part.

    Args:
        quantization_config: configuration of any quantization method.
        learned_modules (`Collection[str]`, *optional*, defaults to VCP-CLIP's): names of the learned modules.
    """
    if isinstance(quantization_config, dict):
        quantization_config = AutoQuantizationConfig.from_dict(quantization_config)
    changed = copy.deepcopy(quantization_config)
    for name in _KEPT_MODULES_FIELDS:
        if hasattr(changed, name):
            kept = getattr(changed, name) or []
            setattr(changed, name, [*kept, *(module for module in learned_modules if module not in kept)])
    return changed
