"""Any image, from anywhere, as an upright 8-bit RGB picture; any binary mask as 0/1.

One rule converts values, for every kind of input, so that no image silently turns black or white:

| input | conversion to 0..255 |
|---|---|
| bool, PIL mode 1 | False 0, True 255 |
| uint8, PIL modes L, LA, P, RGB, RGBA, CMYK, ... | unchanged; alpha is dropped |
| uint16, PIL modes I;16 and I | value / 257 (full 16-bit range); a warning if the image looks like 10 or 12 bits |
| other integers | maximum up to 255: unchanged; up to 65535: as 16 bits; negative or larger: an error |
| floats, PIL mode F | all in [0, 1]: times 255; all in [0, 255]: unchanged; anything else: an error |

`input_range=(low, high)` replaces the rule for all data of more than 8 bits: low becomes 0, high 255, and the rest is
clipped. Arrays with three channels are read as RGB.

The module needs only NumPy and Pillow, because exported models carry a copy of it. It recognizes torch tensors by
their methods.
"""

import http.client
import io
import logging
import os
import urllib.request
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np
from PIL import Image, ImageOps


if TYPE_CHECKING:
    import torch


__all__ = ["ArrayLike", "ImageLike", "list_images", "load_image", "load_mask"]

logger = logging.getLogger(__name__)

ArrayLike = Union[np.ndarray, "torch.Tensor"]
ImageLike = Union[str, os.PathLike, bytes, Image.Image, np.ndarray, "torch.Tensor"]

_CHANNELS = (1, 3, 4)
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
    timeout: float = 30.0,
    convert_rgb: bool = True,
) -> Image.Image:
    """
    Read one image.

    Args:
        image (`str`, `os.PathLike`, `bytes`, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            A path, an http(s) URL, the content of an image file, a picture of any PIL mode, or an array of shape
            (H, W), (H, W, C) or (C, H, W) with C equal to 1, 3 (RGB) or 4 (RGBA).
        input_range (`tuple[float, float]`, *optional*):
            Values that become black and white in data of more than 8 bits; see the table of this module.
        channels_last (`bool`, *optional*):
            Layout of a 3-dimensional array. If absent, it is derived from the shape; if the first and the last
            dimension could both be channels, NumPy arrays are read as (H, W, C) and torch tensors as (C, H, W), the
            convention of each library.
        timeout (`float`, *optional*, defaults to 30): seconds to wait for a URL.
        convert_rgb (`bool`, *optional*, defaults to `True`): convert to RGB; `False` keeps modes L and RGBA.

    Returns:
        `PIL.Image.Image`: mode RGB, or L or RGBA if `convert_rgb` is `False`; EXIF orientation applied.

    Raises:
        FileNotFoundError: no such file.
        TypeError: the type is none of the above.
        ValueError: the image is unreadable, truncated, empty, not finite, out of range, or has a wrong number of
            channels.
    """
    if _is_array(image):
        picture = _from_array(image, input_range, channels_last)
    else:
        name, picture = ("the image", image) if isinstance(image, Image.Image) else _open(image, timeout)
        picture = _to_8_bit_mode(_decode(picture, name), name, input_range)
    return picture.convert("RGB") if convert_rgb and picture.mode != "RGB" else picture


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
        name, picture = ("the mask", mask) if isinstance(mask, Image.Image) else _open(mask, 30.0)
        values = np.asarray(_decode(picture, name))
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


def _open(source: ImageLike, timeout: float) -> tuple[str, Image.Image]:
    """Open a path, URL or file content; return its name for messages, and a picture that is not yet decoded."""
    if isinstance(source, bytes):
        name, file = "the image bytes", io.BytesIO(source)
    elif isinstance(source, str) and source.startswith(("http://", "https://")):
        name, file = source, io.BytesIO(_download(source, timeout))
    elif isinstance(source, (str, os.PathLike)):
        name, file = os.fspath(source), Path(source)
        if not file.is_file():
            raise FileNotFoundError(f"No such image file: {name!r}.")
    else:
        raise TypeError(
            f"Cannot read an image from {type(source).__name__}; expected a path, a URL, a PIL image, or a NumPy or"
            " torch array."
        )
    try:
        return name, Image.open(file)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name}: more pixels than Pillow decodes ({error}). If you trust the file, raise"
            " PIL.Image.MAX_IMAGE_PIXELS."
        ) from error
    except OSError as error:
        raise ValueError(f"{name}: not an image file that Pillow can read ({error}).") from error


