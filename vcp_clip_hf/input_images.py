"""Files, folders, patterns and URLs as a list of images, each with its own name for output files.

Names are valid on every system: they have no control characters and none of `<>:"|?*\\`, they are short enough for a
file name, and no two of them differ only in upper and lower case.
"""

import glob
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from transformers.utils import logging

from .image_files import IMAGE_SUFFIXES, LeftOut, find_images, lies_in


__all__ = [
    "FoundImages",
    "InputImage",
    "OutputNames",
    "find_inputs",
    "image_key",
    "is_url",
    "list_inputs",
    "safe_name",
]

logger = logging.get_logger(__name__)

# Of the 255 bytes of a file name, some are needed for a number and an ending
_LONGEST_NAME = 200
# Control characters, bytes that are not UTF-8 (surrogates), and what Windows does not allow
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f\ud800-\udfff<>:"|?*\\]')
# A folder with one of these endings could collide with the output file of an image
_OUTPUT_SUFFIXES = (".png", ".npy", ".jpg")
_ENDINGS = f"Images end in {', '.join(IMAGE_SUFFIXES)}."


@dataclass(frozen=True)
class InputImage:
    """An image to segment: its path or URL, and its file name in the output folders, without extension."""

    path: str
    name: str


@dataclass
class FoundImages:
    """
    Result of a search for images.

    Args:
        images (`list[InputImage]`): images, in a fixed order.
        problems (`list[tuple[str, str]]`): source or folder that could not be read, and a sentence with the reason.
        left_out (`list[tuple[str, LeftOut]]`): folder and what was left out of it, for folders with anything left out.
    """

    images: list[InputImage] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[tuple[str, LeftOut]] = field(default_factory=list)

    def describe_problems(self) -> str:
        """Return the problems as one message."""
        return "\n".join(f"{source!r} {sentence}" for source, sentence in self.problems)


def is_url(path: str) -> bool:
    """Return whether a path is an http(s) URL."""
    return path.startswith(("http://", "https://"))


def image_key(path: str) -> str:
    """Return the identity of an image: its URL or its absolute path."""
    return path if is_url(path) else os.path.abspath(path)


def list_inputs(
    sources: Iterable[str | os.PathLike],
    known_names: Mapping[str, str] | None = None,
    exclude: Iterable[str | os.PathLike] = (),
) -> list[InputImage]:
    """
    List the images in files, folders, glob patterns and URLs, in a fixed order.

    What is left out is logged for each folder, as a warning if pictures are among it.

    Args:
        sources, known_names, exclude: see [`find_inputs`].

    Raises:
        FileNotFoundError: a source does not exist or cannot be read, or a folder or pattern has no image.
    """
    found = find_inputs(sources, known_names, exclude)
    if found.problems:
        raise FileNotFoundError(found.describe_problems())
    for folder, left_out in found.left_out:
        logger.log(logging.WARNING if left_out.has_pictures else logging.INFO, "%s: %s.", folder, left_out)
    return found.images


def find_inputs(
    sources: Iterable[str | os.PathLike],
    known_names: Mapping[str, str] | None = None,
    exclude: Iterable[str | os.PathLike] = (),
) -> FoundImages:
    """
    Find the images in files, folders, glob patterns and URLs. A source with a problem does not affect the others.

    Which files of a folder are images, and what happens to hidden and linked ones, is the rule of
    [`vcp_clip_hf.image_files`].

    Args:
        sources (iterable of `str` or `os.PathLike`):
            Files, folders (read with all folders inside), glob patterns or URLs. A file is listed whatever its ending.
        known_names (`Mapping[str, str]`, *optional*):
            Output name by [`image_key`], for images that were named by an earlier run.
        exclude (iterable of `str` or `os.PathLike`, *optional*):
            Folders that are not read inside a source, such as the folder for results. A source that is such a folder,
            or lies in one, is read.
    """
    known_names, exclude = dict(known_names or {}), list(exclude)
    names, found, listed = OutputNames(known_names.values()), FoundImages(), set()
    for source in map(os.fspath, sources):
        for path, relative in _expand(source, exclude, found):
            key = image_key(path)
            if key in listed:
                continue
            listed.add(key)
            found.images.append(InputImage(path, known_names.get(key) or names.new(relative)))
    return found


