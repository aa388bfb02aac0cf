"""The report of a training run, from its output folder alone: during the run, after its end, or after a kill."""

import os
from pathlib import Path
from typing import Any

import yaml

from ..training_log import VALIDATION_PREFIX, TrainingHistory, read_training_log
from .page import REPORT_FILE, link_to, write_page
from .parts import Cell, Facts, KeyNumbers, Part, Section, Text
from .read_run import Run
from .training_curves import (
    best_validation,
    counted,
    duration,
    metric_title,
    show_learning_rates,
    show_losses,
    show_time_and_memory,
    show_validations,
)


__all__ = ["report_training", "write_training_report"]

_SETTINGS = "training_config.yaml"


def write_training_report(output_dir: str | os.PathLike) -> Path:
    """
    Write `report.html` into the output folder of a training run.

    Args:
        output_dir (`str` or `os.PathLike`): output folder of the run.

    Returns:
        `Path`: the file.

    Raises:
        FileNotFoundError, ValueError: the folder has no log of a training run.
        ImportError: the extra `report` is not installed.
    """
    page = Path(output_dir) / REPORT_FILE
    title, subtitle, sections = report_training(Run("train", Path(output_dir)), page)
    return write_page(page, title, subtitle, sections)


def report_training(
    run: Run, page: Path, figures: Path | None = None, progress: bool = False
) -> tuple[str, str, list[Section]]:
    """
    Return title, subtitle and sections of the report of a training run.

    Args:
        run ([`Run`]): the run, finished or not.
        page (`Path`): HTML file that the sections are for.
        figures (`Path`, *optional*): folder for the charts as SVG and PDF files.
        progress (`bool`, *optional*): without effect; a report without pictures takes no time.
    """
    history, settings = read_training_log(run.folder), _read_settings(run.folder)
    sections = [
        _overview(history, settings, run.folder, page),
        show_losses(history, figures),
        show_validations(history, settings, figures),
        show_learning_rates(history, settings, figures),
        show_time_and_memory(history, figures),
        _settings(settings),
    ]
    folder = run.folder.resolve()
    return f"Training report: {folder.name}", f"{folder}, as of {_as_of(history)}", [*filter(None, sections)]


def _as_of(history: TrainingHistory) -> str:
    return f"{history.as_of:%Y-%m-%d %H:%M} UTC"


def _read_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of the run's last session; nothing without a readable file."""
    try:
        settings = yaml.safe_load((folder / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return settings if isinstance(settings, dict) else {}


# --- overview -----------------------------------------------------------------------------------------------------


def _overview(history: TrainingHistory, settings: dict[str, Any], folder: Path, page: Path) -> Section:
    total = history.total_steps
    numbers = [(Cell(f"{history.last_step:,}"), "steps done" if total is None else f"of {total:,} steps")]
    if history.losses:
        newest = history.losses[-1]
        numbers.append((newest["loss"], "last logged loss"))
        numbers += [(Cell(f"{newest['images']:,}"), "images seen")] if "images" in newest else []
        numbers += [(Cell(duration(newest["seconds"])), "on training steps")] if "seconds" in newest else []
    best = best_validation(history, settings)
    if best is not None:
        name, record = best
        value = f"{100 * record[VALIDATION_PREFIX + name]:.1f} %"
        numbers.append((Cell(value), f"best {metric_title(name)} on held-out products, step {record['step']:,}"))
    text, tone = _state(history)
    parts: list[Part] = [KeyNumbers(numbers), Text(text, tone), *_remarks(history)]
    links = [
        (what, Cell(name, href=link_to(folder / name, page)))
        for name, what in (("last", "Weights after the last step"), ("best", "Best weights on held-out products"))
        if (folder / name).is_dir()
    ]
    return Section("Overview", parts=[*parts, *([Facts(links)] if links else [])])


def _state(history: TrainingHistory) -> tuple[str, str]:
    """Return a sentence about the state of the run, and the tone of this sentence."""
    as_of = _as_of(history)
    if history.end is None:
        return (
            f"The log has no end: the run is still going, or it was killed. As of {as_of}, when the log was last"
            f" written, it had reached step {history.last_step:,}.",
            "note",
        )
    if history.end["event"] == "finished":
        return f"The run is finished: {as_of}.", "plain"
    if history.end["event"] == "interrupted":
        return (
            f"The run was interrupted after step {history.last_step:,}, {as_of}; --resume latest continues it.",
            "note",
        )
    return (
        f"The run diverged: {history.end.get('reason', 'a number is not finite')} at step {history.end['step']:,}."
        " Lower the learning rates, or train without mixed precision, in another output folder.",
        "warning",
    )


def _remarks(history: TrainingHistory) -> list[Part]:
    """Return notes on resumes and on damaged lines of the log."""
    remarks = []
    resumed = history.resumed_steps
    if resumed:
        text = f"Resumed {len(resumed)} time{'s' if len(resumed) > 1 else ''}: dashed lines in the charts."
        if history.num_replaced:
            text += (
                f" {counted(history.num_replaced, 'record')} of steps that were done again after a kill"
                f" {'is' if history.num_replaced == 1 else 'are'} replaced by the later one."
            )
        remarks.append(Text(text))
    if history.num_damaged:
        remarks.append(
            Text(
                f"{counted(history.num_damaged, 'line')} of the log could not be read, which happens after a kill.",
                "note",
            )
        )
    return remarks


# --- settings -----------------------------------------------------------------------------------------------------


def _settings(settings: dict[str, Any]) -> Section | None:
    if not settings:
        return None
    pairs = [(name, _shown(value)) for name, value in settings.items()]
    return Section("Settings", f"All settings of the run, as in its {_SETTINGS}.", [Facts(pairs)])


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
