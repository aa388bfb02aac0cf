"""Handle an image file after its record is written: keep it, write a mark next to it, or move it.

A move has two steps, so that it can be completed after a kill, and so that an image that replaces the file just then
is not mistaken for the recorded one. First, the file gets a hidden name in its own folder, with the sequence number of
its record. If it is the recorded file, it is then moved to an unused name; otherwise, it gets its name back.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .atomic_write import atomic_file
from .image_files import LeftOut, walk_folders
from .image_opening import warn_of_file
from .prediction_records import file_state, recorded_state


__all__ = ["MOVED_FOLDERS", "WHEN_DONE", "FinishedPictures", "is_own"]

WHEN_DONE = ("keep", "mark", "move")
# Whether the record has an error -> folder of moved images
MOVED_FOLDERS = {False: "done", True: "failed"}
_OWN = ".vcp-clip"
_MARK = f"{_OWN}.json"
_HIDDEN = re.compile(rf"{re.escape(_OWN)}-(\d+)-(.+)\.moving", re.DOTALL)


class FinishedPictures:
    """
    Keeps, marks or moves the files of recorded images.

    Args:
        when_done (`"keep"`, `"mark"` or `"move"`):
            `"mark"` writes the record next to the image, as `<file name>.vcp-clip.json`; `"move"` moves the image to
            `done/` or, if the record has an error, to `failed/`.
        folder (`Path`): folder of `done/` and `failed/`.
    """

    def __init__(self, when_done: str, folder: Path):
        if when_done not in WHEN_DONE:
            raise ValueError(f"when_done={when_done!r} must be one of {', '.join(WHEN_DONE)}.")
        self.when_done, self.folder = when_done, folder

    def __call__(self, record: Mapping[str, Any]) -> None:
        """
        Mark or move the image of a record. A problem is only a warning, because the record has been written.

        Args:
            record (`Mapping`): record with `sequence`, `bytes` and `mtime_ns`.
        """
        if self.when_done == "mark":
            with _warning(record["image"], "marked"):
                _mark(record)
        elif self.when_done == "move":
            with _warning(record["image"], "moved"):
                self._move(record)

    def repair(
        self, watched: str | os.PathLike, exclude: Iterable[str | os.PathLike], records: Iterable[Mapping[str, Any]]
    ) -> None:
        """
        Mark or move the images of records for which this was interrupted, also between the two steps of a move.

        Args:
            watched (`str` or `os.PathLike`), exclude (iterable of `str` or `os.PathLike`): the watched folder, and
                folders inside that are not read.
            records (iterable of `Mapping`): all records.
        """
        present, moving = _leftovers(watched, exclude)
        if self.when_done == "keep":
            present.clear()
        for record in records if present or moving else ():
            hidden = moving.pop((record["sequence"], record["image"]), None)
            if hidden is not None:
                with _warning(record["image"], "moved"):
                    self._place(hidden, record)
            elif record["image"] in present and file_state(record["image"]) == recorded_state(record):
                self(record)
        for (_, image), hidden in moving.items():  # their records were removed by the user
            with _warning(image, "moved"):
                _first_free(hidden, _numbered(Path(image)))

    def _move(self, record: Mapping[str, Any]) -> None:
        image = Path(record["image"])
        hidden = image.with_name(f"{_OWN}-{record['sequence']}-{image.name}.moving")
        try:
            os.rename(image, hidden)
        except FileNotFoundError:  # another program removed it
            return
        self._place(hidden, record)

    def _place(self, hidden: Path, record: Mapping[str, Any]) -> None:
        """Move a file to its target; rename it back if it is another image, or if it cannot be moved."""
        image = Path(record["image"])
        if file_state(str(hidden)) != recorded_state(record):
            _first_free(hidden, _numbered(image))
            return
        target = self.folder / MOVED_FOLDERS["error" in record] / f"{record['name']}{image.suffix}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _first_free(hidden, _numbered(target))
        except OSError:
            _first_free(hidden, _numbered(image))
            raise


@contextlib.contextmanager
def _warning(image: str, participle: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        warn_of_file(participle, image, f"the file could not be {participle} ({error}).")


def is_own(name: str) -> bool:
    """Return whether a file name is that of a mark, or of an image on its way to `done/` or `failed/`."""
    return _OWN in name


def _mark(record: Mapping[str, Any]) -> None:
    image = Path(record["image"])
    if file_state(str(image)) != recorded_state(record):  # removed, or replaced by a new image
        return
    mark, text = image.with_name(image.name + _MARK), json.dumps(record, indent=2) + "\n"
    with contextlib.suppress(OSError):
        if mark.read_bytes() == text.encode():
            return
    with atomic_file(mark) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def _leftovers(
    watched: str | os.PathLike, exclude: Iterable[str | os.PathLike]
) -> tuple[set[str], dict[tuple[int, str], Path]]:
    """Return paths of present files, and (sequence number, path) -> hidden file of a move that was interrupted."""
    watched, present, moving = os.path.abspath(watched), set(), {}
    for here, content in walk_folders(watched, exclude, LeftOut()):
        folder = os.path.join(watched, here) if here else watched
        present.update(os.path.join(folder, name) for name in content.files)
        for name in content.hidden:
            if match := _HIDDEN.fullmatch(name):
                moving[int(match[1]), os.path.join(folder, match[2])] = Path(folder, name)
    return present, moving


def _numbered(path: Path) -> Iterator[Path]:
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    return itertools.chain([path], numbered)


def _first_free(source: Path, targets: Iterable[Path]) -> None:
    """Move a file to the first of the targets that does not exist."""
    for target in targets:
        with contextlib.suppress(FileExistsError):
            _move_to_free(source, target)
            return


def _move_to_free(source: Path, target: Path) -> None:
    """
    Move a file, never over another one.

    Raises:
        FileExistsError: the target is another file.
    """
    if os.path.exists(target) and os.path.samefile(source, target) and not source.is_symlink():
        os.unlink(source)  # an earlier process was killed between the two calls below
        return
    if not source.is_symlink():
        try:
            os.link(source, target)
            os.unlink(source)
            return
        except FileExistsError:
            raise
        except OSError:  # another disk, or a file system without links
            pass
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    try:
        with atomic_file(target) as copy:
            shutil.copy2(source, copy)
    except OSError:
        os.unlink(target)
        raise
    os.unlink(source)
