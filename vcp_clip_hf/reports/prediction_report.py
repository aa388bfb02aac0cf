"""The report of `vcp-clip predict`, from its output folder alone."""

import datetime
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..calibration import describe_calibration
from ..prediction_records import RECORDS, record_files
from ..run_settings import RUN_FILE, RunSettings
from ..thresholds import TOLERANCE, Thresholds, differing_dtypes
from .charts import as_svg, histogram, histogram_table, movable_threshold, save_figure
from .parts import Chart, Facts, Gallery, KeyNumbers, Part, Section, Table, Text, Value
from .prediction_pictures import failure_sentence, gallery_pictures
from .read_run import Run
from .usable_records import read_usable


__all__ = ["report_prediction"]

# Maximum numbers of images and of rows in tables; with more, the page would open slowly
_MOST_PICTURES, _MOST_FAILURES, _MOST_FOLDERS = 2500, 500, 100
_GROUP = "images"
_HOW_TO_READ = (
    "Each bar is the number of images with a score in its interval. Images with a score at or above the threshold are"
    " labeled anomalous. Normal images usually form a peak on the left; a threshold in the gap to the right of this"
    " peak separates them from the other images. Move the threshold to see how the verdicts change; the files of the"
    " run are not changed. The pixel threshold, and therefore the masks, stay"
    " fixed."
)
_MIN_AREA = (
    "Regions below {} pixels were dropped from the masks. An image whose regions were all dropped is normal, even if"
    " its score is at or above the threshold. This applies to {} of this run, which count as normal at every"
    " threshold. Below the threshold of the run, there may be further such images; they count as anomalous here."
)
_TOGETHER = (
    "The images of this run were judged together: each score depends on all of them, and scores of different sets are"
    " not comparable. The calibration of the checkpoint does not apply."
)


