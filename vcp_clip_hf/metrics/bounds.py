"""Bounds of the metrics, from a histogram of scores.

A histogram loses only the order of different scores within a bin. Each function here therefore returns three numbers:
the metric for the worst and for the best order within every bin, and an estimate between the two. The exact value lies
between the worst and the best. A bin whose scores are all equal loses nothing. The exact definitions are in
`curves.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .curves import UndefinedMetricError, even_thresholds, stretched_area


__all__ = [
    "BoundedValue",
    "RankedBins",
    "auroc_bounds",
    "average_precision_bounds",
    "f1_max_bounds",
    "iou_bounds",
    "pro_200_steps_bounds",
    "pro_bounds",
]


# Rounding error of sums over all pixels of a dataset, by which the bounds are widened
_ROUNDING = 1e-9


class BoundedValue(NamedTuple):
    """An estimate, with a lower and an upper bound of the exact value."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True)
class RankedBins:
    """
    The K occupied bins, from the highest score down.

    Args:
        index (`Callable`): function from scores to the numbers of their bins.
        lower_edge (`Callable`): function from the number of a bin to its smallest score.
        bins (`np.ndarray` of shape `(K,)`): numbers of the bins, descending.
        values (`np.ndarray` of shape `(K,)`): common score of all pixels in a bin, NaN if they differ.
        positives, negatives (`np.ndarray` of shape `(K,)`): number of abnormal and normal pixels in each bin.
        overlap (`np.ndarray` of shape `(K,)`): mean over the regions of their fraction in this bin or above.
        lowest, highest (`np.floating`): extremes of all scores, exact.
    """

    index: Callable[[np.ndarray], np.ndarray]
    lower_edge: Callable[[int], float]
    bins: np.ndarray
    values: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    overlap: np.ndarray
    lowest: np.floating
    highest: np.floating

    @cached_property
    def true_positives(self) -> np.ndarray:
        """Return the number of abnormal pixels in this bin or above, int64 `(K,)`."""
        return np.cumsum(self.positives)

    @cached_property
    def false_positives(self) -> np.ndarray:
        """Return the number of normal pixels in this bin or above, int64 `(K,)`."""
        return np.cumsum(self.negatives)

    @cached_property
    def tied(self) -> np.ndarray:
        """Return whether all scores in a bin are equal, bool `(K,)`."""
        return ~np.isnan(self.values)

    @property
    def num_positives(self) -> int:
        """Return the number of abnormal pixels."""
        return int(self.positives.sum())

    @property
    def num_negatives(self) -> int:
        """Return the number of normal pixels."""
        return int(self.negatives.sum())

    def need_both(self) -> None:
        """Raise an UndefinedMetricError unless there are normal and abnormal pixels."""
        if not self.num_positives:
            raise UndefinedMetricError("no abnormal pixels")
        if not self.num_negatives:
            raise UndefinedMetricError("no normal pixels")


def auroc_bounds(ranked: RankedBins) -> BoundedValue:
    """
    Return bounds of AUROC. At the bounds, all pairs of an abnormal and a normal pixel in one bin are lost, or all are
    won; the estimate counts them half, as ties.

    Raises:
        UndefinedMetricError: all pixels are normal, or all abnormal.
    """
    ranked.need_both()
    pairs = float(ranked.num_positives) * ranked.num_negatives
    positives = ranked.positives.astype(np.float64)
    won = positives @ (ranked.num_negatives - ranked.false_positives).astype(np.float64) / pairs
    together = positives * ranked.negatives
    won += together[ranked.tied].sum() / 2 / pairs
    undecided = together[~ranked.tied].sum() / pairs
    return _bounded(won + undecided / 2, won, won + undecided)


def average_precision_bounds(ranked: RankedBins) -> BoundedValue:
    """
    Return bounds of average precision. Best order in every bin: the abnormal pixels first, all with one score. Worst
    order: the normal pixels first, then the abnormal ones, each with another score. The estimate is the middle.

    Raises:
        UndefinedMetricError: all pixels are normal, or all abnormal.
    """
    ranked.need_both()
    here = np.flatnonzero(ranked.positives)
    found = ranked.positives[here].astype(np.float64)
    hits, alarms = ranked.true_positives[here].astype(np.float64), ranked.false_positives[here].astype(np.float64)
    best = found * hits / (hits + alarms - ranked.negatives[here])
    # At worst, the i-th of n has the precision f(i) = (h + i) / (h + i + c), with h hits above the bin and c alarms
    # down to its end. f is concave, hence f(i) >= mean of f over [i - 1/2, i + 1/2], and the sum is at least an
    # integral.
    worst = found - alarms * np.log1p(found / (hits - found + alarms + 0.5))
    tied = ranked.tied[here]
    best[tied] = worst[tied] = (found * hits / (hits + alarms))[tied]
    lower, upper = worst.sum() / ranked.num_positives, best.sum() / ranked.num_positives
    return _bounded((lower + upper) / 2, lower, upper)


