"""Milliseconds of an image: image encoder alone, whole forward pass, and with post-processing, beside the floor."""

import statistics
from collections.abc import Callable, Sequence

import torch

from ..clock import REFERENCE, seconds, time_in_turns, working_memory
from ..floor import image_encoder_flops
from .measurement import Measurement
from .ways import GRAPHS, NO_GRAPHS, PLAIN, Way


__all__ = ["speed_of_all_batches", "speed_of_ways"]

# What is timed of each way: the key of a row -> a function of way, images and post-processing
ENCODER, FORWARD, FINISHED = "encoder_ms", "forward_ms", "ms_per_image"

_MIN_ROUNDS, _MAX_ROUNDS = 3, 40
# The matrix product is repeated, so that the GPU does not wait for its launch
_PRODUCTS = {"cuda": 5, "cpu": 1}


@torch.inference_mode()
def speed_of_all_batches(run: Measurement) -> None:
    """Measure plain and accelerated, with and without graphs, for every batch size; the reference for one image."""
    sizes = run.options.batch_sizes
    for index, batch_size in enumerate(sizes):
        ways = [PLAIN, NO_GRAPHS, GRAPHS]
        if batch_size == 1 and not run.options.no_reference:
            ways.append(REFERENCE)
        _measure(run, batch_size, ways, run.time_left() / (len(sizes) - index))


@torch.inference_mode()
def speed_of_ways(run: Measurement, names: Sequence[str]) -> None:
    """Measure ways for 16 images and for one beside the accelerated copy, in the same turns."""
    sizes = [each for each in (16, 1) if each in run.options.batch_sizes] or run.options.batch_sizes[:1]
    for index, batch_size in enumerate(sizes):
        _measure(run, batch_size, names, run.time_left() / (len(sizes) - index), beside=GRAPHS)


def _measure(
    run: Measurement, batch_size: int, names: Sequence[str], seconds_left: float, beside: str | None = None
) -> None:
    """
    Measure ways in turns, and report a row for each.

    Args:
        run ([`Measurement`]): where the rows go.
        batch_size (`int`): images of a batch.
        names (`Sequence[str]`): names of ways. A way that fails is left out, with the reason.
        seconds_left (`float`): time for this batch size; the number of rounds follows from it.
        beside (`str`, *optional*): a further way, without a row of its own, that the others are compared with.
    """
    if not run.has_time(1.0, f"batch of {batch_size}"):
        return
    calls, memory = _prepare(run, batch_size, [*names, *([beside] if beside else [])])
    if not memory.keys() - {beside}:
        return
    product, product_flops = run.product
    repeats, rates = _PRODUCTS[run.device.type], []

    def every_round() -> None:
        spent = seconds(lambda: [product() for _ in range(repeats)], run.device)
        rates.append(product_flops * repeats / spent)

    every_round()
    rates.clear()
    one_round = sum(seconds(call, run.device) for call in calls.values())
    # Half of the time: the first calls took some of it
    rounds = int(min(_MAX_ROUNDS, max(_MIN_ROUNDS, 0.5 * seconds_left / one_round)))
    times = time_in_turns(calls, run.device, rounds, every_round=every_round)
    rate = statistics.median(rates)
    floor_ms = 1e3 * image_encoder_flops(run.exact_model.config, run.image_size) / rate
    middle = {call: 1e3 * statistics.median(spent) / batch_size for call, spent in times.items()}
    for way, used in memory.items():
        finished = middle[way, FINISHED]
        row = run.setting(batch_size).row(
            way,
            encoder_ms=middle.get((way, ENCODER)),
            forward_ms=middle.get((way, FORWARD)),
            ms_per_image=finished,
            images_per_second=1e3 / finished,
            floor_ms_per_image=floor_ms,
            times_floor=finished / floor_ms,
            product_tflops=1e-12 * rate,
            working_memory_bytes=used,
            rounds=rounds,
        )
        if (beside, FINISHED) in middle:
            row["times_accelerated"] = finished / middle[beside, FINISHED]
        if way != beside:
            run.row("speed", row)


def _prepare(
    run: Measurement, batch_size: int, names: Sequence[str]
) -> tuple[dict[tuple[str, str], Callable[[], object]], dict[str, int]]:
    """Call each way a few times: kernels are chosen, graphs captured. Return its calls, and its memory in bytes."""
    inputs = run.inputs(batch_size)
    sizes = [(run.image_size, run.image_size)] * batch_size
    calls, memory = {}, {}
    for name in names:
        try:
            way = run.ways.get(name)
            own = _calls_of(way, run, inputs, sizes)
            used = working_memory(own[FINISHED], run.device)
            for call in own.values():
                for _ in range(2):
                    call()
            way.check_graph(inputs)
        except Exception as error:  # a way that this machine cannot compute does not end the others
            run.leave_out(f"batch of {batch_size}, {name}", error)
            continue
        memory[way.name] = used
        calls |= {(way.name, what): call for what, call in own.items()}
    return calls, memory


def _calls_of(
    way: Way, run: Measurement, inputs: torch.Tensor, sizes: list[tuple[int, int]]
) -> dict[str, Callable[[], object]]:
    """Return the calls of a way by what they measure."""
    if way.name == REFERENCE:
        return {FINISHED: lambda: way.forward(inputs)}
    finish = run.processor.post_process_anomaly_segmentation
    calls = {FINISHED: lambda: finish(way.forward(inputs), sizes), FORWARD: lambda: way.forward(inputs)}
    encoder = way.encoder_over(inputs)
    return calls if encoder is None else {**calls, ENCODER: encoder}
