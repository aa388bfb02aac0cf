"""A folder on disk: listed once, with names found in any case.

Builders leave the walking to this module, because `datasets` replaces `open`, `os.path` and `pathlib` inside every
module that defines a builder.
"""

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Iterator

from ..image_files import IMAGE_SUFFIXES, read_folder, suffix_of, walk_folders


__all__ = ["FileTree", "absolute_path", "candidate_roots", "fingerprint", "folder_and_file", "stem_of"]


class FileTree:
    """
    A folder whose content is listed on demand. All paths are relative to it, with "/", and are found in any case
    (`train` finds `Train`). Hidden names and links follow the rule of [`vcp_clip_hf.image_files`].

    Args:
        root (`str` or `os.PathLike`): the folder.
    """

    def __init__(self, root: str | os.PathLike):
        self.root = absolute_path(root)
        self._listings: dict[str, tuple[_Names, _Names]] = {}

    def exists(self) -> bool:
        """Return whether the root is a folder."""
        return os.path.isdir(self.root)

    def folders(self, folder: str = "") -> list[str]:
        """Return the names of the folders directly inside, sorted."""
        found = self.resolve(folder)
        return [] if found is None else sorted(self._listing(found)[0].names)

    def files(self, folder: str = "", suffixes: Iterable[str] | None = IMAGE_SUFFIXES) -> list[str]:
        """Return the relative paths of the files directly inside that have these endings (None: all), sorted."""
        found = self.resolve(folder)
        if found is None:
            return []
        names = self._listing(found)[1].names
        return [_join(found, name) for name in sorted(names) if suffixes is None or suffix_of(name) in suffixes]

    def walk(self, folder: str = "", suffixes: Iterable[str] | None = IMAGE_SUFFIXES) -> Iterator[str]:
        """Yield the relative paths of the files inside, at any depth, sorted folder by folder."""
        found = self.resolve(folder)
        if found is None or not os.path.isdir(self.path(found)):
            return
        for here, content in walk_folders(self.path(found)):
            base = _join(found, here) if here else found
            for name in content.files:
                if suffixes is None or suffix_of(name) in suffixes:
                    yield _join(base, name)

    def has_folder(self, folder: str) -> bool:
        """Return whether there is such a folder, in any case."""
        return self.resolve(folder) is not None

    def find(self, path: str, folder: str = "", outside: bool = False) -> str | None:
        """
        Return the relative path of a file as it is written on disk, or None if the tree has no such file.

        Args:
            path (`str`): absolute path, or path relative to `folder`; it may contain "..".
            folder (`str`, *optional*): relative path of the folder that the path begins in.
            outside (`bool`, *optional*, defaults to `False`):
                Whether a path that leads out of the tree is looked for, too; it is returned as an absolute path.
        """
        if not os.path.isabs(path):
            path = os.path.join(self.path(folder), *path.replace("\\", "/").split("/"))
        path = os.path.normpath(path)
        inside = self._relative(path)
        if inside is None:
            return path if outside and os.path.isfile(path) else None
        parent, _, name = inside.rpartition("/")
        found = self.resolve(parent)
        if found is None:
            return None
        name = self._listing(found)[1].find(name)
        return None if name is None else _join(found, name)

    def _relative(self, absolute: str) -> str | None:
        """Return an absolute path relative to the root, or None if it lies outside."""
        root = self.root
        if not _lies_inside(absolute, root):  # one of the two may lead through a link
            absolute, root = os.path.realpath(absolute), os.path.realpath(root)
        return os.path.relpath(absolute, root).replace(os.sep, "/") if _lies_inside(absolute, root) else None

    def resolve(self, folder: str) -> str | None:
        """Return the relative path of a folder as it is written on disk, or None."""
        found = ""
        for part in filter(None, folder.split("/")):
            name = self._listing(found)[0].find(part)
            if name is None:
                return None
            found = _join(found, name)
        return found

    def path(self, relative: str = "") -> str:
        """Return the absolute path."""
        if not relative or os.path.isabs(relative):
            return relative or self.root
        return os.path.join(self.root, *relative.split("/"))

    def text(self, relative: str) -> str:
        """Return the content of a text file in UTF-8, with or without a byte-order mark."""
        with open(self.path(relative), encoding="utf-8-sig") as file:
            return file.read()

    def content(self, relative: str) -> bytes:
        """Return the bytes of a file."""
        with open(self.path(relative), "rb") as file:
            return file.read()

    def _listing(self, folder: str) -> "tuple[_Names, _Names]":
        """Return the folders and files directly inside; both are empty if the root is not a folder."""
        if folder not in self._listings:
            path = self.path(folder)
            content = read_folder(path) if os.path.isdir(path) else None
            self._listings[folder] = (
                _Names(content.folders if content else []),
                _Names(content.files if content else []),
            )
        return self._listings[folder]


class _Names:
    """Names in one folder. An exact match goes before one in another case, or with accents in another encoding."""

    def __init__(self, names: list[str]):
        self.names = set(names)
        self._folded = {_fold(name): name for name in sorted(names, reverse=True)}

    def find(self, name: str) -> str | None:
        return name if name in self.names else self._folded.get(_fold(name))


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())  # macOS writes an accent as a character of its own


def _lies_inside(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def candidate_roots(folder: str | os.PathLike, depth: int = 2) -> Iterator[list[str]]:
    """Yield the folder itself, then its folders, then theirs: absolute paths, one list per depth."""
    level = [absolute_path(folder)]
    for _ in range(depth + 1):
        yield level
        level = [os.path.join(here, name) for here in level for name in FileTree(here).folders()]


def absolute_path(path: str | os.PathLike) -> str:
    """Return the absolute path, with `~` replaced."""
    return os.path.abspath(os.path.expanduser(os.fspath(path)))


def folder_and_file(path: str | os.PathLike) -> tuple[str, str | None]:
    """Return a folder and None; for the path of a file, its folder and its name."""
    path = absolute_path(path)
    return os.path.split(path) if os.path.isfile(path) else (path, None)


def fingerprint(paths: Iterable[str], salt: str = "") -> str:
    """Return a hash of the names, sizes and modification times of files; it changes when one of them changes."""
    digest = hashlib.sha256(salt.encode())
    for path in sorted(set(paths)):
        try:
            status = os.stat(path)
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
        except OSError:  # missing or a broken link; reading it reports the error
            digest.update(f"{path}\0missing\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def stem_of(path: str) -> str:
    """Return the file name without folder and extension."""
    return path.rpartition("/")[2].rpartition(".")[0]
