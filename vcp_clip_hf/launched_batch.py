"""What a device computes for a batch of images, collected when it is needed."""

from collections.abc import Sequence
from typing import Any

import torch

from .host_copy import HostCopy


__all__ = ["LaunchedBatch"]


class LaunchedBatch:
    """
    What a device computes for a batch of images. Making it starts the copies to the host, and waits for nothing.

    Args:
        groups (`Sequence[list[int]]`): positions in the batch of the images of each group, which have one size.
        stacks (`dict[str, Sequence[torch.Tensor]]`):
            Field of the results -> one tensor of shape `(images, ...)` for each group. A field with one number for
            each image becomes a `float`.
        fields (`Sequence[dict[str, Any]]`): further fields of each image's result.
    """

    def __init__(
        self,
        groups: Sequence[list[int]],
        stacks: dict[str, Sequence[torch.Tensor]],
        fields: Sequence[dict[str, Any]],
    ):
        self._groups, self._names, self._fields = groups, list(stacks), fields
        self._copy = HostCopy([stack for of_field in stacks.values() for stack in of_field])

    def results(self) -> list[dict[str, Any]]:
        """Wait for the device; return the result of each image, with tensors on the CPU."""
        copies = iter(self._copy.tensors())
        results = [dict(each) for each in self._fields]
        for name in self._names:
            for group in self._groups:
                stack = next(copies)
                rows = stack.tolist() if stack.ndim == 1 else stack
                for position, row in zip(group, rows, strict=True):
                    results[position][name] = row
        return results
