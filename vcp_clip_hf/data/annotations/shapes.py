"""The results of the readers of all annotation formats: files, their images, and the shapes drawn on them.

Coordinates are those of COCO: x to the right and y down from the upper left corner of the image, in pixels, so that
the first pixel covers 0 to 1. All supported tools use this grid.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise


__all__ = ["AREAS", "AnnotatedImage", "AnnotationFile", "Runs", "Shape", "box", "ellipse", "outline", "stroke"]

AREAS = frozenset(("polygon", "box", "turned box", "ellipse", "mask"))
"""Kinds of shapes that have an area."""

# Largest distance between an ellipse and the polygon that stands for it, in pixels
_SAGITTA = 0.05


@dataclass(frozen=True)
class Runs:
    """
    Pixels of a rectangle of the image as run lengths.

    Args:
        left (`int`), top (`int`), width (`int`), height (`int`): rectangle, in pixels.
        counts (`tuple[int, ...]`):
            Lengths of the runs outside, inside, outside, ... of the shape; their sum is `width * height`.
        by_columns (`bool`): whether the pixels are counted column by column, as in COCO; else row by row.

    Raises:
        ValueError: a number is negative, or the sum is wrong.
    """

    left: int
    top: int
    width: int
    height: int
    counts: tuple[int, ...]
    by_columns: bool

    def __post_init__(self):
        if any(count < 0 for count in self.counts):
            raise ValueError("a run length is negative")
        if min(self.width, self.height) < 1 or sum(self.counts) != self.width * self.height:
            raise ValueError(
                f"the run lengths describe {sum(self.counts)} pixels, and the mask has {self.width} x {self.height}"
            )


@dataclass(frozen=True)
class Shape:
    """
    One shape of an image.

    Args:
        label (`str`): name of the defect as the tool stores it.
        kind (`str`):
            One of `AREAS`; "line" or "bounding box", which have an area only on request; or the tool's word for a
            shape without an area.
        parts (`tuple[tuple[float, ...], ...]`):
            Polygons as x1, y1, x2, y2, ..., which are united; inside is where a ray crosses an odd number of edges.
            For a line, its points.
        runs ([`Runs`], *optional*): pixels of a mask.
        stroke_width (`float`): width of a line in pixels; 0 if none was requested.
        place (`str`): position of the shape in its file, such as "shape 3", for messages.
    """

    label: str
    kind: str
    parts: tuple[tuple[float, ...], ...] = ()
    runs: Runs | None = None
    stroke_width: float = 0.0
    place: str = ""


@dataclass(frozen=True)
class AnnotatedImage:
    """
    One image as an annotation file describes it. An image without shapes shows no defect.

    Args:
        name (`str`): path of the image as the file states it, with "/".
        shapes (`tuple[Shape, ...]`): shapes, in the order of the file.
        size (`tuple[int, int]`, *optional*): width and height that the file states, in pixels.
        in_fractions (`bool`): whether coordinates are fractions of width and height.
        labels (`tuple[str, ...]`): labels of the image as a whole.
        subset (`str`): name of the split that the file states; "" for none.
        stems (`tuple[str, ...]`):
            Paths of the image relative to the dataset's root and without an ending, the likeliest first, for a
            format that does not state the image's name.
        problems (`tuple[str, ...]`): reasons why the annotation cannot be used.
    """

    name: str
    shapes: tuple[Shape, ...] = ()
    size: tuple[int, int] | None = None
    in_fractions: bool = False
    labels: tuple[str, ...] = ()
    subset: str = ""
    stems: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class AnnotationFile:
    """
    One annotation file.

    Args:
        path (`str`): path relative to the dataset's root.
        images (`list[AnnotatedImage]`): images that it describes.
        problems (`list[str]`): errors that do not concern one of these images.
        also_read (`tuple[str, ...]`): further files that its content depends on, relative to the root.
    """

    path: str
    images: list[AnnotatedImage] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    also_read: tuple[str, ...] = ()


def outline(points: Iterable[Sequence[float]], at_least: int = 3) -> tuple[float, ...]:
    """
    Return points as x1, y1, x2, y2, ...

    Args:
        points (iterable of pairs): points of a polygon or a line.
        at_least (`int`, *optional*, defaults to 3): number of points that the shape needs.

    Raises:
        ValueError: a point is not a pair of finite numbers, or there are too few points.
    """
    flat: list[float] = []
    for point in points:
        x, y = point
        flat += [float(x), float(y)]
    if not all(map(math.isfinite, flat)):
        raise ValueError("a coordinate is not a finite number")
    if len(flat) < 2 * at_least:
        raise ValueError(f"{len(flat) // 2} points, expected at least {at_least}")
    return tuple(flat)


def box(left: float, top: float, right: float, bottom: float, degrees: float = 0.0) -> tuple[float, ...]:
    """Return a rectangle as a polygon, rotated clockwise about its center."""
    x, y, dx, dy = (left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2
    return outline(_turned(x, y, [(-dx, -dy), (dx, -dy), (dx, dy), (-dx, dy)], degrees))


def ellipse(x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0.0) -> tuple[float, ...]:
    """Return an ellipse as a polygon at most 0.05 pixels away from it, rotated clockwise about its center."""
    radius = max(abs(radius_x), abs(radius_y))
    if not 0 < radius < 1e6:
        raise ValueError(f"the radius {radius:g} is not between 0 and 1,000,000")
    count = max(12, math.ceil(math.pi / math.acos(max(1 - _SAGITTA / radius, 0))))
    angles = [2 * math.pi * number / count for number in range(count)]
    return outline(_turned(x, y, [(radius_x * math.cos(a), radius_y * math.sin(a)) for a in angles], degrees))


def stroke(line: Sequence[float], width: float) -> tuple[tuple[float, ...], ...]:
    """
    Return a line as polygons: a rectangle for each segment, and a disk at each point.

    Args:
        line (`Sequence[float]`): x1, y1, x2, y2, ...
        width (`float`): width in pixels.
    """
    points = list(zip(line[::2], line[1::2], strict=True))
    parts = [ellipse(x, y, width / 2, width / 2) for x, y in points]
    for (x0, y0), (x1, y1) in pairwise(points):
        length = math.hypot(x1 - x0, y1 - y0)
        if length:
            dx, dy = (y0 - y1) / length * width / 2, (x1 - x0) / length * width / 2
            parts.append(outline([(x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)]))
    return tuple(parts)


def _turned(x: float, y: float, offsets: list[tuple[float, float]], degrees: float) -> list[tuple[float, float]]:
    """Return the points at these offsets from (x, y), rotated clockwise about (x, y) (y points down)."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [(x + dx * cosine - dy * sine, y + dx * sine + dy * cosine) for dx, dy in offsets]
