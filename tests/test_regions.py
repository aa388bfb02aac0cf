"""Boxes, polygons, areas and scores of regions; cleaning of masks."""

import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from vcp_clip_hf.regions import clean_mask, find_regions, outlines


def test_all_values_of_two_regions():
    mask = np.zeros((12, 20), bool)
    mask[2:5, 3:8] = True
    mask[7, 12] = mask[8, 13] = True  # pixels that touch at a corner are one region
    anomaly_map = np.where(mask, 0.6, 0.1).astype(np.float32)
    anomaly_map[8, 13] = 0.9
    first, second = find_regions(mask, anomaly_map)
    assert first["score"] == pytest.approx(0.9) and first["area"] == 2
    assert first["box"] == {"xmin": 12, "ymin": 7, "xmax": 14, "ymax": 9}
    assert second["score"] == pytest.approx(0.6) and second["area"] == 15
    assert second["polygon"] == [[3, 2], [8, 2], [8, 5], [3, 5]]
    assert find_regions(np.zeros((4, 4), bool), np.zeros((4, 4))) == []


def area_of(polygon) -> float:
    """Return the area that a polygon encloses; negative if it runs counterclockwise in image coordinates."""
    x, y = np.array(polygon).T
    return 0.5 * np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)


@pytest.mark.parametrize("seed", range(6))
def test_outlines_enclose_exactly_their_region(seed):
    generator = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(generator.random((60, 80)), 2) if seed % 2 else generator.random((25, 30))
    mask = field > np.quantile(field, 0.4)
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    regions = find_regions(mask, field)
    assert len(regions) == count and [r["score"] for r in regions] == sorted(
        (r["score"] for r in regions), reverse=True
    )
    assert any(region["holes"] for region in regions)
    for region in regions:
        box = region["box"]
        inside = labels[box["ymin"] : box["ymax"], box["xmin"] : box["xmax"]]
        owner = next(
            index
            for index in np.unique(inside[inside > 0])
            if (labels == index).sum() == region["area"] and field[labels == index].max() == region["score"]
        )
        filled = ndimage.binary_fill_holes(labels == owner, ndimage.generate_binary_structure(2, 1))
        polygon = region["polygon"]
        # areas also add up if the outline crosses itself at a corner
        assert area_of(polygon) == filled.sum()
        holes, num_holes = ndimage.label(filled & (labels != owner))
        assert sorted(-area_of(hole) for hole in region["holes"]) == sorted(np.bincount(holes.ravel())[1:].tolist())
        assert (
            len(region["holes"]) == num_holes
            and area_of(polygon) + sum(map(area_of, region["holes"])) == region["area"]
        )
        xs, ys = zip(*polygon, strict=True)
        assert (min(xs), min(ys), max(xs), max(ys)) == (box["xmin"], box["ymin"], box["xmax"], box["ymax"])


def test_outlines_keep_corners_only():
    labels = np.full((3, 5), 7)
    assert list(outlines(labels)) == [(7, [[0, 0], [5, 0], [5, 3], [0, 3]])]
    labels[0, 0] = labels[1, 2] = 0
    outer, hole = outlines(labels)
    assert outer == (7, [[1, 0], [5, 0], [5, 3], [0, 3], [0, 1], [1, 1]])
    assert hole == (7, [[2, 2], [3, 2], [3, 1], [2, 1]]) and area_of(hole[1]) == -1


def test_pixels_that_touch_at_a_corner_share_one_outline():
    mask = np.eye(3, dtype=bool)
    (region,) = find_regions(mask, mask.astype(np.float32))
    assert area_of(region["polygon"]) == 3 and not region["holes"]
    # four pixels around an empty one: its hole touches the outside at corners only
    ring = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], bool)
    (region,) = find_regions(ring, ring.astype(np.float32))
    assert area_of(region["polygon"]) == 5 and list(map(area_of, region["holes"])) == [-1]


def test_the_work_per_region_does_not_grow():
    """Tens of thousands of regions, as a threshold in the noise of a map gives, are no more work for each."""
    field = np.random.default_rng(0).random((600, 600), dtype=np.float32)
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        regions = find_regions(field > 0.96, field)
    finally:
        sys.setprofile(None)
    assert len(regions) > 10_000 and calls < 20 * len(regions), "NumPy is called for all regions at once"


def test_small_regions_are_dropped_and_holes_filled():
    picture = Image.new("1", (40, 30))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((5, 5, 20, 20), fill=1)
    draw.rectangle((9, 9, 12, 12), fill=0)
    draw.point((35, 25), fill=1)
    draw.rectangle((30, 0, 34, 4), fill=1)
    draw.rectangle((32, 0, 33, 2), fill=0)  # a bay at the border, not a hole
    mask = np.array(picture)
    filled = clean_mask(mask, fill_holes=True)
    assert filled[9:13, 9:13].all() and not filled[0, 32] and filled.sum() == mask.sum() + 16
    cleaned = clean_mask(mask, min_area=2)
    assert not cleaned[25, 35] and cleaned.sum() == mask.sum() - 1
    assert not clean_mask(mask, min_area=10_000).any()
    # a thin ring is large enough only after its hole is filled
    ring = np.zeros((20, 20), bool)
    ring[2:18, 2:18], ring[3:17, 3:17] = True, False
    assert not clean_mask(ring, min_area=100).any() and clean_mask(ring, min_area=100, fill_holes=True).sum() == 256
    np.testing.assert_array_equal(clean_mask(mask), mask)
