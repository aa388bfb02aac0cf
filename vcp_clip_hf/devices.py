"""Names of devices, checked before anything is loaded onto them."""

import textwrap
from typing import Any

import torch


__all__ = ["check_device"]


def check_device(device: Any) -> None:
    """
    Check that a device exists on this machine.

    Args:
        device (`str`, `int`, `torch.device`, *optional*): device as the pipelines of transformers take it; `None` and
            integers are theirs to resolve.

    Raises:
        ValueError: a name that PyTorch does not know, or a device that this machine or this PyTorch does not have.
    """
    if not isinstance(device, (str, torch.device)):
        return
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # AssertionError: PyTorch was built without CUDA
        present = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        usable = "cpu" if present is None else f"cpu, {present}"
        reason = textwrap.shorten(str(error).splitlines()[0], 160, placeholder=" ...").rstrip(".")
        raise ValueError(f"device={str(device)!r} cannot be used ({reason}). On this machine: {usable}.") from error
