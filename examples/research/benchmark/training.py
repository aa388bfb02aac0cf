"""
A training step of one global batch: in one pass, accumulated in several ways, and the reference's loop.

- `accumulated, 8 x 1`: as `train` does on a GPU, eight images in one pass.
- `accumulated, 8 x 1, one by one`: as `train` does on a CPU, or with `images_per_pass: 1`.
- `accumulated, 8 x 1, tower once`: the image tower for all images, and everything else one by one.
"""

import argparse
import copy
import statistics
from collections.abc import Callable

import torch

from tests.reference_forward import reference_forward
from vcp_clip_hf import VCPCLIPModel
from vcp_clip_hf.frozen_casts import frozen_weights_cast
from vcp_clip_hf.losses import segmentation_loss
from vcp_clip_hf.training_config import TrainingConfig
from vcp_clip_hf.training_loss import training_loss
from vcp_clip_hf.training_passes import training_passes

from .calls import count_calls, count_waits
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
            steps = _Steps(copy.deepcopy(model).to(device), setting)
            with frozen_weights_cast(steps.model, steps.dtype):
                rows += _measure(steps, setting, options)
    return rows


class _Steps:
    """
    The same optimizer step in all ways.

    Args:
        model ([`VCPCLIPModel`]): model on the setting's device; it is trained.
        setting ([`Setting`]): what is measured.
    """

    def __init__(self, model: VCPCLIPModel, setting: Setting):
        self.model, self.device = model, setting.device
        # The same parameters in modules of their own, whose weights autocast casts in every call
        self.plain_model = copy.deepcopy(model, {id(each): each for each in model.parameters()})
        self.pixel_values = setting.pixel_values().to(self.device)
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.rand(self.pixel_values[:, 0].shape, generator=generator).lt(0.05).to(self.device)
        trained = [each for each in model.parameters() if each.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=1e-5, fused=self.device.type == "cuda" or None)
        self.dtype = None if setting.dtype == torch.float32 else setting.dtype
        self.autocast = torch.autocast(self.device.type, setting.dtype, enabled=self.dtype is not None)

    def in_passes(self, count: int, forward: Callable | None = None) -> None:
        """Train on the images in passes of equal size, with the model's own forward pass or another."""
        forward = forward or self.model
        self.model.train()
        for images, masks in zip(self.pixel_values.chunk(count), self.labels.chunk(count), strict=True):
            self._backward({"pixel_values": images}, masks, count, forward)
        self._update()

    def tower_once(self) -> None:
        """Run the image tower for all images, and train on its results one by one."""
        self.model.train()
        with self.autocast, torch.no_grad():
            patch_tokens, image_embeds = self.model.encode_image(self.pixel_values)
        for index, masks in enumerate(self.labels.split(1)):
            one = slice(index, index + 1)
            tokens = torch.stack([each[one] for each in patch_tokens], dim=1)
            inputs = {"patch_tokens": tokens, "image_embeds": image_embeds[one]}
            self._backward(inputs, masks, len(self.labels), self.model)
        self._update()

    def reference(self) -> None:
        """Train on all images in one pass of the plain loop."""
        self.plain_model.eval()
        with self.autocast:
            outputs = reference_forward(self.plain_model, self.pixel_values)
            branches = [outputs[name] for name in ("base_layer_maps", "vcp_layer_maps") if name in outputs]
            loss = sum(segmentation_loss(maps, self.labels) for maps in branches)
        loss.backward()
        self._update()

    def _backward(self, inputs: dict[str, torch.Tensor], masks: torch.Tensor, count: int, forward: Callable) -> None:
        with self.autocast:
            outputs = forward(**inputs, output_layer_maps=True)
        loss = training_loss(outputs, masks, torch.ones(len(masks), dtype=torch.bool))
        (loss / count).backward()

    def _update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


def _ways(steps: _Steps, batch_size: int, options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Return name -> optimizer step."""
    ways = {f"batch of {batch_size}": lambda: steps.in_passes(1)}
    accumulated = f"accumulated, {batch_size} x 1"
    if batch_size > 1:
        config = TrainingConfig(
            "out", "synthetic", per_device_train_batch_size=1, gradient_accumulation_steps=batch_size
        )
        passes = training_passes(config, steps.device).per_step
        if passes < batch_size:
            ways[accumulated] = lambda: steps.in_passes(passes)
            accumulated = f"{accumulated}, one by one"
        ways[accumulated] = lambda: steps.in_passes(batch_size)
        # The model takes patch tokens of its own image size only, and those of a stem branch in another way
        if steps.model.stem_branch is None and tuple(steps.labels.shape[-2:]) == steps.model.config.input_size:
            ways[f"accumulated, {batch_size} x 1, tower once"] = steps.tower_once
    if options.compile:
        compiled = torch.compile(steps.model, dynamic=False, mode=options.compile_mode)
        ways[f"batch of {batch_size}, torch.compile"] = lambda: steps.in_passes(1, compiled)
    if not options.no_reference:
        ways[REFERENCE] = steps.reference
    return ways


def _measure(steps: _Steps, setting: Setting, options: argparse.Namespace) -> list[dict]:
    """Measure all ways of one setting."""
    device, batch_size = setting.device, setting.batch_size
    ways = _ways(steps, batch_size, options)
    memory = {way: working_memory(run, device) for way, run in ways.items()}
    calls = {way: count_calls(run) for way, run in ways.items() if "compile" not in way}
    waits = {way: count_waits(run, device) for way, run in ways.items()}
    times = time_in_turns(ways, device, options.rounds, options.reference_rounds)
    rows = []
    for way, measured in times.items():
        row = setting.row(
            f"training, {way}",
            ms_per_image=1e3 * statistics.median(measured) / batch_size,
            images_per_second=batch_size / statistics.median(measured),
            working_memory_bytes=memory[way],
            operator_calls=calls.get(way),
            waits=waits[way],
            rounds=len(measured),
            times_faster_than_reference=times_faster_than_reference(way, times),
        )
        rows.append(row)
        report(row)
    return rows
