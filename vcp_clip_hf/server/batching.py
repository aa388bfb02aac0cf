"""A queue that computes the requests of many clients in batches, with one engine.

One worker thread calls the engine. While the engine is idle, a request waits at most `max_wait_ms` for others. While
the engine computes, new requests wait in the queue, so that batches grow with the load.
"""

import asyncio
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from .engine import SegmentationEngine
from .request import SegmentationRequest


__all__ = ["BatchReport", "BatchingQueue", "QueueFull", "QueueStatistics", "QueueStopped"]

logger = logging.getLogger(__name__)


class QueueFull(RuntimeError):
    """
    The queue is full.

    Attributes:
        retry_after (`int`): seconds after which a place is expected, 1 or more, for the header `Retry-After`.
    """

    def __init__(self, waiting: int, retry_after: int):
        super().__init__(f"{waiting} requests are waiting, and no more are accepted; try again in {retry_after} s.")
        self.retry_after = retry_after


class QueueStopped(RuntimeError):
    """The queue accepts no requests, because the server is stopping."""


@dataclass(frozen=True)
class BatchReport:
    """
    One batch, for histograms.

    Args:
        size (`int`): number of requests.
        failed (`int`): number of those whose answer is an exception.
        seconds (`float`): time of the engine.
        waits (`tuple[float, ...]`): for each request, the seconds from acceptance to the start of the batch.
    """

    size: int
    failed: int
    seconds: float
    waits: tuple[float, ...]


@dataclass(frozen=True)
class QueueStatistics:
    """
    Counts since the start.

    Args:
        waiting (`int`): requests that wait now.
        running (`int`): requests that the engine computes now.
        accepted, finished, failed, refused, dropped (`int`): requests that were accepted; answered, with a result or
            an exception; answered with an exception; refused because the queue was full; dropped because their client
            had disconnected before they were computed.
        batches (`dict[int, int]`): size of a batch -> number of batches.
        engine_seconds (`float`): time that the engine computed.
    """

    waiting: int = 0
    running: int = 0
    accepted: int = 0
    finished: int = 0
    failed: int = 0
    refused: int = 0
    dropped: int = 0
    batches: dict[int, int] = field(default_factory=dict)
    engine_seconds: float = 0.0


@dataclass(eq=False)
class _Entry:
    """A request, its future answer, and the time of its acceptance."""

    request: SegmentationRequest
    future: Future
    since: float


