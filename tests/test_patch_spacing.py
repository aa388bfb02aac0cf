"""Tests of the spacing of normal patches, and of distances in relation to it, against plain loops."""

import pytest
import torch
from torch import nn

from vcp_clip_hf.patch_spacing import as_probability, patch_spacing, smallest_ratio


def unit(*shape: int) -> torch.Tensor:
    return nn.functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def spacing_by_a_loop(patches: torch.Tensor) -> list[float]:
    found = []
    for index, patch in enumerate(patches):
        others = [(1 - float(patch @ other)) / 2 for place, other in enumerate(patches) if place != index]
        found.append(sum(sorted(others)[:16]) / min(16, len(others)))
    return found


@pytest.mark.parametrize("count", [2, 12, 40])
@pytest.mark.parametrize("block_values", [1, 100, 2**24])
def test_the_spacing_is_that_of_a_loop_over_each_picture(count, block_values):
    torch.manual_seed(333)
    tokens = 3 * unit(2, count, 5)
    expected = [spacing_by_a_loop(nn.functional.normalize(each, dim=-1)) for each in tokens]
    found = patch_spacing(tokens.float(), block_values)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)
    torch.testing.assert_close(patch_spacing(tokens[0].float()), found[0])


def test_equal_patches_and_a_single_patch_keep_a_positive_spacing():
    assert patch_spacing(torch.ones(30, 4)).eq(1e-3).all()
    assert patch_spacing(torch.ones(1, 1, 4)).eq(1e-3).all()


def test_the_ratio_is_that_of_a_loop_over_all_pairs():
    torch.manual_seed(333)
    patches, rows, spacing = unit(7, 5), unit(9, 5), torch.rand(9, dtype=torch.float64) + 0.01
    expected = [
        min((1 - float(patch @ row)) / 2 / float(width) ** 0.5 for row, width in zip(rows, spacing, strict=True))
        for patch in patches
    ]
    found = smallest_ratio((patches @ rows.T).float(), spacing.float())
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_a_wide_spacing_excuses_a_distance_and_the_nearest_row_need_not_be_the_one_that_counts():
    cosines, spacing = torch.tensor([[0.9, 0.8]]), torch.tensor([0.01, 0.25])
    assert smallest_ratio(cosines.clone(), spacing).item() == pytest.approx(0.2)
    assert smallest_ratio(cosines.clone(), torch.tensor([0.01, 0.01])).item() == pytest.approx(0.5)
    assert smallest_ratio(torch.tensor([[1 + 1e-6]]), torch.tensor([0.01])).item() == 0, "rounding gives no minus"


def test_the_logit_of_the_probability_is_twice_the_logarithm_of_the_ratio():
    ratio = torch.tensor([0.0, 0.02, 0.5, 1.0, 3.0, 90.0])
    torch.testing.assert_close(torch.logit(as_probability(ratio))[1:], 2 * ratio[1:].log(), rtol=1e-3, atol=1e-4)
    assert as_probability(ratio)[0] == 0 and as_probability(torch.tensor([1e6, 1e30, torch.inf])).eq(1).all()
