"""The report of several evaluations: tables, differences with intervals, curves, and images judged differently."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation_report import METRIC_TITLES, shown_value
from .accuracy_charts import CURVE_CHARTS, best_threshold, curve_chart
from .accuracy_differences import COVERAGE, RESAMPLES, SEED, Difference, ImageKey, differences, keyed_images
from .accuracy_report import HIGHER_IS_BETTER
from .charts import LINE_COLORS
from .evaluation_files import EvaluationFiles, read_evaluation, views_of
from .figure_files import FigureFolder
from .parts import Beside, Cell, Part, PictureGrid, Section, Table, Text, Value
from .read_run import Run
from .several_runs import MOST_PICTURES, MOST_ROWS, named_runs, runs_and_settings


__all__ = ["Published", "report_evaluations"]

_Runs = Mapping[str, EvaluationFiles]
# Name of a run, dataset and product -> metric -> published value in percent
Published = Mapping[tuple[str, str, str], Mapping[str, float]]


def report_evaluations(
    runs: Sequence[Run],
    page: Path,
    figures: Path | None = None,
    progress: bool = False,
    published: tuple[Published, Sequence[str]] | None = None,
) -> tuple[str, str, list[Section]]:
    """
    Return title, subtitle and sections of the report of several runs of `evaluate`.

    Args:
        runs (`Sequence[Run]`): runs; differences are those from the first.
        page (`Path`): HTML file that the sections are for.
        figures (`Path`, *optional*): folder for the charts as SVG and PDF files.
        progress (`bool`, *optional*, defaults to `False`): no effect.
        published (`tuple`, *optional*): published numbers and their sources; default: those of VCP-CLIP's paper.

    Raises:
        ValueError: a file of a run is damaged, or a run is given twice.
    """
    names = named_runs([run.folder for run in runs])
    read = {name: read_evaluation(run.folder) for name, run in zip(names, runs, strict=True)}
    folder = FigureFolder(figures)
    settings = [{**each.report.settings, "protocol": vars(each.report.protocol)} for each in read.values()]
    sections = [
        Section("Runs", "", runs_and_settings(names, [run.folder for run in runs], settings)),
        _results(read, *(published or _quoted_paper(read))),
    ]
    detailed = {name: each for name, each in read.items() if not each.missing}
    lacking = [Text(f"{name}: {each.missing}", "note") for name, each in read.items() if each.missing]
    if len(detailed) < 2:
        sections.append(
            Section("Differences", "", [*lacking, Text("Details are compared only if at least two runs have them.")])
        )
        return _title(names), "", sections
    common = _common_images(detailed)
    sections.append(_differences(detailed, common, lacking))
    if common:
        sections += [*_curves(detailed, folder), _verdicts(detailed, common), _pictures(detailed, common)]
    return _title(names), "", sections


def _title(names: Sequence[str]) -> str:
    return f"Comparison of {len(names)} evaluations"


def _results(runs: _Runs, published: Published, sources: Sequence[str]) -> Section:
    metrics = list(dict.fromkeys(name for run in runs.values() for name in run.report.metrics))
    quoted = [metric for metric in metrics if any(metric in numbers for numbers in published.values())]
    columns = ["dataset", "product", "run", "images"]
    for metric in metrics:
        columns += [METRIC_TITLES[metric], *([f"{METRIC_TITLES[metric]}, published"] if metric in quoted else [])]
    rows: list[list[Value]] = []
    for name, run in runs.items():
        for row in run.report.rows():
            numbers = published.get((name, row["dataset"], row["product"]), {})
            cells: list[Value] = [row["dataset"], row["product"], name, row["images"]]
            for metric in metrics:
                cells.append(_measured(row, metric))
                if metric in quoted:
                    cells.append(Cell(f"{numbers[metric]:.1f}", numbers[metric]) if metric in numbers else None)
            rows.append(cells)
    places = {tuple(row[:2]): place for place, row in reversed(list(enumerate(rows)))}
    rows.sort(key=lambda row: places[tuple(row[:2])])
    align = ["left"] * 3 + ["right"] * (len(columns) - 3)
    caption = "Results of all runs, in percent, each on all of its images"
    parts: list[Part] = [Table(columns, rows, caption, sortable=True, align=align)]
    parts += [Text(f"Published: {source}, measured by its authors on their data.") for source in sources]
    return Section("Results", HIGHER_IS_BETTER, parts)


def _measured(row: Mapping[str, Any], metric: str) -> Value:
    if metric not in row:
        return None
    return Cell(shown_value(row, metric), None if math.isnan(row[metric]) else row[metric])


def _quoted_paper(runs: _Runs) -> tuple[Published, list[str]]:
    numbers = {(name, *row): values for name, run in runs.items() for row, values in run.report.with_paper().items()}
    return numbers, ["VCP-CLIP's paper"] if numbers else []


# --- differences ----------------------------------------------------------------------------------------------------


def _common_images(runs: _Runs) -> list[ImageKey]:
    """Return the images that all runs have, with the same label."""
    keyed = [(run, keyed_images(run)) for run in runs.values()]
    return [
        key
        for key in keyed[0][1]
        if all(key in keys for _, keys in keyed) and len({run.images[keys[key]]["label"] for run, keys in keyed}) == 1
    ]


def _differences(runs: _Runs, common: Sequence[ImageKey], lacking: Sequence[Part]) -> Section:
    first, *others = runs
    rest = {name: len(run.images) - len(common) for name, run in runs.items()}
    parts: list[Part] = [*lacking]
    if not common:
        parts.append(
            Text("The runs have no image in common: datasets, products and names of images must be equal.", "warning")
        )
        return Section("Differences", "", parts)
    if any(rest.values()):
        counts = "; ".join(f"{name}: {count}" for name, count in rest.items())
        parts.append(Text(f"{len(common)} images are in all runs. Images that are not: {counts}.", "note"))
    found = [(each, name) for name in others for each in differences(runs[first], runs[name])]
    found.sort(key=lambda pair: pair[0].product != "mean")  # means first
    rows = [_row(each, name) for each, name in found]
    columns = ["dataset", "product", "run", "metric", "images", first, "this run", "difference", "interval", "clear"]
    align = ["left"] * 4 + ["right"] * 5 + ["left"]
    parts.append(Table(columns, rows, f"Differences from {first}, in percentage points", sortable=True, align=align))
    if any(each.metric == "pixel_pro_200" for each, _ in found):
        parts.append(Text("PRO of 200 steps depends on the extreme scores of all images and has no interval."))
    if any(each.estimated for each, _ in found):
        parts.append(
            Text("≈: estimated from histograms of the pixels' scores, because the runs have different images.")
        )
    notes = [
        f"{name}: {facts['note']}" for name, run in runs.items() for facts in run.datasets.values() if facts["note"]
    ]
    parts += [Text(note) for note in dict.fromkeys(notes)]
    explanation = (
        "Differences on the images that both runs have. The interval shows how much a difference depends on the choice"
        f" of images: {RESAMPLES} times, images were drawn with replacement within each product and label (seed"
        f" {SEED}, the same draws for both runs), and the interval covers the middle {100 * COVERAGE:.0f} % of the"
        " differences. A difference is clear if the interval does not contain 0. With fewer than about 20 normal or 20"
        " anomalous images, an interval is imprecise. It does not cover other products or other seeds of a training."
    )
    return Section("Differences", explanation, parts)


def _row(each: Difference, name: str) -> list[Value]:
    about = "≈ " if each.estimated else ""
    interval = None if each.low is None else f"{100 * each.low:+.1f} to {100 * each.high:+.1f}"
    return [
        each.dataset,
        each.product,
        name,
        METRIC_TITLES[each.metric],
        each.images,
        Cell(f"{about}{100 * each.first:.1f}", each.first),
        Cell(f"{about}{100 * each.other:.1f}", each.other),
        Cell(f"{100 * each.value:+.1f}", each.value),
        interval,
        {None: "no interval", True: "yes", False: "no"}[each.is_clear],
    ]


# --- curves ---------------------------------------------------------------------------------------------------------


def _curves(runs: _Runs, figures: FigureFolder) -> list[Section]:
    datasets = next(iter(runs.values())).datasets
    sections = []
    for dataset, product in [(name, each) for name, facts in datasets.items() for each in facts["products"]]:
        charts = [
            curve_chart(kind, some, datasets[dataset]["fpr_limit"], figures, dataset, product, level=level)
            for level in ("pixel", "image")
            for kind in CURVE_CHARTS
            for some in _parts_of(_curves_and_values(runs, dataset, product), len(LINE_COLORS))
        ]
        charts = [chart for chart in charts if chart is not None]
        if charts:
            text = f"{dataset}, each run on all of its images."
            sections.append(Section(f"Curves: {product}", text, [Beside(charts)]))
    return sections


def _curves_and_values(runs: _Runs, dataset: str, product: str) -> dict[str, tuple[dict, dict]]:
    """Return the curves and the metrics of each run that has the product."""
    found = {}
    for name, run in runs.items():
        facts = run.datasets.get(dataset, {"products": {}})["products"].get(product)
        if facts is not None:
            found[name] = (facts["curves"], facts["values"])
    return found


def _parts_of(values: Mapping[str, Any], size: int) -> list[dict[str, Any]]:
    """Divide a mapping into parts that are not larger than a chart can show."""
    pairs = list(values.items())
    return [dict(pairs[start : start + size]) for start in range(0, len(pairs), size)]


# --- single images --------------------------------------------------------------------------------------------------


def _judged(runs: _Runs, common: Sequence[ImageKey]) -> dict[ImageKey, list[tuple[float, bool | None]]]:
    """Return score and verdict of each run for each common image; verdicts are at the product's best F1."""
    found: dict[ImageKey, list[tuple[float, bool | None]]] = {key: [] for key in common}
    for run in runs.values():
        keyed = keyed_images(run)
        thresholds = {}
        for key in common:
            if key[:2] not in thresholds:
                best = best_threshold(run.of_product(*key[:2]))
                thresholds[key[:2]] = None if best is None else best[1]
            score, limit = run.images[keyed[key]]["score"], thresholds[key[:2]]
            found[key].append((score, None if limit is None else score >= limit))
    return found


