"""Count the operators of a call, each of which launches at least one kernel on a GPU, and its waits for the device."""

import warnings
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode


__all__ = ["count_calls", "count_waits"]


class _Counter(TorchDispatchMode):
    """Counts operators that compute or copy: not views, and not empty tensors."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not (func.is_view or "empty" in func.__name__ or "detach" in func.__name__)
        return func(*args, **(kwargs or {}))


def count_calls(run: Callable[[], object]) -> int:
    """Return how many operators a call dispatches, in the forward and the backward pass."""
    with _Counter() as counter:
        run()
    return counter.count


def count_waits(run: Callable[[], object], device: torch.device) -> int | None:
    """Return how often a call waits until a GPU has finished its work; `None` on other devices."""
    if device.type != "cuda":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in caught)
