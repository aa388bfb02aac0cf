"""Differences between the metrics of two evaluations of the same images, with bootstrap intervals over the images."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..metrics.resampling import metrics_of_counts, resampled_weights
from .evaluation_files import EvaluationFiles


__all__ = ["COVERAGE", "RESAMPLES", "SEED", "Difference", "ImageKey", "differences", "keyed_images"]

RESAMPLES, SEED, COVERAGE = 1000, 0, 0.95
# Samples at a time, which bounds the memory
_AT_ONCE = 250
# Metric -> its name among the metrics of counts; the others have no interval
_IMAGE = {"image_auroc": "auroc", "image_ap": "ap", "image_f1_max": "f1_max"}
_PIXEL = {"pixel_auroc": "auroc", "pixel_ap": "ap", "pixel_f1_max": "f1_max", "pixel_pro": "pro"}

# Dataset, product, name of an image, and its number among images of that name
ImageKey = tuple[str, str, str, int]
# Estimates of all samples, one for each metric; the first is that of the images as they are
_Samples = dict[str, np.ndarray]


@dataclass(frozen=True)
class Difference:
    """
    How a metric differs between two runs.

    Args:
        dataset, product (`str`): names; the mean over products has the product "mean".
        metric (`str`): name of the metric.
        images (`int`): number of images in both runs.
        first, other (`float`): values over these images, in [0, 1].
        low, high (`float`, *optional*): ends of the interval of `other - first`; `None` without an interval.
        estimated (`bool`): whether the values are estimates from histograms of the pixels.
    """

    dataset: str
    product: str
    metric: str
    images: int
    first: float
    other: float
    low: float | None = None
    high: float | None = None
    estimated: bool = False

    @property
    def value(self) -> float:
        """Return `other - first`."""
        return self.other - self.first

    @property
    def is_clear(self) -> bool | None:
        """Return whether the interval leaves out 0; `None` without an interval."""
        return None if self.low is None else self.low > 0 or self.high < 0


def keyed_images(run: EvaluationFiles) -> dict[ImageKey, int]:
    """Return the key of each image of a run -> its number."""
    seen: dict[tuple[str, str, str], int] = {}
    keys = {}
    for number, image in enumerate(run.images):
        name = (image["dataset"], image["product"], image["image_id"])
        seen[name] = seen.get(name, -1) + 1
        keys[(*name, seen[name])] = number
    return keys


def differences(first: EvaluationFiles, other: EvaluationFiles) -> list[Difference]:
    """
    Compare two runs on their common images.

    The images of each product and label are drawn with replacement 1000 times, as many as there are; both runs get the
    same images. The interval has the middle 95 % of the differences. Metrics of images are computed exactly for each
    sample. Those of pixels are estimated from histograms of the scores, and shifted so that the difference of the
    images as they are is exact.

    Args:
        first, other ([`EvaluationFiles`]): runs with details.

    Returns:
        `list[Difference]`: for each product with common images and each metric of both runs, and for the means over
        these products. Undefined metrics are left out. There is no interval for a product with one image of a label.
    """
    own, others = keyed_images(first), keyed_images(other)
    common = [key for key in own if key in others and _label(first, own[key]) == _label(other, others[key])]
    metrics = [name for name in first.report.metrics if name in other.report.metrics]
    found = []
    for dataset in dict.fromkeys(key[0] for key in common):
        of_products, rows = [], []
        for place, product in enumerate(dict.fromkeys(key[1] for key in common if key[0] == dataset)):
            keys = [key for key in common if key[:2] == (dataset, product)]
            chosen = [own[key] for key in keys], [others[key] for key in keys]
            samples = _paired_samples((first, other), chosen, place)
            complete = all(
                len(numbers) == len(run.of_product(dataset, product))
                for run, numbers in zip((first, other), chosen, strict=True)
            )
            values = [_known(run, dataset, product, complete) for run in (first, other)]
            of_products.append(samples)
            found_here = _of_product(metrics, dataset, product, len(keys), samples, values)
            labels = [_label(first, number) for number in chosen[0]]
            # the only image of a label is the same in each sample, which would give an interval of no width
            alone = min(labels.count(label) for label in set(labels)) == 1
            rows.append([replace(row, low=None, high=None) if alone else row for row in found_here])
        found += [row for each in rows for row in each]
        if len(rows) > 1:
            found += _means(metrics, dataset, rows, of_products)
    return found


def _label(run: EvaluationFiles, number: int) -> int:
    return int(run.images[number]["label"])


def _paired_samples(
    runs: Sequence[EvaluationFiles], chosen: Sequence[Sequence[int]], place: int
) -> tuple[_Samples, _Samples]:
    """Return the metrics of both runs for the images as they are, and for `RESAMPLES` samples."""
    labels = [_label(runs[0], number) for number in chosen[0]]
    weights = resampled_weights(labels, RESAMPLES, SEED + place)
    weights = np.concatenate([np.ones((1, len(labels)), np.int64), weights])
    return tuple(_samples(run, numbers, labels, weights) for run, numbers in zip(runs, chosen, strict=True))


def _samples(run: EvaluationFiles, numbers: Sequence[int], labels: Sequence[int], weights: np.ndarray) -> _Samples:
    scores, label = np.array([run.images[number]["score"] for number in numbers]), np.array(labels)
    places = (scores[:, None] == np.unique(scores)[::-1]).astype(np.float64)
    tables = {"image": (places * label[:, None], places * (1 - label[:, None]))}
    if run.histograms is not None:
        *counts, regions = run.histograms.dense(numbers)
        tables["pixel"] = tuple(counts)
    parts = []
    for start in range(0, len(weights), _AT_ONCE):
        some = weights[start : start + _AT_ONCE].astype(np.float64)
        found = metrics_of_counts(*(some @ table for table in tables["image"]))
        part = {name: found[key] for name, key in _IMAGE.items()}
        if "pixel" in tables:
            abnormal, normal, overlap = (some @ table for table in tables["pixel"])
            overlap /= np.maximum(some @ regions, 1)[:, None]
            limit = run.datasets[run.images[numbers[0]]["dataset"]]["fpr_limit"]
            found = metrics_of_counts(abnormal, normal, overlap, limit, tied=False)
            part |= {name: found[key] for name, key in _PIXEL.items()}
        parts.append(part)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _known(run: EvaluationFiles, dataset: str, product: str, complete: bool) -> Mapping[str, Any]:
    """Return the evaluator's metrics, if the common images are all of both runs."""
    return run.datasets[dataset]["products"][product]["values"] if complete else {}


