"""Boxes, polygons, areas and scores of regions; cleaning of masks."""

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from vcp_clip_hf.regions import clean_mask, find_regions, outline


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
    x, y = np.array(polygon).T
    return 0.5 * np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)


@pytest.mark.parametrize("seed", range(6))
def test_polygons_enclose_exactly_their_filled_region(seed):
    generator = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(generator.random((60, 80)), 2) if seed % 2 else generator.random((25, 30))
    mask = field > np.quantile(field, 0.6)
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    regions = find_regions(mask, field)
    assert len(regions) == count and [r["score"] for r in regions] == sorted(
        (r["score"] for r in regions), reverse=True
    )
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
        # clockwise in image coordinates; areas also add up if the outline crosses itself at a corner
        assert area_of(polygon) == filled.sum()
        xs, ys = zip(*polygon, strict=True)
        assert (min(xs), min(ys), max(xs), max(ys)) == (box["xmin"], box["ymin"], box["xmax"], box["ymax"])


def test_outline_keeps_corners_only():
    region = np.ones((3, 5), bool)
    assert outline(region) == [(0, 0), (5, 0), (5, 3), (0, 3)]
    region[0, 0] = False
    assert outline(region) == [(1, 0), (5, 0), (5, 3), (0, 3), (0, 1), (1, 1)]


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
