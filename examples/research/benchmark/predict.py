"""`predict_files` over image files, beside the model alone on the same number of images."""

import argparse
import copy
import statistics
import tempfile
from pathlib import Path

import torch

from vcp_clip_hf import EMBEDDED_CHECKPOINT, AnomalySegmentationPipeline, accelerate_inference
from vcp_clip_hf.generator import render_sample, select_products
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
    stages = _stages(pipe, folder, setting)
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


def _stages(pipe: AnomalySegmentationPipeline, folder: str, setting: Setting) -> dict[str, float]:
    """Return the milliseconds of each step of `predict_files` for one image, one step after the other."""
    paths = sorted(Path(folder).iterdir())[: setting.batch_size]
    loading = {"num_workers": 0, "batch_size": len(paths), "preprocess_params": {}, "postprocess_params": {}}
    batches = pipe.get_iterator([str(path) for path in paths], forward_params={}, **loading).loader.loader
    clock = PartClock(setting.device)
    with clock.part("read and resize"):
        inputs = next(iter(batches))
    sizes = [(image.height, image.width) for image in inputs["image"]]
    network = accelerate_inference(pipe.model)
    with torch.inference_mode():
        with clock.part("model"):
            outputs = network(inputs["pixel_values"].to(setting.device))
        with clock.part("smooth, score, to the file's size"):
            results = pipe.image_processor.post_process_anomaly_segmentation(outputs, sizes)
    answers = []
    for result, image in zip(results, inputs["image"], strict=True):
        on_cpu = {name: value.cpu() if torch.is_tensor(value) else value for name, value in result.items()}
        answers.append(pipe.postprocess({"results": {**on_cpu, "image": image, "error": None}}, output_image=True))
    kinds = {"map": ("png", False, False), "mask": (None, True, False), "overlay": (None, False, True)}
    with tempfile.TemporaryDirectory() as output_dir:
        for kind, pictures in kinds.items():
            writer = PictureWriter(Path(output_dir), *pictures)
            with clock.part(f"write {kind}"):
                for path, answer in zip(paths, answers, strict=True):
                    writer(InputImage(str(path), path.stem), answer)
    return {stage: 1e3 * spent / len(paths) for stage, spent in clock.spent.items()}
