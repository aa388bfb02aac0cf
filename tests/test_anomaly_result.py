"""The last step: thresholds, regions of interest, additions to the result, resizing without torch."""

import numpy as np
import pytest
import torch
from PIL import Image

from vcp_clip_hf.anomaly_result import (
    Thresholds,
    as_segments,
    finish,
    resize_array,
)
from vcp_clip_hf.anomaly_scoring import resize_map


IMAGE = Image.new("RGB", (8, 6), "gray")


@pytest.fixture
def anomaly_map() -> np.ndarray:
    """A region of 6 pixels around a hole, and a single pixel."""
    values = np.full((6, 8), 0.1, np.float32)
    values[1:4, 1:4] = 0.75
    values[2, 2] = 0.2
    values[5, 7] = 0.5
    return values


def test_an_image_threshold_is_filled_in_where_scores_are_values_of_the_map():
    assert Thresholds.of(0.5, None, "max") == Thresholds(0.5, 0.5)
    assert Thresholds.of(0.5, 0.7, "max") == Thresholds(0.5, 0.7)
    assert Thresholds.of(0.5, None, "top_k") == Thresholds(0.5, None)
    assert Thresholds.of(None, None, "max") == Thresholds(None, None)


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7, np.float64(0.1), np.float32(0.7)])
def test_arrays_and_tensors_have_the_same_mask(threshold):
    """Also for values that equal the threshold in float32 only."""
    values = np.array([[0.1, 0.3], [0.7, 0.5]], np.float32)
    thresholds = Thresholds.of(threshold, None, "max")
    np.testing.assert_array_equal(thresholds.mask(values), thresholds.mask(torch.from_numpy(values)))
    assert thresholds.mask(values)[values == np.float32(threshold)].all()


def test_without_thresholds_there_is_no_verdict(anomaly_map):
    result = finish(IMAGE, anomaly_map, 0.75, Thresholds(None, None), heatmap=True)
    assert list(result) == ["score", "label", "threshold", "image_threshold", "anomaly_map", "mask", "heatmap"]
    assert result["label"] is result["mask"] is result["threshold"] is None
    with pytest.raises(ValueError, match="Regions need a threshold"):
        finish(IMAGE, anomaly_map, 0.75, Thresholds(None, 0.5), regions=True)
    with pytest.raises(ValueError, match="image-segmentation format needs a threshold"):
        as_segments(result)


def test_additions_belong_to_the_cleaned_mask(anomaly_map):
    thresholds = Thresholds(0.5, 0.5)
    plain = finish(IMAGE, anomaly_map, 0.75, thresholds, regions=True, output_image=True)
    assert [region["area"] for region in plain["regions"]] == [8, 1] and plain["image"] is IMAGE
    cleaned = finish(IMAGE, anomaly_map, 0.75, thresholds, regions=True, min_area=2, fill_holes=True)
    assert [region["area"] for region in cleaned["regions"]] == [9] and cleaned["label"] == "anomalous"
    assert cleaned["mask"].mode == "L" and np.asarray(cleaned["mask"]).sum() == 9 * 255
    dropped = finish(IMAGE, anomaly_map, 0.75, thresholds, regions=True, min_area=20)
    assert dropped["regions"] == [] and dropped["label"] == "normal"


def test_segments(anomaly_map):
    (segment,) = as_segments(finish(IMAGE, anomaly_map, 0.75, Thresholds(0.5, 0.5)))
    assert segment["score"] == pytest.approx(0.75) and segment["label"] == "anomaly"
    assert as_segments(finish(IMAGE, anomaly_map, 0.75, Thresholds(0.9, 0.9))) == []


@pytest.mark.parametrize("size", [(48, 48), (97, 131), (48, 500), (31, 20), (1, 1), (700, 3)])
def test_maps_are_resized_as_in_torch(size):
    for shape in ((48, 48), (37, 1), (1, 5)):
        values = torch.rand(shape)
        resized = resize_array(values.numpy(), size)
        assert resized.dtype == np.float32
        np.testing.assert_allclose(resized, resize_map(values, size), atol=1e-5)
