"""A chart of a page and, on request, the same drawing as files for papers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .charts import as_svg, save_figure
from .page import Chart


if TYPE_CHECKING:
    from matplotlib.figure import Figure


__all__ = ["make_chart"]


def make_chart(figure: "Figure", name: str, alt: str, figures: Path | None = None, **fields: Any) -> Chart:
    """
    Return a figure as a chart of a page and, if a folder is given, write it for papers, see [`save_figure`].

    Args:
        figure (`matplotlib.figure.Figure`): figure to show.
        name (`str`): name of the files, without width and ending.
        alt (`str`): what the chart says, for people who cannot see it.
        figures (`Path`, *optional*): folder for the figures of papers.
        fields: further fields of [`Chart`].
    """
    if figures is not None:
        save_figure(figure, figures, name)
    return Chart(as_svg(figure), alt, **fields)
