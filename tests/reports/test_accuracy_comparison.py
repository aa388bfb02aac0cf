"""The report of several evaluations."""

import pytest

from tests.reports.conftest import Page
from tests.reports.evaluations import evaluation
from tests.reports.test_accuracy_report import parts, texts
from tests.training_run import make_records
from vcp_clip_hf.reports.accuracy_comparison import report_evaluations
from vcp_clip_hf.reports.parts import Chart, PictureGrid, Table
from vcp_clip_hf.reports.read_run import find_run
from vcp_clip_hf.reports.report import write_report


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("first", "other")):
        evaluation(root / name, seed, make_records(12).map(lambda row: {"product": "one"}))
    return [root / "first", root / "other"]


@pytest.fixture(scope="module")
def sections(folders, tmp_path_factory):
    figures = tmp_path_factory.mktemp("figures")
    title, _, found = report_evaluations([find_run(each) for each in folders], folders[0] / "x.html", figures)
    assert title == "Comparison of 2 evaluations"
    assert (figures / "squares-one-roc-image-85mm.svg").is_file()
    return {section.title: section for section in found}


def test_all_sections(sections):
    assert list(sections) == ["Runs", "Results", "Differences", "Curves: one", "Where verdicts differ", "Side by side"]
    (settings,) = parts([sections["Runs"]], Table)
    assert settings.columns == ["setting", "first", "other"] and settings.rows[0][0] == "folder"
    assert "settings are equal" in texts([sections["Runs"]])


def test_results_stand_below_each_other(sections):
    (table,) = parts([sections["Results"]], Table)
    assert [row[1:3] for row in table.rows] == [
        ["one", "first"],
        ["one", "other"],
        ["mean", "first"],
        ["mean", "other"],
    ]


def test_differences_have_intervals(sections):
    (table,) = parts([sections["Differences"]], Table)
    assert [row[3] for row in table.rows] == ["AUROC", "PRO", "AP", "image AUROC", "image AP"]
    results = parts([sections["Results"]], Table)[0].rows
    for row, first, other in zip(table.rows, results[0][4:], results[1][4:], strict=True):
        assert (row[5].text, row[6].text) == (first.text, other.text)
        assert row[7].value == pytest.approx((other.value - first.value) / 100) and " to " in row[8]
        assert row[9] in ("yes", "no")
    text = sections["Differences"].explanation
    assert "1000 times" in text and "seed 0" in text and "95 %" in text


def test_curves_of_both_runs_are_in_one_chart(sections):
    charts = parts([sections["Curves: one"]], Chart)
    assert len(charts) == 5 and all("first, " in chart.alt and "other, " in chart.alt for chart in charts)


def test_verdicts_are_those_of_each_runs_best_threshold(sections, folders):
    summary, *lists = parts([sections["Where verdicts differ"]], Table)
    assert sum(summary.rows[0][1:]) == 12
    differing = summary.rows[0][2] + summary.rows[0][3]
    assert sum(len(table.rows) for table in lists) == differing
    for table in lists:
        for row in table.rows:
            right = [cell.text.split()[-1] in ("found", "normal") for cell in row[4:]]
            assert sorted(right) == [False, True]


def test_the_same_images_are_side_by_side(sections):
    (grid,) = parts([sections["Side by side"]], PictureGrid)
    assert grid.columns == ["image", "ground truth", "first", "other"] and len(grid.rows) == 12
    assert all(source.startswith("data:image/webp") for _, cells in grid.rows for source, _ in cells)


def test_the_page(folders, tmp_path):
    page = Page(write_report(folders, tmp_path / "x.html"))
    assert len(page.all("img")) == 48 and all(each["alt"] for each in page.all("img"))


def test_other_images_are_counted(folders, tmp_path):
    evaluation(tmp_path / "part", 1, make_records(12).select(range(8)).map(lambda row: {"product": "one"}))
    evaluation(tmp_path / "none", 1, make_records(8), dataset="others")
    runs = [find_run(each) for each in (folders[0], tmp_path / "part", tmp_path / "none")]
    _, _, sections = report_evaluations(runs[:2], tmp_path / "x.html")
    assert "8 images are in all runs. Images that are not: first: 4; part: 0." in texts(sections)
    assert "≈" in parts(sections[2:3], Table)[0].rows[0][5].text
    _, _, sections = report_evaluations(runs[::2], tmp_path / "x.html")
    assert "The runs have no image in common" in texts(sections) and len(sections) == 3


def test_runs_without_details_have_tables_only(folders, tmp_path):
    evaluation(tmp_path, details=False)
    _, _, sections = report_evaluations([find_run(folders[0]), find_run(tmp_path)], tmp_path / "x.html")
    assert [section.title for section in sections] == ["Runs", "Results", "Differences"]
    assert "vcp-clip evaluate --report writes them" in texts(sections)


def test_mistakes_are_sentences(folders, tmp_path):
    with pytest.raises(ValueError, match="is given twice"):
        write_report([folders[0], folders[0]], tmp_path / "x.html")
    (tmp_path / "log.jsonl").write_text("{}\n")
    with pytest.raises(
        ValueError, match=r"if all are of one kind, predict or evaluate; got .*\(evaluate\).*\(train\)"
    ):
        write_report([folders[0], tmp_path], tmp_path / "x.html")