class BatchingQueue:
    """
    A bounded queue before an engine. It may be used from any thread, and from asyncio.

    Args:
        engine ([`SegmentationEngine`]): engine; one worker thread of the queue calls its `segment`.
        max_batch_size (`int`, *optional*, defaults to 8): maximum number of requests in a batch.
        max_wait_ms (`float`, *optional*, defaults to 5): milliseconds that a request waits for others at most while
            the engine is idle.
        max_waiting (`int`, *optional*, defaults to 64): maximum number of requests that wait.
        on_batch (`Callable[[BatchReport], None]`, *optional*): called in the worker thread after each batch.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        engine: SegmentationEngine,
        max_batch_size: int = 8,
        max_wait_ms: float = 5,
        max_waiting: int = 64,
        on_batch: Callable[[BatchReport], None] | None = None,
    ):
        for name, value in (("max_batch_size", max_batch_size), ("max_waiting", max_waiting)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number, 1 or more.")
        if not 0 <= max_wait_ms < math.inf:
            raise ValueError(f"max_wait_ms={max_wait_ms!r} must be 0 or more milliseconds.")
        self._engine, self._on_batch = engine, on_batch
        self._max_batch_size, self._max_waiting = max_batch_size, max_waiting
        self._max_wait = max_wait_ms / 1000
        self._entries: deque[_Entry] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._counts: Counter[str] = Counter()
        self._batches: Counter[int] = Counter()
        self._running, self._engine_seconds, self._seconds_each = 0, 0.0, 0.0
        self._worker = threading.Thread(target=self._work, name="vcp-clip-engine", daemon=True)
        self._worker.start()

    # --- callers --------------------------------------------------------------------------------------------------

    def accept(self, request: SegmentationRequest) -> Future:
        """
        Accept a request.

        Args:
            request ([`SegmentationRequest`]): request.

        Returns:
            `concurrent.futures.Future` of the result; `cancel` drops a request that is not computed yet.

        Raises:
            QueueFull: `max_waiting` requests are waiting.
            QueueStopped: `stop` was called.
        """
        with self._changed:
            if self._stopping:
                raise QueueStopped("The server is stopping and accepts no further requests.")
            if len(self._entries) >= self._max_waiting:
                self._drop_cancelled()
            if len(self._entries) >= self._max_waiting:
                self._counts["refused"] += 1
                expected = math.ceil((len(self._entries) + self._running) * self._seconds_each)
                raise QueueFull(len(self._entries), max(1, expected))
            entry = _Entry(request, Future(), time.monotonic())
            self._entries.append(entry)
            self._counts["accepted"] += 1
            self._changed.notify_all()
            return entry.future

    async def submit(self, request: SegmentationRequest) -> dict[str, Any]:
        """
        Answer a request. If the calling task is cancelled before the request is computed, the request is dropped.

        Args:
            request ([`SegmentationRequest`]): request.

        Returns:
            `dict`: the engine's result.

        Raises:
            QueueFull, QueueStopped: the request was not accepted.
            Exception: the exception that the engine has given for this request.
        """
        return await asyncio.wrap_future(self.accept(request))

    def submit_blocking(self, request: SegmentationRequest, timeout: float | None = None) -> dict[str, Any]:
        """
        Answer a request, for callers without asyncio.

        Args:
            request ([`SegmentationRequest`]): request.
            timeout (`float`, *optional*): seconds to wait for the answer.

        Returns:
            `dict`: the engine's result.

        Raises:
            TimeoutError: no answer in time; the request is dropped if it is not computed yet.
            QueueFull, QueueStopped: the request was not accepted.
            Exception: the exception that the engine has given for this request.
        """
        future = self.accept(request)
        try:
            return future.result(timeout)
        finally:
            future.cancel()

    def statistics(self) -> QueueStatistics:
        """Return the counts since the start."""
        with self._changed:
            counts = {name: self._counts[name] for name in ("accepted", "finished", "failed", "refused", "dropped")}
            more = {"batches": dict(self._batches), "engine_seconds": self._engine_seconds}
            return QueueStatistics(len(self._entries), self._running, **counts, **more)

    def stop(self, drain: bool = True, timeout: float | None = None) -> bool:
        """
        Stop. No request is accepted from now on. May be called more than once.

        Args:
            drain (`bool`, *optional*, defaults to `True`): whether waiting requests are answered; otherwise they end
                with [`QueueStopped`]. A batch that is computed now is finished in any case.
            timeout (`float`, *optional*): seconds to wait for the end of the worker thread.

        Returns:
            `bool`: whether every accepted request has an answer.
        """
        with self._changed:
            self._stopping = True
            abandoned = [] if drain else list(self._entries)
            if not drain:
                self._entries.clear()
            self._changed.notify_all()
        for entry in abandoned:
            if entry.future.set_running_or_notify_cancel():
                entry.future.set_exception(QueueStopped("The server stopped before this request was computed."))
        self._worker.join(timeout)
        return not self._worker.is_alive()

    # --- the worker thread ------------------------------------------------------------------------------------------

    def _work(self) -> None:
        # a function of its own: its local variables, which hold images, must not live while the queue is empty
        while self._answer_next():
            pass

    def _answer_next(self) -> bool:
        """Answer one batch; return False after the last one."""
        batch = self._next_batch()
        if not batch:
            return batch is not None
        begin = time.monotonic()
        answers = self._answers([entry.request for entry in batch])
        seconds = time.monotonic() - begin
        failed = sum(isinstance(answer, BaseException) for answer in answers)
        report = BatchReport(len(batch), failed, seconds, tuple(begin - entry.since for entry in batch))
        self._count(report)
        for entry, answer in zip(batch, answers, strict=True):
            if isinstance(answer, BaseException):
                entry.future.set_exception(answer)
            else:
                entry.future.set_result(answer)
        return True

    def _next_batch(self) -> list[_Entry] | None:
        """Wait for requests and collect a batch; return None at the end."""
        with self._changed:
            while not self._entries:
                if self._stopping:
                    return None
                self._changed.wait()
            latest = self._entries[0].since + self._max_wait
            while len(self._entries) < self._max_batch_size and not self._stopping:
                left = latest - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            batch: list[_Entry] = []
            while self._entries and len(batch) < self._max_batch_size:
                entry = self._entries.popleft()
                if entry.future.set_running_or_notify_cancel():
                    batch.append(entry)
                else:
                    self._counts["dropped"] += 1
            self._running = len(batch)
            return batch

    def _answers(self, requests: list[SegmentationRequest]) -> list[dict[str, Any] | Exception]:
        """Return the engine's results; if the engine raises, find the request that causes the exception."""
        try:
            answers = self._engine.segment(requests)
            if len(answers) != len(requests):
                raise RuntimeError(f"The engine returned {len(answers)} results for {len(requests)} requests.")
            return answers
        except BaseException as error:  # also SystemExit, which would end the thread
            if len(requests) == 1:
                return [error if isinstance(error, Exception) else RuntimeError(f"The engine raised {error!r}.")]
        return [answer for request in requests for answer in self._answers([request])]

    def _count(self, report: BatchReport) -> None:
        with self._changed:
            self._running = 0
            self._counts["finished"] += report.size
            self._counts["failed"] += report.failed
            self._batches[report.size] += 1
            self._engine_seconds += report.seconds
            each = report.seconds / report.size
            self._seconds_each = each if not self._seconds_each else 0.8 * self._seconds_each + 0.2 * each
        if self._on_batch is not None:
            try:
                self._on_batch(report)
            except Exception:
                logger.exception("The function on_batch failed.")

    def _drop_cancelled(self) -> None:
        kept = [entry for entry in self._entries if not entry.future.cancelled()]
        self._counts["dropped"] += len(self._entries) - len(kept)
        self._entries = deque(kept)
