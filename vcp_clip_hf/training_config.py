"""Settings of a training run, from a YAML or JSON file and the command line."""

import argparse
import dataclasses
import difflib
import json
import math
import os
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from .ablations import load_ablation, paper_settings_file


__all__ = ["TrainingConfig"]


# Headings of `vcp-clip train --help`
_MODEL = "Model and output"
_DATA = "Auxiliary dataset"
_AUGMENTATION = "Augmentation"
_OPTIMIZATION = "Optimization"
_RESOURCES = "Speed and memory"
_RECORDS = "Checkpoints and logs"


def _about(
    group: str,
    help: str,
    fixed: bool = False,
    card: bool = False,
    minimum: float | None = None,
    maximum: float | None = None,
) -> dict[str, Any]:
    """
    Return the metadata of a field of [`TrainingConfig`].

    Args:
        group (`str`): heading in the help.
        help (`str`): one line for the help, without the default.
        fixed (`bool`):
            Whether the order of the data, the random numbers or the arithmetic depend on it. A resumed run must have
            the same value.
        card (`bool`): whether the model card shows it.
        minimum, maximum (`float`, *optional*): smallest and largest value allowed.
    """
    return {"group": group, "help": help, "fixed": fixed, "card": card, "minimum": minimum, "maximum": maximum}


