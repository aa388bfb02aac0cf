"""Export to ONNX, OpenVINO or a torch program. A folder is written only if its results equal the model's.

The graph takes `pixel_values` (B, 3, S, S) and returns the smoothed map (B, S, S) and the score (B,): the whole model,
and the part of the post-processing that does not depend on the size of the original image. Image-independent values
are constants of the graph: the resized position table, and the text tower's keys and values before the category
tokens. The folder also holds the code and the settings to run the graph without torch, see `exported_segmenter`.
"""

import copy
import importlib
import json
import logging
import math
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers.utils import logging as transformers_logging

from .accelerated_inference import freeze_for_export
from .anomaly_scoring import TOP_K_MAPS, AnomalyScoring, gaussian_matrix
from .atomic_write import atomic_folder
from .configuration_vcp_clip import VCPCLIPConfig
from .exported_segmenter import open_segmenter
from .image_loading import ImageLike, load_image
from .image_processing_vcp_clip import VCPCLIPImageProcessor
from .modeling_vcp_clip import VCPCLIPModel
from .prompts import prompt_rows
from .reference_pictures import image_conditions
from .referenced_model import ReferencedModel
from .references import ReferenceMemory
from .thresholds import differing_settings
from .version import __version__, versions


__all__ = ["FORMATS", "ExportReport", "SegmentationGraph", "export_model"]

logger = transformers_logging.get_logger(__name__)

FORMATS = {"onnx": "model.onnx", "openvino": "model.xml", "torch": "model.pt2"}

# The module that runs an exported folder without this package; it is copied with all that it imports from here
_RUNTIME = "exported_segmenter"
_RELATIVE_IMPORT = re.compile(r"^(\s*)from \.(\w+) import", flags=re.MULTILINE)
_REQUIREMENTS = {"onnx": "onnxruntime>=1.20", "openvino": "openvino>=2025.2"}
# Packages that write a format and check it
_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",), "torch": ()}

# From pictures to maps and scores
Runner = Callable[[list[Image.Image]], tuple[np.ndarray, np.ndarray]]

_DEFAULT_TOLERANCE = 1e-4
_BATCH_SIZES = (1, 3)
_PARITY_IMAGES, _CALIBRATION_IMAGES = 6, 32
_ADVICE = " If all images have one ratio, give the input this ratio: --image-size HEIGHTxWIDTH."
_RATIO_TOLERANCE = 1.15  # between images and the input, whose sides are whole patches
# Larger models keep their weights in a separate file, because a protobuf file is limited to 2 GiB
_EXTERNAL_DATA_BYTES = 2**30


@dataclass
class ExportReport:
    """
    Outcome of an export.

    Args:
        folder (`Path`): folder that was written.
        format (`str`): "onnx", "openvino" or "torch".
        int8 (`bool`): whether the graph is quantized.
        tolerance (`float`): largest deviation allowed.
        map_deviation, score_deviation (`float`): largest absolute differences from the model.
        mean_map_deviation (`float`): mean absolute difference of the maps.
        map_range (`tuple[float, float]`): lowest and highest value of the model's maps on the compared images.
        num_images (`int`): number of compared images.
        image_source (`str`): "given" or "generated" images.
        megabytes (`float`): size of the graph with its weights.
        references (`str`, *optional*): description of the memory in the graph.
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
    references: str | None = None

    def describe(self) -> str:
        """Return one sentence with the measured deviations, and one about the references in the graph."""
        kind = f"{self.format} int8" if self.int8 else self.format
        return (
            f"{self.folder}: {kind}, {self.megabytes:.1f} MB; on {self.num_images} {self.image_source} images the maps"
            f" differ from the model's by at most {self.map_deviation:.1e} (mean {self.mean_map_deviation:.1e}), the"
            f" scores by {self.score_deviation:.1e}; allowed: {self.tolerance:.1e}"
            + ("" if self.references is None else f". {self.references}")
        )


class SegmentationGraph(nn.Module):
    """
    The exported graph: model, smoothing and score for one input size, with all constants precomputed.

    Args:
        model ([`VCPCLIPModel`]): model to export; it is not changed, and float32 weights are shared with it.
        scoring ([`AnomalyScoring`]): scoring of the image processor.
        image_size (`tuple[int, int]`): height and width of `pixel_values`.
        references ([`ReferenceMemory`], *optional*): memory whose map is fused with the model's; its banks become
            constants of the graph.
    """

    def __init__(
        self,
        model: VCPCLIPModel,
        scoring: AnomalyScoring,
        image_size: tuple[int, int],
        references: ReferenceMemory | None = None,
    ):
        super().__init__()
        self.model = _with_references(freeze_for_export(model, image_size), references)
        self.scoring = scoring
        rows, columns = (
            gaussian_matrix(side, float(scoring.smoothing_sigma), torch.device("cpu"))
            if scoring.smoothing_sigma
            else None
            for side in image_size
        )
        self.register_buffer("row_smoothing", rows)
        self.register_buffer("column_smoothing", columns)
        self.eval()

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Compute maps and scores.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`): pixels from the image
                processor.

        Returns:
            `tuple`: smoothed maps `(batch_size, height, width)` in [0, 1] and scores `(batch_size,)`, float32.
        """
        outputs = self.model(pixel_values)
        smooth = outputs.anomaly_map
        if self.row_smoothing is not None:
            # weighted means of probabilities, which rounding could move out of [0, 1]
            smooth = (self.row_smoothing @ smooth @ self.column_smoothing.T).clamp(0, 1)
        branches = [outputs[name] for name in TOP_K_MAPS if outputs.get(name) is not None]
        return smooth, self.scoring.score_tensor(smooth, branches, outputs.image_scores)


