"""`vcp-clip report`."""

from pathlib import Path
from typing import Annotated

import typer

from .common import printable


__all__ = ["report"]


def report(
    runs: Annotated[list[str], typer.Argument(help="Output folders of predict, calibrate, evaluate or train.")],
    output: Annotated[Path, typer.Option("--output", "-o", dir_okay=False, help="HTML file to write.")] = Path(
        "report.html"
    ),
    figures: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder for the charts as SVG and PDF files, at print sizes."),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            help="Image for a row of the qualitative grid in --figures; repeat for several.",
            show_default="the first six",
        ),
    ] = None,
) -> None:
    """
    Write the report of one or more runs: one HTML file with charts and images, for any browser.

    The file needs neither a network nor a server. It contains small copies of the images; links lead to the full files
    as long as the report stays at the same place relative to them. Needs the extra `report`.
    """
    if rows and figures is None:
        raise typer.BadParameter("--rows chooses images for the figures; give --figures too")
    from ..reports.report import write_report

    typer.echo(printable(f"wrote {write_report(runs, output, figures, progress=True, rows=rows or ())}"))
