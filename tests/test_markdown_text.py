"""Names from users' data in Markdown stay text; checked with a Markdown renderer."""

import html
import re

import pytest
from markdown_it import MarkdownIt

from vcp_clip_hf.markdown_text import as_code, escaped, one_line, table


RENDERER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
NAMES = [
    "<script>alert(1)</script>",
    "a|b",
    "a\\|b\\",
    "[x](javascript:alert(1))",
    "![x](http://example.com/a.png)",
    "`code` ``more``",
    "**bold** __bold__ *i* _i_ ~~gone~~",
    "_leading and trailing_",
    "metal_nut",
    "# heading",
    "- item",
    "+ item",
    "1. item",
    "12) item",
    "> quote",
    "---",
    "===",
    "&lt;b&gt; &#60;",
    "<http://example.com>",
    "two\nlines\r\n\r\n# three",
    "    indented",
    "[ref]: http://example.com",
    "back\\slash\\",
    "$x^2$",
    "缺陷 ß é",
    "",
]


def shown(markup: str) -> str:
    """Return the text that a browser shows for HTML without any element but the expected ones."""
    assert not re.search(r"<(?!/?(p|code|td|tr|th|table|thead|tbody|strong)\b)", markup), markup
    return html.unescape(re.sub(r"</?\w[^>]*>", "", markup)).strip()


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are(name):
    expected = " ".join(name.split())
    assert shown(RENDERER.render(escaped(name))) == expected
    assert shown(RENDERER.render(f"In {escaped(name)}: more.")) == f"In {expected}: more."
    assert shown(RENDERER.render(f"**{escaped(name) or 'none'}**")) == (expected or "none")


@pytest.mark.parametrize("name", NAMES)
def test_names_stay_in_their_cell(name):
    expected = " ".join(name.split())
    text = table(("a", "b", "c"), [[escaped(name), as_code(name), "1"]], "llr")
    cells = re.findall(r"<td[^>]*>(.*?)</td>", RENDERER.render(text))
    assert [shown(cell) for cell in cells] == [expected, expected, "1"]
    assert len(text.splitlines()) == 3


@pytest.mark.parametrize("name", NAMES)
def test_code_is_shown_as_it_is(name):
    rendered = RENDERER.render(f"From {as_code(name)}.")
    assert shown(rendered) == f"From {' '.join(name.split())}." and rendered.count("<code>") == 1


def test_usual_names_are_not_spoiled():
    for name in ("metal_nut", "pcb1", "capsule (v2)", "ViT-L/14@336", "a.b-c"):
        assert escaped(name) == name


def test_addresses_do_not_become_links():
    assert "://" not in escaped("http://example.com") and "www." not in escaped("see www.example.com")
    assert shown(RENDERER.render(escaped("http://www.example.com"))) == "http://www.example.com"


def test_control_characters_are_removed():
    assert one_line("a\x1b[31m\tb\u202ec\x00") == "a [31m bc" and one_line("not UTF-8 \udcff") == "not UTF-8 ?"


def test_bars_of_other_cells_do_not_end_them():
    text = table(("a",), [["`x|y` \\| z\nw"]], "l")
    assert re.findall(r"<td>(.*?)</td>", RENDERER.render(text)) == ["<code>x|y</code> | z w"]
