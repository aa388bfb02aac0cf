"""Histogram of pixel scores, in constant memory, with the finest bins near 0 and 1, where most probabilities lie."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..connected_components import region_sizes
from .bounds import RankedBins


__all__ = ["ScoreGrid", "ScoreHistogram"]


# Scores closer than 2 ** -32 of the range to one of its ends share one bin
_SMALLEST_EXPONENT = -32


@dataclass(frozen=True)
class ScoreGrid:
    """
    Bins for scores of a known range, finer toward both ends, where most probabilities lie.

    A score x is first scaled to p in [0, 1]. The width of a bin is at most `2 ** -mantissa_bits` of the distance of p
    from the nearer end: the bins are float32 numbers with a shorter mantissa, counted from 0 and from 1.

    Args:
        low, high (`float`, *optional*, default to 0 and 1): range of the scores.
        mantissa_bits (`int`, *optional*, defaults to 11):
            Fineness, 4 to 16. There are `62 * 2 ** mantissa_bits + 1` bins, 127 thousand by default, of 29 bytes each.
    """

    low: float = 0.0
    high: float = 1.0
    mantissa_bits: int = 11

    def __post_init__(self):
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"score_range=({self.low}, {self.high}) must be finite (low, high) with low < high.")
        if not 4 <= self.mantissa_bits <= 16:
            raise ValueError(f"mantissa_bits={self.mantissa_bits} must be in 4..16.")

    @property
    def num_bins(self) -> int:
        """Return the number of bins."""
        return (2 * (-_SMALLEST_EXPONENT - 1) << self.mantissa_bits) + 1

    def check(self, scores: np.ndarray) -> None:
        """Raise a ValueError if scores are out of range by more than rounding (1.0000001 is still a probability)."""
        lowest, highest = float(scores.min()), float(scores.max())
        slack = 1e-6 * (self.high - self.low)
        if lowest < self.low - slack or highest > self.high + slack:
            raise ValueError(
                f"the anomaly map has values from {lowest:g} to {highest:g}, outside"
                f" score_range=({self.low:g}, {self.high:g}); pass the range that all maps share"
            )

    def index(self, scores: np.ndarray) -> np.ndarray:
        """
        Return the bins of scores of any shape, as intp of the same shape. A larger score never has a smaller bin, in
        spite of rounding; scores out of range are in the first or last bin.
        """
        scores = np.asarray(scores)
        if (self.low, self.high) != (0.0, 1.0):
            scores = (scores.astype(np.float64) - self.low) / (self.high - self.low)
        scores = scores.astype(np.float32, copy=False)
        keys = self._key(np.minimum(scores, np.float32(1.0) - scores))
        return np.where(scores < np.float32(0.5), keys, self.num_bins - 1 - keys)

    def lower_edge(self, number: int) -> float:
        """
        Return the smallest score of a bin, -inf for the first: `score >= lower_edge(number)` is equivalent to
        `index(score) >= number`.
        """
        if number <= 0:
            return -np.inf
        below, edge = self.low - (self.high - self.low), self.high
        while True:  # bisection down to neighboring numbers, so that the rounding in `index` is accounted for
            middle = (below + edge) / 2
            if not below < middle < edge:
                return float(edge)
            if self.index(np.float64(middle)) >= number:
                edge = middle
            else:
                below = middle

    def _key(self, distances: np.ndarray) -> np.ndarray:
        """Return bin numbers counted from the nearer end: exponent and first mantissa bits of the distance from it."""
        smallest = np.float32(2.0**_SMALLEST_EXPONENT)
        shift = np.uint32(23 - self.mantissa_bits)
        # The maximum also replaces -0.0, whose bits would be those of a large number
        bits = np.maximum(distances, smallest).view(np.uint32) >> shift
        return bits.astype(np.intp) - int(smallest.view(np.uint32) >> shift)


class ScoreHistogram:
    """
    Counts of pixel scores in the bins of a grid.

    Args:
        grid ([`ScoreGrid`]): the bins.

    Attributes:
        total (`np.ndarray` of shape `(num_bins,)`): number of pixels, int64.
        abnormal (`np.ndarray` of shape `(num_bins,)`): number of abnormal pixels, int64.
        overlap (`np.ndarray` of shape `(num_bins,)`): sum of 1 / (size of its region) over the abnormal pixels.
        values (`np.ndarray` of shape `(num_bins,)`): one score of each bin, NaN in empty ones.
        mixed (`np.ndarray` of shape `(num_bins,)`): whether a bin holds different scores, bool.
        num_regions (`int`): number of 8-connected regions added.
        lowest, highest (`float`): extremes of all scores, exact.
    """

    def __init__(self, grid: ScoreGrid):
        self.grid = grid
        self.reset()

    def reset(self) -> None:
        """Forget all scores."""
        grid = self.grid
        self.total = np.zeros(grid.num_bins, np.int64)
        self.abnormal = np.zeros(grid.num_bins, np.int64)
        self.overlap = np.zeros(grid.num_bins, np.float64)
        self.values = np.full(grid.num_bins, np.nan, np.float32)
        self.mixed = np.zeros(grid.num_bins, bool)
        self.num_regions = 0
        self.lowest, self.highest = np.inf, -np.inf

    @property
    def num_pixels(self) -> int:
        """Return the number of pixels added."""
        return int(self.total.sum())

    @property
    def num_abnormal_pixels(self) -> int:
        """Return the number of abnormal pixels added."""
        return int(self.abnormal.sum())

    def add(self, anomaly_map: np.ndarray, mask: np.ndarray | None) -> None:
        """Count one checked map, float (height, width), with its mask, bool, or `None` if all pixels are normal."""
        bins = self.grid.index(anomaly_map)
        self.total += np.bincount(bins.ravel(), minlength=self.grid.num_bins)
        self._note_values(bins.ravel(), anomaly_map.ravel())
        self.lowest = min(self.lowest, float(anomaly_map.min()))
        self.highest = max(self.highest, float(anomaly_map.max()))
        if mask is not None and mask.any():
            sizes, num_regions = region_sizes(mask)
            bins = bins[mask]
            self.abnormal += np.bincount(bins, minlength=self.grid.num_bins)
            self.overlap += np.bincount(bins, weights=1.0 / sizes, minlength=self.grid.num_bins)
            self.num_regions += num_regions

    def merge(self, other: "ScoreHistogram") -> None:
        """Add the counts of another histogram on the same grid."""
        if other.grid != self.grid:
            raise ValueError(f"Histograms on different grids cannot be merged: {self.grid} and {other.grid}.")
        self.total += other.total
        self.abnormal += other.abnormal
        self.overlap += other.overlap
        self.num_regions += other.num_regions
        self.lowest, self.highest = min(self.lowest, other.lowest), max(self.highest, other.highest)
        self.mixed |= other.mixed
        filled = np.flatnonzero(~np.isnan(other.values))
        self._note_values(filled, other.values[filled])

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return the occupied bins and the rest of the state, as arrays."""
        bins = np.flatnonzero(self.total)
        return {
            "bins": bins,
            "total": self.total[bins],
            "abnormal": self.abnormal[bins],
            "overlap": self.overlap[bins],
            "values": self.values[bins],
            "mixed": self.mixed[bins],
            "num_regions": np.int64(self.num_regions),
            "extremes": np.array([self.lowest, self.highest]),
        }

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Replace all counts by those of a `state_dict` on the same grid."""
        bins = np.asarray(state["bins"])
        self.reset()
        self.values = self.values.astype(state["values"].dtype)
        for name in ("total", "abnormal", "overlap", "values", "mixed"):
            getattr(self, name)[bins] = state[name]
        self.num_regions = int(state["num_regions"])
        self.lowest, self.highest = (float(value) for value in state["extremes"])

    def rank(self) -> RankedBins:
        """Return the table that the bounds are computed from."""
        bins = np.flatnonzero(self.total)[::-1]
        positives = self.abnormal[bins]
        return RankedBins(
            lower_edge=self.grid.lower_edge,
            index=self.grid.index,
            bins=bins,
            values=np.where(self.mixed[bins], np.nan, self.values[bins]),
            positives=positives,
            negatives=self.total[bins] - positives,
            overlap=np.minimum(np.cumsum(self.overlap[bins]) / max(self.num_regions, 1), 1.0),
            lowest=self.values.dtype.type(self.lowest),
            highest=self.values.dtype.type(self.highest),
        )

    def _note_values(self, bins: np.ndarray, scores: np.ndarray) -> None:
        """Mark bins that hold different scores; bins already marked are skipped."""
        self.values = self.values.astype(np.promote_types(scores.dtype, self.values.dtype), copy=False)
        open_ = np.flatnonzero(~self.mixed[bins])
        bins, scores = bins[open_], scores[open_]
        empty = np.isnan(self.values[bins])
        self.values[bins[empty]] = scores[empty]
        self.mixed[bins[self.values[bins] != scores]] = True
