"""Charts as files for papers."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .charts import as_svg, save_figure
from .parts import Chart


if TYPE_CHECKING:
    from matplotlib.figure import Figure


__all__ = ["FigureFolder", "make_chart"]


class FigureFolder:
    """
    The folder for charts as SVG and PDF files.

    Args:
        folder (`Path`, *optional*): folder; without one, nothing is written.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self._taken: set[str] = set()

    def save(self, figure: "Figure", *names: str) -> None:
        """Write a figure to files named after `names`, such as a product and a chart."""
        if self.folder is None:
            return
        stem = "-".join(re.sub(r"[^\w]+", "_", name)[:60] for name in names) or "_"
        name, number = stem, 2
        while name.casefold() in self._taken:
            name, number = f"{stem}-{number}", number + 1
        self._taken.add(name.casefold())
        save_figure(figure, self.folder, name)


def make_chart(figure: "Figure", name: str, alt: str, figures: Path | None = None, **fields: Any) -> Chart:
    """
    Return a figure as a chart of a page and, if a folder is given, write it for papers, see [`save_figure`].

    Args:
        figure (`matplotlib.figure.Figure`): figure to show.
        name (`str`): name of the files, without width and ending.
        alt (`str`): description of the chart, for readers who cannot see it.
        figures (`Path`, *optional*): folder for the figures of papers.
        fields: further fields of [`Chart`].
    """
    if figures is not None:
        save_figure(figure, figures, name)
    return Chart(as_svg(figure), alt, **fields)
