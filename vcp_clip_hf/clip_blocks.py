"""The blocks of CLIP's towers in parts, and attention in bfloat16 on a CPU."""

import torch
from torch import nn


__all__ = ["attend_in_pieces", "finish_block", "image_block", "project_block"]

# Scores of a piece, so that they stay in the cache of a core; and from how many tokens on that matters
_PIECE_BYTES = 2**23
_MANY_TOKENS = 256


def project_block(layer: nn.Module, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Query, key and value of a CLIP layer, `(sequences, heads, places, head width)`."""
    attention, normed = layer.self_attn, layer.layer_norm1(hidden_states)
    return tuple(
        projection(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )


def finish_block(layer: nn.Module, hidden_states: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """The rest of a CLIP layer, behind its attention."""
    hidden_states = hidden_states + layer.self_attn.out_proj(attended.transpose(1, 2).flatten(2))
    return hidden_states + layer.mlp(layer.layer_norm2(hidden_states))


def image_block(layer: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    """
    A block of the image tower, `(B, 1 + N, d_v)` -> the same. In bfloat16 on a CPU its attention is done in pieces:
    less than half the time of torch's fused kernel there.
    """
    if not _pays(layer, hidden_states):
        return layer(hidden_states, None)
    query, key, value = project_block(layer, hidden_states)
    return finish_block(layer, hidden_states, attend_in_pieces(query, key, value, layer.self_attn.scale))


def _pays(layer: nn.Module, hidden_states: torch.Tensor) -> bool:
    if hidden_states.device.type != "cpu" or hidden_states.shape[1] < _MANY_TOKENS or torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling() or layer.self_attn.config._attn_implementation != "sdpa":
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
