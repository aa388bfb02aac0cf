"""The one door to a saved checkpoint: load its parts, complete the parts of a model in memory, save all of them.

A checkpoint is a folder or a Hub repository with `config.json`, weights, `preprocessor_config.json` and, usually, a
tokenizer. Beside them lie the files of facts (`checkpoint_facts`), a model card, and on request the code.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_MAPPING, AutoTokenizer, PreTrainedTokenizerBase
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file, logging

from .backbone_loading import backbone_location, segmenter_config_class
from .checkpoint_errors import explained, read_config_values, refuse_pickles
from .checkpoint_facts import carry_facts, write_training_facts
from .configuration_frozen_clip import FrozenCLIPConfig
from .configuration_vcp_clip import VCPCLIPConfig
from .image_processing_vcp_clip import VCPCLIPImageProcessor
from .model_card import write_model_card
from .modeling_frozen_clip import FrozenCLIPPreTrainedModel
from .modeling_vcp_clip import VCPCLIPModel
from .prompts import check_tokenizer
from .reference_pictures import find_references, save_references
from .references import ReferenceMemory
from .version import EMBEDDED_CHECKPOINT


__all__ = [
    "CheckpointParts",
    "complete_parts",
    "load_config",
    "load_image_processor",
    "load_parts",
    "load_tokenizer",
    "save_calibration",
    "save_parts",
]

logger = logging.get_logger(__name__)

_CONFIG, _PROCESSOR_CONFIG = "config.json", "preprocessor_config.json"
_TASK = "anomaly-segmentation"


@dataclass
class CheckpointParts:
    """
    The objects that a checkpoint consists of.

    Args:
        model ([`VCPCLIPModel`] or another model on a frozen CLIP): model with its configuration.
        image_processor ([`VCPCLIPImageProcessor`]): preprocessing, scoring and thresholds.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): CLIP's tokenizer, needed only to change the prompts.
        references ([`ReferenceMemory`], *optional*): memory of normal pictures.
    """

    model: FrozenCLIPPreTrainedModel
    image_processor: VCPCLIPImageProcessor
    tokenizer: PreTrainedTokenizerBase | None = None
    references: ReferenceMemory | None = None


# --- load ---------------------------------------------------------------------------------------------------------


def load_parts(
    source: str | os.PathLike,
    backbone: str | os.PathLike | None = None,
    *,
    dtype: torch.dtype | str = "auto",
    untrained: bool = False,
    **config_fields: Any,
) -> CheckpointParts:
    """
    Load a checkpoint.

    Args:
        source (`str` or `os.PathLike`): folder or Hub repository, with all weights or the learned part only.
        backbone (`str` or `os.PathLike`, *optional*):
            CLIP to use instead of the one that the configuration names: a Hub repository, a folder (also relative to
            `source`), or `"embedded"` for the CLIP of the embedded checkpoint.
        dtype (`torch.dtype` or `str`, *optional*, defaults to `"auto"`): dtype of the weights; "auto": as stored.
        untrained (`bool`, *optional*, defaults to `False`):
            Accept a source without weights, such as the folders of `hub_configs/`: the learned part is then freshly
            initialized, in float32, on its backbone.
        config_fields: fields of the configuration that replace those of the checkpoint.

    Returns:
        [`CheckpointParts`]: the model in evaluation mode. A missing image processor is replaced by one
        with default settings; a missing tokenizer is taken from the backbone.

    Raises:
        OSError: the checkpoint or its backbone cannot be found.
        ValueError: no backbone is known for a source without weights, or the backbone does not fit.
    """
    source = str(source)
    config = load_config(source, **config_fields)  # first, because its errors say what is wrong with the source
    refuse_pickles(source)
    backbone = EMBEDDED_CHECKPOINT if backbone == "embedded" else backbone
    loading = {} if dtype == "auto" else {"dtype": dtype}
    model_class = VCPCLIPModel if isinstance(config, VCPCLIPConfig) else MODEL_MAPPING[type(config)]
    if untrained and not _has_weights(source):
        named = backbone or config.backbone_name_or_path
        if named is None:
            raise ValueError(
                f"{source} has no weights and its config.json names no backbone. Pass backbone=..., a CLIP repository"
                " or folder."
            )
        model = model_class.from_clip(backbone_location(str(named), source), config=config, **loading)
    else:
        if backbone is not None:
            if read_config_values(source).get("backbone_included", True):
                raise ValueError(
                    f"{source} includes the weights of its CLIP, so backbone={str(backbone)!r} would have no effect."
                    " Leave it out, or name a checkpoint with the learned part only, or a folder without weights."
                )
            config_fields["backbone_name_or_path"] = str(backbone)
        model = model_class.from_pretrained(source, **loading, **config_fields)
    sources, named = [source], model.config.backbone_name_or_path
    if named is not None:
        sources.append(backbone_location(named, source))
    tokenizer = load_tokenizer(model.config.text_config.vocab_size, *sources)
    return CheckpointParts(model, load_image_processor(source, model.config), tokenizer, find_references(model))


def load_config(source: str | os.PathLike, **config_fields: Any) -> FrozenCLIPConfig:
    """
    Load the configuration of a checkpoint.

    Args:
        source (`str` or `os.PathLike`): folder or Hub repository.
        config_fields: fields of the configuration that replace those of the checkpoint.

    Raises:
        OSError: the checkpoint or its `config.json` is missing or damaged.
        ValueError: another type of model, or wrong values.
    """
    config_class = segmenter_config_class(read_config_values(source), source)
    with explained(source):
        return config_class.from_pretrained(source, **config_fields)


def complete_parts(
    model: FrozenCLIPPreTrainedModel,
    image_processor: VCPCLIPImageProcessor | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> CheckpointParts:
    """
    Return a model in memory with the parts that belong to it. Parts that are not given are loaded from the checkpoint
    that the model came from. A model that came from none gets an image processor with default settings.
    """
    source = model.name_or_path if _is_checkpoint(model.name_or_path) else None
    if image_processor is None:
        image_processor = load_image_processor(source, model.config)
    if tokenizer is None and source is not None:
        tokenizer = load_tokenizer(model.config.text_config.vocab_size, source)
    return CheckpointParts(model, image_processor, tokenizer, None if source is None else find_references(model))


def load_tokenizer(
    vocab_size: int, *sources: str | os.PathLike, **hub_arguments: Any
) -> PreTrainedTokenizerBase | None:
    """
    Return the first tokenizer that fits the model, or `None` with a warning.

    Args:
        vocab_size (`int`): size of the model's vocabulary.
        sources (`str` or `os.PathLike`): folders or Hub repositories, in the order of preference.
        hub_arguments: arguments of `from_pretrained` such as `revision`.
    """
    errors = []
    for source in sources:
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **hub_arguments)
            check_tokenizer(tokenizer, vocab_size)
            return tokenizer
        except (OSError, ValueError, TypeError) as error:
            errors.append(f"{source}: {error}")
    logger.warning(f"No tokenizer found, so other prompts and product names cannot be tokenized. {' '.join(errors)}")
    return None


def load_image_processor(source: str | None, config: FrozenCLIPConfig) -> VCPCLIPImageProcessor:
    """
    Return the image processor of a checkpoint, or one with default settings and a warning.

    Args:
        source (`str`, *optional*): folder or Hub repository.
        config ([`FrozenCLIPConfig`]): the model's configuration, for the default settings.

    Raises:
        OSError: `preprocessor_config.json` is not valid JSON.
        ValueError: it holds wrong values.
    """
    if source is not None and _find(source, _PROCESSOR_CONFIG):
        with explained(source):
            try:
                return VCPCLIPImageProcessor.from_pretrained(source)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{_PROCESSOR_CONFIG} of {source!r} has a wrong value ({error}). Restore the file that was saved"
                    " with the checkpoint, or delete it to get the default settings."
                ) from error
    logger.warning(f"{source or 'The model'} comes without an image processor; using one with default settings.")
    return VCPCLIPImageProcessor.for_model(config)


def _find(source: str, name: str) -> str | None:
    return cached_file(source, name, _raise_exceptions_for_missing_entries=False)


def _has_weights(source: str) -> bool:
    return any(_find(source, name) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))


def _is_checkpoint(source: str) -> bool:
    """Return whether `source` is a checkpoint of this package. The name of a new model is a CLIP's, or empty."""
    if not source:
        return False
    try:
        values, _ = VCPCLIPConfig.get_config_dict(source)
        segmenter_config_class(values, source)
    except (OSError, ValueError, KeyError):
        return False
    return True


