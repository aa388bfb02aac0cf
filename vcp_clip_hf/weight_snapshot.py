"""Recognize whether the weights of a model have changed since a value was computed from them."""

from collections.abc import Iterable
from itertools import groupby

import torch
from torch import nn


__all__ = ["WeightSnapshot"]

# About how many values of each tensor are compared
_NUM_SAMPLES = 4


class WeightSnapshot:
    """
    State of the weights and modules of parts of a model, to be compared later.

    PyTorch counts in-place changes of a tensor, and `Module.to` assigns other memory to a parameter. Changes through
    `.data` are not counted (averaged weights, merged adapters): they are recognized by a few values of each tensor.

    Args:
        parts (`Iterable[nn.Module]`): modules to compare.
        sampled (`Iterable[nn.Module]`): modules among them of which values are compared too.
    """

    def __init__(self, parts: Iterable[nn.Module], sampled: Iterable[nn.Module]):
        self._modules, self._parameters, self._states, self._settings = _describe(parts)
        self._views = _sampled_views([parameter for part in sampled for parameter in part.parameters()])
        self._samples = _read(self._views)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, WeightSnapshot)
            and self._states == other._states
            and self._settings == other._settings
            and _same_objects(self._parameters, other._parameters)
            and _same_objects(self._modules, other._modules)
            and _same_values(self._samples, other._samples)
        )

    __hash__ = None

    def holds(self, parts: Iterable[nn.Module]) -> bool:
        """
        Return whether modules are still in the state of this snapshot; faster than comparing with a new one.

        Args:
            parts (`Iterable[nn.Module]`): modules that the snapshot was made of.
        """
        modules, parameters, states, settings = _describe(parts)
        return (
            self._states == states
            and self._settings == settings
            and _same_objects(self._parameters, parameters)
            and _same_objects(self._modules, modules)
            # The parameters' memory is the same, so the views show its present values
            and _same_values(self._samples, _read(self._views))
        )


def _describe(parts: Iterable[nn.Module]) -> tuple[list[nn.Module], list[nn.Parameter], list[tuple], list[tuple]]:
    """Return all modules and parameters, the state of each parameter and the settings of each module."""
    parts = list(parts)
    modules = [module for part in parts for module in part.modules()]
    parameters = [parameter for part in parts for parameter in part.parameters()]
    states = [(each.data_ptr(), each.stride(), _version(each)) for each in parameters]
    # Settings of layers, such as the epsilon of a LayerNorm
    return modules, parameters, states, [(type(each), each.extra_repr()) for each in modules]


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _same_objects(ours: list, theirs: list) -> bool:
    return len(ours) == len(theirs) and all(our is their for our, their in zip(ours, theirs, strict=True))


def _same_values(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def _sampled_views(parameters: list[nn.Parameter]) -> list[list[torch.Tensor]]:
    """Return views of a few values of each tensor, grouped by device and dtype; none of tensors on `meta`."""
    views = [_sampled_view(each.detach()) for each in parameters if each.device.type != "meta"]

    def kind(view: torch.Tensor) -> tuple[str, str]:
        return str(view.device), str(view.dtype)

    return [list(group) for _, group in groupby(sorted(views, key=kind), key=kind)]


def _sampled_view(tensor: torch.Tensor) -> torch.Tensor:
    # Along the axes in the order of the memory, where a tensor without gaps can be viewed as one row
    row = tensor.permute(sorted(range(tensor.ndim), key=lambda axis: -tensor.stride(axis)))
    if row.is_contiguous():
        return row.view(-1)[:: max(1, tensor.numel() // _NUM_SAMPLES)]
    return row[tuple(0 for _ in range(row.ndim))].view(1)


def _read(views: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    return [torch.cat(group) for group in views]
