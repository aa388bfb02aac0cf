"""Draw charts with matplotlib, in one style, for pages (SVG inside HTML) and for papers (SVG and PDF files).

Colors are those of Okabe and Ito (2008), which color-blind people can tell apart; each line also has its own dashes or
markers, and each histogram its own hatching, so that color is never the only sign. Sizes are those of a printed column
(85 mm) and of a page (175 mm). The same data give the same bytes. Figures are objects of their own: pyplot, with its
global state, is not used.
"""

import copy
import hashlib
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..atomic_write import atomic_file
from .extra import require_extra
from .parts import MovableThreshold, Table


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


__all__ = [
    "GROUP_COLORS",
    "LINE_COLORS",
    "MILLIMETERS",
    "Line",
    "as_svg",
    "chart_style",
    "empty_figure",
    "histogram",
    "histogram_table",
    "line_chart",
    "movable_threshold",
    "new_figure",
    "plain_text",
    "save_figure",
]

# Colors of Okabe and Ito in order of decreasing contrast with white; yellow is left out
LINE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
GROUP_COLORS = {"normal": "#0072B2", "anomalous": "#D55E00", "unlabeled": "#767676"}
_HATCHES = {"normal": "", "anomalous": "////", "unlabeled": ""}
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (2, 3)))
_MARK_DASHES = ((0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MILLIMETERS = {"one": 85, "two": 175}
_INCHES = {width: millimeters / 25.4 for width, millimeters in MILLIMETERS.items()}
# Millimeters of an entry of a legend, without its name, and of a letter
_LEGEND_KEY, _LEGEND_LETTER = 10.0, 1.3
_THRESHOLD_ID = "threshold-line"
_STYLE = {
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "figure.constrained_layout.use": True,
    "font.family": "sans-serif",
    "font.size": 8,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "hatch.linewidth": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,  # TrueType, which publishers ask for
    "svg.hashsalt": "vcp-clip-hf",
    "text.parse_math": False,  # dollar signs in names do not mark formulas
    "xtick.color": "#444444",
    "xtick.labelsize": 7,
    "ytick.color": "#444444",
    "ytick.labelsize": 7,
}


@dataclass(frozen=True)
class Line:
    """
    A line of a chart.

    Args:
        label (`str`): name in the legend.
        x, y (`Sequence[float]`): points; a `nan` interrupts the line.
        low, high (`Sequence[float]`, *optional*): ends of a band around the line, such as an interval.
        markers (`bool`, *optional*, defaults to `False`): whether each point has a marker.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    markers: bool = False


@contextmanager
def chart_style(**settings: object) -> Iterator[None]:
    """
    Draw in the style of the reports, and leave matplotlib's own settings as they were.

    Args:
        settings: further settings of `matplotlib.rcParams`, with underscores for dots.

    Raises:
        ImportError: the extra `report` is not installed.
    """
    require_extra()
    import matplotlib

    own = {name.replace("_", ".", 1): value for name, value in settings.items()}
    with matplotlib.rc_context({**_STYLE, **own}), warnings.catch_warnings():
        # matplotlib's font lacks characters of some scripts; a browser shows them with its own fonts
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def new_figure(width: str = "two", height: float = 60, rows: int = 1, columns: int = 1) -> "tuple[Figure, np.ndarray]":
    """
    Make an empty figure; call it and draw inside [`chart_style`].

    Args:
        width (`str`, *optional*, defaults to "two"): "one" (85 mm, a column) or "two" (175 mm, a page).
        height (`float`, *optional*, defaults to 60): height in millimeters.
        rows, columns (`int`, *optional*, defaults to 1): numbers of charts.

    Returns:
        `tuple`: the figure, and an array of shape `(rows, columns)` of its axes.
    """
    figure = empty_figure(width, height)
    return figure, figure.subplots(rows, columns, squeeze=False)


def empty_figure(width: str, height: float, dpi: int = 100) -> "Figure":
    """
    Make a figure without axes; call it and draw inside [`chart_style`].

    Args:
        width, height: see [`new_figure`].
        dpi (`int`, *optional*, defaults to 100): resolution of pictures in it, in pixels per inch.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(_INCHES[width], height / 25.4), dpi=dpi)


def plain_text(text: str) -> str:
    """Return text without characters that XML does not allow: control characters and halves of surrogate pairs."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)


def line_chart(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    width: str = "one",
    height: float = 60,
    x_limits: tuple[float, float] | None = None,
    y_limits: tuple[float, float] | None = None,
    x_scale: str = "linear",
    y_scale: str = "linear",
    marks: Mapping[str, Sequence[float]] | None = None,
    note: str = "",
) -> "Figure":
    """
    Draw lines.

    Args:
        lines (`Sequence[Line]`): at most seven lines, each with its own color and dashes.
        x_label, y_label (`str`): titles of the axes, with units.
        width, height: see [`new_figure`].
        x_limits, y_limits (`tuple[float, float]`, *optional*): ends of the axes.
        x_scale, y_scale (`str`, *optional*, defaults to "linear"): "linear" or "log".
        marks (`Mapping[str, Sequence[float]]`, *optional*):
            Name -> places on the x axis that get a vertical line, such as "limit" or "resumed".
        note (`str`, *optional*): small text above the chart.

    Returns:
        `matplotlib.figure.Figure`: for [`as_svg`] and [`save_figure`].

    Raises:
        ValueError: there are more lines than colors.
    """
    if len(lines) > len(LINE_COLORS):
        raise ValueError(f"A chart has at most {len(LINE_COLORS)} lines, got {len(lines)}; draw several charts.")
    with chart_style():
        figure, ((axes,),) = new_figure(width, height)
        handles = [_draw_line(axes, line, number) for number, line in enumerate(lines)]
        names = [plain_text(line.label) for line in lines]
        for number, (name, places) in enumerate((marks or {}).items()):
            for place in places:
                dashes = _MARK_DASHES[number % len(_MARK_DASHES)]
                mark = axes.axvline(place, color="#444444", linewidth=0.9, linestyle=dashes)
            if len(places):
                handles.append(mark)
                names.append(plain_text(name))
        _label(axes, x_label, y_label, note)
        axes.set_xscale(x_scale)
        axes.set_yscale(y_scale)
        for axis, scale in ((axes.xaxis, x_scale), (axes.yaxis, y_scale)):
            if scale == "log":
                _label_powers(axis)
        axes.set_xlim(x_limits)
        axes.set_ylim(y_limits)
        _add_legend(axes, handles, names)
    return figure


def _label_powers(axis: "Axis") -> None:
    """Label a logarithmic axis with plain numbers; the default labels are formulas, which are not parsed here."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, place: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def _draw_line(axes: "Axes", line: Line, number: int) -> object:
    color, marker = LINE_COLORS[number], _MARKERS[number] if line.markers or len(line.x) == 1 else ""
    if line.low is not None and line.high is not None:
        axes.fill_between(line.x, line.low, line.high, color=color, alpha=0.15, linewidth=0)
    return axes.plot(line.x, line.y, color=color, linestyle=_DASHES[number], marker=marker)[0]


def histogram(
    groups: Mapping[str, Sequence[float]],
    x_label: str = "Score of the image",
    threshold: float | None = None,
    limits: tuple[float, float] | None = None,
    bins: int | None = None,
    width: str = "two",
    height: float = 55,
    note: str = "",
    threshold_name: str = "threshold",
) -> "Figure":
    """
    Draw how many images have which score.

    Args:
        groups (`Mapping[str, Sequence[float]]`):
            Name of a group ("normal", "anomalous", "unlabeled", or any other) -> its scores. The groups share bins and
            are drawn over each other.
        x_label (`str`, *optional*): title of the x axis.
        threshold (`float`, *optional*): threshold to draw as a line.
        limits (`tuple[float, float]`, *optional*): ends of the x axis; default: those of scores and threshold.
        bins (`int`, *optional*): number of bins; default: 20 to 50, more for more scores.
        width, height: see [`new_figure`].
        note (`str`, *optional*): small text above the chart.
        threshold_name (`str`, *optional*, defaults to "threshold"): name of the line in the legend.

    Returns:
        `matplotlib.figure.Figure`: for [`as_svg`], [`movable_threshold`] and [`save_figure`].
    """
    low, high = limits or _ends(groups, threshold)
    bins = bins or _number_of_bins(groups)
    with chart_style():
        figure, ((axes,),) = new_figure(width, height)
        handles, names = [], []
        for number, (name, scores) in enumerate(groups.items()):
            color = GROUP_COLORS.get(name, LINE_COLORS[number % len(LINE_COLORS)])
            style = {"facecolor": _lighter(color), "edgecolor": color, "alpha": 0.7, "hatch": _HATCHES.get(name, "")}
            inside = np.clip(np.asarray(scores, dtype=np.float64), low, high)
            drawn = axes.hist(inside, bins=bins, range=(low, high), histtype="stepfilled", **style)
            handles.append(drawn[2][0])
            names.append(plain_text(f"{name} ({len(scores)})"))
        if threshold is not None:
            line = axes.axvline(threshold, color="#000000", linewidth=1.4, linestyle=(0, (4, 2)), gid=_THRESHOLD_ID)
            handles.append(line)
            names.append(threshold_name)
        _label(axes, x_label, "Images", note)
        axes.set_xlim(low, high)
        axes.yaxis.get_major_locator().set_params(integer=True)
        _add_legend(axes, handles, names)
    return figure


def histogram_table(
    groups: Mapping[str, Sequence[float]],
    threshold: float | None = None,
    limits: tuple[float, float] | None = None,
    bins: int | None = None,
) -> Table:
    """
    Return the numbers of a histogram, without empty bins.

    Args:
        groups, threshold, limits, bins: those of [`histogram`].
    """
    ends, bins = limits or _ends(groups, threshold), bins or _number_of_bins(groups)
    counts = [np.histogram(np.clip(scores, *ends), bins, ends)[0] for scores in groups.values()]
    edges = np.linspace(*ends, bins + 1)
    rows = [
        [float(low), float(high), *map(int, row)]
        for low, high, row in zip(edges[:-1], edges[1:], np.transpose(counts), strict=True)
        if any(row)
    ]
    return Table(["From", "To", *groups], rows)


def _lighter(color: str) -> tuple[float, ...]:
    """Return a color mixed with white."""
    return tuple(0.45 * int(color[place : place + 2], 16) / 255 + 0.55 for place in (1, 3, 5))


def _number_of_bins(groups: Mapping[str, Sequence[float]]) -> int:
    return max(20, min(50, round(2 * math.sqrt(sum(map(len, groups.values()))))))


def _ends(groups: Mapping[str, Sequence[float]], threshold: float | None) -> tuple[float, float]:
    """Return ends of an axis that holds all scores and the threshold."""
    values = np.array([value for scores in groups.values() for value in scores] + [threshold or 0.0], dtype=np.float64)
    if threshold is None and len(values) > 1:
        values = values[:-1]
    low, high = float(values.min()), float(values.max())
    room = 0.03 * (high - low) or 0.05
    return max(0.0, low - room), high + room


def movable_threshold(
    figure: "Figure",
    value: float,
    groups: Mapping[str, Sequence[float]],
    always_normal: Mapping[str, int] | None = None,
    recorded: Mapping[str, int] | None = None,
    **further: str,
) -> MovableThreshold:
    """
    Describe the threshold of a histogram, so that the page can move its line.

    Args:
        figure (`matplotlib.figure.Figure`): figure of [`histogram`] with a threshold.
        value (`float`): the threshold.
        groups, always_normal, recorded: see [`MovableThreshold`].
        further: `name` and `start` of [`MovableThreshold`].
    """
    _place(figure)
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    left, right = axes.transData.transform([(low, 0), (high, 0)])[:, 0]
    units = (right - left) / (high - low) * 72 / figure.dpi  # SVG units are points
    return MovableThreshold(
        value=value,
        low=low,
        high=high,
        groups=groups,
        units_per_score=float(units),
        always_normal=always_normal or {},
        recorded=recorded or {},
        step=float(f"1e{math.floor(math.log10((high - low) / 500))}"),
        **further,
        line=_prefix(_svg_text(figure, "none")) + _THRESHOLD_ID,
    )


def _label(axes: "Axes", x_label: str, y_label: str, note: str) -> None:
    axes.set_xlabel(plain_text(x_label))
    axes.set_ylabel(plain_text(y_label))
    if note:
        axes.set_title(plain_text(note), loc="left", fontsize=7, color="#444444")


def _add_legend(axes: "Axes", handles: Sequence[object], names: Sequence[str]) -> None:
    """Add a legend above the chart, where it covers nothing; a single line without marks needs none."""
    if len(names) > 1:
        # matplotlib drops names that begin with an underscore; a zero-width space before it keeps them
        shown = [f"\u200b{name}" if name.startswith("_") else name for name in names]
        _place_legend(axes.figure, handles, shown)


def _place_legend(figure: "Figure", handles: Sequence[object], names: Sequence[str]) -> None:
    fitting = 25.4 * figure.get_figwidth() / (_LEGEND_KEY + _LEGEND_LETTER * max(map(len, names)))
    columns = max(1, min(len(names), 4, int(fitting)))
    figure.legend(handles, names, loc="outside upper center", ncols=columns)


def as_svg(figure: "Figure") -> str:
    """
    Return a figure as SVG text for a page: its text stays text, in the page's font.

    Args:
        figure (`matplotlib.figure.Figure`): figure to draw.

    Returns:
        `str`: the element `svg`, without XML declaration; its ids are unlike those of other figures.
    """
    svg = _svg_text(figure, "none")
    prefix = _prefix(svg)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    shape = "wide" if figure.get_figwidth() > 1.5 * _INCHES["one"] else "narrow"
    start = rf'<svg viewBox="\1" class="{shape}" aria-hidden="true">'
    return re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', start, svg, count=1)


def _prefix(svg: str) -> str:
    """Return a prefix of ids that differs between figures with different contents."""
    return f"f{hashlib.sha256(svg.encode()).hexdigest()[:8]}-"


def _place(figure: "Figure") -> None:
    """Place axes and legends once: constrained layout moves them a little each time that it is applied."""
    with chart_style():
        if figure.get_layout_engine() is not None:
            figure.draw_without_rendering()
            figure.set_layout_engine("none")


def _svg_text(figure: "Figure", font_type: str) -> str:
    _place(figure)
    buffer = io.StringIO()
    with chart_style(svg_fonttype=font_type):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def save_figure(figure: "Figure", folder: Path, name: str, widths: Sequence[str] = ("one", "two")) -> list[Path]:
    """
    Write a figure for a paper, in the width of a column (85 mm) and of a page (175 mm): as SVG (text as outlines, so
    that it looks the same everywhere) and as PDF (fonts embedded as TrueType). The figure stays as it is.

    Args:
        figure (`matplotlib.figure.Figure`): figure to write.
        folder (`Path`): folder, made if it is missing.
        name (`str`): file name without width and extension, such as "scores" for "scores-85mm.pdf".
        widths (`Sequence[str]`, *optional*, defaults to both): "one", "two", or both.

    Returns:
        `list[Path]`: the files.

    Raises:
        ValueError: the name is not a plain file name.
    """
    if not name or name.startswith(".") or re.search(r'[\x00-\x1f<>:"/\\|?*]', name):
        raise ValueError(f"{name!r} is not a file name; expected letters, digits, dashes and dots.")
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for width in widths:
        resized, stem = _resized(figure, width), f"{name}-{MILLIMETERS[width]}mm"
        svg, pdf = folder / f"{stem}.svg", folder / f"{stem}.pdf"
        with atomic_file(svg) as unfinished:
            unfinished.write_text(_svg_text(resized, "path"), encoding="utf-8")
        with atomic_file(pdf) as unfinished, chart_style():
            resized.savefig(unfinished, format="pdf", metadata={"CreationDate": None})
        files += [svg, pdf]
    return files


def _resized(figure: "Figure", width: str) -> "Figure":
    """Return a copy of a figure in another width, with a new layout of its parts."""
    if math.isclose(figure.get_figwidth(), _INCHES[width]):
        return figure
    resized = copy.deepcopy(figure)
    resized.set_figwidth(_INCHES[width])
    with chart_style():
        legends, resized.legends[:] = list(resized.legends), []
        for legend in legends:
            _place_legend(resized, legend.legend_handles, [text.get_text() for text in legend.get_texts()])
        resized.set_layout_engine("constrained")
    return resized
