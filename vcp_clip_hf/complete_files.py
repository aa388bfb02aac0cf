"""Images that arrive in a folder: find those that are complete, and their order.

A file is due when its size and its modification time have been the same for a settle time. Only decoding shows whether
it is complete: a file that cannot be decoded is tried again, until it has been unchanged for a longer time.

A renamed file is due after `_GRACE_SECONDS`, because its content was written before the rename. A rename is recognized
by the notification that the new name was added, together with a notification that another name was deleted, or with an
inode that changed after the content.

A replaced file has another size or modification time, and counts as a new image.
"""

import heapq
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers.utils import logging

from .finished_pictures import is_own
from .image_files import IMAGE_SUFFIXES, LeftOut, is_hidden, suffix_of, walk_images
from .prediction_records import file_state


__all__ = ["ArrivingFiles", "WaitingFile"]

logger = logging.get_logger(__name__)

# Seconds in which a notification may arrive that a renamed file is still being written
_GRACE_SECONDS = 0.1


@dataclass
class WaitingFile:
    """
    An image file that has no record yet.

    Args:
        path (`str`): absolute path.
        relative (`str`): path below the watched folder, with "/".
        state (`dict[str, int]`): `bytes` and `mtime_ns`; empty for a link without a target.
        first_seen (`float`), since (`float`): times (`time.monotonic`) at which file and state were first seen.
        due (`float`): time from which the file may be read, on the same clock.
        name (`str`, *optional*): name of the output files, given when the file is first read.
    """

    path: str
    relative: str
    state: dict[str, int]
    first_seen: float
    since: float
    due: float
    name: str | None = None

    @property
    def order(self) -> tuple[int, str]:
        """Return the sort key for the order of arrival: modification time, then name."""
        return self.state.get("mtime_ns", 0), self.relative


