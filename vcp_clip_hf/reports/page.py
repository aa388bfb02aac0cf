"""Write a report as one HTML file: style, script, charts and pictures inside, nothing from outside.

Every value is escaped where it is written: in HTML by Jinja's autoescape, in JSON inside script elements by `_json`,
in links by percent-encoding. The page's Content-Security-Policy allows only its own script, by its hash, and pictures
that are in the file. It is a second barrier: text that was not escaped could neither run nor send anything.
"""

import base64
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..atomic_write import atomic_file
from ..version import __version__
from .extra import require_extra
from .parts import Cell, Gallery, Picture, Section, Table, Value


__all__ = ["REPORT_FILE", "link_to", "write_page"]

# Name of the report in the folder of its run
REPORT_FILE = "report.html"
_TEMPLATES = Path(__file__).parent / "templates"
# Pictures per inert script element: one is parsed when its first picture comes into view
_CHUNK = 8


def link_to(file: str | os.PathLike, page: str | os.PathLike) -> str:
    """
    Return a link from a page to a file.

    Args:
        file (`str` or `os.PathLike`): the file, anywhere on the same disk; or an http(s) URL.
        page (`str` or `os.PathLike`): the HTML file that holds the link.

    Returns:
        `str`: path relative to the page's folder, percent-encoded byte by byte; a URL is returned unchanged.
    """
    if isinstance(file, str) and file.startswith(("http://", "https://")):
        return file
    folder = os.path.dirname(os.path.abspath(page))
    try:
        relative = os.path.relpath(os.path.abspath(file), folder)
    except ValueError:  # another drive of Windows
        return Path(os.path.abspath(file)).as_uri()
    # "./" keeps a first part with a colon from being read as a scheme
    return "./" + quote(os.fsencode(Path(relative).as_posix()))


def write_page(
    path: str | os.PathLike, title: str, subtitle: str, sections: Sequence[Section], note: str = ""
) -> Path:
    """
    Write a report.

    Args:
        path (`str` or `os.PathLike`): HTML file to write; it is complete or unchanged. Missing folders are created.
        title (`str`): heading of the page.
        subtitle (`str`): line below it.
        sections (`Sequence[Section]`): contents, in order.
        note (`str`, *optional*): further text for the foot of the page.

    Returns:
        `Path`: the file.

    Raises:
        ImportError: the extra `report` is not installed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    script = _asset("report.js")
    page = (
        _environment()
        .get_template("report.html")
        .stream(
            title=title,
            subtitle=subtitle,
            sections=sections,
            note=note,
            version=__version__,
            style=_asset("report.css"),
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )
    page.enable_buffering(50)
    with atomic_file(path) as unfinished, open(unfinished, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(page)
    return path


def _asset(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _environment() -> Any:
    require_extra()
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    # the only values that are not escaped: files of this package, SVG text of `as_svg`, and JSON of `_json`
    environment.filters["trusted"] = Markup
    environment.filters["as_json"] = lambda value: Markup(_json(value))
    environment.filters["cell_text"] = _cell_text
    environment.filters["cell_value"] = _cell_value
    environment.filters["alignments"] = _alignments
    environment.filters["outline"] = _outline
    environment.filters["picture_chunks"] = _picture_chunks
    return environment


def _json(value: Any) -> str:
    """Return JSON that cannot end a script element or start a comment in it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII only
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _cell_text(value: Value) -> str:
    if isinstance(value, Cell):
        return value.text
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell_value(value: Value) -> str:
    """Return what a cell is sorted by; an empty string, for a cell without a value, is sorted to the end."""
    value = (value.text if value.value is None else value.value) if isinstance(value, Cell) else value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(value) if isinstance(value, float) else str(value)


def _alignments(table: Table) -> list[str]:
    if table.align:
        return list(table.align)
    return ["right" if _is_numeric([row[c] for row in table.rows]) else "left" for c in range(len(table.columns))]


def _is_numeric(values: Sequence[Value]) -> bool:
    values = [value.value if isinstance(value, Cell) else value for value in values]
    return any(value is not None for value in values) and all(
        value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)) for value in values
    )


def _outline(gallery: Gallery) -> dict[str, Any]:
    """Return a gallery without its pictures' data, for the page's script."""
    return {
        "chunk": _CHUNK,
        "product": gallery.product_title,
        "view": gallery.first_view,
        "order": gallery.order,
        "pictures": [_described(picture) for picture in gallery.pictures],
    }


def _described(picture: Picture) -> dict[str, Any]:
    described = {
        "title": picture.title,
        "score": picture.score,
        "label": picture.label,
        "truth": picture.truth,
        "product": picture.product,
        "failure": picture.failure,
        "facts": [list(fact) for fact in picture.facts],
        "views": [[view.name, view.href] for view in picture.views],
        "fixed": picture.always_normal or None,
    }
    # a score of 0 stays
    return {name: value for name, value in described.items() if value == 0 or value}


def _picture_chunks(gallery: Gallery) -> Iterator[list[list[str]]]:
    """Yield the thumbnails of the views of a few pictures at a time."""
    for start in range(0, len(gallery.pictures), _CHUNK):
        yield [[view.thumbnail for view in each.views] for each in gallery.pictures[start : start + _CHUNK]]
