"""Read a video file in a thread while the model computes, in bounded memory."""

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from types import TracebackType

from .frames import FrameChoice, VideoFrame, decode_frames, to_picture
from .sources import VideoSource, open_video


__all__ = ["POLL_SECONDS", "FileReader", "FrameReader"]

# Time after which a waiting thread checks whether it has to stop
POLL_SECONDS = 0.1
# Longest time to wait for the end of the thread: a read from the network may hang
_LONGEST_JOIN = 0.5


class FrameReader(ABC):
    """
    Decodes chosen frames in a thread, which runs inside the context.

    Args:
        source ([`VideoSource`]): what to read.
        choice ([`FrameChoice`]): which frames are analyzed.
        waiting_frames (`int`): largest number of decoded frames that wait for the model.
        input_options (`Mapping[str, str]`, *optional*): options of FFmpeg, see [`open_video`].

    Attributes:
        error (`Exception`): reason why reading ended early, or `None`.
        problem (`str`): reason why the last connection to a live source failed or ended.
        dropped (`int`): chosen frames that were dropped.
        reconnects (`int`): connections to a live source after the first one.
        expected (`int`): approximate number of chosen frames, or `None` if it is unknown.
    """

    def __init__(
        self,
        source: VideoSource,
        choice: FrameChoice,
        waiting_frames: int,
        input_options: Mapping[str, str] | None = None,
    ):
        self.source, self.choice, self.input_options = source, choice, input_options
        self.error: Exception | None = None
        self.problem = ""
        self.dropped = self.reconnects = 0
        self.expected: int | None = None
        self._queue: queue.Queue[VideoFrame] = queue.Queue(waiting_frames)
        self._stop, self._ended = threading.Event(), threading.Event()
        # A daemon thread, because a read that hangs must not keep the process alive
        self._thread = threading.Thread(target=self._run, name="video reader", daemon=True)

    def __enter__(self) -> "FrameReader":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(_LONGEST_JOIN)

    def _run(self) -> None:
        try:
            self._read()
        except Exception as error:  # raised or recorded by the thread that takes the frames
            self.error = error
        finally:
            self._ended.set()

    @abstractmethod
    def _read(self) -> None:
        """Decode, and put chosen frames into the queue, until `self._stop` is set or the video ends."""

    def batches(
        self, size: int, max_frames: int | None = None, is_over: Callable[[], bool] = lambda: False
    ) -> Iterator[list[VideoFrame]]:
        """
        Yield batches of the frames that are waiting, at least one frame each.

        Args:
            size (`int`): largest number of frames in a batch.
            max_frames (`int`, *optional*): number of frames after which to stop.
            is_over (`Callable[[], bool]`): function that returns whether to stop; called while waiting for frames.
        """
        dropped_before, taken = 0, 0
        while not is_over() and (max_frames is None or taken < max_frames):
            frames = self._take(size if max_frames is None else min(size, max_frames - taken))
            if frames:
                taken += len(frames)
                dropped = self.dropped
                frames[0] = replace(frames[0], dropped=dropped - dropped_before)
                dropped_before = dropped
                yield frames
            elif self._ended.is_set() and self._queue.empty():
                return

    def _take(self, size: int) -> list[VideoFrame]:
        frames = []
        try:
            frames.append(self._queue.get(timeout=POLL_SECONDS))
            while len(frames) < size:
                frames.append(self._queue.get(timeout=self._patience))
        except queue.Empty:
            pass
        return frames

    @property
    def _patience(self) -> float:
        """Return the number of seconds that a batch with at least one frame waits for the next frame."""
        return 0.0


class FileReader(FrameReader):
    """
    Reads a file, or a URL of a file, from its beginning; waits for the model if it is slower.

    Args:
        source, choice, waiting_frames, input_options: see [`FrameReader`].
        done (`Collection[int]`): numbers of frames that are not analyzed again.
        duration (`float`, *optional*): seconds of the video after which to stop.

    Raises:
        OSError, VideoError: the file cannot be opened.
    """

    def __init__(
        self,
        source: VideoSource,
        choice: FrameChoice,
        waiting_frames: int,
        input_options: Mapping[str, str] | None = None,
        done: Collection[int] = (),
        duration: float | None = None,
    ):
        super().__init__(source, choice, waiting_frames, input_options)
        self.done, self.duration = done, duration
        # opened now, so that an unreadable file is an error before the run begins
        with open_video(source, input_options) as container:
            stream = container.streams.video[0]
            seconds = None if container.duration is None else container.duration / 1_000_000
            self.expected = choice.expected(stream.frames, seconds)

    def _read(self) -> None:
        with open_video(self.source, self.input_options) as container:
            for index, (frame, seconds) in enumerate(decode_frames(self.source, container)):
                if self._stop.is_set() or (self.duration is not None and seconds >= self.duration):
                    return
                if self.choice.takes(index, seconds) and index not in self.done:
                    self._put(VideoFrame(index, float(seconds), to_picture(frame), arrived_clock=time.monotonic()))

    def _put(self, frame: VideoFrame) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(frame, timeout=POLL_SECONDS)
            except queue.Full:
                continue

    @property
    def _patience(self) -> float:
        return POLL_SECONDS  # full batches are faster, and the latency of a file does not matter
