"""Decide which files of a folder are images: one rule for predict, calibrate, evaluate, train and all datasets.

- An image is a file whose ending is in `IMAGE_SUFFIXES`, in any case. The list is fixed, so that the same folder gives
  the same images on every machine; a file that the installed Pillow cannot open is an error of its reader.
- Hidden files and folders (their name begins with a dot, such as `._0.png` or `.ipynb_checkpoints`) and those that
  operating systems create are left out.
- Linked files and folders are followed, and every folder is read once: a link to a folder that was read already, that
  lies inside the searched folder or that contains it, is left out.
- Everything that is left out is counted by reason: [`LeftOut`].
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


__all__ = [
    "IMAGE_SUFFIXES",
    "FolderContent",
    "LeftOut",
    "find_images",
    "is_hidden",
    "lies_in",
    "read_folder",
    "suffix_of",
    "walk_folders",
    "walk_images",
]

# Endings of still pictures that Pillow's own wheels open; a test compares them with PIL.Image.registered_extensions()
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif"),
    *(".png", ".apng", ".gif", ".webp", ".avif"),
    *(".bmp", ".dib", ".tga"),
    *(".tif", ".tiff"),
    *(".pbm", ".pgm", ".ppm", ".pnm", ".pfm"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
)
# Endings of pictures that are not read: leaving them out gives a warning
_UNREAD_PICTURE_SUFFIXES = (
    *(".heic", ".heif", ".jxl", ".svg", ".psd", ".mpo", ".eps", ".ico", ".pcx", ".dds", ".ras", ".sgi"),
    *(".raw", ".dng", ".arw", ".cr2", ".cr3", ".nef", ".orf", ".rw2"),
    *(".exr", ".hdr", ".dcm", ".fit", ".fits"),
)
_SYSTEM_NAMES = frozenset(("__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "@eadir"))
_SHOWN_ENDINGS = 4


def suffix_of(path: str) -> str:
    """Return the extension with its dot, in lower case; "" without a dot. `path` has "/" between folders."""
    name = path.rpartition("/")[2]
    return "." + name.rpartition(".")[2].lower() if "." in name else ""


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is left out: hidden, or made by an operating system."""
    return name.startswith(".") or name.casefold() in _SYSTEM_NAMES


@dataclass(frozen=True)
class FolderContent:
    """
    Names directly inside one folder, sorted.

    Args:
        folders (`list[str]`), files (`list[str]`): visible folders and files, linked ones included.
        hidden (`list[str]`): hidden files and folders.
    """

    folders: list[str]
    files: list[str]
    hidden: list[str]


def read_folder(path: str | os.PathLike) -> FolderContent:
    """
    List one folder, without the folders inside.

    Raises:
        OSError: the folder does not exist or may not be read.
    """
    content = FolderContent([], [], [])
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if is_hidden(entry.name):
                content.hidden.append(entry.name)
            elif entry.is_dir():
                content.folders.append(entry.name)
            elif entry.is_file() or entry.is_symlink():  # a broken link is listed: reading it reports the error
                content.files.append(entry.name)
    return content


@dataclass
class LeftOut:
    """
    Counts of what a search for images left out.

    Args:
        hidden (`int`): hidden files and folders.
        endings (`Counter[str]`): files by ending, for endings that are not in `IMAGE_SUFFIXES`.
        linked (`int`): links to folders that are read elsewhere, or that lead back.
        excluded (`int`): folders that the caller excluded.
        unreadable (`list[str]`): folders that may not be read, relative to the searched folder.
        pictures (`int`):
            How many of these look like pictures, so that the user should know: hidden pictures, hidden folders with
            pictures, and pictures in formats that are not read.
    """

    hidden: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    linked: int = 0
    excluded: int = 0
    unreadable: list[str] = field(default_factory=list)
    pictures: int = 0

    def __str__(self) -> str:
        """Return a text such as `left out: 3 hidden, 2 with other endings (.txt 2)`; "" if nothing was left out."""
        parts = [f"{self.hidden} hidden"] if self.hidden else []
        if self.endings:
            ordered = sorted(self.endings.items(), key=lambda item: (-item[1], item[0]))
            shown = [f"{ending or 'none'} {count}" for ending, count in ordered[:_SHOWN_ENDINGS]]
            more = ", ..." if len(self.endings) > _SHOWN_ENDINGS else ""
            parts.append(f"{self.endings.total()} with other endings ({', '.join(shown)}{more})")
        for count, singular, plural in (
            (self.linked, "link to a folder that is read elsewhere", "links to folders that are read elsewhere"),
            (self.excluded, "folder of results", "folders of results"),
            (len(self.unreadable), "unreadable folder", "unreadable folders"),
        ):
            if count:
                parts.append(f"{count} {singular if count == 1 else plural}")
        return f"left out: {', '.join(parts)}" if parts else ""

    def __bool__(self) -> bool:
        """Return whether anything was left out."""
        return bool(self.hidden or self.endings or self.linked or self.excluded or self.unreadable)

    @property
    def has_pictures(self) -> bool:
        """Return whether pictures were left out, or folders that may hold some and cannot be read."""
        return bool(self.pictures or self.unreadable)


