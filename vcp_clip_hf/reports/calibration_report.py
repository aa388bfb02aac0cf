"""The report of `vcp-clip calibrate --report`: the threshold, what it guarantees, and the images that determine it."""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..calibration import describe_calibration
from ..calibration_record import CALIBRATION_FILE, read_calibration
from ..thresholds import TOLERANCE
from .calibration_curves import show_defect_rates, show_false_alarm_rates
from .charts import histogram, histogram_table, movable_threshold
from .figure_files import make_chart
from .parts import Facts, Gallery, KeyNumbers, Part, Section, Table, Text
from .prediction_pictures import failure_sentence, gallery_pictures
from .read_run import Run


__all__ = ["report_calibration"]

_NAMES = {0: "normal", 1: "anomalous"}
_SCORES_OF_NORMAL_IMAGES = (
    "The number of images at each score. The threshold should be to the right of most normal images, in a gap or in a"
    " thin tail. Two peaks, or single images far to the right, mean that some of these images differ from the others:"
    " look at them below. If the threshold is moved, the images are counted again; the checkpoint keeps the calibrated"
    " threshold."
)
_SCORES_OF_ALL_IMAGES = (
    "The number of images at each score. The larger the gap between normal images and images with defects, the less"
    " the exact threshold matters. If they overlap, no threshold is right for all of them. If the threshold is moved,"
    " the images are counted again; the checkpoint keeps the calibrated threshold."
)


def report_calibration(
    run: Run, page: Path, figures: Path | None = None, progress: bool = False
) -> tuple[str, str, list[Section]]:
    """
    Return title, subtitle and sections of the report of a calibration.

    Args:
        run ([`Run`]): folder of the record, or of the checkpoint that it lies beside.
        page (`Path`): HTML file that the sections are for.
        figures (`Path`, *optional*): folder for the charts as SVG and PDF files.
        progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar.

    Raises:
        FileNotFoundError, ValueError: the scores of the calibration were not kept, or cannot be read.
    """
    facts, records = read_calibration(run.folder)
    scored = [_with_verdict(each, facts["calibration"]["image"]["threshold"]) for each in records if "score" in each]
    rates = show_false_alarm_rates if facts["calibration"]["image"]["method"] == "conformal" else show_defect_rates
    sections = [
        _overview(facts, scored),
        _scores(facts, scored, figures),
        rates(facts["calibration"], _scores_by_label(scored), figures),
        *_galleries(facts, scored, page, progress),
        _all_images(scored),
        _left_out(facts, records),
        _settings(facts),
    ]
    checkpoint = Path(facts.get("checkpoint", run.folder))
    subtitle = (
        f"{len(scored):,} images set the thresholds of {checkpoint}, {facts['calibration']['image'].get('date')}"
    )
    return f"Calibration report: {checkpoint.name}", subtitle, [each for each in sections if each is not None]


def _with_verdict(record: dict[str, Any], threshold: float) -> dict[str, Any]:
    flagged = record["score"] >= threshold - TOLERANCE
    return {**record, "truth": _NAMES[record["label"]], "label": _NAMES[int(flagged)]}


