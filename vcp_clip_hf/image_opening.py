"""Open and decode image files from any source, with limits. Every failure is an error that names the file.

| source | result |
|---|---|
| path of a file | the picture; the current frame of an animation or multi-page file, with a warning |
| folder, missing or vanished file | FileNotFoundError |
| empty, truncated or damaged file, a file of another kind | ValueError |
| more pixels than `max_pixels` | TooManyPixels, a ValueError, before anything is decoded |
| http(s) URL | requested once, limited in size and total time |
| data URI, base64 string, bytes | the picture |

Pillow chooses the format from the content, never from the file name. EPS is not opened, because Pillow would start
Ghostscript for it.
"""

import io
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from .image_sources import DEFAULT_MAX_BYTES, DEFAULT_TIMEOUT, decode_base64, decode_data_uri, download, shown_name


__all__ = ["TooManyPixels", "decoded", "open_picture", "pixel_limit", "warn_of_file"]

logger = logging.getLogger(__name__)

# Files named for each kind of warning; a folder of 10,000 such files must not write 10,000 lines
_NAMED_FILES = 10
_warned: Counter[str] = Counter()
_warned_files: set[tuple[str, str]] = set()
_pillow_limit = threading.RLock()


class TooManyPixels(ValueError):
    """The picture has more pixels than a limit."""


def warn_of_file(kind: str, name: str, message: str) -> None:
    """Warn about a file, once for each file and kind of warning, for the first ten files of each kind."""
    if (kind, name) in _warned_files or _warned[kind] >= _NAMED_FILES:
        return
    _warned_files.add((kind, name))
    _warned[kind] += 1
    last = " Further files of this kind are not named." if _warned[kind] == _NAMED_FILES else ""
    logger.warning("%s: %s%s", name, message, last)


def open_picture(
    source: str | os.PathLike | bytes,
    timeout: float = DEFAULT_TIMEOUT,
    max_pixels: int | None = None,
    max_download_bytes: int = DEFAULT_MAX_BYTES,
) -> tuple[str, Image.Image]:
    """
    Open an image file, without decoding it.

    Args:
        source (`str`, `os.PathLike` or `bytes`): path, URL, data URI, base64 string, or content of a file.
        timeout, max_pixels, max_download_bytes: see [`load_image`].

    Returns:
        `tuple`: the name of the file for messages, and the picture.

    Raises:
        FileNotFoundError: no such file, or a folder.
        TypeError: `source` has another type.
        TooManyPixels: the picture exceeds `max_pixels`, or without it Pillow's limit.
        ValueError: the source is not a readable image, or the file at a URL is too large.
    """
    name, file = _find(source, timeout, max_download_bytes)
    try:
        with pixel_limit(max_pixels):
            picture = Image.open(file, formats=_formats())
    except FileNotFoundError:
        raise FileNotFoundError(f"No such image file: {name!r}.") from None  # vanished in the meantime
    except Image.DecompressionBombError as error:
        # Pillow's sentence names twice its own limit
        reason = (
            f"{error} {_raise_the_limit()}" if max_pixels is None else f"more than max_pixels={max_pixels} pixels."
        )
        raise TooManyPixels(f"{name}: {reason}") from error
    except UnidentifiedImageError as error:
        size = file.getbuffer().nbytes if isinstance(file, io.BytesIO) else os.path.getsize(file)
        reason = "not an image file that Pillow can read" if size else "the file is empty (0 bytes)"
        raise ValueError(f"{name}: {reason}.") from error
    except PermissionError as error:
        raise ValueError(f"{name}: the file may not be read ({error.strerror}).") from error
    except Exception as error:  # plugins raise errors of many types for damaged headers
        raise ValueError(f"{name}: damaged image ({_reason(error)}).") from error
    if max_pixels is not None and picture.width * picture.height > max_pixels:
        raise TooManyPixels(f"{name}: {picture.width} x {picture.height} pixels exceed max_pixels={max_pixels}.")
    return name, picture


def _find(source: Any, timeout: float, max_download_bytes: int) -> tuple[str, str | io.BytesIO]:
    """Return the name of a source for messages, and its path or content."""
    if isinstance(source, bytes):
        return "the image bytes", io.BytesIO(source)
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"Cannot read an image from {type(source).__name__}; expected a path, a URL, a PIL image, or a NumPy or"
            " torch array."
        )
    source = os.fsdecode(source)
    name = shown_name(source)
    if source.startswith(("http://", "https://")):
        return name, io.BytesIO(download(source, timeout, max_download_bytes))
    if os.path.isfile(source):
        return name, source
    if source.startswith("data:"):
        return name, io.BytesIO(decode_data_uri(source))
    content = decode_base64(source)
    if content is not None and _is_image(content):
        return f"the base64 string ({len(source)} characters)", io.BytesIO(content)
    if os.path.isdir(source):
        raise FileNotFoundError(f"{name!r} is a folder; expected an image file.")
    if os.path.exists(source):
        raise FileNotFoundError(f"{name!r} is not a regular file; expected an image file.")
    if len(source) > 4096:
        kind = "base64, but not of an image" if content is not None else "neither a path nor base64"
        raise ValueError(f"The string of {len(source)} characters is {kind}.")
    raise FileNotFoundError(f"No such image file: {name!r}.")


def _is_image(content: bytes) -> bool:
    try:
        Image.open(io.BytesIO(content), formats=_formats())
    except UnidentifiedImageError:
        return False
    except Exception:  # an image, but damaged or too large: `open_picture` says so
        return True
    return True


@lru_cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.OPEN if name != "EPS")


@contextmanager
def pixel_limit(max_pixels: int | None) -> Iterator[None]:
    """
    Let Pillow open pictures up to `max_pixels`. Pillow has one limit for the whole process; it is raised in this
    context only, and only if necessary.
    """
    known = Image.MAX_IMAGE_PIXELS
    if max_pixels is None or known is None or max_pixels <= known:
        yield
        return
    with _pillow_limit:
        known, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = known


def _raise_the_limit() -> str:
    return (
        "If you trust the file, pass a larger max_pixels (--max-pixels on the command line); it takes about 10"
        " bytes of memory per pixel, and 40 with an overlay."
    )


def decoded(picture: Image.Image, name: str) -> Image.Image:
    """
    Decode the pixels and apply the EXIF orientation.

    Args:
        picture (`PIL.Image.Image`): picture, decoded or not.
        name (`str`): name of the file, for messages.

    Returns:
        `PIL.Image.Image`: an upright copy, without metadata.

    Raises:
        ValueError: the picture is empty, damaged or truncated.
    """
    if not all(picture.size):
        raise ValueError(f"{name}: the image is empty ({picture.width} x {picture.height} pixels).")
    try:
        picture.load()
        # All frames are not counted: a TIFF file of 32 MB can have 300 thousand, which takes minutes
        has_more = getattr(picture, "is_animated", False)
        upright = ImageOps.exif_transpose(picture)
    except Image.DecompressionBombError as error:
        raise TooManyPixels(f"{name}: {error} {_raise_the_limit()}") from error
    except MemoryError as error:
        raise ValueError(f"{name}: too little memory for {picture.width} x {picture.height} pixels.") from error
    except Exception as error:  # plugins raise errors of many types for damaged files
        raise ValueError(f"{name}: damaged or truncated image ({_reason(error)}).") from error
    # Metadata have served their purpose, and damaged ones would fail when the picture is read again
    upright.info = {key: value for key, value in upright.info.items() if key == "transparency"}
    if has_more:
        warn_of_file("frames", name, "several frames; only the current one, usually the first, is read.")
    return upright


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