def f1_max_bounds(ranked: RankedBins) -> tuple[BoundedValue, BoundedValue]:
    """
    Return bounds of F1-max, and of its threshold. The lower bound of F1-max, which is also the estimate, is reached at
    the estimated threshold, the edge of a bin. At the upper bound, a threshold inside a bin separates its abnormal
    pixels from its normal ones. The exact threshold lies in one of the bins that could reach the maximum that way.

    Raises:
        UndefinedMetricError: all pixels are normal, or all abnormal.
    """
    best, rivals, reached, possible = _f1_of_bins(ranked)
    return (
        _bounded(reached, reached, possible),
        BoundedValue(_lower_edge(ranked, best), _lower_edge(ranked, rivals[-1]), _upper_edge(ranked, rivals[0])),
    )


def iou_bounds(ranked: RankedBins) -> BoundedValue:
    """
    Return bounds of the intersection over union at the threshold of F1-max, for scores above it. The exact threshold
    may lie anywhere in the bins that [`f1_max_bounds`] leaves open. The estimate is the value at the edge that reaches
    the F1.

    Raises:
        UndefinedMetricError: all pixels are normal, or all abnormal.
    """
    best, rivals, _, _ = _f1_of_bins(ranked)
    hits, alarms, tied = ranked.true_positives[rivals], ranked.false_positives[rivals], ranked.tied[rivals]
    hits_above, alarms_above = hits - ranked.positives[rivals], alarms - ranked.negatives[rivals]
    lower = hits_above / (ranked.num_positives + np.where(tied, alarms_above, alarms))
    upper = np.where(tied, hits_above, hits) / (ranked.num_positives + alarms_above)
    if ranked.tied[best]:
        value = lower[rivals == best].item()
    else:
        value = ranked.true_positives[best] / (ranked.num_positives + ranked.false_positives[best])
    return _bounded(value, lower.min(), upper.max())


def pro_bounds(ranked: RankedBins, fpr_limit: float = 0.3) -> BoundedValue:
    """
    Return bounds of the per-region overlap up to a false positive rate, divided by that rate. Within a bin, the curve
    runs from one corner of a rectangle to the opposite one: along the lower edges at the lower bound, along the upper
    edges at the upper. The estimate is the middle.

    Raises:
        UndefinedMetricError: all pixels are normal, or all abnormal.
    """
    if not 0 < fpr_limit <= 1:
        raise ValueError(f"fpr_limit={fpr_limit} must be in (0, 1].")
    ranked.need_both()
    limit = fpr_limit * ranked.num_negatives
    widths = np.diff(np.minimum(ranked.false_positives, limit), prepend=0.0)
    floor, ceiling = np.append(0.0, ranked.overlap[:-1]), ranked.overlap
    # Through equal scores the curve is a straight line, which the limit may cut
    share = np.divide(widths, ranked.negatives, out=np.zeros_like(widths), where=ranked.negatives > 0)
    straight = floor + (ceiling - floor) * share / 2
    lower = widths @ np.where(ranked.tied, straight, floor) / limit
    upper = widths @ np.where(ranked.tied, straight, ceiling) / limit
    return _bounded((lower + upper) / 2, lower, upper)