def export_model(
    model: VCPCLIPModel,
    image_processor: VCPCLIPImageProcessor,
    output_dir: str | os.PathLike,
    format: str = "onnx",
    images: str | os.PathLike | Sequence[ImageLike] | None = None,
    tolerance: float | None = None,
    int8: bool = False,
    calibration_images: str | os.PathLike | Sequence[ImageLike] | None = None,
    image_size: int | tuple[int, int] | None = None,
    references: ReferenceMemory | None = None,
) -> ExportReport:
    """
    Export a model, compare the result with the model, and keep it only if they agree.

    The graph computes in float32 for every dtype of the model, and it is compared with the model in float32.

    Args:
        model ([`VCPCLIPModel`]): model to export; it is not changed.
        image_processor ([`VCPCLIPImageProcessor`]): image processor of the checkpoint. Smoothing and score are built
            into the graph, thresholds are not.
        output_dir (`str` or `os.PathLike`): folder to write; an earlier export in it is replaced.
        format (`str`, *optional*, defaults to `"onnx"`): `"onnx"`, `"openvino"` or `"torch"` (a `torch.export`
            program).
        images (folder or sequence of images, *optional*): images to compare on, of which 6 are taken, evenly spaced;
            generated ones if absent.
        tolerance (`float`, *optional*, defaults to 1e-4): largest difference allowed, of maps and of scores. Required
            with `int8`, where only the user knows which difference is acceptable.
        int8 (`bool`, *optional*, defaults to `False`): quantize the matrix products of CLIP's blocks to 8 bits;
            `"onnx"` only.
        calibration_images (folder or sequence of images, *optional*): images to measure value ranges on, for `int8`,
            at most 32 of them; they should differ from `images`. Generated ones if absent.
        image_size (`int` or `tuple[int, int]`, *optional*): side of a square input, or height and width, instead of
            the image processor's size. If this changes the model's input, calibrated thresholds are dropped, because
            they were measured on other maps.
        references ([`ReferenceMemory`], *optional*): memory of normal pictures, such as `pipe.references`. Its patches
            and its weight are built into the graph. Left out if its weight is 0.

    Returns:
        [`ExportReport`]: the measured deviations.

    Raises:
        ValueError: maps or scores differ by more than `tolerance` (nothing is written then), or an argument does not
            fit the checkpoint. The references must be of this model, of whole images and of the exported size.
        FileExistsError: `output_dir` holds files of another kind.
        ImportError: a package that the format needs is not installed.
    """
    if model.config.model_type != VCPCLIPConfig.model_type:
        raise ValueError(
            f"Only VCP-CLIP can be exported, and this is a {type(model).__name__}, whose results depend on the name of"
            " the product. Use it through the pipeline."
        )
    output_dir = Path(output_dir).resolve()
    tolerance = _check_arguments(output_dir, format, int8, tolerance)
    processor = _at_size(image_processor, model, image_size)
    references = _active_references(references, model, processor)
    compared = _pictures(images, _PARITY_IMAGES, first=0)
    if images is not None:
        _warn_of_other_ratios(compared, processor)
    plain = model if _is_plain(model) else copy.deepcopy(model).to("cpu", torch.float32)
    size = processor.size.height, processor.size.width
    export = _Export(
        format=format,
        processor=processor,
        parity=_ParityCheck(
            compared,
            "generated" if images is None else "given",
            _model_maps(plain, processor, compared, references),
            tolerance,
        ),
        # traced with two images, so that the number of images stays variable
        program=_trace(SegmentationGraph(plain, processor.scoring(), size, references), size),
        calibration=_pictures(calibration_images, _CALIBRATION_IMAGES, first=_PARITY_IMAGES) if int8 else None,
        facts=_facts(model, processor, format, references),
    )
    with atomic_folder(output_dir) as unfinished:
        return export.write(unfinished, output_dir)


