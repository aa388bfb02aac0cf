"""Write the report of one or more runs: a table has the function for each kind of run."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers.utils import logging

from .accuracy_comparison import report_evaluations
from .accuracy_report import report_evaluation
from .calibration_report import report_calibration
from .extra import require_extra
from .methods_report import report_methods
from .page import REPORT_FILE, write_page
from .parts import Section
from .prediction_comparison import report_predictions
from .prediction_report import report_prediction
from .qualitative_grid import write_grid
from .read_run import Run, find_run
from .training_report import report_training


__all__ = ["COMPARISONS", "REPORTS", "REPORT_FILE", "Report", "write_report"]

logger = logging.get_logger(__name__)

# Title, subtitle and sections of a page; `figures` is the folder for figures of papers, or None
Report = tuple[str, str, list[Section]]
# kind of run -> function (run, page, figures, progress) that reads its folder
REPORTS: dict[str, Callable[[Run, Path, Path | None, bool], Report]] = {
    "predict": report_prediction,
    "calibrate": report_calibration,
    "evaluate": report_evaluation,
    "methods": report_methods,
    "train": report_training,
}
# kind of runs -> function that compares several of them
COMPARISONS: dict[str, Callable[[Sequence[Run], Path, Path | None, bool], Report]] = {
    "predict": report_predictions,
    "evaluate": report_evaluations,
}


def write_report(
    runs: Sequence[str | os.PathLike],
    page: str | os.PathLike,
    figures: str | os.PathLike | None = None,
    progress: bool = False,
    rows: Sequence[str] = (),
) -> Path:
    """
    Write the report of finished runs.

    Args:
        runs (`Sequence[str | os.PathLike]`): folders of runs; several of `predict`, or of `evaluate`, are compared.
        page (`str` or `os.PathLike`): HTML file to write; links in it are relative to its folder.
        figures (`str` or `os.PathLike`, *optional*): folder for the charts as SVG and PDF files.
        progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar.
        rows (`Sequence[str]`, *optional*): images of the qualitative grid among the figures, see [`write_grid`].

    Returns:
        `Path`: the file.

    Raises:
        FileNotFoundError, ValueError:
            A folder is missing, or is not one of a run that can be reported; or the name of the page does not end in
            .html, so that a report never replaces a file of a run.
        ImportError: the extra `report` is not installed.
    """
    require_extra()
    found, page = [find_run(run) for run in runs], Path(page)
    if page.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"A report is an HTML file, got the name {str(page)!r}. Choose one that ends in .html.")
    if figures is not None:
        _write_grid(found, Path(figures), rows)
    if len(found) > 1:
        title, subtitle, sections = _report_several(found, page, None if figures is None else Path(figures), progress)
        return write_page(page, title, subtitle, sections)
    (run,) = found
    if run.kind not in REPORTS:
        raise ValueError(f"{run.folder} is the folder of a run of {run.kind}, which has no report yet.")
    title, subtitle, sections = REPORTS[run.kind](run, page, None if figures is None else Path(figures), progress)
    return write_page(page, title, subtitle, sections)


def _write_grid(runs: Sequence[Run], figures: Path, rows: Sequence[str]) -> None:
    """Write the qualitative grid; runs without pictures have none unless rows are requested."""
    if not rows and any(run.kind not in COMPARISONS for run in runs):
        return
    try:
        write_grid(runs, figures, rows)
    except ValueError as error:
        if rows:
            raise
        logger.warning(f"No qualitative grid was drawn: {error}")


def _report_several(runs: Sequence[Run], page: Path, figures: Path | None, progress: bool) -> Report:
    kinds = sorted({run.kind for run in runs})
    if len(kinds) > 1 or kinds[0] not in COMPARISONS:
        listed = "; ".join(f"{run.folder} ({run.kind})" for run in runs)
        raise ValueError(
            f"Several runs are compared if all are of one kind, {' or '.join(COMPARISONS)}; got {listed}. Report other"
            " runs one by one."
        )
    return COMPARISONS[kinds[0]](runs, page, figures, progress)
