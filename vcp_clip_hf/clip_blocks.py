"""The blocks of CLIP's towers in parts, and how a CPU computes them fastest: matrix products, attention."""

import platform
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn


__all__ = ["attend_in_pieces", "finish_block", "image_block", "linear", "project_block"]

# Scores of a piece, so that they stay in the cache of a core; and from how many tokens on that matters
_PIECE_BYTES = 2**23
_MANY_TOKENS = 256
# From how many rows on a product is worth the detour over a convolution
_MANY_ROWS = 32


def project_block(layer: nn.Module, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Query, key and value of a CLIP layer, `(sequences, heads, places, head width)`."""
    attention, normed = layer.self_attn, layer.layer_norm1(hidden_states)
    return tuple(
        linear(projection, normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )


def finish_block(layer: nn.Module, hidden_states: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """The rest of a CLIP layer, behind its attention."""
    hidden_states = hidden_states + linear(layer.self_attn.out_proj, attended.transpose(1, 2).flatten(2))
    mlp = layer.mlp
    return hidden_states + linear(mlp.fc2, mlp.activation_fn(linear(mlp.fc1, layer.layer_norm2(hidden_states))))


def image_block(layer: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    """
    A block of the image tower, `(B, 1 + N, d_v)` -> the same. On a CPU, without gradients: in bfloat16 with attention
    in pieces, in float32 with products through `linear`; each takes about half the time of transformers' own there.
    """
    in_pieces = _pieces_pay(hidden_states)
    own_way = in_pieces or _convolution_pays(layer.mlp.fc1, hidden_states)
    if not own_way or layer.self_attn.config._attn_implementation != "sdpa":
        return layer(hidden_states, None)
    query, key, value = project_block(layer, hidden_states)
    attend = attend_in_pieces if in_pieces else nn.functional.scaled_dot_product_attention
    return finish_block(layer, hidden_states, attend(query, key, value, scale=layer.self_attn.scale))


# --- attention in bfloat16 ------------------------------------------------------------------------------------------


def _pieces_pay(hidden_states: torch.Tensor) -> bool:
    if not _plain_inference_on_cpu(hidden_states) or hidden_states.shape[1] < _MANY_TOKENS:
        return False
    autocast = torch.is_autocast_enabled("cpu")
    return (torch.get_autocast_dtype("cpu") if autocast else hidden_states.dtype) == torch.bfloat16


def attend_in_pieces(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """
    Attention of some heads of one image at a time. (B, H, N, d) each -> (B, H, N, d).

    Args:
        scale (`float`): of the scores, before the softmax.
    """
    batch_size, heads, tokens, _ = query.shape
    at_once = max(1, _PIECE_BYTES // (tokens * tokens * query.element_size()))
    # of the layout that the output projection reads without a copy
    attended = query.new_empty(batch_size, tokens, heads, value.shape[-1]).transpose(1, 2)
    for image in range(batch_size):
        for first in range(0, heads, at_once):
            piece = (image, slice(first, first + at_once))
            scores = (query[piece] * scale) @ key[piece].transpose(-1, -2)
            attended[piece] = scores.softmax(dim=-1) @ value[piece]
    return attended


# --- matrix products in float32 -------------------------------------------------------------------------------------


def linear(layer: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    """
    `layer(rows)`, as a convolution with a 1 x 1 kernel where that is faster.

    Args:
        layer (`nn.Linear`): or what stands in for one, such as a quantised layer or one with an adapter.
        rows (`torch.Tensor` of shape `(B, M, in_features)`): what it is applied to.

    Returns:
        `torch.Tensor` of shape `(B, M, out_features)`.
    """
    if not _convolution_pays(layer, rows):
        return layer(rows)
    # rows are a picture of 1 x M pixels whose channels lie together: nothing is copied
    pixels = nn.functional.conv2d(rows.transpose(1, 2).unsqueeze(2), layer.weight[:, :, None, None], layer.bias)
    return pixels.squeeze(2).transpose(1, 2)


def _convolution_pays(layer: nn.Linear, rows: torch.Tensor) -> bool:
    if not _plain_inference_on_cpu(rows) or rows.shape[0] * rows.shape[1] < _MANY_ROWS:
        return False
    if torch.is_autocast_enabled("cpu") or rows.dtype != torch.float32:
        return False
    # nothing else than a linear layer, and nobody who listens to it or stands in for it
    plain = type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and layer.weight.dtype == torch.float32
    watched = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    return plain and not watched and _products_are_slow()


@lru_cache
def _products_are_slow() -> bool:
    """
    Whether float32 products run at half speed: PyTorch gives them to MKL, which leaves the AVX-512 units of AMD's
    processors idle; convolutions it gives to oneDNN, which does not.
    """
    backends = torch.backends
    if not (backends.mkl.is_available() and backends.mkldnn.is_available()):
        return False
    return backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in _processor()


def _processor() -> str:
    """What the system says about the processor, its maker among it."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()


def _plain_inference_on_cpu(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
