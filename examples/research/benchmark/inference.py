"""Forward pass and post-processing of a batch, beside the reference and the floor."""

import argparse
import copy
import statistics
from collections.abc import Callable

import torch

from tests.reference_forward import reference_forward
from vcp_clip_hf import VCPCLIPImageProcessor, VCPCLIPModel, accelerate_inference

from .clock import REFERENCE, PartClock, seconds, time_in_turns, times_faster_than_reference, working_memory
from .floor import image_encoder_flops, matrix_product
from .reports import report
from .setting import Setting, load


__all__ = ["benchmark_inference"]

PARTS = ("image encoder", "text", "Post-VCP", "heads", "post-processing")
PLAIN, ACCELERATED = "plain", "accelerated"


def benchmark_inference(options: argparse.Namespace) -> list[dict]:
    """Measure every device, dtype and batch size."""
    model, processor = load(options)
    size = options.image_size or model.config.input_size[0]
    rows = []
    for device in map(torch.device, options.devices):
        for dtype_name in options.dtypes:
            typed = None
            for batch_size in options.batch_sizes:
                setting = Setting(device, dtype_name, batch_size, size)
                typed = copy.deepcopy(model).to(device, setting.dtype) if typed is None else typed
                rows += _measure(typed, model, processor, setting, options)
    return rows


def inference_ways(
    model: VCPCLIPModel, fast: VCPCLIPModel, inputs: torch.Tensor, options: argparse.Namespace
) -> dict[str, Callable]:
    """Return name -> forward pass over `inputs`; each returns the model's outputs. `fast` is the accelerated copy."""
    ways: dict[str, Callable] = {ACCELERATED: lambda: fast(inputs), PLAIN: lambda: model(inputs)}
    if options.compile:
        compiled = torch.compile(model, fullgraph=True, dynamic=False, mode=options.compile_mode)
        ways["compiled"] = lambda: compiled(inputs)
    if not options.no_reference:
        ways[REFERENCE] = lambda: reference_forward(model, inputs)
    return ways


@torch.inference_mode()
def _measure(
    typed: VCPCLIPModel,
    model: VCPCLIPModel,
    processor: VCPCLIPImageProcessor,
    setting: Setting,
    options: argparse.Namespace,
) -> list[dict]:
    """Measure all ways of one setting. `typed` is `model` on the setting's device and in its dtype."""
    pixel_values = setting.pixel_values()
    inputs = pixel_values.to(setting.device, setting.dtype)
    target_sizes = [(setting.image_size, setting.image_size)] * setting.batch_size
    product, product_flops = matrix_product(setting.device, setting.dtype)
    fast = accelerate_inference(typed)

    def with_post_processing(forward: Callable) -> Callable[[], list[dict]]:
        return lambda: processor.post_process_anomaly_segmentation(forward(), target_sizes)

    ways = {
        way: forward if way == REFERENCE else with_post_processing(forward)
        for way, forward in inference_ways(typed, fast, inputs, options).items()
    }

    # 1. one untimed call each: compilation, caches, the allocator. Its memory is what the report states
    product()
    memory = {way: working_memory(run, setting.device) for way, run in ways.items() if way != REFERENCE}

    # 2. all ways in turns, with the rate of a matrix product and the shares of the model's parts in every round
    rates, shares = [], []

    def every_round() -> None:
        rates.append(product_flops * 3 / seconds(lambda: [product() for _ in range(3)], setting.device))
        shares.append(_shares(fast, ways[ACCELERATED], setting.device))

    times = time_in_turns(ways, setting.device, options.rounds, options.reference_rounds, every_round)
    floor = setting.batch_size * image_encoder_flops(typed.config, setting.image_size) / statistics.median(rates)

    # 3. how far reduced precision moves the maps
    deviation = {}
    if setting.dtype != torch.float32:
        difference = fast(inputs[:1]).anomaly_map.float().cpu() - model(pixel_values[:1]).anomaly_map
        deviation = {
            "map_deviation_max": difference.abs().max().item(),
            "map_deviation_mean": difference.abs().mean().item(),
        }

    rows = []
    for way, measured in times.items():
        middle = statistics.median(measured)
        row = setting.row(
            way,
            ms_per_image=1e3 * middle / setting.batch_size,
            ms_per_image_best=1e3 * min(measured) / setting.batch_size,
            images_per_second=setting.batch_size / middle,
            floor_ms_per_image=1e3 * floor / setting.batch_size,
            times_floor=middle / floor,
            rounds=len(measured),
            working_memory_bytes=memory.get(way),
            times_faster_than_reference=times_faster_than_reference(way, times),
        )
        if way == ACCELERATED:
            row["shares"] = {part: statistics.median(share[part] for share in shares) for part in PARTS}
            row |= deviation
        rows.append(row)
        report(row)
    return rows


def _shares(model: VCPCLIPModel, run: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Return the share of each part of the model in the time of one call."""
    clock = PartClock(device)
    # A replayed pass calls none of the parts
    with model.captured.disabled(), clock.watching(model), clock.part("post-processing"):
        run()
    total = sum(clock.spent.values())
    return {part: clock.spent.get(part, 0.0) / total for part in PARTS}
