"""Draw the strip below a frame of an annotated video: label, score, time, and a plot of the scores."""

from collections import deque
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont


__all__ = ["ScoreStrip", "clock_time", "video_time"]

_BACKGROUND, _PLOT, _GRID = (22, 24, 29), (36, 39, 47), (66, 71, 82)
_TEXT, _FAINT = (238, 240, 243), (158, 164, 174)
_LABELS = {
    "anomalous": ("ANOMALOUS", (205, 45, 48)),
    "normal": ("NORMAL", (20, 126, 80)),
    None: ("NO LABEL", (84, 90, 101)),
}
_CURVE, _ABOVE, _LIMIT = (120, 190, 255), (255, 107, 107), (255, 186, 73)
# The plot is drawn at this scale and then reduced, because Pillow draws lines without antialiasing
_SMOOTHING = 2


class ScoreStrip:
    """
    Draws strips for consecutive frames.

    Args:
        width (`int`): width in pixels.
        window (`float`): seconds of scores that the plot shows.
    """

    def __init__(self, width: int, window: float):
        self.width, self.window = width, max(window, 0.1)
        self._unit = max(8, width // 60)
        self.height = 9 * self._unit
        self._scores: deque[tuple[float, float]] = deque()

    def draw(self, record: Mapping[str, Any]) -> Image.Image:
        """
        Draw the strip of the next frame.

        Args:
            record (`Mapping`): `time_seconds`, `score`, `label`, `image_threshold`, `frame`, and `time` for live
                sources.

        Returns:
            `PIL.Image.Image`: mode RGB, `width` x `height`.
        """
        self._scores.append((record["time_seconds"], record["score"]))
        while self._scores[-1][0] - self._scores[0][0] > self.window:
            self._scores.popleft()
        strip = Image.new("RGB", (self.width, self.height), _BACKGROUND)
        self._write(ImageDraw.Draw(strip), record)
        unit = self._unit
        size = (self.width - 2 * unit, self.height - 4 * unit)
        strip.paste(self._plot(size, record["image_threshold"]), (unit, int(3.25 * unit)))
        return strip

    def _write(self, draw: ImageDraw.ImageDraw, record: Mapping[str, Any]) -> None:
        """Write label, score and limit on the left, time and frame on the right."""
        unit, middle = self._unit, int(1.7 * self._unit)
        font, small = _font(int(1.6 * unit)), _font(int(1.2 * unit))
        word, color = _LABELS[record["label"]]
        place = (unit, int(0.5 * unit), 2 * unit + int(font.getlength("ANOMALOUS")) + unit, int(2.9 * unit))
        draw.rounded_rectangle(place, radius=unit // 2, fill=color)
        draw.text(((place[0] + place[2]) / 2, middle), word, fill=_TEXT, font=font, anchor="mm")
        left = place[2] + unit
        score = f"score {record['score']:.3f}"
        draw.text((left, middle), score, fill=_TEXT, font=font, anchor="lm")
        left += font.getlength(score) + unit
        if record["image_threshold"] is not None:
            limit = f"limit {record['image_threshold']:.3f}"
            draw.text((left, middle), limit, fill=_LIMIT, font=small, anchor="lm")
            left += small.getlength(limit) + unit
        stamp = clock_time(record["time"]) if "time" in record else video_time(record["time_seconds"])
        right = self.width - unit
        draw.text((right, middle), stamp, fill=_TEXT, font=font, anchor="rm")
        right -= font.getlength(stamp) + unit
        number = f"frame {record['frame']}"
        if right - small.getlength(number) > left:  # a narrow strip has only the time
            draw.text((right, middle), number, fill=_FAINT, font=small, anchor="rm")

    def _plot(self, size: tuple[int, int], limit: float | None) -> Image.Image:
        """Plot the scores of the last seconds on the scale [0, 1]."""
        width, height = (_SMOOTHING * length for length in size)
        plot = Image.new("RGB", (width, height), _PLOT)
        draw, thickness = ImageDraw.Draw(plot), max(2, height // 24)
        begin = max(self._scores[0][0], self._scores[-1][0] - self.window)
        top, room = 2 * thickness, height - 4 * thickness

        def place(seconds: float, score: float) -> tuple[float, float]:
            return (seconds - begin) / self.window * (width - 1), top + (1 - min(1.0, max(0.0, score))) * room

        draw.line([place(begin, 0.5), (width, place(begin, 0.5)[1])], fill=_GRID)
        if limit is not None:
            level = place(begin, limit)[1]
            for left in range(0, width, 8 * thickness):
                draw.line([(left, level), (left + 4 * thickness, level)], fill=_LIMIT, width=thickness)
        points = [place(*score) for score in self._scores]
        draw.line(points, fill=_CURVE, width=thickness, joint="curve")
        radius = 2 * thickness
        for point, (_, score) in zip(points, self._scores, strict=True):
            if limit is not None and score >= limit:
                draw.circle(point, thickness, fill=_ABOVE)
        draw.circle(points[-1], radius, fill=_TEXT)
        return plot.resize(size, Image.Resampling.BOX)


def video_time(seconds: float) -> str:
    """Return a time in a video as `MM:SS.mmm`, or as `H:MM:SS.mmm` from one hour on."""
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{f'{hours}:' if hours else ''}{minutes:02d}:{rest / 1000:06.3f}"


def clock_time(stamp: str) -> str:
    """
    Return a time stamp as a local time of day with tenths.

    Args:
        stamp (`str`): ISO 8601 with a time zone, as records have it.
    """
    return f"{datetime.fromisoformat(stamp).astimezone():%Y-%m-%d %H:%M:%S.%f}"[:-5]


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)
