"""Time that a device takes for a step, without waiting for it."""

import time
from collections.abc import Callable

import torch


__all__ = ["DeviceClock"]


class DeviceClock:
    """
    Clock that starts when it is made: on a CUDA device with the next kernel, on others at once.

    Args:
        device (`torch.device`): device that computes.
    """

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._begin = time.perf_counter() if self._stream is None else self._mark()

    def stop(self) -> Callable[[], float]:
        """Stop the clock; return a function that waits for the device and returns the seconds."""
        if self._stream is None:
            seconds = time.perf_counter() - self._begin
            return lambda: seconds
        end = self._mark()
        return lambda: end.synchronize() or self._begin.elapsed_time(end) / 1e3

    def _mark(self) -> torch.cuda.Event:
        return self._stream.record_event(torch.cuda.Event(enable_timing=True))