def _download(url: str, timeout: float) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "vcp_clip_hf"})  # some servers refuse Python's own
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.read()
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"{url}: could not be fetched ({error}).") from error


def _decode(picture: Image.Image, name: str) -> Image.Image:
    """Decode the pixels and apply the EXIF orientation."""
    if not all(picture.size):
        raise ValueError(f"{name}: the image is empty ({picture.width} x {picture.height} pixels).")
    try:
        picture.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name}: damaged or truncated image ({error}).") from error
    if getattr(picture, "n_frames", 1) > 1:
        _warn_once("An image file has several frames; only the current one, usually the first, is read.")
    return ImageOps.exif_transpose(picture)


def _to_8_bit_mode(picture: Image.Image, name: str, input_range: tuple[float, float] | None) -> Image.Image:
    """Convert a picture of any mode to L, RGB or RGBA."""
    if picture.mode in ("L", "RGB", "RGBA"):
        return picture
    if picture.mode in _NUMERIC_MODES or picture.mode.startswith("I;16"):
        values = np.asarray(picture)
        if picture.mode == "I" and values.min() >= 0 and values.max() <= 65535:
            values = values.astype(np.uint16)  # Pillow opens many 16-bit files with mode I
        return Image.fromarray(_to_8_bit(values, input_range, name))
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # Pillow warns when it converts to RGB directly
    try:
        return picture.convert("RGB")
    except ValueError as error:
        raise ValueError(
            f"{name}: cannot convert Pillow mode {picture.mode} to RGB ({error}). Convert it first."
        ) from error


def _is_tensor(value: object) -> bool:
    return hasattr(value, "detach") and hasattr(value, "ndim")


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray) or _is_tensor(value)


@lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    logger.warning(message)


def _from_array(array: ArrayLike, input_range: tuple[float, float] | None, channels_last: bool | None) -> Image.Image:
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
    values = _to_8_bit(array, input_range, name)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    return Image.fromarray(np.ascontiguousarray(values))


def _to_8_bit(values: np.ndarray, input_range: tuple[float, float] | None, name: str) -> np.ndarray:
    """Convert numbers of any type to uint8, by the table of this module."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind not in "iuf":
        raise ValueError(f"{name}: expected integers, floats or booleans.")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"{name}: {int((~np.isfinite(values)).sum())} pixels are NaN or infinite.")

    low, high = values.min(), values.max()
    if input_range is not None:
        black, white = input_range
        if not white > black:
            raise ValueError(f"input_range={tuple(input_range)} must be (low, high) with low < high.")
    elif values.dtype == np.uint16:
        black, white = 0, 65535
        if 255 < high < 4096:
            bits = int(high).bit_length()
            _warn_once(
                f"A 16-bit image uses only {bits} bits: it looks like {max(bits, 10)}-bit data, and without a range"
                " it becomes very dark. For such data pass input_range=(0, 4095) (12 bits) or (0, 1023) (10 bits)."
            )
    elif low >= 0 and values.dtype.kind == "f" and high <= 1:
        black, white = 0, 1
    elif low >= 0 and high <= 255:
        black, white = 0, 255
    elif low >= 0 and high <= 65535 and values.dtype.kind in "iu":
        black, white = 0, 65535
    else:
        expected = "[0, 1] or [0, 255]" if values.dtype.kind == "f" else "0..255 or 0..65535"
        raise ValueError(
            f"{name}: values from {low} to {high}, expected {expected}. Pass input_range=(low, high), the values"
            " of black and white."
        )
    scaled = (values.astype(np.float64) - black) * (255.0 / (white - black))
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)
