"""Export to ONNX, OpenVINO or a torch program, with a gate: a folder is written only if it answers as the model does.

The graph takes `pixel_values` (B, 3, S, S) and returns the smoothed map (B, S, S) and the score (B,): everything of
the model, and of the image processor's post-processing what does not depend on the size of the original image. What no
image changes is constant in it: the resized position table, and the text tower's keys and values before the category
tokens. Beside the graph lies all that a machine without torch needs to run it, see `onnx_segmenter`.
"""

import copy
import importlib.metadata
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from .accelerated_inference import freeze_for_export
from .atomic_write import atomic_folder
from .image_loading import load_image
from .image_processing_vcp_clip import AnomalyScoring, VCPCLIPImageProcessor, gaussian_matrix
from .modeling_vcp_clip import VCPCLIPModel
from .onnx_segmenter import open_segmenter
from .version import __version__, versions


__all__ = ["FORMATS", "ExportReport", "SegmentationGraph", "export_model"]

logger = transformers_logging.get_logger(__name__)

FORMATS = {"onnx": "model.onnx", "openvino": "model.xml", "torch": "model.pt2"}

# What runs an exported folder without this package; each imports only from the others
_RUNTIME_MODULES = (
    "onnx_segmenter",
    "image_loading",
    "pixel_preprocessing",
    "regions",
    "connected_components",
    "visualization",
)
_REQUIREMENTS = {"onnx": "onnxruntime>=1.20", "openvino": "openvino>=2025.2"}

_DEFAULT_TOLERANCE = 1e-4
_BATCH_SIZES = (1, 3)
_GATE_IMAGES, _CALIBRATION_IMAGES = 6, 32
# above this, weights go to a file of their own: a protobuf file ends at 2 GiB
_EXTERNAL_DATA_BYTES = 2**30


@dataclass
class ExportReport:
    """
    What an export came to.

    Args:
        folder (`Path`): where it is.
        format (`str`): "onnx", "openvino" or "torch".
        int8 (`bool`): whether it is quantised.
        tolerance (`float`): largest deviation allowed.
        map_deviation, score_deviation (`float`): largest absolute differences from the model.
        mean_map_deviation (`float`): mean absolute difference of the maps.
        map_range (`tuple[float, float]`): lowest and highest value of the model's maps on those images.
        num_images (`int`), image_source (`str`): what was compared on.
        megabytes (`float`): of the graph with its weights.
    """

    folder: Path
    format: str
    int8: bool
    tolerance: float
    map_deviation: float
    mean_map_deviation: float
    score_deviation: float
    map_range: tuple[float, float]
    num_images: int
    image_source: str
    megabytes: float

    def describe(self) -> str:
        """One sentence for people."""
        kind = f"{self.format} int8" if self.int8 else self.format
        return (
            f"{self.folder}: {kind}, {self.megabytes:.1f} MB; on {self.num_images} {self.image_source} images the maps"
            f" differ from the model's by at most {self.map_deviation:.1e} (mean {self.mean_map_deviation:.1e}), the"
            f" scores by {self.score_deviation:.1e}; allowed: {self.tolerance:.1e}"
        )


