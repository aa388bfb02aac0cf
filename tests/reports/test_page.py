"""Pages: escaping, links, the policy that forbids everything from outside, and tables."""

import base64
import hashlib
import os
import re
from urllib.parse import unquote, urljoin

import pytest

from tests.reports.conftest import HOSTILE, Page
from vcp_clip_hf.reports.page import link_to, write_page
from vcp_clip_hf.reports.parts import (
    Beside,
    Cell,
    Chart,
    Facts,
    Gallery,
    KeyNumbers,
    Picture,
    Section,
    Table,
    Text,
    View,
)


EVIL = "</script><img src=x onerror=alert(1)>\"'&<!--"


@pytest.fixture
def write(tmp_path):
    def write_parts(*parts, title="Title", subtitle="", note=""):
        path = write_page(tmp_path / "deep" / "report.html", title, subtitle, [Section("One", "", parts)], note)
        return Page(path)

    return write_parts


def test_names_stay_text_wherever_they_are_written(tmp_path):
    view = View(EVIL, "data:image/webp;base64,AAAA", "./x")
    picture = Picture(EVIL, [view], 0.5, "normal", product=EVIL, failure=EVIL, facts=[(EVIL, EVIL)])
    table = Table([EVIL], [[EVIL], [Cell(EVIL, EVIL, link_to(tmp_path / "a", tmp_path / "b"))]], EVIL, sortable=True)
    parts = [
        *(table, Text(EVIL, "note"), Facts([(EVIL, EVIL)], EVIL), KeyNumbers([(EVIL, EVIL)])),
        *(Gallery([picture], EVIL, threshold=EVIL), Beside([Chart("<svg></svg>", EVIL, EVIL, table)])),
    ]
    page = Page(write_page(tmp_path / "page.html", EVIL, EVIL, [Section(EVIL, EVIL, parts)], EVIL))
    assert not page.all("img") and page.text.count(EVIL) > 20
    assert {tag for tag, _ in page.elements} >= {"table", "svg", "dl", "nav", "main"}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    (outline,) = page.json(**{"class": "outline"})
    assert outline["pictures"][0]["title"] == EVIL and outline["pictures"][0]["facts"] == [[EVIL, EVIL]]
    assert page.json(**{"class": "pictures"}) == [[["data:image/webp;base64,AAAA"]]]
    for text in page.data[:-1]:
        assert "<" not in text, "nothing in a script element can end it"


def test_bytes_that_are_not_unicode_are_written_as_escapes(write):
    assert "\\udcff.png" in write(Text("\udcff.png")).text


def test_the_policy_allows_the_pages_own_script_and_pictures_in_the_file_alone(write):
    page = write(Text("x"))
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    digest = base64.b64encode(hashlib.sha256(page.data[-1].encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy["content"].split(";"))
    assert rules.pop("default-src") == "'none'" and rules.pop("script-src") == f"'sha256-{digest}'"
    assert rules.pop("img-src") == "data:" and rules.pop("style-src") == "'unsafe-inline'"
    assert set(rules.values()) == {"'none'"}
    for address in ("src", "href", "action", "srcset"):
        values = [attributes[address] for _, attributes in page.elements if address in attributes]
        assert all(value.startswith("#") for value in values), values
    assert not re.search(r"\beval\b|new Function|innerHTML|https?:", page.data[-1] + page.source.split("<body>")[0])


def test_links_lead_to_the_file_whatever_its_name(tmp_path):
    page = tmp_path / "out" / "report.html"
    names = [HOSTILE, "a:b.png", "100%41.png", "with space.png", "\udcff.png", "naïve.png"]
    for file in [tmp_path / "in" / name for name in names] + [page.parent / name for name in names]:
        link = link_to(file, page)
        assert re.fullmatch(r"\./[\w./~%-]+", link, re.ASCII)
        resolved = urljoin("file:///" + "x/out/report.html", link).removeprefix("file:///x/")
        assert os.fsencode(tmp_path / os.fsdecode(unquote(resolved, errors="surrogateescape"))) == os.fsencode(file)
    assert link_to("https://example.com/a b", page) == "https://example.com/a b"


def test_numbers_are_right_aligned_and_sorted_by_their_value(write):
    rows = [["a", 0.123456789, 3, None], ["b", float("nan"), None, Cell("12 %", 0.12)]]
    page = write(Table(["Name", "Float", "Count", "Part"], rows, "Caption", sortable=True))
    cells = [attributes for tag, attributes in page.elements if tag in ("td", "th") and "data-value" in attributes]
    assert [cell["data-value"] for cell in cells] == ["a", "0.123456789", "3", "", "b", "", "", "0.12"]
    assert [cell["class"] for cell in cells[:4]] == ["left", "right", "right", "right"]
    assert "0.1235" in page.text and "12 %" in page.text
    assert [each["scope"] for each in page.all("th", scope="row")] == ["row", "row"]


def test_a_page_has_landmarks_headings_and_a_table_of_contents(tmp_path):
    sections = [Section("First"), Section("Second", "Explanation")]
    page = Page(write_page(tmp_path / "page.html", "Title", "Subtitle", sections, "Note."))
    assert page.all("html")[0]["lang"] == "en"
    for tag in ("header", "nav", "main", "footer", "h1", "title", "dialog"):
        assert len(page.all(tag)) == 1, tag
    assert [each["href"] for each in page.all("a")] == ["#contents", "#section-1", "#section-2"]
    headings = {each["id"] for each in page.all("h2")}
    assert [each["aria-labelledby"] in headings for each in page.all("section")] == [True, True]
    assert "Note." in page.text


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "page.html"
    write_page(path, "Old", "", [])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_page(path, "New", "", [Section("x", "", [Gallery([Picture("x", [], float("nan"))])])])
    assert "Old" in Page(path).text and [each.name for each in tmp_path.iterdir()] == ["page.html"]


def test_a_score_of_zero_is_kept(write):
    (outline,) = write(Gallery([Picture("x", [], 0.0)])).json(**{"class": "outline"})
    assert outline["pictures"] == [{"title": "x", "score": 0.0}]


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_without_the_extra_one_sentence_says_what_to_install(package, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'(?i){package}: pip install "vcp-clip-hf\[report\]"$'):
        write_page(tmp_path / "page.html", "x", "", [])
    assert not list(tmp_path.iterdir())
