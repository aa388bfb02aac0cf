"""Read a camera or a network stream with bounded latency: drop old frames, and reopen lost connections."""

import queue
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from fractions import Fraction

from transformers.utils import logging

from .frames import FrameChoice, VideoFrame, decode_frames, to_picture
from .readers import FrameReader
from .sources import VideoError, VideoSource, open_video


__all__ = ["LiveReader"]

logger = logging.get_logger(__name__)

# Seconds before a lost connection is opened again; doubled after each failure
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0


class LiveReader(FrameReader):
    """
    Reads a live source. When the queue is full, its oldest frame is dropped and counted.

    A connection that is lost, ends, or gives no data for a third of `give_up` is opened again, after a pause that
    doubles from 0.5 to 10 seconds. Reading ends with an error after `give_up` seconds without any frame, or at once if
    no frame has arrived yet and the connection fails for a permanent reason, such as a wrong password.

    Args:
        source, choice, waiting_frames, input_options: see [`FrameReader`].
        give_up (`float`): seconds without a frame after which to end.
    """

    def __init__(
        self,
        source: VideoSource,
        choice: FrameChoice,
        waiting_frames: int,
        input_options: Mapping[str, str] | None = None,
        give_up: float = 30.0,
    ):
        super().__init__(source, choice, waiting_frames, input_options)
        self.give_up = give_up
        self._read_timeout = max(0.5, give_up / 3)
        self._started = self._last_frame = time.monotonic()
        self._index = 0

    def _read(self) -> None:
        self._started = self._last_frame = time.monotonic()
        pause, connection = _FIRST_PAUSE, 0
        while not self._stop.is_set():
            before = self._index
            try:
                self._read_connection(connection)
                # Some formats do not distinguish the end of a stream from a timeout
                reason = f"{self.source.name!r} ended, or sent nothing for {self._read_timeout:.1f} seconds."
            except VideoError as error:
                if not self._index and error.lasting:
                    raise
                reason = str(error)
            self.problem = reason
            if self._stop.is_set():
                return
            if self._index > before:
                pause, connection = _FIRST_PAUSE, connection + 1
            left = self.give_up - (time.monotonic() - self._last_frame)
            if left <= 0:
                raise VideoError(f"No frame arrived for {self.give_up:g} seconds. {reason}")
            logger.warning("%s Connecting again in %.1f seconds.", reason, min(pause, left))
            self._stop.wait(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _read_connection(self, number: int) -> None:
        """Read one connection until it ends."""
        left = max(0.1, self.give_up - (time.monotonic() - self._last_frame))
        with open_video(self.source, self.input_options, left, self._read_timeout) as container:
            if number > self.reconnects:
                self.reconnects = number
            start = Fraction(round(time.monotonic() - self._started, 6)).limit_denominator(1_000_000)
            for frame, seconds in decode_frames(self.source, container, start):
                if self._stop.is_set():
                    return
                self._last_frame = time.monotonic()
                if self.choice.takes(self._index, seconds):
                    arrived = datetime.now(timezone.utc)
                    picture = to_picture(frame)
                    self._put(VideoFrame(self._index, float(seconds), picture, arrived, self._last_frame, number))
                self._index += 1

    def _put(self, frame: VideoFrame) -> None:
        while True:
            try:
                return self._queue.put_nowait(frame)
            except queue.Full:
                try:
                    self._queue.get_nowait()
                    self.dropped += 1
                except queue.Empty:  # the other thread has just taken the oldest frame
                    continue
