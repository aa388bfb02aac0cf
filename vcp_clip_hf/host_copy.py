"""Copy tensors between the host and a device while the device computes."""

from collections.abc import Sequence

import numpy as np
import torch


__all__ = ["HostCopy", "as_array", "to_device"]

# Largest size of one copy in pinned memory, which the system cannot move: 256 MiB
_PINNED_BYTES = 2**28


class HostCopy:
    """
    Tensors on their way to the host. From a CUDA device, the copies go to pinned memory and nothing waits for them
    before `tensors`; from other devices they are finished at once.

    Args:
        tensors (`Sequence[torch.Tensor]`): tensors on any device. Tensors on the CPU are not copied.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]):
        self._tensors = [_begin(each) for each in tensors]
        self._copied = [_event(device) for device in {each.device for each in tensors if each.is_cuda}]

    def tensors(self) -> list[torch.Tensor]:
        """Wait for the copies, and return them in order."""
        for event in self._copied:
            event.synchronize()
        return self._tensors


def _begin(tensor: torch.Tensor) -> torch.Tensor:
    # For CUDA tensors, PyTorch makes pinned memory for a copy that does not block
    return tensor.to("cpu", non_blocking=tensor.is_cuda and tensor.nbytes <= _PINNED_BYTES)


def _event(device: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """
    Return a tensor of the CPU as an array: on the same memory, or a copy of pinned memory, which is used again.

    Args:
        tensor (`torch.Tensor`): tensor on the CPU.
    """
    return np.array(tensor) if tensor.is_pinned() else tensor.numpy()


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """
    Copy a tensor of the CPU to a device, without waiting until the device has finished its work.

    Args:
        tensor (`torch.Tensor`): tensor. A pinned one must not be changed before a CUDA device has read it. One of
            another device is moved as `Tensor.to` does.
        device (`torch.device`): target device. Copies to Apple's GPUs wait, because these may read memory that was
            given back.
    """
    if tensor.device.type != "cpu":
        return tensor.to(device)
    if device.type == "cuda" and _can_pin() and not tensor.is_pinned():
        tensor = tensor.pin_memory()  # a copy from other memory may wait
    return tensor.to(device, non_blocking=device.type != "mps")


def _can_pin() -> bool:
    """
    Return whether memory can be pinned for one copy: not in a traced graph, and not in a captured one, whose replays
    would read this memory after other tensors have taken it. Without pinned memory, PyTorch refuses to capture.
    """
    if torch.compiler.is_compiling():
        return False
    return not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
