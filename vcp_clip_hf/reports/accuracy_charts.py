"""The charts of an evaluation: ROC, precision over recall, region overlap, and scores of images."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation_report import METRIC_TITLES
from ..metrics import RankedScores, UndefinedMetricError, f1_max
from .charts import Line, as_svg, histogram, line_chart, movable_threshold
from .figure_files import FigureFolder
from .parts import Chart


__all__ = ["CURVE_CHARTS", "best_threshold", "curve_chart", "score_chart"]

# Chart -> title; (name of a curve, what it is measured on, metrics that may be printed with it); axes; how to read it
CURVE_CHARTS: dict[str, dict[str, Any]] = {
    "roc": {
        "title": "ROC",
        "curves": (
            ("pixel_roc", "pixels", ("pixel_auroc",)),
            ("image_roc", "images", ("image_auroc",)),
        ),
        "axes": ("False positive rate", "True positive rate"),
        "reading": "Each point is a threshold: the fraction of the abnormal pixels (or images) that is found, over the"
        " fraction of the normal ones that is marked too. The area is AUROC; 50 is chance.",
    },
    "precision_recall": {
        "title": "Precision and recall",
        "curves": (
            ("pixel_precision_recall", "pixels", ("pixel_ap",)),
            ("image_precision_recall", "images", ("image_ap",)),
        ),
        "axes": ("Recall", "Precision"),
        "reading": "The fraction of the marked pixels (or images) that is abnormal, over the fraction of the abnormal"
        " ones that is found. The area is AP; chance is the fraction of all pixels (or images) that is abnormal.",
    },
    "pro": {
        "title": "Region overlap (PRO)",
        "curves": (("pixel_pro", "regions", ("pixel_pro", "pixel_pro_200")),),
        "axes": ("False positive rate of the pixels", "Mean overlap of the regions"),
        "reading": "The fraction of a region that is found, averaged over regions of any size, up to the limit of the"
        " false positive rate. PRO is the area up to the limit, divided by the limit.",
    },
}
_STEPS = " PRO (200 steps) is estimated from 200 thresholds, as in published tables, and not from this curve."


def curve_chart(
    kind: str,
    runs: Mapping[str, tuple[Mapping[str, Any], Mapping[str, float | None]]],
    fpr_limit: float,
    figures: FigureFolder,
    *names: str,
    level: str | None = None,
) -> Chart | None:
    """
    Draw one chart of a product.

    Args:
        kind (`str`): key of `CURVE_CHARTS`.
        runs (`Mapping`): name of a run ("" if there is only one) -> its curves (name -> x and y), and its metrics in
            [0, 1]; at most seven.
        fpr_limit (`float`): limit of PRO.
        figures ([`FigureFolder`]): folder for the chart as files.
        names (`str`): names of dataset and product, for the files.
        level (`"pixel"` or `"image"`, *optional*): only these curves.

    Returns:
        [`Chart`], or `None` without a curve.
    """
    facts, lines = CURVE_CHARTS[kind], []
    for name, (curves, values) in runs.items():
        for curve, what, metrics in facts["curves"]:
            if curve in curves and (level is None or curve.startswith(level)):
                label = ", ".join([*filter(None, (name, "" if level else what)), *_areas(values, metrics)])
                lines.append(Line(label, curves[curve]["x"], curves[curve]["y"]))
    if not lines:
        return None
    title = f"{facts['title']}, {facts['curves'][level == 'image'][1]}" if level else facts["title"]
    limit = fpr_limit if kind == "pro" else 1.0
    limits = {"x_limits": (0, 1.02 * limit), "y_limits": (0, 1.02)}
    figure = line_chart(lines, *facts["axes"], height=72, **limits, note=_note(lines, title))
    figures.save(figure, *names, kind, *filter(None, [level]))
    caption = f"{title}. {facts['reading']}"
    if kind == "pro":
        has_steps = any("pixel_pro_200" in values for _, values in runs.values())
        caption += f" Limit: {fpr_limit:g}." + (_STEPS if has_steps else "")
    return Chart(as_svg(figure), f"{title}: " + "; ".join(line.label for line in lines), caption)


def _note(lines: Sequence[Line], title: str) -> str:
    """Return the name of the single line, which has no legend."""
    return f"{title}: {lines[0].label}" if len(lines) == 1 else title


def _areas(values: Mapping[str, float | None], metrics: Sequence[str]) -> list[str]:
    """Return "AUROC 96.1" for the metrics that were measured; percent, rounded as in tables."""
    known = [name for name in metrics if values.get(name) is not None]
    return [f"{METRIC_TITLES[name].removeprefix('image ')} {100 * values[name]:.1f}" for name in known]


def best_threshold(images: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """
    Return the best F1 of images and the image threshold that reaches it.

    Args:
        images (`Sequence[Mapping]`): images with `score` and `label`.

    Returns:
        `tuple[float, float]`: F1 in [0, 1] and threshold; `None` without normal or without anomalous images.
    """
    scores, labels = [each["score"] for each in images], [int(each["label"]) for each in images]
    try:
        return f1_max(RankedScores.from_labels(scores, labels))
    except UndefinedMetricError:
        return None


def score_chart(images: Sequence[Mapping[str, Any]], name: str, figures: FigureFolder, *names: str) -> Chart:
    """
    Draw the scores of normal and anomalous images.

    Args:
        images (`Sequence[Mapping]`): images with `score` and `label`, at least one.
        name (`str`): identity of the threshold on the page.
        figures ([`FigureFolder`]): folder for the chart as files.
        names (`str`): names of dataset and product, for the files.

    Returns:
        [`Chart`]: with a movable threshold, where there are normal and anomalous images.
    """
    groups = {"normal": [], "anomalous": []}
    for image in images:
        groups["anomalous" if image["label"] else "normal"].append(image["score"])
    groups = {group: scores for group, scores in groups.items() if scores}
    best = best_threshold(images)
    threshold = None if best is None else best[1]
    figure = histogram(groups, threshold=threshold)
    figures.save(figure, *names, "scores")
    alt = "Scores: " + "; ".join(
        f"{len(scores)} {group} images from {min(scores):.4g} to {max(scores):.4g}" for group, scores in groups.items()
    )
    if best is None:
        return Chart(
            as_svg(figure),
            alt,
            "Scores of the images. They are all normal or all anomalous, so there is no best threshold.",
        )
    caption = (
        f"Scores of normal and anomalous images. The line is the threshold of the best F1 ({100 * best[0]:.1f}) on"
        " these images. For use, compute a threshold with vcp-clip calibrate on other normal images."
    )
    movable = movable_threshold(
        figure, threshold, groups, name=name, start=f"At the threshold of the best F1, {threshold:.4g}:"
    )
    return Chart(as_svg(figure), f"{alt}; best threshold {threshold:.4g}", caption, threshold=movable)
