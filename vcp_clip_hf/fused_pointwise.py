"""Chains of elementwise operations as one kernel each, compiled by torch.compile (inductor).

Run one after another, such operations read and write the same activations once each; on a GPU, this takes longer than
their arithmetic.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.utils import logging


__all__ = ["FusedFunction", "add_and_normalize", "normalized_sum", "quick_gelu", "quick_gelu_of_rows"]

logger = logging.get_logger(__name__)


class FusedFunction:
    """
    Compile a function at its first call. If that fails, warn once and call the function as it is from then on.

    Compilation takes seconds for each dtype, and once more when the number of rows changes for the first time.

    Args:
        function (`Callable`): function of tensors and numbers, without side effects.
    """

    def __init__(self, function: Callable):
        self.function = function
        self._compiled: Callable | None = None
        self._failed = False

    def __call__(self, *args) -> Any:
        """Return what the function returns, computed by the compiled one where possible."""
        if self._failed or torch.compiler.is_compiling():
            return self.function(*args)
        try:
            if self._compiled is None:
                self._compiled = torch.compile(self.function, fullgraph=True)
            return self._compiled(*args)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers and drivers fail in many ways, and the plain function needs neither
            self._failed = True
            reason = str(error).strip().partition("\n")[0]
            logger.warning(
                f"{self.function.__name__} is not compiled, because torch.compile failed"
                f" ({type(error).__name__}: {reason}). The plain, slower operations are used."
            )
            return self.function(*args)


def normalized_sum(
    residual: torch.Tensor, update: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Add two tensors, and normalize the sum with a LayerNorm over the last axis.

    Args:
        residual, update (`torch.Tensor` of shape `(M, d)`): the terms.
        weight, bias (`torch.Tensor` of shape `(d,)`): parameters of the LayerNorm.
        eps (`float`): its epsilon.

    Returns:
        `tuple` of two `torch.Tensor` of shape `(M, d)`: the sum, and the sum after the LayerNorm.
    """
    states = residual + update
    return states, nn.functional.layer_norm(states, states.shape[-1:], weight, bias, eps)


def quick_gelu_of_rows(rows: torch.Tensor) -> torch.Tensor:
    """Compute OpenAI's activation `x * sigmoid(1.702 x)` as three operations."""
    return rows * torch.sigmoid(1.702 * rows)


_fused_normalized_sum = FusedFunction(normalized_sum)
_fused_quick_gelu = FusedFunction(quick_gelu_of_rows)


def add_and_normalize(
    residual: torch.Tensor, update: torch.Tensor, norm: nn.LayerNorm
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Add the output of an attention or an MLP to the residual stream, and normalize the sum for the next one: one
    compiled kernel.

    Args:
        residual, update (`torch.Tensor` of shape `(B, N, d)`): residual stream and addend.
        norm (`nn.LayerNorm`): the next LayerNorm, over `d`.

    Returns:
        `tuple` of two `torch.Tensor` of shape `(B, N, d)`: the sum, and the sum after the LayerNorm.
    """
    # As rows, every batch and image size is the same kernel
    rows = (residual.flatten(0, 1), update.flatten(0, 1))
    states, normalized = _fused_normalized_sum(*rows, norm.weight, norm.bias, norm.eps)
    return states.view(residual.shape), normalized.view(residual.shape)


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """
    Compute OpenAI's activation `x * sigmoid(1.702 x)` as one compiled kernel.

    Args:
        x (`torch.Tensor` of shape `(B, N, d)`): input.

    Returns:
        `torch.Tensor` of shape `(B, N, d)`.
    """
    return _fused_quick_gelu(x.flatten(0, 1)).view(x.shape)
