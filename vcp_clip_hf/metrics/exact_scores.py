"""Storage of all pixel scores: 4 bytes per normal pixel of a float32 map, 8 per abnormal one."""

from collections.abc import Mapping

import numpy as np

from .curves import RankedScores, split_scores


__all__ = ["ExactScores"]


class ExactScores:
    """
    Collect the scores of many images for [`RankedScores`]. Has the methods of `ScoreHistogram`, its counterpart in
    constant memory.

    Attributes:
        num_regions (`int`): number of 8-connected regions added.
    """

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Forget all scores."""
        self._negatives = _GrowingArray(np.float32)
        self._positives = _GrowingArray(np.float32)
        self._sizes = _GrowingArray(np.int32)  # of the region of each abnormal pixel
        self.num_regions = 0

    @property
    def num_pixels(self) -> int:
        """Return the number of pixels added."""
        return len(self._negatives.values) + len(self._positives.values)

    @property
    def num_abnormal_pixels(self) -> int:
        """Return the number of abnormal pixels added."""
        return len(self._positives.values)

    def add(self, anomaly_map: np.ndarray, mask: np.ndarray | None) -> None:
        """Add one checked map, float (height, width), with its mask, bool, or `None` if all pixels are normal."""
        negatives, positives, sizes, num_regions = split_scores(anomaly_map, mask)
        self._extend(negatives, positives, sizes, num_regions)

    def merge(self, other: "ExactScores") -> None:
        """Add the scores of another collection, which is not changed."""
        self._extend(other._negatives.values, other._positives.values, other._sizes.values, other.num_regions)

    def rank(self) -> RankedScores:
        """Sort the scores into the table that the metrics are computed from."""
        dtype = np.promote_types(self._negatives.values.dtype, self._positives.values.dtype)
        return RankedScores.from_split(
            negatives=self._negatives.values.astype(dtype, copy=False),
            positives=self._positives.values.astype(dtype, copy=False),
            sizes=self._sizes.values,
            num_regions=self.num_regions,
        )

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return all scores, as arrays that share memory with this object; later images do not change them."""
        return {
            "negatives": self._negatives.values,
            "positives": self._positives.values,
            "sizes": self._sizes.values,
            "num_regions": np.int64(self.num_regions),
        }

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Replace all scores by those of a `state_dict`."""
        self.reset()
        self._extend(state["negatives"], state["positives"], state["sizes"], int(state["num_regions"]))

    def _extend(self, negatives: np.ndarray, positives: np.ndarray, sizes: np.ndarray, num_regions: int) -> None:
        self._negatives.extend(negatives)
        self._positives.extend(positives)
        self._sizes.extend(sizes)
        self.num_regions += num_regions


class _GrowingArray:
    """A one-dimensional array that grows at its end, without a second copy in memory while it grows."""

    def __init__(self, dtype: np.dtype):
        self._data = np.empty(0, dtype)
        self._length = 0

    @property
    def values(self) -> np.ndarray:
        return self._data[: self._length]

    def extend(self, values: np.ndarray) -> None:
        dtype = np.promote_types(self._data.dtype, values.dtype)
        if dtype != self._data.dtype:
            self._data = self.values.astype(dtype)
        end = self._length + len(values)
        if end > len(self._data):
            capacity = max(end, len(self._data) * 9 // 8)
            try:
                # For large arrays, the operating system remaps pages instead of copying bytes
                self._data.resize(capacity)
            except ValueError:  # a view of the array exists
                data = np.empty(capacity, dtype)
                data[: self._length] = self.values
                self._data = data
        self._data[self._length : end] = values
        self._length = end
