"""Exact metrics of anomaly scores: AUROC, average precision, F1-max, IoU and per-region overlap (PRO).

All of them follow from one table, [`RankedScores`]: for every distinct score of an abnormal pixel, the number of
abnormal and of normal pixels with at least that score. Scores of normal pixels in between change none of the metrics.
The many normal pixels are therefore sorted by value alone, which is fast; the few abnormal ones are sorted with their
regions.

The functions work on one score per image as well, except for the per-region ones.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..connected_components import region_sizes
from .inputs import Images, Values, as_images, as_labels, as_map, as_mask, as_scores


__all__ = [
    "RankedScores",
    "UndefinedMetricError",
    "auroc",
    "average_precision",
    "cut",
    "even_thresholds",
    "f1_max",
    "iou",
    "over_false_positives",
    "pro",
    "pro_200_steps",
    "split_scores",
    "stretched_area",
]


class UndefinedMetricError(ValueError):
    """Raised if a metric has no value for the data; the message says why."""


@dataclass(frozen=True)
class RankedScores:
    """
    Table that all metrics are computed from.

    Args:
        negatives (`np.ndarray` of shape `(N,)`): scores of the normal pixels (or images), ascending.
        thresholds (`np.ndarray` of shape `(D,)`): the distinct scores of the abnormal pixels, descending.
        true_positives (`np.ndarray` of shape `(D,)`): number of abnormal pixels with a score >= threshold.
        false_positives (`np.ndarray` of shape `(D,)`): number of normal pixels with a score >= threshold.
        false_positives_above (`np.ndarray` of shape `(D,)`): number of normal pixels with a score > threshold.
        overlap (`np.ndarray` of shape `(D,)`, *optional*):
            Mean over all regions of the fraction of a region with a score >= threshold, in [0, 1].
        unit (`str`): unit in messages, "pixels" or "images".
    """

    negatives: np.ndarray
    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    false_positives_above: np.ndarray
    overlap: np.ndarray | None = None
    unit: str = "pixels"

    @classmethod
    def from_split(
        cls,
        negatives: np.ndarray,
        positives: np.ndarray,
        sizes: np.ndarray | None = None,
        num_regions: int = 0,
        unit: str = "pixels",
    ) -> "RankedScores":
        """
        Rank scores that are already separated. Sorts `negatives` in place.

        Args:
            negatives (`np.ndarray` of shape `(N,)`): finite scores of the normal pixels.
            positives (`np.ndarray` of shape `(P,)`): finite scores of the abnormal pixels, of the same dtype.
            sizes (`np.ndarray` of shape `(P,)`, *optional*): size of the region of each abnormal pixel.
            num_regions (`int`): number of regions, for the mean over them.
            unit (`str`): unit in messages, "pixels" or "images".
        """
        negatives.sort()
        overlap = None
        if sizes is None:
            positives = np.sort(positives)[::-1]
        else:
            order = np.argsort(positives)[::-1]
            positives = positives[order]
            overlap = np.cumsum(1.0 / sizes[order]) / max(num_regions, 1)
        last_of_equals = np.flatnonzero(np.append(positives[1:] != positives[:-1], True)[: len(positives)])
        thresholds = positives[last_of_equals]
        total = len(negatives)
        # Ascending needles pass through `negatives` once, without cache misses
        needles = thresholds[::-1]
        return cls(
            negatives=negatives,
            thresholds=thresholds,
            true_positives=last_of_equals + 1,
            false_positives=total - np.searchsorted(negatives, needles, side="left")[::-1],
            false_positives_above=total - np.searchsorted(negatives, needles, side="right")[::-1],
            # Sums of fractions may exceed 1 by a rounding error
            overlap=None if overlap is None else np.minimum(overlap[last_of_equals], 1.0),
            unit=unit,
        )

    @classmethod
    def from_labels(cls, scores: Values, labels: Values, unit: str = "images") -> "RankedScores":
        """
        Rank one score per image (or per pixel, without regions).

        Args:
            scores (`np.ndarray`, `torch.Tensor` or sequence of shape `(length,)`): finite, higher is more abnormal.
            labels (`np.ndarray`, `torch.Tensor` or sequence of shape `(length,)`): 0 or 1, 1 where abnormal.
            unit (`str`): unit in messages, "pixels" or "images".

        Raises:
            ValueError: lengths differ, scores are not finite, or labels are not 0 and 1.
        """
        scores, labels = as_scores(scores, "scores"), as_labels(labels, "labels")
        if len(scores) != len(labels):
            raise ValueError(f"{len(scores)} scores came with {len(labels)} labels; there must be one for each.")
        return cls.from_split(scores[~labels], scores[labels], unit=unit)

    @classmethod
    def from_maps(cls, maps: Images, masks: Images) -> "RankedScores":
        """
        Rank all pixels of a set of images together.

        Args:
            maps (`np.ndarray` or `torch.Tensor` of shape `(N, height, width)`, or a sequence of 2-D ones):
                Anomaly maps; higher is more abnormal. Finite, of any range.
            masks (`np.ndarray` or `torch.Tensor` of shape `(N, height, width)`, or a sequence of 2-D ones):
                Booleans or 0/1, 1 where abnormal.

        Raises:
            ValueError: shapes differ, masks have other values, or maps have NaN; the message names the image.
        """
        maps, masks = as_images(maps, "maps"), as_images(masks, "masks")
        if len(maps) != len(masks):
            raise ValueError(f"{len(maps)} maps came with {len(masks)} masks; there must be one for each.")
        parts, num_regions = [], 0
        for number, (anomaly_map, mask) in enumerate(zip(maps, masks, strict=True)):
            try:
                values = as_map(anomaly_map)
                *part, regions = split_scores(values, as_mask(mask, values.shape))
            except ValueError as error:
                raise ValueError(f"Image {number}: {error}.") from error
            parts.append(part)
            num_regions += regions
        if not parts:
            raise ValueError("There are no maps.")
        negatives, positives, sizes = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        dtype = np.result_type(negatives, positives)
        return cls.from_split(negatives.astype(dtype, copy=False), positives.astype(dtype), sizes, num_regions)

    @property
    def num_positives(self) -> int:
        """Return the number of abnormal pixels."""
        return int(self.true_positives[-1]) if len(self.true_positives) else 0

    @property
    def num_negatives(self) -> int:
        """Return the number of normal pixels."""
        return len(self.negatives)

    @cached_property
    def best_f1(self) -> tuple[float, float]:
        """Return the result of [`f1_max`], computed once for three metrics."""
        _need_both(self)
        # A normal pixel's score is never a better threshold than the next abnormal one's: same hits, more alarms
        f1 = 2 * self.true_positives / (self.true_positives + self.false_positives + self.num_positives)
        best = np.flatnonzero(f1 == f1.max())[-1]
        return float(f1[best]), float(self.thresholds[best])


def split_scores(anomaly_map: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """
    Split the scores of one checked map by its mask. Without a mask, all pixels are normal.

    Returns:
        Scores of the normal pixels; scores of the abnormal pixels; size in pixels of the region of each abnormal pixel
        (int32); number of regions. The arrays are new and one-dimensional.
    """
    if mask is None or not mask.any():
        return anomaly_map.flatten(), np.empty(0, anomaly_map.dtype), np.empty(0, np.int32), 0
    return anomaly_map[~mask], anomaly_map[mask], *region_sizes(mask)


def auroc(ranked: RankedScores) -> float:
    """
    Return the area under the ROC curve: the probability that an abnormal pixel has a higher score than a normal one,
    with ties counted half.

    Raises:
        UndefinedMetricError: all pixels are normal, or all abnormal.
    """
    _need_both(ranked)
    found = np.diff(ranked.true_positives, prepend=0).astype(np.float64)
    passed = (2 * ranked.num_negatives - ranked.false_positives - ranked.false_positives_above).astype(np.float64)
    return _clip(found @ passed / (2.0 * ranked.num_positives * ranked.num_negatives))


def average_precision(ranked: RankedScores) -> float:
    """
    Return the area under the precision-recall curve as a sum of steps, without interpolation: over all thresholds,
    precision times the recall gained. Equal to scikit-learn's `average_precision_score`.

    Raises:
        UndefinedMetricError: all pixels are normal, or all abnormal (then any scores would reach 1).
    """
    _need_both(ranked)
    found = np.diff(ranked.true_positives, prepend=0)
    precision = ranked.true_positives / (ranked.true_positives + ranked.false_positives)
    return _clip(found @ precision / ranked.num_positives)


def f1_max(ranked: RankedScores) -> tuple[float, float]:
    """
    Return the largest F1 of "abnormal where score >= threshold" over all thresholds, and the lowest threshold that
    reaches it.

    Raises:
        UndefinedMetricError: all pixels are normal, or all abnormal (then any scores would reach 1).
    """
    return ranked.best_f1


def iou(ranked: RankedScores, threshold: float) -> float:
    """
    Return the intersection over union of the mask and "abnormal where score > threshold", over all pixels together.
    The comparison is strict, as in the VCP-CLIP authors' code.

    Raises:
        UndefinedMetricError: all pixels are normal, or all abnormal.
    """
    _need_both(ranked)
    # In the precision of the scores, as NumPy compares an array with a number; this also saves a copy of all scores
    threshold = ranked.negatives.dtype.type(threshold)
    above = np.searchsorted(-ranked.thresholds, -threshold, side="left")
    hits = int(ranked.true_positives[above - 1]) if above else 0
    alarms = ranked.num_negatives - int(np.searchsorted(ranked.negatives, threshold, side="right"))
    return hits / (ranked.num_positives + alarms)


def pro(ranked: RankedScores, fpr_limit: float = 0.3) -> float:
    """
    Return the area under the per-region overlap curve (Bergmann et al., MVTec AD, IJCV 2021) up to a false positive
    rate, divided by that rate. Exact: every distinct score is a threshold, the curve is linear between two of them and
    is cut by interpolation.

    Args:
        ranked ([`RankedScores`]): scores ranked with regions.
        fpr_limit (`float`, *optional*, defaults to 0.3): largest false positive rate, in (0, 1].

    Raises:
        UndefinedMetricError: all pixels are normal, or all abnormal.
    """
    _need_regions(ranked, fpr_limit)
    return _clip(_area(*cut(*over_false_positives(ranked, ranked.overlap), fpr_limit)) / fpr_limit)


def over_false_positives(ranked: RankedScores, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Return the corners of a curve over the false positive rate, from (0, 0) to a rate of 1.

    Args:
        ranked ([`RankedScores`]): scores, with normal and abnormal ones.
        heights (`np.ndarray` of shape `(D,)`): height of the curve at each threshold, ascending.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: false positive rates and heights, both of shape `(2 * D + 2,)`, ascending.
    """
    # From one threshold to the next: first the normal pixels in between, then those that tie with abnormal ones
    points = len(ranked.thresholds)
    rate, height = np.zeros(2 * points + 2), np.zeros(2 * points + 2)
    rate[1:-1:2] = ranked.false_positives_above
    rate[2:-1:2] = ranked.false_positives
    rate[-1] = ranked.num_negatives
    rate /= ranked.num_negatives
    height[2:-1:2] = heights
    height[3::2] = heights
    return rate, height


