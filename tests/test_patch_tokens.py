"""Means over neighbors of a patch, against a loop."""

import itertools

import pytest
import torch

from vcp_clip_hf.patch_tokens import averaged_over_neighbors


@pytest.mark.parametrize("side", [1, 3, 5, 9])
def test_neighbors_are_averaged_and_those_beyond_the_border_are_not_counted(side):
    rows, columns = 4, 5
    tokens = torch.randn(2, rows * columns, 3)
    found = averaged_over_neighbors(tokens, (rows, columns), side)
    assert found.shape == tokens.shape
    planes = tokens.view(2, rows, columns, 3)
    for row, column in itertools.product(range(rows), range(columns)):
        reach = side // 2
        around = planes[:, max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1].flatten(
            1, 2
        )
        torch.testing.assert_close(found[:, row * columns + column], around.mean(dim=1), rtol=0, atol=1e-6)
    assert (side != 1) or found is tokens
