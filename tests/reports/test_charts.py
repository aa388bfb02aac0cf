"""Charts: the same bytes every time, names as text, print sizes, fonts in the files, and no global state."""

import re
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest

from vcp_clip_hf.reports import charts
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
    figure = histogram(GROUPS, width="one", height=50)
    before = as_svg(figure)
    files = save_figure(figure, tmp_path / "new", "scores")
    assert [file.name for file in files] == [
        f"scores-{width}mm.{ending}" for width in (85, 175) for ending in ("svg", "pdf")
    ]
    for millimeters, svg, pdf in ((85, *files[:2]), (175, *files[2:])):
        width, height = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', svg.read_text()).groups()
        expected = pytest.approx((millimeters / 25.4 * 72, 50 / 25.4 * 72), abs=0.1)
        assert (float(width), float(height)) == expected
        assert "<text" not in svg.read_text(), "text as outlines needs no font"
        content = pdf.read_bytes()
        assert b"/FontFile2" in content and b"/Type3" not in content
        box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", content).groups()
        assert tuple(map(float, box)) == expected
    assert as_svg(figure) == before, "the figure of the page stays as it is"


@pytest.mark.parametrize("width", ["one", "two"])
def test_a_legend_fits_into_a_column(width, tmp_path):
    lines = [Line(f"a rather long name of line {number}", [0, 1], [0, number]) for number in range(5)]
    figure = line_chart(lines, "x", "y", width)
    for other, columns in (("one", 1), ("two", 3)):
        resized = charts._resized(figure, other)
        with charts.chart_style():
            resized.draw_without_rendering()
        (legend,) = resized.legends
        assert legend._ncols == columns and len(legend.get_texts()) == 5
        box, page = legend.get_window_extent(), resized.bbox
        assert box.x0 >= page.x0 and box.x1 <= page.x1


def test_a_logarithmic_axis_has_plain_numbers():
    svg = as_svg(line_chart([Line("rate", [0, 1], [1e-3, 1e-2])], "step", "rate", y_scale="log"))
    assert {"0.001", "0.002", "0.005", "0.01"} <= set(texts(svg)) and "mathdefault" not in svg


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a\\b", "a:b", "\n"])
def test_only_plain_names_are_written(name, tmp_path):
    with pytest.raises(ValueError, match="is not a file name"):
        save_figure(histogram(GROUPS), tmp_path, name)


def test_more_lines_than_colors_are_refused():
    with pytest.raises(ValueError, match=r"at most 7 lines, got 8"):
        line_chart([Line(str(i), [0], [0]) for i in range(8)], "x", "y")
