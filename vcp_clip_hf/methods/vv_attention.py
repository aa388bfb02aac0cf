"""Value-value attention of CLIP's image blocks, and the streams that methods build from it.

In a value-value attention the value projection also serves as query and key, so that a token attends to tokens of
similar content. It uses the block's own heads, scale, first LayerNorm and output projection, and no MLP. Published as
V-V attention (AnoVL), dual path (CLIP-AD) and DPAM (AnomalyCLIP), after CLIP Surgery (arXiv 2304.05653).

Shapes: B images, N patches, D the image width; h_l is the residual stream after block l, h_0 the input of the first.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer, eager_attention_forward


__all__ = ["staged_value_stream", "value_attention", "value_stream"]

# Stages of CLIP-AD's second path
_NUM_STAGES = 4


def value_attention(block: CLIPEncoderLayer, hidden_states: torch.Tensor) -> torch.Tensor:
    """
    Compute the value-value attention of one block, VV(LN1(h)), without residual.

    Args:
        block (`CLIPEncoderLayer`): block of CLIP's image tower.
        hidden_states (`torch.Tensor` of shape `(B, 1 + N, D)`): input of the block, not normalized.

    Returns:
        `torch.Tensor` of shape `(B, 1 + N, D)`.
    """
    attention: CLIPAttention = block.self_attn
    values = attention.v_proj(block.layer_norm1(hidden_states))
    heads = values.view(*values.shape[:-1], -1, attention.head_dim).transpose(1, 2)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
    attended, _ = attend(attention, heads, heads, heads, None, scaling=attention.scale, dropout=0.0)
    return attention.out_proj(attended.reshape(values.shape).contiguous())


def value_stream(
    blocks: Sequence[nn.Module], states: Mapping[int, torch.Tensor], layers: Collection[int], first_block: int = 1
) -> dict[int, torch.Tensor]:
    """
    Compute the residual stream u_l = h_(f-1) + sum of VV_i(LN1(h_(i-1))) for i = f..l, with f the first block.

    AnoVL takes all blocks. AnomalyCLIP's DPAM starts later; before its first block, u_l is h_l.

    Args:
        blocks (`Sequence[nn.Module]`): all blocks of CLIP's image tower.
        states (`Mapping[int, torch.Tensor]`): h_l by its number, each of shape `(B, 1 + N, D)`. Needed are those of
            `first_block - 1` to `max(layers) - 1`, and those of requested layers before `first_block`.
        layers (`Collection[int]`): blocks after which the stream is requested, counted from 1.
        first_block (`int`, *optional*, defaults to 1): first block with value-value attention, counted from 1.

    Returns:
        `dict[int, torch.Tensor]`: u_l of each requested layer, of shape `(B, 1 + N, D)`.
    """
    streams = {layer: states[layer] for layer in layers if layer < first_block}
    stream = states[first_block - 1]
    for number in range(first_block, max(layers) + 1):
        stream = stream + value_attention(blocks[number - 1], states[number - 1])
        if number in layers:
            streams[number] = stream
    return streams


def staged_value_stream(
    blocks: Sequence[nn.Module], states: Mapping[int, torch.Tensor], layers: Collection[int]
) -> dict[int, torch.Tensor]:
    """
    Compute CLIP-AD's second path: the sum of VV_i(LN1(h_(i-1))) over the blocks of one stage, a quarter of the tower
    (or several quarters, where its depth is not a multiple of 4).

    The sum starts from zero in every stage, without a residual. A layer in the middle of a stage receives the sum of
    the whole stage: the authors' code adds to the tensor that it has already handed out.

    Args:
        blocks (`Sequence[nn.Module]`): all blocks of CLIP's image tower.
        states (`Mapping[int, torch.Tensor]`): h_l by its number, each of shape `(B, 1 + N, D)`, of every block's
            input.
        layers (`Collection[int]`): blocks whose stage is requested, counted from 1.

    Returns:
        `dict[int, torch.Tensor]`: the sum of each requested layer's stage, of shape `(B, 1 + N, D)`.
    """
    stage_of = _stages(len(blocks))
    needed = {stage_of[layer - 1] for layer in layers}
    stages: dict[int, torch.Tensor] = {}
    for index, (block, stage) in enumerate(zip(blocks, stage_of, strict=True)):
        if stage in needed:
            update = value_attention(block, states[index])
            stages[stage] = stages[stage] + update if stage in stages else update
    return {layer: stages[stage_of[layer - 1]] for layer in layers}


def _stages(depth: int) -> list[int]:
    """Return the stage of each block; a stage starts where the block's index is a multiple of depth / 4."""
    starts = [index for index in range(depth) if index * _NUM_STAGES % depth == 0]
    return [sum(start <= index for start in starts) - 1 for index in range(depth)]
