"""Notifications of changes in a folder, collected in a thread while images are segmented."""

import os
import queue
import threading
from collections import defaultdict
from collections.abc import Iterable
from types import TracebackType

from transformers.utils import logging

from .image_files import lies_in


__all__ = ["FolderEvents"]

logger = logging.get_logger(__name__)

# Changes are passed on after 20 ms without a further change, and at the latest after 100 ms
_QUIET_MS, _LONGEST_MS = 20, 100
_STOP_MS = 500


class FolderEvents:
    """
    Changes in a folder, collected inside a context.

    If the operating system sends no notifications, [`wait`] returns no changes, and a warning is logged: the caller
    has to search the folder from time to time anyway.

    Args:
        folder (`str` or `os.PathLike`): folder to watch, with all folders inside.
        exclude (iterable of `str` or `os.PathLike`): folders inside whose changes are left out.
        force_polling (`bool`): whether watchfiles compares the folder's content instead of using notifications.

    Raises:
        ImportError: watchfiles is not installed.
    """

    def __init__(self, folder: str | os.PathLike, exclude: Iterable[str | os.PathLike], force_polling: bool = False):
        try:
            import watchfiles
        except ImportError as error:
            raise ImportError('Watching a folder needs watchfiles: pip install "vcp-clip-hf[watch]"') from error
        self._folder, self._exclude, self._force_polling = os.path.abspath(folder), list(exclude), force_polling
        self._watch = watchfiles.watch
        self._found: queue.SimpleQueue[set[tuple[int, str]]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._collect, name="folder-events", daemon=True)

    def __enter__(self) -> "FolderEvents":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=2 * _STOP_MS / 1000)

    def wait(self, seconds: float) -> dict[str, set[str]]:
        """
        Wait for changes, and return all changes since the last call.

        Args:
            seconds (`float`): longest time to wait; with 0, only changes that have already arrived are returned.

        Returns:
            `dict[str, set[str]]`: path -> `"added"`, `"modified"`, `"deleted"`.
        """
        changes: dict[str, set[str]] = defaultdict(set)
        try:
            found = self._found.get(timeout=seconds) if seconds > 0 else self._found.get_nowait()
            while True:
                for change, path in found:
                    changes[path].add(change.name)
                found = self._found.get_nowait()
        except queue.Empty:
            return changes

    def _collect(self) -> None:
        try:
            try:
                self._pass_on(ignore_permission_denied=False)
            except PermissionError:  # of one folder inside
                self._pass_on(ignore_permission_denied=True)
        except Exception as error:  # no notifications here, or too many watched folders (a limit of the system)
            logger.warning("%s: no notifications of changes (%s); it is only searched.", self._folder, error)

    def _pass_on(self, ignore_permission_denied: bool) -> None:
        for changes in self._watch(
            self._folder,
            watch_filter=lambda _, path: not lies_in(path, self._exclude, self._folder),
            debounce=_LONGEST_MS,
            step=_QUIET_MS,
            rust_timeout=_STOP_MS,
            stop_event=self._stop,
            force_polling=self._force_polling or None,
            ignore_permission_denied=ignore_permission_denied,
        ):
            self._found.put(changes)