def _verdicts(runs: _Runs, common: Sequence[ImageKey]) -> Section:
    judged, labels = _judged(runs, common), _labels(runs, common)
    first, *others = runs
    rows = []
    for place, name in enumerate(others, 1):
        pairs = [
            (judged[key][0][1] == labels[key], judged[key][place][1] == labels[key])
            for key in common
            if judged[key][0][1] is not None and judged[key][place][1] is not None
        ]
        counts = [pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))]
        rows.append([name, *counts])
    summary = Table(
        ["run", "both right", f"only {first} right", "only this run right", "both wrong"],
        rows,
        "Images by verdict, compared with the first run",
    )
    differing = [key for key in common if len({verdict for _, verdict in judged[key]}) > 1]
    lines = [
        [*key[:3], "anomalous" if labels[key] else "normal", *(_verdict(*each, labels[key]) for each in judged[key])]
        for key in differing[:MOST_ROWS]
    ]
    parts: list[Part] = [summary]
    if lines:
        shown = (
            f"The {len(lines)} images" if len(lines) == len(differing) else f"{len(lines)} of {len(differing)} images"
        )
        parts.append(
            Table(
                ["dataset", "product", "image", "truth", *runs],
                lines,
                f"{shown} with different verdicts, with scores",
                sortable=True,
            )
        )
    else:
        parts.append(Text("All runs have the same verdict for every image."))
    return Section(
        "Where verdicts differ",
        "Scores of different checkpoints have different scales. So the verdicts of each run are at its own image"
        " threshold with the best F1 of the product. These are the best verdicts that a run can have.",
        parts,
    )


