import numpy as np
import pytest
import torch

from vcp_clip_hf.metrics.inputs import as_images, as_labels, as_map, as_mask, as_scores


@pytest.mark.parametrize(
    "dtype, expected",
    [
        (np.float32, np.float32),
        (np.float64, np.float64),
        (np.float16, np.float32),
        (np.uint8, np.float32),
        (np.int16, np.float32),
        (np.int32, np.float64),
        (bool, np.float32),
    ],
)
def test_maps_become_floats_without_loss(dtype, expected):
    values = np.array([[0, 1], [1, 0]]).astype(dtype)
    read = as_map(values)
    assert read.dtype == expected
    np.testing.assert_array_equal(read, values)


def test_bfloat16_maps_are_converted():
    values = torch.rand(3, 4).to(torch.bfloat16)
    assert torch.equal(torch.from_numpy(as_map(values)), values.float())


def test_maps_that_require_gradients_are_converted():
    assert as_map(torch.rand(3, 4, requires_grad=True)).shape == (3, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_maps_must_be_finite(value):
    values = np.zeros((3, 4), np.float32)
    values[1, 2] = value
    with pytest.raises(ValueError, match="1 of 12 pixels that are NaN or infinite"):
        as_map(values)


@pytest.mark.parametrize(
    "values", [np.zeros(3), np.zeros((0, 4)), np.zeros((1, 2, 3)), np.array([["a"]]), 1j * np.eye(2)]
)
def test_invalid_maps_are_refused(values):
    with pytest.raises(ValueError, match=r"anomaly map has (shape|dtype)"):
        as_map(values)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_masks_of_zeros_and_ones_are_converted(dtype):
    mask = np.array([[0, 1, 0]])
    read = as_mask(mask.astype(dtype), (1, 3))
    assert read.dtype == bool
    np.testing.assert_array_equal(read, mask == 1)


@pytest.mark.parametrize("values", [[[0, 255]], [[0.0, 0.5]], [[-1, 1]], [[0.0, np.nan]], [[0, 2]]])
def test_other_masks_are_refused(values):
    with pytest.raises(ValueError, match="mask > 0"):
        as_mask(np.array(values), (1, 2))


def test_masks_must_have_the_size_of_the_map():
    with pytest.raises(ValueError, match=r"\(4, 5\) and the anomaly map \(8, 10\)"):
        as_mask(np.zeros((4, 5)), (8, 10))


def test_batches_are_arrays_tensors_or_sequences():
    assert len(as_images(np.zeros((3, 4, 5)), "maps")) == 3
    assert len(as_images((np.zeros((4, 5)), np.zeros((2, 2))), "maps")) == 2
    assert as_images([], "maps") == []
    with pytest.raises(ValueError, match=r"maps\[None\]"):
        as_images(np.zeros((4, 5)), "maps")
    with pytest.raises(ValueError, match=r"maps\[:, 0\]"):
        as_images(torch.zeros(3, 1, 4, 5), "maps")
    with pytest.raises(ValueError, match=r"\(3, 2, 4, 5\)"):
        as_images(torch.zeros(3, 2, 4, 5), "maps")
    for wrong in (None, 3, "map.png", (m for m in [np.zeros((4, 5))])):
        with pytest.raises(TypeError, match="maps is a"):
            as_images(wrong, "maps")


def test_scores_and_labels_are_vectors():
    assert as_scores(torch.tensor([0.5, 2.0]), "scores").tolist() == [0.5, 2.0]
    assert as_labels([0, 1], "labels").tolist() == [False, True]
    assert as_labels(torch.tensor([True, False]), "labels").tolist() == [True, False]
    with pytest.raises(ValueError, match=r"scores has shape \(1, 2\)"):
        as_scores([[0.5, 1.0]], "scores")
    with pytest.raises(ValueError, match=r"labels has shape \(\)"):
        as_labels(1, "labels")
