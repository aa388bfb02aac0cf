"""`predict_files` over image files, beside the model alone on the same number of images."""

import argparse
import copy
import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vcp_clip_hf import EMBEDDED_CHECKPOINT, AnomalySegmentationPipeline, accelerate_inference
from vcp_clip_hf.generator import render_sample, select_products
from vcp_clip_hf.host_copy import HostCopy, to_device
from vcp_clip_hf.pipeline_inputs import ListedImages
from vcp_clip_hf.prediction import InputImage, PictureWriter, predict_files

from .clock import PartClock, time_in_turns
from .reports import report
from .setting import Setting, load


__all__ = ["benchmark_predict"]

MODEL_ALONE = "model alone"
RANDOM_WEIGHTS_THRESHOLD = 0.5  # so that masks are written
NUM_PICTURES = 8  # rendered, half a second each; the other files are copies of them


def benchmark_predict(options: argparse.Namespace) -> list[dict]:
    """Measure every device and dtype with the largest batch size."""
    model, processor = load(options, EMBEDDED_CHECKPOINT if options.model_config is None else None)
    processor.threshold = processor.threshold or RANDOM_WEIGHTS_THRESHOLD
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        products = select_products("unseen")
        for index in range(options.images):
            path = Path(folder) / f"{index:04d}.png"
            if index < NUM_PICTURES:
                render_sample(products[index % len(products)], 0, index, options.file_size).image.save(path)
            else:
                path.write_bytes(path.with_name(f"{index % NUM_PICTURES:04d}.png").read_bytes())
        for device in map(torch.device, options.devices):
            for dtype_name in options.dtypes:
                setting = Setting(device, dtype_name, max(options.batch_sizes), model.config.input_size[0])
                typed = copy.deepcopy(model).to(dtype=setting.dtype)
                pipe = AnomalySegmentationPipeline(model=typed, image_processor=processor, device=device)
                rows += _measure(pipe, folder, setting, options)
    return rows


def _measure(
    pipe: AnomalySegmentationPipeline, folder: str, setting: Setting, options: argparse.Namespace
) -> list[dict]:
    """Measure all ways of one setting."""
    inputs = setting.pixel_values().to(setting.device, setting.dtype)
    network = accelerate_inference(pipe.model)

    @torch.inference_mode()
    def alone() -> None:
        for _ in range(-(-options.images // setting.batch_size)):
            network(inputs)

    def predict(**pictures) -> None:
        with tempfile.TemporaryDirectory() as output_dir:
            predict_files(
                pipe,
                [folder],
                output_dir,
                batch_size=setting.batch_size,
                num_workers=options.num_workers,
                progress=False,
                **pictures,
            )

    ways = {
        MODEL_ALONE: alone,
        "predict, scores only": lambda: predict(save_maps=None, save_masks=False, save_overlays=False),
        "predict, maps and masks": lambda: predict(save_overlays=False),
        "predict, maps, masks and overlays": predict,
    }
    for run in ways.values():
        run()
    times = time_in_turns(ways, setting.device, options.rounds)
    stages = _stages(pipe, folder, setting, options.num_workers)
    rows = []
    for way, measured in times.items():
        ratios = [own / whole for own, whole in zip(times[MODEL_ALONE], measured, strict=True)]
        row = setting.row(
            way,
            file_size=options.file_size,
            ms_per_image=1e3 * statistics.median(measured) / options.images,
            images_per_second=options.images / statistics.median(measured),
            share_of_model_rate=statistics.median(ratios),
            rounds=len(measured),
            stages_ms_per_image=stages if way == MODEL_ALONE else None,
        )
        rows.append(row)
        report(row)
    return rows


def _stages(
    pipe: AnomalySegmentationPipeline, folder: str, setting: Setting, num_workers: int
) -> dict[str, dict[str, float]]:
    """Return where the time of `predict_files` goes: place -> step -> milliseconds for one image."""
    paths = [str(path) for path in sorted(Path(folder).iterdir())]
    spent = _one_by_one(pipe, paths[: setting.batch_size], setting)
    return {**spent, f"main thread, {num_workers} workers": _main_thread(pipe, paths, setting, num_workers)}


def _one_by_one(pipe: AnomalySegmentationPipeline, paths: list[str], setting: Setting) -> dict[str, dict[str, float]]:
    """Time each step of one batch by itself, after a first batch that is not counted."""
    clock = PartClock(setting.device)
    for number in range(2):
        if number:
            clock.spent.clear()
        with clock.part("workers: read and resize"):
            (inputs,) = pipe.get_iterator(ListedImages(paths), 0, len(paths), {}, {}, {"output_image": True}).batches
        network = accelerate_inference(pipe.model)
        pixels = inputs["pixel_values"]
        with torch.inference_mode():
            with clock.part("device: copy, rescale, normalize"):
                values = to_device(pixels, setting.device)
                values = pipe.image_processor.to_values(values) if values.dtype == torch.uint8 else values
            with clock.part("device: model"):
                outputs = network(values)
            with clock.part("device: smooth, score, to the file's size"):
                finished = pipe.image_processor.finish_maps(outputs, inputs["size"])
            with clock.part("device: maps to the host"):
                HostCopy([*finished.scores, *finished.maps]).tensors()
        (collect,) = map(pipe.launch, [inputs])
        found = collect()
        with clock.part("writers: mask and label"):
            answers = [pipe.postprocess({"results": each}, output_image=True) for each in found]
        kinds = {"map": ("png", False, False), "mask": (None, True, False), "overlay": (None, False, True)}
        with tempfile.TemporaryDirectory() as output_dir:
            for kind, pictures in kinds.items():
                writer = PictureWriter(Path(output_dir), *pictures)
                with clock.part(f"writers: write {kind}"):
                    for path, answer in zip(paths, answers, strict=True):
                        writer(InputImage(path, Path(path).stem), answer)
    places: dict[str, dict[str, float]] = {}
    for part, seconds in clock.spent.items():
        place, _, step = part.partition(": ")
        places.setdefault(place, {})[step] = 1e3 * seconds / len(paths)
    return places


def _main_thread(
    pipe: AnomalySegmentationPipeline, paths: list[str], setting: Setting, num_workers: int
) -> dict[str, float]:
    """
    Time what the main thread does, and what it waits for, in a run for scores only: nothing is synchronized, so that
    the steps add up to the run itself. The start of the workers is not counted.
    """
    spent: dict[str, float] = {}

    def timed(step: str, call: Callable) -> Callable:
        @functools.wraps(call)
        def run(*args, **kwargs):
            started = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                spent[step] = spent.get(step, 0.0) + time.perf_counter() - started

        return run

    options = pipe._merged_parameters(output_maps=False)
    results = pipe.get_iterator(ListedImages(paths), num_workers, setting.batch_size, *options)
    batches, launch, finish = iter(results.batches), results.launch, results.finish
    first = next(batches)
    following = iter(timed("waits for the workers", lambda: next(batches, None)), None)
    results.batches = itertools.chain([first], following)
    results.launch = timed("launches", lambda inputs: timed("waits for the device", launch(inputs)))
    results.finish = timed("finishes", finish)
    started = time.perf_counter()
    count = sum(1 for _ in results)
    spent["rest"] = time.perf_counter() - started - sum(spent.values())
    return {step: 1e3 * seconds / count for step, seconds in spent.items()}
