"""Thresholds from a handful of images: from normal ones alone, with a guarantee, or from labelled ones.

From n normal images that are like those to come, a threshold that lets k of them through has an expected false-alarm
rate of at most (k + 1) / (n + 1), whatever the distribution of scores: a new normal image is equally likely to take
any place among the n (split conformal prediction; Vovk et al. 2005). For pixels the loss of an image is the part of it
that is flagged, which lies in [0, 1] and falls with the threshold, so that (sum of losses + 1) / (n + 1) bounds its
expectation (conformal risk control; Angelopoulos et al., ICLR 2024). Neither can promise less than 1 / (n + 1).
"""

import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np


__all__ = ["Calibration", "from_labelled_scores", "from_normal_maps", "from_normal_scores"]

# Resolution of the pixel threshold: maps are probabilities in [0, 1]
_LEVELS = 4096
# How far above the highest score a threshold lies when nothing lies above it
_MARGIN = 1e-5


@dataclass
class Calibration:
    """
    A threshold and where it came from; kept in `preprocessor_config.json`.

    Args:
        threshold (`float`): scores (or pixels) at or above it are abnormal.
        method (`str`): "conformal" (from normal scores), "conformal_risk_control" (from normal maps) or "f1_max"
            (from labelled scores).
        num_images (`int`): images it was computed from.
        false_alarm_rate (`float`, *optional*): the rate that was wished for.
        false_alarm_bound (`float`, *optional*): what is guaranteed in expectation; above the wish if there were too
            few images.
        num_above (`int`, *optional*): calibration images at or above the threshold.
        f1 (`float`, *optional*): reached on the labelled images.
        date (`str`): ISO 8601.
    """

    threshold: float
    method: str
    num_images: int
    false_alarm_rate: float | None = None
    false_alarm_bound: float | None = None
    num_above: int | None = None
    f1: float | None = None
    date: str = ""

    def __post_init__(self):
        self.date = self.date or datetime.date.today().isoformat()

    @property
    def reached(self) -> bool:
        """Whether the wished rate is guaranteed."""
        return self.false_alarm_rate is None or self.false_alarm_bound <= self.false_alarm_rate + 1e-12

    def to_dict(self) -> dict:
        """Plain values, those that are None left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def describe(self) -> str:
        """One or two sentences for a terminal or a model card."""
        if self.method == "f1_max":
            return (
                f"Threshold {self.threshold:.4g}: best F1 ({self.f1:.3f}) on {self.num_images} labelled images,"
                f" {self.date}."
            )
        what = "images" if self.method == "conformal" else "pixels"
        text = (
            f"Threshold {self.threshold:.4g} from {self.num_images} normal images, {self.date}: at most"
            f" {self.false_alarm_bound:.2%} of normal {what} are expected above it."
        )
        if not self.reached:
            needed = int(np.ceil(1 / self.false_alarm_rate)) - 1
            text += (
                f" The wished {self.false_alarm_rate:.2%} cannot be promised from so few images; it takes at least"
                f" {needed}."
            )
        return text


def from_normal_scores(scores: Sequence[float], false_alarm_rate: float) -> Calibration:
    """
    An image threshold for a false-alarm rate, from the scores of normal images.

    Args:
        scores (`Sequence[float]`): of images that have no defect and are like those to come.
        false_alarm_rate (`float`): wished rate of normal images flagged, in (0, 1).

    Returns:
        [`Calibration`]: if there are too few images for the rate, the threshold lies just above the highest score and
        `reached` is False.

    Raises:
        ValueError: no scores, scores that are not finite, a rate outside (0, 1).
    """
    scores = _checked(scores, false_alarm_rate)
    n = len(scores)
    # allow k above such that (k + 1) / (n + 1) <= rate; the small term keeps 0.05 * 100 from being 4.999...
    allowed = max(0, int(np.floor(false_alarm_rate * (n + 1) + 1e-9)) - 1)
    ordered = np.sort(scores)[::-1]
    inside = ordered[min(allowed, n - 1)]
    outside = ordered[:allowed][ordered[:allowed] > inside]
    # in the middle of the gap, so that the rounding of another batch size does not turn a verdict
    threshold = float((inside + outside[-1]) / 2) if len(outside) else float(inside) + _MARGIN
    above = int((scores >= threshold).sum())
    return Calibration(
        threshold=threshold,
        method="conformal",
        num_images=n,
        false_alarm_rate=float(false_alarm_rate),
        false_alarm_bound=(above + 1) / (n + 1),
        num_above=above,
    )


def from_normal_maps(maps: Sequence[np.ndarray], false_alarm_rate: float) -> Calibration:
    """
    A pixel threshold for a false-alarm rate, from the maps of normal images.

    Args:
        maps (iterable of `np.ndarray` of shape `(height, width)`): maps in [0, 1] of normal images; of any sizes,
            looked at one by one.
        false_alarm_rate (`float`): wished part of normal pixels flagged, in (0, 1).

    Returns:
        [`Calibration`]: the threshold is a multiple of 1/4096; 1 and `reached` False if there are too few images.

    Raises:
        ValueError: no maps, values outside [0, 1], a rate outside (0, 1).
    """
    exceeding, n = np.zeros(_LEVELS + 1), 0
    for anomaly_map in maps:
        values = np.asarray(anomaly_map, dtype=np.float64)
        if not values.size or not (values.min() >= 0 and values.max() <= 1):
            raise ValueError("Maps must hold probabilities in [0, 1].")
        # part of the image at or above each level
        counts = np.bincount(np.floor(values * _LEVELS).astype(np.int64).ravel(), minlength=_LEVELS + 1)
        exceeding += np.cumsum(counts[::-1])[::-1] / values.size
        n += 1
    _checked(np.zeros(n), false_alarm_rate)
    bounds = (exceeding + 1) / (n + 1)
    good = np.flatnonzero(bounds <= false_alarm_rate + 1e-12)
    level = int(good[0]) if len(good) else _LEVELS
    return Calibration(
        threshold=level / _LEVELS,
        method="conformal_risk_control",
        num_images=n,
        false_alarm_rate=float(false_alarm_rate),
        false_alarm_bound=float(bounds[level]),
    )


def from_labelled_scores(scores: Sequence[float], labels: Sequence[int]) -> Calibration:
    """
    The threshold with the best F1 on labelled images.

    Args:
        scores (`Sequence[float]`): of all images.
        labels (`Sequence[int]`): 1 anomalous, 0 normal.

    Raises:
        ValueError: not one of each at least, or lengths that differ.
    """
    scores, labels = _checked(scores, 0.5), np.asarray(labels)
    if labels.shape != scores.shape or not np.isin(labels, (0, 1)).all():
        raise ValueError(f"Expected one label, 0 or 1, for each of {len(scores)} scores; got shape {labels.shape}.")
    if labels.min() == labels.max():
        raise ValueError("F1 needs normal and anomalous images; from normal ones alone use from_normal_scores.")
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], np.cumsum(labels[order])
    # only where the score changes can a threshold lie
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    f1 = 2 * hits[last] / (last + 1 + labels.sum())
    best = int(f1.argmax())
    return Calibration(
        threshold=float(ordered[last[best]]), method="f1_max", num_images=len(scores), f1=float(f1[best])
    )


def _checked(scores: Sequence[float], false_alarm_rate: float) -> np.ndarray:
    if not 0 < false_alarm_rate < 1:
        raise ValueError(f"false_alarm_rate={false_alarm_rate} must lie between 0 and 1.")
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"Calibration needs at least one image, got scores of shape {scores.shape}.")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite.")
    return scores
