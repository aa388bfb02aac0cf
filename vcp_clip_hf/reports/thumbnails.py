"""Small copies of images, maps and masks as data URIs; for an unreadable file, a placeholder with the reason."""

import base64
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..image_loading import load_image
from ..visualization import heatmap


__all__ = [
    "UnreadableError",
    "map_thumbnail",
    "mask_thumbnail",
    "placeholder",
    "read_map",
    "read_mask",
    "read_picture",
    "shrunk",
    "shrunk_map",
    "shrunk_mask",
    "thumbnail",
]

# WebP is about 30 % smaller than JPEG of the same quality, and every browser since 2020 supports it
_FORMAT, _MIME = "WEBP", "image/webp"


def thumbnail(image: Image.Image | str | os.PathLike, longer_side: int = 320, quality: int = 78) -> str:
    """
    Make a small copy of a picture.

    Args:
        image (`PIL.Image.Image`, `str` or `os.PathLike`): the picture, or its file, see [`read_picture`].
        longer_side (`int`, *optional*, defaults to 320): largest number of pixels in a row or column.
        quality (`int`, *optional*, defaults to 78): 0 to 100.

    Returns:
        `str`: data URI.
    """
    try:
        picture = image if isinstance(image, Image.Image) else read_picture(image)
    except UnreadableError as error:
        return placeholder(str(error), longer_side)
    return _as_uri(shrunk(picture.convert("RGB"), longer_side), quality)


def map_thumbnail(anomaly_map: np.ndarray | str | os.PathLike, longer_side: int = 320, quality: int = 78) -> str:
    """
    Make a small colored copy of an anomaly map, on the fixed scale [0, 1].

    Args:
        anomaly_map (`np.ndarray` of shape `(height, width)`, `str` or `os.PathLike`):
            Values in [0, 1]; or a file of `predict`, see [`read_map`].
        longer_side, quality: see [`thumbnail`].

    Returns:
        `str`: data URI.
    """
    try:
        values = anomaly_map if isinstance(anomaly_map, np.ndarray) else read_map(anomaly_map)
    except UnreadableError as error:
        return placeholder(str(error), longer_side)
    return _as_uri(heatmap(shrunk_map(values, longer_side)), quality)


def mask_thumbnail(mask: Image.Image | np.ndarray | str | os.PathLike, longer_side: int = 320) -> str:
    """
    Make a small black and white copy of a mask; thin regions stay visible.

    Args:
        mask (`PIL.Image.Image`, `np.ndarray`, `str` or `os.PathLike`):
            Picture of one channel or array of shape `(height, width)`, not zero inside; or its file.
        longer_side: see [`thumbnail`].

    Returns:
        `str`: data URI.
    """
    try:
        inside = np.asarray(mask) > 0 if isinstance(mask, (Image.Image, np.ndarray)) else read_mask(mask)
    except UnreadableError as error:
        return placeholder(str(error), longer_side)
    return _as_uri(Image.fromarray(shrunk_mask(inside, longer_side)), None)


def placeholder(text: str, longer_side: int = 320) -> str:
    """
    Make a gray picture with a text.

    Args:
        text (`str`): a few words.
        longer_side (`int`, *optional*, defaults to 320): width in pixels; the height is three quarters of it.

    Returns:
        `str`: data URI.
    """
    picture = Image.new("RGB", (longer_side, 3 * longer_side // 4), "#E6E6E6")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(max(11, longer_side // 18))
    place = (picture.width // 2, picture.height // 2)
    draw.multiline_text(place, text, fill="#444444", font=font, anchor="mm", align="center")
    return _as_uri(picture, 60)


class UnreadableError(ValueError):
    """A file that is missing or cannot be read; the message is a few words for a placeholder."""


def read_picture(file: str | os.PathLike) -> Image.Image:
    """
    Read an image file by the rules of this package: upright, RGB, see `load_image`.

    Args:
        file (`str` or `os.PathLike`): path of the file; a report requests nothing from a network.

    Raises:
        UnreadableError: the file is missing or cannot be read.
    """
    if str(file).startswith(("http://", "https://")):
        raise UnreadableError("not on this machine")
    with _in_few_words():
        return load_image(Path(file))


def read_map(file: str | os.PathLike) -> np.ndarray:
    """
    Read an anomaly map of `predict`.

    Args:
        file (`str` or `os.PathLike`): 16-bit PNG (value times 65535) or `.npy`.

    Returns:
        `np.ndarray` of shape `(height, width)`, float32.

    Raises:
        UnreadableError: the file is missing or is not a map.
    """
    with _in_few_words():
        if Path(file).suffix == ".npy":
            values = np.load(file, allow_pickle=False).astype(np.float32)
        else:
            values = _png(file).astype(np.float32) / 65535
        return _flat(values)


def read_mask(file: str | os.PathLike) -> np.ndarray:
    """
    Read a mask of `predict`.

    Args:
        file (`str` or `os.PathLike`): PNG of one channel.

    Returns:
        `np.ndarray` of shape `(height, width)`, bool.

    Raises:
        UnreadableError: the file is missing or is not a mask.
    """
    with _in_few_words():
        return _flat(_png(file)) > 0


@contextmanager
def _in_few_words() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UnreadableError("file not found") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise UnreadableError("file cannot be read") from error


def _png(file: str | os.PathLike) -> np.ndarray:
    with Image.open(file, formats=("PNG",)) as picture:
        return np.asarray(picture)


def _flat(values: np.ndarray) -> np.ndarray:
    if values.ndim != 2 or not values.size:
        raise ValueError(f"Expected an array of shape (height, width), got {values.shape}.")
    return values


def shrunk(
    picture: Image.Image, longer_side: int, resampling: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """
    Return a picture that fits into a square; a smaller one is unchanged.

    Args:
        picture (`PIL.Image.Image`): picture of any mode.
        longer_side (`int`): side of the square in pixels.
        resampling (`PIL.Image.Resampling`, *optional*): kind of interpolation.
    """
    factor = longer_side / max(picture.size)
    if factor >= 1:
        return picture
    return picture.resize((max(1, round(picture.width * factor)), max(1, round(picture.height * factor))), resampling)


def shrunk_map(anomaly_map: np.ndarray, longer_side: int) -> np.ndarray:
    """Return a map (float32) that fits into a square; its values are means of the pixels that they stand for."""
    picture = Image.fromarray(np.ascontiguousarray(anomaly_map, dtype=np.float32))
    return np.asarray(shrunk(picture, longer_side, Image.Resampling.BOX))


def shrunk_mask(mask: np.ndarray, longer_side: int) -> np.ndarray:
    """Return a mask (bool) that fits into a square; a pixel is inside if a tenth of the pixels it stands for are."""
    return shrunk_map(mask, longer_side) >= 0.1


def _as_uri(picture: Image.Image, quality: int | None) -> str:
    """Return a picture as a data URI, without loss if there is no quality."""
    buffer = io.BytesIO()
    if quality is None:
        picture.save(buffer, _FORMAT, lossless=True)
    else:
        picture.save(buffer, _FORMAT, quality=quality, method=2)
    return f"data:{_MIME};base64,{base64.b64encode(buffer.getvalue()).decode()}"