@dataclass
class TrainingConfig:
    """
    Settings of a training run. The defaults are the paper's with VisA as auxiliary set (appendix A.1).

    Each field is explained where it is declared; `vcp-clip train --help` prints the same. The architecture is not
    here: it is in the `config.json` of the folder `model`, and the image preprocessing in its
    `preprocessor_config.json`.

    - `model`: if the folder holds trained weights, training continues from them. In a file, a relative folder is
      relative to the file; the default is the folder of the file.
    - `validation_products`: names, or how many (the last ones in alphabetical order). Never hold out a product of the
      datasets that the checkpoint is compared on: choosing an epoch on those leaks.
    - `normal_fraction`: an epoch has as many images as the dataset. If there are too few images of one kind, they are
      repeated; if there are too many, each epoch uses others. The fraction is that before mosaics, which are anomalous
      if one of their images is. `split: train+test` adds the normal images of the training split.
    - `trainable: image_head`: pixel metrics cannot select the best weights, because the maps do not change.
    - `images_per_pass`: several batches of an optimizer step may go through the model in one pass. A GPU waits
      for the calls of small passes. The gradients are those of separate passes up to rounding, with two exceptions.
      The dropout of the deep prompts draws other random numbers. In the last pass of an epoch, the images of a batch
      that is not full weigh as much as the others, and with several processes, repeated images fill the whole pass.
      The number of batches in a pass divides `gradient_accumulation_steps`. Needs the memory of the images of one
      pass; 1 needs the least.
    - `image_feature_dir`: other runs on the same images use the features too. The required disk space is logged
      first. It excludes augmentation, with which no image comes twice.
    - `resume`: with `"latest"` and no checkpoint yet, the run starts from the beginning.

    Raises:
        ValueError: an unknown name (with the nearest known one), a value of the wrong type, or values that
            contradict each other.
    """

    output_dir: str = field(metadata=_about(_MODEL, "folder to write"))
    dataset: str = field(metadata=_about(_DATA, "name of a dataset, see `vcp-clip info --datasets`", fixed=True))
    model: str = field(
        default=".",
        metadata=_about(_MODEL, "folder or Hub repository with the config.json of the checkpoint to train"),
    )
    ablation: str | None = field(
        default=None,
        metadata=_about(_MODEL, "ablation of the paper by name, see hub_configs/ablations.yaml"),
    )
    backbone: str | None = field(
        default=None, metadata=_about(_MODEL, "CLIP's repository or folder, instead of the one that config.json names")
    )
    use_image_head: bool = field(
        default=False,
        metadata=_about(_MODEL, "add an image head to a model that has none; not part of the paper", fixed=True),
    )
    trainable: Literal["all", "image_head"] = field(
        default="all",
        metadata=_about(
            _MODEL,
            "parts to train: all learned ones, or the image head alone, on a trained checkpoint that is not changed",
            fixed=True,
        ),
    )
    data_dir: str | None = field(default=None, metadata=_about(_DATA, "folder where the dataset was unpacked"))
    dataset_options: dict[str, Any] = field(
        default_factory=dict, metadata=_about(_DATA, "further arguments of load_anomaly_dataset", fixed=True)
    )
    split: str = field(
        default="test", metadata=_about(_DATA, "part of the dataset; must have annotated defects", fixed=True)
    )
    products: list[str] | None = field(
        default=None, metadata=_about(_DATA, "products to train on; null takes all of them", fixed=True)
    )
    validation_products: list[str] | int = field(
        default=0,
        metadata=_about(_DATA, "products (names or number) held out and evaluated after each epoch", fixed=True),
    )
    normal_fraction: float | None = field(
        default=None,
        metadata=_about(
            _DATA,
            "share of normal images in every batch, 0.5 for an image head; null: that of the dataset",
            fixed=True,
            card=True,
            minimum=0,
            maximum=1,
        ),
    )
    evaluation_targets: list[str] = field(
        default_factory=list,
        metadata=_about(_DATA, "datasets to evaluate on later; training on one of them is refused"),
    )
    allow_training_on_target: bool = field(
        default=False, metadata=_about(_DATA, "allow training on a dataset that is also an evaluation target")
    )
    augmentation: bool = field(
        default=True, metadata=_about(_AUGMENTATION, "rotation, brightness, noise and blur", fixed=True, card=True)
    )
    mosaic_probability: float = field(
        default=0.0,
        metadata=_about(
            _AUGMENTATION,
            "probability of a 2 x 2 mosaic of images of one product; the authors take 0.2 with MVTec-AD",
            fixed=True,
            card=True,
            minimum=0,
            maximum=1,
        ),
    )
    synthetic_anomaly_probability: float = field(
        default=0.0,
        metadata=_about(
            _AUGMENTATION,
            "probability of painting an anomaly on a normal image; 1 trains from normal images alone",
            fixed=True,
            card=True,
            minimum=0,
            maximum=1,
        ),
    )
    image_feature_dir: str | None = field(
        default=None,
        metadata=_about(_RESOURCES, "folder for features of the image tower, computed once; needs augmentation=false"),
    )
    learning_rate: float = field(
        default=4e-5,
        metadata=_about(
            _OPTIMIZATION,
            "learning rate of everything but the temperatures; 2e-5 with MVTec-AD",
            fixed=True,
            card=True,
        ),
    )
    temperature_learning_rate: float = field(
        default=1e-2, metadata=_about(_OPTIMIZATION, "learning rate of both temperatures", fixed=True, card=True)
    )
    image_head_learning_rate: float = field(
        default=1e-3, metadata=_about(_OPTIMIZATION, "learning rate of the image head", fixed=True, card=True)
    )
    adam_beta1: float = field(
        default=0.5, metadata=_about(_OPTIMIZATION, "first decay rate of Adam", fixed=True, card=True)
    )
    adam_beta2: float = field(
        default=0.999, metadata=_about(_OPTIMIZATION, "second decay rate of Adam", fixed=True, card=True)
    )
    num_train_epochs: int = field(
        default=10, metadata=_about(_OPTIMIZATION, "passes over the data", card=True, minimum=1)
    )
    max_train_steps: int | None = field(
        default=None,
        metadata=_about(
            _OPTIMIZATION, "number of optimizer steps of the run; null runs all epochs", card=True, minimum=1
        ),
    )
    per_device_train_batch_size: int = field(
        default=32, metadata=_about(_OPTIMIZATION, "images per process and batch", fixed=True, card=True, minimum=1)
    )
    per_device_eval_batch_size: int = field(
        default=8, metadata=_about(_RESOURCES, "images per process and batch of the validation", minimum=1)
    )
    gradient_accumulation_steps: int = field(
        default=1, metadata=_about(_OPTIMIZATION, "batches per optimizer step", fixed=True, card=True, minimum=1)
    )
    images_per_pass: int | None = field(
        default=None,
        metadata=_about(
            _RESOURCES,
            "with gradient accumulation, maximum number of images in a pass through the model; null: 8 on a GPU, else"
            " one batch",
            fixed=True,
            minimum=1,
        ),
    )
    mixed_precision: Literal["no", "fp16", "bf16"] | None = field(
        default=None,
        metadata=_about(_RESOURCES, "number format of the arithmetic; null takes that of `accelerate launch`"),
    )
    gradient_checkpointing: bool = field(
        default=False, metadata=_about(_RESOURCES, "recompute the text tower's activations instead of keeping them")
    )
    seed: int = field(
        default=333,
        metadata=_about(
            _OPTIMIZATION, "seed of initialization, order, augmentation and dropout", fixed=True, card=True
        ),
    )
    dataloader_num_workers: int = field(
        default=2, metadata=_about(_RESOURCES, "worker processes that read and augment images", minimum=0)
    )
    checkpointing_steps: int = field(
        default=200, metadata=_about(_RECORDS, "optimizer steps between checkpoints", minimum=1)
    )
    checkpoints_total_limit: int = field(
        default=2, metadata=_about(_RECORDS, "number of newest checkpoints to keep", minimum=1)
    )
    resume: str | None = field(
        default=None,
        metadata=_about(_RECORDS, "checkpoint to continue from: `latest` or its folder; null starts a new run"),
    )
    metric_for_best_model: str = field(
        default="pixel_ap",
        metadata=_about(_RECORDS, "metric on held-out products that selects best/; higher is better"),
    )
    save_adapter_only: bool = field(
        default=False,
        metadata=_about(_MODEL, "save only the learned part, with the name of the backbone instead of CLIP's weights"),
    )
    report_to: list[str] = field(default_factory=list, metadata=_about(_RECORDS, "trackers, such as [tensorboard]"))
    logging_steps: int = field(
        default=10, metadata=_about(_RECORDS, "optimizer steps between records of the loss", minimum=1)
    )
    report: bool = field(
        default=False,
        metadata=_about(_RECORDS, "write report.html into output_dir at the end; needs the extra `report`"),
    )

    def __post_init__(self):
        hints = typing.get_type_hints(type(self))
        for entry in dataclasses.fields(self):
            value = _checked(entry.name, getattr(self, entry.name), hints[entry.name])
            _check_range(entry, value)
            setattr(self, entry.name, value)
        if self.image_feature_dir is not None and (
            self.augmentation or self.mosaic_probability or self.synthetic_anomaly_probability
        ):
            raise ValueError(
                "image_feature_dir needs augmentation=false, mosaic_probability=0 and"
                " synthetic_anomaly_probability=0: they make other images in every epoch."
            )
        if self.ablation is not None:
            load_ablation(self.ablation)  # an unknown name is an error
        if self.normal_fraction is not None and self.synthetic_anomaly_probability:
            raise ValueError(
                f"normal_fraction={self.normal_fraction} and"
                f" synthetic_anomaly_probability={self.synthetic_anomaly_probability} both decide how many images are"
                " normal. Set one of them."
            )
        if self.validation_products:
            self.check_selection()
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

    @property
    def has_image_head(self) -> bool:
        """Return whether this run adds an image head to a model that has none, or trains one alone."""
        return self.use_image_head or self.trainable == "image_head"

    def check_selection(self) -> None:
        """Raise a ValueError if `metric_for_best_model` does not depend on what is trained."""
        if self.trainable == "image_head" and not self.metric_for_best_model.startswith("image_"):
            raise ValueError(
                f"metric_for_best_model={self.metric_for_best_model!r} stays the same while only the image head is"
                " trained. Set metric_for_best_model=image_auroc."
            )

    def fixed_settings(self) -> dict[str, Any]:
        """Return the settings that a resumed run must have unchanged."""
        return self._marked("fixed")

    def card_settings(self, with_image_head: bool = False) -> dict[str, Any]:
        """
        Return the hyperparameters that a model card shows.

        Args:
            with_image_head (`bool`, *optional*, defaults to `False`): whether the trained model has an image head.
        """
        shown = self._marked("card")
        if not with_image_head:
            del shown["image_head_learning_rate"]
        return shown

    def _marked(self, mark: str) -> dict[str, Any]:
        return {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self) if entry.metadata[mark]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainingConfig":
        """Make a configuration from plain values; an unknown name is an error that names the nearest known one."""
        known = [entry.name for entry in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"Unknown setting {name!r}{_did_you_mean(str(name), known)}")
        missing = [name for name in ("output_dir", "dataset") if values.get(name) is None]
        if missing:
            raise ValueError(f"Missing settings: {', '.join(missing)}.")
        return cls(**values)

    @classmethod
    def from_file(cls, path: str | os.PathLike, **overrides: Any) -> "TrainingConfig":
        """Read a YAML or JSON file; `overrides` replace its values."""
        return cls.from_dict(_merged(path, overrides))

    @classmethod
    def from_arguments(cls, arguments: Sequence[str] | None = None, **parser_options: Any) -> "TrainingConfig":
        """
        Parse a command line: `--config FILE`, and `--name value` for every setting, its name spelled with hyphens or
        underscores. Values are read as YAML, so that `--products "[pcb1, pcb2]"` is a list and `--max-train-steps
        null` unsets; `--report` alone is `--report true`. A mistake ends the program with status 2.

        Args:
            arguments (`Sequence[str]`, *optional*): command-line arguments; `sys.argv[1:]` by default.
            parser_options: arguments of `argparse.ArgumentParser`.
        """
        parser = _make_parser(cls, **parser_options)
        options, unknown = parser.parse_known_args(arguments)
        for name in unknown:
            if name.startswith("--"):
                known = [_option_string(entry.name) for entry in dataclasses.fields(cls)]
                parser.error(f"unknown setting {name}{_did_you_mean(_option_string(name.split('=')[0][2:]), known)}")
        if unknown:
            parser.error(f"unexpected {' '.join(unknown)}")
        texts = {name: value for name, value in vars(options).items() if value is not None}
        file = texts.pop("config", None)
        try:
            given = {name: _from_yaml(name, text) for name, text in texts.items()}
            return cls.from_dict(_merged(file, given))
        except (ValueError, OSError) as error:
            parser.error(str(error))

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as plain values."""
        return dataclasses.asdict(self)

    def save(self, path: str | os.PathLike) -> None:
        """Write a YAML file that `from_file` reads back."""
        Path(path).write_text(yaml.safe_dump(self.to_dict(), sort_keys=False), encoding="utf-8")


def _merged(file: str | os.PathLike | None, given: dict[str, Any]) -> dict[str, Any]:
    """
    Return the settings of a file, replaced by the given ones. An ablation changes the paper's main setting unless a
    file or a model is given, and has its own output folder.
    """
    ablation = given.get("ablation")
    if ablation is not None:
        file = paper_settings_file() if file is None and "model" not in given else file
        given = {"output_dir": f"runs/ablation-{ablation}", **given}
    return {**(_read(file) if file is not None else {}), **given}


def _read(path: str | os.PathLike) -> dict[str, Any]:
    """Read a file of settings; a relative `model` becomes absolute."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No such configuration file: {str(path)!r}.")
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:  # ValueError: not UTF-8, or not JSON
        raise ValueError(f"{path} could not be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected settings as `name: value`.")
    # A relative `model` is relative to the file, unless it names a Hub repository
    model = str(values.get("model", "."))
    local = (path.parent / model).resolve()
    values["model"] = str(local) if local.is_dir() else model
    return values


