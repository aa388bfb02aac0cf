"""Regions of a mask: cleaning, boxes, polygons, areas and scores."""

import numpy as np

from .connected_components import label_components


__all__ = ["clean_mask", "find_regions", "outline"]


def clean_mask(mask: np.ndarray, min_area: int = 0, fill_holes: bool = False) -> np.ndarray:
    """
    Fill enclosed holes, then drop small regions.

    Args:
        mask (`np.ndarray` of shape `(height, width)`, bool): abnormal pixels.
        min_area (`int`, *optional*, defaults to 0): minimum area in pixels of the 8-connected regions that are kept.
        fill_holes (`bool`, *optional*, defaults to `False`): make normal pixels abnormal that are not 4-connected with
            the border.

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
        - **polygon** (`list[list[int]]`): corners [x, y] of the outer outline, clockwise, along pixel edges, without
          the outlines of holes.
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
    regions = []
    for index in np.argsort(-scores, kind="stable").tolist():
        left, top, right, bottom = bounds[index]
        polygon = outline(labels[top:bottom, left:right] == index + 1)
        regions.append(
            {
                "score": float(scores[index]),
                "area": int(areas[index]),
                "box": {"xmin": left, "ymin": top, "xmax": right, "ymax": bottom},
                "polygon": [[x + left, y + top] for x, y in polygon],
            }
        )
    return regions


def outline(region: np.ndarray) -> list[tuple[int, int]]:
    """
    Trace the outer outline of one 8-connected region.

    Args:
        region (`np.ndarray` of shape `(height, width)`, bool): pixels of the region.

    Returns:
        `list[tuple[int, int]]`: corners (x, y), clockwise, without points in the middle of a straight line.
    """
    padded = np.pad(region, 1)
    # Each pixel edge between inside and outside is a step from corner to corner with the inside on the right
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for shift, axis, (from_x, from_y), (to_x, to_y) in (
        (1, 0, (0, 0), (1, 0)),  # top edges, rightward
        (-1, 1, (1, 0), (1, 1)),  # right edges, downward
        (-1, 0, (1, 1), (0, 1)),  # bottom edges, leftward
        (1, 1, (0, 1), (0, 0)),  # left edges, upward
    ):
        ys, xs = np.nonzero(padded & ~np.roll(padded, shift, axis=axis))
        for x, y in zip((xs - 1).tolist(), (ys - 1).tolist(), strict=True):
            steps.setdefault((x + from_x, y + from_y), []).append((x + to_x, y + to_y))

    # The leftmost of the topmost corners lies on the outer outline
    start = min(steps, key=lambda corner: (corner[1], corner[0]))
    corners, position, direction = [], start, (1, 0)
    while True:
        choices = steps[position]
        following = choices[0]
        if len(choices) > 1:
            # two pixels of the region touch at this corner: a left turn continues along the other one
            left = (position[0] + direction[1], position[1] - direction[0])
            following = left if left in choices else choices[0]
        choices.remove(following)
        step = (following[0] - position[0], following[1] - position[1])
        if step != direction or not corners:
            corners.append(position)
        position, direction = following, step
        if position == start:
            return corners
