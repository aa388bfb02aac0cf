"""The report of several runs of `predict`: images side by side, and where verdicts, scores and masks differ."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from ..run_settings import RunSettings
from .charts import GROUP_COLORS, as_svg, chart_style, new_figure, plain_text
from .figure_files import FigureFolder
from .parts import Cell, Chart, Part, PictureGrid, Section, Table, Text, Value
from .prediction_pictures import gallery_pictures
from .read_run import Run
from .several_runs import MOST_PICTURES, MOST_ROWS, named_runs, runs_and_settings
from .thumbnails import UnreadableError, read_mask
from .usable_records import read_usable


if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["mask_overlap", "report_predictions"]


@dataclass(frozen=True)
class _PredictRun:
    """Records by image, and settings."""

    name: str
    folder: Path
    records: dict[str, dict[str, Any]]
    settings: RunSettings

    @property
    def started_in(self) -> str | None:
        """Return the folder that relative paths of images start from."""
        return self.settings.context.get("folder")

    @property
    def judged(self) -> dict[str, dict[str, Any]]:
        return {image: record for image, record in self.records.items() if "error" not in record}


def report_predictions(
    runs: Sequence[Run], page: Path, figures: Path | None = None, progress: bool = False
) -> tuple[str, str, list[Section]]:
    """
    Return title, subtitle and sections of the report of several runs of `predict`.

    Args:
        runs (`Sequence[Run]`): runs; each is compared with the first.
        page (`Path`): HTML file that the sections are for.
        figures (`Path`, *optional*): folder for the charts as SVG and PDF files.
        progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar.

    Raises:
        ValueError: a run is given twice.
    """
    folders = [run.folder for run in runs]
    read = [_read(name, folder) for name, folder in zip(named_runs(folders), folders, strict=True)]
    names, figure_folder = [run.name for run in read], FigureFolder(figures)
    common = [image for image in read[0].judged if all(image in run.judged for run in read[1:])]
    sections = [
        Section("Runs", "", [*runs_and_settings(names, folders, [run.settings.values for run in read]), _counts(read)])
    ]
    title = f"Comparison of {len(read)} runs of predict"
    if not common:
        text = "The runs have no image in common: they are compared by the paths of the images."
        return title, "", [*sections, Section("Differences", "", [Text(text, "warning")])]
    overlaps = {image: _overlaps(read, image) for image in tqdm(common, "masks", disable=not progress, unit="image")}
    sections.append(_verdicts(read, common, overlaps))
    sections.append(_scores(read, common, figure_folder))
    sections.append(_pictures(read, common, overlaps, page, progress))
    return title, f"{len(common):,} images with a result in every run", sections


def _read(name: str, folder: Path) -> _PredictRun:
    settings = RunSettings.read(folder) or RunSettings({})
    started_in = settings.context.get("folder") or ""
    records = {os.path.join(started_in, record["image"]): record for record in read_usable(folder)[0]}
    return _PredictRun(name, folder, records, settings)


def _counts(runs: Sequence[_PredictRun]) -> Table:
    everywhere = set.intersection(*(set(run.records) for run in runs))
    rows = []
    for run in runs:
        labels = [record.get("label") for record in run.judged.values()]
        failed = len(run.records) - len(run.judged)
        rest = len(set(run.records) - everywhere)
        rows.append([run.name, len(run.records), labels.count("anomalous"), labels.count("normal"), failed, rest])
    columns = ["run", "images", "anomalous", "normal", "failed", "not in all runs"]
    return Table(columns, rows, "Images of each run; those that are not in all runs are not compared")


def mask_overlap(first: np.ndarray, other: np.ndarray) -> float:
    """
    Return the intersection over union of two masks.

    Args:
        first, other (`np.ndarray` of shape `(height, width)`): masks of one image, bool.

    Returns:
        `float`: 0 to 1; 1 for two empty masks, and NaN for masks of different sizes.
    """
    if first.shape != other.shape:
        return math.nan
    union = np.count_nonzero(first | other)
    return np.count_nonzero(first & other) / union if union else 1.0


def _overlaps(runs: Sequence[_PredictRun], image: str) -> list[float]:
    """Return the overlap of each further run's mask with that of the first; NaN without a mask."""
    masks = [_mask(run, image) for run in runs]
    return [math.nan if mask is None or masks[0] is None else mask_overlap(masks[0], mask) for mask in masks[1:]]


def _mask(run: _PredictRun, image: str) -> np.ndarray | None:
    record = run.records[image]
    if "mask" not in record:
        return None
    try:
        return read_mask(run.folder / record["mask"])
    except UnreadableError:
        return None


# --- verdicts -------------------------------------------------------------------------------------------------------


