"""Results at other thresholds: false alarms of normal images, and F1 if there are images with defects."""

from pathlib import Path
from typing import Any

import numpy as np

from ..calibration import Calibration, from_normal_scores
from ..thresholds import HIGHEST_SCORES, TOLERANCE
from .charts import Line, line_chart
from .figure_files import make_chart
from .parts import Section, Table


__all__ = ["show_defect_rates", "show_false_alarm_rates"]

_X_LABEL = "Threshold"
# Rates of the table, in addition to the requested one
_RATES = (0.01, 0.02, 0.05, 0.1, 0.2)


def show_false_alarm_rates(
    calibration: dict[str, Any], scores: dict[str, list[float]], figures: Path | None = None
) -> Section:
    """
    Show the false-alarm rate at every threshold, and the thresholds of other rates.

    Args:
        calibration (`dict`): `calibration` of the image processor, from normal images.
        scores (`dict[str, list[float]]`): "normal" -> scores of the images.
        figures (`Path`, *optional*): folder for the chart as SVG and PDF files.
    """
    image = calibration["image"]
    ordered = np.sort(np.asarray(scores["normal"]))
    count = len(ordered)
    # number of scores at or above each place, just before and just after each score
    places = np.repeat(ordered, 2)
    above = np.repeat(np.arange(count, -1, -1), 2)[1:-1]
    lines = [
        Line("guaranteed for new normal images", places, 100 * (above + 1) / (count + 1)),
        Line("of these images", places, 100 * above / count),
    ]
    # users choose among rates near the requested one
    highest = min(102.0, max(20.0, 400 * image["false_alarm_rate"], 200 * image["false_alarm_bound"]))
    room = max(0.02 * float(np.ptp(ordered)), 0.01)
    shown = places[100 * (above + 1) / (count + 1) <= highest]
    limits = (float(shown.min(initial=ordered[-1])) - room, max(float(ordered[-1]), image["threshold"]) + room)
    chart = make_chart(
        line_chart(
            lines, _X_LABEL, "False alarms (%)", "two", x_limits=limits, y_limits=(0, highest), marks=_marks(image)
        ),
        "calibration-false-alarms",
        f"Line chart of the false-alarm rate over the threshold: {image['false_alarm_bound']:.2%} guaranteed and"
        f" {image['num_above'] / count:.2%} of these images at {image['threshold']:.4g}.",
        figures,
    )
    return Section(
        "False alarms",
        "A higher threshold gives fewer false alarms and misses more defects. The guaranteed rate is above the rate of"
        f" these images, because {count} images cannot guarantee a rate below {1 / (count + 1):.2%}. With more normal"
        " images, the two lines are closer.",
        [chart, _other_rates(calibration, ordered)],
    )


def _marks(image: dict[str, Any]) -> dict[str, list[float]]:
    return {"threshold": [image["threshold"]]}


def _other_rates(calibration: dict[str, Any], ordered: np.ndarray) -> Table:
    """Return the thresholds that other requested rates would give from the same images."""
    requested = calibration["image"]["false_alarm_rate"]
    highest = HIGHEST_SCORES[calibration.get("settings", {}).get("score_mode", "max")]
    rows = []
    for rate in sorted({*_RATES, requested}):
        try:
            made = from_normal_scores(ordered, rate, highest)
        except ValueError:  # more images at the upper end of the scale than the rate allows
            rows.append([f"{rate:.2%}", None, None, None, "no threshold keeps this rate"])
            continue
        rows.append([f"{rate:.2%}", made.threshold, f"{made.false_alarm_bound:.2%}", made.num_above, _remark(made)])
    return Table(
        ["Requested", "Threshold", "Guaranteed", "Of these images above", "Remark"],
        rows,
        "Thresholds from the same images for other rates (--false-alarm-rate)",
        align=["right"] * 4 + ["left"],
    )


def _remark(made: Calibration) -> str:
    return "" if made.reached else f"cannot be guaranteed; {round(1 / made.false_alarm_rate) - 1} images are needed"


def show_defect_rates(
    calibration: dict[str, Any], scores: dict[str, list[float]], figures: Path | None = None
) -> Section:
    """
    Show precision, recall and F1 at every threshold.

    Args:
        calibration (`dict`): `calibration` of the image processor, from labeled images.
        scores (`dict[str, list[float]]`): "normal" and "anomalous" -> scores of the images.
        figures (`Path`, *optional*): folder for the chart as SVG and PDF files.
    """
    image = calibration["image"]
    normal, anomalous = (np.sort(np.asarray(scores[name])) for name in ("normal", "anomalous"))
    places = np.unique(np.concatenate([normal, anomalous]))
    found, alarms = (len(each) - np.searchsorted(each, places - TOLERANCE) for each in (anomalous, normal))
    values = {
        "F1": 2 * found / (found + alarms + len(anomalous)),
        "precision": found / (found + alarms),
        "recall": found / len(anomalous),
    }
    # between two scores, the same images are flagged as at the higher one
    lines = [Line(name, np.repeat(places, 2)[:-1], 100 * np.repeat(each, 2)[1:]) for name, each in values.items()]
    chart = make_chart(
        line_chart(lines, _X_LABEL, "%", "two", y_limits=(0, 102), marks=_marks(image)),
        "calibration-f1",
        f"Line chart of F1, precision and recall over the threshold: F1 {image['f1']:.3f} at"
        f" {image['threshold']:.4g}.",
        figures,
    )
    return Section(
        "Precision and recall",
        "Precision is the part of the flagged images that have a defect; recall is the part of the defects that are"
        " flagged. A higher threshold flags fewer images: recall falls, and precision mostly rises. F1 is highest"
        " where both are high; if its peak is broad, the exact threshold matters little. If a missed defect costs more"
        " than a false alarm, a lower threshold is better than the best F1: give it as --threshold.",
        [chart],
    )
