"""What a CUDA graph costs: the time to capture it, and its memory."""

import torch

from vcp_clip_hf import accelerate_inference

from ..clock import seconds
from .measurement import Measurement


__all__ = ["cost_of_graphs"]


@torch.inference_mode()
def cost_of_graphs(run: Measurement) -> None:
    """Report time and memory of the first graph of a new copy, for every batch size."""
    if not run.on_gpu:
        run.leave_out("time to capture, and memory", "it needs a GPU")
        return
    for batch_size in run.options.batch_sizes:
        if not run.has_time(1.0, f"batch of {batch_size}"):
            continue
        _cost_of_one(run, batch_size)


def _cost_of_one(run: Measurement, batch_size: int) -> None:
    """Report the graph of one batch size, in a copy of its own."""
    fast, inputs = accelerate_inference(run.ways.model), run.inputs(batch_size)
    with fast.captured.disabled():
        for _ in range(2):
            fast(inputs)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(run.device)
    fast(inputs)  # remembered: a graph is captured when inputs of the same kind come again
    capture = seconds(lambda: fast(inputs), run.device)
    torch.cuda.empty_cache()
    run.row(
        "graphs",
        {
            "batch_size": batch_size,
            "capture_seconds": capture,
            "graph_bytes": torch.cuda.memory_reserved(run.device) - before,
            "graphs": fast.captured.describe(),
        },
    )