class SegmentationGraph(nn.Module):
    """
    What is exported: model, smoothing and score for one input size, all that is constant computed beforehand.

    Args:
        model ([`VCPCLIPModel`]): stays as it is; float32 weights are shared with it.
        scoring ([`AnomalyScoring`]): from the image processor's `scoring()`.
        image_size (`int`): S, side of `pixel_values`.
    """

    def __init__(self, model: VCPCLIPModel, scoring: AnomalyScoring, image_size: int):
        super().__init__()
        self.model = freeze_for_export(model, image_size)
        self.scoring = scoring
        smoothing = None
        if scoring.smoothing_sigma:
            smoothing = gaussian_matrix(image_size, float(scoring.smoothing_sigma), torch.device("cpu"))
        self.register_buffer("smoothing", smoothing)
        self.eval()

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, S, S) float32 -> the smoothed map (B, S, S) in [0, 1] and the score (B,), float32."""
        outputs = self.model(pixel_values)
        smooth = outputs.anomaly_map
        if self.smoothing is not None:
            # means of probabilities, but for rounding
            smooth = (self.smoothing @ smooth @ self.smoothing.T).clamp(0, 1)
        branches = [branch for branch in (outputs.base_map, outputs.vcp_map) if branch is not None]
        return smooth, self.scoring.score_tensor(smooth, branches)


def _is_plain(model: nn.Module) -> bool:
    return all(each.dtype == torch.float32 and each.device.type == "cpu" for each in model.parameters())


def export_model(
    model: VCPCLIPModel,
    image_processor: VCPCLIPImageProcessor,
    output_dir: str | os.PathLike,
    format: str = "onnx",
    images: str | os.PathLike | Sequence | None = None,
    tolerance: float | None = None,
    int8: bool = False,
    calibration_images: str | os.PathLike | Sequence | None = None,
    image_size: int | None = None,
) -> ExportReport:
    """
    Export a model, compare the result with the model, and keep it only if they agree.

    The graph computes in float32, whatever the model's dtype, and it is compared with the model in float32.

    Args:
        model ([`VCPCLIPModel`]): stays as it is.
        image_processor ([`VCPCLIPImageProcessor`]): of the checkpoint; smoothing and score are built into the graph,
            thresholds are not.
        output_dir (`str` or `os.PathLike`): folder to write; one that holds an earlier export is replaced.
        format (`str`, *optional*, defaults to `"onnx"`): `"onnx"`, `"openvino"` or `"torch"` (a `torch.export`
            program).
        images (folder or sequence of images, *optional*): to compare on, 6 of them evenly spaced; generated ones if
            absent.
        tolerance (`float`, *optional*, defaults to 1e-4): largest difference allowed, of maps and of scores. With
            `int8` it must be given: what is acceptable is for the user to say.
        int8 (`bool`, *optional*, defaults to `False`): quantise the matrix products of CLIP's blocks to 8 bits;
            `"onnx"` only.
        calibration_images (folder or sequence of images, *optional*): to measure the ranges of values on, for `int8`,
            up to 32 of them; should not be those of `images`. Generated ones if absent.
        image_size (`int`, *optional*): side of the input, instead of the image processor's size. Where that changes
            what the model sees, the thresholds are dropped: they were calibrated on other maps.

    Returns:
        [`ExportReport`]: what was measured.

    Raises:
        ValueError: maps or scores differ by more than `tolerance` (nothing is written then), or an argument does not
            fit the checkpoint.
        FileExistsError: `output_dir` holds something else than an export.
        ImportError: what the format needs is not installed.
    """
    output_dir = Path(output_dir).resolve()
    if format not in FORMATS:
        raise ValueError(f"format={format!r} must be one of {', '.join(FORMATS)}.")
    if int8 and format != "onnx":
        raise ValueError(f"int8 works with format='onnx', not with {format!r}.")
    if int8 and tolerance is None:
        raise ValueError(
            "int8 changes maps visibly: say how much is acceptable, with tolerance=0.1 for example; the measured"
            " deviation is reported."
        )
    tolerance = _DEFAULT_TOLERANCE if tolerance is None else tolerance
    if output_dir.exists() and not (output_dir / "export.json").is_file() and any(output_dir.iterdir()):
        raise FileExistsError(f"{output_dir} holds other files than an export; give a new folder.")
    _check_installed(format, int8)
    processor = _at_size(image_processor, model, image_size)

    # 1. what to compare on, and what the model says; in float32 on the CPU
    source = "generated" if images is None else "given"
    pictures = _pictures(images, _GATE_IMAGES, first=0)
    reference = model if _is_plain(model) else copy.deepcopy(model).to("cpu", torch.float32)
    expected = _model_maps(reference, processor, pictures)

    # 2. the graph, traced with two images so that the number stays open
    graph = SegmentationGraph(reference, processor.scoring(), processor.size.height)
    program = _trace(graph, processor.size.height)
    report: list[ExportReport] = []

    def write(folder: Path) -> None:
        # 3. files
        file = folder / FORMATS[format]
        if int8:
            calibration = _pictures(calibration_images, _CALIBRATION_IMAGES, first=_GATE_IMAGES)
            quantised = _write_int8(program, file, [_pixel_values(processor, [each]) for each in calibration])
        else:
            _WRITERS[format](program, file, processor.size.height)
            quantised = None
        processor.save_pretrained(folder)
        if format in _REQUIREMENTS:
            _write_runtime(folder, format)
        facts = _facts(model, processor, format, quantised)
        _write_json(folder, facts)
        # 4. the gate, on what was written, opened as its users will
        deviations = _deviations(folder, format, processor, pictures, expected)
        measured = ExportReport(
            folder=output_dir,
            format=format,
            int8=int8,
            tolerance=tolerance,
            **deviations,
            num_images=len(pictures),
            image_source=source,
            megabytes=sum(each.stat().st_size for each in folder.glob("model*")) / 1e6,
        )
        # not (a <= b), so that NaN is refused too
        if not max(measured.map_deviation, measured.score_deviation) <= tolerance:
            raise ValueError(
                f"The exported graph does not do what the model does, and nothing was written. {measured.describe()}."
                + (
                    " Give calibration_images like those to come, or a larger tolerance."
                    if int8
                    else " Please report this, with the versions that `vcp-clip info` prints."
                )
            )
        facts["parity"] = {
            "tolerance": tolerance,
            **deviations,
            "images": len(pictures),
            "image_source": source,
            "batch_sizes": list(_BATCH_SIZES),
            "compared_with": "the torch model in float32 on the CPU",
        }
        _write_json(folder, facts)
        report.append(measured)

    with atomic_folder(output_dir) as unfinished:
        write(unfinished)
    return report[0]


def _check_installed(format: str, int8: bool) -> None:
    needed = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",), "torch": ()}[format]
    for name in needed:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f'Exporting to {format} needs {name}, which is not installed: pip install "vcp-clip-hf[{format}]"'
            ) from error


def _at_size(
    image_processor: VCPCLIPImageProcessor, model: VCPCLIPModel, image_size: int | None
) -> VCPCLIPImageProcessor:
    """A copy of the image processor with a square size."""
    processor = copy.deepcopy(image_processor)
    height, width = processor.size.height, processor.size.width
    if image_size is None and (processor.resize_mode != "squash" or height != width):
        raise ValueError(
            "An exported graph has one square input, and this checkpoint has"
            f" resize_mode={processor.resize_mode!r} and size {height} x {width}."
            f" Pass image_size={max(height, width)} (--image_size) to squash images to that square, and calibrate"
            " thresholds for it."
        )
    if image_size is not None and (image_size, image_size, "squash") != (height, width, processor.resize_mode):
        settings = {name: getattr(processor, name) for name in processor.scoring().__dataclass_fields__}
        if settings["threshold"] is not None or settings["image_threshold"] is not None:
            logger.warning(
                f"The checkpoint's thresholds are for {height} x {width} pixels ({processor.resize_mode}); the export"
                f" at {image_size} x {image_size} has none. Calibrate there."
            )
        values = {
            **processor.to_dict(),
            "size": {"height": image_size, "width": image_size},
            "resize_mode": "squash",
            "threshold": None,
            "image_threshold": None,
            "calibration": None,
        }
        values.pop("image_processor_type", None)
        processor = type(processor)(**values)
    side, patch_size = processor.size.height, model.config.vision_config.patch_size
    if side <= 0 or side % patch_size:
        raise ValueError(f"image_size={side} must be a multiple of the model's patch_size={patch_size}.")
    if not processor.do_resize:
        raise ValueError(
            "do_resize=False leaves the input's size open; an exported graph has one. Set do_resize=True."
        )
    return processor


def _pictures(images, count: int, first: int) -> list:
    """At most `count` pictures, evenly spaced; generated ones start at number `first`."""
    if images is None:
        from .generator import UNSEEN_PRODUCTS, render_sample

        return [
            render_sample(UNSEEN_PRODUCTS[index % len(UNSEEN_PRODUCTS)], seed=11, index=index, size=192).image
            for index in range(first, first + count)
        ]
    if isinstance(images, (str, os.PathLike)):
        from .prediction import list_inputs

        images = [each.path for each in list_inputs([images])]
    images = list(images)
    if not images:
        raise ValueError("The list of images is empty.")
    chosen = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)
    return [load_image(images[index]) for index in chosen]


def _pixel_values(processor: VCPCLIPImageProcessor, pictures: list) -> torch.Tensor:
    return processor(pictures, return_tensors="pt").pixel_values


@torch.no_grad()
def _model_maps(
    model: VCPCLIPModel, processor: VCPCLIPImageProcessor, pictures: list
) -> list[tuple[np.ndarray, float]]:
    """The model's own map and score of each picture, as the image processor makes them."""
    training = model.training
    model.eval()
    try:
        results = []
        for picture in pictures:
            outputs = model(_pixel_values(processor, [picture]).to(model.device))
            (result,) = processor.post_process_anomaly_segmentation(outputs)
            results.append((result["anomaly_map"].cpu().numpy(), result["score"]))
        return results
    finally:
        model.train(training)