def _scores_by_label(scored: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Return the scores of the normal images and, if there are any, of the anomalous ones."""
    scores = {name: [each["score"] for each in scored if each["truth"] == name] for name in _NAMES.values()}
    return {name: values for name, values in scores.items() if values}


def _overview(facts: dict[str, Any], scored: Sequence[dict[str, Any]]) -> Section:
    image, pixel = facts["calibration"]["image"], facts["calibration"].get("pixel")
    normal = [each for each in scored if each["truth"] == "normal"]
    anomalous = [each for each in scored if each["truth"] == "anomalous"]
    flagged = sum(each["label"] == "anomalous" for each in normal)
    numbers = [(image["threshold"], "threshold of images")]
    if image.get("false_alarm_rate") is not None:
        numbers.append((f"{image['false_alarm_rate']:.2%}", "false alarms requested"))
        numbers.append((f"{image['false_alarm_bound']:.2%}", "guaranteed: at most this part of new normal images"))
    numbers.append((f"{flagged} of {len(normal)}", "of these normal images are above it"))
    if anomalous:
        missed = sum(each["label"] == "normal" for each in anomalous)
        numbers += [(f"{missed} of {len(anomalous)}", "images with defects are below it"), (image["f1"], "F1")]
    if pixel is not None:
        numbers.append((pixel["threshold"], "threshold of masks"))
    parts: list[Part] = [KeyNumbers(numbers)]
    for line in describe_calibration(facts["calibration"]):
        parts.append(Text(line, "warning" if "cannot be guaranteed" in line else "plain"))
    if image.get("false_alarm_rate") is not None:
        parts.append(
            Text(
                "The guarantee holds on average over calibrations, if the images to come are like these: same product,"
                " camera, light and position. It does not say how many defects are found.",
                "note",
            )
        )
    else:
        parts.append(
            Text(
                "The threshold has the best F1 on these images, so F1 on new images will be lower. It depends on how"
                " many of the images have defects, and does not guarantee a false-alarm rate.",
                "note",
            )
        )
    return Section("Overview", parts=parts)


def _scores(facts: dict[str, Any], scored: Sequence[dict[str, Any]], figures: Path | None) -> Section:
    groups, threshold = _scores_by_label(scored), facts["calibration"]["image"]["threshold"]
    drawn = histogram(groups, threshold=threshold)
    spans = "; ".join(
        f"{len(each)} {name} images from {min(each):.4g} to {max(each):.4g}" for name, each in groups.items()
    )
    chart = make_chart(
        drawn,
        "calibration-scores",
        f"Histogram of the scores: {spans}; threshold {threshold:.4g}.",
        figures,
        table=histogram_table(groups, threshold),
        threshold=movable_threshold(drawn, threshold, groups),
    )
    return Section("Scores", _SCORES_OF_ALL_IMAGES if len(groups) > 1 else _SCORES_OF_NORMAL_IMAGES, [chart])


def _galleries(facts: dict[str, Any], scored: Sequence[dict[str, Any]], page: Path, progress: bool) -> list[Section]:
    """Show the normal images with the highest scores, and the images with defects with the lowest ones."""
    sections = []
    for truth, title, explanation in (
        (
            "normal",
            "Normal images with the highest scores",
            "Are they really normal? A single overlooked defect raises the threshold, so that similar defects are"
            " missed. If an image has a defect, remove it and calibrate again. If the maps are bright in the"
            " background or at reflections, a region of interest or references may help.",
        ),
        (
            "anomalous",
            "Images with defects, lowest scores",
            "These defects are missed first. If the map is dark at the defect, no threshold helps: try other prompts,"
            " larger images or tiles, or references.",
        ),
    ):
        kept = [each for each in scored if each["truth"] == truth and "map" in each]
        kept.sort(key=lambda each: each["score"], reverse=truth == "normal")
        if kept:
            pictures = gallery_pictures(kept, facts["folder"], page, progress=progress)
            sections.append(Section(title, explanation, [Gallery(pictures, controls=False, threshold="threshold")]))
    return sections


def _all_images(scored: Sequence[dict[str, Any]]) -> Section:
    ordered = sorted(scored, key=lambda each: -each["score"])
    folder = _common_folder([each["image"] for each in scored])
    columns = ["Image", "Given as", "Score", "At the threshold"]
    rows = [[each["image"].removeprefix(folder), each["truth"], each["score"], each["label"]] for each in ordered]
    shown = Table(columns, rows, f"Images in {folder}" if folder else "", sortable=True)
    return Section("All images", "Every image that the threshold was computed from.", [shown])


def _common_folder(paths: Sequence[str]) -> str:
    """Return the folder that all paths share, with a slash at its end; "" if it is the root or there is none."""
    folders = [path.split("/")[:-1] for path in paths]
    common = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))]
    return "/".join([*common, ""]) if len(common) > 1 else ""


def _left_out(facts: dict[str, Any], records: Sequence[dict[str, Any]]) -> Section | None:
    """Show the images and sources that were not used, with the reasons."""
    rows = [
        [each["image"], each["left_out"] if "left_out" in each else failure_sentence(each)]
        for each in records
        if "left_out" in each or "error" in each
    ]
    rows += [[source, reason] for source, reason in facts.get("problems", [])]
    if not rows:
        return None
    explanation = "These were not used in the calibration, and the guarantee does not include them."
    return Section("Left out", explanation, [Table(["Image or source", "Reason"], rows)])


def _settings(facts: dict[str, Any]) -> Section:
    explanation = (
        "The thresholds are valid for these settings; with other settings, results have no label and no mask. With"
        " another dtype, which moves maps slightly, the thresholds are used and a warning is shown."
    )
    measured_with = facts["calibration"].get("settings", {})
    pairs = [(name, "not set" if value is None else str(value)) for name, value in measured_with.items()]
    pairs += [("checkpoint", facts.get("checkpoint")), ("vcp-clip-hf", facts.get("version"))]
    note = Text(
        f"The checkpoint keeps the thresholds only. The scores and maps for this report are in {facts['folder']}"
        f" ({CALIBRATION_FILE}); they are not published with the checkpoint."
    )
    return Section("Settings", explanation, [Facts(pairs), note])