def _from_yaml(name: str, text: str) -> Any:
    """Return the value of an option."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(
            f"{_option_string(name)} {text!r} is not valid YAML: {' '.join(str(error).split())}"
        ) from error


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f". Known are: {', '.join(known)}."


def _make_parser(config_class: type[TrainingConfig], **options: Any) -> argparse.ArgumentParser:
    """Return a parser with one option for each field; the spelling with underscores works too, unlisted."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--config FILE] [--SETTING VALUE ...]",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=48),
        allow_abbrev=False,
        **options,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML or JSON file of settings; the command line overrides it"
    )
    hints = typing.get_type_hints(config_class)
    groups = {}
    for entry in dataclasses.fields(config_class):
        name = entry.metadata["group"]
        if name not in groups:
            groups[name] = parser.add_argument_group(name)
        group = groups[name]
        # `--report` alone means `--report true`
        switch = {"nargs": "?", "const": "true"} if hints[entry.name] is bool else {}
        described = {"metavar": _metavar(hints[entry.name]), "help": _help_of(entry)}
        group.add_argument(_option_string(entry.name), **described, **switch)
        if "_" in entry.name:
            group.add_argument(f"--{entry.name}", dest=entry.name, help=argparse.SUPPRESS, **switch)
    return parser


def _option_string(name: str) -> str:
    return "--" + name.replace("_", "-")


