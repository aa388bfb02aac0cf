"""Pixels of image files with more than 8 bits per channel, with all their bits. NumPy and Pillow only.

Pillow opens color with 16 bits per channel as 8 bits: it drops the low bytes. `read_deep_color` decodes such a file
twice, once for the high bytes and once for the low bytes, by the name of the raw mode in Pillow's tiles.
"""

import io
import sys
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps


__all__ = ["GrayScale", "gray_scale", "is_deep_color", "read_deep_color"]

_ADVICE = "Save it as a PNG or TIFF file with interleaved RGB, or pass an array."
# Raw modes of high bytes, and those that read the low bytes of the same data; "N" is the byte order of the processor
_LITTLE = sys.byteorder == "little"
_LOW_BYTES = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B" if _LITTLE else ";16L"}
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_PLANAR = 258, 262, 284
_CODESTREAM = b"\xff\x4f\xff\x51"  # markers SOC and SIZ of JPEG 2000


@dataclass(frozen=True)
class GrayScale:
    """
    Relation of Pillow's gray values to those in the file.

    Args:
        white (`int`, *optional*): value of white after Pillow, if the file states it.
        factor (`float`, *optional*, defaults to 1): number by which Pillow multiplied the values of the file.
        inverted (`bool`, *optional*, defaults to `False`): whether 0 is white, and Pillow did not invert the values.
    """

    white: int | None = None
    factor: float = 1.0
    inverted: bool = False


def _raw_modes(picture: Image.Image) -> list[str]:
    """Return the raw mode of each tile of a picture that is not yet decoded."""
    arguments = [tile.args for tile in getattr(picture, "tile", ())]
    return [each if isinstance(each, str) else str(each[0]) if each else "" for each in arguments]


def _is_planar_tiff(picture: Image.Image) -> bool:
    tags = getattr(picture, "tag_v2", {})
    return tags.get(_TIFF_PLANAR, 1) == 2 and max(tags.get(_TIFF_BITS, (8,))) > 8


def is_deep_color(picture: Image.Image) -> bool:
    """Return whether a picture that is not yet decoded has color of more than 8 bits, which Pillow would reduce."""
    if picture.mode not in ("RGB", "RGBA", "CMYK") or not getattr(picture, "tile", None):
        return False
    if picture.format == "PPM":
        return any(tile.codec_name != "raw" and tile.args[-1] > 255 for tile in picture.tile)
    if picture.format == "JPEG2000":
        return _jpeg2000_bits(picture) > 8
    return any(";16" in raw_mode for raw_mode in _raw_modes(picture)) or _is_planar_tiff(picture)


def read_deep_color(picture: Image.Image, name: str) -> np.ndarray:
    """
    Read a file for which `is_deep_color` is true.

    Args:
        picture (`PIL.Image.Image`): picture as opened, not yet decoded; it is not changed.
        name (`str`): name of the file, for messages.

    Returns:
        `np.ndarray` of shape `(height, width, 3)` or `(height, width)`, uint16: upright, without alpha.

    Raises:
        ValueError: Pillow cannot read all bits of this kind of file.
    """
    modes, file = set(_raw_modes(picture)), picture.fp
    layout = next(iter(modes)) if len(modes) == 1 else ""
    color, depth = layout[:-4], layout[-4:]
    if (
        file is None
        or depth not in _LOW_BYTES
        or color not in ("RGB", "RGBA", "RGBX", "LA")
        or _is_planar_tiff(picture)
    ):
        kind = f"{picture.format} file of mode {picture.mode} with more than 8 bits per channel"
        raise ValueError(f"{name}: cannot read all bits of a {kind}. {_ADVICE}")
    position, frame = file.tell(), picture.tell()
    try:
        file.seek(0)
        content = file.read()
    finally:
        file.seek(position)
    if color == "LA":  # four bytes per pixel: gray high, gray low, alpha high, alpha low
        pixels = np.asarray(_read_as(content, frame, "RGBA"), dtype=np.uint16)
        return pixels[..., 0] << 8 | pixels[..., 1]
    high = np.asarray(_read_as(content, frame, layout))[..., :3].astype(np.uint16)
    return high << 8 | np.asarray(_read_as(content, frame, color + _LOW_BYTES[depth]))[..., :3]


def _read_as(content: bytes, frame: int, raw_mode: str) -> Image.Image:
    """Decode a file with another raw mode; return the upright picture."""
    picture = Image.open(io.BytesIO(content))
    picture.seek(frame)
    picture.tile = [
        tile._replace(args=raw_mode if isinstance(tile.args, str) else (raw_mode, *tile.args[1:]))
        for tile in picture.tile
    ]
    picture.load()
    return ImageOps.exif_transpose(picture)


def gray_scale(picture: Image.Image) -> GrayScale:
    """Return what a file states about its gray values; `picture` is opened and not yet decoded."""
    if picture.mode not in ("I", "F") and not picture.mode.startswith("I;16"):
        return GrayScale()
    if picture.format == "PPM" and picture.mode == "I":
        known = [tile.args[-1] for tile in picture.tile if tile.codec_name != "raw"]
        return GrayScale(white=65535, factor=65535 / known[0]) if known and known[0] != 65535 else GrayScale()
    if picture.format == "JPEG2000":
        bits = _jpeg2000_bits(picture)
        return GrayScale(white=65535, factor=2 ** (16 - bits)) if 8 < bits < 16 else GrayScale()
    tags = getattr(picture, "tag_v2", {})
    bits = tags.get(_TIFF_BITS, (16,))[0]
    return GrayScale(white=2**bits - 1 if bits == 12 else None, inverted=tags.get(_TIFF_PHOTOMETRIC) == 0)


def _jpeg2000_bits(picture: Image.Image) -> int:
    """Return the bits per channel that the header of a JPEG 2000 file states; 8 if it is not found."""
    file = picture.fp
    if file is None:
        return 8
    position = file.tell()
    try:
        file.seek(0)
        header = file.read(65536)
    finally:
        file.seek(position)
    place = header.find(_CODESTREAM) + len(_CODESTREAM) + 38  # after Lsiz, Rsiz, eight sizes and Csiz
    return (header[place] & 0x7F) + 1 if _CODESTREAM in header and place < len(header) else 8
