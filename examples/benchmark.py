"""How fast is VCP-CLIP here, how much memory does it take, and how far is that from what the machine can do?

    python examples/benchmark.py                              # ViT-L/14 at 518: inference, fp32 and bf16
    python examples/benchmark.py --what training              # a training step, with and without accumulation
    python examples/benchmark.py --what predict               # files to results on disk, beside the model alone
    python examples/benchmark.py --devices cuda --batch_sizes 1 16 32 --compile

Without --model the true configuration is filled with random weights: the time does not depend on them. Machines are
noisy, so all ways of one setting take turns, round after round, and what is reported are medians and ratios within the
same run: to a large matrix product of the same dtype (the floor: the image encoder's FLOPs at that rate), and to
`reference_forward.py` (straight from the equations: eager attention, a loop over images, all 77 text tokens, keys and
values of every patch).
"""

import argparse
import contextlib
import copy
import ctypes
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers


sys.path.append(str(Path(__file__).parent.parent))  # behind everything else: to find the other examples

from examples.reference_forward import reference_forward
from vcp_clip_hf import EMBEDDED_CHECKPOINT, VCPCLIPConfig, VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.data.synthetic_defects import render_sample, select_products
from vcp_clip_hf.losses import segmentation_loss
from vcp_clip_hf.pipeline_anomaly_segmentation import AnomalySegmentationPipeline
from vcp_clip_hf.prediction import InputImage, PictureWriter, predict_files


ROOT = Path(__file__).parent.parent
DEFAULT_CONFIG = ROOT / "hub_configs" / "vcp-clip-vit-large-patch14-336-visa"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PARTS = ("image encoder", "text", "Post-VCP", "heads", "post-processing")


# --- the clock ----------------------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable, device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - started


@dataclass
class PartClock:
    """Time spent in each part of one call, exclusive of the parts within it."""

    device: torch.device
    spent: dict[str, float] = field(default_factory=dict)
    stack: list[list] = field(default_factory=list)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside as this part's."""
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
        """Time the model's own methods; `heads` is what remains of its forward pass."""
        watched = [
            (model, "encode_image", "image encoder"),
            (model, "encode_text", "text"),
            (model, "forward", "heads"),
        ]
        if model.post_vcp is not None:
            watched += [(model.post_vcp, "forward", "Post-VCP"), (model.post_vcp, "fold_queries", "Post-VCP")]
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


def reset_peak_memory(device: torch.device) -> int:
    """-> bytes in use now; from here on `peak_memory` counts."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError, AttributeError):
        # what earlier calls have freed goes back to the system first, or this one would take it unseen (glibc)
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_memory(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    """A line of the kernel's account of this process, in bytes; 0 where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0


# --- the floor ----------------------------------------------------------------------------------------------------


