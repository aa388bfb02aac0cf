"""Charts: the same bytes every time, names as text, print sizes, fonts in the files, and no global state."""

import re
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest

from vcp_clip_hf.reports.charts import (
    Line,
    as_svg,
    histogram,
    histogram_table,
    line_chart,
    movable_threshold,
    save_figure,
)


GROUPS = {"normal": [0.1, 0.2, 0.2, 0.3], "anomalous": [0.3, 0.8]}


def texts(svg: str) -> list[str]:
    return [each.text for each in ET.fromstring(svg.replace("xlink:", "")).iter() if each.tag.endswith("text")]


def test_the_same_data_give_the_same_bytes_and_leave_no_trace(tmp_path):
    before = dict(matplotlib.rcParams)
    first, second = (as_svg(histogram(GROUPS, threshold=0.25)) for _ in range(2))
    assert first == second and "<text" in first and "date" not in first
    files = [save_figure(line_chart([Line("a", [0, 1], [0, 1])], "x", "y"), tmp_path / str(i), "c") for i in range(2)]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in __import__("sys").modules or not matplotlib._pylab_helpers.Gcf.figs


def test_names_are_text(tmp_path):
    evil = "_<script>alert(1)</script> $x$ & \x07\udcff"
    lines = [Line(evil, [0, 1], [0, 1]), Line("b", [0, 1], [1, 0])]
    svg = as_svg(line_chart(lines, evil, evil, note=evil, marks={evil: [0.5]}))
    assert "<script" not in svg
    shown = [text.strip("\u200b") for text in texts(svg) if "alert" in text]
    assert shown == ["_<script>alert(1)</script> $x$ & \ufffd\ufffd"] * 5
    for path in save_figure(histogram({evil: [0.5]}), tmp_path, "x"):
        assert b"<script" not in path.read_bytes()


def test_ids_of_two_charts_differ_and_references_are_kept():
    one, two = as_svg(histogram(GROUPS, threshold=0.25)), as_svg(histogram(GROUPS, threshold=0.26))
    ids = [set(re.findall(r'\bid="([^"]*)"', svg)) for svg in (one, two)]
    assert ids[0] and not ids[0] & ids[1]
    assert set(re.findall(r"(?:url\(#|href=\"#)([^\")]*)", one)) <= ids[0]


def test_the_line_of_a_threshold_moves_in_the_units_of_the_chart():
    figure = histogram(GROUPS, threshold=0.25, limits=(0.0, 1.0))
    svg, moved = as_svg(figure), movable_threshold(figure, 0.25, GROUPS)
    assert (moved.low, moved.high, moved.step) == (0.0, 1.0, 0.001)
    group = svg[svg.index(f'id="{moved.line}"') :]
    here = float(re.search(r"M ([\d.]+)", group)[1])
    other = histogram(GROUPS, threshold=0.75, limits=(0.0, 1.0))
    group = as_svg(other)
    there = float(re.search(r'threshold-line">\s*<path d="M ([\d.]+)', group)[1])
    assert there - here == pytest.approx(0.5 * moved.units_per_score, abs=1e-3)


def test_the_numbers_of_a_histogram_are_those_of_the_scores():
    table = histogram_table(GROUPS, limits=(0.0, 1.0), bins=10)
    assert table.columns == ["From", "To", "normal", "anomalous"]
    counts = {round(row[0], 6): row[2:] for row in table.rows}
    expected = [np.histogram(scores, 10, (0, 1))[0] for scores in GROUPS.values()]
    assert counts == {
        round(i / 10, 6): [int(a), int(b)] for i, (a, b) in enumerate(zip(*expected, strict=True)) if a + b
    }


@pytest.mark.parametrize("scores", [[0.5], [0.0], [1.0], [0.3] * 5])
def test_one_score_alone_has_a_histogram(scores):
    svg = as_svg(histogram({"images": scores}, threshold=0.3))
    assert f"images ({len(scores)})" in texts(svg)


def test_files_for_papers_have_print_sizes_and_embedded_fonts(tmp_path):
    svg, pdf = save_figure(histogram(GROUPS, width="one", height=50), tmp_path / "new", "scores")
    width, height = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', svg.read_text()).groups()
    assert float(width) == pytest.approx(85 / 25.4 * 72, abs=0.1) and float(height) == pytest.approx(
        50 / 25.4 * 72, abs=0.1
    )
    assert "<text" not in svg.read_text(), "text as outlines needs no font"
    assert b"/FontFile2" in pdf.read_bytes() and b"/Type3" not in pdf.read_bytes()


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a\\b", "a:b", "\n"])
def test_only_plain_names_are_written(name, tmp_path):
    with pytest.raises(ValueError, match="is not a file name"):
        save_figure(histogram(GROUPS), tmp_path, name)


def test_more_lines_than_colors_are_refused():
    with pytest.raises(ValueError, match=r"at most 7 lines, got 8"):
        line_chart([Line(str(i), [0], [0]) for i in range(8)], "x", "y")
