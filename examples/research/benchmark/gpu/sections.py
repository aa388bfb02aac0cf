"""The sections of the GPU benchmark in order of importance, and the process that runs them."""

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from ..predict import benchmark_predict
from ..reports import machine, reported_to
from ..training import benchmark_training
from .deviation import deviation_of_exact_ways, deviation_of_float8, deviation_of_fused_pointwise
from .equality import equality_on_the_device
from .graphs import cost_of_graphs
from .measurement import Measurement
from .parts import share_by_part, time_by_kind_of_kernel
from .speed import speed_of_all_batches, speed_of_ways
from .ways import ATTENTIONS, BOTH, COMPILED, FLOAT8, WHOLE_COMPILED, attention_way


__all__ = ["SECTIONS", "Section", "measure_sections", "sections_of"]

# Seconds that are needed to compile the first kernels
_COMPILE_SECONDS = 8.0


@dataclass(frozen=True)
class Section:
    """
    One part of the benchmark.

    Args:
        run (`Callable[[Measurement], None]`): measures, and reports rows as it goes.
        seconds (`float`): limit of time.
        quick_seconds (`float`): limit of time with `--quick`.
    """

    run: Callable[[Measurement], None]
    seconds: float
    quick_seconds: float


def _float8(run: Measurement) -> None:
    if _can_compile(run):
        speed_of_ways(run, [FLOAT8])
        deviation_of_float8(run)


def _fused_pointwise(run: Measurement) -> None:
    if _can_compile(run):
        speed_of_ways(run, [COMPILED, BOTH])
        deviation_of_fused_pointwise(run)


def _can_compile(run: Measurement) -> bool:
    """Return whether there are a GPU and time to compile kernels; if not, report that all is left out."""
    if not run.on_gpu:
        run.leave_out("all", "it needs a GPU")
        return False
    return run.has_time(_COMPILE_SECONDS, "all")


def _attention(run: Measurement) -> None:
    if not run.on_gpu:
        run.leave_out("all", "it needs a GPU")
        return
    speed_of_ways(run, [attention_way(each) for each in run.options.attention or ATTENTIONS])


def _whole_compiled(run: Measurement) -> None:
    speed_of_ways(run, [WHOLE_COMPILED])


def _training(run: Measurement) -> None:
    """Measure a step of one batch, and accumulated image by image beside it."""
    batch_ms: list[float] = []

    def receive(row: dict) -> None:
        if "accumulated" in row["way"] and batch_ms:
            row = {**row, "times_batch": row["ms_per_image"] / batch_ms[0]}
        batch_ms.append(row["ms_per_image"])  # the first row is that of one batch
        run.row("training", row)

    with reported_to(receive):
        benchmark_training(
            _with(
                run.options,
                batch_sizes=[8],
                rounds=2 if run.quick else 5,
                reference_rounds=1,
                no_reference=run.quick or run.options.no_reference,
                compile=False,
            )
        )


def _files(run: Measurement) -> None:
    """Measure files to results with a batch of 16, beside the model alone."""
    options = run.options
    workers = max(1, min(12, (os.cpu_count() or 1) - 2)) if run.on_gpu else 0
    with reported_to(lambda row: run.row("files", row)):
        benchmark_predict(_with(options, batch_sizes=[16 if run.on_gpu else 2], rounds=1, num_workers=workers))


def _with(options: argparse.Namespace, **values: Any) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(options), **values})


# What compiles kernels takes long to begin, and comes last
SECTIONS = {
    "equality": Section(equality_on_the_device, 20, 10),
    "speed": Section(speed_of_all_batches, 30, 7),
    "deviation": Section(deviation_of_exact_ways, 8, 3),
    "kernels": Section(time_by_kind_of_kernel, 10, 5),
    "parts": Section(share_by_part, 5, 2),
    "graphs": Section(cost_of_graphs, 8, 2),
    "training": Section(_training, 15, 6),
    "files": Section(_files, 40, 14),
    "float8": Section(_float8, 40, 20),
    "compile_pointwise": Section(_fused_pointwise, 40, 20),
    "attention": Section(_attention, 20, 10),
    "torch.compile": Section(_whole_compiled, 60, 30),
}


def sections_of(options: argparse.Namespace) -> dict[str, float]:
    """Return the sections of a command line in their order: name -> limit in seconds."""
    asked_for = {"attention": bool(options.attention), "torch.compile": options.compile}
    wanted = options.sections or [name for name in SECTIONS if asked_for.get(name, True)]
    return {
        name: each.quick_seconds if options.quick else each.seconds
        for name, each in SECTIONS.items()
        if name in wanted
    }


def measure_sections(
    connection: Connection, limits: Mapping[str, float], end: float, options: argparse.Namespace
) -> None:
    """
    Run sections in this process; the worker of `supervise`.

    Args:
        connection (`Connection`): receives rows and messages.
        limits (`Mapping[str, float]`): sections to run, with their limits in seconds.
        end (`float`): time at which everything must be done.
        options (`argparse.Namespace`): command line.
    """
    run = Measurement(options, connection.send, end)
    connection.send({"machine": machine()})
    for name, limit in limits.items():
        run.begin(name, limit)
        try:
            with run.reported_warnings():
                SECTIONS[name].run(run)
        except Exception as error:  # the sections after it go on
            run.fail(error)
        if not run.finish():
            connection.close()
            os._exit(1)  # an ordinary end would use the device once more
