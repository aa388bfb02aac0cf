"""The charts of a training run: losses, metrics on held-out products, learning rates, time and memory."""

import datetime
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation_report import METRIC_TITLES
from ..training_log import VALIDATION_PREFIX, Session, TrainingHistory
from .charts import Line, line_chart
from .figure_files import make_chart
from .parts import Beside, Cell, Facts, Part, Section, Table, Text


__all__ = [
    "best_validation",
    "counted",
    "duration",
    "metric_title",
    "show_learning_rates",
    "show_losses",
    "show_time_and_memory",
    "show_validations",
]

_STEP = "Optimizer step"
# Learning rates as the log and the settings name them
_RATES = {
    "learning_rate": "learned part",
    "temperature_learning_rate": "temperatures",
    "image_head_learning_rate": "image head",
}
# With twice as many records, a line is a running mean with a band from the lowest to the highest record
_MOST_POINTS = 60
_MOST_ROWS = 200
_MOST_METRICS = 7
_GIBIBYTE = 2**30


# --- losses -------------------------------------------------------------------------------------------------------


def show_losses(history: TrainingHistory, figures: Path | None = None) -> Section:
    """
    Show the loss over the steps.

    Args:
        history ([`TrainingHistory`]): the log.
        figures (`Path`, *optional*): folder for the charts as SVG and PDF files.
    """
    explanation = (
        "The loss that is minimized, averaged over the steps since the previous record. It should fall quickly and"
        " then level off. If it still falls at the end, more steps may help; if it jumps or rises, the learning rate"
        " is too high. A low loss alone does not say that unseen products are segmented well: see the validation."
    )
    if not history.losses:
        return Section("Loss", explanation, [Text("No loss has been logged yet.", "note")])
    steps = [each["step"] for each in history.losses]
    names = {"loss": "loss", "image_loss": "image head's part"}
    values = {name: [_number(each.get(name)) for each in history.losses] for name in names}
    shown = {name: series for name, series in values.items() if not np.isnan(series).all()}
    if not shown:
        return Section("Loss", explanation, [Text("No logged loss is a finite number.", "warning")])
    lines, note = [], ""
    for name, series in shown.items():
        line, window = _running(names[name], steps, series)
        lines.append(line)
        note = f"Mean over {window} records; band: lowest and highest of them" if window > 1 else ""
    first, last = values["loss"][0], values["loss"][-1]
    chart = make_chart(
        line_chart(lines, _STEP, "Loss", "two", y_limits=_from_zero(lines), marks=_marks(history), note=note),
        "training-loss",
        f"Line chart of the loss: {first:.4g} at step {steps[0]}, {last:.4g} at step {steps[-1]}.",
        figures,
        table=_thinned(
            ["Step", *(names[name].capitalize() for name in shown)], zip(steps, *shown.values(), strict=True)
        ),
    )
    return Section("Loss", explanation, [chart])


