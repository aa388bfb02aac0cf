"""A CUDA device imitated by tensors without values, for tests on machines that have none."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode


class _OneMode(FakeTensorMode):
    """A mode that copies of its tensors share."""

    def __deepcopy__(self, memo):
        return self


class _WithoutDeviceGuard(TorchFunctionMode):
    """Call operators where the methods of PyTorch's CPU build refuse tensors on CUDA."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__getitem__:
            return _indexed(*args)
        if func is torch.Tensor.contiguous:
            return torch.ops.aten.contiguous.default(*args, **(kwargs or {}))
        if func is torch.Tensor.pin_memory:
            return args[0]
        return func(*args, **(kwargs or {}))


def _indexed(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    index = index if isinstance(index, tuple) else (index,)
    if Ellipsis in [each for each in index if not isinstance(each, torch.Tensor)]:
        place = index.index(Ellipsis)
        missing = tensor.ndim - sum(each is not None for each in index) + 1
        index = (*index[:place], *[slice(None)] * missing, *index[place + 1 :])
    if any(isinstance(each, (torch.Tensor, list)) for each in index):
        tensors = [None if each == slice(None) else torch.as_tensor(each) for each in index]
        return torch.ops.aten.index.Tensor(tensor, tensors)
    dim = 0
    for each in index:
        if each is None:
            tensor, dim = tensor.unsqueeze(dim), dim + 1
        elif isinstance(each, slice):
            tensor, dim = torch.ops.aten.slice.Tensor(tensor, dim, each.start, each.stop, each.step or 1), dim + 1
        else:
            tensor = tensor.select(dim, each)
    return tensor


@contextmanager
def imitated_gpu() -> Iterator[None]:
    """
    Let `device="cuda"` make tensors without values. Mixing them with tensors on the CPU and reading values are errors.
    """
    with warnings.catch_warnings(), _OneMode(), _WithoutDeviceGuard():
        # Copies of tensors look at the address, which is zero
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        yield


def on_imitated_gpu(module: nn.Module) -> nn.Module:
    """Return a copy of a module whose parameters and buffers are on the imitated device; inside `imitated_gpu`."""
    # The memo keeps the tensors with values from being copied, which the mode refuses
    memo = {id(each): _imitated(each) for each in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, memo)


def _imitated(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