def image_encoder_flops(config: VCPCLIPConfig, size: int) -> float:
    """Multiplications and additions of the image tower for one image, matrix products only."""
    vision = config.vision_config
    tokens, width = (size // vision.patch_size) ** 2 + 1, vision.hidden_size
    per_layer = tokens * (4 * width**2 + 2 * width * vision.intermediate_size) + 2 * tokens**2 * width
    patches = (tokens - 1) * width * vision.num_channels * vision.patch_size**2
    return 2.0 * (vision.num_hidden_layers * per_layer + patches)


def matrix_product(device: torch.device, dtype: torch.dtype) -> tuple[Callable, float]:
    """
    A product large enough to run at full rate, and its FLOPs. On a CPU the faster of two ways: PyTorch leaves products
    to one library and convolutions to another, and which of them knows the processor better differs.
    """
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    ways = [lambda: a @ b]
    if device.type == "cpu":
        pixels, kernel = a[None].transpose(1, 2).unsqueeze(2), b[:, :, None, None]
        ways.append(lambda: torch.nn.functional.conv2d(pixels, kernel))
        for way in ways:
            way()
    return min(ways, key=lambda way: seconds(way, device)), 2.0 * side**3


# --- inference ----------------------------------------------------------------------------------------------------


def load(options: argparse.Namespace, default: str | None = None) -> tuple[VCPCLIPModel, VCPCLIPImageProcessor]:
    checkpoint = options.model or default
    if checkpoint is not None:
        model = VCPCLIPModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
        return model, VCPCLIPImageProcessor.from_pretrained(checkpoint)
    config = VCPCLIPConfig.from_pretrained(options.model_config or DEFAULT_CONFIG)
    torch.manual_seed(0)
    return VCPCLIPModel(config).eval(), VCPCLIPImageProcessor.for_model(config)


def benchmark_inference(options: argparse.Namespace) -> list[dict]:
    model, processor = load(options)
    size = options.image_size or model.config.input_size[0]
    rows = []
    for device in map(torch.device, options.devices):
        for name in options.dtypes:
            typed = copy.deepcopy(model).to(device, DTYPES[name])
            for batch_size in options.batch_sizes:
                rows += _inference_rows(typed, model, processor, device, name, batch_size, size, options)
            del typed
    return rows


@torch.inference_mode()
def _inference_rows(typed, model, processor, device, dtype, batch_size, size, options) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(batch_size, 3, size, size, generator=generator)
    inputs = pixel_values.to(device, DTYPES[dtype])
    target_sizes = [(size, size)] * batch_size

    def whole(forward=typed) -> list[dict]:
        return processor.post_process_anomaly_segmentation(forward(inputs), target_sizes)

    product, product_flops = matrix_product(device, DTYPES[dtype])
    ways: dict[str, Callable] = {"eager": whole}
    if options.compile:
        compiled = torch.compile(typed, fullgraph=True, dynamic=False, mode=options.compile_mode)
        ways["compiled"] = lambda: whole(compiled)
    if not options.no_reference:
        ways["reference"] = lambda: reference_forward(typed, inputs)

    # 1. once, untimed: compilation, caches, the allocator; memory is what this first call takes
    product()
    memory = {}
    for way, run in ways.items():
        if way != "reference":
            start = reset_peak_memory(device)
            run()
            memory[way] = peak_memory(device) - start

    # 2. all ways in turn
    times: dict[str, list[float]] = {way: [] for way in ways}
    rates, shares = [], []
    for turn in range(options.rounds):
        rates.append(product_flops * 3 / seconds(lambda: [product() for _ in range(3)], device))
        for way, run in ways.items():
            if way == "reference" and turn >= options.reference_rounds:
                continue
            times[way].append(seconds(run, device))
        clock = PartClock(device)
        with clock.watching(typed), clock.part("post-processing"):
            whole()
        total = sum(clock.spent.values())
        shares.append({part: clock.spent.get(part, 0.0) / total for part in PARTS})

    # 3. how far reduced precision moves the maps
    deviation = None
    if dtype != "float32":
        expected = model(pixel_values[:1]).anomaly_map
        deviation = (typed(inputs[:1]).anomaly_map.float().cpu() - expected).abs()

    floor = batch_size * image_encoder_flops(typed.config, size) / statistics.median(rates)
    rows = []
    for way, measured in times.items():
        middle = statistics.median(measured)
        row = {
            "device": device_name(device),
            "dtype": dtype,
            "batch_size": batch_size,
            "image_size": size,
            "way": way,
            "ms_per_image": 1e3 * middle / batch_size,
            "ms_per_image_best": 1e3 * min(measured) / batch_size,
            "images_per_second": batch_size / middle,
            "floor_ms_per_image": 1e3 * floor / batch_size,
            "times_floor": middle / floor,
            "rounds": len(measured),
        }
        if way != "reference":
            row["working_memory_bytes"] = memory[way]
            if times.get("reference"):
                pairs = zip(times["reference"], measured, strict=False)
                row["times_faster_than_reference"] = statistics.median(theirs / ours for theirs, ours in pairs)
        if way == "eager":
            row["shares"] = {part: statistics.median(share[part] for share in shares) for part in PARTS}
        if deviation is not None and way == "eager":
            row["map_deviation_max"], row["map_deviation_mean"] = deviation.max().item(), deviation.mean().item()
        rows.append(row)
        report(row)
    return rows


# --- training -----------------------------------------------------------------------------------------------------


def benchmark_training(options: argparse.Namespace) -> list[dict]:
    """A step of a global batch: in one piece, accumulated image by image, and the plain loop over images."""
    model, _ = load(options)
    size = options.image_size or model.config.input_size[0]
    batch_size = max(options.batch_sizes)
    rows = []
    for device in map(torch.device, options.devices):
        for dtype in options.dtypes:
            rows += _training_rows(copy.deepcopy(model).to(device), device, dtype, batch_size, size, options)
    return rows


def _training_rows(model, device, dtype, batch_size, size, options) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(batch_size, 3, size, size, generator=generator).to(device)
    labels = (torch.rand(batch_size, size, size, generator=generator) < 0.05).to(device, torch.float32)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    autocast = torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "float32")

    def step(pieces: int) -> None:
        model.train()
        for images, masks in zip(pixel_values.chunk(pieces), labels.chunk(pieces), strict=True):
            with autocast:
                loss = model(images, labels=masks).loss
            (loss / pieces).backward()
        optimizer.step()
        optimizer.zero_grad()

    def plain() -> None:
        model.eval()
        with autocast:
            outputs = reference_forward(model, pixel_values)
            loss = segmentation_loss(outputs["base_layer_maps"], labels)
            if "vcp_layer_maps" in outputs:
                loss = loss + segmentation_loss(outputs["vcp_layer_maps"], labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    ways = {f"batch of {batch_size}": lambda: step(1)}
    if batch_size > 1:
        ways[f"accumulated, {batch_size} x 1"] = lambda: step(batch_size)
    if not options.no_reference:
        ways["reference"] = plain
    memory = {}
    for way, run in ways.items():
        start = reset_peak_memory(device)
        run()
        memory[way] = peak_memory(device) - start
    times: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(options.rounds):
        for way, run in ways.items():
            if way != "reference" or turn < options.reference_rounds:
                times[way].append(seconds(run, device))
    rows = []
    for way, measured in times.items():
        row = {
            "device": device_name(device),
            "dtype": dtype,
            "batch_size": batch_size,
            "image_size": size,
            "way": f"training, {way}",
            "ms_per_image": 1e3 * statistics.median(measured) / batch_size,
            "images_per_second": batch_size / statistics.median(measured),
            "working_memory_bytes": memory[way],
            "rounds": len(measured),
        }
        if way != "reference" and times.get("reference"):
            pairs = zip(times["reference"], measured, strict=False)
            row["times_faster_than_reference"] = statistics.median(theirs / ours for theirs, ours in pairs)
        rows.append(row)
        report(row)
    return rows


# --- files to results -----------------------------------------------------------------------------------------------


def benchmark_predict(options: argparse.Namespace) -> list[dict]:
    """`predict_files` over image files, beside the model alone on the same number of images, in turns."""
    model, processor = load(options, EMBEDDED_CHECKPOINT if options.model_config is None else None)
    processor.threshold = processor.threshold or 0.5  # of random weights: for masks
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        products = select_products("unseen")
        for index in range(options.images):
            sample = render_sample(products[index % len(products)], 0, index, options.file_size)
            sample.image.save(Path(folder) / f"{index:04d}.png")
        for device in map(torch.device, options.devices):
            for dtype in options.dtypes:
                typed = copy.deepcopy(model).to(dtype=DTYPES[dtype])
                pipe = AnomalySegmentationPipeline(model=typed, image_processor=processor, device=device)
                rows += _predict_rows(pipe, folder, device, max(options.batch_sizes), options)
    return rows


def _predict_rows(pipe, folder: str, device: torch.device, batch_size: int, options) -> list[dict]:
    size, dtype = pipe.model.config.input_size[0], pipe.model.dtype
    inputs = torch.randn(batch_size, 3, size, size).to(device, dtype)

    @torch.inference_mode()
    def alone() -> None:
        for _ in range(-(-options.images // batch_size)):
            pipe.model(inputs)

    def predict(**kept) -> None:
        with tempfile.TemporaryDirectory() as output_dir:
            workers = options.num_workers
            predict_files(
                pipe, [folder], output_dir, batch_size=batch_size, num_workers=workers, progress=False, **kept
            )

    ways = {
        "model alone": alone,
        "predict, scores only": lambda: predict(save_maps=None, save_masks=False, save_overlays=False),
        "predict, maps and masks": lambda: predict(save_overlays=False),
        "predict, maps, masks and overlays": predict,
    }
    for run in ways.values():
        run()
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way, run in ways.items():
            times[way].append(seconds(run, device))
    stages = _predict_stages(pipe, folder, device, batch_size)
    rows = []
    for way, measured in times.items():
        row = {
            "device": device_name(device),
            "dtype": str(dtype).removeprefix("torch."),
            "batch_size": batch_size,
            "image_size": size,
            "file_size": options.file_size,
            "way": way,
            "ms_per_image": 1e3 * statistics.median(measured) / options.images,
            "images_per_second": options.images / statistics.median(measured),
            "share_of_model_rate": statistics.median(
                own / whole for own, whole in zip(times["model alone"], measured, strict=True)
            ),
            "rounds": len(measured),
        }
        if way == "model alone":
            row["stages_ms_per_image"] = stages
        rows.append(row)
        report(row)
    return rows


def _predict_stages(pipe, folder: str, device: torch.device, batch_size: int) -> dict[str, float]:
    """What each step of `predict_files` takes for one image, ms, one after the other with nothing beside."""
    paths = sorted(Path(folder).iterdir())[:batch_size]
    loading = {"num_workers": 0, "batch_size": len(paths), "preprocess_params": {}, "postprocess_params": {}}
    batches = pipe.get_iterator([str(path) for path in paths], forward_params={}, **loading).loader.loader
    clock = PartClock(device)
    with clock.part("read and resize"):
        inputs = next(iter(batches))
    sizes = [(image.height, image.width) for image in inputs["image"]]
    with torch.inference_mode():
        with clock.part("model"):
            outputs = pipe.model(inputs["pixel_values"].to(device))
        with clock.part("smooth, score, to the file's size"):
            found = pipe.image_processor.post_process_anomaly_segmentation(outputs, sizes)
    found = [
        pipe.postprocess(
            {
                "results": {name: value.cpu() if torch.is_tensor(value) else value for name, value in result.items()}
                | {"image": image, "error": None}
            },
            output_image=True,
        )
        for result, image in zip(found, inputs["image"], strict=True)
    ]
    kinds = {"map": ("png", False, False), "mask": (None, True, False), "overlay": (None, False, True)}
    with tempfile.TemporaryDirectory() as output_dir:
        for kind, settings in kinds.items():
            writer = PictureWriter(Path(output_dir), *settings)
            with clock.part(f"write {kind}"):
                for path, result in zip(paths, found, strict=True):
                    writer(InputImage(str(path), path.stem), result)
    return {stage: 1e3 * spent / len(paths) for stage, spent in clock.spent.items()}


# --- reports ------------------------------------------------------------------------------------------------------


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def report(row: dict) -> None:
    """One line in the terminal."""
    line = f"{row['device']} | {row['dtype']} | batch {row['batch_size']} | {row['way']}: {row['ms_per_image']:.1f} ms"
    line += f" per image, {row['images_per_second']:.2f} images/s"
    if "times_floor" in row:
        line += f", {row['times_floor']:.2f} x floor ({row['floor_ms_per_image']:.1f} ms)"
    if "times_faster_than_reference" in row:
        line += f", {row['times_faster_than_reference']:.2f} x faster than the reference"
    if "working_memory_bytes" in row:
        line += f", {row['working_memory_bytes'] / 2**20:.0f} MiB beyond the weights"
    if "share_of_model_rate" in row:
        line += f", {row['share_of_model_rate']:.0%} of the model's rate"
    if "stages_ms_per_image" in row:
        stages = row["stages_ms_per_image"].items()
        line += "\n    one by one: " + ", ".join(f"{stage} {spent:.1f} ms" for stage, spent in stages)
    if "shares" in row:
        line += "\n    " + ", ".join(f"{part} {share:.2%}" for part, share in row["shares"].items())
    if "map_deviation_max" in row:
        line += f"\n    map differs from float32 by {row['map_deviation_max']:.1e} at most,"
        line += f" {row['map_deviation_mean']:.1e} on average"
    print(line, flush=True)


def to_markdown(rows: list[dict]) -> str:
    columns = {
        "dtype": "dtype",
        "batch_size": "batch",
        "way": "way",
        "ms_per_image": "ms per image",
        "images_per_second": "images/s",
        "times_floor": "x floor",
        "times_faster_than_reference": "x faster than the reference",
        "share_of_model_rate": "of the model's rate",
        "working_memory_bytes": "MiB beyond weights",
    }
    columns = {key: title for key, title in columns.items() if any(key in row for row in rows)}
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = []
        for key in columns:
            value = row.get(key, "")
            if key == "working_memory_bytes" and value != "":
                value = f"{value / 2**20:.0f}"
            elif key == "share_of_model_rate" and value != "":
                value = f"{value:.0%}"
            elif isinstance(value, float):
                value = f"{value:.1f}" if key == "ms_per_image" else f"{value:.2f}"
            cells.append(str(value))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def machine() -> dict:
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", default="inference", choices=("inference", "training", "predict"))
    parser.add_argument("--model", help="checkpoint; without it, random weights of --model_config (predict: embedded)")
    parser.add_argument("--model_config", help="folder with a config.json; default: ViT-L/14 (predict: --model)")
    parser.add_argument("--image_size", type=int, help="side in pixels, a multiple of the patch size")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="default: float32 (and bfloat16, not for predict)")
    parser.add_argument("--devices", nargs="+", default=["cuda" if torch.cuda.is_available() else "cpu"])
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument("--compile_mode", help="of torch.compile, e.g. reduce-overhead for CUDA graphs")
    parser.add_argument("--no_reference", action="store_true", help="leave out the reference")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reference_rounds", type=int, default=2)
    parser.add_argument("--images", type=int, default=64, help="predict: number of files")
    parser.add_argument("--file_size", type=int, default=512, help="predict: side of the image files in pixels")
    parser.add_argument("--num_workers", type=int, default=1, help="predict: processes that read images ahead")
    parser.add_argument("--output_dir", type=Path, help="for benchmark.json and benchmark.md")
    options = parser.parse_args(arguments)

    options.dtypes = options.dtypes or (["float32"] if options.what == "predict" else ["float32", "bfloat16"])

    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    run = {"inference": benchmark_inference, "training": benchmark_training, "predict": benchmark_predict}
    rows = run[options.what](options)
    if options.output_dir is not None:
        options.output_dir.mkdir(parents=True, exist_ok=True)
        content = {"machine": facts, "command": sys.argv, "rows": rows}
        (options.output_dir / "benchmark.json").write_text(json.dumps(content, indent=2) + "\n")
        (options.output_dir / "benchmark.md").write_text(to_markdown(rows))
    return rows


if __name__ == "__main__":
    main()
