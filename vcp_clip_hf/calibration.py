"""Thresholds from a handful of images: from normal images alone, with a guarantee, or from labeled images.

From n normal images that are like those to come, a threshold that lets k of them through has an expected false-alarm
rate of at most (k + 1) / (n + 1), whatever the distribution of scores: a new normal image is equally likely to take
any place among the n (split conformal prediction; Vovk et al. 2005). For pixels, the loss of an image is the fraction
of its pixels that is flagged. It lies in [0, 1] and falls with the threshold, so that (sum of losses + 1) / (n + 1)
bounds its expectation (conformal risk control; Angelopoulos et al., ICLR 2024). Both bounds are at least 1 / (n + 1).

With a memory of references, normal images that are not references are used as above (split). References are each
scored against the other references (leave one out), and the same bounds hold. In general, only the bounds of the
jackknife+ hold (Barber et al. 2021), which are twice as large; here, the distance to the nearest patch never grows
when an image is added, and neither does the smallest ratio of relative distances (`patch_spacing.py`). Proof: let s(i)
be the score of image i against all others of n + 1 images: the n references and the new image. These n + 1 scores are
exchangeable, so the bounds hold for them. The score of a reference against the other references alone is s(i) or
higher, and that of the new image is its s(i). Therefore a threshold from the former is at least as high as needed. The
proof needs a map and a score that never fall when a distance rises, which is true of the fused map and of every score,
and an exact memory: a coreset can lose the nearest patch.

Thresholds lie in gaps between scores, away from both sides, because the last digits of a score depend on the batch
size and the processor (see `thresholds.TOLERANCE`).
"""

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .thresholds import TOLERANCE


__all__ = [
    "Calibration",
    "check_rate",
    "describe_calibration",
    "from_labeled_scores",
    "from_normal_maps",
    "from_normal_scores",
]

# Resolution of the pixel threshold: maps are probabilities in [0, 1]
_LEVELS = 4096
# Distance from the highest score to a threshold above all scores
_MARGIN = 1e-5
# Scores that differ by less count as one: a threshold is never placed between them
_GAP = 4 * TOLERANCE