def _of_product(
    metrics: Sequence[str],
    dataset: str,
    product: str,
    count: int,
    samples: tuple[_Samples, _Samples],
    values: Sequence[Mapping[str, Any]],
) -> Iterator[Difference]:
    for metric in metrics:
        sampled = all(metric in each for each in samples)
        known = all(values)
        if known:
            pair = [each.get(metric) for each in values]
        elif sampled:
            pair = [float(each[metric][0]) for each in samples]
        else:
            continue
        if any(value is None or math.isnan(value) for value in pair):
            continue
        low, high = _interval(metric, [samples], pair[1] - pair[0]) if sampled else (None, None)
        estimated = not known and metric in _PIXEL
        yield Difference(dataset, product, metric, count, pair[0], pair[1], low, high, estimated)


def _interval(
    metric: str, of_products: Sequence[tuple[_Samples, _Samples]], difference: float
) -> tuple[float | None, float | None]:
    """Return the interval of a difference, or of a mean of differences over products."""
    sampled = np.mean([other[metric] - first[metric] for first, other in of_products], axis=0)
    if np.isnan(sampled).any():
        return None, None
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(sampled[1:], [tail, 1 - tail]) - sampled[0] + difference
    return float(low), float(high)


def _means(
    metrics: Sequence[str],
    dataset: str,
    rows: Sequence[Sequence[Difference]],
    of_products: Sequence[tuple[_Samples, _Samples]],
) -> Iterator[Difference]:
    """Yield the means over the products, of the metrics that are defined for all of them."""
    count = sum(each[0].images for each in rows if each)
    for metric in metrics:
        of_metric = [
            (row, samples)
            for each, samples in zip(rows, of_products, strict=True)
            for row in each
            if row.metric == metric
        ]
        if len(of_metric) < len(rows):  # undefined for a product: the evaluator has no mean either
            continue
        first, other = (float(np.mean([getattr(row, side) for row, _ in of_metric])) for side in ("first", "other"))
        low = high = None
        if all(row.low is not None for row, _ in of_metric):
            low, high = _interval(metric, [samples for _, samples in of_metric], other - first)
        estimated = any(row.estimated for row, _ in of_metric)
        yield Difference(dataset, "mean", metric, count, first, other, low, high, estimated)
