"""Watch a folder: segment each image once when it is complete, record it, and post the result.

For each image, in this order: the outputs are written, the record is appended to `predictions.jsonl`, the file is
marked or moved, and the record is posted. An image with a record is done, so that a kill at any time neither loses nor
repeats an image.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .complete_files import ArrivingFiles, WaitingFile
from .dead_letters import DEAD_LETTERS, count_dead_letters
from .finished_pictures import MOVED_FOLDERS, FinishedPictures
from .folder_events import FolderEvents
from .input_images import InputImage
from .interruption import stop_on_signal
from .picture_writer import PICTURE_FOLDERS, PictureWriter, write_in_order
from .pipeline_anomaly_segmentation import AnomalySegmentationPipeline
from .prediction import process_state
from .prediction_records import file_state
from .run_settings import RunSettings
from .watch_journal import WatchJournal
from .webhook import Webhook
from .webhook_outbox import WebhookOutbox


__all__ = ["WatchSummary", "WatchTiming", "watch_folder"]

logger = logging.get_logger(__name__)

_LOCK_FILE = ".watch.lock"
_OTHER_SETTINGS = "Use another output folder."
_STOPPING = "Stopping after the current batch. Run the same command again to continue."
_AWAY = "the watched folder cannot be reached"
# Longest time between two checks for signals, and shortest time between two searches, in seconds
_LONGEST_WAIT, _SHORTEST_PAUSE = 0.25, 0.2
# A search of a large folder takes at most a sixth of the time
_PAUSE_PER_SEARCH = 5.0
# Seconds for posting the last results of a run that was stopped, and of a run that ends by itself
_LAST_POSTS_SECONDS = {False: 2.0, True: 30.0}


@dataclass(frozen=True)
class WatchTiming:
    """
    Times of a watch.

    Args:
        settle_seconds (`float`): time for which a file must be unchanged before it is read.
        give_up_seconds (`float`): time for which a file that cannot be read must be unchanged to count as damaged.
        poll_seconds (`float`): time between two searches of the whole folder, which find what notifications missed.
        retry_seconds (`float`): time until the next attempt after a full disk, or if the folder cannot be reached.
    """

    settle_seconds: float = 1.0
    give_up_seconds: float = 30.0
    poll_seconds: float = 5.0
    retry_seconds: float = 5.0


@dataclass
class WatchSummary:
    """
    Counts of a watch, since its start.

    Args:
        segmented (`int`), failed (`int`): images with a result, and with an error, in the records.
        vanished (`int`): images that were removed before they were read; they have no record.
        waiting (`int`): images that are present and have no record yet.
        lag_seconds (`float`): for how long the oldest of them has been waiting.
        posted (`int`): results that were delivered to the webhook.
        unposted (`int`): results that wait for the webhook.
        dead_letters (`int`): results that could not be delivered.
        problem (`str`): current problem with the folder, the disk or the webhook; "" if there is none.
    """

    segmented: int = 0
    failed: int = 0
    vanished: int = 0
    waiting: int = 0
    lag_seconds: float = 0.0
    posted: int = 0
    unposted: int = 0
    dead_letters: int = 0
    problem: str = ""

    def describe(self) -> str:
        """Return the counts in one line."""
        parts = [f"{self.segmented} segmented", f"{self.failed} failed"]
        parts += [f"{self.vanished} removed before they were read"] if self.vanished else []
        parts += [f"{self.waiting} waiting (lag {self.lag_seconds:.1f} s)" if self.waiting else "0 waiting"]
        counts = ((self.posted, "posted"), (self.unposted, "to post"), (self.dead_letters, "dead letters"))
        parts += [f"{count} {name}" for count, name in counts if count]
        return ", ".join(parts) + (f"; {self.problem}" if self.problem else "")


def watch_folder(
    pipe: AnomalySegmentationPipeline,
    folder: str | os.PathLike,
    output_dir: str | os.PathLike,
    save_maps: str | None = "png",
    save_masks: bool = True,
    save_overlays: bool = True,
    batch_size: int = 8,
    timing: WatchTiming | None = None,
    when_done: str = "keep",
    move_to: str | os.PathLike | None = None,
    webhook: Webhook | None = None,
    once: bool = False,
    force_polling: bool = False,
    report: Callable[[WatchSummary], None] = lambda summary: None,
    **options: Any,
) -> WatchSummary:
    """
    Segment the images of a folder, those that exist at the start and those that arrive later, until SIGINT or SIGTERM.

    Args:
        pipe ([`AnomalySegmentationPipeline`]): the pipeline to run.
        folder (`str` or `os.PathLike`): folder to watch, with all folders inside.
        output_dir (`str` or `os.PathLike`): folder to write; only one watch at a time may use it.
        save_maps, save_masks, save_overlays: see [`predict_files`].
        batch_size (`int`): largest number of images in one forward pass; batches need not be full.
        timing ([`WatchTiming`], *optional*): when a file is complete, and how often the folder is searched.
        when_done (`"keep"`, `"mark"` or `"move"`): what happens to recorded files, see [`FinishedPictures`].
        move_to (`str` or `os.PathLike`, *optional*, defaults to `output_dir`):
            Folder of `done/` and `failed/`; not in the watched folder, except in `output_dir`.
        webhook ([`Webhook`], *optional*): receiver of the records.
        once (`bool`): whether to end after the images that exist at the start.
        force_polling (`bool`): whether watchfiles compares the folder's content instead of using notifications.
        report (`Callable[[WatchSummary], None]`, *optional*): function that is called with the current counts, several
            times per second while nothing is computed.
        options: further arguments of the pipeline's call.

    Returns:
        [`WatchSummary`] at the end.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the output folder has results of other settings, or another watch writes to it; or an argument is
            invalid.
        ImportError: the extra `watch` is not installed.
        OSError: with `once`, the disk cannot be written. Without `once`, writing is tried again.
    """
    folder, output_dir = Path(os.path.abspath(folder)), Path(output_dir)
    move_to = output_dir if move_to is None else Path(move_to)
    _check_arguments(folder, output_dir, move_to, save_maps)
    own = [*PICTURE_FOLDERS.values(), *MOVED_FOLDERS.values()]
    exclude = [output_dir, *(output_dir / name for name in own)]
    finished = FinishedPictures(when_done, move_to)
    timing = timing or WatchTiming()
    settings = RunSettings.of(pipe, options).watched()
    pipe.check_call(**options)
    options = {**options, "on_error": "return", "output_image": save_overlays, "batch_size": batch_size}

    with ExitStack() as stack:
        output_dir.mkdir(parents=True, exist_ok=True)
        stack.enter_context(_only_watch(output_dir))
        journal = WatchJournal(output_dir)
        stack.callback(journal.close)
        if journal.size:
            settings.check_folder(output_dir, _OTHER_SETTINGS)
        settings.write(output_dir)
        outbox = None if webhook is None else WebhookOutbox(output_dir, journal, webhook)
        arriving = ArrivingFiles(folder, exclude, journal.has, timing.settle_seconds, timing.give_up_seconds)
        writer = PictureWriter(output_dir, save_maps, save_masks, save_overlays)
        watch = _Watch(pipe, options, writer, journal, arriving, finished, outbox, timing, once)
        _remind_of_dead_letters(output_dir)
        try:
            finished.repair(folder, exclude, (record for _, record in journal.records()))
            events = None if once else stack.enter_context(FolderEvents(folder, exclude, force_polling))
            with stop_on_signal(_STOPPING, raise_at_once=False) as signals:
                watch.run(events, signals, report)
        finally:
            if outbox is not None:
                outbox.close(_LAST_POSTS_SECONDS[once])
    return watch.summary()


def _check_arguments(folder: Path, output_dir: Path, move_to: Path, save_maps: str | None) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{str(folder)!r} is not a folder that can be watched.")
    if process_state().num_processes > 1:
        raise ValueError("A folder is watched by one process. Start `vcp-clip watch` without `accelerate launch`.")
    if save_maps not in ("png", "npy", None):
        raise ValueError(f"save_maps={save_maps!r} must be 'png', 'npy' or None.")
    if _contains(folder, move_to) and not _contains(output_dir, move_to):
        raise ValueError(f"Images cannot be moved to {str(move_to)!r}: it lies in the watched folder.")


def _contains(folder: Path, path: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _remind_of_dead_letters(output_dir: Path) -> None:
    count = count_dead_letters(output_dir)
    if count:
        logger.warning(
            "%s has %d result(s) that could not be delivered to the webhook. --resend-dead-letters posts them again.",
            output_dir / DEAD_LETTERS,
            count,
        )


@contextmanager
def _only_watch(output_dir: Path) -> Iterator[None]:
    """Hold a lock on the output folder; the operating system releases it when the process ends, also after a kill."""
    try:
        import filelock
    except ImportError as error:
        raise ImportError('Watching a folder needs filelock: pip install "vcp-clip-hf[watch]"') from error
    try:
        with filelock.FileLock(output_dir / _LOCK_FILE, timeout=0):
            yield
    except filelock.Timeout:
        raise ValueError(f"Another `vcp-clip watch` writes to {output_dir}. Use another output folder.") from None


@dataclass
class _Watch:
    """The loop of a watch; the attributes are its parts, see [`watch_folder`]."""

    pipe: AnomalySegmentationPipeline
    options: Mapping[str, Any]
    writer: PictureWriter
    journal: WatchJournal
    arriving: ArrivingFiles
    finished: FinishedPictures
    outbox: WebhookOutbox | None
    timing: WatchTiming
    once: bool
    segmented: int = 0
    failed: int = 0
    problem: str = ""
    held_until: float = 0.0
    next_search: float = 0.0
    earliest_search: float = 0.0

    def run(self, events: FolderEvents | None, signals: list[int], report: Callable[[WatchSummary], None]) -> None:
        """Segment due images in batches, until a signal arrives or, with `once`, no image is left."""
        while not signals:
            if time.monotonic() >= self.next_search:
                self._search()
            batch = self._batch()
            if batch:
                self._take(batch)
            elif self.once and not self.arriving.waiting:
                break
            report(self.summary())
            seconds = 0.0 if batch else self._seconds_to_wait()
            if events is None:
                time.sleep(seconds)
            elif self.arriving.notice(events.wait(seconds)):
                self.next_search = min(self.next_search, self.earliest_search)

    def summary(self) -> WatchSummary:
        """Return the counts."""
        waiting = len(self.arriving.waiting)
        summary = WatchSummary(self.segmented, self.failed, self.arriving.vanished, waiting)
        summary.lag_seconds, summary.problem = self.arriving.lag_seconds(), self.problem
        if self.outbox is not None:
            summary.posted, summary.unposted = self.outbox.posted, self.outbox.waiting
            problem = self.outbox.problem
            summary.problem = summary.problem or (f"the webhook cannot be reached ({problem})" if problem else "")
            summary.dead_letters = self.outbox.dead
        return summary

    def _batch(self) -> list[WaitingFile]:
        if time.monotonic() < self.held_until:
            return []
        if not os.path.isdir(self.arriving.folder):  # such as a disconnected network drive
            self._hold(_AWAY)
            return []
        if self.problem == _AWAY:
            self.problem = ""
        return self.arriving.ready(self.options["batch_size"])

    def _hold(self, problem: str) -> None:
        if not self.problem:
            logger.warning("%s. Images are kept waiting.", problem[0].upper() + problem[1:])
        self.problem, self.held_until = problem, time.monotonic() + self.timing.retry_seconds

    def _search(self) -> None:
        started = time.monotonic()
        self.arriving.search()
        now = time.monotonic()
        pause = _PAUSE_PER_SEARCH * (now - started)
        self.earliest_search = now + max(_SHORTEST_PAUSE, pause)
        self.next_search = now + max(self.timing.poll_seconds, pause)
        if self.once:  # later searches only look for removed and replaced files
            self.arriving.accepts_new = False

    def _seconds_to_wait(self) -> float:
        due = self.arriving.next_due()
        ends = [self.next_search] if due is None else [self.next_search, max(due, self.held_until)]
        return max(0.001, min(_LONGEST_WAIT, *(end - time.monotonic() for end in ends)))

    def _take(self, batch: list[WaitingFile]) -> None:
        """Segment and record images. If the disk is full, images without a record stay in the queue."""
        for file in batch:
            file.name = file.name or self.journal.names.new(file.relative)
        self.pipe.call_count = 0  # otherwise, transformers warns that the pipeline should be called with a dataset
        results = self.pipe([file.path for file in batch], **self.options)
        files = []
        for file, result in zip(batch, results, strict=True):
            if self._is_final(file, result):
                files.append((file, result))
        records = []
        try:
            for record in self._written(files):
                records.append(record)
        except OSError as error:
            if self.once:
                raise
            self._hold(f"results cannot be written ({error.strerror or error})")
        else:
            self.problem = ""
        finally:
            self._pass_on(records)

    def _is_final(self, file: WaitingFile, result: Mapping[str, Any]) -> bool:
        """Return whether a result belongs to the file as it is, or to a file that was removed after it was read."""
        if "error" in result and not os.path.lexists(file.path):
            self.arriving.remove(file.path)
            return False
        state = file_state(file.path)
        if state and state != file.state:  # it was still being written
            self.arriving.look(file.path)
            return False
        return "error" not in result or not self.arriving.try_later(file)

    def _written(self, files: list[tuple[WaitingFile, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
        pairs = ((InputImage(file.path, file.name), result) for file, result in files)
        written = write_in_order(self.writer, pairs, ahead=len(files))
        for (file, _), record in zip(files, written, strict=True):
            record = self.journal.append({**record, **file.state})
            self.arriving.record(file)
            yield record

    def _pass_on(self, records: list[dict[str, Any]]) -> None:
        if not records:
            return
        self.journal.sync()
        failed = sum("error" in record for record in records)
        self.failed += failed
        self.segmented += len(records) - failed
        for record in records:
            self.finished(record)
        if self.outbox is not None:
            self.outbox.wake()