@dataclass
class Calibration:
    """
    A threshold and its origin; kept in `preprocessor_config.json`.

    Args:
        threshold (`float`): scores (or pixels) at or above it are abnormal.
        method (`str`): "conformal" (from normal scores), "conformal_risk_control" (from normal maps) or "f1_max"
            (from labeled scores).
        num_images (`int`): number of images that it was computed from.
        false_alarm_rate (`float`, *optional*): target rate.
        false_alarm_bound (`float`, *optional*): rate guaranteed in expectation; above the target if there were too
            few images.
        num_above (`int`, *optional*): number of calibration images at or above the threshold.
        f1 (`float`, *optional*): F1 reached on the labeled images.
        num_left_out (`int`, *optional*): number of given images that were left out because they are references, or,
            with `leave_one_out`, copies of others.
        leave_one_out (`bool`, *optional*): whether the images are the references, each scored against the others.
        date (`str`): ISO 8601.
    """

    threshold: float
    method: str
    num_images: int
    false_alarm_rate: float | None = None
    false_alarm_bound: float | None = None
    num_above: int | None = None
    f1: float | None = None
    num_left_out: int | None = None
    leave_one_out: bool | None = None
    date: str = ""

    def __post_init__(self):
        self.date = self.date or datetime.date.today().isoformat()

    @property
    def reached(self) -> bool:
        """Return whether the target rate is guaranteed."""
        return self.false_alarm_rate is None or self.false_alarm_bound <= self.false_alarm_rate + 1e-12

    def to_dict(self) -> dict:
        """Return plain values without those that are None."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def describe(self) -> str:
        """Return one or two sentences for a terminal or a model card."""
        if self.method == "f1_max":
            return (
                f"Threshold {self.threshold:.4g}: best F1 ({self.f1:.3f}) on {self.num_images} labeled images,"
                f" {self.date}."
            )
        what = "images" if self.method == "conformal" else "pixels"
        origin = ", each scored against the other references" if self.leave_one_out else ""
        text = (
            f"Threshold {self.threshold:.4g} from {self.num_images} normal images{origin}, {self.date}: at most"
            f" {self.false_alarm_bound:.2%} of normal {what} are expected above it."
        )
        return text if self.reached else f"{text} {self._shortfall(what)}"

    def _shortfall(self, what: str) -> str:
        """Return why the target rate was not reached, and what the threshold is instead."""
        needed = int(np.ceil(1 / self.false_alarm_rate - 1e-9)) - 1
        target = f"The requested {self.false_alarm_rate:.2%} cannot be guaranteed"
        if what == "pixels":
            place = "It is the lowest threshold that flags as few of these pixels as possible."
        else:
            place = "It lies just above the highest of these scores."
        if self.num_images >= needed:
            return f"{target} below the end of the scale, where more of these pixels lie. {place}"
        return f"{target} with so few images; at least {needed} are needed. {place}"


def describe_calibration(calibration: dict[str, Any]) -> list[str]:
    """
    Describe the thresholds of a checkpoint, one line for images and one for masks.

    Args:
        calibration (`dict[str, Any]`): `calibration` of the image processor, as the pipeline's `calibrate` writes it.
    """
    lines = [
        f"{title}: {Calibration(**calibration[what]).describe()}"
        for what, title in (("image", "Images"), ("pixel", "Masks"))
        if what in calibration
    ]
    if "pixel" not in calibration:
        score_mode = calibration.get("settings", calibration).get("score_mode", "max")
        lines.append(
            "Masks: the threshold of the images."
            if score_mode == "max"
            else f"Masks: no threshold, since scores of {score_mode!r} are not values of a map; give a pixel"
            " false-alarm rate."
        )
    return lines


def from_normal_scores(scores: Sequence[float], false_alarm_rate: float, highest: float = np.inf) -> Calibration:
    """
    Compute an image threshold for a false-alarm rate, from the scores of normal images.

    Args:
        scores (`Sequence[float]`): scores of images without defect that are like those to come.
        false_alarm_rate (`float`): target false-alarm rate on normal images, in (0, 1).
        highest (`float`, *optional*, defaults to infinity): upper end of the scale of the scores.

    Returns:
        [`Calibration`]: if there are too few images for the rate, the threshold lies just above the highest score and
        `reached` is False.

    Raises:
        ValueError: there are no scores, some are not finite, the rate is outside (0, 1), or so many scores are at the
            upper end of their scale that no threshold would be reached by a score and keep the rate.
    """
    scores = _checked(scores, false_alarm_rate)
    n = len(scores)
    # largest k with (k + 1) / (n + 1) <= rate; the small term keeps 0.05 * 100 from becoming 4.999...
    allowed = max(0, int(np.floor(false_alarm_rate * (n + 1) + 1e-9)) - 1)
    ordered = np.sort(scores)
    # the k + 1 highest scores: at most k of them may be flagged; the threshold lies in the first clear gap
    top = ordered[n - 1 - min(allowed, n - 1) :]
    gaps = np.flatnonzero(np.diff(top) > _GAP)
    threshold = float(top[gaps[0]] + top[gaps[0] + 1]) / 2 if len(gaps) else float(top[-1]) + _MARGIN
    if threshold > highest:
        raise ValueError(
            f"{int((scores > highest - _MARGIN).sum())} of {n} normal images have the highest score possible,"
            f" {highest:g}, so that no threshold keeps the false-alarm rate at {false_alarm_rate:g}. Use a larger"
            " rate, another score_mode, or a checkpoint that is not saturated on these images."
        )
    above = int((scores >= threshold - TOLERANCE).sum())
    return Calibration(
        threshold=threshold,
        method="conformal",
        num_images=n,
        false_alarm_rate=float(false_alarm_rate),
        false_alarm_bound=(above + 1) / (n + 1),
        num_above=above,
    )


def from_normal_maps(maps: Iterable[np.ndarray], false_alarm_rate: float) -> Calibration:
    """
    Compute a pixel threshold for a false-alarm rate, from the maps of normal images.

    Args:
        maps (iterable of `np.ndarray` of shape `(height, width)`): maps in [0, 1] of normal images, of any sizes,
            read one by one.
        false_alarm_rate (`float`): target fraction of normal pixels flagged, in (0, 1).

    Returns:
        [`Calibration`]: the threshold is a multiple of 1/4096 below 1. If the rate cannot be guaranteed, it is the
        lowest one with the lowest bound (none of these pixels is flagged, if that is possible), and `reached` is
        False.

    Raises:
        ValueError: there are no maps, values lie outside [0, 1], or the rate is outside (0, 1).
    """
    exceeding, n = np.zeros(_LEVELS + 1), 0
    for anomaly_map in maps:
        values = np.asarray(anomaly_map, dtype=np.float64)
        if not values.size or not (values.min() >= 0 and values.max() <= 1):
            raise ValueError("Maps must hold probabilities in [0, 1].")
        # fraction of the image at or above each level; values just below a level count, because masks include them
        levels = np.floor((values + 2 * TOLERANCE) * _LEVELS).astype(np.int64)
        counts = np.bincount(levels.ravel(), minlength=_LEVELS + 1)
        exceeding += np.cumsum(counts[::-1])[::-1] / values.size
        n += 1
    _checked(np.zeros(n), false_alarm_rate)
    # without the level 1, which few maps reach
    bounds = (exceeding[:_LEVELS] + 1) / (n + 1)
    good = np.flatnonzero(bounds <= max(false_alarm_rate, bounds.min()) + 1e-12)
    level = int(good[0])
    return Calibration(
        threshold=level / _LEVELS,
        method="conformal_risk_control",
        num_images=n,
        false_alarm_rate=float(false_alarm_rate),
        false_alarm_bound=float(bounds[level]),
    )


def from_labeled_scores(scores: Sequence[float], labels: Sequence[int]) -> Calibration:
    """
    Compute the threshold with the best F1 on labeled images.

    Args:
        scores (`Sequence[float]`): scores of all images.
        labels (`Sequence[int]`): 1 for anomalous, 0 for normal.

    Returns:
        [`Calibration`]: the threshold lies halfway between the lowest score that is flagged and the next one below; it
        is the lowest score if all images are flagged.

    Raises:
        ValueError: there is not at least one image of each label, or the lengths differ.
    """
    scores, labels = _checked(scores, 0.5), np.asarray(labels)
    if labels.shape != scores.shape or not np.isin(labels, (0, 1)).all():
        raise ValueError(f"Expected one label, 0 or 1, for each of {len(scores)} scores; got shape {labels.shape}.")
    if labels.min() == labels.max():
        raise ValueError("F1 needs normal and anomalous images; for normal images alone use from_normal_scores.")
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], np.cumsum(labels[order])
    # a threshold can only lie where the score changes
    last = np.append(np.flatnonzero(-np.diff(ordered) > _GAP), len(ordered) - 1)
    f1 = 2 * hits[last] / (last + 1 + labels.sum())
    best = int(f1.argmax())
    lowest, following = ordered[last[best]], ordered[min(last[best] + 1, len(ordered) - 1)]
    return Calibration(
        threshold=float(lowest + following) / 2, method="f1_max", num_images=len(scores), f1=float(f1[best])
    )


def check_rate(name: str, rate: float) -> None:
    """Raise a ValueError if a false-alarm rate does not lie between 0 and 1."""
    if isinstance(rate, (bool, str)) or not 0 < rate < 1:
        raise ValueError(f"{name}={rate!r} must lie between 0 and 1; 0.01 allows 1 % of false alarms.")


def _checked(scores: Sequence[float], false_alarm_rate: float) -> np.ndarray:
    check_rate("false_alarm_rate", false_alarm_rate)
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"Calibration needs at least one image, got scores of shape {scores.shape}.")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite.")
    return scores