def _labels(runs: _Runs, common: Sequence[ImageKey]) -> dict[ImageKey, bool]:
    first = next(iter(runs.values()))
    keyed = keyed_images(first)
    return {key: bool(first.images[keyed[key]]["label"]) for key in common}


def _verdict(score: float, verdict: bool | None, label: bool) -> Value:
    if verdict is None:
        return score
    words = {(True, True): "found", (True, False): "false alarm", (False, True): "missed", (False, False): "normal"}
    return Cell(f"{score:.4g} {words[verdict, label]}", score)


def _pictures(runs: _Runs, common: Sequence[ImageKey]) -> Section:
    judged, keyed = _judged(runs, common), {name: keyed_images(run) for name, run in runs.items()}
    images = {key: {name: run.images[keyed[name][key]] for name, run in runs.items()} for key in common}
    having = [key for key in common if any("pictures" in image for image in images[key].values())]

    def order(key: ImageKey) -> tuple[bool, int]:
        same = len({verdict for _, verdict in judged[key]}) == 1
        return same, -sum("pictures" in image for image in images[key].values())

    chosen = sorted(having, key=order)[:MOST_PICTURES]
    rows = [_grid_row(runs, key, images[key], judged[key]) for key in chosen]
    columns = ["image", "ground truth", *runs]
    grid = PictureGrid(
        columns, rows, "The same images in all runs: overlays, with the mask at each run's best F1 of the pixels"
    )
    text = (
        f"{len(rows)} of {len(common)} images, those with different verdicts first. A run has stored only its worst"
        " images."
    )
    return Section("Side by side", text, [grid if rows else Text("No run has stored images.")])


def _grid_row(
    runs: _Runs, key: ImageKey, images: Mapping[str, Mapping[str, Any]], judged: Sequence[tuple[float, bool | None]]
) -> tuple[str, list[tuple[str, str]]]:
    views = {
        name: {view.name: view.thumbnail for view in views_of(run.folder, images[name])} for name, run in runs.items()
    }
    image = next(iter(images.values()))
    label = bool(image["label"])

    def first_of(view: str) -> str:
        return next((each[view] for each in views.values() if view in each), "")

    truth = image.get("defect") or ("anomalous" if label else "normal")
    cells = [(first_of("Image"), ""), (first_of("Ground truth") or first_of("Image"), truth)]
    for name, each in zip(runs, judged, strict=True):
        verdict = _verdict(*each, label)
        words = verdict.text if isinstance(verdict, Cell) else f"{verdict:.4g}"
        if images[name].get("pixel_ap") is not None:
            words += f"\npixel AP {100 * images[name]['pixel_ap']:.1f}"
        cells.append((views[name].get("Overlay", ""), words))
    return key[2] if key[2].startswith(f"{key[1]}/") else f"{key[1]}: {key[2]}", cells
