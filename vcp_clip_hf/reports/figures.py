"""A chart of a page and, on request, the same data as figures for papers, in the width of a column and of a page."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .charts import as_svg, save_figure
from .page import Chart


if TYPE_CHECKING:
    from matplotlib.figure import Figure


__all__ = ["make_chart"]

# Width as charts.py names it -> ending of the file names
_WIDTHS = {"one": "85mm", "two": "175mm"}


def make_chart(
    draw: "Callable[[str], Figure]",
    name: str,
    alt: str,
    figures: Path | None = None,
    page_width: str = "two",
    **fields: Any,
) -> Chart:
    """
    Draw a chart for a page and, if a folder is given, write it for papers as SVG and PDF in both print widths.

    Args:
        draw (`Callable[[str], Figure]`): function that draws the chart in a width, "one" or "two", see `charts.py`.
        name (`str`): name of the files, without width and ending.
        alt (`str`): what the chart says, for people who cannot see it.
        figures (`Path`, *optional*): folder for the figures of papers.
        page_width (`str`, *optional*, defaults to "two"): width in the page; "one" for charts side by side.
        fields: further fields of [`Chart`].

    Returns:
        [`Chart`].
    """
    drawn = {width: draw(width) for width in (_WIDTHS if figures is not None else (page_width,))}
    for width, figure in drawn.items():
        if figures is not None:
            save_figure(figure, figures, f"{name}-{_WIDTHS[width]}")
    return replace(Chart(as_svg(drawn[page_width]), alt), **fields)
