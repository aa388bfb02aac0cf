"""Recognize whether the weights of a model have changed since a value was computed from them."""

from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter, eq, is_not

import torch
from torch import nn


__all__ = ["WeightSnapshot"]

# About how many values of each tensor are compared
_NUM_SAMPLES = 4
# Attributes of modules with hooks
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class WeightSnapshot:
    """
    State of the weights and modules of parts of a model, to be compared with their later state.

    PyTorch counts in-place changes of a tensor, and `Module.to` assigns other memory to a parameter. Changes through
    `.data` are not counted (averaged weights, merged adapters): they are recognized by a few values of each tensor.

    Args:
        parts (`Iterable[nn.Module]`): modules to compare.
        sampled (`Iterable[nn.Module]`): modules among them of which values are compared too.
    """

    def __init__(self, parts: Iterable[nn.Module], sampled: Iterable[nn.Module]):
        self._parts = list(parts)
        self._modules = [module for part in self._parts for module in part.modules()]
        self._kinds = list(map(type, self._modules))
        # All attributes of a module, and what it registers: comparing dictionaries takes no Python code
        names = ("_parameters", "_buffers", "_modules", *_HOOKS)
        self._contents = [each for module in self._modules for each in (vars(module), *map(vars(module).get, names))]
        self._former_contents = [None if each is None else dict(each) for each in self._contents]
        self._parameters = [parameter for part in self._parts for parameter in part.parameters()]
        self._counted = [parameter for parameter in self._parameters if not parameter.is_inference()]
        self._states = self._read_states()
        self._views = _sampled_views([parameter for part in sampled for parameter in part.parameters()])
        self._samples = _read(self._views)

    def holds(self, parts: Iterable[nn.Module], values: bool = True) -> bool:
        """
        Return whether modules are still in the state of this snapshot.

        Args:
            parts (`Iterable[nn.Module]`): modules, which may be others than those of the snapshot.
            values (`bool`, *optional*, defaults to `True`):
                Whether to compare values too. On a GPU, this waits for all work that was launched before.
        """
        parts = list(parts)
        if len(parts) != len(self._parts) or any(map(is_not, parts, self._parts)):
            return False
        try:
            unchanged = all(map(eq, self._contents, self._former_contents))
        except (RuntimeError, ValueError):  # attributes that have no truth value when compared, such as tensors
            unchanged = False
        if not unchanged or self._kinds != list(map(type, self._modules)) or self._states != self._read_states():
            return False
        # The parameters' memory is the same, so the views show its present values
        return not values or all(map(torch.equal, self._samples, _read(self._views)))

    def _read_states(self) -> tuple[list, ...]:
        """Return address, strides and number of in-place changes of each parameter."""
        addresses, strides = map(torch.Tensor.data_ptr, self._parameters), map(torch.Tensor.stride, self._parameters)
        return list(addresses), list(strides), list(map(attrgetter("_version"), self._counted))


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
