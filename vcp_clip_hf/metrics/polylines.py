"""Curves to draw: ROC, precision over recall, and per-region overlap over the false positive rate, with few points."""

import numpy as np

from .bounds import RankedBins
from .curves import RankedScores, cut, over_false_positives


__all__ = ["TOLERANCE", "drawn_curves", "simplified"]

# Largest distance between a drawn curve and the exact one, where both axes run from 0 to 1
TOLERANCE = 1e-3
# Part of the tolerance that the first, fast step may use
_FIRST_SHARE = 0.2

Curve = tuple[np.ndarray, np.ndarray]


def drawn_curves(ranked: RankedScores | RankedBins, fpr_limit: float = 0.3) -> dict[str, Curve]:
    """
    Return the curves that belong to the areas of `curves.py` and `bounds.py`, each closer than `TOLERANCE` to the
    exact curve of the table. Within a bin of a histogram the curve is straight.

    Args:
        ranked ([`RankedScores`] or [`RankedBins`]): scores of all pixels, or of all images.
        fpr_limit (`float`, *optional*, defaults to 0.3): rate at which the curve of PRO ends, in (0, 1].

    Returns:
        `dict[str, tuple[np.ndarray, np.ndarray]]`: name -> x, ascending, and y, both float64 in [0, 1]:
        - **roc**: true positive rate over the false positive rate;
        - **precision_recall**: precision over recall, as the steps that average precision adds up;
        - **pro**: mean overlap of the regions over the false positive rate, if the table has regions.

        Empty if there are only normal or only abnormal scores.
    """
    if not ranked.num_positives or not ranked.num_negatives:
        return {}
    found = {"roc": _over_rate(ranked, ranked.true_positives / ranked.num_positives)}
    found["precision_recall"] = _precision_over_recall(ranked)
    if ranked.overlap is not None:
        found["pro"] = cut(*_over_rate(ranked, ranked.overlap), fpr_limit)
    return {name: simplified(*curve) for name, curve in found.items()}


def _over_rate(ranked: RankedScores | RankedBins, heights: np.ndarray) -> Curve:
    if isinstance(ranked, RankedScores):
        return over_false_positives(ranked, heights)
    return np.append(0.0, ranked.false_positives / ranked.num_negatives), np.append(0.0, heights)


def _precision_over_recall(ranked: RankedScores | RankedBins) -> Curve:
    hits, alarms = ranked.true_positives, ranked.false_positives
    if isinstance(ranked, RankedBins):
        gains = ranked.positives > 0
        hits, alarms = hits[gains], alarms[gains]
    recall = np.append(0.0, hits / ranked.num_positives)
    return np.repeat(recall, 2)[1:-1], np.repeat(hits / (hits + alarms), 2)


def simplified(x: np.ndarray, y: np.ndarray, tolerance: float = TOLERANCE) -> Curve:
    """
    Return a curve with fewer points. No point of either curve is farther than the tolerance from the other curve.

    First, only the first, last, lowest and highest point of each narrow stretch are kept, then those of Douglas and
    Peucker's algorithm (Cartographica 10, 1973). Curves of an evaluation keep 50 to 450 points.

    Args:
        x (`np.ndarray` of shape `(N,)`): ascending.
        y (`np.ndarray` of shape `(N,)`): height of the curve.
        tolerance (`float`, *optional*, defaults to `TOLERANCE`): largest Euclidean distance.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: x and y of the kept points, with both ends.
    """
    kept = _extremes(x, y, _FIRST_SHARE * tolerance)
    points = np.stack([x[kept], y[kept]], axis=1)
    chosen = _douglas_peucker(points, (1 - _FIRST_SHARE) * tolerance)
    return points[chosen, 0], points[chosen, 1]


def _extremes(x: np.ndarray, y: np.ndarray, width: float) -> np.ndarray:
    """Return the indices of the first, last, lowest and highest point of each stretch of the given width."""
    stretch = np.floor(x / width).astype(np.int64)
    starts = np.flatnonzero(np.diff(stretch, prepend=-1))
    lengths = np.diff(starts, append=len(x))
    kept = [starts, starts + lengths - 1]
    for extreme in (np.minimum, np.maximum):
        reached = np.flatnonzero(np.repeat(extreme.reduceat(y, starts), lengths) == y)
        kept.append(reached[np.flatnonzero(np.diff(stretch[reached], prepend=-1))])
    return np.unique(np.concatenate(kept))


def _douglas_peucker(points: np.ndarray, tolerance: float) -> np.ndarray:
    chosen, waiting = np.zeros(len(points), bool), [(0, len(points) - 1)]
    chosen[[0, -1]] = True
    while waiting:
        first, last = waiting.pop()
        if last - first < 2:
            continue
        distances = _from_segment(points[first + 1 : last], points[first], points[last])
        farthest = int(distances.argmax())
        if distances[farthest] > tolerance:
            middle = first + 1 + farthest
            chosen[middle] = True
            waiting += [(first, middle), (middle, last)]
    return chosen


def _from_segment(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the distances of points (N, 2) from a segment, not from the line through it."""
    along, offsets = end - start, points - start
    length = along @ along
    place = np.clip(offsets @ along / length, 0, 1)[:, None] if length else 0.0
    return np.hypot(*(offsets - place * along).T)
