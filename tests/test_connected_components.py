"""Connected components, compared with scipy."""

import numpy as np
import pytest
from scipy import ndimage

from vcp_clip_hf.connected_components import label_components, region_sizes


EIGHT_CONNECTED = np.ones((3, 3))


def serpentine(side: int) -> np.ndarray:
    """Return one region that winds through all rows, the hardest case for joining runs."""
    mask = np.zeros((side, side), bool)
    mask[::2] = True
    mask[1::4, -1] = True
    mask[3::4, 0] = True
    return mask


MASKS = {
    **{
        f"noise {shape} {density}": np.random.default_rng(number).random(shape) < density
        for number, (shape, density) in enumerate(
            (shape, density)
            for shape in ((1, 1), (1, 9), (9, 1), (17, 31), (40, 40))
            for density in (0.05, 0.2, 0.4, 0.5, 0.7, 0.95)
        )
    },
    "empty": np.zeros((5, 7), bool),
    "full": np.ones((5, 7), bool),
    "serpentine": serpentine(41),
    "serpentine upright": serpentine(41).T,
    "checkerboard": np.indices((12, 13)).sum(axis=0) % 2 == 0,
    "diagonal": np.eye(9, dtype=bool),
    "antidiagonal": np.eye(9, dtype=bool)[::-1],
    "touching the borders": np.pad(np.zeros((6, 6), bool), 1, constant_values=True),
    "ends meet across rows": np.array([[0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]], bool),
}


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("name", MASKS)
def test_labels_equal_scipy(name, connectivity):
    mask = MASKS[name]
    labels, count = label_components(mask, connectivity)
    expected, expected_count = ndimage.label(mask, structure=EIGHT_CONNECTED if connectivity == 8 else None)
    assert count == expected_count
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("name", MASKS)
def test_sizes_equal_scipy(name):
    mask = MASKS[name]
    sizes, count = region_sizes(mask)
    labels, expected_count = ndimage.label(mask, structure=EIGHT_CONNECTED)
    assert count == expected_count
    np.testing.assert_array_equal(sizes, np.bincount(labels.ravel())[labels[mask]])


def test_a_serpentine_is_one_region():
    assert label_components(serpentine(41))[1] == 1


def test_every_number_except_zero_is_abnormal():
    labels, count = label_components(np.array([[0, 255, 0], [0, 0, 0], [7, 0, 1]], np.uint8))
    assert labels.tolist() == [[0, 1, 0], [0, 0, 0], [2, 0, 3]]
    assert count == 3


def test_a_mask_has_two_dimensions():
    with pytest.raises(ValueError, match=r"\(2, 3, 4\)"):
        label_components(np.zeros((2, 3, 4)))
