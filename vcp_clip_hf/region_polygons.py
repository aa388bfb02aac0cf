"""Regions as polygons that can be edited: with few corners, and as one polygon even if a region has holes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


__all__ = ["POLYGON_TOLERANCE", "region_label", "region_polygon", "regions_of", "simplify"]

POLYGON_TOLERANCE = 1.0
"""Default distance in pixels within which corners of a region's outline are left out."""

# Thin and small regions keep their shape: the tolerance is at most this part of area / perimeter, which is about half
# of the width of a thin region
_MOST_OF_WIDTH = 0.2


def regions_of(record: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """
    Return the regions of a record.

    Args:
        record (`Mapping`): record with `image` and, unless it was made without a mask, `regions` of `find_regions`.

    Raises:
        ValueError: the regions were written by an earlier version, without their holes.
    """
    regions = record.get("regions", ())
    if any("holes" not in region for region in regions):
        raise ValueError(
            f"The regions of {record['image']!r} were written by an earlier version, which did not record their holes."
            " Segment the images again, with --overwrite."
        )
    return regions


def region_label(region: Mapping[str, Any]) -> str:
    """Return the label of a region in annotation tools, on one line: its name if it has one, else "anomaly"."""
    return " ".join(region.get("name", "anomaly").split())


def region_polygon(region: Mapping[str, Any], tolerance: float = POLYGON_TOLERANCE) -> list[list[float]]:
    """
    Return a region as one polygon.

    Annotation tools have no polygons with holes. Here the outline runs to each hole along a seam, around the hole, and
    back along the same seam. Tools fill by the even-odd rule: the hole stays empty, and the seam has no width.

    Args:
        region (`Mapping`): region from `find_regions`, with `polygon`, `holes` and `area`.
        tolerance (`float`, *optional*, defaults to 1.0):
            Largest distance in pixels between an outline and its polygon; at most a fifth of area / perimeter, so that
            thin and small regions keep their shape. 0 keeps every pixel.

    Returns:
        `list[list[float]]`: corners [x, y] along pixel edges.
    """
    perimeter = sum(_length(outline) for outline in (region["polygon"], *region["holes"]))
    tolerance = min(tolerance, _MOST_OF_WIDTH * region["area"] / perimeter)
    ring = np.asarray(simplify(region["polygon"], tolerance), float)
    for hole in region["holes"]:
        inner = np.asarray(simplify(hole, tolerance), float)
        distances = ((ring[:, None] - inner[None]) ** 2).sum(axis=-1)
        at, start = np.unravel_index(distances.argmin(), distances.shape)
        around = np.concatenate([inner[start:], inner[: start + 1]])
        ring = np.concatenate([ring[: at + 1], around, ring[at:]])
    return ring.tolist()


def _length(corners: Sequence[Sequence[float]]) -> float:
    """Return the length of a closed outline along pixel edges."""
    points = np.asarray(corners, float)
    return float(np.abs(points - np.roll(points, 1, axis=0)).sum())


def simplify(corners: Sequence[Sequence[float]], tolerance: float) -> list[Sequence[float]]:
    """
    Leave out corners of a closed outline (Douglas and Peucker, 1973).

    Args:
        corners (`Sequence`): corners [x, y].
        tolerance (`float`): largest distance of a corner that is left out from the edge that replaces it.

    Returns:
        `list`: some of the corners, in their order; all of them if fewer than three would be left.
    """
    if tolerance <= 0 or len(corners) < 5:
        return list(corners)
    points = np.asarray(corners, float)
    points = np.concatenate([points, points[:1]])
    far = int(((points - points[0]) ** 2).sum(axis=1).argmax())
    kept = {0, far}
    waiting = [(0, far), (far, len(points) - 1)]
    while waiting:
        first, last = waiting.pop()
        if last - first < 2:
            continue
        distances = _distances(points[first + 1 : last], points[first], points[last])
        worst = int(distances.argmax())
        if distances[worst] > tolerance:
            middle = first + 1 + worst
            kept.add(middle)
            waiting += [(first, middle), (middle, last)]
    return [corners[index] for index in sorted(kept)] if len(kept) > 2 else list(corners)


def _distances(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the distances of points (n, 2) from the edge between two others."""
    along = end - start
    length = float((along**2).sum())
    part = np.clip(((points - start) @ along) / length, 0, 1) if length else np.zeros(len(points))
    return np.sqrt(((points - start - part[:, None] * along) ** 2).sum(axis=1))