def _check_arguments(output_dir: Path, format: str, int8: bool, tolerance: float | None) -> float:
    """Raise before any work if the export is impossible; return the tolerance."""
    if format not in FORMATS:
        raise ValueError(f"format={format!r} must be one of {', '.join(FORMATS)}.")
    if int8 and format != "onnx":
        raise ValueError(f"int8 works with format='onnx', not with {format!r}.")
    if int8 and tolerance is None:
        raise ValueError(
            "int8 changes maps visibly: state the acceptable difference, for example tolerance=0.1; the measured"
            " deviation is reported."
        )
    if output_dir.exists() and not (output_dir / "export.json").is_file() and any(output_dir.iterdir()):
        raise FileExistsError(f"{output_dir} holds files that are not of an export; give a new folder.")
    for name in _PACKAGES[format]:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f'Exporting to {format} needs {name}, which is not installed: pip install "vcp-clip-hf[{format}]"'
            ) from error
    return _DEFAULT_TOLERANCE if tolerance is None else tolerance


@dataclass
class _Deviations:
    """Distances from the model's results; [`ExportReport`] documents the fields."""

    map_deviation: float
    mean_map_deviation: float
    score_deviation: float
    map_range: tuple[float, float]


@dataclass
class _ParityCheck:
    """
    Pictures and the model's results on them, to compare an export with.

    Args:
        pictures (`list[PIL.Image.Image]`): pictures.
        source (`str`): "given" or "generated".
        expected (`list[tuple[np.ndarray, float]]`): map and score of each picture.
        tolerance (`float`): largest deviation allowed.
    """

    pictures: list[Image.Image]
    source: str
    expected: list[tuple[np.ndarray, float]]
    tolerance: float

    def measure(self, run: Runner) -> _Deviations:
        """Compare the results of a graph with the model's, on single pictures and in batches of three."""
        differences, of_scores = [], []
        for index, anomaly_map, score in self._results(run):
            expected_map, expected_score = self.expected[index]
            differences.append(np.abs(anomaly_map - expected_map))
            of_scores.append(abs(float(score) - expected_score))
        values = [each for anomaly_map, _ in self.expected for each in (anomaly_map.min(), anomaly_map.max())]
        return _Deviations(
            # np.max, unlike max, keeps NaN
            map_deviation=float(np.max([each.max() for each in differences])),
            mean_map_deviation=float(np.mean([float(each.mean()) for each in differences])),
            score_deviation=float(np.max(of_scores)),
            map_range=(float(min(values)), float(max(values))),
        )

    def _results(self, run: Runner) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Return the number of a picture, its map and its score, for every picture in batches of every size."""
        count, shape = len(self.pictures), self.expected[0][0].shape
        for batch_size in _BATCH_SIZES:
            for start in range(0, count, batch_size):
                indices = [index % count for index in range(start, start + batch_size)]
                maps, scores = run([self.pictures[index] for index in indices])
                if maps.shape != (batch_size, *shape) or scores.shape != (batch_size,):
                    raise ValueError(
                        f"The exported graph returns shapes {maps.shape} and {scores.shape} for {batch_size} images;"
                        " nothing was written. Please report this."
                    )
                yield from zip(indices, maps, scores, strict=True)

    def facts(self, deviations: _Deviations) -> dict[str, object]:
        """Return the entry `parity` of `export.json`."""
        return {
            "tolerance": self.tolerance,
            **asdict(deviations),
            "images": len(self.pictures),
            "image_source": self.source,
            "batch_sizes": list(_BATCH_SIZES),
            "compared_with": "the torch model in float32 on the CPU",
        }


@dataclass
class _Export:
    """The parts of an exported folder; `calibration` pictures are given only for int8."""

    format: str
    processor: VCPCLIPImageProcessor
    parity: _ParityCheck
    program: torch.export.ExportedProgram
    calibration: list[Image.Image] | None
    facts: dict[str, Any]

    def write(self, folder: Path, final: Path) -> ExportReport:
        """Write a folder that is later moved to `final`, and compare its results with the model's."""
        file = folder / FORMATS[self.format]
        if self.calibration is None:
            _WRITERS[self.format](self.program, file)
        else:
            batches = [_pixel_values(self.processor, [each]) for each in self.calibration]
            self.facts["int8"] = _write_int8(self.program, file, batches)
        self.processor.save_pretrained(folder)
        if self.format in _REQUIREMENTS:
            _write_runtime(folder, self.format)
        _write_json(folder, self.facts)

        deviations = self.parity.measure(_runner(folder, self.format))
        report = self._report(folder, final, deviations)
        # not (a <= b), so that NaN is refused too
        if not max(deviations.map_deviation, deviations.score_deviation) <= self.parity.tolerance:
            if report.int8:
                advice = "Give calibration_images like those that the model will see, or a larger tolerance."
            else:
                advice = "Please report this, with the versions that `vcp-clip info` prints."
            raise ValueError(
                "Parity check failed: the exported graph differs from the model, and nothing was written."
                f" {report.describe()}. {advice}"
            )
        _write_json(folder, {**self.facts, "parity": self.parity.facts(deviations)})
        return report

    def _report(self, folder: Path, final: Path, deviations: _Deviations) -> ExportReport:
        return ExportReport(
            folder=final,
            format=self.format,
            int8=self.calibration is not None,
            tolerance=self.parity.tolerance,
            **asdict(deviations),
            num_images=len(self.parity.pictures),
            image_source=self.parity.source,
            megabytes=sum(each.stat().st_size for each in folder.glob("model*")) / 1e6,
            references=(self.facts["references"] or {}).get("description"),
        )


