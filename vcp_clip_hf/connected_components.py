"""Connected regions of a mask, for per-region overlap (PRO) and for the regions of results.

The algorithm works on runs, which are horizontal stretches of abnormal pixels. A mask has only a few hundred of them,
so that NumPy is faster here than a compiled labeling of every pixel.
"""

import numpy as np


__all__ = ["label_components", "region_sizes"]


def label_components(mask: np.ndarray, connectivity: int = 8) -> tuple[np.ndarray, int]:
    """
    Number the connected regions of a mask.

    Args:
        mask (`np.ndarray` of shape `(height, width)`): non-zero where abnormal.
        connectivity (`int`, *optional*, defaults to 8): 8, or 4, which separates pixels that share only a corner.

    Returns:
        `tuple`: labels, int32 of shape `(height, width)`, 0 for normal pixels, and 1, 2, ... for the regions in the
        order of a scan by rows; and the number of regions.
    """
    mask = np.asarray(mask) != 0
    starts, ends, roots = _runs_and_roots(mask, connectivity)
    distinct, labels_of_runs = np.unique(roots, return_inverse=True)
    labels = np.zeros(mask.shape, np.int32)
    labels[mask] = np.repeat(labels_of_runs + 1, ends - starts)
    return labels, len(distinct)


def region_sizes(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """
    Return the size of the 8-connected region of each abnormal pixel.

    Args:
        mask (`np.ndarray` of shape `(height, width)`): non-zero where abnormal.

    Returns:
        `tuple`: size in pixels for each abnormal pixel, int32 of shape `(abnormal pixels,)`, in the order of
        `array[mask]`; and the number of regions.
    """
    starts, ends, roots = _runs_and_roots(np.asarray(mask) != 0)
    lengths = ends - starts
    sizes = np.bincount(roots, weights=lengths, minlength=len(roots)).astype(np.int32)
    return np.repeat(sizes[roots], lengths), int(np.count_nonzero(sizes))


def _runs_and_roots(mask: np.ndarray, connectivity: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return starts and (exclusive) ends of the runs, by rows, and for each run the first run of its region."""
    if mask.ndim != 2:
        raise ValueError(f"A mask must have shape (height, width), got {mask.shape}.")
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
    mask = mask[rows[0] : rows[-1] + 1]
    height, width = mask.shape

    # A normal column on both sides keeps runs from crossing into the next row
    stride = width + 2
    padded = np.zeros((height, stride), bool)
    padded[:, 1:-1] = mask
    padded = padded.ravel()
    changes = np.flatnonzero(padded[1:] != padded[:-1]) + 1
    starts, ends = changes[0::2], changes[1::2]

    # The runs of the row below that touch a run are consecutive; corners count only with 8-connectivity
    sides = ("left", "right") if connectivity == 8 else ("right", "left")
    first = np.searchsorted(ends, starts + stride, side=sides[0])
    last = np.searchsorted(starts, ends + stride, side=sides[1])
    touching = np.maximum(last - first, 0)
    upper = np.repeat(np.arange(len(starts)), touching)
    offsets = np.arange(len(upper)) - np.repeat(np.cumsum(touching) - touching, touching)
    return starts, ends, _join(len(starts), upper, first[upper] + offsets)


def _join(count: int, upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Return the smallest connected node of each of `count` nodes: union-find on all edges at once."""
    parents = np.arange(count)
    while True:
        roots_of_upper, roots_of_lower = parents[upper], parents[lower]
        apart = roots_of_upper != roots_of_lower
        if not apart.any():
            return parents
        upper, lower = upper[apart], lower[apart]
        roots_of_upper, roots_of_lower = roots_of_upper[apart], roots_of_lower[apart]
        np.minimum.at(parents, np.maximum(roots_of_upper, roots_of_lower), np.minimum(roots_of_upper, roots_of_lower))
        while True:
            grandparents = parents[parents]
            if np.array_equal(grandparents, parents):
                break
            parents = grandparents
