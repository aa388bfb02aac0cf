"""Charts and grids of pictures as files for papers."""

import base64
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .charts import chart_style, new_figure, plain_text, save_figure
from .parts import PictureGrid


if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FigureFolder", "save_grid"]

# Rows that fit on a printed page
_MOST_ROWS = 6
_ROW_MILLIMETERS = 32


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
        """Write a figure to files that are called after it, such as a product and a chart."""
        if self.folder is None:
            return
        stem = "-".join(re.sub(r"[^\w]+", "_", name)[:60] for name in names) or "_"
        name, number = stem, 2
        while name.casefold() in self._taken:
            name, number = f"{stem}-{number}", number + 1
        self._taken.add(name.casefold())
        save_figure(figure, self.folder, name)


def save_grid(grid: PictureGrid, figures: FigureFolder) -> None:
    """
    Write the first rows that have a picture in every column as a figure, if there is a folder for figures.

    Args:
        grid ([`PictureGrid`]): the pictures.
        figures ([`FigureFolder`]): folder for the files.
    """
    rows = [row for row in grid.rows if all(source for source, _ in row[1])][:_MOST_ROWS]
    if figures.folder is None or not rows:
        return
    with chart_style():
        figure, places = new_figure("two", _ROW_MILLIMETERS * len(rows) + 5, len(rows), len(grid.columns))
        for axes_row, (title, cells) in zip(places, rows, strict=True):
            for axes, (source, _) in zip(axes_row, cells, strict=True):
                axes.imshow(_decoded(source))
                axes.set_xticks([])
                axes.set_yticks([])
                axes.spines[:].set_visible(False)
            axes_row[0].set_ylabel(plain_text(title[-28:]), fontsize=5)
        for axes, name in zip(places[0], grid.columns, strict=True):
            axes.set_title(plain_text(name[-28:]))
    figures.save(figure, "side_by_side")


def _decoded(source: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB"))
