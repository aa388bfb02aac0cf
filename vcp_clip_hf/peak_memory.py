"""Largest amount of memory that this process has used."""

import sys

import torch


__all__ = ["peak_memory", "resident_bytes"]


def peak_memory(device: torch.device) -> int | None:
    """
    Return the bytes at the peak: of the device for CUDA, else of the whole process.

    Return `None` if the operating system does not report it (Windows has no `resource` module).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    return resident_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, sys.platform)


def resident_bytes(ru_maxrss: int, platform: str) -> int:
    """Convert `ru_maxrss` to bytes: macOS ("darwin") counts bytes, Linux and the BSDs count units of 1024 bytes."""
    return ru_maxrss if platform == "darwin" else ru_maxrss * 1024
