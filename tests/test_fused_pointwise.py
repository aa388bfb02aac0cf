"""Compiled elementwise operations: equal to the plain ones, which take over where compilation fails."""

import logging

import pytest
import torch
from torch import nn
from transformers.activations import QuickGELUActivation

from vcp_clip_hf.fused_pointwise import FusedFunction, _fused_normalized_sum, add_and_normalize, quick_gelu


@pytest.fixture(scope="module")
def norm():
    layer = nn.LayerNorm(64)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer.requires_grad_(False)


@torch.no_grad()
def test_the_sum_and_its_normalization_are_those_of_the_modules(norm):
    for tokens in (5, 7):
        residual, update = torch.randn(2, tokens, 64), torch.randn(2, tokens, 64)
        states, normalized = add_and_normalize(residual, update, norm)
        torch.testing.assert_close(states, residual + update, rtol=0, atol=1e-6)
        expected = norm(residual + update)
        torch.testing.assert_close(normalized, expected, rtol=0, atol=1e-6 * expected.abs().max().item())
    assert _fused_normalized_sum._compiled is not None and not _fused_normalized_sum._failed


@torch.no_grad()
def test_the_activation_is_that_of_transformers():
    x = 3 * torch.randn(2, 5, 64)
    torch.testing.assert_close(quick_gelu(x), QuickGELUActivation()(x), rtol=0, atol=1e-6)


def test_without_a_compiler_the_function_itself_is_called(caplog):
    def doubled(x):
        torch._dynamo.graph_break()  # a whole graph cannot be made of this
        return 2 * x

    logger = logging.getLogger("vcp_clip_hf.fused_pointwise")
    logger.addHandler(caplog.handler)
    try:
        fused = FusedFunction(doubled)
        for _ in range(3):
            torch.testing.assert_close(fused(torch.ones(4)), 2 * torch.ones(4))
    finally:
        logger.removeHandler(caplog.handler)
    (message,) = {record.getMessage() for record in caplog.records if record.name == logger.name}
    assert message.startswith("doubled is not compiled, because torch.compile failed (Unsupported: ")


def test_errors_of_the_function_stay_errors():
    fused = FusedFunction(lambda x, y: x + y)
    with pytest.raises(RuntimeError, match="size of tensor"):
        fused(torch.ones(3), torch.ones(4))


def test_too_little_memory_is_not_a_failure_of_the_compiler():
    calls = []

    def full(x):
        calls.append(1)
        return x

    fused = FusedFunction(full)
    fused._compiled = _out_of_memory
    with pytest.raises(torch.OutOfMemoryError):
        fused(torch.ones(3))
    assert not calls


def _out_of_memory(*args):
    raise torch.OutOfMemoryError("CUDA out of memory")