def pro_200_steps(ranked: RankedScores, fpr_limit: float = 0.3, steps: int = 200) -> float:
    """
    Return PRO as the VCP-CLIP authors (and APRIL-GAN, AnomalyCLIP, ...) compute it: of 200 evenly spaced thresholds
    between the lowest and the highest score, those with a false positive rate below the limit are kept, and their
    rates are stretched to run from 0 to 1.

    This estimator is for comparison with published tables. It changes when scores are rescaled without changing their
    order; [`pro`] does not.

    Raises:
        UndefinedMetricError: all pixels are normal, or all abnormal; all scores are equal; or none or only one false
            positive rate is below the limit, so that nothing can be stretched.
    """
    _need_regions(ranked, fpr_limit)
    lowest = min(ranked.negatives[0], ranked.thresholds[-1])
    highest = max(ranked.negatives[-1], ranked.thresholds[0])
    thresholds = even_thresholds(lowest, highest, steps)
    alarms = ranked.num_negatives - np.searchsorted(ranked.negatives, thresholds, side="right")
    above = np.searchsorted(-ranked.thresholds, -thresholds, side="left")
    overlap = np.append(0.0, ranked.overlap)[above]
    return stretched_area(alarms / ranked.num_negatives, overlap, fpr_limit)


def even_thresholds(lowest: np.floating, highest: np.floating, steps: int) -> np.ndarray:
    """
    Return the authors' thresholds, for "score > threshold". They are steps of float64 between extremes in the
    precision of the scores; here they are rounded down to that precision, which decides every comparison the same way.
    """
    if lowest == highest:
        raise UndefinedMetricError(f"all scores are equal ({float(lowest):g}), there are no steps between them")
    delta = (highest - lowest) / lowest.dtype.type(steps)
    if not np.isfinite(delta) or lowest + delta == lowest:
        raise UndefinedMetricError(
            f"scores from {float(lowest):g} to {float(highest):g} cannot be cut into {steps} steps"
        )
    thresholds = np.arange(lowest, highest, delta)
    rounded = thresholds.astype(lowest.dtype)
    return np.where(rounded > thresholds, np.nextafter(rounded, lowest), rounded)


