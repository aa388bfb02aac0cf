"""A training step of one global batch: in one piece, accumulated image by image, and the reference's loop."""

import argparse
import copy
import statistics

import torch

from tests.reference_forward import reference_forward
from vcp_clip_hf import VCPCLIPModel
from vcp_clip_hf.losses import segmentation_loss

from .clock import REFERENCE, time_in_turns, times_faster_than_reference, working_memory
from .reports import report
from .setting import Setting, load


__all__ = ["benchmark_training"]


def benchmark_training(options: argparse.Namespace) -> list[dict]:
    """Measure every device and dtype with the largest batch size."""
    model, _ = load(options)
    size = options.image_size or model.config.input_size[0]
    rows = []
    for device in map(torch.device, options.devices):
        for dtype_name in options.dtypes:
            setting = Setting(device, dtype_name, max(options.batch_sizes), size)
            rows += _measure(copy.deepcopy(model).to(device), setting, options)
    return rows


def _measure(model: VCPCLIPModel, setting: Setting, options: argparse.Namespace) -> list[dict]:
    """Measure all ways of one setting."""
    device, batch_size = setting.device, setting.batch_size
    pixel_values = setting.pixel_values().to(device)
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(pixel_values[:, 0].shape, generator=generator) < 0.05).to(device, torch.float32)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    autocast = torch.autocast(device.type, setting.dtype, enabled=setting.dtype != torch.float32)

    def step(pieces: int) -> None:
        model.train()
        for images, masks in zip(pixel_values.chunk(pieces), labels.chunk(pieces), strict=True):
            with autocast:
                loss = model(images, labels=masks).loss
            (loss / pieces).backward()
        optimizer.step()
        optimizer.zero_grad()

    def reference_step() -> None:
        model.eval()
        with autocast:
            outputs = reference_forward(model, pixel_values)
            branches = [outputs[name] for name in ("base_layer_maps", "vcp_layer_maps") if name in outputs]
            loss = sum(segmentation_loss(maps, labels) for maps in branches)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    ways = {f"batch of {batch_size}": lambda: step(1)}
    if batch_size > 1:
        ways[f"accumulated, {batch_size} x 1"] = lambda: step(batch_size)
    if not options.no_reference:
        ways[REFERENCE] = reference_step
    memory = {way: working_memory(run, device) for way, run in ways.items()}
    times = time_in_turns(ways, device, options.rounds, options.reference_rounds)
    rows = []
    for way, measured in times.items():
        row = setting.row(
            f"training, {way}",
            ms_per_image=1e3 * statistics.median(measured) / batch_size,
            images_per_second=batch_size / statistics.median(measured),
            working_memory_bytes=memory[way],
            rounds=len(measured),
            times_faster_than_reference=times_faster_than_reference(way, times),
        )
        rows.append(row)
        report(row)
    return rows