def _runner(folder: Path, format: str) -> Callable[[list], tuple[np.ndarray, np.ndarray]]:
    """What is in the folder, as a function from pictures to maps and scores."""
    if format != "torch":
        segmenter = open_segmenter(folder, num_threads=torch.get_num_threads())
        return lambda pictures: segmenter.forward(segmenter.preprocess(pictures))
    module = torch.export.load(folder / FORMATS[format]).module()
    processor = VCPCLIPImageProcessor.from_pretrained(folder)

    @torch.no_grad()
    def run(pictures: list) -> tuple[np.ndarray, np.ndarray]:
        maps, scores = module(_pixel_values(processor, pictures))
        return maps.numpy(), scores.numpy()

    return run


def _deviations(
    folder: Path, format: str, processor: VCPCLIPImageProcessor, pictures: list, expected: list
) -> dict[str, float | tuple[float, float]]:
    """How far the folder's answers are from the expected ones, alone and in batches of three."""
    run = _runner(folder, format)
    of_maps, of_scores, means = [], [], []
    count = len(pictures)
    for batch_size in _BATCH_SIZES:
        for start in range(0, count, batch_size):
            indices = [index % count for index in range(start, start + batch_size)]
            maps, scores = run([pictures[index] for index in indices])
            side = processor.size.height
            if maps.shape != (batch_size, side, side) or scores.shape != (batch_size,):
                raise ValueError(
                    f"The exported graph returns shapes {maps.shape} and {scores.shape} for {batch_size} images;"
                    " nothing was written. Please report this."
                )
            for index, anomaly_map, score in zip(indices, maps, scores, strict=True):
                difference = np.abs(anomaly_map - expected[index][0])
                of_maps.append(float(difference.max()))
                means.append(float(difference.mean()))
                of_scores.append(abs(float(score) - expected[index][1]))
    values = [each for anomaly_map, _ in expected for each in (anomaly_map.min(), anomaly_map.max())]
    return {
        # np.max, unlike max, keeps NaN
        "map_deviation": float(np.max(of_maps)),
        "mean_map_deviation": float(np.mean(means)),
        "score_deviation": float(np.max(of_scores)),
        "map_range": (float(min(values)), float(max(values))),
    }


