"""A folder as it lies on the disk: listed once, found again whatever the case of its names.

Walking happens here and not in the builders: `datasets` replaces `open`, `os.path` and `pathlib` inside every module
that defines a builder.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator


__all__ = [
    "IMAGE_SUFFIXES",
    "FileTree",
    "absolute_path",
    "candidate_roots",
    "fingerprint",
    "folder_and_file",
    "stem_of",
    "suffix_of",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_STRAYS = {"__macosx", "thumbs.db", "desktop.ini"}


class FileTree:
    """
    A folder, listed as far as somebody asks. Names beginning with a dot and what operating systems leave behind are
    not there. All paths are relative, with "/"; they are found in any case (`train` finds `Train`).

    Args:
        root (`str` or `os.PathLike`): the folder.
    """

    def __init__(self, root: "str | os.PathLike"):
        self.root = absolute_path(root)
        self._listings: dict[str, tuple[_Names, _Names]] = {}

    def exists(self) -> bool:
        """Whether the root is a folder."""
        return os.path.isdir(self.root)

    def folders(self, folder: str = "") -> list[str]:
        """Names of the folders directly inside, sorted."""
        found = self.resolve(folder)
        return [] if found is None else sorted(self._listing(found)[0].names)

    def files(self, folder: str = "", suffixes: Iterable[str] | None = IMAGE_SUFFIXES) -> list[str]:
        """Relative paths of the files directly inside, sorted; image files only, unless told otherwise (None: all)."""
        found = self.resolve(folder)
        if found is None:
            return []
        names = self._listing(found)[1].names
        return [_join(found, name) for name in sorted(names) if suffixes is None or suffix_of(name) in suffixes]

    def walk(self, folder: str = "", suffixes: Iterable[str] | None = IMAGE_SUFFIXES) -> Iterator[str]:
        """Relative paths of the files inside, at any depth, sorted folder by folder."""
        found = self.resolve(folder)
        pending, seen = ([] if found is None else [found]), set()
        while pending:
            here = pending.pop()
            real = os.path.realpath(self.path(here))
            if real in seen:  # a link that leads back
                continue
            seen.add(real)
            yield from self.files(here, suffixes)
            pending += [_join(here, name) for name in reversed(self.folders(here))]

    def has_folder(self, folder: str) -> bool:
        """Whether there is such a folder, in any case."""
        return self.resolve(folder) is not None

    def find(self, path: str) -> str | None:
        """The relative path of a file as it is really written, or None. Absolute paths stay as they are."""
        if os.path.isabs(path):
            return path if os.path.isfile(path) else None
        folder, _, name = path.replace("\\", "/").rpartition("/")
        found = self.resolve(folder)
        if found is None:
            return None
        name = self._listing(found)[1].find(name)
        return None if name is None else _join(found, name)

    def resolve(self, folder: str) -> str | None:
        """The relative path of a folder as it is really written, or None."""
        found = ""
        for part in filter(None, folder.split("/")):
            name = self._listing(found)[0].find(part)
            if name is None:
                return None
            found = _join(found, name)
        return found

    def path(self, relative: str = "") -> str:
        """Absolute path."""
        if not relative or os.path.isabs(relative):
            return relative or self.root
        return os.path.join(self.root, *relative.split("/"))

    def text(self, relative: str) -> str:
        """Content of a text file, UTF-8, with or without a byte-order mark."""
        with open(self.path(relative), encoding="utf-8-sig") as file:
            return file.read()

    def _listing(self, folder: str) -> "tuple[_Names, _Names]":
        """Folders and files directly inside a folder that exists."""
        if folder not in self._listings:
            folders, files = [], []
            if os.path.isdir(self.path(folder)):
                with os.scandir(self.path(folder)) as entries:
                    for entry in entries:
                        if not entry.name.startswith(".") and entry.name.casefold() not in _STRAYS:
                            (folders if entry.is_dir() else files).append(entry.name)
            self._listings[folder] = _Names(folders), _Names(files)
        return self._listings[folder]


class _Names:
    """Names of one folder. As written goes before any other case."""

    def __init__(self, names: list[str]):
        self.names = set(names)
        self._folded = {name.casefold(): name for name in sorted(names, reverse=True)}

    def find(self, name: str) -> str | None:
        return name if name in self.names else self._folded.get(name.casefold())


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def candidate_roots(folder: "str | os.PathLike", depth: int = 2) -> Iterator[list[str]]:
    """The folder itself, then its folders, then theirs: absolute paths, one list per depth."""
    level = [absolute_path(folder)]
    for _ in range(depth + 1):
        yield level
        level = [os.path.join(here, name) for here in level for name in FileTree(here).folders()]


def absolute_path(path: "str | os.PathLike") -> str:
    """Absolute, with `~` replaced."""
    return os.path.abspath(os.path.expanduser(os.fspath(path)))


def folder_and_file(path: "str | os.PathLike") -> tuple[str, str | None]:
    """A folder and None; or, where the path is a file, its folder and its name."""
    path = absolute_path(path)
    return os.path.split(path) if os.path.isfile(path) else (path, None)


def fingerprint(paths: Iterable[str], salt: str = "") -> str:
    """A hash of the names, sizes and modification times of files: it changes when one of them does."""
    digest = hashlib.sha256(salt.encode())
    for path in sorted(set(paths)):
        try:
            status = os.stat(path)
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
        except OSError:  # gone or a broken link; reading it will say so
            digest.update(f"{path}\0missing\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def stem_of(path: str) -> str:
    """File name without its folder and extension."""
    return path.rpartition("/")[2].rpartition(".")[0]


def suffix_of(path: str) -> str:
    """Extension with its dot, lower case."""
    name = path.rpartition("/")[2]
    return "." + name.rpartition(".")[2].lower() if "." in name else ""
