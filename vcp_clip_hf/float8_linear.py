"""Linear layers in 8-bit floating point (`float8_e4m3fn`, Micikevicius et al., arXiv 2209.05433), for inference.

Weights have one scale per output feature, found once. Inputs have one scale per token, found in every call. The
products of 8-bit numbers are summed with the fast accumulation of the tensor cores, which is less exact than float32,
and scaled in float32; the result is bfloat16.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from .computed_constants import ComputedConstants
from .fused_pointwise import FusedFunction, normalized_sum


__all__ = [
    "Float8Linear",
    "Float8Matrix",
    "Float8Rows",
    "QuantizedActivation",
    "add_normalize_and_quantize",
    "check_float8",
    "quantize_rows",
]

_FLOAT8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FLOAT8).max  # 448
# Scales of rows of zeros must not be zero
_SMALLEST_MAGNITUDE = 1e-12
# The first NVIDIA GPUs with this format, and the divisor of the sizes of a product
_FIRST_CAPABILITY = (8, 9)
_DIVISOR = 16


def check_float8(weight: torch.Tensor) -> None:
    """
    Check that a weight can be multiplied in float8.

    Args:
        weight (`torch.Tensor` of shape `(out_features, in_features)`): weight of a linear layer.

    Raises:
        ValueError: the weight is not bfloat16, not on an NVIDIA GPU of compute capability 8.9 or higher, or has sides
            that are not multiples of 16.
    """
    found = None
    if weight.device.type != "cuda" or torch.version.hip is not None:
        found = f"the model is on {_device_name(weight.device)}"
    elif (capability := _compute_capability(weight.device)) < _FIRST_CAPABILITY:
        found = f"{_device_name(weight.device)} has compute capability {'.'.join(map(str, capability))}"
    elif weight.dtype != torch.bfloat16:
        found = f"the model is in {str(weight.dtype).removeprefix('torch.')}"
    elif any(side % _DIVISOR for side in weight.shape):
        found = f"a weight has the shape {tuple(weight.shape)}"
    if found is not None:
        raise ValueError(
            "float8 needs a model in bfloat16 on an NVIDIA GPU of compute capability 8.9 or higher (Ada, Hopper or"
            f" later), with widths that are multiples of {_DIVISOR}, but {found}: compute in bfloat16 without float8,"
            " or move the model to such a GPU in bfloat16 first."
        )


def _device_name(device: torch.device) -> str:
    return f"a GPU of ROCm ({device})" if device.type == "cuda" and torch.version.hip is not None else str(device)


def _compute_capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


class Float8Rows(NamedTuple):
    """
    Tokens in float8.

    Args:
        values (`torch.Tensor` of shape `(..., K)`): tokens in `torch.float8_e4m3fn`, divided by their scales.
        scales (`torch.Tensor` of shape `(..., 1)`): float32, one for each token.
    """

    values: torch.Tensor
    scales: torch.Tensor


def quantize_rows(rows: torch.Tensor) -> Float8Rows:
    """
    Convert tokens to float8, scaled so that the largest magnitude of each becomes 448.

    On a GPU, this is one compiled kernel, as in the functions below: as separate operations, it is
    estimated, from the bytes they move, to take longer than float8 saves.

    Args:
        rows (`torch.Tensor` of shape `(..., K)`): tokens of any floating-point dtype.
    """
    function = _fused_quantized if rows.device.type == "cuda" else _quantized
    return _in_shape(rows, *function(rows.flatten(0, -2)))


def add_normalize_and_quantize(
    residual: torch.Tensor, update: torch.Tensor, norm: nn.LayerNorm
) -> tuple[torch.Tensor, Float8Rows]:
    """Return what [`add_and_normalize`] does, the second in float8."""
    rows = (residual.flatten(0, 1), update.flatten(0, 1))
    states, values, scales = _fused_normalized_sum(*rows, norm.weight, norm.bias, norm.eps)
    return states.view(residual.shape), _in_shape(residual, values, scales)


class QuantizedActivation(nn.Module):
    """
    Compute an activation and convert its result to float8.

    Args:
        function (`Callable`): elementwise function of a tensor.
    """

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.function = function

    def forward(self, input: torch.Tensor) -> Float8Rows:
        """Convert `(..., K)` to tokens in float8."""
        return _in_shape(input, *_fused_activation(input.flatten(0, -2), self.function))


def _quantized(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = rows.float()
    scales = rows.abs().amax(dim=-1, keepdim=True).clamp(min=_SMALLEST_MAGNITUDE) / _LARGEST
    return (rows / scales).clamp(-_LARGEST, _LARGEST).to(_FLOAT8), scales


def _quantized_normalized_sum(*args) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    states, normalized = normalized_sum(*args)
    return states, *_quantized(normalized)


def _quantized_activation(rows: torch.Tensor, function: Callable) -> tuple[torch.Tensor, torch.Tensor]:
    return _quantized(function(rows))


_fused_quantized = FusedFunction(_quantized)
_fused_normalized_sum = FusedFunction(_quantized_normalized_sum)
_fused_activation = FusedFunction(_quantized_activation)


def _in_shape(tokens: torch.Tensor, values: torch.Tensor, scales: torch.Tensor) -> Float8Rows:
    return Float8Rows(values.view(tokens.shape), scales.view(*tokens.shape[:-1], 1))


@dataclass(frozen=True)
class Float8Matrix:
    """
    The weight of a linear layer in float8.

    Args:
        values (`torch.Tensor` of shape `(N, K)`): weight in `torch.float8_e4m3fn`, divided by the scales.
        scales (`torch.Tensor` of shape `(1, N)`): float32, one for each output feature.
    """

    values: torch.Tensor
    scales: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor) -> "Float8Matrix":
        """Quantize a weight (N, K)."""
        values, scales = _quantized(weight)
        return cls(values, scales.T)

    def product(self, rows: torch.Tensor | Float8Rows, bias: torch.Tensor | None) -> torch.Tensor:
        """
        Multiply tokens by the weight.

        Args:
            rows (`torch.Tensor` of shape `(..., K)`, or [`Float8Rows`]): tokens.
            bias (`torch.Tensor` of shape `(N,)`, *optional*): bias.

        Returns:
            `torch.Tensor` of shape `(..., N)`, bfloat16.
        """
        values, scales = rows if isinstance(rows, Float8Rows) else quantize_rows(rows)
        result = torch._scaled_mm(
            values.flatten(0, -2),
            self.values.T,
            scale_a=scales.flatten(0, -2),
            scale_b=self.scales,
            bias=None if bias is None else bias.bfloat16(),
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return result.view(*values.shape[:-1], -1)


class Float8Linear(nn.Linear):
    """
    Compute a linear layer in float8. It is made from an `nn.Linear` by [`Float8Linear.take_over`].

    The quantized weight is kept beside the layer's own one, which the model shares, from the first call until the copy
    is moved to another device or dtype.

    Attributes:
        matrix ([`ComputedConstants`]): the quantized weight.
    """

    @classmethod
    def take_over(cls, layer: nn.Linear) -> None:
        """Make a linear layer one of this class, with the same parameters."""
        layer.__class__ = cls
        layer.matrix = ComputedConstants()

    def forward(self, input: torch.Tensor | Float8Rows) -> torch.Tensor:
        """Compute `(..., in_features)` -> `(..., out_features)` in bfloat16; errors as in [`check_float8`]."""
        return self.matrix.get("weight", self._make_matrix).product(input, self.bias)

    def _make_matrix(self) -> Float8Matrix:
        check_float8(self.weight)
        return Float8Matrix.of(self.weight)