def _at_size(
    image_processor: VCPCLIPImageProcessor, model: VCPCLIPModel, image_size: int | tuple[int, int] | None
) -> VCPCLIPImageProcessor:
    """Return a copy of the image processor that squashes images to one size, without thresholds of other inputs."""
    before, mode = image_processor.size, image_processor.resize_mode
    processor = copy.deepcopy(image_processor).with_resize_mode("squash")
    if image_size is not None:
        processor = processor.at_size(image_size)
    height, width = processor.size.height, processor.size.width
    if mode != "squash":
        logger.warning(
            f"The export brings every image to {height} x {width} pixels (height x width), and the checkpoint has"
            f" resize_mode={mode!r}: the results of images with another ratio of height to width differ from the"
            f" checkpoint's.{'' if image_size is not None else _ADVICE}"
        )
    # thresholds that the user set hold for every input
    calibration = processor.calibration
    if calibration and (processor.size != before or differing_settings(calibration, {"resize_mode": "squash"})):
        if processor.threshold is not None or processor.image_threshold is not None:
            logger.warning(
                f"The checkpoint's thresholds are for {before.height} x {before.width} pixels ({mode}); the export at"
                f" {height} x {width} (squash) has none. Calibrate with --image-size {height}x{width} --resize-mode"
                " squash."
            )
        processor = processor.without_thresholds()
    patch_size = model.config.vision_config.patch_size
    if any(side <= 0 or side % patch_size for side in (height, width)):
        raise ValueError(f"size={height} x {width} must be multiples of the model's patch_size={patch_size}.")
    if not processor.do_resize:
        raise ValueError(
            "With do_resize=False inputs have any size, and an exported graph has one size. Set do_resize=True."
        )
    return processor


def _warn_of_other_ratios(images: Sequence[Image.Image], processor: VCPCLIPImageProcessor) -> None:
    """Warn if an input that is not square distorts the given images: height and width may be confused."""
    height, width = processor.size.height, processor.size.width
    ratios = [image.height / image.width for image in images]
    others = [ratio for ratio in ratios if abs(math.log(ratio * width / height)) > math.log(_RATIO_TOLERANCE)]
    if height != width and others:
        logger.warning(
            f"{len(others)} of {len(images)} given images have another ratio of height to width, such as"
            f" {others[0]:.2f}, than the input of {height} x {width} pixels (height x width), {height / width:.2f}:"
            " the export distorts them."
        )