@dataclass
class _Run:
    """The content of an output folder."""

    folder: Path
    records: list[dict[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)
    num_damaged: int = 0

    @classmethod
    def read(cls, folder: Path) -> "_Run":
        stored = RunSettings.read(folder) or RunSettings({})
        records, num_damaged = read_usable(folder)
        run = cls(folder, records, stored.values, stored.context, num_damaged)
        if not run.records:
            raise ValueError(f"{folder} has no record of an image in {RECORDS}. Run `vcp-clip predict` first.")
        return run

    @property
    def failed(self) -> list[dict[str, Any]]:
        return [record for record in self.records if "error" in record]

    @property
    def judged(self) -> list[dict[str, Any]]:
        """Return the records with a score, the highest first."""
        judged = [record for record in self.records if "error" not in record]
        return sorted(judged, key=lambda record: -record["score"])

    @property
    def thresholds(self) -> Thresholds:
        """Return the limits for masks and labels, which all images of a run share."""
        first = next(iter(self.judged), self.settings)  # without a result, those that were set
        return Thresholds(first.get("threshold"), first.get("image_threshold"))

    def count(self, label: str | None) -> int:
        return sum(record["label"] == label for record in self.judged)

    @property
    def dropped(self) -> frozenset[str]:
        """Return the images that are normal although their score is above the threshold."""
        limits = self.thresholds
        return frozenset(
            record["image"]
            for record in self.judged
            # scores of records have six digits: near the threshold, the label decides
            if record["label"] == "normal" and record["score"] > (limits.image or 0) + TOLERANCE
        )


def report_prediction(
    run: Run, page: Path, figures: Path | None = None, progress: bool = False
) -> tuple[str, str, list[Section]]:
    """
    Return title, subtitle and sections of the report of a run of `predict`.

    Args:
        run ([`Run`]): the run.
        page (`Path`): HTML file that the sections are for.
        figures (`Path`, *optional*): folder for the charts as SVG and PDF files.
        progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar.

    Raises:
        ValueError: the folder has no record.
    """
    read = _Run.read(run.folder)
    sections = [_overview(read)]
    if read.judged:
        sections.append(_scores(read, figures))
    sections.append(_pictures(read, page, progress))
    if read.failed:
        sections.append(_failures(read))
    sections += [_promise(read), _settings(read)]
    return f"Inspection report: {run.folder.resolve().name}", _subtitle(read), sections


def _subtitle(run: _Run) -> str:
    written = max(file.stat().st_mtime for file in record_files(run.folder))
    date = datetime.datetime.fromtimestamp(written)
    model = run.settings.get("model", "an unknown model")
    return f"{_images(len(run.records))}, as of {date:%Y-%m-%d %H:%M}, model {model}"


def _images(number: int) -> str:
    return f"{number:,} image{'' if number == 1 else 's'}"


def _overview(run: _Run) -> Section:
    numbers: list[tuple[Value, str]] = [(f"{len(run.records):,}", "images in this run")]
    if run.thresholds.image is not None:
        numbers += [(f"{run.count('anomalous'):,}", "anomalous"), (f"{run.count('normal'):,}", "normal")]
    elif run.judged:
        numbers.append((f"{len(run.judged):,}", "scored, without verdict"))
    numbers.append((f"{len(run.failed):,}", "failed"))
    parts = [KeyNumbers(numbers)]
    if run.judged and run.thresholds.image is None:
        parts.append(Text("This run had no image threshold, so images have scores but no verdicts.", "note"))
    if "together" in run.settings:
        parts.append(Text(_TOGETHER, "note"))
    if "references" in run.settings:
        weight = run.settings["references"].get("weight")
        parts.append(
            Text(f"Each image was also compared with reference images of the product (weight {weight:g}).", "note")
        )
    if run.failed:
        text = f"{_images(len(run.failed))} could not be judged and must not be treated as normal; see Failures."
        parts.append(Text(text, "warning"))
    if run.num_damaged:
        records = f"{run.num_damaged:,} record{'' if run.num_damaged == 1 else 's'}"
        text = f"{records} could not be read, so the images are missing in this report."
        parts.append(Text(text, "warning"))
    folders = _by_folder(run)
    if 1 < len(folders.rows) <= _MOST_FOLDERS:
        parts.append(folders)
    return Section("Overview", "", parts)


def _by_folder(run: _Run) -> Table:
    """Count verdicts by the folder of the images."""
    folders: dict[str, list[dict[str, Any]]] = {}
    for record in run.records:
        folders.setdefault(os.path.dirname(record["name"]), []).append(record)
    rows = []
    for folder, records in sorted(folders.items()):
        labels = [record.get("label") for record in records]
        scores = [record["score"] for record in records if "score" in record]
        failed = len(records) - len(scores)
        counts = [len(records), labels.count("anomalous"), labels.count("normal"), failed]
        rows.append([folder or "(no folder)", *counts, max(scores, default=None)])
    columns = ["Folder", "Images", "Anomalous", "Normal", "Failed", "Highest score"]
    return Table(columns, rows, "The verdicts of the run by folder", sortable=True)


def _scores(run: _Run, figures: Path | None) -> Section:
    scores, limit, dropped = [record["score"] for record in run.judged], run.thresholds.image, run.dropped
    if figures is not None:
        save_figure(histogram({_GROUP: scores}, threshold=limit), figures, "scores")
    # without a threshold, the line starts above all scores
    start = max(scores) + 0.01 if limit is None else limit
    figure = histogram({_GROUP: scores}, threshold=start, threshold_name="threshold" if limit else "threshold to try")
    words = {} if limit is not None else {"start": "This run had no image threshold. Move the slider to try one:"}
    moved = movable_threshold(
        figure,
        start,
        {_GROUP: [record["score"] for record in run.judged if record["image"] not in dropped]},
        {_GROUP: len(dropped)},
        {_GROUP: run.count("anomalous")},
        **words,
    )
    table = histogram_table({_GROUP: scores}, start)
    parts: list[Part] = [Chart(as_svg(figure), _described(scores, limit), table=table, threshold=moved)]
    min_area = run.settings.get("min_area", 0)
    if min_area > 1 and limit is not None:
        parts.append(Text(_MIN_AREA.format(min_area, _images(len(dropped)) if dropped else "no image"), "note"))
    return Section(
        "Scores and threshold", f"{_HOW_TO_READ} Measured on the {_images(len(scores))} of this run.", parts
    )


def _described(scores: Sequence[float], limit: float | None) -> str:
    """Return a description of the histogram, for readers who cannot see it."""
    low, middle, high = min(scores), statistics.median(scores), max(scores)
    text = f"Histogram of {len(scores)} scores from {low:.4f} to {high:.4f}, median {middle:.4f}"
    return f"{text}." if limit is None else f"{text}; image threshold {limit:.4f}."


def _pictures(run: _Run, page: Path, progress: bool) -> Section:
    shown = [*run.judged, *run.failed][:_MOST_PICTURES]
    caption = (
        "Click an image for all its views and for links to the full files. Overlays and maps have one fixed color"
        " scale, from dark (0) to bright yellow (1); the cyan line is the border of the mask."
    )
    if len(shown) < len(run.records):
        caption += (
            f" The {len(shown):,} of {len(run.records):,} images with the highest scores are shown; predictions.csv"
            " lists all."
        )
    pictures = gallery_pictures(shown, run.folder, page, run.context.get("folder"), run.dropped, progress)
    gallery = Gallery(
        pictures,
        caption,
        threshold="threshold",
        product_title="Folder",
        first_view="Overlay",
        order="Highest score first",
    )
    return Section("Images", "", [gallery])


def _failures(run: _Run) -> Section:
    rows = [[record["image"], failure_sentence(record)] for record in run.failed[:_MOST_FAILURES]]
    explanation = "These images have no result. Running the same command again tries them once more."
    if len(rows) < len(run.failed):
        explanation += f" The first {len(rows)} of {len(run.failed):,} are shown; predictions.csv lists all."
    return Section("Failures", explanation, [Table(["Image", "Problem"], rows, sortable=True)])


def _promise(run: _Run) -> Section:
    """Show the origin of the thresholds, and the rates that their calibration guarantees."""
    limits = run.thresholds
    facts = Facts([("Image threshold", limits.image), ("Pixel threshold", limits.pixel)])
    calibration = run.context.get("calibration")
    if not calibration:
        text = (
            "Nothing is guaranteed: the thresholds of this run do not come from a calibration. `vcp-clip calibrate`"
            " computes thresholds with a known false-alarm rate from normal images."
        )
        return Section("What the thresholds guarantee", "", [facts, Text(text)])
    parts: list[Part] = [facts, *(Text(line) for line in describe_calibration(calibration))]
    differing = [
        f"the {what} threshold of this run is {_number(used)}, not the calibrated {_number(stored)}"
        for what, used, stored in _used_and_calibrated(limits, calibration)
        if used is None or abs(used - stored) > TOLERANCE
    ]
    if differing:
        parts.append(Text(f"This does not hold for this run: {'; '.join(differing)}.", "warning"))
    dtypes = differing_dtypes(calibration, run.settings)
    if dtypes:
        text = f"The thresholds were measured in {dtypes[0]}, and this run computed in {dtypes[1]}."
        parts.append(Text(f"{text} The rates are therefore approximate.", "warning"))
    explanation = (
        "The calibration of the checkpoint, and what it guarantees for normal images like those that it was computed"
        " from. It does not say how many defects are found."
    )
    return Section("What the thresholds guarantee", explanation, parts)


def _used_and_calibrated(
    limits: Thresholds, calibration: Mapping[str, Any]
) -> Iterator[tuple[str, float | None, float]]:
    for what, used in (("image", limits.image), ("pixel", limits.pixel)):
        if what in calibration:
            yield what, used, calibration[what]["threshold"]


def _number(value: float | None) -> str:
    return "not set" if value is None else f"{value:.4g}"


def _settings(run: _Run) -> Section:
    if not run.settings:
        return Section("Settings", "", [Text(f"{RUN_FILE} is missing or damaged, so the settings are not known.")])
    pairs = [(name, _plain(value)) for name, value in run.settings.items()]
    explanation = (
        f"All settings that affect the results, from {RUN_FILE}. The hexadecimal number after the model is its"
        " fingerprint: a hash of its configuration and weights."
    )
    return Section("Settings", explanation, [Facts(pairs)])


def _plain(value: Any) -> Value:
    """Return a setting in a readable form."""
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {_plain(each)}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(str(_plain(each)) for each in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
