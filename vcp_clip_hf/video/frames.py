"""Decode a video stream into chosen frames: time stamps, choice of frames, rotation, broken packets."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from typing import TYPE_CHECKING

from PIL import Image

from .sources import VideoError, VideoSource, import_av


if TYPE_CHECKING:
    import av
    from av.container import InputContainer

__all__ = ["FrameChoice", "StreamTimes", "VideoFrame", "decode_frames", "to_picture"]

# Some formats (Matroska, FLV) round time stamps to whole milliseconds
_ROUNDING = Fraction(1, 1000)
_LONGEST_REORDERING = Fraction(1)
# Default where a stream does not state its frame rate
_DEFAULT_PERIOD = Fraction(1, 25)
_RIGHT_ANGLES = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


@dataclass(frozen=True)
class VideoFrame:
    """
    A frame to analyze.

    Args:
        index (`int`): number of the frame among all frames that were decoded; the first is 0.
        seconds (`float`): time since the first frame of the video; live: since the start of the run.
        picture (`PIL.Image.Image`): the image, mode RGB, rotated as it is to be shown.
        arrived (`datetime`, *optional*): time (UTC) at which a frame of a live source was decoded.
        arrived_clock (`float`): the same on the clock of `time.monotonic`.
        connection (`int`): number of the connection to a live source, starting at 0.
        dropped (`int`): chosen frames that were dropped between the previous frame and this one.
    """

    index: int
    seconds: float
    picture: Image.Image
    arrived: datetime | None = None
    arrived_clock: float = 0.0
    connection: int = 0
    dropped: int = 0


class FrameChoice:
    """
    Chooses every n-th frame, or a number of frames per second.

    With `fps`, the first frame at or after each multiple of `1 / fps` seconds is chosen, so that a video with fewer
    frames per second, or with a pause, gives each of its frames once.

    Args:
        every (`int`, *optional*): choose the frames 0, `every`, 2 `every`, ...
        fps (`float`, *optional*): frames per second to choose. Without both, all frames are chosen.

    Raises:
        ValueError: both are given, or one is out of range.
    """

    def __init__(self, every: int | None = None, fps: float | None = None):
        if every is not None and fps is not None:
            raise ValueError(f"every={every!r} and fps={fps!r} cannot be combined: give one of them.")
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise ValueError(f"every={every!r} must be a whole number of frames, 1 or more.")
        if fps is not None and not (fps > 0 and math.isfinite(fps)):
            raise ValueError(f"fps={fps!r} must be a number of frames per second above 0.")
        self.every, self.fps = every or 1, None if fps is None else Fraction(str(fps))
        self._last_period = -1

    def takes(self, index: int, seconds: Fraction) -> bool:
        """
        Return whether a frame is chosen; call it for each frame, in order.

        Args:
            index (`int`): number of the frame.
            seconds (`Fraction`): its time.
        """
        if self.fps is None:
            return index % self.every == 0
        period = math.floor((seconds + _ROUNDING) * self.fps)
        if period <= self._last_period:
            return False
        self._last_period = period
        return True

    def expected(self, frames: int, seconds: float | None) -> int | None:
        """
        Return the approximate number of chosen frames of a video, for progress bars; `None` if it is unknown.

        Args:
            frames (`int`): number of frames; 0 if unknown.
            seconds (`float`, *optional*): duration.
        """
        if self.fps is None:
            return math.ceil(frames / self.every) or None
        if seconds is None:
            return None
        chosen = math.ceil(seconds * self.fps)
        return min(chosen, frames) if frames else chosen


class StreamTimes:
    """
    Time stamps of a stream's frames as seconds that never run backwards.

    The first frame is at `start`. A frame without a time stamp, or with an earlier one than its predecessor (AVI does
    not store the order of reordered frames), follows after one period of the stream. If the stamp is earlier by more
    than a second (a camera has set its clock, recordings were joined), later stamps count from this frame.

    Args:
        period (`Fraction`, *optional*): seconds between two frames.
        start (`Fraction`): time of the first frame.
    """

    def __init__(self, period: Fraction | None = None, start: Fraction = Fraction(0)):
        self.period, self.next = period or _DEFAULT_PERIOD, start
        self._last: Fraction | None = None
        self._offset: Fraction | None = None

    def of(self, frame: "av.VideoFrame") -> Fraction:
        """Return the time of a frame in seconds; call it for each frame, in order."""
        stamp = None if frame.pts is None or not frame.time_base else frame.pts * Fraction(frame.time_base)
        seconds = self.next
        if stamp is not None:
            if self._offset is None or stamp + self._offset < self._last - _LONGEST_REORDERING:
                self._offset = self.next - stamp
            if self._last is None or stamp + self._offset >= self._last:
                seconds = stamp + self._offset
        self._last, self.next = seconds, seconds + self.period
        return seconds


def decode_frames(
    source: VideoSource, container: "InputContainer", start: Fraction = Fraction(0)
) -> Iterator[tuple["av.VideoFrame", Fraction]]:
    """
    Decode the first video stream. Broken packets are skipped.

    Args:
        source ([`VideoSource`]): the source, for messages.
        container (`av.container.InputContainer`): opened source, with a video stream.
        start (`Fraction`): time of the first frame in seconds.

    Yields:
        frame, and its time in seconds.

    Raises:
        VideoError: reading ended with an error; or, at the end of a file, packets were broken or missing.
    """
    av = import_av()
    stream = container.streams.video[0]
    # With frame threads, each frame would come several frames late
    stream.thread_type = "SLICE" if source.is_live else "AUTO"
    rate = stream.average_rate or stream.guessed_rate
    times, broken, received, count = StreamTimes(1 / rate if rate else None, start), 0, 0, 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            if isinstance(error, av.error.ExitError):
                reason = "no data arrived in time"
            raise VideoError(f"{source.name!r} stopped after {count} frames: {reason}.", lasting=False) from None
        if packet is None:
            break
        received += packet.size > 0
        broken += packet.is_corrupt
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            broken += not packet.is_corrupt
            continue
        for frame in frames:
            count += 1
            yield frame, times.of(frame)
    if not source.is_live and (broken or received < stream.frames):
        declared = f" of {stream.frames}" if stream.frames else ""
        raise VideoError(
            f"{source.name!r} is damaged or incomplete: {count}{declared} frames could be decoded, and {broken} of"
            f" {received} packets are broken. Copy the video again."
        )


def to_picture(frame: "av.VideoFrame") -> Image.Image:
    """
    Convert a frame to an image, rotated by a multiple of 90 degrees as its metadata requires.

    Args:
        frame (`av.VideoFrame`): decoded frame.

    Returns:
        `PIL.Image.Image`: mode RGB.
    """
    picture = frame.to_image()
    turn = _RIGHT_ANGLES.get(frame.rotation % 360)
    return picture if turn is None else picture.transpose(turn)
