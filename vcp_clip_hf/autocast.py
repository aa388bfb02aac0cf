"""Autocast: its dtype, and how to switch it off for a computation that needs its own precision."""

from contextlib import AbstractContextManager, nullcontext

import torch


__all__ = ["autocast_dtype", "no_autocast"]


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype in which autocast computes matrix products on a device now, or `None` without autocast."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def no_autocast(device: torch.device) -> AbstractContextManager:
    """Return a context in which tensors of a device are computed with in their own dtype."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