def pro_200_steps_bounds(ranked: RankedBins, fpr_limit: float = 0.3, steps: int = 200) -> BoundedValue:
    """
    Return bounds of PRO as the VCP-CLIP authors compute it, see `pro_200_steps`. The thresholds are known exactly, and
    each leaves only its own bin open. The bounds hold if the exact estimator has a value.

    Raises:
        UndefinedMetricError: as `pro_200_steps`.
    """
    if not 0 < fpr_limit <= 1:
        raise ValueError(f"fpr_limit={fpr_limit} must be in (0, 1].")
    ranked.need_both()
    thresholds = even_thresholds(ranked.lowest, ranked.highest, steps)
    bins = ranked.index(thresholds)
    surely = np.searchsorted(-ranked.bins, -bins, side="left")
    possibly = np.searchsorted(-ranked.bins, -bins, side="right")
    # In a tied bin, comparing with its one score decides; a comparison with NaN is false
    values = np.append(ranked.values, np.nan)[surely]
    occupied = possibly > surely
    possibly = np.where(occupied & (values <= thresholds), surely, possibly)
    surely = np.where(occupied & (values > thresholds), possibly, surely)
    rates = np.append(0, ranked.false_positives) / ranked.num_negatives
    overlaps = np.append(0.0, ranked.overlap)
    few, many = rates[surely], rates[possibly]

    # If the limit falls into a bin, several thresholds may be the first below it
    first = np.count_nonzero(few >= fpr_limit)
    last = min(np.count_nonzero(many >= fpr_limit), len(bins) - 2)
    bounds = [
        _stretched_area_bounds(
            few[start:], many[start:], overlaps[surely][start:], overlaps[possibly][start:], fpr_limit
        )
        for start in range(first, last + 1)
        if many[start] > few[-1]
    ]
    middle = (few + many) / 2, (overlaps[surely] + overlaps[possibly]) / 2
    if not bounds:
        return _bounded(stretched_area(*middle, fpr_limit), 0.0, 1.0)  # raises, saying why
    lower, upper = min(bound[0] for bound in bounds), max(bound[1] for bound in bounds)
    try:
        value = stretched_area(*middle, fpr_limit)
    except UndefinedMetricError:
        value = (lower + upper) / 2
    return _bounded(value, lower, upper)


def _stretched_area_bounds(
    few: np.ndarray, many: np.ndarray, little: np.ndarray, much: np.ndarray, fpr_limit: float
) -> tuple[float, float]:
    """
    Return bounds of `stretched_area`, with all points kept, for rates in [few, many] and overlaps in [little, much].

    The area divided by the width is a mean of overlaps, weighted with the steps of the rate. It grows with every
    overlap. It grows with the largest rate, where overlaps are largest, and with the smallest rate, since that drops
    the smallest overlaps. It shrinks when a rate in between grows, since that moves weight from larger overlaps to
    smaller ones.
    """
    lower, upper = little[-1], much[0]

    rates = np.maximum(few, many[-1])
    rates[0] = min(many[0], np.nextafter(fpr_limit, 0))
    if rates[0] > rates[-1]:
        upper = min(upper, _mean_overlap(rates, much))

    rates = np.minimum(many, few[0])
    rates[0], rates[-1] = few[0], few[-1]
    if rates[0] > rates[-1]:
        lower = max(lower, _mean_overlap(rates, little))
    return float(lower), float(upper)


def _mean_overlap(rates: np.ndarray, overlaps: np.ndarray) -> float:
    steps = rates[:-1] - rates[1:]
    return float(steps @ (overlaps[:-1] + overlaps[1:]) / 2 / (rates[0] - rates[-1]))


def _f1_of_bins(ranked: RankedBins) -> tuple[int, np.ndarray, float, float]:
    """
    Return the position of the bin whose lower edge reaches the largest F1, the positions of the bins that could hold
    the exact maximum, the F1 reached, and its largest possible value.
    """
    ranked.need_both()
    here = np.flatnonzero(ranked.positives)
    hits, alarms = ranked.true_positives[here], ranked.false_positives[here]
    avoidable = np.where(ranked.tied[here], 0, ranked.negatives[here])
    reached = 2 * hits / (hits + alarms + ranked.num_positives)
    possible = 2 * hits / (hits + alarms - avoidable + ranked.num_positives)
    best = np.flatnonzero(reached == reached.max())[-1]
    return int(here[best]), here[possible >= reached[best]], float(reached[best]), float(possible.max())


def _lower_edge(ranked: RankedBins, position: int) -> float:
    """Return the smallest score that a bin can hold, in the precision of the scores."""
    if ranked.tied[position]:
        return float(ranked.values[position])
    edge = max(ranked.lower_edge(int(ranked.bins[position])), float(ranked.lowest))
    rounded = ranked.lowest.dtype.type(edge)
    # As Python numbers: NumPy would round the edge for the comparison
    return float(rounded if float(rounded) >= edge else np.nextafter(rounded, ranked.highest))


def _upper_edge(ranked: RankedBins, position: int) -> float:
    """Return a number that no score in a bin exceeds."""
    if ranked.tied[position]:
        return float(ranked.values[position])
    if position == 0:
        return float(ranked.highest)
    return min(ranked.lower_edge(int(ranked.bins[position]) + 1), float(ranked.highest))


def _bounded(value: float, lower: float, upper: float) -> BoundedValue:
    lower, upper = max(float(lower) - _ROUNDING, 0.0), min(float(upper) + _ROUNDING, 1.0)
    return BoundedValue(min(max(float(value), lower), upper), lower, upper)
