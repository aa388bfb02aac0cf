"""Patch tokens that are compared: which states of a model they are, and their means over neighbors."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn
from transformers.utils import ModelOutput

from .convolutional_stem import STEM_LAYER


__all__ = ["averaged_over_neighbors", "patches_of", "states_of"]


def averaged_over_neighbors(tokens: torch.Tensor, grid: tuple[int, int], side: int) -> torch.Tensor:
    """
    Replace each patch token by the mean over its neighbors in the picture; at a border, over those that exist.

    Args:
        tokens (`torch.Tensor` of shape `(batch_size, num_patches, width)`): patch tokens, row by row.
        grid (`tuple[int, int]`): rows and columns of patches.
        side (`int`): odd side of the square of neighbors; 1 returns the tokens unchanged.
    """
    if side == 1:
        return tokens
    planes = tokens.transpose(1, 2).unflatten(2, grid)
    means = nn.functional.avg_pool2d(planes, side, stride=1, padding=side // 2, count_include_pad=False)
    return means.flatten(2).transpose(1, 2)


def states_of(outputs: ModelOutput, layers: Iterable[int | str]) -> dict[int | str, torch.Tensor]:
    """
    Return the states of layers from the outputs of a model that was called with `output_hidden_states=layers`.

    Args:
        outputs (`ModelOutput`): outputs with `hidden_states` and `stem_features`.
        layers (`Iterable[int | str]`): blocks, and `"stem"`.

    Returns:
        `dict[int | str, torch.Tensor]`: layer -> residual stream `(batch_size, 1 + num_patches, width)`, class token
        first, or the stem's features `(batch_size, num_patches, d_s)`.
    """
    return {layer: outputs.stem_features if layer == STEM_LAYER else outputs.hidden_states[layer] for layer in layers}


def patches_of(states: Sequence[torch.Tensor] | Mapping[int | str, torch.Tensor], layer: int | str) -> torch.Tensor:
    """Return the patch tokens of a layer: its states, as `states_of` returns them, without the class token."""
    return states[layer] if layer == STEM_LAYER else states[layer][:, 1:]
