"""Value-value attention of CLIP's image blocks, and the streams that methods build from it.

In a value-value attention the value projection also serves as query and key, so that a token attends to tokens of
similar content. It uses the block's own heads, scale, first LayerNorm and output projection, and no MLP. Published as
V-V attention (AnoVL), dual path (CLIP-AD) and DPAM (AnomalyCLIP), after CLIP Surgery (arXiv 2304.05653).

Shapes: B images, N patches, D the image width; h_l is the residual stream after block l, h_0 the input of the first.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer, eager_attention_forward


__all__ = ["ValueStream", "attend_to_values", "staged_value_stream", "value_attention", "value_stream"]

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
    return attend_to_values(attention, values.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2))


def attend_to_values(attention: CLIPAttention, values: torch.Tensor) -> torch.Tensor:
    """
    Compute the value-value attention of a block from its values.

    Args:
        attention (`CLIPAttention`): the block's attention.
        values (`torch.Tensor` of shape `(B, heads, 1 + N, D / heads)`): result of its value projection.

    Returns:
        `torch.Tensor` of shape `(B, 1 + N, D)`.
    """
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
    attended, _ = attend(attention, values, values, values, None, scaling=attention.scale, dropout=0.0)
    return attention.out_proj(attended.flatten(2))


class ValueStream:
    """
    The value-value stream of one pass: s = x before the first block, then s + VV(LN1(x)) in every block.

    Args:
        layers (`Iterable[int]`): blocks after which the stream is requested, counted from 1. Before `first_block` the
            stream is the ordinary one.
        first_block (`int`): first block with value-value attention, counted from 1.

    Attributes:
        states (`dict[int, torch.Tensor]`): `(B, 1 + N, D)` of each requested layer, once the encoder has run.
        class_token (`torch.Tensor` of shape `(B, D)`, *optional*): class token of the ordinary stream after the last
            block, if an encoder computes both streams in one pass.
    """

    def __init__(self, layers: Iterable[int], first_block: int):
        self.layers = frozenset(layers)
        self.first_block = first_block
        self.states: dict[int, torch.Tensor] = {}
        self.class_token: torch.Tensor | None = None
        self._stream: torch.Tensor | None = None

    def runs_in(self, number: int) -> bool:
        """Return whether a block has value-value attention that a requested layer depends on."""
        return self.first_block <= number <= max(self.layers)

    def start(self, hidden_states: torch.Tensor) -> None:
        """Begin with the ordinary stream before the first block."""
        self._stream = hidden_states

    def add(self, update: torch.Tensor) -> None:
        """Add the value-value attention of a block."""
        self._stream = self._stream + update

    def record(self, number: int, hidden_states: torch.Tensor) -> None:
        """Keep the stream after a block if it was requested; `hidden_states` is the ordinary one."""
        if number in self.layers:
            self.states[number] = self._stream if number >= self.first_block else hidden_states


def value_stream(
    blocks: Sequence[nn.Module], states: Mapping[int, torch.Tensor], layers: Collection[int], first_block: int = 1
) -> dict[int, torch.Tensor]:
    """
    Compute the residual stream u_l = h_(f-1) + sum of VV_i(LN1(h_(i-1))) for i = f..l, with f the first block.

    AnoVL takes all blocks. AnomalyCLIP's DPAM starts later; before its first block, u_l is h_l.

    Args:
        blocks (`Sequence[nn.Module]`): all blocks of CLIP's image tower.
        states (`Mapping[int, torch.Tensor]`): l -> h_l of shape `(B, 1 + N, D)`; must have `first_block - 1` to
            `max(layers) - 1`, and the requested layers before `first_block`.
        layers (`Collection[int]`): blocks after which the stream is requested, counted from 1.
        first_block (`int`, *optional*, defaults to 1): first block with value-value attention, counted from 1.

    Returns:
        `dict[int, torch.Tensor]`: u_l of each requested layer, of shape `(B, 1 + N, D)`.
    """
    stream = ValueStream(layers, first_block)
    stream.start(states[first_block - 1])
    for number in range(1, max(layers) + 1):
        if stream.runs_in(number):
            stream.add(value_attention(blocks[number - 1], states[number - 1]))
        stream.record(number, states.get(number))
    return stream.states


def staged_value_stream(
    blocks: Sequence[nn.Module], states: Mapping[int, torch.Tensor], layers: Collection[int]
) -> dict[int, torch.Tensor]:
    """
    Compute CLIP-AD's second path: the sum of VV_i(LN1(h_(i-1))) over the blocks of one stage, a quarter of the tower
    (or several quarters, where its depth is not a multiple of 4).

    The sum starts from zero in every stage, without a residual. A layer in the middle of a stage receives the sum of
    the whole stage: the authors' code adds in place to the tensor that it has already returned.

    Args:
        blocks (`Sequence[nn.Module]`): all blocks of CLIP's image tower.
        states (`Mapping[int, torch.Tensor]`): l -> h_l of shape `(B, 1 + N, D)`, for the input of every block.
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
