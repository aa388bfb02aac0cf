"""Settings that a memory of normal pictures is built with."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from .convolutional_stem import STEM_LAYER, without_stem_layer


__all__ = ["COPIES", "DISTANCES", "MemorySettings", "turned_copies"]

# Turned and mirrored copies of each reference; the picture itself is always in the memory
COPIES: dict[str, tuple[Image.Transpose, ...]] = {
    "none": (),
    "flips": (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM),
    "rotations": (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270),
    "all": tuple(Image.Transpose),
}

# Ways to convert distances to a map, see `MemorySettings`
DISTANCES = ("scaled", "relative")


@dataclass(frozen=True)
class MemorySettings:
    """
    Settings that a memory is built with.

    Args:
        layers (`tuple[int | str, ...]`): blocks of the image tower whose patch tokens are kept, 1-based; 0 is the
            embedded patches. Before them may stand `"stem"`, the features of a convolutional stem. For a method with
            its own few-shot mode, the names of its banks.
        max_patches (`int`, *optional*, defaults to 10000): maximum number of patches kept of each layer. Up to it the
            memory is exact; beyond it, a greedy k-center coreset is kept.
        neighborhood (`int`, *optional*, defaults to 1): odd side of the square of patches that a token is averaged
            over, in references and in images; 1: no averaging.
        scale (`float`, *optional*, defaults to 1): factor of the distances. Distances of patches are small numbers;
            the factor brings them to the range of the zero-shot map. It has no effect on methods with their own
            few-shot mode.
        distance (`str`, *optional*, defaults to `"scaled"`): way to convert distances to a map. `"scaled"`: the mean
            over layers of the distance to the nearest normal patch, times the scale, at most 1. `"relative"`: the
            distance from each normal patch is divided by the square root of the spacing of that patch, its mean
            distance from the 16 nearest patches of its own view; r is the smallest of these ratios, as mean over
            layers, times the scale; the map is `r ** 2 / (1 + r ** 2)`, whose logit is `2 * log(r)`.
        copies (`str`, *optional*, defaults to `"none"`): turned and mirrored copies of each reference that are kept
            too: `"none"`, `"flips"` (2), `"rotations"` (by 90, 180 and 270 degrees) or `"all"` (7).

    Raises:
        ValueError: a value is out of range.
    """

    layers: tuple[int | str, ...]
    max_patches: int = 10_000
    neighborhood: int = 1
    scale: float = 1.0
    copies: str = "none"
    distance: str = "scaled"

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers or not all(isinstance(each, str) for each in self.layers):
            self._check_blocks()
        for name in ("max_patches", "neighborhood"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number, 1 or more.")
        if isinstance(self.scale, (bool, str)) or not 0 < self.scale < math.inf:
            raise ValueError(f"scale={self.scale!r} must be a positive number; 1 keeps the distances as they are.")
        object.__setattr__(self, "scale", float(self.scale))
        if self.neighborhood % 2 == 0:
            raise ValueError(f"neighborhood={self.neighborhood} must be odd, so that it has a center.")
        if not isinstance(self.copies, str) or self.copies not in COPIES:
            raise ValueError(f"copies={self.copies!r} must be one of {', '.join(map(repr, COPIES))}.")
        if self.distance not in DISTANCES:
            raise ValueError(f"distance={self.distance!r} must be one of {', '.join(map(repr, DISTANCES))}.")

    @property
    def is_relative(self) -> bool:
        """Return whether distances are compared with the spacing of normal patches."""
        return self.distance == "relative"

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as plain values; `distance` only if it is `"relative"`: earlier files do not have it."""
        values = asdict(self)
        if not self.is_relative:
            values.pop("distance", None)
        return values

    def _check_blocks(self) -> None:
        blocks = without_stem_layer(self.layers)
        if not blocks or any(isinstance(each, bool) or not isinstance(each, int) for each in blocks):
            raise ValueError(
                f"layers={self.layers!r} must be whole numbers, at least one; before them may stand {STEM_LAYER!r}."
            )
        if blocks != sorted(set(blocks)) or blocks[0] < 0:
            raise ValueError(f"layers={self.layers} must be ascending, distinct, and 0 or more.")


def turned_copies(picture: Image.Image, copies: str) -> list[Image.Image]:
    """Return the picture and the copies of it that `copies`, a name in `COPIES`, stands for."""
    return [picture, *(picture.transpose(each) for each in COPIES[copies])]
