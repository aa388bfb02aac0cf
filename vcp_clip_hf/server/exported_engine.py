"""An exported folder as an engine, without torch and transformers."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..exported_segmenter import ExportedSegmenter
from ..image_loading import load_nonzero
from ..region_of_interest import load_region_of_interest
from ..thresholds import Thresholds
from .recipe import Recipe
from .request import SegmentationRequest
from .request_groups import answer_in_groups


__all__ = ["ExportedEngine"]

# Regions of interest that are kept in memory
_MAX_REGIONS = 16


class ExportedEngine:
    """
    A [`SegmentationEngine`] of an exported model.

    Args:
        segmenter ([`ExportedSegmenter`]): runtime of the exported folder.
    """

    def __init__(self, segmenter: ExportedSegmenter):
        self._segmenter = segmenter
        self.input_range = segmenter.settings.get("input_range")
        self._region = lru_cache(_MAX_REGIONS)(lambda path: load_nonzero(path)[1])
        self._fingerprint = _graph_hash(segmenter)

    @classmethod
    def open(
        cls, model: str | Path, num_threads: int | None = None, providers: Sequence[str] | None = None
    ) -> "ExportedEngine":
        """
        Open an exported folder.

        Args:
            model, num_threads, providers: arguments of [`ExportedSegmenter`], which names the errors.
        """
        return cls(ExportedSegmenter(model, num_threads, providers))

    def segment(self, requests: Sequence[SegmentationRequest]) -> list[dict[str, Any] | Exception]:
        """Answer requests; see [`SegmentationEngine`]. All of them go through the graph together."""
        return answer_in_groups(requests, self._prepare, self._forward, self._finish)

    def describe(self) -> dict[str, Any]:
        """Return the facts about the model; see [`SegmentationEngine`]."""
        segmenter = self._segmenter
        references = segmenter.export.get("references") or {}
        return {
            "model": segmenter.export.get("source", {}).get("model") or segmenter.folder.name,
            "fingerprint": self._fingerprint,
            "format": segmenter.format,
            "device": "cpu",
            "size": list(segmenter.size),
            "score_mode": segmenter.settings["score_mode"],
            "score_modes": [segmenter.settings["score_mode"]],
            "threshold": segmenter.threshold,
            "image_threshold": segmenter.image_threshold,
            "input_range": self.input_range,
            "references": references.get("description"),
            "takes_references": False,
        }

    def fits(self, recipe: Recipe) -> None:
        """
        Check that the graph can follow a recipe.

        Raises:
            ValueError: the recipe has a setting that is built into the graph, or a value out of range.
        """
        built_in = self._segmenter.settings["score_mode"]
        if recipe.score_mode not in (None, built_in):
            raise ValueError(
                f"score_mode={recipe.score_mode!r} is not possible: {built_in!r} is built into the exported graph."
                " Leave it out, or serve the checkpoint."
            )
        for name, value in (("references", recipe.references), ("reference_weight", recipe.reference_weight)):
            if value not in (None, ()):
                raise ValueError(
                    f"{name} cannot be changed: references are built into the exported graph, or it has none. Leave it"
                    " out, or serve the checkpoint."
                )
        self._segmenter.check_region(recipe.roi is not None)
        Thresholds.of(recipe.threshold, recipe.image_threshold, built_in)

    def prepare(self, references: Sequence[Path]) -> None:
        """Raise a ValueError: an exported graph takes no references; see [`SegmentationEngine`]."""
        if references:
            raise ValueError("An exported graph takes no references. Serve the checkpoint.")

    # --- the steps of a request -------------------------------------------------------------------------------------

    def _prepare(self, request: SegmentationRequest) -> tuple[None, tuple[np.ndarray, np.ndarray | None]]:
        """Return one key for all requests; pixel values `(1, 3, height, width)` and region of interest of this one."""
        self.fits(request.recipe)
        inside = None
        if request.roi is not None:
            inside = load_region_of_interest(self._region(request.roi), (request.image.height, request.image.width))
        return None, (self._segmenter.preprocess([request.image]), inside)

    def _forward(self, key: None, inputs: list[tuple[np.ndarray, np.ndarray | None]]) -> list[tuple]:
        maps, scores = self._segmenter.forward(np.concatenate([pixel_values for pixel_values, _ in inputs]))
        return list(zip(maps, scores, strict=True))

    def _finish(
        self, request: SegmentationRequest, inputs: tuple[np.ndarray, np.ndarray | None], outputs: tuple
    ) -> dict[str, Any]:
        (_, inside), recipe = inputs, request.recipe
        return self._segmenter.result(
            request.image,
            inside,
            *outputs,
            self._segmenter.thresholds_of(
                recipe.threshold, recipe.image_threshold, region_of_interest=inside is not None
            ),
            min_area=recipe.min_area,
            fill_holes=recipe.fill_holes,
            heatmap=request.with_overlay,
            regions=request.with_regions,
        )


def _graph_hash(segmenter: ExportedSegmenter) -> str:
    """Return a hash of the graph and its weights."""
    digest = hashlib.sha256()
    for path in sorted(segmenter.folder.glob(f"{Path(segmenter.export['graph']).stem}*")):
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()
