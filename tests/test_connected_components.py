"""Labelling against scipy, and sizes against the labels."""

import numpy as np
import pytest
from scipy import ndimage

from vcp_clip_hf.connected_components import label_components, region_sizes


def masks():
    generator = np.random.default_rng(0)
    yield np.zeros((5, 7), bool)
    yield np.ones((5, 7), bool)
    yield np.eye(6, dtype=bool)
    yield np.indices((9, 9)).sum(axis=0) % 2 == 0
    yield np.array([[1]])
    for density in (0.1, 0.4, 0.5, 0.6, 0.9):
        for size in ((1, 40), (40, 1), (30, 50)):
            yield generator.random(size) < density
    smooth = ndimage.gaussian_filter(generator.random((120, 90)), 3)
    yield smooth > np.quantile(smooth, 0.7)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_equal_to_scipy(connectivity):
    structure = ndimage.generate_binary_structure(2, 2 if connectivity == 8 else 1)
    for mask in masks():
        expected, count = ndimage.label(mask, structure)
        labels, found = label_components(mask, connectivity)
        assert found == count
        # both number by the first pixel that a scan by rows meets
        np.testing.assert_array_equal(labels, expected)


def test_sizes_per_pixel():
    for mask in masks():
        labels, count = label_components(mask)
        sizes, found = region_sizes(mask)
        assert found == count
        np.testing.assert_array_equal(sizes, np.bincount(labels.ravel())[labels[np.asarray(mask) != 0]])


def test_a_mask_has_two_dimensions():
    with pytest.raises(ValueError, match=r"\(2, 2, 2\)"):
        label_components(np.zeros((2, 2, 2)))
