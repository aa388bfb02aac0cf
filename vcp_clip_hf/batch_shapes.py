"""Batches whose images have several shapes at the model's input, as with `resize_mode="keep_ratio"`."""

from collections.abc import Sequence
from typing import Any

import torch


__all__ = ["of_one_shape", "stacked"]


def stacked(pixel_values: Sequence[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    """
    Join the inputs of several images.

    Args:
        pixel_values (sequence of `torch.Tensor`): one input of shape `(1, 3, height, width)` for each image.

    Returns:
        `torch.Tensor` of shape `(images, 3, height, width)`; the inputs as a list, if their shapes differ.
    """
    if len({each.shape for each in pixel_values}) > 1:
        return list(pixel_values)
    return torch.cat(list(pixel_values))


def of_one_shape(batch: dict[str, Any]) -> list[tuple[list[int], dict[str, Any]]]:
    """
    Split a batch into parts whose inputs have one shape.

    Args:
        batch (`dict`): lists with one entry for each image, and `pixel_values` as [`stacked`] returns them.

    Returns:
        `list` of positions in the batch, in ascending order, and a batch of these images, whose `pixel_values` are a
        tensor.
    """
    values = batch["pixel_values"]
    if isinstance(values, torch.Tensor):
        return [(list(range(len(values))), batch)]
    positions: dict[torch.Size, list[int]] = {}
    for position, each in enumerate(values):
        positions.setdefault(each.shape, []).append(position)
    parts = []
    for group in positions.values():
        part = {name: [of_images[position] for position in group] for name, of_images in batch.items()}
        parts.append((group, {**part, "pixel_values": torch.cat(part["pixel_values"])}))
    return parts
