"""The parts that a report is made of. They hold plain values; `page.py` writes them as HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar


__all__ = [
    "Beside",
    "Cell",
    "Chart",
    "Facts",
    "Gallery",
    "KeyNumbers",
    "MovableThreshold",
    "Part",
    "Picture",
    "PictureGrid",
    "Section",
    "Table",
    "Text",
    "Value",
    "View",
]


@dataclass(frozen=True)
class Cell:
    """
    A cell of a table with a text that differs from its value.

    Args:
        text (`str`): shown text.
        value (`float` or `str`, *optional*): value that the column is sorted by; default: the text.
        href (`str`, *optional*): relative link, see [`link_to`].
    """

    text: str
    value: float | str | None = None
    href: str = ""


# A cell: text, a number (shown with four significant digits), `None` (shown as a dash), or a `Cell`
Value = str | int | float | None | Cell


@dataclass(frozen=True)
class Table:
    """
    A table.

    Args:
        columns (`Sequence[str]`): headings.
        rows (`Sequence[Sequence[Value]]`): one sequence of cells per row.
        caption (`str`, *optional*): what the table shows.
        sortable (`bool`, *optional*, defaults to `False`): whether headings are buttons that sort the rows.
        align (`Sequence[str]`, *optional*):
            "left" or "right" for each column; default: "right" for columns that hold only numbers.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]
    caption: str = ""
    sortable: bool = False
    align: Sequence[str] = ()
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class MovableThreshold:
    """
    A threshold that is moved with a slider below its chart: the verdicts are counted again, in the chart's section
    and in each gallery with the same `name`.

    Args:
        value (`float`): threshold at the start.
        low, high (`float`): ends of the slider.
        groups (`Mapping[str, Sequence[float]]`):
            Name of a group of images -> scores, each counted as anomalous at or above the threshold.
        always_normal (`Mapping[str, int]`, *optional*):
            Name of a group -> number of further images that are normal at every threshold.
        recorded (`Mapping[str, int]`, *optional*):
            Name of a group -> number of images that the run itself judged anomalous, shown while the threshold is at
            its start.
        start (`str`, *optional*): text before the counts while the threshold is at its start.
        units_per_score (`float`): SVG units by which the line moves if the threshold rises by 1.
        name (`str`, *optional*): identity on the page; letters, digits and dashes.
        step (`float`, *optional*): step of the slider.
        line (`str`, *optional*): id of the line in the SVG text, as `as_svg` returns it.
    """

    value: float
    low: float
    high: float
    groups: Mapping[str, Sequence[float]]
    units_per_score: float
    always_normal: Mapping[str, int] = field(default_factory=dict)
    recorded: Mapping[str, int] = field(default_factory=dict)
    start: str = "Verdicts of the run:"
    name: str = "threshold"
    step: float = 0.0001
    line: str = "threshold-line"


@dataclass(frozen=True)
class Chart:
    """
    A chart.

    Args:
        figure_svg (`str`): SVG text of [`as_svg`]; it is written to the page unchanged.
        alt (`str`): description of the chart, for readers who cannot see it.
        caption (`str`, *optional*): text below the chart.
        table ([`Table`], *optional*): the numbers of the chart, collapsed below it.
        threshold ([`MovableThreshold`], *optional*): a slider below the chart.
    """

    figure_svg: str
    alt: str
    caption: str = ""
    table: Table | None = None
    threshold: MovableThreshold | None = None
    kind: ClassVar[str] = "chart"


@dataclass(frozen=True)
class View:
    """
    One of several views of an image.

    Args:
        name (`str`): "Image", "Overlay", "Map", "Mask", "Ground truth", ...
        thumbnail (`str`): data URI of [`thumbnail`].
        href (`str`, *optional*): link to the full file, see [`link_to`].
    """

    name: str
    thumbnail: str
    href: str = ""


