"""Configuration that every model of this package has, whatever networks it is made of."""

import difflib
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import logging

from .checkpoint_errors import check_dtype


__all__ = ["SegmenterConfig"]

logger = logging.get_logger(__name__)


@strict
class SegmenterConfig(PreTrainedConfig):
    r"""
    Configuration of a model that segments anomalies; the base class of each model's own.

    Args:
        image_size (`int` or `list[int]`, *optional*, defaults to 518):
            Side of the square input in pixels, or `[height, width]`.

    Raises:
        ValueError: a misspelled field, or values that contradict each other; the message names both.
    """

    # What model cards and tables call the method, and where it is published
    title = ""
    source = ""
    # Arguments of the image processor that differ from its defaults
    image_processing = {}

    image_size: int | list[int] | tuple[int, ...] = 518

    def __post_init__(self, **kwargs):
        if not __name__.startswith("transformers_modules."):
            # The code in a repository is for users without this package. With this entry, transformers demands
            # trust_remote_code although the package is installed.
            kwargs.pop("custom_pipelines", None)
        for name, field in self._misspelled_fields(kwargs).items():
            raise ValueError(f"{type(self).__name__} has no field {name!r}; did you mean {field!r}?")
        self._fill_defaults()
        super().__post_init__(**kwargs)
        self._complete()
        self.check_consistency()

    def _fill_defaults(self) -> None:
        """Set the fields whose `None` stands for a value, before transformers reads them."""

    def _complete(self) -> None:
        """Set the fields whose `None` stands for a value that depends on others."""
        if isinstance(self.image_size, tuple):
            self.image_size = list(self.image_size)  # JSON knows no tuples: keep what a reload gives

    def check_consistency(self) -> None:
        """
        Check the fields against each other.

        Raises:
            ValueError: fields contradict each other; the message names both.
        """

    @classmethod
    def own_fields(cls) -> list[str]:
        """Return the names of the fields that transformers' base class does not have, without the towers."""
        inherited = PreTrainedConfig.__dataclass_fields__
        return [name for name in cls.__dataclass_fields__ if name not in inherited and not name.endswith("_config")]

    @classmethod
    def _misspelled_fields(cls, unknown: dict[str, Any]) -> dict[str, str]:
        """
        Return the unknown names that resemble a field, with that field. `PreTrainedConfig` stores unknown names as
        attributes, so that a misspelled field would have no effect.
        """
        close = {
            name: difflib.get_close_matches(name, cls.__dataclass_fields__, n=1, cutoff=0.85)
            for name in unknown.keys() - vars(cls).keys() - cls.__dataclass_fields__.keys()
        }
        return {name: fields[0] for name, fields in close.items() if fields}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> "SegmenterConfig":
        """
        Make a configuration from a dictionary, as in [`~transformers.PreTrainedConfig.from_dict`].

        A saved file may come from a newer version: unknown fields that resemble a known one are kept with a warning.
        Among the keyword arguments they are an error, as in the constructor.

        Raises:
            ValueError: a misspelled keyword argument, or values that contradict each other.
        """
        for name, field in cls._misspelled_fields(kwargs).items():
            raise ValueError(f"{cls.__name__} has no field {name!r}; did you mean {field!r}?")
        check_dtype(kwargs.get("dtype"))
        unknown = cls._misspelled_fields(config_dict)
        loaded = super().from_dict({name: config_dict[name] for name in config_dict if name not in unknown}, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        for name, field in unknown.items():
            logger.warning(
                f"This configuration has a field {name!r}, which {cls.__name__} does not know and ignores. It"
                f" resembles {field!r}: check whether it is misspelled or from a newer version."
            )
            setattr(config, name, config_dict[name])
        return loaded

    def validate_architecture(self):
        """Check the fields. transformers calls this again when the configuration is saved."""
        super().validate_architecture()
        self.check_consistency()

    @property
    def input_size(self) -> tuple[int, int]:
        """Return `(height, width)` in pixels of the images that this checkpoint was trained for."""
        if isinstance(self.image_size, int):
            return self.image_size, self.image_size
        if len(self.image_size) != 2:
            raise ValueError(f"image_size={self.image_size} must be one side or [height, width].")
        return tuple(self.image_size)
