"""Recognize whether the weights of a model have changed since a value was computed from them."""

from collections.abc import Iterable

import torch
from torch import nn


__all__ = ["WeightSnapshot"]


class WeightSnapshot:
    """
    Weights and modules of parts of a model, to be compared later.

    PyTorch counts in-place changes of a tensor, and `Module.to` assigns other memory to a parameter. Changes through
    `.data` are not counted (averaged weights, merged adapters): they are recognized by a few values of each tensor.

    Args:
        parts (`Iterable[nn.Module]`): the modules to compare.
        sampled (`Iterable[nn.Module]`): those of them whose values are sampled.
    """

    def __init__(self, parts: Iterable[nn.Module], sampled: Iterable[nn.Module]):
        parts = list(parts)
        self._modules = [module for part in parts for module in part.modules()]
        self._parameters = [parameter for part in parts for parameter in part.parameters()]
        self._states = [(each.data_ptr(), each.stride(), _version(each)) for each in self._parameters]
        # Settings of layers, such as the epsilon of a LayerNorm
        self._settings = [(type(each), each.extra_repr()) for each in self._modules]
        self._samples = _sample_values([parameter for part in sampled for parameter in part.parameters()])

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, WeightSnapshot)
            and self._states == other._states
            and self._settings == other._settings
            and _same_objects(self._parameters, other._parameters)
            and _same_objects(self._modules, other._modules)
            and torch.equal(self._samples, other._samples)
        )

    __hash__ = None


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _same_objects(ours: list, theirs: list) -> bool:
    return len(ours) == len(theirs) and all(our is their for our, their in zip(ours, theirs, strict=True))


def _sample_values(parameters: list[nn.Parameter]) -> torch.Tensor:
    """Return about four values of each tensor, on the CPU; none of tensors on `meta`."""
    tensors = [each.detach().flatten() for each in parameters if each.device.type != "meta"]
    if not tensors:
        return torch.empty(0)
    return torch.cat([each[:: max(1, each.numel() // 4)].float() for each in tensors]).cpu()
