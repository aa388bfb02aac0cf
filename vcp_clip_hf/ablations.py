"""The paper's ablations by name: fields that replace those of a checkpoint's configuration.

They are listed in `hub_configs/ablations.yaml`, which lies beside the package in a checkout and inside the package
where it is installed.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml


# For annotations only: the help of `cli/` reads the names, and imports neither torch nor transformers for them
if TYPE_CHECKING:
    from .configuration_vcp_clip import VCPCLIPConfig
    from .image_processing_vcp_clip import VCPCLIPImageProcessor


__all__ = ["Ablation", "list_ablations", "load_ablation", "paper_settings_file"]

_PACKAGE = Path(__file__).parent
_PROMPT_FIELDS = {"normal_prompts", "normal_prompt_input_ids", "abnormal_prompts", "abnormal_prompt_input_ids"}
# Fields of config.json that no learned weight depends on
_FIELDS_WITHOUT_TRAINING = {"fusion_weight", "image_size", *_PROMPT_FIELDS}
# Fields of the file that belong to preprocessor_config.json
_PROCESSOR_FIELDS = {"smoothing_sigma"}


@dataclass(frozen=True)
class Ablation:
    """
    One ablation.

    Args:
        name (`str`): name in `ablations.yaml`.
        config_fields (`dict[str, Any]`): fields that replace those of [`VCPCLIPConfig`].
        processor_fields (`dict[str, Any]`): fields that replace those of [`VCPCLIPImageProcessor`].
    """

    name: str
    config_fields: dict[str, Any]
    processor_fields: dict[str, Any]

    def image_processor(self, base: VCPCLIPImageProcessor) -> VCPCLIPImageProcessor:
        """Return a copy of `base` with the fields of this ablation."""
        return type(base).from_dict({**base.to_dict(), **self.processor_fields})

    def check_without_training(self, config: VCPCLIPConfig) -> None:
        """
        Check that a trained checkpoint can take the fields of this ablation.

        Args:
            config ([`VCPCLIPConfig`]): configuration of the checkpoint.

        Raises:
            ValueError: the learned weights depend on a field, or a field does not fit the checkpoint.
        """
        trained = sorted(self.config_fields.keys() - _FIELDS_WITHOUT_TRAINING)
        if trained:
            raise ValueError(
                f"The ablation {self.name!r} changes {', '.join(trained)}, which the learned weights depend on. Train"
                f" it with `vcp-clip train --ablation {self.name}` and evaluate the result without --ablation."
            )
        type(config).from_dict({**config.to_dict(), **self.config_fields}).check_consistency()


def list_ablations() -> list[str]:
    """Return all names."""
    return list(_read()["ablations"])


def load_ablation(name: str) -> Ablation:
    """
    Return an ablation.

    Args:
        name (`str`): one of `list_ablations()`.

    Raises:
        ValueError: an unknown name; the message gives the nearest known ones.
    """
    known = _read()["ablations"]
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=3)
        advice = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known are {', '.join(known)}."
        raise ValueError(f"Unknown ablation {name!r}; {advice}")
    fields = known[name]
    processor_fields = {key: value for key, value in fields.items() if key in _PROCESSOR_FIELDS}
    if "image_size" in fields:
        processor_fields["size"] = {"height": fields["image_size"], "width": fields["image_size"]}
    config_fields = {key: value for key, value in fields.items() if key not in _PROCESSOR_FIELDS}
    return Ablation(name, config_fields, processor_fields)


def paper_settings_file() -> Path:
    """Return the `train.yaml` of the paper's main setting, which the ablations differ from."""
    return _hub_configs() / _read()["base"] / "train.yaml"


@lru_cache
def _read() -> dict[str, Any]:
    return yaml.safe_load((_hub_configs() / "ablations.yaml").read_text(encoding="utf-8"))


def _hub_configs() -> Path:
    folders = [_PACKAGE / "hub_configs", _PACKAGE.parent / "hub_configs"]
    for folder in folders:
        if (folder / "ablations.yaml").is_file():
            return folder
    raise FileNotFoundError(f"hub_configs/ablations.yaml is in none of {', '.join(map(str, folders))}.")