class OutputNames:
    """
    Names of output files, each used once: `a.png` and `a.jpg`, or one name in two folders, never overwrite each other.

    Args:
        taken (iterable of `str`): names that are in use.
    """

    def __init__(self, taken: Iterable[str] = ()):
        self._taken = {_folded(name) for name in taken}
        self._last_number: dict[str, int] = {}

    def new(self, relative: str) -> str:
        """
        Return a name that was not taken, and take it.

        Args:
            relative (`str`): path of the image below its source.
        """
        name = stem = safe_name(relative)
        while _folded(name) in self._taken:
            number = self._last_number[stem] = self._last_number.get(stem, 1) + 1
            name = f"{stem}-{number}"
        self.take(name)
        return name

    def take(self, name: str) -> None:
        """Take a name that is known from a record."""
        self._taken.add(_folded(name))


def safe_name(relative: str) -> str:
    """
    Return an output name, without extension.

    Args:
        relative (`str`): path below a source, with "/" between folders.
    """
    *folders, file = [part for part in relative.replace(os.sep, "/").split("/") if part not in ("", ".", "..")]
    folders = [f"{part}_" if part.lower().endswith(_OUTPUT_SUFFIXES) else part for part in folders]
    return "/".join(map(_safe_part, [*folders, os.path.splitext(file)[0]]))


def _safe_part(part: str) -> str:
    # Windows drops spaces and dots at the end
    safe = re.sub(r"[ .]+$", "_", _UNSAFE.sub("_", part)) or "_"
    encoded = safe.encode()
    if len(encoded) <= _LONGEST_NAME:
        return safe
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    return f"{encoded[: _LONGEST_NAME - 9].decode(errors='ignore')}-{digest}"


def _folded(name: str) -> str:
    """Return the same string for names that some file systems do not distinguish."""
    return unicodedata.normalize("NFC", name).casefold()


def _expand(source: str, exclude: Sequence[str | os.PathLike], found: FoundImages) -> list[tuple[str, str]]:
    """Return (path, path below the source) of each image in a source; add problems and what is left out."""
    if is_url(source):
        parts = urlsplit(source)
        return [(source, parts.path.rstrip("/").rsplit("/", 1)[-1] or parts.netloc)]
    if os.path.isfile(source):
        return [(source, os.path.basename(source))]
    if os.path.isdir(source):
        return _expand_folder(source, exclude, found)
    base = os.path.dirname(re.split(r"[*?\[]", source)[0]) or "."
    matches = sorted(path for path in glob.glob(source, recursive=True) if os.path.isfile(path))
    pairs = [(path, os.path.relpath(path, base)) for path in matches if not lies_in(path, exclude, base)]
    if not pairs:
        reason = "is neither a file, a folder, nor a pattern that matches an image"
        if os.path.islink(source):
            reason = f"is a broken link to {os.readlink(source)!r}"
        found.problems.append((source, f"{reason}. {_ENDINGS}"))
    return pairs


def _expand_folder(source: str, exclude: Sequence[str | os.PathLike], found: FoundImages) -> list[tuple[str, str]]:
    images, left_out = find_images(source, exclude)
    for folder in left_out.unreadable:
        path = os.path.join(source, folder) if folder else source
        found.problems.append((path, "is a folder that cannot be read. Check its permissions."))
    if images:
        if left_out:
            found.left_out.append((source, left_out))
    elif left_out.unreadable != [""]:
        told = f" ({left_out})" if left_out else ""
        found.problems.append((source, f"has no image{told}. {_ENDINGS}"))
    return [(str(Path(source, image)), str(Path(image))) for image in images]