def stretched_area(rate: np.ndarray, overlap: np.ndarray, fpr_limit: float) -> float:
    """Return the area under (rate, overlap), both descending, for rates below the limit, stretched to a width of 1."""
    kept = rate < fpr_limit
    if not kept.any():
        raise UndefinedMetricError(f"no threshold has a false positive rate below {fpr_limit:g}")
    rate, overlap = rate[kept], overlap[kept]
    width = rate[0] - rate[-1]
    if width <= 0:
        raise UndefinedMetricError(
            f"all thresholds with a false positive rate below {fpr_limit:g} have the same rate ({rate[0]:g}), which"
            " cannot be stretched to run from 0 to 1"
        )
    return _clip(_area(rate[::-1], overlap[::-1]) / width)


def _need_both(ranked: RankedScores) -> None:
    if not ranked.num_positives:
        raise UndefinedMetricError(f"no abnormal {ranked.unit}")
    if not ranked.num_negatives:
        raise UndefinedMetricError(f"no normal {ranked.unit}")


def _need_regions(ranked: RankedScores, fpr_limit: float) -> None:
    if not 0 < fpr_limit <= 1:
        raise ValueError(f"fpr_limit={fpr_limit} must be in (0, 1].")
    if ranked.overlap is None:
        raise ValueError("PRO needs regions: rank with `RankedScores.from_maps`, not `from_labels`.")
    _need_both(ranked)


def cut(x: np.ndarray, y: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the part of a curve (x ascending) up to the limit, with an interpolated end."""
    inside = np.searchsorted(x, limit, side="right")
    if inside == len(x):
        return x, y
    share = (limit - x[inside - 1]) / (x[inside] - x[inside - 1])
    end = y[inside - 1] + share * (y[inside] - y[inside - 1])
    return np.append(x[:inside], limit), np.append(y[:inside], end)


def _area(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.diff(x) @ (y[1:] + y[:-1]) / 2)


def _clip(value: float) -> float:
    """Clip rounding errors of sums to [0, 1]."""
    return float(min(max(value, 0.0), 1.0))