def _active_references(
    references: ReferenceMemory | None, model: VCPCLIPModel, processor: VCPCLIPImageProcessor
) -> ReferenceMemory | None:
    """Return the memory, or `None` if it has no effect; raise a ValueError if its patches are not of whole images."""
    if references is None or not references.weight:
        return None
    references.check_tower(model)
    tiling = references.conditions.get("tiling")
    if tiling is not None:
        raise ValueError(
            f"The references were set for images in tiles ({tiling}), but an exported graph reads whole images. Set"
            " the references without tile_size, or export without them (references=None; --no-references)."
        )
    differing = references.differing_conditions(image_conditions(processor, None))
    if differing:
        raise ValueError(
            f"The references were set with other settings than those of the export: {'; '.join(differing)}. Set the"
            " references again with an image processor of these settings (`vcp-clip calibrate --references ...` has"
            " --resize-mode and --image-size), or export without them (references=None; --no-references)."
        )
    return references


def _with_references(model: VCPCLIPModel, references: ReferenceMemory | None) -> nn.Module:
    """Return the network that computes the maps of a float32 model: the model alone, or with a memory."""
    return model if references is None else ReferencedModel(model, references.to(model.device, torch.float32))


def _pictures(images: str | os.PathLike | Sequence[ImageLike] | None, count: int, first: int) -> list[Image.Image]:
    """Return at most `count` pictures, evenly spaced; generated ones start at number `first`."""
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


def _pixel_values(processor: VCPCLIPImageProcessor, pictures: list[Image.Image]) -> torch.Tensor:
    return processor(pictures, return_tensors="pt").pixel_values


@torch.no_grad()
def _model_maps(
    model: VCPCLIPModel,
    processor: VCPCLIPImageProcessor,
    pictures: list[Image.Image],
    references: ReferenceMemory | None,
) -> list[tuple[np.ndarray, float]]:
    """Return the map and the score of each picture, from the model and the image processor's post-processing."""
    training = model.training
    model.eval()
    network = _with_references(model, references)
    try:
        results = []
        for picture in pictures:
            outputs = network(_pixel_values(processor, [picture]).to(model.device))
            (result,) = processor.post_process_anomaly_segmentation(outputs)
            results.append((result["anomaly_map"].cpu().numpy(), result["score"]))
        return results
    finally:
        model.train(training)


def _runner(folder: Path, format: str) -> Runner:
    """Open an exported folder; return a function from pictures to maps and scores."""
    if format != "torch":
        segmenter = open_segmenter(folder, num_threads=torch.get_num_threads())
        return lambda pictures: segmenter.forward(segmenter.preprocess(pictures))
    module = torch.export.load(folder / FORMATS[format]).module()
    processor = VCPCLIPImageProcessor.from_pretrained(folder)

    @torch.no_grad()
    def run(pictures: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        maps, scores = module(_pixel_values(processor, pictures))
        return maps.numpy(), scores.numpy()

    return run


def _trace(graph: SegmentationGraph, image_size: tuple[int, int]) -> torch.export.ExportedProgram:
    example = torch.zeros(2, 3, *image_size)
    dynamic = {"pixel_values": {0: torch.export.Dim("batch", min=1, max=4096)}}
    with torch.no_grad(), _quiet():
        program = torch.export.export(graph, (example,), dynamic_shapes=dynamic)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine, which must not be exported
    return program


def _onnx_program(program: torch.export.ExportedProgram):
    names = {"input_names": ["pixel_values"], "output_names": ["anomaly_map", "score"]}
    with torch.no_grad(), _quiet():
        return torch.onnx.export(program, dynamo=True, verbose=False, **names)


def _save_onnx(onnx_program, file: Path) -> list[str]:
    """Write the program without paths of this machine; return the names of the matrix products in CLIP's blocks."""
    weights = sum(each.const_value.nbytes for each in onnx_program.model.graph.initializers.values())
    products = []
    for node in onnx_program.model.graph.all_nodes():
        if node.op_type in ("MatMul", "Gemm") and ".encoder.layers." in node.metadata_props.get("namespace", ""):
            products.append(node.name)
        node.metadata_props.clear()
        node.doc_string = None
    onnx_program.save(str(file), external_data=weights > _EXTERNAL_DATA_BYTES)
    return products


def _write_onnx(program: torch.export.ExportedProgram, file: Path) -> None:
    _save_onnx(_onnx_program(program), file)


def _write_int8(
    program: torch.export.ExportedProgram, file: Path, calibration: Sequence[torch.Tensor]
) -> dict[str, object]:
    """
    Quantize the matrix products with weights in CLIP's blocks, statically, with one scale for each output channel;
    return the scheme for `export.json`.
    """
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
            # the products of two activations in attention stay in float32
            extra_options={"MatMulConstBOnly": True},
        )
    return {"scheme": "static, uint8 activations, int8 weights per channel", "calibration_images": len(calibration)}