def _running(label: str, steps: Sequence[int], values: Sequence[float]) -> tuple[Line, int]:
    """Return a line of the records themselves if there are few, else of their running mean, and the window's size."""
    window = len(values) // _MOST_POINTS
    if window < 2:
        return Line(label, steps, values, markers=len(values) <= _MOST_POINTS // 2), 1
    window += 1 - window % 2
    around = np.lib.stride_tricks.sliding_window_view(np.asarray(values, dtype=np.float64), window)
    half = window // 2
    return Line(label, steps[half:-half], around.mean(1), around.min(1), around.max(1)), window


def _from_zero(lines: Sequence[Line]) -> tuple[float, float] | None:
    """Return limits of a y axis that begins at 0, so that a fall is not magnified; none for negative values."""
    values = np.concatenate([line.y if line.high is None else line.high for line in lines])
    highest = float(np.nanmax(values))
    return (0.0, 1.05 * highest) if np.nanmin(values) >= 0 < highest else None


def _marks(history: TrainingHistory) -> dict[str, list[int]]:
    return {"resumed": sorted(set(history.resumed_steps))} if history.resumed_steps else {}


def _thinned(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Return a table of at most a few hundred rows, the first and the last among them."""
    rows = [list(row) for row in rows]
    if len(rows) <= _MOST_ROWS:
        return Table(columns, rows)
    places = np.linspace(0, len(rows) - 1, _MOST_ROWS).round().astype(int)
    return Table(columns, [rows[place] for place in places], f"{_MOST_ROWS} of {len(rows):,} records")


# --- validation ---------------------------------------------------------------------------------------------------


def metric_title(metric: str) -> str:
    """Return the name of a metric in charts and tables, such as "pixel AP"."""
    title = METRIC_TITLES.get(metric, metric)
    return f"pixel {title}" if metric.startswith("pixel_") and metric in METRIC_TITLES else title


def best_validation(history: TrainingHistory, settings: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """
    Return the metric that selects the best weights, and the first record with its highest value.

    Args:
        history, settings: see [`show_validations`].

    Returns:
        Name of the metric and record of the log; `None` if no validation has a value of this metric.
    """
    name = settings.get("metric_for_best_model")
    known = [each for each in history.validations if math.isfinite(_number(each.get(f"{VALIDATION_PREFIX}{name}")))]
    return (name, max(known, key=lambda each: each[VALIDATION_PREFIX + name])) if known else None


def show_validations(history: TrainingHistory, settings: dict[str, Any], figures: Path | None = None) -> Section:
    """
    Show the metrics on held-out products over the steps.

    Args:
        history, figures: see [`show_losses`].
        settings (`dict`): settings of the run, see [`TrainingConfig`].
    """
    explanation = (
        "Metrics on products that are held out of the training, after each pass over the data, in percent. They show"
        " how well products are segmented that were not used in the training. If they fall while the loss still falls,"
        " the model overfits to the training products; the weights of the best pass are in best/. They are chosen with"
        " these products, so do not report these metrics as results."
    )
    if not history.validations:
        what = "The validation comes after each pass over the data; none is complete yet."
        if not settings.get("validation_products"):
            what = "No products are held out (validation_products), so no validation is logged."
        return Section("Validation", explanation, [Text(what, "note")])
    names = list(dict.fromkeys(name for each in history.validations for name in each if _is_metric(name)))
    steps = [each["step"] for each in history.validations]
    columns = {name: [100 * _number(each.get(name)) for each in history.validations] for name in names}
    titles = {name: metric_title(name.removeprefix(VALIDATION_PREFIX)) for name in names}
    rows = zip(steps, *columns.values(), [each.get("validation_seconds") for each in history.validations], strict=True)
    shown = Table(
        ["Step", *(f"{title} (%)" for title in titles.values()), "Seconds"],
        [[step, *(Cell(f"{each:.1f}", each) for each in numbers), seconds] for step, *numbers, seconds in rows],
        sortable=True,
        align=["right"] * (len(names) + 2),
    )
    series = {titles[name]: columns[name] for name in names[:_MOST_METRICS]}
    what = "; ".join(f"{title} {values[-1]:.1f} % at the end" for title, values in series.items())
    lines = [Line(title, steps, values, markers=True) for title, values in series.items()]
    marks: dict[str, list[int]] = dict(_marks(history))
    best = best_validation(history, settings)
    if best is not None:
        marks[f"best {metric_title(best[0])}"] = [best[1]["step"]]
    chart = make_chart(
        line_chart(lines, _STEP, "Held-out products (%)", "two", y_limits=_percentages(series.values()), marks=marks),
        "training-validation",
        f"Line chart of the metrics on held-out products over {len(steps)} validations: {what}.",
        figures,
        table=shown,
    )
    return Section("Validation", explanation, [chart])


def _is_metric(name: str) -> bool:
    return name.startswith(VALIDATION_PREFIX)


def _percentages(series: Iterable[Sequence[float]]) -> tuple[float, float]:
    """Return limits of an axis up to 100 % that begins at a round number below all values."""
    known = [each for values in series for each in values if math.isfinite(each)]
    return min(90.0, 10.0 * math.floor(min(known, default=0.0) / 10)), 100.5


# --- learning rate, time, memory ----------------------------------------------------------------------------------


def show_learning_rates(history: TrainingHistory, settings: dict[str, Any], figures: Path | None = None) -> Section:
    """
    Show the learning rates over the steps; those of the settings if the log has none.

    Args:
        history, settings, figures: see [`show_validations`].
    """
    explanation = "The step size of the optimizer, for each group of parameters. Adam adapts it per parameter."
    logged = [each for each in history.losses if any(name in each for name in _RATES)]
    if not logged:
        pairs = [(title.capitalize(), settings[name]) for name, title in _RATES.items() if name in settings]
        about = Text(
            "The log of this run has no learning rates. These are its settings, which are constant in a run.", "note"
        )
        return Section("Learning rate", explanation, [about, Facts([(name, f"{rate:g}") for name, rate in pairs])])
    steps = [each["step"] for each in logged]
    lines = [
        Line(title, steps, [_number(each.get(name)) for each in logged])
        for name, title in _RATES.items()
        if name in logged[-1]
    ]
    text = "; ".join(f"{line.label} {line.y[-1]:g} at the end" for line in lines)
    chart = make_chart(
        line_chart(lines, _STEP, "Learning rate", "two", 45, y_scale="log", marks=_marks(history)),
        "training-learning-rate",
        f"Line chart of the learning rates: {text}.",
        figures,
    )
    return Section("Learning rate", explanation, [chart])


def show_time_and_memory(history: TrainingHistory, figures: Path | None = None) -> Section:
    """
    Show speed and peak memory over the steps, and the sessions of the run.

    Args:
        history, figures: see [`show_losses`].
    """
    explanation = (
        "Training images per second of all processes together, without validations, and the largest memory of each"
        " session so far: of the GPU, or of the process on a CPU. A slow period often means that another program uses"
        " the machine, or that images are read slowly (dataloader_num_workers)."
    )
    charts: list[Part] = []
    speed = _speed(history)
    if speed is not None:
        line, window = speed
        note = f"Mean over {window} records; band: lowest and highest of them" if window > 1 else ""
        charts.append(
            make_chart(
                line_chart(
                    [line],
                    _STEP,
                    "Images per second",
                    "one",
                    50,
                    y_limits=_from_zero([line]),
                    marks=_marks(history),
                    note=note,
                ),
                "training-speed",
                f"Line chart of the speed: {float(np.median(line.y)):.3g} images per second in the median.",
                figures,
            )
        )
    memory = [each for each in history.losses if _number(each.get("peak_memory_bytes")) > 0]
    if memory:
        used = Line(
            "memory", [each["step"] for each in memory], [each["peak_memory_bytes"] / _GIBIBYTE for each in memory]
        )
        charts.append(
            make_chart(
                line_chart(
                    [used], _STEP, "Peak memory (GiB)", "one", 50, y_limits=_from_zero([used]), marks=_marks(history)
                ),
                "training-memory",
                f"Line chart of the peak memory: {max(used.y):.3g} GiB at most.",
                figures,
            )
        )
    parts: list[Part] = [Beside(charts)] if len(charts) > 1 else charts
    if not charts:
        parts = [Text("The log of this run has no times and no memory.", "note")]
    return Section("Time and memory", explanation, [*parts, *([_sessions(history)] if history.sessions else [])])


def _speed(history: TrainingHistory) -> tuple[Line, int] | None:
    """Return images per second between two records, and the size of the window of its mean."""
    steps, rates = [], []
    for before, after in pairwise([{"step": 0, "images": 0, "seconds": 0.0}, *history.losses]):
        seconds = _number(after.get("seconds")) - _number(before.get("seconds"))
        images = _number(after.get("images")) - _number(before.get("images"))
        if seconds > 0 and images > 0:
            steps.append(after["step"])
            rates.append(images / seconds)
    return _running("speed", steps, rates) if steps else None


def _sessions(history: TrainingHistory) -> Table:
    """Return a table of the starts and resumes of the run."""
    rows = []
    for number, session in enumerate(history.sessions):
        following = history.sessions[number + 1] if number + 1 < len(history.sessions) else None
        again = max(0, session.reached - following.step) if following is not None else 0
        rows.append(
            [
                "resumed" if session.resumed else "started",
                session.step if session.recorded else Cell(f"about {session.step}", session.step),
                str(session.facts.get("time", "unknown")).replace("T", " ").removesuffix("+00:00"),
                session.reached,
                again,
                _length(session),
                session.facts.get("device"),
                session.facts.get("processes"),
            ]
        )
    columns = ["Session", "After step", "Began (UTC)", "Reached step", "Steps done again later", "Duration", "Device"]
    return Table([*columns, "Processes"], rows, "Sessions of the run")


def _length(session: Session) -> str | None:
    try:
        began, ended = map(datetime.datetime.fromisoformat, (session.facts["time"], session.until))
    except (KeyError, TypeError, ValueError):
        return None
    return duration((ended - began).total_seconds())


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, such as "1 line" or "2 lines"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return a time such as "3 h 05 min", "4 min 10 s" or "12 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.3g} s"


def _number(value: Any) -> float:
    """Return a finite number of the log as it is, and NaN for everything else."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else math.nan
