"""Shapes of annotation tools as masks, by the rule of COCO's own tools.

A pixel is inside a polygon if its center is, after coordinates were rounded to fifths of a pixel. pycocotools decides
this, so that masks are equal to those of other tools for COCO. The parts of a shape, and the shapes of an image, are
united. Polygons are filled by the even-odd rule, so that an outline that runs along a seam to a hole and back leaves
the hole empty. Run lengths are read exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, cycle
from types import ModuleType

import numpy as np
from PIL import Image

from ..masks import MaskSource
from .shapes import Runs, Shape, stroke


__all__ = ["ShapesMask", "rasterize"]

# Pixels by which a coordinate may lie outside, because tools round, or clip one pixel beyond the border
_MARGIN = 1.0


def rasterize(shapes: Sequence[Shape], width: int, height: int) -> np.ndarray:
    """
    Return the union of shapes as a mask.

    Args:
        shapes (`Sequence[Shape]`): shapes with an area, and lines with a width, in pixels.
        width (`int`), height (`int`): size of the image.

    Returns:
        `np.ndarray` of shape `(height, width)`, bool.

    Raises:
        ValueError: a shape lies outside the image by more than one pixel, or covers no pixel.
        ImportError: pycocotools, which fills polygons, is not installed.
    """
    marked = np.zeros((height, width), dtype=bool)
    filled = []  # as run lengths of pycocotools, which are faster than a whole image for each shape
    for shape in shapes:
        if shape.runs is not None:
            area = _paste(marked, shape.runs, shape)
        else:
            filled.append(_fill(shape, width, height))
            area = _pycocotools().area(filled[-1])
        if not area:
            raise ValueError(f"{_name(shape)} covers no pixel; delete it, or draw it larger")
    if filled:
        marked |= _pycocotools().decode([_pycocotools().merge(filled)])[:, :, 0].astype(bool)
    return marked


def _pycocotools() -> ModuleType:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImportError(
            'Polygons of annotation tools are filled by pycocotools: pip install "vcp-clip-hf[annotations]"'
        ) from error
    return mask


def _name(shape: Shape) -> str:
    return f"{shape.place or 'a shape'} ({shape.kind} {shape.label!r})"


def _paste(marked: np.ndarray, runs: Runs, shape: Shape) -> int:
    """Add the pixels of a mask to `marked`; return their number."""
    height, width = marked.shape
    if runs.left < 0 or runs.top < 0 or runs.left + runs.width > width or runs.top + runs.height > height:
        raise ValueError(
            f"{_name(shape)} covers x {runs.left} to {runs.left + runs.width} and y {runs.top} to"
            f" {runs.top + runs.height}, which lies outside the image of {width} x {height} pixels"
        )
    inside = np.repeat(np.arange(len(runs.counts)) % 2 == 1, runs.counts)
    inside = inside.reshape(runs.width, runs.height).T if runs.by_columns else inside.reshape(runs.height, runs.width)
    marked[runs.top : runs.top + runs.height, runs.left : runs.left + runs.width] |= inside
    return int(inside.sum())


def _fill(shape: Shape, width: int, height: int) -> dict:
    """Return the pixels inside the parts of a shape, or under its stroke, as run lengths."""
    corners = np.asarray(list(chain(*shape.parts))).reshape(-1, 2)
    beyond = np.maximum(-corners, corners - (width, height)).max(axis=1)
    # The border may cut an ellipse and a rotated box; the limit keeps extreme values from pycocotools
    if beyond.max() > (max(width, height) if shape.kind in ("ellipse", "turned box") else _MARGIN):
        x, y = corners[beyond.argmax()]
        raise ValueError(
            f"{_name(shape)} has the point ({x:g}, {y:g}), which lies outside the image of {width} x {height}"
            " pixels; correct the point, or annotate the image that belongs to the file"
        )
    outlines = (
        chain(*(stroke(line, shape.stroke_width) for line in shape.parts)) if shape.stroke_width else shape.parts
    )
    return _pycocotools().merge(_pycocotools().frPyObjects([list(part) for part in outlines], height, width))


@dataclass(frozen=True)
class ShapesMask(MaskSource):
    """
    The union of the shapes that an annotation tool drew on an image.

    Args:
        paths (`tuple[str, ...]`): absolute paths of the annotation file, and of others that it depends on.
        shapes (`tuple[Shape, ...]`): shapes with an area, and lines with a width; one or more.
        stated (`tuple[int, int]`, *optional*): width and height that the annotation file states.
        in_fractions (`bool`): whether coordinates are fractions of width and height.
    """

    paths: tuple[str, ...]
    shapes: tuple[Shape, ...]
    stated: tuple[int, int] | None = None
    in_fractions: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """Return the annotation files."""
        return self.paths

    def read(self, image: str | Image.Image, size: tuple[int, int]) -> np.ndarray:
        """Draw the mask, see `MaskSource.read`. Without a stated size, the mask has the size of the upright image."""
        if self.stated is not None and self.stated not in (size, size[::-1]):
            raise ValueError(
                f"{self.paths[0]} states {self.stated[0]} x {self.stated[1]} pixels, and the image has"
                f" {size[0]} x {size[1]}; annotate this image, or restore the one that was annotated"
            )
        width, height = self.stated or _upright_size(image, size)
        shapes = [_scaled(shape, width, height) for shape in self.shapes] if self.in_fractions else self.shapes
        try:
            return rasterize(shapes, width, height)
        except ValueError as error:
            raise ValueError(f"{self.paths[0]}: {error}") from error


def _scaled(shape: Shape, width: int, height: int) -> Shape:
    parts = tuple(
        tuple(value * side for value, side in zip(part, cycle((width, height)), strict=False)) for part in shape.parts
    )
    return replace(shape, parts=parts)


def _upright_size(image: str | Image.Image, size: tuple[int, int]) -> tuple[int, int]:
    """Return width and height of the image after its EXIF rotation, as annotation tools show it."""
    if isinstance(image, Image.Image):
        return size
    with Image.open(image) as picture:
        orientation = picture.getexif().get(0x0112, 1)
    return size[::-1] if orientation in (5, 6, 7, 8) else size