def _help_of(entry: dataclasses.Field) -> str:
    if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
        note = " (required)"
    elif entry.default in (None, dataclasses.MISSING):
        note = ""
    else:
        note = f" (default: {json.dumps(entry.default)})"
    return (entry.metadata["help"] + note).replace("%", "%%")


def _metavar(hint: Any) -> str:
    return "|".join(_metavar_of_type(option) for option in _alternatives(hint) if option is not type(None))


def _metavar_of_type(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is Literal:
        return "|".join(typing.get_args(hint))
    return {bool: "true|false", int: "INT", float: "FLOAT", str: "TEXT", list: "[NAME, ...]", dict: "{NAME: VALUE}"}[
        origin or hint
    ]


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if is_union else (hint,)


def _check_range(entry: dataclasses.Field, value: Any) -> None:
    minimum, maximum = entry.metadata["minimum"], entry.metadata["maximum"]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{entry.name}={value} must be a finite number.")
    if value is None:
        return
    if maximum is not None and not minimum <= value <= maximum:
        raise ValueError(f"{entry.name}={value} must lie in [{minimum}, {maximum}].")
    if minimum is not None and value < minimum:
        raise ValueError(f"{entry.name}={value} must be at least {minimum}.")


def _checked(name: str, value: Any, hint: Any) -> Any:
    """Return the value, converted where YAML is ambiguous (it reads 1e-5 as a string), or raise a ValueError."""
    for option in _alternatives(hint):
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
    unset = " or null" if type(None) in _alternatives(hint) else ""
    raise ValueError(f"{name}={value!r} must be {_metavar(hint)}{unset}.")