def _verdicts(runs: Sequence[_PredictRun], common: Sequence[str], overlaps: Mapping[str, list[float]]) -> Section:
    first, *others = runs
    summary = []
    for place, run in enumerate(others):
        pairs = [(first.records[image]["label"], run.records[image]["label"]) for image in common]
        values = [overlaps[image][place] for image in common if not math.isnan(overlaps[image][place])]
        counts = [
            pairs.count(pair)
            for pair in (
                *(("anomalous", "anomalous"), ("anomalous", "normal")),
                *(("normal", "anomalous"), ("normal", "normal")),
            )
        ]
        summary.append([run.name, *counts, sum(values) / len(values) if values else None, len(values)])
    columns = ["run", "both anomalous", f"only {first.name}", "only this run", "both normal", "mask IoU", "masks"]
    caption = "Verdicts compared with the first run: number of images, and the mean overlap (IoU) of the masks"
    parts: list[Part] = [Table(columns, summary, caption)]
    differing = [image for image in common if _differs(runs, image)]
    if any(run.records[image]["label"] is None for run in runs for image in common):
        parts.append(Text("Images without a verdict, because a run had no image threshold, are not counted.", "note"))
    if differing:
        lines = [_line(runs, image, overlaps[image]) for image in differing[:MOST_ROWS]]
        ious = [f"mask IoU, {run.name}" for run in others]
        shown = "" if len(lines) == len(differing) else f"{len(lines)} of "
        text = f"{shown}{len(differing)} images with different verdicts, with scores"
        parts.append(Table(["image", *(run.name for run in runs), *ious], lines, text, sortable=True))
    else:
        parts.append(Text("No image has different verdicts."))
    explanation = (
        "The verdicts of each run are those with its own thresholds. IoU is the area that both masks mark, divided by"
        " the area that at least one of them marks; for two empty masks, it is 1."
    )
    return Section("Where verdicts differ", explanation, parts)


def _differs(runs: Sequence[_PredictRun], image: str) -> bool:
    return len({run.records[image]["label"] for run in runs} - {None}) > 1


def _line(runs: Sequence[_PredictRun], image: str, overlaps: Sequence[float]) -> list[Value]:
    cells: list[Value] = [runs[0].records[image]["image"]]
    for run in runs:
        record = run.records[image]
        cells.append(Cell(_words(record), record["score"]))
    return [*cells, *(None if math.isnan(each) else each for each in overlaps)]


def _words(record: Mapping[str, Any]) -> str:
    return f"{record['score']:.4f} {record['label'] or ''}".strip()


# --- scores and pictures --------------------------------------------------------------------------------------------


def _scores(runs: Sequence[_PredictRun], common: Sequence[str], figures: FigureFolder) -> Section:
    first, *others = runs
    parts: list[Part] = []
    for run in others:
        points = np.array([[each.records[image]["score"] for each in (first, run)] for image in common])
        differing = np.array([_differs((first, run), image) for image in common])
        figure = _scatter(points, differing, first.name, run.name)
        figures.save(figure, "scores", run.name)
        alt = f"Scores of {len(common)} images in {first.name} and {run.name}; {int(differing.sum())} other verdicts"
        caption = f"Each mark is an image. {int(differing.sum())} of {len(common)} have another verdict in {run.name}."
        parts.append(Chart(as_svg(figure), alt, caption))
    text = "Scores of different checkpoints have different scales; only the order of the images can be compared."
    return Section("Scores", text, parts)


def _scatter(points: np.ndarray, differing: np.ndarray, first: str, other: str) -> "Figure":
    """Draw the scores of two runs, (images, 2), with a mark of another kind where the verdicts differ."""
    groups = (("same verdict", ~differing, "o", "normal"), ("other verdict", differing, "^", "anomalous"))
    with chart_style():
        figure, ((axes,),) = new_figure("one", 80)
        axes.grid(True, axis="both")
        for label, chosen, marker, color in groups:
            if chosen.any():
                axes.scatter(*points[chosen].T, s=12, marker=marker, color=GROUP_COLORS[color], label=label, alpha=0.7)
        axes.set_xlabel(plain_text(f"Score in {first}"))
        axes.set_ylabel(plain_text(f"Score in {other}"))
        figure.legend(loc="outside upper center", ncols=2)
    return figure


def _pictures(
    runs: Sequence[_PredictRun],
    common: Sequence[str],
    overlaps: Mapping[str, list[float]],
    page: Path,
    progress: bool,
) -> Section:
    def order(image: str) -> tuple[bool, float]:
        known = [each for each in overlaps[image] if not math.isnan(each)]
        scores = [run.records[image]["score"] for run in runs]
        return not _differs(runs, image), min(known) if known else min(scores) - max(scores)

    chosen = sorted(common, key=order)[:MOST_PICTURES]
    columns = [
        gallery_pictures([run.records[image] for image in chosen], run.folder, page, run.started_in, progress=progress)
        for run in runs
    ]
    rows = []
    for image, pictures in zip(chosen, zip(*columns, strict=True), strict=True):
        views = [{view.name: view.thumbnail for view in picture.views} for picture in pictures]
        shown = [each.get("Overlay") or each.get("Map") or each.get("Mask", "") for each in views]
        cells = [(source, _words(run.records[image])) for source, run in zip(shown, runs, strict=True)]
        rows.append((runs[0].records[image]["image"], [(views[0].get("Image", ""), ""), *cells]))
    grid = PictureGrid(["image", *(run.name for run in runs)], rows, "The same images in all runs")
    text = (
        f"{len(rows)} of {len(common)} images: first those with different verdicts, then those whose masks overlap"
        " least or, without masks, whose scores differ most."
    )
    return Section("Side by side", text, [grid])
