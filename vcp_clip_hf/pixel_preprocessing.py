"""From a picture to the numbers a model sees: size, padding, values. NumPy and Pillow only.

Used by the image processor, and copied beside exported models, so that both see the same.
"""

import math

import numpy as np
from PIL import Image


__all__ = ["fit", "place", "to_planes", "value_table"]


def fit(
    height: int, width: int, size: tuple[int, int], resize_mode: str, size_divisor: int = 1
) -> tuple[tuple[int, int], tuple[int, int]]:
    """
    How an image is brought to a size.

    Args:
        height, width (`int`): of the image.
        size (`tuple[int, int]`): height and width asked for.
        resize_mode (`str`): "squash", "pad" or "keep_ratio", as in [`VCPCLIPImageProcessor`].
        size_divisor (`int`, *optional*, defaults to 1): what sides are multiples of, with "keep_ratio".

    Returns:
        `tuple`: (height, width) of the resized image, and (height, width) of what the model sees.
    """
    if resize_mode == "pad":
        scale = min(size[0] / height, size[1] / width)
        fitted = (max(1, round(height * scale)), max(1, round(width * scale)))
        return (min(fitted[0], size[0]), min(fitted[1], size[1])), size
    if resize_mode == "keep_ratio":
        scale = math.sqrt(size[0] * size[1] / (height * width))
        fitted = tuple(max(1, round(side * scale / size_divisor)) * size_divisor for side in (height, width))
        return fitted, fitted
    return size, size


def place(picture: Image.Image, fitted: tuple, resample: int, fill) -> Image.Image:
    """Resize, and pad on the right and at the bottom with `fill`; `fitted` is what `fit` returned."""
    (height, width), (full_height, full_width) = fitted
    picture = picture.resize((width, height), resample=resample)
    if (height, width) != (full_height, full_width):
        padded = Image.new(picture.mode, (full_width, full_height), fill)
        padded.paste(picture, (0, 0))
        return padded
    return picture


def value_table(scale: float, mean, std) -> np.ndarray:
    """
    What each of the 256 values of a channel becomes: rescaled, then normalised, in float32 as the authors compute it.

    Args:
        scale (`float`): 1 / 255 as a rule.
        mean, std (3 floats, or `None` for no normalisation): on [0, 1].

    Returns:
        `np.ndarray` of shape `(3, 256)`, float32.
    """
    levels = (np.arange(256, dtype=np.float64) * scale).astype(np.float32)
    table = np.repeat(levels[None], 3, axis=0)
    if mean is None:
        return table
    mean, std = (np.asarray(value, dtype=np.float32).reshape(-1, 1) for value in (mean, std))
    return (table - mean) / std


def to_planes(picture: Image.Image, table: np.ndarray) -> np.ndarray:
    """An RGB picture -> `(3, height, width)`, float32, by one look-up for each value."""
    pixels = np.asarray(picture)
    return np.stack([table[channel][pixels[..., channel]] for channel in range(3)])