# --- save ---------------------------------------------------------------------------------------------------------


def save_parts(
    folder: str | os.PathLike,
    parts: CheckpointParts,
    *,
    adapter_only: bool = False,
    include_code: bool = False,
    training_facts: Mapping[str, Any] | None = None,
    download_facts: bool = False,
    repo_id: str | None = None,
    **kwargs: Any,
) -> None:
    """
    Save a checkpoint with its facts and its model card. A README that a person wrote or edited is kept.

    Args:
        folder (`str` or `os.PathLike`): folder, created if missing.
        parts ([`CheckpointParts`]): objects to save; without a tokenizer, none is saved.
        adapter_only (`bool`, *optional*, defaults to `False`): save the learned part only, without CLIP.
        include_code (`bool`, *optional*, defaults to `False`):
            Copy this package's modules too, so that the checkpoint works without the package:
            `pipeline("anomaly-segmentation", model=folder, trust_remote_code=True)`.
        training_facts (`Mapping`, *optional*):
            Contents of `training.json`. If absent, all facts of the checkpoint that the model was loaded from are
            copied; facts about other weights are recognized by their fingerprint and left out of the card.
        download_facts (`bool`, *optional*, defaults to `False`): copy them from the Hub too, not only from a folder.
        repo_id (`str`, *optional*): Hub repository that the checkpoint is for; named in the card.
        kwargs: arguments of the model's `save_pretrained`.

    Raises:
        ValueError: `include_code` with another model than VCP-CLIP, or references of another image tower, which could
            not be loaded.
    """
    folder = Path(folder)
    if parts.references is not None:
        parts.references.check_tower(parts.model)
    if include_code and not isinstance(parts.model, VCPCLIPModel):
        raise ValueError(
            f"include_code=True copies VCP-CLIP's modules, and {type(parts.model).__name__} needs others. Save it"
            " without code: it is loaded after `import vcp_clip_hf`."
        )
    folder.mkdir(parents=True, exist_ok=True)  # raises where transformers would only log
    parts.model.save_pretrained(folder, adapter_only=adapter_only, **kwargs)
    parts.image_processor.save_pretrained(folder)
    if parts.tokenizer is not None:
        parts.tokenizer.save_pretrained(folder)
    save_references(parts.references, folder)
    if include_code:
        _add_code(folder)
    if training_facts is not None:
        write_training_facts(folder, training_facts)
    elif parts.model.name_or_path:
        carry_facts(parts.model.name_or_path, folder, download=download_facts)
    write_model_card(folder, repo_id=repo_id)


