"""The report of `vcp-clip evaluate`, from its output folder alone."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation_details import KINDS
from ..evaluation_report import METRIC_TITLES, EvaluationReport, shown_value
from .accuracy_charts import CURVE_CHARTS, curve_chart, score_chart
from .evaluation_files import EvaluationFiles, read_evaluation, views_of
from .figure_files import FigureFolder
from .parts import Beside, Cell, Facts, Gallery, KeyNumbers, Part, Picture, Section, Table, Text, Value
from .read_run import Run


__all__ = ["HIGHER_IS_BETTER", "mean_numbers", "report_evaluation", "settings_facts"]

HIGHER_IS_BETTER = "Higher is better. Metrics of images say so in their names; all others are about pixels."
# Kind of a mistake -> the view that its tiles show
_FIRST_VIEW = {"miss": "Ground truth", "false_alarm": "Overlay", "localization": "Ground truth"}
_TITLES = {"miss": "Misses", "false_alarm": "False alarms", "localization": "Worst localized defects"}


def report_evaluation(
    run: Run, page: Path, figures: Path | None = None, progress: bool = False
) -> tuple[str, str, list[Section]]:
    """
    Return title, subtitle and sections of the report of a run of `evaluate`.

    Args:
        run ([`Run`]): the run.
        page (`Path`): HTML file that the sections are for.
        figures (`Path`, *optional*): folder for the charts as SVG and PDF files.
        progress (`bool`, *optional*, defaults to `False`): no effect: the pictures are small already.

    Raises:
        ValueError: a file of the run is damaged.
    """
    read, folder = read_evaluation(run.folder), FigureFolder(figures)
    report = read.report
    sections = [_results(read)]
    for dataset, facts in read.datasets.items():
        for product in facts["products"]:
            number = len(sections)
            sections.append(_product(read, dataset, product, f"threshold-{number}", folder))
    sections += [_left_out(read), Section("Settings", parts=[Facts(settings_facts(report))])]
    names = " and ".join(report.results)
    return f"Evaluation on {names}", str(report.settings.get("model", "")), sections


# --- results --------------------------------------------------------------------------------------------------------


def _results(read: EvaluationFiles) -> Section:
    report = read.report
    notes = [Text(f"In percent; {report.protocol.description}.")]
    if "references" in report.settings:
        notes.append(Text(report.describe_references()))
    paper = report.with_paper()
    if paper:
        notes.append(Text("Columns “paper”: the paper's results for VCP-CLIP, measured by its authors on their data."))
    width = _widest_bound(report)
    if width is not None:
        notes.append(
            Text(f"Estimates from histograms of the scores; exact values are at most {100 * width:.2g} points away.")
        )
    if read.missing:
        notes.append(Text(read.missing, "note"))
    return Section(
        "Results",
        HIGHER_IS_BETTER,
        [*mean_numbers(report), _table(report, paper), *notes],
    )


def mean_numbers(report: EvaluationReport) -> list[Part]:
    """Return the means over products in large type, for a report about one dataset."""
    means = [row for row in report.rows() if row["product"] == "mean"]
    if len(means) != 1:
        return []
    (row,) = means
    return [KeyNumbers([(shown_value(row, name), METRIC_TITLES[name]) for name in report.metrics])]


def _table(report: EvaluationReport, paper: Mapping[tuple[str, str], Mapping[str, float]]) -> Table:
    quoted = [name for name in report.metrics if any(name in numbers for numbers in paper.values())]
    several = len(report.results) > 1
    columns = [*(["dataset"] if several else []), "product", "images"]
    align = ["left"] * (len(columns) - 1) + ["right"]
    for name in report.metrics:
        columns += [METRIC_TITLES[name], *([f"{METRIC_TITLES[name]}, paper"] if name in quoted else [])]
    rows = []
    for row in report.rows():
        names = [row["dataset"], _product_name(row, report)]
        cells: list[Value] = [*names[not several :], row["images"]]
        for name in report.metrics:
            cells.append(Cell(shown_value(row, name), None if math.isnan(row[name]) else row[name]))
            if name in quoted:
                value = paper.get((row["dataset"], row["product"]), {}).get(name)
                cells.append(None if value is None else Cell(f"{value:.1f}", value))
        rows.append(cells)
    align += ["right"] * (len(columns) - len(align))
    return Table(columns, rows, "Results of each product, and their means", sortable=True, align=align)


def _product_name(row: Mapping[str, Any], report: EvaluationReport) -> str:
    if row["product"] != "mean":
        return row["product"]
    count = len(report.results[row["dataset"]]["per_product"])
    return f"mean of {count} product{'' if count == 1 else 's'}"


def _widest_bound(report: EvaluationReport) -> float | None:
    """Return the largest distance between a value of the table and an end of its bounds; `None` for exact values."""
    distances = [
        abs(end - values[name])
        for result in report.results.values()
        for product, values in result["per_product"].items()
        for name in report.metrics
        for end in result.get("bounds", {}).get("per_product", {}).get(product, {}).get(name, ())
        if end is not None and not math.isnan(end - values[name])
    ]
    return max(distances, default=None)


# --- products -------------------------------------------------------------------------------------------------------


def _product(read: EvaluationFiles, dataset: str, product: str, name: str, figures: FigureFolder) -> Section:
    facts = read.datasets[dataset]
    own, images = facts["products"][product], read.of_product(dataset, product)
    charts = [
        curve_chart(kind, {"": (own["curves"], own["values"])}, facts["fpr_limit"], figures, dataset, product)
        for kind in CURVE_CHARTS
    ]
    parts: list[Part] = [Text(facts["note"], "note")] if facts["note"] else []
    if any(charts):
        parts.append(Beside([chart for chart in charts if chart is not None]))
    else:
        parts.append(Text("There are no curves: " + "; ".join(sorted(set(own["reasons"].values()))) + "."))
    if images:
        parts.append(score_chart(images, name, figures, dataset, product))
    parts += [_gallery(read, images, kind, name) for kind in KINDS]
    title = product if len(read.datasets) == 1 else f"{dataset}: {product}"
    counts = own["counts"]
    normal = counts["images"] - counts["anomalous_images"]
    text = f"{counts['images']} images: {normal} normal, {counts['anomalous_images']} anomalous."
    return Section(title, text, [part for part in parts if part is not None])


def _gallery(read: EvaluationFiles, images: Sequence[Mapping[str, Any]], kind: str, name: str) -> Gallery | None:
    """Return the pictures of one kind of mistake, the worst first; `None` if there are none."""
    chosen = sorted((each for each in images if kind in each.get("worst", {})), key=lambda each: each["worst"][kind])
    if not chosen:
        return None
    pictures = [_picture(read.folder, image) for image in chosen]
    caption = f"{_TITLES[kind]}: the {len(chosen)} {KINDS[kind]}, the worst first."
    return Gallery(pictures, caption, controls=False, threshold=name, first_view=_FIRST_VIEW[kind])


def _picture(folder: Path, image: Mapping[str, Any]) -> Picture:
    facts = [("Kind", image["defect"])] if image.get("defect") else []
    if image.get("pixel_ap") is not None:
        facts.append(("Pixel AP of the image", f"{100 * image['pixel_ap']:.1f}"))
    return Picture(
        title=image["image_id"],
        views=views_of(folder, image),
        score=image["score"],
        truth="anomalous" if image["label"] else "normal",
        product=image["product"],
        facts=facts,
    )


# --- what was left out, and settings --------------------------------------------------------------------------------


def _left_out(read: EvaluationFiles) -> Section:
    report = read.report
    rows = [
        [dataset, each["product"], each["image_id"], each["reason"]]
        for dataset, facts in read.datasets.items()
        for each in facts["left_out"]
    ]
    for dataset, result in report.results.items():
        rows += [
            [dataset, product, METRIC_TITLES[name], f"undefined: {why}"]
            for product, reasons in result["reasons"].items()
            for name, why in reasons.items()
            if product != "mean" and name in report.metrics
        ]
        rows += [
            [
                dataset,
                product,
                f"images: {counts['unmasked_images']}",
                "anomalous without a mask: only in image metrics",
            ]
            for product, counts in result["counts"].items()
            if counts.get("unmasked_images")
        ]
    text = "Images, files and metrics that are not in the results, and the reasons."
    if not rows:
        return Section("Left out", text, [Text("Nothing was left out.")])
    return Section("Left out", text, [Table(["dataset", "product", "what", "why"], rows, sortable=True)])


def settings_facts(report: EvaluationReport) -> list[tuple[str, Value]]:
    """Return the settings of an evaluation as names and values; parts of a setting have names of their own."""
    protocol = {name: value for name, value in vars(report.protocol).items() if value is not None}
    values = {**report.settings, "protocol": protocol}
    pairs: list[tuple[str, Value]] = []
    for name, value in values.items():
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        pairs += [(f"{name}: {part}" if part else name, _shown(each)) for part, each in parts]
    return pairs


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)) and all(isinstance(each, (str, int, float)) for each in value):
        return ", ".join(map(str, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value, default=str)
