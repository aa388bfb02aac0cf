"""Regions of a mask: cleaning, boxes, polygons, areas and scores."""

from collections.abc import Iterator

import numpy as np

from .connected_components import label_components


__all__ = ["clean_mask", "find_regions", "outlines"]


def clean_mask(mask: np.ndarray, min_area: int = 0, fill_holes: bool = False) -> np.ndarray:
    """
    Fill enclosed holes, then drop small regions.

    Args:
        mask (`np.ndarray` of shape `(height, width)`, bool): abnormal pixels.
        min_area (`int`, *optional*, defaults to 0): minimum area in pixels of the 8-connected regions that are kept.
        fill_holes (`bool`, *optional*, defaults to `False`): whether normal pixels that are not 4-connected with
            the border become abnormal.

    Returns:
        `np.ndarray` of shape `(height, width)`, bool.
    """
    mask = np.asarray(mask, dtype=bool)
    if fill_holes and mask.any():
        labels, _ = label_components(~mask, connectivity=4)
        border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        mask = mask | ~np.isin(labels, border) & (labels > 0)
    if min_area > 1 and mask.any():
        labels, count = label_components(mask)
        areas = np.bincount(labels.ravel(), minlength=count + 1)
        areas[0] = 0
        mask = (areas >= min_area)[labels]
    return mask


def find_regions(mask: np.ndarray, anomaly_map: np.ndarray) -> list[dict]:
    """
    Find the 8-connected regions of a mask, highest score first.

    Args:
        mask (`np.ndarray` of shape `(height, width)`, bool): abnormal pixels.
        anomaly_map (`np.ndarray` of shape `(height, width)`, float32): probabilities in [0, 1].

    Returns:
        `list[dict]` with, for each region,
        - **score** (`float`): maximum of the map inside the region;
        - **area** (`int`): number of pixels;
        - **box** (`dict[str, int]`): `xmin`, `ymin`, `xmax`, `ymax`, along pixel edges: xmax is one past the last
          column;
        - **polygon** (`list[list[int]]`): corners [x, y] of the outer outline, clockwise, along pixel edges;
        - **holes** (`list[list[list[int]]]`): corners of the outline of each hole, counterclockwise. A pixel belongs
          to the region if it is inside the polygon and in no hole.
    """
    labels, count = label_components(mask)
    if not count:
        return []
    rows, columns = np.nonzero(labels)
    owners = labels[rows, columns] - 1
    order = np.argsort(owners, kind="stable")
    rows, columns, owners = rows[order], columns[order], owners[order]
    starts = np.searchsorted(owners, np.arange(count))
    scores = np.maximum.reduceat(anomaly_map[rows, columns], starts)
    areas = np.bincount(owners, minlength=count)
    bounds = np.stack(
        [
            np.minimum.reduceat(columns, starts),
            np.minimum.reduceat(rows, starts),
            np.maximum.reduceat(columns, starts) + 1,
            np.maximum.reduceat(rows, starts) + 1,
        ],
        axis=1,
    ).tolist()
    regions = [
        {
            "score": score,
            "area": area,
            "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)),
            "polygon": [],
            "holes": [],
        }
        for score, area, box in zip(scores.tolist(), areas.tolist(), bounds, strict=True)
    ]
    for owner, corners in outlines(labels):
        region = regions[owner - 1]
        if region["polygon"]:
            region["holes"].append(corners)
        else:
            region["polygon"] = corners
    return [regions[index] for index in np.argsort(-scores, kind="stable")]


def outlines(labels: np.ndarray) -> Iterator[tuple[int, list[list[int]]]]:
    """
    Trace the outlines of all 8-connected regions and of their 4-connected holes.

    Args:
        labels (`np.ndarray` of shape `(height, width)`, int): 0, or the number of the region that a pixel belongs to;
            pixels of different regions do not touch, not even at a corner.

    Yields:
        `tuple[int, list[list[int]]]`: number of a region, and corners [x, y] along pixel edges, without points in the
        middle of a straight line. The outer outline of a region comes before those of its holes. Outer outlines run
        clockwise, holes counterclockwise: the region is on the right.
    """
    padded = np.pad(labels, 1)
    edges, followers = _edges_and_followers(padded != 0)
    num_edges = len(edges)
    directions, places = np.divmod(edges, padded.size)
    rows, columns = np.divmod(places, padded.shape[1])
    owners = padded.ravel()[places].tolist()
    # Each edge starts at the corner from which it runs with the region on its right; the padding is one pixel wide
    xs = (columns - 1 + np.isin(directions, (_SOUTH, _WEST))).tolist()
    ys = (rows - 1 + np.isin(directions, (_WEST, _NORTH))).tolist()
    directions, following = directions.tolist(), np.searchsorted(edges, followers).tolist()
    visited = bytearray(num_edges)
    # Every closed outline has an edge that runs east, and its first one by rows begins at a corner
    for first in range(directions.count(_EAST)):
        if visited[first]:
            continue
        corners, edge, direction = [], first, None
        while not visited[edge]:
            visited[edge] = 1
            if directions[edge] != direction:
                direction = directions[edge]
                corners.append([xs[edge], ys[edge]])
            edge = following[edge]
        yield owners[first], corners


_EAST, _SOUTH, _WEST, _NORTH = range(4)
# Steps (rows, columns) along each direction
_STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))


def _edges_and_followers(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Return all pixel edges between inside and outside, as `direction * pixels + pixel` with the pixel on the right of
    the edge, sorted; and for each edge the one that continues it. `inside` is False along its border.
    """
    num_pixels, width = inside.size, inside.shape[1]
    flat = inside.ravel()
    pixels = np.flatnonzero(flat)
    steps = [rows * width + columns for rows, columns in _STEPS]
    edges, followers = [], []
    for direction, ahead in enumerate(steps):
        left = steps[direction - 1]
        mine = pixels[~flat[pixels + left]]
        # Two pixels of a region that touch at a corner are connected there: a left turn goes before straight on
        turns_left, goes_on = flat[mine + ahead + left], flat[mine + ahead]
        right_turn = (direction + 1) % 4 * num_pixels + mine
        straight = direction * num_pixels + mine + ahead
        left_turn = (direction - 1) % 4 * num_pixels + mine + ahead + left
        edges.append(direction * num_pixels + mine)
        followers.append(np.where(turns_left, left_turn, np.where(goes_on, straight, right_turn)))
    return np.concatenate(edges), np.concatenate(followers)