def _trace(graph: SegmentationGraph, image_size: int) -> torch.export.ExportedProgram:
    example = torch.zeros(2, 3, image_size, image_size)
    dynamic = {"pixel_values": {0: torch.export.Dim("batch", min=1, max=4096)}}
    with torch.no_grad(), _quiet():
        program = torch.export.export(graph, (example,), dynamic_shapes=dynamic)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine, which the files would carry along
    return program


def _onnx_program(program: torch.export.ExportedProgram):
    names = {"input_names": ["pixel_values"], "output_names": ["anomaly_map", "score"]}
    with torch.no_grad(), _quiet():
        return torch.onnx.export(program, dynamo=True, verbose=False, **names)


def _save_onnx(onnx_program, file: Path) -> list[str]:
    """Write it without the traces of where it was made; -> names of the matrix products in CLIP's blocks."""
    weights = sum(each.const_value.nbytes for each in onnx_program.model.graph.initializers.values())
    products = []
    for node in onnx_program.model.graph.all_nodes():
        if node.op_type in ("MatMul", "Gemm") and ".encoder.layers." in node.metadata_props.get("namespace", ""):
            products.append(node.name)
        node.metadata_props.clear()
        node.doc_string = None
    onnx_program.save(str(file), external_data=weights > _EXTERNAL_DATA_BYTES)
    return products


def _write_onnx(program: torch.export.ExportedProgram, file: Path, image_size: int) -> None:
    _save_onnx(_onnx_program(program), file)


