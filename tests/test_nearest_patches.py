"""Distances from the nearest row of a bank, against loops over all pairs."""

import itertools

import pytest
import torch

from tests.memories import WIDTH, unit
from vcp_clip_hf.nearest_patches import nearest_distance, nearest_ratio


def test_the_distance_is_that_of_a_loop_over_all_pairs():
    tokens, bank = torch.randn(2, 5, WIDTH) * 7, unit(11, WIDTH)
    found = nearest_distance(tokens, bank)
    assert found.shape == (2, 5) and found.dtype == torch.float32
    for image, place in itertools.product(range(2), range(5)):
        token = tokens[image, place]
        cosines = [float(token @ row) / float(token.norm()) for row in bank]
        assert found[image, place].item() == pytest.approx(1 - max(cosines), abs=1e-6)


@pytest.mark.parametrize("block_values", [1, 7, 10, 30, 109, 10**9])
def test_blocks_change_nothing(block_values):
    tokens, bank = torch.randn(10, WIDTH), unit(11, WIDTH)
    torch.testing.assert_close(
        nearest_distance(tokens, bank, block_values=block_values), nearest_distance(tokens, bank), rtol=0, atol=1e-6
    )


def test_the_ends_of_the_scale():
    bank = torch.eye(3)[:1]
    tokens = torch.tensor([[5.0, 0, 0], [-2, 0, 0], [0, 1, 0], [0, 0, 0], [1e-30, 0, 0], [1e18, 0, 0]])
    assert nearest_distance(tokens, bank).tolist() == [0, 2, 1, 1, 0, 0]


def test_a_row_of_the_bank_has_no_distance_and_more_rows_only_bring_it_closer():
    tokens, bank = torch.randn(20, WIDTH), unit(11, WIDTH)
    assert nearest_distance(bank * 3, bank).max() < 1e-6
    fewer = [nearest_distance(tokens, bank[:rows]) for rows in (1, 4, 11)]
    assert (fewer[0] >= fewer[1] - 1e-6).all() and (fewer[1] >= fewer[2] - 1e-6).all()
    assert (fewer[0] > fewer[2] + 0.1).any()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-3), (torch.float16, 2e-4)])
def test_lower_precision(dtype, tolerance):
    """Tokens are rounded, their products are not: a cosine in bfloat16 has steps of 0.004. Also with mixed dtypes."""
    tokens, bank = torch.randn(30, 64) * 5, unit(40, 64)
    expected = nearest_distance(tokens, bank)
    found = nearest_distance(tokens.to(dtype), bank)
    assert found.dtype == torch.float32 and (found - expected).abs().max() < tolerance
    for tokens_dtype, bank_dtype in ((dtype, dtype), (torch.float32, dtype)):
        mixed = nearest_distance(tokens.to(tokens_dtype), bank.to(bank_dtype))
        assert 0 < (mixed - expected).abs().max() < tolerance


def test_autocast_does_not_change_distances():
    tokens, bank = torch.randn(30, 64), unit(40, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = nearest_distance(tokens, bank)
    assert torch.equal(found, nearest_distance(tokens, bank))


@pytest.mark.parametrize(
    ("bank", "message"),
    [
        (torch.zeros(4, 6), r"width 8 .* bank of shape \(4, 6\); expected \(rows, 8\)"),
        (torch.zeros(8), r"bank of shape \(8,\)"),
        (torch.zeros(1, 4, 8), r"bank of shape \(1, 4, 8\)"),
        (torch.zeros(0, 8), "no patch to compare with: it needs at least one other picture"),
    ],
)
def test_banks_that_do_not_fit_are_refused(bank, message):
    with pytest.raises(ValueError, match=message):
        nearest_distance(torch.randn(5, 8), bank)


@pytest.mark.parametrize("block_values", [1, 50, 2**24])
def test_blocks_do_not_change_ratios(block_values):
    tokens, bank, spacing = torch.randn(2, 7, WIDTH), unit(23, WIDTH), torch.rand(23) + 0.01
    expected = nearest_ratio(tokens, bank, spacing)
    assert expected.shape == (2, 7)
    torch.testing.assert_close(nearest_ratio(tokens, bank, spacing, block_values), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="at least one other picture"):
        nearest_ratio(tokens, bank[:0], spacing[:0])
