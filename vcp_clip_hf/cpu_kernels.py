"""Faster ways for AMD processors to compute CLIP's linear layers (float32) and attention (bfloat16), for inference.

Used by accelerated copies only. Each way is chosen by the processor's name and the data type, never by a trial,
so that results do not depend on timing.
"""

import platform
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward


__all__ = ["CPU_ATTENTION", "ConvolutionLinear", "attend_in_pieces", "cpu_attention", "use_convolutions"]

# Name of `cpu_attention` among transformers' attention implementations
CPU_ATTENTION = "vcp_clip_cpu"

# Maximum size of one piece's scores, which then fit a core's L2 cache, and the number of tokens above which pieces are
# faster
_PIECE_BYTES = 2**23
_MANY_TOKENS = 256
# Number of rows above which a convolution is faster
_MANY_ROWS = 32


# --- matrix products in float32 -------------------------------------------------------------------------------------


class ConvolutionLinear(nn.Linear):
    """Compute a linear layer as a convolution with a 1 x 1 kernel where that is faster."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Compute `(..., in_features)` -> `(..., out_features)`; `(B, M, in_features)` may become a convolution."""
        if not self._convolution_is_faster(input):
            return super().forward(input)
        # The rows are an image of 1 x M pixels with the channels last in memory: nothing is copied
        pixels = nn.functional.conv2d(input.transpose(1, 2).unsqueeze(2), self.weight[:, :, None, None], self.bias)
        return pixels.squeeze(2).transpose(1, 2)

    def _convolution_is_faster(self, rows: torch.Tensor) -> bool:
        if not _inference_on_cpu(rows) or rows.ndim != 3 or rows.shape[0] * rows.shape[1] < _MANY_ROWS:
            return False
        if torch.is_autocast_enabled("cpu") or not rows.dtype == self.weight.dtype == torch.float32:
            return False
        return _products_are_slow()


def use_convolutions(*parts: nn.Module) -> None:
    """Make all plain linear layers of modules [`ConvolutionLinear`]s with the same parameters."""
    for part in parts:
        for module in part.modules():
            if type(module) is nn.Linear:
                module.__class__ = ConvolutionLinear


@lru_cache
def _products_are_slow() -> bool:
    """
    Return whether float32 matrix products run at half speed. PyTorch computes them with MKL, which leaves the AVX-512
    units of AMD processors idle, and convolutions with oneDNN, which uses them.
    """
    backends = torch.backends
    if not (backends.mkl.is_available() and backends.mkldnn.is_available()):
        return False
    return backends.cpu.get_cpu_capability() == "AVX512" and _is_amd()


@lru_cache
def _is_amd() -> bool:
    return "AuthenticAMD" in _processor()


def _processor() -> str:
    """Return the system's description of the processor, which includes its vendor."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()


# --- attention in bfloat16 ------------------------------------------------------------------------------------------


def cpu_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """
    Compute the attention of the image tower: in pieces where that is faster, else with transformers' `sdpa`.

    Measured with ViT-L/14 at 518 in bfloat16: on an AMD processor pieces take half the time of the fused kernel, on an
    Intel processor with bfloat16 units the fused kernel is faster.

    Args:
        query, key, value (`torch.Tensor` of shape `(B, heads, N, head width)`):
            Queries, keys and values of all patches and the class token.
        scaling (`float`): factor of the scores before the softmax.
        module, attention_mask, kwargs: as in every attention function of transformers.

    Returns:
        `tuple`: `(B, N, heads, head width)`, and `None` in place of the attention weights.
    """
    if attention_mask is None and _pieces_are_faster(query):
        return attend_in_pieces(query, key, value, scaling).transpose(1, 2), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


AttentionInterface.register(CPU_ATTENTION, cpu_attention)


def _pieces_are_faster(query: torch.Tensor) -> bool:
    many = query.shape[2] >= _MANY_TOKENS
    return many and query.dtype == torch.bfloat16 and _inference_on_cpu(query) and _is_amd()


def attend_in_pieces(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """
    Compute the attention of a few heads of one image at a time.

    Args:
        query, key, value (`torch.Tensor` of shape `(B, heads, N, head width)`).
        scaling (`float`): factor of the scores before the softmax.

    Returns:
        `torch.Tensor` of shape `(B, heads, N, head width)`.
    """
    batch_size, heads, tokens, _ = query.shape
    heads_at_once = max(1, _PIECE_BYTES // (tokens * tokens * query.element_size()))
    # The output projection reads this memory layout without a copy
    attended = query.new_empty(batch_size, tokens, heads, value.shape[-1]).transpose(1, 2)
    for image in range(batch_size):
        for first in range(0, heads, heads_at_once):
            piece = (image, slice(first, first + heads_at_once))
            scores = (query[piece] * scaling) @ key[piece].transpose(-1, -2)
            attended[piece] = scores.softmax(dim=-1) @ value[piece]
    return attended


def _inference_on_cpu(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
