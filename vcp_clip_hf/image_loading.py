"""Any image, from anywhere, as an upright 8-bit RGB picture; any binary mask as 0/1.

One rule converts values, for every kind of input, so that no image silently turns black or white:

| input | conversion to 0..255 |
|---|---|
| bool, PIL mode 1 | False 0, True 255 |
| uint8, PIL modes L, LA, P, RGB, RGBA, CMYK, ... | unchanged; alpha is dropped |
| wider integers: arrays, PIL modes I;16 and I, color files with 16 bits per channel | \
maximum up to 255: unchanged, as 8 bits; up to 65535: value / 257 (full 16-bit range); negative or larger: an error |
| gray files that state their white (12-bit TIFF, PGM, JPEG 2000) | this value becomes 255 |
| floats, PIL mode F | all in [0, 1]: times 255; all in [0, 255]: unchanged; anything else: an error |

A warning names images of 16 bits with values below 4096, because they look like 8, 10 or 12 bits.
`input_range=(low, high)` replaces the rule for all data of more than 8 bits: low becomes 0, high 255, and the rest is
clipped. For data of 8 bits it has no effect, and a warning names the image. Arrays with three channels are read as
RGB.

The module needs only NumPy and Pillow, because exported models carry a copy of it. It recognizes torch tensors by
their methods.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Union

import numpy as np
from PIL import Image

from .deep_pixels import gray_scale, is_deep_color, read_deep_color
from .image_opening import decoded, open_picture, pixel_limit
from .image_sources import DEFAULT_MAX_BYTES, DEFAULT_TIMEOUT
from .value_ranges import checked_range, to_8_bit, warn_without_effect


if TYPE_CHECKING:
    import torch


__all__ = ["ArrayLike", "ImageLike", "list_images", "load_image", "load_mask", "load_nonzero", "load_reduced"]

ArrayLike = Union[np.ndarray, "torch.Tensor"]
ImageLike = Union[str, os.PathLike, bytes, Image.Image, np.ndarray, "torch.Tensor"]

_CHANNELS = (1, 3, 4)
# EXIF tag, and its values for pictures that are turned by a right angle
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)
# Divisors of the size of a JPEG file that its decoder can compute
_SCALES = (8, 4, 2)
_UNNAMED = "the image"
_NUMERIC_MODES = ("I", "F")  # and I;16, I;16B, ...


def list_images(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    """
    Return a list of single images, not yet read.

    Args:
        images (`ImageLike` or a sequence of them): one image, a sequence, or a 4-dimensional array of images.

    Raises:
        TypeError: neither an image nor a sequence.
        ValueError: no image at all.
    """
    if isinstance(images, (str, os.PathLike, bytes, Image.Image)):
        return [images]
    if _is_array(images):
        images = list(images) if images.ndim == 4 else [images]
    elif not isinstance(images, (list, tuple)):
        raise TypeError(
            f"Cannot read images from {type(images).__name__}; expected a path, a URL, a PIL image, a NumPy or torch"
            " array, or a list of these."
        )
    if not len(images):
        raise ValueError("The list of images is empty.")
    return list(images)


def load_image(
    image: ImageLike,
    input_range: tuple[float, float] | None = None,
    channels_last: bool | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    convert_rgb: bool = True,
    max_pixels: int | None = None,
    max_download_bytes: int = DEFAULT_MAX_BYTES,
) -> Image.Image:
    """
    Read one image.

    Args:
        image (`str`, `os.PathLike`, `bytes`, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            A path, an http(s) URL, a data URI, a base64 string, the content of an image file, a picture of any PIL
            mode, or an array of shape (H, W), (H, W, C) or (C, H, W) with C equal to 1, 3 (RGB) or 4 (RGBA). A PIL
            picture of a file with 16-bit color must not be decoded yet: Pillow keeps 8 of the bits.
        input_range (`tuple[float, float]`, *optional*):
            Values that become black and white in data of more than 8 bits; see the table of this module.
        channels_last (`bool`, *optional*):
            Layout of a 3-dimensional array. If absent, it is derived from the shape; if the first and the last
            dimension could both be channels, NumPy arrays are read as (H, W, C) and torch tensors as (C, H, W), the
            convention of each library.
        timeout (`float`, *optional*, defaults to 30): seconds for a URL, from the connection to the last byte.
        convert_rgb (`bool`, *optional*, defaults to `True`): convert to RGB; `False` keeps modes L and RGBA.
        max_pixels (`int`, *optional*):
            Maximum number of pixels of a file. Default: twice `PIL.Image.MAX_IMAGE_PIXELS`, 179 million.
        max_download_bytes (`int`, *optional*, defaults to 256 MiB): maximum size of the file at a URL.

    Returns:
        `PIL.Image.Image`: mode RGB, or L or RGBA if `convert_rgb` is `False`; EXIF orientation applied.

    Raises:
        FileNotFoundError: no such file, or a folder.
        TypeError: the type is none of the above.
        ValueError: the image is unreadable, truncated, empty, not finite, out of range, larger than a limit, or has a
            wrong number of channels.
    """
    input_range = checked_range(input_range)
    if _is_array(image):
        picture = _from_array(image, input_range, channels_last)
    else:
        with _opened(image, timeout, max_pixels, max_download_bytes) as (name, opened):
            picture = _from_picture(opened, name, input_range, max_pixels)
    return picture.convert("RGB") if convert_rgb and picture.mode != "RGB" else picture


def load_reduced(
    image: ImageLike,
    least: tuple[int, int],
    input_range: tuple[float, float] | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    max_pixels: int | None = None,
    max_download_bytes: int = DEFAULT_MAX_BYTES,
) -> tuple[Image.Image, tuple[int, int]]:
    """
    Read one image, and decode a JPEG file at 1/2, 1/4 or 1/8 of its size if it is that much larger than necessary and
    its sides are multiples of that number.

    A reduced JPEG file is computed from fewer coefficients of each block (`PIL.Image.Image.draft`), which is faster
    than decoding and resizing all pixels, and close to their mean. All other images are read as by [`load_image`].

    Args:
        image, input_range, timeout, max_pixels, max_download_bytes: see [`load_image`].
        least (`tuple[int, int]`): height and width that a reduced picture has at least.

    Returns:
        `tuple`: the picture, of mode RGB, and the (height, width) of the whole image, upright.

    Raises:
        FileNotFoundError, TypeError, ValueError: as in [`load_image`].
    """
    if not isinstance(image, (str, os.PathLike, bytes)):
        picture = load_image(image, input_range)
        return picture, (picture.height, picture.width)
    with _opened(image, timeout, max_pixels, max_download_bytes) as (name, opened):
        size = opened.size[::-1]
        if opened.format in ("JPEG", "MPO"):
            _reduce(opened, least)
        picture = _from_picture(opened, name, checked_range(input_range), max_pixels)
        if opened.getexif().get(_ORIENTATION, 1) in _TURNED:
            size = size[::-1]
    return picture.convert("RGB") if picture.mode != "RGB" else picture, size


def _reduce(picture: Image.Image, least: tuple[int, int]) -> None:
    """Let the decoder of a JPEG file compute fewer pixels: at least `least`, whichever way the picture is turned."""
    for scale in _SCALES:
        # Sides that are not multiples would shift the picture by a part of a pixel
        if not any(side % scale for side in picture.size) and min(picture.size) // scale >= max(least):
            picture.draft(None, (picture.width // scale, picture.height // scale))
            return


def load_nonzero(mask: ImageLike) -> tuple[str, np.ndarray]:
    """
    Read where a picture of any kind is not black.

    Args:
        mask (`ImageLike`):
            Picture or array as for [`load_image`]. Palette pictures count by their colors. Transparent pixels count as
            black. In a JPEG file, which changes values near edges, values below 128 count as black.

    Returns:
        `tuple`: the name of the picture for messages, and an array of shape `(height, width)`, bool: whether any color
        channel is not zero.

    Raises:
        FileNotFoundError, TypeError, ValueError: as in [`load_image`].
    """
    if _is_array(mask):
        values, name = _channels_last(mask, None)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"{name}: some values are NaN or infinite.")
        return name, _not_black(values, 0)
    with _opened(mask, DEFAULT_TIMEOUT, None, DEFAULT_MAX_BYTES) as (name, picture):
        black = 127 if picture.format in ("JPEG", "MPO") else 0
        colors = _deep_color(picture, name) if is_deep_color(picture) else None
        picture = decoded(picture, name)
        if picture.mode in _NUMERIC_MODES or picture.mode.startswith("I;16"):
            return name, np.asarray(picture) != 0
        transparent = picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info
        pixels = np.asarray(picture.convert("RGBA") if transparent else _to_rgb(picture, name))
        if colors is not None:  # all 16 bits instead of the high bytes
            colors = np.broadcast_to(colors.reshape(*pixels.shape[:2], -1), (*pixels.shape[:2], 3))
            pixels = np.concatenate([colors, pixels[..., 3:]], axis=-1)
        return name, _not_black(pixels, black)


def load_mask(mask: ImageLike) -> np.ndarray:
    """
    Read one segmentation mask.

    Args:
        mask (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            Single-channel, with the value 0 for normal and one other value, such as 1, 255 or True, for abnormal.

    Returns:
        `np.ndarray` of shape `(height, width)`, uint8: 1 where abnormal, else 0.

    Raises:
        ValueError: the mask has more than two values, such as class ids or the noise of a JPEG file. Only the dataset
            knows which of them are defects, so that no threshold is applied here.
    """
    if _is_tensor(mask):
        mask = mask.detach().cpu().numpy()
    if isinstance(mask, np.ndarray):
        values = mask
        if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
            values = values[0] if values.shape[0] == 1 else values[..., 0]
    else:
        with _opened(mask, DEFAULT_TIMEOUT, None, DEFAULT_MAX_BYTES) as (name, picture):
            values = np.asarray(decoded(picture, name))
    if values.ndim != 2 or not values.size:
        raise ValueError(f"A mask must have shape (height, width), got {values.shape}.")
    distinct = np.unique(values)
    if len(distinct) > 2 or (distinct < 0).any() or (len(distinct) == 2 and distinct[0] != 0):
        shown = ", ".join(str(value) for value in distinct[:6]) + (", ..." if len(distinct) > 6 else "")
        raise ValueError(
            f"A mask must hold 0 (normal) and one other value (abnormal), got {len(distinct)} values: {shown}."
            " Binarize it first, by the rule of its dataset."
        )
    return (values > 0).astype(np.uint8)


@contextmanager
def _opened(
    image: ImageLike, timeout: float, max_pixels: int | None, max_download_bytes: int
) -> Iterator[tuple[str, Image.Image]]:
    """Open an image that is not an array; close it afterwards unless the caller had opened it."""
    if isinstance(image, Image.Image):
        yield str(getattr(image, "filename", "")) or _UNNAMED, image
        return
    name, picture = open_picture(image, timeout, max_pixels, max_download_bytes)
    with picture:
        yield name, picture


def _from_picture(
    picture: Image.Image, name: str, input_range: tuple[float, float] | None, max_pixels: int | None
) -> Image.Image:
    """Convert a picture as opened to mode L, RGB or RGBA, upright."""
    if is_deep_color(picture):
        with pixel_limit(max_pixels):
            return Image.fromarray(to_8_bit(_deep_color(picture, name), input_range, name))
    scale = gray_scale(picture)
    picture = decoded(picture, name)
    if picture.mode in _NUMERIC_MODES or picture.mode.startswith("I;16"):
        return Image.fromarray(to_8_bit(np.asarray(picture), input_range, name, scale))
    if input_range is not None and name != _UNNAMED:  # pictures in memory may have been reduced to 8 bits before
        warn_without_effect(name)
    return picture if picture.mode in ("L", "RGB", "RGBA") else _to_rgb(picture, name)


def _deep_color(picture: Image.Image, name: str) -> np.ndarray:
    try:
        return read_deep_color(picture, name)
    except ValueError:
        raise
    except Exception as error:  # plugins raise errors of many types for damaged files
        raise ValueError(f"{name}: damaged or truncated image ({error}).") from error


def _to_rgb(picture: Image.Image, name: str) -> Image.Image:
    """Convert a picture of 8 bits to RGB, or to RGBA if it has transparent palette entries."""
    mode = "RGBA" if picture.mode in ("P", "PA", "LA") and "transparency" in picture.info else "RGB"
    try:
        return picture.convert(mode)  # Pillow warns when it converts transparent palettes to RGB directly
    except ValueError as error:
        raise ValueError(
            f"{name}: cannot convert Pillow mode {picture.mode} to RGB ({error}). Convert it first."
        ) from error


def _not_black(values: np.ndarray, black: int) -> np.ndarray:
    """Return whether a color channel of pixels (H, W) or (H, W, C) is above `black` and the alpha, if any, above 0."""
    if values.ndim == 2:
        return _differs(values, black)
    colors, alpha = (values[..., :-1], values[..., -1] != 0) if values.shape[-1] in (2, 4) else (values, True)
    return _differs(colors, black).any(axis=-1) & alpha


def _differs(values: np.ndarray, black: int) -> np.ndarray:
    return values > black if black else values != 0


def _is_tensor(value: object) -> bool:
    return hasattr(value, "detach") and hasattr(value, "ndim")


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray) or _is_tensor(value)


def _from_array(array: ArrayLike, input_range: tuple[float, float] | None, channels_last: bool | None) -> Image.Image:
    values, name = _channels_last(array, channels_last)
    if input_range is not None and values.dtype in (np.uint8, bool):
        warn_without_effect(name)
    values = to_8_bit(values, input_range, name)
    return Image.fromarray(np.ascontiguousarray(values[..., 0] if values.shape[2:] == (1,) else values))


def _channels_last(array: ArrayLike, channels_last: bool | None) -> tuple[np.ndarray, str]:
    """Return an array of shape (H, W) or (H, W, C), and its name for messages."""
    last_by_default = isinstance(array, np.ndarray)
    if _is_tensor(array):
        array = array.detach().cpu()
        # NumPy has no bfloat16
        array = (array.float() if "bfloat16" in str(array.dtype) else array).numpy()
    name = f"the array of shape {array.shape} and dtype {array.dtype}"
    if array.ndim not in (2, 3):
        raise ValueError(f"{name}: expected (H, W), (H, W, C) or (C, H, W).")
    if not array.size:
        raise ValueError(f"{name}: the image is empty.")
    if array.ndim == 3:
        possible = {True: array.shape[-1] in _CHANNELS, False: array.shape[0] in _CHANNELS}
        if channels_last is None:
            if not any(possible.values()):
                raise ValueError(f"{name}: expected 1, 3 or 4 channels, in the last dimension or in the first.")
            channels_last = last_by_default if all(possible.values()) else possible[True]
        elif not possible[channels_last]:
            place = "last" if channels_last else "first"
            raise ValueError(f"{name}: expected 1, 3 or 4 channels in the {place} dimension.")
        if not channels_last:
            array = np.moveaxis(array, 0, -1)
    return array, name
