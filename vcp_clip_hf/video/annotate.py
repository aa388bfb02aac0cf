"""Write an annotated video: overlays, each above a strip with its label, score, time and a plot of the scores."""

import contextlib
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..atomic_write import atomic_file
from .score_strip import ScoreStrip
from .sources import import_av


if TYPE_CHECKING:
    from av.container import OutputContainer

__all__ = ["AnnotatedVideo", "annotated_video"]

# Longer side of the overlay in the video: large enough to read, small enough to encode while a camera runs
_SMALLEST_SIDE, _LONGEST_SIDE = 640, 1280
# Unit of the file's time stamps; MPEG-4 part 2 allows 65535 at most
_TICKS_PER_SECOND = 1000
# Longest duration of the plot of the scores
_WINDOW_SECONDS = 60.0
_BT709 = 1


class AnnotatedVideo:
    """
    Encodes frames; made by [`annotated_video`].

    Args:
        container (`av.container.OutputContainer`): opened file.
        seconds (`float`, *optional*): duration, for the scale of the plot.
        fps (`float`): expected frames per second.
    """

    def __init__(self, container: "OutputContainer", seconds: float | None, fps: float):
        self._container, self._seconds, self._fps = container, seconds, fps
        self._stream = None
        self._first, self._last_tick = 0.0, -1

    def add(self, overlay: Image.Image, record: Mapping[str, Any]) -> None:
        """
        Append a frame. It is shown at its time after the first frame.

        Args:
            overlay (`PIL.Image.Image`): overlay of the frame; all overlays are fitted into the size of the first one.
            record (`Mapping`): the frame's record, see [`ScoreStrip.draw`].
        """
        if self._stream is None:
            self._begin(overlay, record["time_seconds"])
        canvas = Image.new("RGB", (self._stream.width, self._stream.height))
        canvas.paste(_fitted(overlay, self._size), (0, 0))
        canvas.paste(self._strip.draw(record), (0, self._size[1]))
        frame = import_av().VideoFrame.from_image(canvas)
        frame = frame.reformat(format="yuv420p", dst_colorspace=_BT709)
        tick = round((record["time_seconds"] - self._first) * _TICKS_PER_SECOND)
        self._last_tick = frame.pts = max(tick, self._last_tick + 1)
        frame.time_base = Fraction(1, _TICKS_PER_SECOND)
        self._container.mux(self._stream.encode(frame))

    def end(self) -> None:
        """Encode the frames that are still in the encoder."""
        if self._stream is not None:
            self._container.mux(self._stream.encode())

    def _begin(self, overlay: Image.Image, seconds: float) -> None:
        """Choose the size by the first overlay, and make the encoder."""
        longer = max(overlay.size)
        scale = min(max(longer, _SMALLEST_SIDE), _LONGEST_SIDE) / longer
        width, height = (max(2, round(length * scale)) for length in overlay.size)
        self._first, self._size = seconds, (width, height)
        window = min(_WINDOW_SECONDS, self._seconds or _WINDOW_SECONDS)
        self._strip = ScoreStrip(width, window)
        name, options = _encoder()
        rate = Fraction(self._fps).limit_denominator(1000) or 1
        self._stream = stream = self._container.add_stream(name, rate=rate, options=options)
        # Encoders for 4:2:0 need even sizes
        stream.width, stream.height = width + width % 2, (height + self._strip.height + 1) // 2 * 2
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, _TICKS_PER_SECOND)
        context.colorspace = context.color_primaries = context.color_trc = _BT709


@contextlib.contextmanager
def annotated_video(path: Path, seconds: float | None = None, fps: float = 25.0) -> Iterator[AnnotatedVideo]:
    """
    Write an MP4 in H.264, or in MPEG-4 part 2 if FFmpeg has no encoder for H.264. The file gets its name only when it
    is complete; if the body of the context raises, the file is removed.

    Args:
        path (`Path`): file to write; its folder exists.
        seconds (`float`, *optional*): duration, for the scale of the plot of the scores; default: one minute.
        fps (`float`, *optional*, defaults to 25): frames per second that are expected, for the encoder.

    Yields:
        [`AnnotatedVideo`]: add at least one frame.
    """
    with atomic_file(path) as unfinished:
        # The index is at the beginning of the file, so that a browser can play the video while it loads
        options = {"movflags": "faststart"}
        with import_av().open(unfinished, "w", format="mp4", options=options) as container:
            video = AnnotatedVideo(container, seconds, fps)
            yield video
            video.end()


def _encoder() -> tuple[str, dict[str, str]]:
    """Return the encoder's name and options."""
    av = import_av()
    if "libx264" in av.codecs_available:
        # Two threads, since the model computes at the same time
        return "libx264", {"preset": "veryfast", "crf": "21", "threads": "2"}
    return "mpeg4", {"qscale": "3"}


def _fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale an image into a size, with black borders if its aspect ratio differs."""
    if picture.size == size:
        return picture
    scale = min(size[0] / picture.width, size[1] / picture.height)
    scaled = picture.resize([max(1, round(length * scale)) for length in picture.size], Image.Resampling.BICUBIC)
    fitted = Image.new("RGB", size)
    fitted.paste(scaled, ((size[0] - scaled.width) // 2, (size[1] - scaled.height) // 2))
    return fitted
