"""The qualitative grid of a paper: image, ground truth and the overlay of each method side by side, at 300 dpi."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from .charts import MILLIMETERS, chart_style, empty_figure, plain_text, save_figure
from .grid_sources import GridSource, GridViews, find_rows, grid_source
from .read_run import Run
from .several_runs import named_runs
from .thumbnails import UnreadableError


if TYPE_CHECKING:
    from matplotlib.figure import Figure


__all__ = ["GRID_NAME", "draw_grid", "write_grid"]

GRID_NAME = "qualitative-grid"
_DPI = 300
_MOST_ROWS = 6
# Millimeters: names of the rows, titles of the columns, line of text below each picture, space between pictures
_LEFT, _TOP, _LINE, _GAP = 4.0, 4.5, 3.0, 1.0
# The grid is made narrower until it fits on a page, down to pictures of this width
_HIGHEST, _SMALLEST = 225.0, 12.0
# Highest picture in a row, as a multiple of its width
_TALLEST = 1.5


@dataclass(frozen=True)
class _Cell:
    """A picture and the text below it; without a picture, the text stands in the middle."""

    picture: Image.Image | None
    text: str = ""


def write_grid(runs: Sequence[Run], folder: Path, rows: Sequence[str] = ()) -> list[Path]:
    """
    Write the grid as SVG and PDF, in the width of a column (85 mm) and of a page (175 mm).

    Args:
        runs (`Sequence[Run]`): runs of `predict` or `evaluate` on the same images; each is a column of overlays.
        folder (`Path`): folder to write.
        rows (`Sequence[str]`, *optional*): names of the images, see [`find_rows`]; default: the first six.

    Returns:
        `list[Path]`: the files.

    Raises:
        ValueError: a run has no pictures, the runs have no image in common, or a row is unknown.
    """
    sources = [grid_source(run) for run in runs]
    titles = named_runs([run.folder for run in runs])
    names = find_rows(sources, rows, _MOST_ROWS)
    files = []
    for width in MILLIMETERS:
        files += save_figure(draw_grid(sources, titles, names, width), folder, GRID_NAME, widths=(width,))
    return files


def draw_grid(sources: Sequence[GridSource], titles: Sequence[str], names: Sequence[str], width: str) -> "Figure":
    """
    Draw the grid.

    Args:
        sources (`Sequence[GridSource]`): runs.
        titles (`Sequence[str]`): title of each run's column.
        names (`Sequence[str]`): images, one for each row.
        width (`str`): "one" (85 mm) or "two" (175 mm).

    Raises:
        ValueError: a picture cannot be read.
    """
    longer_side = round(MILLIMETERS[width] / (len(sources) + 1) / 25.4 * _DPI * _TALLEST)
    shown = [_views_of(sources, name, longer_side) for name in names]
    with_truth = any(each.truth is not None for views in shown for each in views)
    columns = ["Image", *(["Ground truth"] if with_truth else []), *titles]
    cells = [_cells(views, with_truth) for views in shown]
    shapes = [min(_TALLEST, max(_shape(each) for each in row if each.picture)) for row in cells]
    lines = _TOP + (_LINE + _GAP) * len(shapes)
    widest = (MILLIMETERS[width] - _LEFT - _GAP * (len(columns) - 1)) / len(columns)
    cell_width = min(widest, max(_SMALLEST, (_HIGHEST - lines) / sum(shapes)))
    heights = [cell_width * shape for shape in shapes]
    total = lines + sum(heights)
    start = _LEFT + (widest - cell_width) * len(columns) / 2
    with chart_style():
        figure = empty_figure(width, total, _DPI)
        figure.set_layout_engine("none")
        page = _Page(figure, MILLIMETERS[width], total)
        lefts = [start + column * (cell_width + _GAP) for column in range(len(columns))]
        for left, title in zip(lefts, columns, strict=True):
            page.write(left + cell_width / 2, _TOP - 1.5, _shortened(title, cell_width), 7)
        top = _TOP
        for name, row, height in zip(names, cells, heights, strict=True):
            page.write(start - _LEFT / 2, top + height / 2, _shortened(name, height, keep_end=True), 6, rotation=90)
            for left, cell in zip(lefts, row, strict=True):
                page.draw(cell, left, top, cell_width, height)
            top += height + _LINE + _GAP
    return figure


def _views_of(sources: Sequence[GridSource], name: str, longer_side: int) -> list[GridViews]:
    try:
        return [source.views(name, longer_side) for source in sources]
    except UnreadableError as error:
        raise ValueError(f"The row {name!r} cannot be drawn: {error}. Choose other rows with --rows.") from error


def _cells(views: Sequence[GridViews], with_truth: bool) -> list[_Cell]:
    kind = next((each.kind for each in views if each.kind), "")
    truth = next((each.truth for each in views if each.truth is not None), None)
    cells = [_Cell(views[0].image, kind)]
    if with_truth:
        cells.append(_Cell(truth, "" if truth is not None else "no defect" if kind == "normal" else "no mask"))
    return [*cells, *(_Cell(each.overlay, "" if each.score is None else f"{each.score:.3f}") for each in views)]


def _shape(cell: _Cell) -> float:
    return cell.picture.height / cell.picture.width


def _shortened(text: str, millimeters: float, keep_end: bool = False) -> str:
    """Return a text shortened to a length, with about 1.2 mm per character; `keep_end` keeps its end, for paths."""
    most = max(4, int(millimeters / 1.2))
    if len(text) <= most:
        return text
    return f"...{text[3 - most :]}" if keep_end else f"{text[: most - 3]}..."


@dataclass(frozen=True)
class _Page:
    """A figure that is drawn on in millimeters from its upper left corner."""

    figure: "Figure"
    width: float
    height: float

    def write(self, x: float, y: float, text: str, size: float, rotation: float = 0) -> None:
        """Write text around a point."""
        place = (x / self.width, 1 - y / self.height)
        self.figure.text(*place, plain_text(text), fontsize=size, rotation=rotation, ha="center", va="center")

    def draw(self, cell: _Cell, left: float, top: float, width: float, height: float) -> None:
        """Draw a cell, its picture fitted into a rectangle, in the middle."""
        if cell.picture is None:
            self.write(left + width / 2, top + height / 2, cell.text, 6)
            return
        scale = min(width / cell.picture.width, height / cell.picture.height)
        fitted = (cell.picture.width * scale, cell.picture.height * scale)
        x, y = left + (width - fitted[0]) / 2, top + (height - fitted[1]) / 2
        box = (x / self.width, 1 - (y + fitted[1]) / self.height, fitted[0] / self.width, fitted[1] / self.height)
        axes = self.figure.add_axes(box)
        axes.imshow(cell.picture, aspect="auto")
        axes.set_axis_off()
        self.write(left + width / 2, y + fitted[1] + 1.6, cell.text, 6)
