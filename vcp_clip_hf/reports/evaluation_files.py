"""Read the output folder of `vcp-clip evaluate`: results, and the details of `--report` if there are some."""

import base64
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..evaluation_details import CURVES, DETAILS, HISTOGRAMS, IMAGES
from ..evaluation_report import EvaluationReport
from ..metrics.pixel_histograms import PixelHistograms
from .parts import View
from .thumbnails import placeholder


__all__ = ["VIEWS", "EvaluationFiles", "read_evaluation", "views_of"]

_NO_DETAILS = "This folder has no curves, scores and images; vcp-clip evaluate --report writes them with the results."
_OTHER_DETAILS = (
    f"The folder {DETAILS!r} belongs to another evaluation than results.json, so curves, scores and images are left"
    " out. Evaluate again with --report."
)
# View of a picture -> its file in `images.jsonl`
VIEWS = {"Image": "image", "Ground truth": "truth", "Map": "map", "Overlay": "overlay"}


@dataclass(frozen=True)
class EvaluationFiles:
    """
    The files of an evaluation.

    Args:
        folder (`Path`): output folder.
        report ([`EvaluationReport`]): its results.
        datasets (`dict`): dataset -> curves, values and what was left out, see `evaluation_details.py`.
        images (`list[dict]`): facts about each image.
        histograms ([`PixelHistograms`], *optional*): scores of the pixels of each image, in the order of `images`.
        missing (`str`): sentence that says why there are no details; "" if there are.
    """

    folder: Path
    report: EvaluationReport
    datasets: dict[str, Any] = field(default_factory=dict)
    images: list[dict[str, Any]] = field(default_factory=list)
    histograms: PixelHistograms | None = None
    missing: str = ""

    def of_product(self, dataset: str, product: str) -> list[dict[str, Any]]:
        """Return the images of one product."""
        return [each for each in self.images if (each["dataset"], each["product"]) == (dataset, product)]


def read_evaluation(folder: Path) -> EvaluationFiles:
    """
    Read the results of an evaluation, and its details.

    Args:
        folder (`Path`): output folder of `vcp-clip evaluate`.

    Returns:
        [`EvaluationFiles`]; without details if there are none, or if they belong to other results.

    Raises:
        ValueError: a file is damaged.
    """
    file = folder / "results.json"
    try:
        report = EvaluationReport.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a file of results ({error!r}). Evaluate again.") from error
    details = folder / DETAILS
    if not (details / CURVES).is_file():
        return EvaluationFiles(folder, report, missing=_NO_DETAILS)
    try:
        datasets = json.loads((details / CURVES).read_text(encoding="utf-8"))["datasets"]
        images = list(map(json.loads, (details / IMAGES).read_text(encoding="utf-8").splitlines()))
        histograms = PixelHistograms.load(details / HISTOGRAMS)
        fits = _fit(datasets, report)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"The details in {details} are damaged ({error!r}). Evaluate again with --report.") from error
    if not fits:
        return EvaluationFiles(folder, report, missing=_OTHER_DETAILS)
    usable = histograms.usable and len(histograms) == len(images)
    return EvaluationFiles(folder, report, datasets, images, histograms if usable else None)


def _fit(datasets: Mapping[str, Any], report: EvaluationReport) -> bool:
    """Return whether details belong to results: the same images, and without draws of references the same values."""
    if list(datasets) != list(report.results):
        return False
    for dataset, result in report.results.items():
        products = datasets[dataset]["products"]
        if {name: each["counts"] for name, each in products.items()} != result["counts"]:
            return False
        if "spread" not in result and any(
            _with_nan(each["values"]) != _with_nan(result["per_product"][name]) for name, each in products.items()
        ):
            return False
    return True


def _with_nan(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None or math.isnan(value) else value for name, value in values.items()}


def views_of(folder: Path, image: Mapping[str, Any]) -> list[View]:
    """
    Return the pictures of an image.

    Args:
        folder (`Path`): output folder of the evaluation.
        image (`Mapping`): facts about the image.

    Returns:
        `list[View]`: a placeholder for a file that is missing or is not WebP; empty for an image without pictures.
    """
    details, files = folder / DETAILS, image.get("pictures", {})
    return [View(name, _data_uri(details, files[key])) for name, key in VIEWS.items() if key in files]


def _data_uri(details: Path, name: str) -> str:
    # a name from a file must not lead out of the folder
    path = details / "pictures" / Path(name).name
    try:
        content = path.read_bytes()
    except OSError:
        return placeholder("file not found")
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        return placeholder("file cannot be read")
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"
