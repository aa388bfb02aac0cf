"""Small copies of pictures as data URIs. A picture that cannot be read gives a placeholder that says so."""

import base64
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..image_loading import load_image
from ..visualization import heatmap


__all__ = ["map_thumbnail", "mask_thumbnail", "placeholder", "thumbnail"]

# WebP is about 30 % smaller than JPEG of the same look, and every browser since 2020 shows it
_FORMAT, _MIME = "WEBP", "image/webp"


def thumbnail(image: Image.Image | str | os.PathLike, longer_side: int = 320, quality: int = 78) -> str:
    """
    Make a small copy of a picture.

    Args:
        image (`PIL.Image.Image`, `str` or `os.PathLike`):
            The picture, or its file, which is read as everywhere in this package (upright; 16 bits by one rule).
        longer_side (`int`, *optional*, defaults to 320): largest number of pixels in a row or column.
        quality (`int`, *optional*, defaults to 78): 0 to 100.

    Returns:
        `str`: data URI.
    """
    if not isinstance(image, Image.Image):
        try:
            image = _read(image)
        except (OSError, ValueError) as error:
            return placeholder(_reason(error), longer_side)
    return _as_uri(_shrunk(image.convert("RGB"), longer_side), quality)


def map_thumbnail(anomaly_map: np.ndarray | str | os.PathLike, longer_side: int = 320, quality: int = 78) -> str:
    """
    Make a small colored copy of an anomaly map, on the fixed scale [0, 1].

    Args:
        anomaly_map (`np.ndarray` of shape `(height, width)`, `str` or `os.PathLike`):
            Values in [0, 1]; or a file of `predict`: 16-bit PNG (value times 65535) or `.npy`.
        longer_side, quality: see [`thumbnail`].

    Returns:
        `str`: data URI.
    """
    if not isinstance(anomaly_map, np.ndarray):
        try:
            anomaly_map = _read_map(Path(anomaly_map))
        except (OSError, ValueError, SyntaxError) as error:
            return placeholder(_reason(error), longer_side)
    values = Image.fromarray(np.ascontiguousarray(anomaly_map, dtype=np.float32))
    return _as_uri(heatmap(_shrunk(values, longer_side)), quality)


def mask_thumbnail(mask: Image.Image | str | os.PathLike, longer_side: int = 320) -> str:
    """
    Make a small black and white copy of a mask; thin regions stay visible.

    Args:
        mask (`PIL.Image.Image`, `str` or `os.PathLike`): picture of one channel, not black inside; or its file.
        longer_side: see [`thumbnail`].

    Returns:
        `str`: data URI.
    """
    if not isinstance(mask, Image.Image):
        try:
            mask = _opened(mask)
        except (OSError, ValueError, SyntaxError) as error:
            return placeholder(_reason(error), longer_side)
    inside = Image.fromarray((np.asarray(mask.convert("L")) > 0).astype(np.uint8) * np.uint8(255))
    small = _shrunk(inside, longer_side)
    # a pixel is white if a tenth of it is inside
    return _as_uri(small.point(lambda value: 255 if value > 25 else 0), None)


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


def _reason(error: Exception) -> str:
    return "file not found" if isinstance(error, FileNotFoundError) else "file cannot be read"


def _read(file: str | os.PathLike) -> Image.Image:
    if str(file).startswith(("http://", "https://", "data:")):
        raise FileNotFoundError("a report requests nothing from a network")
    return load_image(file)


def _read_map(file: Path) -> np.ndarray:
    if file.suffix == ".npy":
        return np.load(file, allow_pickle=False).astype(np.float32)
    return np.asarray(_opened(file)).astype(np.float32) / 65535


def _opened(file: str | os.PathLike) -> Image.Image:
    with Image.open(file, formats=("PNG",)) as picture:
        picture.load()
    return picture


def _shrunk(picture: Image.Image, longer_side: int) -> Image.Image:
    """Return a picture that fits into a square; a smaller one is unchanged."""
    factor = longer_side / max(picture.size)
    if factor >= 1:
        return picture
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.BOX if picture.mode == "F" else Image.Resampling.LANCZOS)


def _as_uri(picture: Image.Image, quality: int | None) -> str:
    """Return a picture as a data URI, without loss if there is no quality."""
    buffer = io.BytesIO()
    if quality is None:
        picture.save(buffer, _FORMAT, lossless=True)
    else:
        picture.save(buffer, _FORMAT, quality=quality, method=4)
    return f"data:{_MIME};base64,{base64.b64encode(buffer.getvalue()).decode()}"