def save_calibration(folder: str | os.PathLike, parts: CheckpointParts) -> None:
    """
    Save a checkpoint after calibration. In the folder that the model was loaded from, only the image processor and the
    card are written; any other folder gets the whole checkpoint.

    Args:
        folder (`str` or `os.PathLike`): folder, created if missing.
        parts ([`CheckpointParts`]): model with its calibrated image processor.
    """
    source = parts.model.name_or_path
    if source and Path(source).resolve() == Path(folder).resolve() and Path(folder).is_dir():
        parts.image_processor.save_pretrained(folder)
        save_references(parts.references, folder)
        write_model_card(folder)
    else:
        save_parts(folder, parts)


def _add_code(folder: Path) -> None:
    """Copy the modules of the classes into a saved checkpoint, and name the classes in its configurations."""
    _, task, _ = PIPELINE_REGISTRY.check_task(_TASK)
    classes = {
        "AutoConfig": VCPCLIPConfig,
        "AutoModel": VCPCLIPModel,
        "AutoImageProcessor": VCPCLIPImageProcessor,
        _TASK: task["impl"],
    }
    names = {}
    for key, kind in classes.items():
        names[key] = f"{kind.__module__.split('.')[-1]}.{kind.__name__}"
        file = sys.modules[kind.__module__].__file__
        for source in (file, *get_relative_import_files(file)):
            shutil.copyfile(source, folder / Path(source).name)
    # without the registered default checkpoint, which is a folder of this machine
    pipelines = {_TASK: {"impl": names[_TASK], "pt": ["AutoModel"], "type": task["type"]}}
    auto_map = {key: names[key] for key in ("AutoConfig", "AutoModel")}
    _add_fields(folder / _CONFIG, auto_map=auto_map, custom_pipelines=pipelines)
    # AutoProcessor would return the tokenizer if this entry was missing
    processors = dict.fromkeys(("AutoImageProcessor", "AutoProcessor"), names["AutoImageProcessor"])
    _add_fields(folder / _PROCESSOR_CONFIG, auto_map=processors)


def _add_fields(path: Path, **fields: Any) -> None:
    """Add fields to a JSON file that transformers wrote, in its format."""
    values = {**json.loads(path.read_text(encoding="utf-8")), **fields}
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
