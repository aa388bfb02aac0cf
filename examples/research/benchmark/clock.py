"""Time and memory of a call, and of the parts of a model within it."""

import contextlib
import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from vcp_clip_hf import VCPCLIPModel
from vcp_clip_hf.device_clock import DeviceClock


__all__ = [
    "REFERENCE",
    "EventClock",
    "PartClock",
    "peak_memory",
    "reset_peak_memory",
    "seconds",
    "time_in_turns",
    "times_faster_than_reference",
    "working_memory",
]

# The way that every other way is compared with; it is slow, and may take fewer rounds
REFERENCE = "reference"


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return the duration of one call."""
    synchronize(device)
    started = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - started


def time_in_turns(
    ways: Mapping[Hashable, Callable[[], object]],
    device: torch.device,
    rounds: int,
    reference_rounds: int | None = None,
    every_round: Callable[[], None] | None = None,
) -> dict[Hashable, list[float]]:
    """
    Time all ways round after round, so that a slow minute of the machine hits all of them.

    Args:
        ways (`Mapping[Hashable, Callable]`): name -> call.
        device (`torch.device`): device to synchronize with.
        rounds (`int`): number of rounds.
        reference_rounds (`int`, *optional*): number of rounds of the way `REFERENCE`; all rounds by default.
        every_round (`Callable`, *optional*): further measurement at the start of each round.

    Returns:
        `dict[Hashable, list[float]]`: way -> seconds of each round.
    """
    times: dict[Hashable, list[float]] = {way: [] for way in ways}
    for turn in range(rounds):
        if every_round is not None:
            every_round()
        for way, run in ways.items():
            if way != REFERENCE or reference_rounds is None or turn < reference_rounds:
                times[way].append(seconds(run, device))
    return times


def times_faster_than_reference(way: str, times: Mapping[str, list[float]]) -> float | None:
    """Return the median ratio of the reference's time to that of `way`, round by round; `None` without one."""
    if way == REFERENCE or not times.get(REFERENCE):
        return None
    return statistics.median(theirs / ours for theirs, ours in zip(times[REFERENCE], times[way], strict=False))


@dataclass
class PartClock:
    """Time spent in each part of one call, without the time of parts nested in it."""

    device: torch.device
    spent: dict[str, float] = field(default_factory=dict)
    stack: list[list] = field(default_factory=list)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the enclosed code as part `name`."""
        synchronize(self.device)
        started, inner = time.perf_counter(), [0.0]
        self.stack.append(inner)
        try:
            yield
        finally:
            synchronize(self.device)
            self.stack.pop()
            whole = time.perf_counter() - started
            self.spent[name] = self.spent.get(name, 0.0) + whole - inner[0]
            if self.stack:
                self.stack[-1][0] += whole

    @contextlib.contextmanager
    def watching(self, model: VCPCLIPModel) -> Iterator[None]:
        """Time the model's methods; `heads` is the rest of its forward pass."""
        watched = [
            (model, "encode_image_with_states", "image encoder"),
            (model, "encode_text", "text"),
            (model, "forward", "heads"),
        ]
        if model.post_vcp is not None:
            watched.append((model.post_vcp, "forward", "Post-VCP"))
        for owner, method, name in watched:
            vars(owner)[method] = self._timed(getattr(owner, method), name)
        try:
            yield
        finally:
            for owner, method, _ in watched:
                del vars(owner)[method]

    def _timed(self, method: Callable, name: str) -> Callable:
        def timed(*args, **kwargs):
            with self.part(name):
                return method(*args, **kwargs)

        return timed


@dataclass
class EventClock(PartClock):
    """
    A `PartClock` of a GPU that does not wait for it within a call: waits would add to the time of short parts.

    The time of a part is that of a [`DeviceClock`]. It includes gaps in which the GPU has nothing to do, but not the
    work of the host that the GPU does not wait for.
    """

    spans: list[tuple[str, Callable[[], float], list]] = field(default_factory=list)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the enclosed code as part `name`; `spent` is complete after the outermost part."""
        inner: list[Callable[[], float]] = []
        self.stack.append(inner)
        clock = DeviceClock(self.device)
        try:
            yield
        finally:
            whole = clock.stop()
            self.stack.pop()
            self.spans.append((name, whole, inner))
            if self.stack:
                self.stack[-1].append(whole)
            else:
                self._sum_up()

    def _sum_up(self) -> None:
        for name, whole, inner in self.spans:
            own = whole() - sum(seconds_of() for seconds_of in inner)
            self.spent[name] = self.spent.get(name, 0.0) + own
        self.spans.clear()


def working_memory(run: Callable[[], object], device: torch.device) -> int:
    """Return the bytes that a call takes beyond what was in use before it."""
    start = reset_peak_memory(device)
    run()
    return peak_memory(device) - start


def reset_peak_memory(device: torch.device) -> int:
    """Start counting for `peak_memory`; return the bytes in use now."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError, AttributeError):
        # glibc: give freed memory back to the system, since reuse of it would not be counted
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _process_status("VmRSS")


def peak_memory(device: torch.device) -> int:
    """Return the highest number of bytes in use since `reset_peak_memory`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _process_status("VmHWM")


def _process_status(name: str) -> int:
    """Read one entry of /proc/self/status, in bytes; 0 on systems without it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0
