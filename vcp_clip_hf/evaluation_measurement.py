"""Measure batches of an evaluation: metrics, pictures for sheets, and details for a report."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers.utils import ModelOutput

from .anomaly_scoring import AnomalyScoring, gaussian_smooth
from .evaluation_details import EvaluationDetails
from .evaluation_report import EvaluationProtocol
from .evaluation_sheets import shown_example
from .finished_maps import of_group
from .host_copy import as_array
from .image_processing_vcp_clip import VCPCLIPImageProcessor
from .launched_batch import LaunchedBatch
from .metrics import AnomalySegmentationEvaluator
from .modeling_vcp_clip import VCPCLIPOutput
from .read_ahead import read_ahead


__all__ = ["JudgedBatch", "Measured", "measure_batches", "new_evaluator"]


# A batch, the model's outputs for it, and a function that waits for them and returns the seconds that they took
JudgedBatch = tuple[dict[str, Any], VCPCLIPOutput, Callable[[], float]]


@dataclass
class Measured:
    """
    Measurements of one dataset by this process.

    Args:
        evaluator ([`AnomalySegmentationEvaluator`]): its images; after `gathered`, those of all processes.
        gallery (`list[dict]`): examples for sheets.
        details ([`EvaluationDetails`], *optional*): what a report shows beyond the tables.
        parts (`dict[str, list[tuple[float, float]]]`): product -> text score and map maximum of each image, where the
            published score of a method depends on all images of the product.
        seconds (`float`): time for the model, without reading images and without metrics.
        num_images (`int`): number of images that the model got, in all processes.
        num_references (`int`): number of images that were left out because they are references.
        with_references (`bool`): whether images were compared with references.
        result (`dict`, *optional*): metrics over all processes, after `gathered`.
    """

    evaluator: AnomalySegmentationEvaluator
    gallery: list[dict[str, Any]] = field(default_factory=list)
    details: EvaluationDetails | None = None
    parts: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    seconds: float = 0.0
    num_images: int = 0
    num_references: int = 0
    with_references: bool = False
    result: dict[str, Any] | None = None

    def add(self, other: "Measured") -> None:
        """Add what was measured of other products."""
        self.evaluator.merge(other.evaluator)
        self.gallery += other.gallery
        if self.details is not None:
            self.details.merge(other.details)
        self.parts.update(other.parts)
        self.seconds += other.seconds
        self.num_images += other.num_images
        self.num_references += other.num_references
        self.with_references |= other.with_references


def new_evaluator(protocol: EvaluationProtocol) -> AnomalySegmentationEvaluator:
    """Return an evaluator with the metrics of a protocol."""
    return AnomalySegmentationEvaluator(
        metrics=_with_threshold(protocol.metrics), mode=protocol.mode, skip_undefined=protocol.skip_undefined
    )


@torch.no_grad()
def measure_batches(
    judged: Iterable[JudgedBatch],
    image_processor: VCPCLIPImageProcessor,
    protocol: EvaluationProtocol,
    details: EvaluationDetails | None,
    ahead: int = 0,
) -> Measured:
    """
    Evaluate the batches of this process.

    Args:
        judged (iterable of `tuple`): each batch with its outputs, and a function that returns the seconds they took.
        image_processor, protocol, details: what scores, how, and where details are collected.
        ahead (`int`, *optional*, defaults to 0): number of batches that the device computes meanwhile.
    """
    measured = Measured(new_evaluator(protocol), details=details)
    settings = {name: getattr(protocol, name) for name in ("smoothing_sigma", "score_mode", "top_k_fraction")}
    scoring = image_processor.scoring(**settings)
    scored = (_scored(each, image_processor, protocol, settings, scoring, measured) for each in judged)
    for batch, outputs, seconds, launched in read_ahead(scored, ahead):
        measured.seconds += seconds()
        if launched is None:
            continue
        results = launched.results()
        measured.evaluator.add(
            [as_array(result["anomaly_map"]) for result in results],
            batch["mask"],
            batch["product"],
            image_scores=[result["score"] for result in results],
            labels=batch["label"],
            image_ids=batch["image_id"],
        )
        for product, result in zip(batch["product"], results, strict=True):
            if "text_score" in result:
                measured.parts.setdefault(product, []).append((result["text_score"], result["maximum"]))
        if details is not None:
            details.add(batch, results, partial(_whole_maps, image_processor, settings, batch, outputs))
        if any(batch["record"]):
            full = image_processor.post_process_anomaly_segmentation(outputs, batch["size"], **settings)
            measured.gallery += [
                _shown(record, whole["anomaly_map"].cpu().numpy(), result["score"])
                for record, whole, result in zip(batch["record"], full, results, strict=True)
                if record is not None
            ]
    return measured


def _scored(
    judged: JudgedBatch,
    image_processor: VCPCLIPImageProcessor,
    protocol: EvaluationProtocol,
    settings: Mapping[str, Any],
    scoring: AnomalyScoring,
    measured: Measured,
) -> tuple[dict[str, Any], ModelOutput, Callable[[], float], LaunchedBatch | None]:
    """Leave references out of a batch, and start its post-processing; `None` if no image remains."""
    batch, outputs, seconds = judged
    kept = [index for index, is_reference in enumerate(batch["is_reference"]) if not is_reference]
    if len(kept) < len(batch["label"]):
        measured.num_references += len(batch["label"]) - len(kept)
        if measured.details is not None:
            _note_references(measured.details, batch)
        batch, outputs = _some_of(batch, outputs, kept)
    if not kept:
        return batch, outputs, seconds, None
    sizes = batch["size"] if protocol.native_size else None
    finished = image_processor.finish_maps(outputs, sizes, **settings)
    stacks = {"score": finished.scores, "anomaly_map": finished.maps}
    if outputs.get("text_scores") is not None and scoring.score_mode == "image_head":
        maxima = gaussian_smooth(outputs.anomaly_map.float(), scoring.smoothing_sigma).flatten(1).amax(dim=1)
        for name, values in (("text_score", outputs["text_scores"]), ("maximum", maxima)):
            stacks[name] = [of_group(values, group) for group in finished.groups]
    return batch, outputs, seconds, LaunchedBatch(finished.groups, stacks, [{}] * len(kept))


def _note_references(details: EvaluationDetails, batch: Mapping[str, Any]) -> None:
    rows = zip(batch["product"], batch["image_id"], batch["is_reference"], strict=True)
    for product, image_id, is_reference in rows:
        if is_reference:
            details.leave_out(product, image_id.rpartition("#")[0], "equal to a reference, pixel by pixel")


def _whole_maps(
    image_processor: VCPCLIPImageProcessor,
    settings: Mapping[str, Any],
    batch: dict[str, Any],
    outputs: ModelOutput,
    positions: list[int],
) -> list[np.ndarray]:
    """Return the maps of some examples of a batch, at the sizes of their images."""
    some, of_some = _some_of(batch, outputs, positions)
    results = image_processor.post_process_anomaly_segmentation(of_some, some["size"], **settings)
    return [result["anomaly_map"].cpu().numpy() for result in results]


def _some_of(batch: dict[str, Any], outputs: ModelOutput, kept: list[int]) -> tuple[dict[str, Any], ModelOutput]:
    """Return the examples of a batch with the given indices, and their outputs."""
    outputs = copy.copy(outputs)
    for name, value in outputs.items():
        if torch.is_tensor(value) and len(value) == len(batch["label"]):
            outputs[name] = value[kept]
    chosen = {
        name: values[kept] if torch.is_tensor(values) else [values[index] for index in kept]
        for name, values in batch.items()
    }
    return chosen, outputs


def _shown(record: dict[str, Any], anomaly_map: np.ndarray, score: float) -> dict[str, Any]:
    facts = {name: record[name] for name in ("product", "image_id", "label", "index")}
    return shown_example(
        record["image"], record["mask"], anomaly_map, score=score, defect=record.get("defect"), **facts
    )


def _with_threshold(metrics: Sequence[str]) -> list[str]:
    """Add the threshold with the best F1, which sheets use for their masks."""
    return [*metrics, *(name for name in ("pixel_f1_threshold",) if name not in metrics)]
