"""Metrics of resampled images: equal to those of the images drawn, and stratified draws."""

import numpy as np
import pytest

from tests.metrics.test_polylines import some_maps
from vcp_clip_hf.metrics import RankedScores, auroc, average_precision, f1_max, pro
from vcp_clip_hf.metrics.pixel_histograms import PixelHistograms
from vcp_clip_hf.metrics.resampling import metrics_of_counts, resampled_weights


def test_draws_keep_the_size_of_each_stratum():
    strata = [("a", 0)] * 3 + [("a", 1)] * 2 + [("b", 0)]
    weights = resampled_weights(strata, 500, 0)
    assert (weights[:, :3].sum(1) == 3).all() and (weights[:, 3:5].sum(1) == 2).all() and (weights[:, 5] == 1).all()
    assert weights[:, :3].mean(0) == pytest.approx([1, 1, 1], abs=0.1)
    np.testing.assert_array_equal(weights, resampled_weights(strata, 500, 0))
    assert (weights != resampled_weights(strata, 500, 1)).any()


def test_image_metrics_are_exact_for_every_sample():
    generator = np.random.default_rng(0)
    scores, labels = generator.integers(0, 6, 20) / 5, np.arange(20) % 2
    weights = resampled_weights(labels.tolist(), 8, 0)
    bins = np.unique(scores)[::-1]
    places = (scores[:, None] == bins).astype(float)
    found = metrics_of_counts((weights * labels) @ places, (weights * (1 - labels)) @ places)
    for number, row in enumerate(weights):
        ranked = RankedScores.from_labels(np.repeat(scores, row), np.repeat(labels, row))
        expected = {"auroc": auroc(ranked), "ap": average_precision(ranked), "f1_max": f1_max(ranked)[0]}
        assert {name: values[number] for name, values in found.items()} == pytest.approx(expected)


def test_pixel_metrics_of_samples_are_close_to_those_of_the_pixels():
    maps, masks = some_maps()
    histograms = PixelHistograms()
    for anomaly_map, mask in zip(maps, masks, strict=True):
        histograms.add(anomaly_map, mask)
    abnormal, normal, overlap, regions = histograms.dense(range(12))
    weights = resampled_weights([bool(mask.any()) for mask in masks], 4, 0)
    found = metrics_of_counts(
        weights @ abnormal, weights @ normal, weights @ overlap / (weights @ regions)[:, None], 0.3, tied=False
    )
    for number, row in enumerate(weights):
        drawn = [image for image, times in enumerate(row) for _ in range(times)]
        ranked = RankedScores.from_maps([maps[image] for image in drawn], [masks[image] for image in drawn])
        expected = [auroc(ranked), average_precision(ranked), f1_max(ranked)[0], pro(ranked, 0.3)]
        ours = [found[name][number] for name in ("auroc", "ap", "f1_max", "pro")]
        assert ours == pytest.approx(expected, abs=3e-3)  # the best threshold of F1 lies between the edges of bins


def test_images_of_one_kind_have_no_metrics():
    found = metrics_of_counts(np.zeros((1, 3)), np.ones((1, 3)))
    assert all(np.isnan(values).all() for values in found.values())
