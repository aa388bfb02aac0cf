"""A checkpoint as an engine: the steps of the pipeline, with settings for each request."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import pipeline as make_pipeline

from .. import registration  # noqa: F401 -- the package imports it later if VCP_CLIP_IMPORT_ON_USE is set
from ..acceleration_settings import weights_and_settings
from ..checkpoint_folder import load_parts
from ..devices import check_device
from ..image_loading import load_nonzero
from ..pipeline_anomaly_segmentation import AnomalySegmentationPipeline
from ..pipeline_inputs import CallText
from ..references import ReferenceMemory
from ..run_settings import model_fingerprint
from ..thresholds import HIGHEST_SCORES, Thresholds
from .recipe import Recipe
from .request import SegmentationRequest
from .request_groups import answer_in_groups


__all__ = ["PipelineEngine"]

# Numbers of memories of references and of regions of interest that are kept
_MAX_MEMORIES = 8
_MAX_REGIONS = 16


@dataclass(frozen=True)
class _ForwardSettings:
    """What the forward pass of a request depends on: requests with equal settings go through the model together."""

    references: tuple[Path, ...]
    reference_weight: float | None
    score_mode: str | None
    shape: tuple[int, ...]


class PipelineEngine:
    """
    A [`SegmentationEngine`] of a checkpoint. Its results for one request are those of a call of the pipeline, bit by
    bit; in a batch, maps and scores differ from them by rounding, less than 1e-6 in float32.

    Args:
        pipeline ([`AnomalySegmentationPipeline`]): pipeline; use it only through this engine from now on. The settings
            of calls come from recipes, so the pipeline must have no defaults for them.

    Raises:
        ValueError: the pipeline has defaults for calls.
    """

    def __init__(self, pipeline: AnomalySegmentationPipeline):
        defaults = {**pipeline._preprocess_params, **pipeline._forward_params, **pipeline._postprocess_params}
        if defaults:
            raise ValueError(
                f"The pipeline has defaults for its calls ({', '.join(sorted(defaults))}). Make it without them: the"
                " settings of calls come from recipes."
            )
        self._pipeline, self._own_references = pipeline, pipeline.references
        self._busy = threading.RLock()
        self.input_range = pipeline.image_processor.input_range
        self._region = lru_cache(_MAX_REGIONS)(lambda path: load_nonzero(path)[1])
        self._memory = lru_cache(_MAX_MEMORIES)(self._make_memory)
        self._score_modes = [mode for mode in HIGHEST_SCORES if mode != "image_head" or self._has_image_scores()]
        self._fingerprint = model_fingerprint(pipeline.model)

    @classmethod
    def open(cls, model: str | Path, device: str | None = None, dtype: str = "auto") -> "PipelineEngine":
        """
        Load a checkpoint.

        Args:
            model (`str` or `Path`): folder or Hub repository.
            device (`str`, *optional*): device, such as `"cuda"`.
            dtype (`str`, *optional*, defaults to `"auto"`): data type of the weights, or `"float8"`, see
                [`weights_and_settings`].

        Raises:
            ValueError, OSError: the checkpoint cannot be read, or there is no such device.
        """
        check_device(device)
        weights, settings = weights_and_settings(dtype)
        parts = load_parts(model, dtype=weights)
        pipeline = make_pipeline(
            "anomaly-segmentation",
            model=parts.model,
            image_processor=parts.image_processor,
            tokenizer=parts.tokenizer,
            device=device,
            accelerate=settings,
        )
        return cls(pipeline)

    def segment(self, requests: Sequence[SegmentationRequest]) -> list[dict[str, Any] | Exception]:
        """Answer requests; see [`SegmentationEngine`]."""
        with self._busy:
            return answer_in_groups(requests, self._prepare, self._forward, self._finish)

    def describe(self) -> dict[str, Any]:
        """Return the facts about the model; see [`SegmentationEngine`]."""
        model, processor = self._pipeline.model, self._pipeline.image_processor
        source = str(model.name_or_path or type(model).__name__)
        return {
            # clients must not see the path of the folder
            "model": Path(source).name if Path(source).is_dir() else source,
            "fingerprint": self._fingerprint,
            "format": "checkpoint",
            "device": str(self._pipeline.device),
            "size": [processor.size.height, processor.size.width],
            "score_mode": processor.score_mode,
            "score_modes": self._score_modes,
            "threshold": processor.threshold,
            "image_threshold": processor.image_threshold,
            "input_range": self.input_range,
            "references": None if self._own_references is None else self._own_references.describe(),
            "takes_references": True,
        }

    def fits(self, recipe: Recipe) -> None:
        """
        Check that the model can follow a recipe.

        Raises:
            ValueError: the model does not compute this score, a value is out of range, or a weight has no references.
        """
        score_mode = recipe.score_mode or self._pipeline.image_processor.score_mode
        if score_mode not in self._score_modes:
            raise ValueError(
                f"score_mode={score_mode!r} is not possible: the model has no image head. Use one of"
                f" {', '.join(map(repr, self._score_modes))}."
            )
        if recipe.reference_weight and not recipe.references and self._own_references is None:
            raise ValueError(
                f"reference_weight={recipe.reference_weight!r} needs references: set normal images of the product"
                " first."
            )
        self._pipeline.image_processor.scoring(threshold=0, image_threshold=0, score_mode=score_mode).check_region(
            recipe.roi is not None
        )
        Thresholds.of(recipe.threshold, recipe.image_threshold, score_mode)

    def prepare(self, references: Sequence[Path]) -> None:
        """Compute the memory of references and keep it; see [`SegmentationEngine`]."""
        with self._busy:
            self._memory(tuple(references))

    def _make_memory(self, references: tuple[Path, ...]) -> ReferenceMemory:
        former = self._pipeline.references
        try:
            return self._pipeline.set_references(list(references))
        finally:
            self._pipeline.set_references(former)

    def _has_image_scores(self) -> bool:
        """Return whether the model scores whole images, found by a blank image, which also warms up the model."""
        size = self._pipeline.image_processor.size
        blank = Image.new("RGB", (size.width, size.height))
        try:
            self._pipeline(blank, score_mode="image_head", threshold=0.5, image_threshold=0.5)
        except ValueError:
            return False
        return True

    # --- the steps of a request -------------------------------------------------------------------------------------

    def _prepare(self, request: SegmentationRequest) -> tuple[_ForwardSettings, dict[str, Any]]:
        """Return the settings of the forward pass, and what the pipeline's own `preprocess` returns."""
        recipe = request.recipe
        self.fits(recipe)
        inside = None if request.roi is None else self._region(request.roi)
        inputs = self._pipeline.preprocess(request.image, roi_mask=inside)
        shape = tuple(inputs["pixel_values"].shape)
        return _ForwardSettings(request.references, recipe.reference_weight, recipe.score_mode, shape), inputs

    def _forward(self, settings: _ForwardSettings, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the results of the pipeline's own forward pass, without the thresholds of the requests."""
        self._use(self._memory(settings.references) if settings.references else self._own_references)
        batch = {name: [each[name] for each in inputs] for name in ("image", "size", "roi_mask", "error")}
        batch["pixel_values"] = torch.cat([each["pixel_values"] for each in inputs])
        # thresholds of each request follow in `_finish`
        placeholders = {"threshold": 1.0, "image_threshold": 1.0}
        given = {"score_mode": settings.score_mode, "reference_weight": settings.reference_weight, **placeholders}
        return self._pipeline.forward(batch, **given)["results"]

    def _finish(self, request: SegmentationRequest, inputs: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
        recipe, pipe = request.recipe, self._pipeline
        references = pipe.active_references(recipe.reference_weight)
        conditions = pipe.conditions(CallText(None, None), None, None, inputs["roi_mask"], references)
        thresholds = pipe.image_processor.scoring(
            {"region_of_interest": inputs["roi_mask"] is not None, **conditions},
            threshold=recipe.threshold,
            image_threshold=recipe.image_threshold,
            score_mode=recipe.score_mode,
        ).thresholds
        return pipe.postprocess(
            {"results": {**found, "threshold": thresholds.pixel, "image_threshold": thresholds.image}},
            min_area=recipe.min_area,
            fill_holes=recipe.fill_holes,
            heatmap=request.with_overlay,
            regions=request.with_regions,
        )

    def _use(self, memory: ReferenceMemory | None) -> None:
        if self._pipeline.references is not memory:
            self._pipeline.set_references(memory)
