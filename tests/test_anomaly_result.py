"""The last step: thresholds, regions of interest, additions to the result, resizing without torch."""

import numpy as np
import pytest
import torch
from PIL import Image

from vcp_clip_hf.anomaly_result import (
    as_segments,
    finish,
    resize_array,
)
from vcp_clip_hf.anomaly_scoring import resize_map
from vcp_clip_hf.thresholds import Thresholds


IMAGE = Image.new("RGB", (8, 6), "gray")


@pytest.fixture
def anomaly_map() -> np.ndarray:
    """Return a map with a region of 6 pixels around a hole, and a single pixel."""
    values = np.full((6, 8), 0.1, np.float32)
    values[1:4, 1:4] = 0.75
    values[2, 2] = 0.2
    values[5, 7] = 0.5
    return values


def test_without_thresholds_there_is_no_verdict(anomaly_map):
    result = finish(IMAGE, anomaly_map, 0.75, Thresholds(None, None), None, heatmap=True)
    assert list(result) == ["score", "label", "threshold", "image_threshold", "anomaly_map", "mask", "heatmap"]
    assert result["label"] is result["mask"] is result["threshold"] is None
    with pytest.raises(ValueError, match="Regions need a threshold"):
        finish(IMAGE, anomaly_map, 0.75, Thresholds(None, 0.5), None, regions=True)
    with pytest.raises(ValueError, match="image-segmentation format needs a threshold"):
        as_segments(result)


def test_additions_belong_to_the_cleaned_mask(anomaly_map):
    thresholds = Thresholds(0.5, 0.5)
    plain = finish(IMAGE, anomaly_map, 0.75, thresholds, None, regions=True, output_image=True)
    assert [region["area"] for region in plain["regions"]] == [8, 1] and plain["image"] is IMAGE
    cleaned = finish(IMAGE, anomaly_map, 0.75, thresholds, None, regions=True, min_area=2, fill_holes=True)
    assert [region["area"] for region in cleaned["regions"]] == [9] and cleaned["label"] == "anomalous"
    assert cleaned["mask"].mode == "L" and np.asarray(cleaned["mask"]).sum() == 9 * 255
    dropped = finish(IMAGE, anomaly_map, 0.75, thresholds, None, regions=True, min_area=20)
    assert dropped["regions"] == [] and dropped["label"] == "normal"


@pytest.mark.parametrize("fill_holes", [False, True])
@pytest.mark.parametrize("min_area", [0, 1, 2, 20])
def test_only_an_image_whose_mask_lost_all_its_pixels_becomes_normal(anomaly_map, min_area, fill_holes):
    """Check that with a pixel threshold above the map, `min_area` drops nothing and must not change the label."""
    for pixel, expected in ((0.5, "normal" if min_area == 20 else "anomalous"), (0.9, "anomalous")):
        result = finish(
            IMAGE, anomaly_map, 0.75, Thresholds(pixel, 0.7), None, min_area=min_area, fill_holes=fill_holes
        )
        assert result["label"] == expected, pixel


def test_the_mask_ends_at_the_border_of_the_region_of_interest(anomaly_map):
    """Check this also where holes are filled, and with a threshold that every pixel reaches."""
    inside = np.ones((6, 8), bool)
    inside[2, 2] = inside[5] = False
    everything = finish(IMAGE, anomaly_map * inside, 0.75, Thresholds(0.0, 0.0), inside, fill_holes=True)
    np.testing.assert_array_equal(np.asarray(everything["mask"]) > 0, inside)
    filled = finish(IMAGE, anomaly_map * inside, 0.75, Thresholds(0.5, 0.5), inside, fill_holes=True, min_area=8)
    assert (np.asarray(filled["mask"]) > 0).sum() == 8 and filled["label"] == "anomalous"
    dropped = finish(IMAGE, anomaly_map * inside, 0.75, Thresholds(0.5, 0.5), inside, fill_holes=True, min_area=9)
    assert dropped["label"] == "normal", "the hole is outside of the region and does not count as area"


@pytest.mark.parametrize("min_area", [-1, 2.5, True, "5", None])
def test_an_area_that_is_not_a_number_of_pixels_is_refused(anomaly_map, min_area):
    with pytest.raises(ValueError, match=r"min_area=.* must be a whole number of pixels; 0 keeps every region"):
        finish(IMAGE, anomaly_map, 0.75, Thresholds(0.5, 0.5), None, min_area=min_area)


def test_segments(anomaly_map):
    (segment,) = as_segments(finish(IMAGE, anomaly_map, 0.75, Thresholds(0.5, 0.5), None))
    assert segment["score"] == pytest.approx(0.75) and segment["label"] == "anomaly"
    assert as_segments(finish(IMAGE, anomaly_map, 0.75, Thresholds(0.9, 0.9), None)) == []


@pytest.mark.parametrize("size", [(48, 48), (97, 131), (48, 500), (31, 20), (1, 1), (700, 3)])
def test_maps_are_resized_as_in_torch(size):
    for shape in ((48, 48), (37, 1), (1, 5)):
        values = torch.rand(shape)
        resized = resize_array(values.numpy(), size)
        assert resized.dtype == np.float32
        np.testing.assert_allclose(resized, resize_map(values, size), atol=1e-5)
