"""The JSON files of labelme, one per image (https://github.com/wkentaro/labelme). `imageData` is ignored."""

import base64
import io
import math
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import numpy as np
from PIL import Image

from .shapes import AnnotatedImage, AnnotationFile, Runs, Shape, box, ellipse, outline


__all__ = ["is_labelme", "read_labelme"]

# Errors of damaged shapes; Pillow raises many types
_DAMAGED = (ValueError, TypeError, KeyError, AttributeError, OSError, SyntaxError, OverflowError)


def is_labelme(content: Any) -> bool:
    """Return whether the content of a JSON file has the fields of a labelme file."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def read_labelme(path: str, content: Mapping[str, Any]) -> AnnotationFile:
    """
    Read the image of a labelme file with its shapes.

    A polygon, a rectangle (also an oriented one), a circle and a mask have an area; `line` and `linestrip` are lines;
    other shapes have no area. A file without shapes says that the image shows no defect. Flags of the image that are
    set are its labels.

    Args:
        path (`str`): path of the file, for messages.
        content (`Mapping`): content of the file.

    Returns:
        [`AnnotationFile`]: the image, and errors of the file.
    """
    name = content["imagePath"]
    if not isinstance(name, str) or not name.strip():
        return AnnotationFile(path, problems=["imagePath is empty; write the image's path relative to this file"])
    shapes, problems = [], []
    for number, shape in enumerate(content["shapes"], start=1):
        try:
            shapes.append(_shape(shape, f"shape {number}"))
        except (*_DAMAGED, Image.DecompressionBombError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
            problems.append(f"shape {number}: {reason}")
    flags = content.get("flags")
    labels = tuple(str(flag) for flag, is_set in flags.items() if is_set is True) if isinstance(flags, dict) else ()
    size = content.get("imageWidth"), content.get("imageHeight")
    known = all(isinstance(side, int) and side > 0 for side in size)
    image = AnnotatedImage(
        name.replace("\\", "/"),
        tuple(shapes),
        (size[0], size[1]) if known else None,
        labels=labels,
        problems=tuple(problems),
    )
    return AnnotationFile(path, [image])


def _shape(shape: Mapping[str, Any], place: str) -> Shape:
    label, kind, points = str(shape["label"]), shape.get("shape_type") or "polygon", shape["points"]
    if kind == "polygon":
        return Shape(label, "polygon", (outline(points),), place=place)
    if kind == "rectangle":
        (x0, y0), (x1, y1) = _pairs(points, 2)
        return Shape(label, "box", (box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)),), place=place)
    if kind == "oriented_rectangle":
        return Shape(label, "turned box", (outline(_pairs(points, 4)),), place=place)
    if kind == "circle":
        (x, y), (at_x, at_y) = _pairs(points, 2)
        radius = math.hypot(at_x - x, at_y - y)
        return Shape(label, "ellipse", (ellipse(x, y, radius, radius),), place=place)
    if kind == "mask":
        return Shape(label, "mask", runs=_runs(shape["mask"], _pairs(points, 2)), place=place)
    if kind in ("line", "linestrip"):
        return Shape(label, "line", (outline(points, at_least=2),), place=place)
    return Shape(label, str(kind), place=place)


def _pairs(points: Any, count: int) -> list[tuple[float, float]]:
    flat = outline(points, at_least=count)
    if len(flat) != 2 * count:
        raise ValueError(f"{len(flat) // 2} points, expected {count}")
    return list(zip(flat[::2], flat[1::2], strict=True))


def _runs(encoded: Any, corners: list[tuple[float, float]]) -> Runs:
    """Return the pixels of a mask: a PNG image in base64, from the first corner to the last pixel."""
    if not isinstance(encoded, str):
        raise ValueError("the mask is not an image in base64")
    (x0, y0), (x1, y1) = ((int(x), int(y)) for x, y in corners)
    with Image.open(io.BytesIO(base64.b64decode(encoded)), formats=["PNG"]) as picture:
        width, height = picture.size
        if (width, height) != (x1 - x0 + 1, y1 - y0 + 1):
            raise ValueError(f"a mask of {width} x {height} pixels for corners ({x0}, {y0}) and ({x1}, {y1})")
        inside = np.asarray(picture.convert("L")) > 0
    counts = [0] if inside.flat[0] else []
    counts += [sum(1 for _ in run) for _, run in groupby(inside.ravel().tolist())]
    return Runs(x0, y0, width, height, tuple(counts), by_columns=False)