class ArrivingFiles:
    """
    The images of a folder that wait to be segmented.

    Args:
        folder (`str` or `os.PathLike`): folder to watch, with all folders inside.
        exclude (iterable of `str` or `os.PathLike`): folders that are not read, see [`find_images`].
        is_recorded (`Callable[[str, dict], bool]`): whether a file, with this state, has a record.
        settle_seconds (`float`): time for which a file must be unchanged before it is read.
        give_up_seconds (`float`): time for which a file must be unchanged before it counts as damaged.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        exclude: Iterable[str | os.PathLike],
        is_recorded: Callable[[str, Mapping[str, int]], bool],
        settle_seconds: float,
        give_up_seconds: float,
    ):
        self.folder, self.exclude, self.is_recorded = os.path.abspath(folder), list(exclude), is_recorded
        self.settle_seconds, self.give_up_seconds = settle_seconds, max(give_up_seconds, settle_seconds)
        self.waiting: dict[str, WaitingFile] = {}
        # States of present files with a record, so that a search need not look each of them up
        self.recorded: dict[str, dict[str, int]] = {}
        self.vanished = 0
        # Whether files that were not seen before are added
        self.accepts_new = True
        self._folders: set[str] = set()
        self._warned: set[str] = set()

    def search(self) -> None:
        """Read the whole folder: notifications may be lost, and network drives send none."""
        left_out, folders, present = LeftOut(), set(), {}
        for here, names in walk_images(self.folder, self.exclude, left_out):
            parent = os.path.join(self.folder, here) if here else self.folder
            folders.add(parent)
            for name in names:
                path = os.path.join(parent, name)
                present[path] = file_state(path)
        now = time.monotonic()  # one time for all files, so that they are sorted by the order of arrival
        for path, state in present.items():
            self._compare(path, state, now)
        self._warn_once(left_out)
        if self.folder not in folders:  # such as a disconnected network drive, whose files are not removed
            return
        self._folders = folders
        for path in (self.waiting.keys() | self.recorded.keys()) - present.keys():
            self.remove(path)

    def notice(self, changes: Mapping[str, set[str]]) -> bool:
        """
        Look at the files that notifications name.

        Args:
            changes (`Mapping[str, set[str]]`): path -> `"added"`, `"modified"`, `"deleted"`.

        Returns:
            `bool`: whether the folder has to be searched, because folders were added or removed.
        """
        renamed = any("deleted" in kinds and self._was_temporary(path) for path, kinds in changes.items())
        needs_search = False
        for path, kinds in changes.items():
            parent, name = os.path.split(path)
            if is_hidden(name) or path == self.folder:
                continue
            if parent not in self._folders or path in self._folders or os.path.isdir(path):
                needs_search = needs_search or not self._lies_hidden(path)
            elif suffix_of(name) not in IMAGE_SUFFIXES:
                continue
            else:
                self.look(path)
                self._set_due(path, kinds, renamed)
        return needs_search

    def look(self, path: str) -> None:
        """Compare a file with its known state; a new or changed file has to wait."""
        self._compare(path, file_state(path), time.monotonic())

    def _compare(self, path: str, state: dict[str, int], now: float) -> None:
        file = self.waiting.get(path)
        if file is not None and file.state == state:
            return
        if not state and not os.path.lexists(path):
            self.remove(path)
            return
        if self.recorded.get(path) == state or self.is_recorded(path, state):
            self.recorded[path] = state
            self.waiting.pop(path, None)
            return
        if file is not None:
            file.state, file.since, file.due = state, now, now + self.settle_seconds
        elif self.accepts_new:
            relative = os.path.relpath(path, self.folder).replace(os.sep, "/")
            self.waiting[path] = WaitingFile(path, relative, state, now, now, now + self.settle_seconds)

    def ready(self, limit: int) -> list[WaitingFile]:
        """Return up to `limit` files that are due, in the order of arrival."""
        now = time.monotonic()
        due = [file for file in self.waiting.values() if file.due <= now]
        chosen = heapq.nsmallest(limit, due, key=lambda file: file.order)
        for file in chosen:
            self.look(file.path)
        return [file for file in chosen if file.due <= now and file.path in self.waiting]

    def next_due(self) -> float | None:
        """Return the time at which the next file is due, on `time.monotonic`; `None` without waiting files."""
        return min((file.due for file in self.waiting.values()), default=None)

    def lag_seconds(self) -> float:
        """Return for how long the oldest file has been waiting; 0 without waiting files."""
        oldest = min((file.first_seen for file in self.waiting.values()), default=None)
        return 0.0 if oldest is None else time.monotonic() - oldest

    def try_later(self, file: WaitingFile) -> bool:
        """
        Schedule another attempt for a file that could not be decoded.

        Returns:
            `bool`: `False` if the file has been unchanged for `give_up_seconds`, so that it counts as damaged.
        """
        now = time.monotonic()
        unchanged = now - file.since
        if unchanged >= self.give_up_seconds:
            return False
        file.due = min(now + max(self.settle_seconds, unchanged / 2), file.since + self.give_up_seconds)
        return True

    def record(self, file: WaitingFile) -> None:
        """Note that a file has a record now."""
        self.waiting.pop(file.path, None)
        self.recorded[file.path] = file.state

    def remove(self, path: str) -> None:
        """Note that a file was removed. If it was due or had been read, a warning names it."""
        self.recorded.pop(path, None)
        file = self.waiting.pop(path, None)
        if file is not None and (file.due <= time.monotonic() or file.name is not None):
            self.vanished += 1
            logger.warning("%s: removed before it was read; it has no record.", path)

    def _set_due(self, path: str, kinds: set[str], renamed: bool) -> None:
        file, now = self.waiting.get(path), time.monotonic()
        if file is None:
            return
        if "modified" in kinds:  # also within the resolution of the modification time
            file.since, file.due = now, now + self.settle_seconds
        elif kinds == {"added"} and file.state.get("bytes") and (renamed or _changed_after_writing(path)):
            file.due = min(file.due, now + _GRACE_SECONDS)

    def _was_temporary(self, path: str) -> bool:
        """Return whether a deleted name may have been that of a new file, and not of a mark or a moved image."""
        return path not in self.recorded and not is_own(os.path.basename(path)) and not os.path.lexists(path)

    def _lies_hidden(self, path: str) -> bool:
        return any(map(is_hidden, Path(os.path.relpath(path, self.folder)).parts))

    def _warn_once(self, left_out: LeftOut) -> None:
        warnings = dict.fromkeys(left_out.unreadable, "is a folder that cannot be read")
        if left_out.pictures:
            warnings.setdefault("", f"has images that are not read ({left_out})")
        for folder in warnings.keys() - self._warned:
            self._warned.add(folder)
            logger.warning("%s %s.", os.path.join(self.folder, folder), warnings[folder])


def _changed_after_writing(path: str) -> bool:
    """Return whether the inode changed after the content, as after a rename; Windows has no such time."""
    try:
        state = os.stat(path)
    except OSError:
        return False
    return os.name != "nt" and state.st_ctime_ns > state.st_mtime_ns
