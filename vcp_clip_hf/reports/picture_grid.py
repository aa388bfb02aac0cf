"""The pictures of a grid as one figure for a paper: image, ground truth and runs side by side."""

import base64
import io

import numpy as np
from PIL import Image

from .accuracy_charts import FigureFolder
from .charts import chart_style, new_figure, plain_text
from .parts import PictureGrid


__all__ = ["save_grid"]

# Rows that fit on a printed page
_MOST_ROWS = 6
_ROW_MILLIMETERS = 32


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
