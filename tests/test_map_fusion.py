"""Maps that are fused by logits: the formula, and its limits."""

import pytest
import torch

from vcp_clip_hf.map_fusion import fused_by_logits


@pytest.mark.parametrize("weight", [0, 0.3, 1])
def test_the_fused_value_is_the_sigmoid_of_the_mean_of_the_logits(weight):
    probabilities, logits = torch.rand(3, 4) * 0.98 + 0.01, 3 * torch.randn(3, 4)
    expected = ((1 - weight) * (probabilities / (1 - probabilities)).log() + weight * logits).sigmoid()
    torch.testing.assert_close(fused_by_logits(probabilities, logits, weight, 1e-6), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("eps", [1e-6, 1e-4])
def test_probabilities_of_zero_and_one_are_fused_without_infinity(eps):
    fused = fused_by_logits(torch.tensor([0.0, 1.0]), torch.zeros(2), 0.5, eps)
    odds = (eps / (1 - eps)) ** 0.5
    torch.testing.assert_close(fused, torch.tensor([odds / (1 + odds), 1 / (1 + odds)]), atol=1e-5, rtol=0)
