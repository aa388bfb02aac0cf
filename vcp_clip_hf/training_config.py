"""What a training run needs, from a YAML or JSON file and the command line."""

import argparse
import dataclasses
import difflib
import json
import os
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml


__all__ = ["TrainingConfig"]


@dataclass
class TrainingConfig:
    """
    A training run. The defaults are the paper's with VisA as auxiliary set (appendix A.1).

    The architecture is not here: it is in the `config.json` of the folder `model`, and the image preprocessing in its
    `preprocessor_config.json`.

    Args:
        model (`str`):
            Folder (or Hub repository) with the `config.json` of the checkpoint to train, such as
            `hub_configs/vcp-clip-vit-large-patch14-336-visa`. If it holds trained weights, training goes on from them.
            In a file, a relative folder is meant from the file's own place; default: that place.
        backbone (`str`, *optional*): CLIP's repository or folder, instead of the one that `config.json` names.
        output_dir (`str`): where everything is written.
        dataset (`str`): auxiliary dataset, a name that `load_anomaly_dataset` knows.
        data_dir (`str`, *optional*): where it was unpacked.
        dataset_options (`dict`, *optional*): further arguments of `load_anomaly_dataset`.
        split (`str`, *optional*, defaults to `"test"`): the part with annotated defects.
        products (`list[str]`, *optional*): train on these only; default all.
        validation_products (`list[str]` or `int`, *optional*, defaults to 0):
            Auxiliary products that are held out and evaluated after each epoch, by name, or how many (the last ones
            in alphabetical order). Never a product of the datasets the checkpoint is compared on: choosing an epoch
            on those leaks.
        evaluation_targets (`list[str]`, *optional*):
            Datasets the checkpoint will be evaluated on. Training on one of them is refused.
        allow_training_on_target (`bool`, *optional*, defaults to `False`): train on it nevertheless.
        augmentation (`bool`, *optional*, defaults to `True`): rotation, brightness, noise, blur.
        mosaic_probability (`float`, *optional*, defaults to 0):
            Of a 2 x 2 mosaic of four images of one product; the authors take 0.2 with MVTec-AD.
        synthetic_anomaly_probability (`float`, *optional*, defaults to 0):
            Of painting an anomaly on a normal image. 1 trains from normal images alone.
        image_feature_dir (`str`, *optional*):
            Keep the frozen image tower's features in this folder and reuse them in every epoch, and in other runs on
            the same images; how much that takes is said first. Only without augmentation: with it, no image comes
            twice.
        learning_rate (`float`, *optional*, defaults to 4e-5): of everything learned but the temperatures; 2e-5 with
            MVTec-AD.
        temperature_learning_rate (`float`, *optional*, defaults to 1e-2): of both temperatures.
        adam_beta1, adam_beta2 (`float`, *optional*, defaults to 0.5, 0.999): of Adam.
        num_train_epochs (`int`, *optional*, defaults to 10): passes over the data.
        max_train_steps (`int`, *optional*): stop after so many optimiser steps.
        per_device_train_batch_size (`int`, *optional*, defaults to 32): images per process and step.
        per_device_eval_batch_size (`int`, *optional*, defaults to 8): images per process in the validation.
        gradient_accumulation_steps (`int`, *optional*, defaults to 1): batches that make one optimiser step.
        mixed_precision (`"no"`, `"fp16"` or `"bf16"`, *optional*): default: as `accelerate launch` says.
        gradient_checkpointing (`bool`, *optional*, defaults to `False`): of the text tower.
        seed (`int`, *optional*, defaults to 333): of initialisation, order, augmentation and dropout.
        dataloader_num_workers (`int`, *optional*, defaults to 2): processes that read and augment images.
        checkpointing_steps (`int`, *optional*, defaults to 200): optimiser steps between checkpoints.
        checkpoints_total_limit (`int`, *optional*, defaults to 2): newest checkpoints kept.
        resume (`str`, *optional*): `"latest"`, or the folder of a checkpoint. With `"latest"` and no checkpoint yet, a
            fresh start.
        metric_for_best_model (`str`, *optional*, defaults to `"pixel_ap"`): on held-out products; higher is better.
        save_adapter_only (`bool`, *optional*, defaults to `False`): leave CLIP out of what is saved, and name it.
        report_to (`list[str]`, *optional*): trackers, such as `["tensorboard"]`.
        logging_steps (`int`, *optional*, defaults to 10): optimiser steps between records of the loss.

    Raises:
        ValueError: an unknown name (with the nearest known one), a value of the wrong type, or values that
            contradict each other.
    """

    output_dir: str
    dataset: str
    model: str = "."
    backbone: str | None = None
    data_dir: str | None = None
    dataset_options: dict[str, Any] = field(default_factory=dict)
    split: str = "test"
    products: list[str] | None = None
    validation_products: list[str] | int = 0
    evaluation_targets: list[str] = field(default_factory=list)
    allow_training_on_target: bool = False
    augmentation: bool = True
    mosaic_probability: float = 0.0
    synthetic_anomaly_probability: float = 0.0
    image_feature_dir: str | None = None
    learning_rate: float = 4e-5
    temperature_learning_rate: float = 1e-2
    adam_beta1: float = 0.5
    adam_beta2: float = 0.999
    num_train_epochs: int = 10
    max_train_steps: int | None = None
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    gradient_checkpointing: bool = False
    seed: int = 333
    dataloader_num_workers: int = 2
    checkpointing_steps: int = 200
    checkpoints_total_limit: int = 2
    resume: str | None = None
    metric_for_best_model: str = "pixel_ap"
    save_adapter_only: bool = False
    report_to: list[str] = field(default_factory=list)
    logging_steps: int = 10

    def __post_init__(self):
        hints = typing.get_type_hints(type(self))
        for entry in dataclasses.fields(self):
            setattr(self, entry.name, _checked(entry.name, getattr(self, entry.name), hints[entry.name]))
        for name in (
            "num_train_epochs",
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "checkpointing_steps",
            "checkpoints_total_limit",
            "logging_steps",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("mosaic_probability", "synthetic_anomaly_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1].")
        if self.image_feature_dir is not None and (
            self.augmentation or self.mosaic_probability or self.synthetic_anomaly_probability
        ):
            raise ValueError(
                "image_feature_dir needs augmentation=false, mosaic_probability=0 and"
                " synthetic_anomaly_probability=0: they make other images in every epoch."
            )
        if self.dataset in self.evaluation_targets and not self.allow_training_on_target:
            raise ValueError(
                f"dataset={self.dataset!r} is also in evaluation_targets={self.evaluation_targets}: a zero-shot"
                " result must not be trained on its own target. Train on another dataset, or set"
                " allow_training_on_target=true and say so beside the numbers."
            )
        if isinstance(self.validation_products, list) and self.products is not None:
            unknown = sorted(set(self.validation_products) - set(self.products))
            if unknown:
                raise ValueError(f"validation_products={unknown} are not among products={self.products}.")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainingConfig":
        """From plain values; an unknown name is an error that names the nearest known one."""
        known = [entry.name for entry in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"Unknown setting {name!r}{_did_you_mean(name, known)}")
        missing = [name for name in ("output_dir", "dataset") if values.get(name) is None]
        if missing:
            raise ValueError(f"Missing settings: {', '.join(missing)}.")
        return cls(**values)

    @classmethod
    def from_file(cls, path: str | os.PathLike, **overrides: Any) -> "TrainingConfig":
        """From a YAML or JSON file; `overrides` win."""
        return cls.from_dict({**_read(path), **overrides})

    @classmethod
    def from_arguments(cls, arguments: Sequence[str] | None = None, **parser_options: Any) -> "TrainingConfig":
        """
        From a command line: `--config FILE` and `--name value` for every setting. Values are read as YAML, so that
        `--products "[pcb1, pcb2]"` is a list and `--max_train_steps null` unsets.
        """
        parser = argparse.ArgumentParser(allow_abbrev=False, **parser_options)
        parser.add_argument("--config", help="YAML or JSON file with settings; those of the command line win")
        for entry in dataclasses.fields(cls):
            parser.add_argument(f"--{entry.name}", metavar="VALUE", help=_help_of(entry))
        options, unknown = parser.parse_known_args(arguments)
        for name in unknown:
            if name.startswith("--"):
                known = [f"--{entry.name}" for entry in dataclasses.fields(cls)]
                parser.error(f"unknown setting {name}{_did_you_mean(name.split('=')[0], known)}")
        if unknown:
            parser.error(f"unexpected {' '.join(unknown)}")
        given = {name: yaml.safe_load(value) for name, value in vars(options).items() if value is not None}
        file = given.pop("config", None)
        try:
            return cls.from_dict({**(_read(file) if file else {}), **given})
        except (ValueError, OSError) as error:
            parser.error(str(error))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    def save(self, path: str | os.PathLike) -> None:
        """Write a YAML file that `from_file` reads back."""
        Path(path).write_text(yaml.safe_dump(self.to_dict(), sort_keys=False), encoding="utf-8")


def _read(path: str | os.PathLike) -> dict[str, Any]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No such configuration file: {str(path)!r}.")
    text = path.read_text(encoding="utf-8")
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} could not be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected settings as `name: value`.")
    # `model` is meant from the file's own place, unless it is a Hub repository
    model = str(values.get("model", "."))
    beside = (path.parent / model).resolve()
    values["model"] = str(beside) if beside.is_dir() else model
    return values


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f". Known are: {', '.join(known)}."


def _help_of(entry: dataclasses.Field) -> str:
    default = entry.default if entry.default is not dataclasses.MISSING else None
    return "required" if entry.name in ("output_dir", "dataset") else f"default: {default}"


def _checked(name: str, value: Any, hint: Any) -> Any:
    """The value, converted where YAML leaves doubt (1e-5 is a string to it), or a ValueError that names the type."""
    options = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
    for option in options:
        origin = typing.get_origin(option)
        if option is type(None):
            if value is None:
                return None
        elif origin is Literal:
            # YAML reads `no` as false
            text = "no" if value is False else value
            if text in typing.get_args(option):
                return text
        elif origin is list:
            if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
                return list(value)
        elif origin is dict:
            if isinstance(value, dict):
                return dict(value)
        elif option is bool:
            if isinstance(value, bool):
                return value
        elif option is float:
            if not isinstance(value, bool):
                try:
                    return float(value)
                except (TypeError, ValueError):
                    pass
        elif isinstance(value, option) and not isinstance(value, bool):
            return value
    raise ValueError(f"{name}={value!r} is not of the expected type {getattr(hint, '__name__', hint)}.")
