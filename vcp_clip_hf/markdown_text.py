"""Names from users' data in Markdown: product, dataset and file names stay text, whatever characters they have."""

import re
from collections.abc import Sequence


__all__ = ["as_code", "escaped", "one_line", "table"]

# Markup as entities, so that no renderer and no table can take them for its own characters
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "`": "&#96;"}
# An underscore inside a word does not start emphasis, and escaping it would spoil most names
_SPECIAL = re.compile(r"[\\*\[\]$~&<>|`]|(?<![^\W_])_|_(?![^\W_])")
# Headings, lists and rulers at the beginning of a paragraph
_BLOCK = re.compile(r"(?:(?=[#+=-])|(?<=^)\d{1,9}(?=[.)]))")
# Renderers turn bare addresses into links
_ADDRESS = re.compile(r":(?=//)|(?<=\bwww)\.", re.IGNORECASE)
# Characters that reverse the direction of the text after them
_DIRECTIONS = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def one_line(text: str) -> str:
    """Return a text on one line, with spaces for control characters and "?" for what has no place in UTF-8."""
    text = str(text).encode("utf-8", "replace").decode("utf-8")
    text = "".join(" " if ord(each) < 32 or 127 <= ord(each) < 160 else each for each in _DIRECTIONS.sub("", text))
    return " ".join(text.split())


def escaped(text: str) -> str:
    """
    Return Markdown that shows a text as it is: no HTML, link, emphasis, heading or table cell begins in it.

    Args:
        text (`str`): name or sentence that users' data determines.
    """
    text = one_line(text)
    begins_block = _BLOCK.match(text)
    end = begins_block.end() if begins_block else 0
    head, tail = text[:end], _SPECIAL.sub(_escape, text[end:])
    tail = _ADDRESS.sub(lambda match: f"&#{ord(match[0])};", tail)
    return f"{head}\\{tail}" if begins_block else tail


def _escape(match: re.Match) -> str:
    return _ENTITIES.get(match[0]) or f"\\{match[0]}"


def as_code(text: str) -> str:
    """Return Markdown that shows a text as code, also inside a table."""
    text = one_line(text)
    if not text or "`" in text or "|" in text:
        return f"<code>{escaped(text)}</code>"
    return f"`{text}`"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """
    Return a table in Markdown.

    Args:
        header (`Sequence[str]`): titles of the columns, in Markdown.
        rows (`Sequence[Sequence[str]]`): cells in Markdown, with names from users' data escaped.
        align (`str`): "l" or "r" for each column.
    """
    ruler = "|" + "|".join({"l": "---", "r": "---:"}[side] for side in align) + "|"
    lines = ["| " + " | ".join(map(_cell, cells)) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], ruler, *lines[1:]])


def _cell(text: str) -> str:
    """Return Markdown without line breaks, and with bars that do not end the cell."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split("\n")))
