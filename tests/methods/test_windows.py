"""Windows over a grid of patches beside plain loops."""

import pytest
import torch

from vcp_clip_hf.methods.windows import mean_over_windows, window_index, window_sequences


GRIDS = [((4, 4), 2), ((3, 5), 3), ((5, 4), 1), ((2, 2), 2)]


def windows_of(grid, side):
    """The patches of each window, row by row."""
    return [
        [(top + row) * grid[1] + left + column for row in range(side) for column in range(side)]
        for top in range(grid[0] - side + 1)
        for left in range(grid[1] - side + 1)
    ]


@pytest.mark.parametrize(("grid", "side"), GRIDS)
def test_windows_are_all_squares_of_patches(grid, side):
    assert window_index(grid, side).T.tolist() == windows_of(grid, side)


@pytest.mark.parametrize("side", [0, 4])
def test_a_window_larger_than_the_image_is_refused(side):
    with pytest.raises(ValueError, match="does not fit into a grid of 3 x 5"):
        window_index((3, 5), side)


def test_sequences_begin_with_the_class_token():
    embedded = torch.randn(2, 16, 3)
    index = window_index((3, 5), 2)
    sequences = window_sequences(embedded, index).unflatten(0, (2, -1))
    for image in range(2):
        for number, patches in enumerate(windows_of((3, 5), 2)):
            expected = embedded[image, [0, *(1 + patch for patch in patches)]]
            assert torch.equal(sequences[image, number], expected)


@pytest.mark.parametrize("harmonic", [True, False])
@pytest.mark.parametrize(("grid", "side"), GRIDS)
def test_each_patch_gets_the_mean_of_its_windows(grid, side, harmonic):
    windows = windows_of(grid, side)
    scores = torch.rand(3, len(windows), dtype=torch.float64) + 0.1
    means = mean_over_windows(scores, grid, side, harmonic)
    for patch in range(grid[0] * grid[1]):
        covering = scores[:, [number for number, patches in enumerate(windows) if patch in patches]]
        expected = covering.shape[1] / (1 / covering).sum(dim=1) if harmonic else covering.mean(dim=1)
        torch.testing.assert_close(means.flatten(1)[:, patch], expected)


def test_a_harmonic_mean_with_zero_is_zero():
    scores = torch.rand(1, 9) + 0.1
    scores[0, 0] = 0
    means = mean_over_windows(scores, (4, 4), 2)
    assert (means[0, :2, :2] == 0).all() and (means[0, 2:, 2:] > 0).all()
