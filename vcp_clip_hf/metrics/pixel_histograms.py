"""Scores of the pixels of each image, counted in coarse bins: enough to resample images and estimate pixel metrics."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .score_histogram import ScoreGrid, ScoreHistogram


__all__ = ["PixelHistograms"]

# 15873 bins: scores in one bin differ by at most 0.4 % of their distance from the nearer end of [0, 1]
_GRID = ScoreGrid(mantissa_bits=8)
_COLUMNS = {"bins": np.uint16, "total": np.uint32, "abnormal": np.uint32, "overlap": np.float32}


class PixelHistograms:
    """
    Histograms of many images on one grid, about 50 KB each, and 5 KB in a file.

    Attributes:
        usable (`bool`): whether all maps were probabilities; the grid has no bins for other values.
    """

    def __init__(self):
        self._images: list[dict[str, np.ndarray]] = []
        self.usable = True

    def __len__(self) -> int:
        return len(self._images)

    def add(self, anomaly_map: np.ndarray | None, mask: np.ndarray | None) -> None:
        """
        Count one image.

        Args:
            anomaly_map (`np.ndarray` of shape `(height, width)`, *optional*): map; `None` for no pixels.
            mask (`np.ndarray` of shape `(height, width)`, bool, *optional*): mask; `None` if all pixels are normal.
        """
        histogram = ScoreHistogram(_GRID)
        if anomaly_map is not None:
            try:
                _GRID.check(anomaly_map)
            except ValueError:
                self.usable = False
            else:
                histogram.add(anomaly_map, mask)
        state = histogram.state_dict()
        image = {name: state[name].astype(dtype) for name, dtype in _COLUMNS.items()}
        self._images.append({**image, "num_regions": state["num_regions"].astype(np.uint32)})

    def merge(self, other: "PixelHistograms") -> None:
        """Add the images of another object after those of this one."""
        self._images += other._images
        self.usable &= other.usable

    def dense(
        self, chosen: Sequence[int], most_bins: int = 2000
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """
        Return the histograms of some images, from the highest occupied bin down.

        Args:
            chosen (`Sequence[int]`): numbers of the images, N.
            most_bins (`int`, *optional*, defaults to 2000):
                Largest number of bins. If more are occupied, neighbors that hold few pixels of all images are joined.

        Returns:
            `tuple`: number of abnormal pixels, number of normal pixels, and sum over regions of their fraction, in
            each of the K bins, float64 `(N, K)`; number of regions, float64 `(N,)`.
        """
        images = [self._images[number] for number in chosen]
        groups = self._joined(images, most_bins)
        tables = np.zeros((3, len(images), int(groups.max(initial=-1)) + 1))
        for row, image in enumerate(images):
            columns = groups[image["bins"]]
            np.add.at(tables[0, row], columns, image["abnormal"])
            np.add.at(tables[1, row], columns, image["total"].astype(np.int64) - image["abnormal"])
            np.add.at(tables[2, row], columns, image["overlap"])
        regions = np.array([image["num_regions"] for image in images], np.float64)
        return (*tables[:, :, ::-1], regions)

    @staticmethod
    def _joined(images: Sequence[dict[str, np.ndarray]], most_bins: int) -> np.ndarray:
        """Return the number of the group of each bin of the grid, ascending with the score; -1 for empty bins."""
        counts = np.zeros((2, _GRID.num_bins))
        for image in images:
            counts[0, image["bins"]] += image["abnormal"]
            counts[1, image["bins"]] += image["total"].astype(np.int64) - image["abnormal"]
        occupied = np.flatnonzero(counts.any(axis=0))
        groups = np.full(_GRID.num_bins, -1)
        numbers = np.arange(len(occupied))
        if len(occupied) > most_bins:
            # of the abnormal and of the normal pixels, a group has at most 2 / most_bins, or is one bin
            shares = counts[:, occupied] / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            ends = np.cumsum(shares.mean(axis=0)) / shares.mean(axis=0).sum()
            numbers = np.unique(np.floor(ends * (most_bins - 1)), return_inverse=True)[1]
        groups[occupied] = numbers
        return groups

    def save(self, path: Path) -> None:
        """Write all histograms to one compressed `.npz` file of plain arrays."""
        arrays = {
            name: np.concatenate([image[name] for image in self._images] or [np.empty(0, dtype)])
            for name, dtype in _COLUMNS.items()
        }
        lengths = np.array([len(image["bins"]) for image in self._images], np.int64)
        regions = np.array([image["num_regions"] for image in self._images], np.uint32)
        np.savez_compressed(path, **arrays, lengths=lengths, num_regions=regions, usable=np.bool_(self.usable))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "PixelHistograms":
        """
        Read a file of `save`.

        Raises:
            OSError, ValueError, KeyError: the file is missing or damaged.
        """
        histograms = cls()
        with np.load(path, allow_pickle=False) as arrays:
            histograms.usable = bool(arrays["usable"])
            ends = np.cumsum(arrays["lengths"])[:-1]
            columns = {name: np.split(arrays[name], ends) for name in _COLUMNS}
            for number, regions in enumerate(arrays["num_regions"]):
                image = {name: parts[number] for name, parts in columns.items()}
                histograms._images.append({**image, "num_regions": regions})
        return histograms
