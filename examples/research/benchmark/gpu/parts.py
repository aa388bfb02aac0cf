"""Where the time of a pass goes: parts of the model, and kinds of kernels."""

import statistics

import torch

from ..clock import EventClock, PartClock, seconds
from ..inference import PARTS
from .kernels import time_by_kernel
from .measurement import Measurement
from .ways import NO_GRAPHS


__all__ = ["share_by_part", "time_by_kind_of_kernel"]

_ROUNDS = 5


@torch.inference_mode()
def share_by_part(run: Measurement) -> None:
    """Report the share of each part of the accelerated copy without graphs, for the smallest and a large batch."""
    for batch_size in _two_batches(run):
        if not run.has_time(1.0, f"batch of {batch_size}"):
            continue
        call, fast = _finished_pass(run, batch_size)
        rounds = []
        for _ in range(_ROUNDS):
            clock = (EventClock if run.on_gpu else PartClock)(run.device)
            with clock.watching(fast), clock.part("post-processing"):
                call()
            rounds.append(clock.spent)
        spent = {part: statistics.median(each.get(part, 0.0) for each in rounds) for part in PARTS}
        whole = sum(spent.values())
        run.row(
            "parts",
            {
                "batch_size": batch_size,
                "ms_per_image": 1e3 * whole / batch_size,
                "shares": {part: own / whole for part, own in spent.items()},
            },
        )


@torch.inference_mode()
def time_by_kind_of_kernel(run: Measurement) -> None:
    """Report the time of each kind of kernel; what is missing to the whole is the wait for launches."""
    for batch_size in reversed(_two_batches(run)):
        if not run.has_time(2.0, f"batch of {batch_size}"):
            continue
        call, _ = _finished_pass(run, batch_size)
        whole = 1e3 * statistics.median(seconds(call, run.device) for _ in range(_ROUNDS))
        spent = time_by_kernel(call, run.device)
        run.row(
            "kernels",
            {
                "batch_size": batch_size,
                "ms_per_image": whole / batch_size,
                "kernel_ms_per_image": spent["kernel_ms"] / batch_size,
                "kernels": spent["kernels"],
                "kinds_ms_per_image": {kind: own / batch_size for kind, own in spent["kinds"].items()},
                "largest_of_the_rest": spent["largest_of_the_rest"],
            },
        )


def _two_batches(run: Measurement) -> list[int]:
    """Return the smallest batch size, and 16 or the largest below."""
    sizes = sorted(run.options.batch_sizes)
    return sorted({sizes[0], max([each for each in sizes if each <= 16], default=sizes[0])})


def _finished_pass(run: Measurement, batch_size: int):
    """Return a pass of the accelerated copy without graphs, with post-processing, that was called before; the copy."""
    way, inputs = run.ways.get(NO_GRAPHS), run.inputs(batch_size)
    sizes = [(run.image_size, run.image_size)] * batch_size

    def call() -> object:
        return run.processor.post_process_anomaly_segmentation(way.forward(inputs), sizes)

    for _ in range(2):
        call()
    return call, way.network
