"""Regions as polygons: bit-equal without tolerance, also with holes; near enough with it."""

import numpy as np
import pytest

from vcp_clip_hf.data.annotations.rasterize import rasterize
from vcp_clip_hf.data.annotations.shapes import Shape, outline
from vcp_clip_hf.region_polygons import region_polygon, regions_of, simplify
from vcp_clip_hf.regions import find_regions


def regions(mask: np.ndarray) -> list[dict]:
    return find_regions(mask, mask.astype(np.float32))


def redrawn(mask: np.ndarray, tolerance: float) -> np.ndarray:
    """Return the mask of the polygons of all regions."""
    height, width = mask.shape
    shapes = [Shape("", "polygon", (outline(region_polygon(each, tolerance)),)) for each in regions(mask)]
    return rasterize(shapes, width, height)


def blobs(seed: int, size: int = 240) -> np.ndarray:
    """Return a tenth of the pixels, in smooth regions."""
    spectrum = np.fft.fft2(np.random.default_rng(seed).random((size, size)))
    frequencies = np.hypot(*np.meshgrid(*[np.fft.fftfreq(size)] * 2))
    smooth = np.fft.ifft2(spectrum * np.exp(-((frequencies * 40) ** 2))).real
    return smooth > np.quantile(smooth, 0.9)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


@pytest.mark.parametrize("limit", [0.05, 0.3, 0.6, 0.95])
def test_without_tolerance_every_pixel_is_kept(limit):
    mask = np.random.default_rng(0).random((40, 53)) > limit
    assert sum(len(each["holes"]) for each in regions(mask)) > 20 or limit > 0.6
    assert np.array_equal(redrawn(mask, 0), mask)


def test_holes_and_islands_survive_a_tolerance():
    rows, columns = np.indices((120, 120))
    distance = np.hypot(rows - 60, columns - 60)
    mask = (distance < 50) & (distance > 25) | (distance < 12)
    (ring, island) = sorted(regions(mask), key=lambda region: -region["area"])
    assert len(ring["holes"]) == 1 and not island["holes"]
    found = redrawn(mask, 1)
    assert overlap(found, mask) > 0.97 and not found[60, 40] and found[60, 60]
    assert len(region_polygon(ring)) < (len(ring["polygon"]) + len(ring["holes"][0])) / 3


@pytest.mark.parametrize("seed", range(3))
def test_the_default_tolerance_keeps_most_of_smooth_regions_with_few_corners(seed):
    mask = blobs(seed)
    assert overlap(redrawn(mask, 1), mask) > 0.97
    before = sum(len(each["polygon"]) for each in regions(mask))
    assert sum(len(region_polygon(each)) for each in regions(mask)) < before / 2


@pytest.mark.parametrize("width", [1, 2, 3, 6])
def test_thin_regions_keep_their_shape(width):
    rows, columns = np.indices((100, 160))
    mask = abs(rows - 20 - 0.37 * columns) < width / 2
    assert overlap(redrawn(mask, 5), mask) > 0.95


def test_single_pixels_and_whole_pictures():
    for mask in (np.eye(7, dtype=bool)[::2, ::2], np.ones((9, 4), bool), np.eye(3, 200, 4, dtype=bool)):
        assert np.array_equal(redrawn(mask, 3), mask)


def test_left_out_corners_lie_within_the_tolerance():
    angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    corners = np.stack([40 * np.cos(angles), 30 * np.sin(angles)], axis=1).tolist()
    assert simplify(corners, 0) == corners
    few = np.asarray(simplify(corners, 0.5))
    assert 8 < len(few) < 40
    starts, ends = few, np.roll(few, -1, axis=0)
    for point in np.asarray(corners):
        along = ends - starts
        part = np.clip(((point - starts) * along).sum(axis=1) / (along**2).sum(axis=1), 0, 1)
        assert np.hypot(*(point - starts - part[:, None] * along).T).min() <= 0.5 + 1e-9
    square = [[0, 0], [2, 0], [2, 2], [0, 2], [0, 1]]
    assert simplify(square, 0.5) == square[:4] and len(simplify(square, 100)) == 5


def test_regions_of_earlier_versions_are_refused():
    with pytest.raises(ValueError, match=r"'a\.png' were written by an earlier version.* --overwrite"):
        regions_of({"image": "a.png", "regions": [{"polygon": []}]})
    assert regions_of({"image": "a.png"}) == ()