def find_images(folder: str | os.PathLike, exclude: Iterable[str | os.PathLike] = ()) -> tuple[list[str], LeftOut]:
    """
    Find all images below a folder.

    Args:
        folder (`str` or `os.PathLike`): folder to search, with all folders inside.
        exclude (iterable of `str` or `os.PathLike`, *optional*):
            Folders that are not read, such as the folder for results. One that is the searched folder itself, or
            contains it, has no effect.

    Returns:
        `tuple[list[str], LeftOut]`: paths relative to the folder, with "/", sorted name by name; and what was left
        out.
    """
    left_out = LeftOut()
    found = walk_images(folder, exclude, left_out)
    images = [f"{here}/{name}" if here else name for here, names in found for name in names]
    return sorted(images, key=lambda path: path.split("/")), left_out


def walk_images(
    folder: str | os.PathLike, exclude: Iterable[str | os.PathLike], left_out: LeftOut
) -> Iterator[tuple[str, list[str]]]:
    """
    Read a folder and all folders inside, each once, for their images.

    Args:
        folder (`str` or `os.PathLike`), exclude (iterable of `str` or `os.PathLike`): see [`find_images`].
        left_out ([`LeftOut`]): counts to add to.

    Yields:
        `tuple[str, list[str]]`: a folder's path relative to the searched one, with "/" ("" for the searched one), and
        the names of the images directly inside.
    """
    for here, content in walk_folders(folder, exclude, left_out):
        images = []
        for name in content.hidden:
            left_out.hidden += 1
            left_out.pictures += _is_hidden_picture(os.path.join(folder, here, name))
        for name in content.files:
            suffix = suffix_of(name)
            if suffix in IMAGE_SUFFIXES:
                images.append(name)
            else:
                left_out.endings[suffix] += 1
                left_out.pictures += suffix in _UNREAD_PICTURE_SUFFIXES
        yield here, images


def walk_folders(
    root: str | os.PathLike, exclude: Iterable[str | os.PathLike] = (), left_out: LeftOut | None = None
) -> Iterator[tuple[str, FolderContent]]:
    """
    Read a folder and all folders inside, each once; a folder comes before the folders that it contains.

    Args:
        root (`str` or `os.PathLike`): folder to begin with.
        exclude (iterable of `str` or `os.PathLike`, *optional*): see [`find_images`].
        left_out ([`LeftOut`], *optional*):
            Counts to add to. If given, a folder that may not be read is counted instead of raising an error.

    Yields:
        `tuple[str, FolderContent]`: the folder's path relative to the root, with "/" ("" for the root), and its names.

    Raises:
        OSError: a folder may not be read, and `left_out` is not given.
    """
    counts = LeftOut() if left_out is None else left_out
    root = os.fspath(root)
    real_root = os.path.realpath(root)
    excluded = set(_real_exclusions(real_root, exclude))
    seen: set[str] = set()
    pending = [""]
    while pending:
        here = pending.pop()
        path = os.path.join(root, here) if here else root
        real = os.path.realpath(path)
        leads_back = here and os.path.islink(path) and (_contains(real_root, real) or _contains(real, real_root))
        if leads_back or real in seen:
            counts.linked += 1
            continue
        if real in excluded:
            counts.excluded += 1
            continue
        seen.add(real)
        try:
            content = read_folder(path)
        except OSError:
            if left_out is None:
                raise
            counts.unreadable.append(here)
            continue
        yield here, content
        pending += [f"{here}/{name}" if here else name for name in reversed(content.folders)]


def lies_in(path: str | os.PathLike, folders: Iterable[str | os.PathLike], root: str | os.PathLike) -> bool:
    """Return whether a path lies in one of the excluded folders of a search that begins at `root`: [`find_images`]."""
    real = os.path.realpath(path)
    return any(_contains(folder, real) for folder in _real_exclusions(os.path.realpath(root), folders))


def _real_exclusions(real_root: str, folders: Iterable[str | os.PathLike]) -> Iterator[str]:
    return (real for real in map(os.path.realpath, folders) if not _contains(real, real_root))


def _contains(folder: str, path: str) -> bool:
    """Return whether a folder is the path or contains it; both are real paths."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _is_hidden_picture(path: str) -> bool:
    """Return whether a hidden file has the ending of an image, or a hidden folder has one directly inside."""
    if not os.path.isdir(path):
        return suffix_of(os.path.basename(path)) in IMAGE_SUFFIXES
    try:
        return any(suffix_of(name) in IMAGE_SUFFIXES for name in os.listdir(path))
    except OSError:
        return False
