"""Switch autocast off for a computation that needs its own precision."""

from contextlib import AbstractContextManager, nullcontext

import torch


__all__ = ["no_autocast"]


def no_autocast(device: torch.device) -> AbstractContextManager:
    """Return a context in which tensors of a device are computed with in their own dtype."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