def _write_int8(
    program: torch.export.ExportedProgram, file: Path, calibration: Sequence[torch.Tensor]
) -> dict[str, object]:
    """Static quantisation of the matrix products with weights in CLIP's blocks, one scale for each output channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"pixel_values": batch.numpy()}

    with tempfile.TemporaryDirectory(dir=file.parent) as folder, _quiet():
        full = Path(folder) / file.name
        products = _save_onnx(_onnx_program(program), full)
        quantize_static(
            full,
            file,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_quantize=products,
            use_external_data_format=full.with_name(full.name + ".data").exists(),
            # products of two activations, in attention, stay in float32
            extra_options={"MatMulConstBOnly": True},
        )
    return {"scheme": "static, uint8 activations, int8 weights per channel", "calibration_images": len(calibration)}


def _write_openvino(program: torch.export.ExportedProgram, file: Path, image_size: int) -> None:
    import openvino

    with _quiet():
        converted = openvino.convert_model(program)
    converted.inputs[0].get_tensor().set_names({"pixel_values"})
    # the conversion leaves all sizes open; with only the number of images open the runtime can plan
    converted.reshape({"pixel_values": [-1, 3, image_size, image_size]})
    for output, name in zip(converted.outputs, ("anomaly_map", "score"), strict=True):
        output.get_tensor().set_names({name})
    openvino.save_model(converted, file, compress_to_fp16=False)


def _write_torch(program: torch.export.ExportedProgram, file: Path, image_size: int) -> None:
    with _quiet():
        torch.export.save(program, file)


_WRITERS = {"onnx": _write_onnx, "openvino": _write_openvino, "torch": _write_torch}


def _write_runtime(folder: Path, format: str) -> None:
    """Copies of the modules that run the folder, importing each other by plain names."""
    for name in _RUNTIME_MODULES:
        text = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        for imported in re.findall(r"^\s*from \.(\w*) import", text, flags=re.MULTILINE):
            if imported not in _RUNTIME_MODULES:
                raise RuntimeError(f"{name}.py imports {imported!r}, which exported folders do not have.")
        text = re.sub(r"^(\s*)from \.(\w+) import", r"\1from \2 import", text, flags=re.MULTILINE)
        header = f"# From vcp_clip_hf {__version__}. SPDX-License-Identifier: Apache-2.0\n"
        (folder / f"{name}.py").write_text(header + text, encoding="utf-8")
    (folder / "requirements.txt").write_text(f"numpy>=1.26\npillow>=11.0\n{_REQUIREMENTS[format]}\n", encoding="utf-8")


def _facts(
    model: VCPCLIPModel, processor: VCPCLIPImageProcessor, format: str, quantised: dict | None
) -> dict[str, object]:
    """What `export.json` says, but for the deviation."""
    config, scoring, side = model.config, processor.scoring(), processor.size.height
    packages = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",), "torch": ()}[format]
    name = str(model.name_or_path or "")
    return {
        "format": format,
        "graph": FORMATS[format],
        "int8": quantised,
        "input": {"pixel_values": ["batch", 3, side, side], "dtype": "float32"},
        "outputs": {"anomaly_map": ["batch", side, side], "score": ["batch"], "dtype": "float32"},
        # built into the graph; the image processor's settings must stay these
        "settings": {
            "smoothing_sigma": scoring.smoothing_sigma,
            "score_mode": scoring.score_mode,
            "top_k_fraction": scoring.top_k_fraction,
            "resize_mode": "squash",
        },
        "prompts": {"normal": config.normal_prompts, "abnormal": config.abnormal_prompts},
        "source": {
            # a folder's place says nothing elsewhere
            "model": Path(name).name if os.path.isdir(name) else name,
            "commit": getattr(config, "_commit_hash", None),
            "backbone": config.backbone_name_or_path,
            "backbone_revision": config.backbone_revision,
        },
        "versions": versions("torch", "transformers", *packages),
        "exported_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "licence": (
            "The Python files are vcp_clip_hf's, Apache-2.0. The graph holds the checkpoint's and its CLIP backbone's"
            " weights and is under their licences; look them up at the source."
        ),
    }


def _write_json(folder: Path, facts: dict) -> None:
    (folder / "export.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes to their own developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "root", "onnx_ir")]
    loggers.append(logging.getLogger("torch.onnx._internal.exporter._registration"))
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