@dataclass(frozen=True)
class Picture:
    """
    An image of a gallery.

    Args:
        title (`str`): name of the image.
        views (`Sequence[View]`): views; the tile shows the first.
        score (`float`, *optional*): score that the gallery is sorted by.
        label (`str`, *optional*): verdict, "normal" or "anomalous".
        truth (`str`, *optional*): label of the image in the dataset, "normal" or "anomalous", if it is known.
        product (`str`, *optional*): product that the gallery can be filtered by.
        failure (`str`, *optional*): sentence that says why there is no result.
        facts (`Sequence[tuple[str, str]]`, *optional*): name and value of further facts, shown in the dialog.
        always_normal (`bool`, *optional*): whether no movable threshold makes the image anomalous.
    """

    title: str
    views: Sequence[View]
    score: float | None = None
    label: str | None = None
    truth: str | None = None
    product: str = ""
    failure: str = ""
    facts: Sequence[tuple[str, str]] = ()
    always_normal: bool = False


@dataclass(frozen=True)
class Gallery:
    """
    Images that are opened with a click or the keyboard.

    Args:
        pictures (`Sequence[Picture]`): pictures in the order in which they are shown at first.
        caption (`str`, *optional*): text above the pictures.
        controls (`bool`, *optional*, defaults to `True`):
            Whether the gallery can be sorted, searched and filtered by label, product and failure.
        threshold (`str`, *optional*): name of the [`MovableThreshold`] that its verdicts follow.
        product_title (`str`, *optional*): word for the products of the images, such as "Folder".
        first_view (`str`, *optional*): name of the view that the tiles show at first; default: each picture's first.
        order (`str`, *optional*): name of the order of `pictures`.
    """

    pictures: Sequence[Picture]
    caption: str = ""
    controls: bool = True
    threshold: str = ""
    product_title: str = "Product"
    first_view: str = ""
    order: str = "As listed"
    kind: ClassVar[str] = "gallery"


@dataclass(frozen=True)
class PictureGrid:
    """
    Pictures side by side: one row for each image, one column for each kind of picture or run.

    Args:
        columns (`Sequence[str]`): headings of the columns with pictures.
        rows (`Sequence[tuple[str, Sequence[tuple[str, str]]]]`):
            Name of the image, and for each column the data URI of a picture ("" for none) and a text below it.
        caption (`str`, *optional*): text above the pictures.
    """

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    caption: str = ""
    kind: ClassVar[str] = "grid"


@dataclass(frozen=True)
class Facts:
    """
    Names and values.

    Args:
        pairs (`Sequence[tuple[str, Value]]`): name and value of each fact.
        caption (`str`, *optional*): text above them.
    """

    pairs: Sequence[tuple[str, Value]]
    caption: str = ""
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class KeyNumbers:
    """
    The most important numbers, in large type.

    Args:
        pairs (`Sequence[tuple[str, Value]]`): number, and the words below it.
    """

    pairs: Sequence[tuple[Value, str]]
    kind: ClassVar[str] = "numbers"


@dataclass(frozen=True)
class Text:
    """
    A paragraph.

    Args:
        text (`str`): plain text.
        tone (`str`, *optional*): "plain", "note" or "warning"; the last two are framed.
    """

    text: str
    tone: str = "plain"
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Beside:
    """
    Parts side by side where the page is wide enough.

    Args:
        parts (`Sequence[Part]`): parts of about equal width.
    """

    parts: "Sequence[Part]"
    kind: ClassVar[str] = "beside"


Part = Table | Chart | Gallery | PictureGrid | Facts | KeyNumbers | Text | Beside


@dataclass(frozen=True)
class Section:
    """
    A section of a page.

    Args:
        title (`str`): heading, listed in the page's table of contents.
        explanation (`str`, *optional*): how to read the section, in one to three sentences.
        parts (`Sequence[Part]`): what the section holds.
    """

    title: str
    explanation: str = ""
    parts: Sequence[Part] = ()
