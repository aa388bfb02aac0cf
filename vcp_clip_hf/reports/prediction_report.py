"""The report of `vcp-clip predict`, from its output folder alone."""

from pathlib import Path

from .page import Section
from .read_run import Run


__all__ = ["report_prediction"]


def report_prediction(run: Run, page: Path, figures: Path | None = None) -> tuple[str, str, list[Section]]:
    """
    Return title, subtitle and sections of the report of a run of `predict`.

    Args:
        run ([`Run`]): the run.
        page (`Path`): HTML file that the sections are for.
        figures (`Path`, *optional*): folder for the charts as SVG and PDF files.
    """
    return "Prediction", str(run.folder), []
