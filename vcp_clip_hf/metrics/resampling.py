"""Metrics of many random samples of the images, computed from counts, to estimate the effect of the choice of images.

The input for each image is the number of its pixels in each bin of the score (or the bin of the image's own score).
For a sample that draws image i w_i times, the counts are added with the weights w. All metrics follow from these sums.
The method is the percentile bootstrap of Efron and Tibshirani (An Introduction to the Bootstrap, 1993, chapter 13).
"""

from collections.abc import Hashable, Sequence

import numpy as np


__all__ = ["metrics_of_counts", "resampled_weights"]


def resampled_weights(strata: Sequence[Hashable], count: int, seed: int) -> np.ndarray:
    """
    Draw samples of images with replacement, from each stratum as many as it has.

    Args:
        strata (`Sequence[Hashable]` of length N): stratum of each image, such as its product and its label.
        count (`int`): number of samples, R.
        seed (`int`): seed of the draws.

    Returns:
        `np.ndarray` of shape `(R, N)`, int64: how often each sample has each image.
    """
    generator = np.random.default_rng(seed)
    members: dict[Hashable, list[int]] = {}
    for number, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(number)
    weights = np.zeros((count, len(strata)), np.int64)
    for numbers in members.values():
        size = len(numbers)
        weights[:, numbers] = generator.multinomial(size, np.full(size, 1 / size), size=count)
    return weights


def metrics_of_counts(
    positives: np.ndarray,
    negatives: np.ndarray,
    overlap: np.ndarray | None = None,
    fpr_limit: float = 0.3,
    tied: bool = True,
) -> dict[str, np.ndarray]:
    """
    Return metrics of R samples.

    Args:
        positives (`np.ndarray` of shape `(R, K)`): number of abnormal scores in each bin, from the highest bin down.
        negatives (`np.ndarray` of shape `(R, K)`): number of normal scores.
        overlap (`np.ndarray` of shape `(R, K)`, *optional*): mean over regions of their fraction in each bin.
        fpr_limit (`float`, *optional*, defaults to 0.3): false positive rate up to which PRO is integrated.
        tied (`bool`, *optional*, defaults to `True`):
            Whether the scores in a bin are equal, so that all metrics are exact. Otherwise they count as evenly mixed.

    Returns:
        `dict[str, np.ndarray]` of shape `(R,)`, float64 in [0, 1]: `auroc`, `ap` and `f1_max`, as in `curves.py`, and
        `pro` with an overlap; NaN for samples with only normal or only abnormal scores.
    """
    hits, alarms = positives.cumsum(1), negatives.cumsum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        num_positives, num_negatives = hits[:, -1:], alarms[:, -1:]
        recall, rate = _from_zero(hits / num_positives), _from_zero(alarms / num_negatives)
        found = {
            "auroc": _areas(rate, recall),
            "ap": (np.diff(recall) * _precision(hits, alarms, tied)).sum(1),
            "f1_max": (2 * hits / (hits + alarms + num_positives)).max(1),
        }
        if overlap is not None:
            found["pro"] = _cut_areas(rate, _from_zero(overlap.cumsum(1)), fpr_limit) / fpr_limit
        both = (num_positives * num_negatives > 0)[:, 0]
    return {name: np.where(both, values, np.nan) for name, values in found.items()}


def _precision(hits: np.ndarray, alarms: np.ndarray, tied: bool) -> np.ndarray:
    """Return the mean precision over the abnormal scores of each bin, 0 above the first score."""
    precision = np.nan_to_num(hits / (hits + alarms))
    if tied:
        return precision
    above = np.pad(precision[:, :-1], ((0, 0), (1, 0)))
    first = np.pad(hits[:, :-1] + alarms[:, :-1], ((0, 0), (1, 0))) == 0
    return np.where(first, precision, (precision + above) / 2)


def _from_zero(curve: np.ndarray) -> np.ndarray:
    return np.pad(curve, ((0, 0), (1, 0)))


def _areas(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.diff(x) * (y[:, 1:] + y[:, :-1])).sum(1) / 2


def _cut_areas(x: np.ndarray, y: np.ndarray, limit: float) -> np.ndarray:
    """Return the areas under straight lines between points, up to a limit of x."""
    widths = np.diff(np.minimum(x, limit))
    steps = np.diff(x)
    share = np.divide(widths, steps, out=np.zeros_like(widths), where=steps > 0)
    return (widths * (y[:, :-1] + np.diff(y) * share / 2)).sum(1)
