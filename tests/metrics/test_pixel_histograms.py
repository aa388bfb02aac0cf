"""Histograms of single images: counts, sums, files."""

import numpy as np
import pytest

from tests.metrics.test_polylines import some_maps
from vcp_clip_hf.metrics.pixel_histograms import PixelHistograms


def filled() -> PixelHistograms:
    histograms = PixelHistograms()
    for anomaly_map, mask in zip(*some_maps(), strict=True):
        histograms.add(anomaly_map, mask)
    histograms.add(None, None)
    return histograms


def test_every_pixel_is_counted_once():
    _, masks = some_maps()
    abnormal, normal, overlap, regions = filled().dense(range(13))
    assert abnormal.sum(1).tolist() == [*(mask.sum() for mask in masks), 0]
    assert normal.sum(1).tolist() == [*((~mask).sum() for mask in masks), 0]
    # every region adds 1
    assert overlap.sum(1) == pytest.approx([float(mask.any()) for mask in masks] + [0], abs=1e-5)
    assert regions.tolist() == [*(float(mask.any()) for mask in masks), 0]


def test_bins_run_from_the_highest_score_down():
    histograms = PixelHistograms()
    histograms.add(np.array([[0.9, 0.1]], np.float32), np.array([[True, False]]))
    abnormal, normal, _, _ = histograms.dense([0])
    assert abnormal.tolist() == [[1, 0]] and normal.tolist() == [[0, 1]]


def test_a_file_holds_all(tmp_path):
    histograms = filled()
    histograms.save(tmp_path / "some.npz")
    again = PixelHistograms.load(tmp_path / "some.npz")
    assert len(again) == 13 and again.usable
    for ours, theirs in zip(histograms.dense(range(13)), again.dense(range(13)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_other_values_than_probabilities_are_noted(tmp_path):
    histograms = PixelHistograms()
    histograms.add(np.array([[3.0, 0.1]], np.float32), None)
    histograms.save(tmp_path / "some.npz")
    assert not histograms.usable and not PixelHistograms.load(tmp_path / "some.npz").usable
    empty = PixelHistograms()
    empty.save(tmp_path / "empty.npz")
    assert len(PixelHistograms.load(tmp_path / "empty.npz")) == 0


def test_many_bins_are_joined_without_losing_pixels():
    fine, coarse = filled().dense(range(13)), filled().dense(range(13), 100)
    assert fine[0].shape[1] > 500 and 50 < coarse[0].shape[1] <= 100
    for one, other in zip(fine, coarse, strict=True):
        assert one.sum() == pytest.approx(other.sum())
    ends = [np.append(0, table.sum(0).cumsum()) for table in (fine[1], coarse[1])]
    assert set(ends[1]) <= set(ends[0])
