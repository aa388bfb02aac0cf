"""From a picture to the input of the model: size, padding, values. NumPy and Pillow only.

The image processor and exported models share this code, so that both compute the same input.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image


__all__ = ["RESIZE_MODES", "check_resize_mode", "fit", "mode_of_one_shape", "place", "to_planes", "value_table"]

RESIZE_MODES = ("squash", "pad", "keep_ratio")


def check_resize_mode(resize_mode: str) -> None:
    """Raise a ValueError if a mode is none of `RESIZE_MODES`."""
    if resize_mode not in RESIZE_MODES:
        *first, last = map(repr, RESIZE_MODES)
        raise ValueError(f"resize_mode={resize_mode!r} must be {', '.join(first)} or {last}.")


def mode_of_one_shape(resize_mode: str) -> str:
    """Return the mode for inputs that must have one shape: the given one, or "squash" instead of "keep_ratio"."""
    return "squash" if resize_mode == "keep_ratio" else resize_mode


def fit(
    height: int, width: int, size: tuple[int, int], resize_mode: str, size_divisor: int = 1
) -> tuple[tuple[int, int], tuple[int, int]]:
    """
    Compute the sizes of the resized image and of the model's input.

    Args:
        height, width (`int`): size of the image.
        size (`tuple[int, int]`): requested height and width.
        resize_mode (`str`): "squash", "pad" or "keep_ratio", as in [`VCPCLIPImageProcessor`].
        size_divisor (`int`, *optional*, defaults to 1): divisor of both sides with "keep_ratio".

    Returns:
        `tuple`: (height, width) of the resized image, and (height, width) of the model's input.
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


def place(
    picture: Image.Image,
    fitted: tuple[tuple[int, int], tuple[int, int]],
    resample: int,
    fill: int | tuple[int, ...],
) -> Image.Image:
    """
    Resize a picture, and pad it on the right and at the bottom.

    Args:
        picture (`PIL.Image.Image`): picture of mode L, RGB or RGBA.
        fitted (`tuple`): the two sizes from `fit`.
        resample (`int`): Pillow's resampling filter.
        fill (`int`, or one for each channel): color of the padding.

    Returns:
        `PIL.Image.Image`: of the second size.
    """
    if picture.mode == "RGBA":  # channel by channel, because Pillow would weigh the colors by alpha
        fills = fill if isinstance(fill, tuple) else (fill,) * 4
        bands = zip(picture.split(), fills, strict=True)
        return Image.merge("RGBA", [place(band, fitted, resample, value) for band, value in bands])
    (height, width), (full_height, full_width) = fitted
    picture = picture.resize((width, height), resample=resample)
    if (height, width) != (full_height, full_width):
        padded = Image.new(picture.mode, (full_width, full_height), fill)
        padded.paste(picture, (0, 0))
        return padded
    return picture


def value_table(
    scale: float, mean: float | Sequence[float] | None, std: float | Sequence[float] | None, channels: int = 3
) -> np.ndarray:
    """
    Tabulate the model's input for each of the 256 values of a channel: rescaled, then normalized, in float32 as in
    the authors' code.

    Args:
        scale (`float`): factor for 8-bit values, usually 1 / 255.
        mean, std (one float, or one for each channel, *optional*): values of the normalization, on [0, 1]; no
            normalization if `mean` is `None`.
        channels (`int`, *optional*, defaults to 3): number of channels.

    Returns:
        `np.ndarray` of shape `(channels, 256)`, float32.
    """
    levels = (np.arange(256, dtype=np.float64) * scale).astype(np.float32)
    table = np.repeat(levels[None], channels, axis=0)
    if mean is None:
        return table
    mean, std = (np.asarray(value, dtype=np.float32).reshape(-1, 1) for value in (mean, std))
    return (table - mean) / std


def to_planes(picture: Image.Image, table: np.ndarray) -> np.ndarray:
    """Look up each value of a picture; return an array of shape `(channels, height, width)`, float32."""
    pixels = np.asarray(picture).reshape(picture.height, picture.width, -1)
    return np.stack([values.take(pixels[..., channel]) for channel, values in enumerate(table)])
