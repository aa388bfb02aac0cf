"""A small model, with and without a memory of normal pictures, exported once for all tests of a process."""

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

from tests.common import HYBRID_VISION, TINY_TEXT, TINY_VISION, tiny_model, tiny_tokenizer
from vcp_clip_hf import VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.export import ExportReport, SegmentationGraph, _trace, export_model
from vcp_clip_hf.reference_pictures import build_memory, find_references
from vcp_clip_hf.references import ReferenceMemory


SMALL = {
    "text_config": {**TINY_TEXT, "num_hidden_layers": 2},
    "vision_config": {**TINY_VISION, "num_hidden_layers": 2},
}
SIZES = [(60, 80), (48, 48), (33, 120), (100, 40), (70, 70)]


def small_model(**fields) -> VCPCLIPModel:
    """Return `tiny_model` with two blocks in each tower: tracing takes half the time."""
    return tiny_model(**{**SMALL, **fields})


def small_processor(model: VCPCLIPModel, **settings) -> VCPCLIPImageProcessor:
    return VCPCLIPImageProcessor.for_model(model.config, **{"smoothing_sigma": 2.0, **settings})


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def pictures() -> list[Image.Image]:
    return [picture(*size, seed=index) for index, size in enumerate(SIZES)]


@lru_cache
def checkpoint() -> Path:
    """Return the folder of a checkpoint, which tests must not change."""
    folder = Path(tempfile.mkdtemp(prefix="vcp-clip-export-")) / "checkpoint"
    atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)
    torch.manual_seed(333)  # the same weights in every order of tests
    model = small_model()
    model.save_pretrained(folder)
    small_processor(model).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def memory(model: VCPCLIPModel, processor: VCPCLIPImageProcessor, **settings) -> ReferenceMemory:
    """Return a memory of three pictures, by default with all that changes its graph: a coreset, neighbors, layer 0."""
    settings = {"layers": [0, 1, 2], "neighborhood": 3, "max_patches": 70, "weight": 0.7, **settings}
    return build_memory(model, processor, [picture(50, 60, seed) for seed in range(80, 83)], **settings)


@lru_cache
def referenced_checkpoint() -> Path:
    """Return a folder with the same checkpoint and a memory, which tests must not change."""
    folder = shutil.copytree(checkpoint(), checkpoint().with_name("referenced"))
    memory(*load()).save(folder)
    return folder


def load() -> tuple[VCPCLIPModel, VCPCLIPImageProcessor]:
    """Load the checkpoint."""
    return VCPCLIPModel.from_pretrained(checkpoint()), VCPCLIPImageProcessor.from_pretrained(checkpoint())


@lru_cache
def traced():
    """Return the graph of the checkpoint; tracing takes seconds."""
    model, processor = load()
    return _trace(SegmentationGraph(model, processor.scoring(), (48, 48)), (48, 48))


@lru_cache
def traced_with_references():
    """Return the graph of the checkpoint with the memory."""
    model, processor = load()
    return _trace(SegmentationGraph(model, processor.scoring(), (48, 48), memory(model, processor)), (48, 48))


@lru_cache
def traced_with_a_stem():
    """Return a model with a stem and its branch, its processor, a memory of the stem's features, and the graph."""
    torch.manual_seed(333)
    vision = {**HYBRID_VISION, "num_hidden_layers": 2}
    fused = {"reference_distance": "relative", "reference_fusion": "logits"}
    model = small_model(vision_config=vision, reference_layers=["stem", 2], use_stem_branch=True, **fused)
    processor = small_processor(model)
    known = memory(model, processor, layers=None)
    return model, processor, known, _trace(SegmentationGraph(model, processor.scoring(), (48, 48), known), (48, 48))


@dataclass
class Exported:
    checkpoint: Path
    folder: Path
    report: ExportReport


@lru_cache
def exported(format: str = "onnx") -> Exported:
    """Return the checkpoint and its export, which tests must not change."""
    folder = checkpoint().with_name(format)
    with mock.patch("vcp_clip_hf.export._trace", lambda graph, image_size: traced()):
        report = export_model(*load(), folder, format, images=pictures())
    return Exported(checkpoint(), folder, report)


@lru_cache
def exported_with_references(format: str = "onnx") -> Exported:
    """Return the checkpoint with a memory and its export, which tests must not change."""
    folder = checkpoint().with_name(f"{format}-referenced")
    model, processor = VCPCLIPModel.from_pretrained(referenced_checkpoint()), load()[1]
    with mock.patch("vcp_clip_hf.export._trace", lambda graph, image_size: traced_with_references()):
        report = export_model(model, processor, folder, format, images=pictures(), references=find_references(model))
    return Exported(referenced_checkpoint(), folder, report)
