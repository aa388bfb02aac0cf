"""A recipe: the settings of one product, as plain JSON, with a version."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..call_arguments import refuse_unknown
from ..thresholds import HIGHEST_SCORES


__all__ = ["CONTENT_KEY", "DEFAULT_RECIPE", "Recipe", "check_recipe_name"]

# The recipe that always exists: the checkpoint's own settings, until it is changed
DEFAULT_RECIPE = "default"

# A stored file is named after the SHA-256 of its content, in hexadecimal digits
CONTENT_KEY = re.compile(r"[0-9a-f]{64}")

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


def check_recipe_name(name: str) -> str:
    """
    Return the name of a recipe.

    Raises:
        ValueError: the name is not 1 to 64 letters, digits, `.`, `_` or `-`, or begins with a dot.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot be the name of a recipe: use 1 to 64 of the characters A-Z, a-z, 0-9, '.', '_' and '-',"
            " not beginning with a dot."
        )
    return name


@dataclass(frozen=True)
class Recipe:
    """
    Settings of one product. `None` stands for the checkpoint's own value.

    Args:
        name (`str`): 1 to 64 letters, digits, `.`, `_` or `-`.
        version (`int`, *optional*, defaults to 0): grows by 1 with each change; 0 was never stored.
        threshold (`float`, *optional*): pixels of the map at or above it are abnormal, in [0, 1].
        image_threshold (`float`, *optional*): images with a score at or above it are anomalous.
        score_mode (`str`, *optional*): `"max"`, `"top_k"` or `"image_head"`.
        min_area (`int`, *optional*, defaults to 0): minimum area in pixels of the regions of a mask.
        fill_holes (`bool`, *optional*, defaults to `False`): whether holes in the mask are filled.
        reference_weight (`float`, *optional*): weight of the references, in [0, 1]; 0 is zero-shot.
        roi (`str`, *optional*): content key of the picture of the region of interest.
        references (`tuple[str, ...]`, *optional*): content keys of normal images; without them, the checkpoint's own
            references are used, if it has any.

    Raises:
        ValueError, TypeError: a value has a wrong type or is out of range in every checkpoint.
    """

    name: str
    version: int = 0
    threshold: float | None = None
    image_threshold: float | None = None
    score_mode: str | None = None
    min_area: int = 0
    fill_holes: bool = False
    reference_weight: float | None = None
    roi: str | None = None
    references: tuple[str, ...] = ()

    def __post_init__(self):
        check_recipe_name(self.name)
        _check_whole(self, "version")
        _check_whole(self, "min_area")
        _check_number(self, "threshold", 1)
        _check_number(self, "image_threshold", HIGHEST_SCORES.get(self.score_mode, max(HIGHEST_SCORES.values())))
        _check_number(self, "reference_weight", 1)
        if not isinstance(self.fill_holes, bool):
            raise TypeError(f"fill_holes={self.fill_holes!r} must be true or false.")
        if self.score_mode is not None and self.score_mode not in HIGHEST_SCORES:
            known = ", ".join(map(repr, HIGHEST_SCORES))
            raise ValueError(f"score_mode={self.score_mode!r} must be one of {known}, or null for the checkpoint's.")
        if not isinstance(self.references, (list, tuple)):
            raise TypeError(f"references={self.references!r} must be a list of content keys.")
        object.__setattr__(self, "references", tuple(self.references))
        for key in (*self.references, *(() if self.roi is None else (self.roi,))):
            if not isinstance(key, str) or not CONTENT_KEY.fullmatch(key):
                raise ValueError(f"{key!r} is not a content key, the SHA-256 of a stored file in 64 digits.")

    def as_json(self) -> dict[str, Any]:
        """Return all fields as plain JSON values."""
        return {**asdict(self), "references": list(self.references)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Recipe":
        """
        Make a recipe of plain JSON values; missing fields have their defaults.

        Raises:
            TypeError: a field is unknown; the message names the known ones.
            ValueError: a value is out of range.
        """
        refuse_unknown(values, [each.name for each in fields(cls)], "A recipe")
        return cls(**values)


def _check_whole(recipe: Recipe, name: str) -> None:
    value = getattr(recipe, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name}={value!r} must be a whole number, 0 or more.")


def _check_number(recipe: Recipe, name: str, highest: float) -> None:
    value = getattr(recipe, name)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= highest:
        raise ValueError(f"{name}={value!r} must be a number in [0, {highest:g}], or null for the checkpoint's.")