def _write_openvino(program: torch.export.ExportedProgram, file: Path) -> None:
    import openvino

    (example,), _ = program.example_inputs
    with _quiet():
        converted = openvino.convert_model(program)
    converted.inputs[0].get_tensor().set_names({"pixel_values"})
    # the conversion leaves all sizes open; the runtime plans ahead if only the number of images is open
    converted.reshape({"pixel_values": [-1, *example.shape[1:]]})
    for output, name in zip(converted.outputs, ("anomaly_map", "score"), strict=True):
        output.get_tensor().set_names({name})
    openvino.save_model(converted, file, compress_to_fp16=False)


def _write_torch(program: torch.export.ExportedProgram, file: Path) -> None:
    with _quiet():
        torch.export.save(program, file)


_WRITERS = {"onnx": _write_onnx, "openvino": _write_openvino, "torch": _write_torch}


def _runtime_modules() -> dict[str, str]:
    """Return names and texts of the modules that run an exported folder: `_RUNTIME` and all that it imports."""
    texts, pending = {}, [_RUNTIME]
    while pending:
        name = pending.pop()
        texts[name] = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        imported = {name for _, name in _RELATIVE_IMPORT.findall(texts[name])}
        pending += sorted(imported - texts.keys() - set(pending))
    return texts


def _write_runtime(folder: Path, format: str) -> None:
    """Copy the modules that run the folder; the copies import each other by plain names."""
    header = f"# From vcp_clip_hf {__version__}. SPDX-License-Identifier: Apache-2.0\n"
    for name, text in _runtime_modules().items():
        text = _RELATIVE_IMPORT.sub(r"\1from \2 import", text)
        (folder / f"{name}.py").write_text(header + text, encoding="utf-8")
    (folder / "requirements.txt").write_text(f"numpy>=1.26\npillow>=11.0\n{_REQUIREMENTS[format]}\n", encoding="utf-8")


def _facts(
    model: VCPCLIPModel, processor: VCPCLIPImageProcessor, format: str, references: ReferenceMemory | None
) -> dict[str, Any]:
    """Return the content of `export.json`, except for the scheme of int8 and the deviations."""
    config, scoring, size = model.config, processor.scoring(), [processor.size.height, processor.size.width]
    name = str(model.name_or_path or "")
    return {
        "format": format,
        "graph": FORMATS[format],
        "int8": None,
        "input": {"pixel_values": ["batch", 3, *size], "dtype": "float32"},
        "outputs": {"anomaly_map": ["batch", *size], "score": ["batch"], "dtype": "float32"},
        # built into the graph: the runtime refuses other values in preprocessor_config.json
        "settings": {
            "smoothing_sigma": scoring.smoothing_sigma,
            "score_mode": scoring.score_mode,
            "top_k_fraction": scoring.top_k_fraction,
            "resize_mode": "squash",
        },
        "prompts": {"normal": config.normal_prompts, "abnormal": config.abnormal_prompts},
        # compared with those of the calibration
        "prompt_input_ids": prompt_rows(config),
        "fusion": config.fusion_settings(references is not None),
        "references": references
        and {
            "identity": references.identity(),
            "pictures": len(references.pictures),
            "description": references.describe(),
        },
        "source": {
            # the path of a folder means nothing on another machine
            "model": Path(name).name if os.path.isdir(name) else name,
            "commit": getattr(config, "_commit_hash", None),
            "backbone": config.backbone_name_or_path,
            "backbone_revision": config.backbone_revision,
        },
        "versions": versions("torch", "transformers", *_PACKAGES[format]),
        "exported_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "license": (
            "The Python files are part of vcp_clip_hf, Apache-2.0. The graph holds the weights of the checkpoint and"
            " of its CLIP backbone and is under their licenses; look them up at the source."
        ),
    }


def _write_json(folder: Path, facts: dict) -> None:
    (folder / "export.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the messages that the exporters log for their own developers."""
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


def _is_plain(model: nn.Module) -> bool:
    return all(each.dtype == torch.float32 and each.device.type == "cpu" for each in model.parameters())
