"""The report of several runs of predict: verdicts, masks, pictures side by side."""

import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.reports.conftest import HOSTILE, predict
from tests.reports.test_accuracy_report import parts, texts
from vcp_clip_hf.prediction import read_predictions
from vcp_clip_hf.reports.parts import Chart, PictureGrid, Table
from vcp_clip_hf.reports.prediction_comparison import mask_overlap, report_predictions
from vcp_clip_hf.reports.read_run import find_run
from vcp_clip_hf.reports.report import write_report


@pytest.fixture(scope="module")
def other(run, images, tmp_path_factory):
    """A run of the same images with a higher threshold."""
    scores = sorted(record["score"] for record in read_predictions(run) if "error" not in record)
    limit = (scores[-2] + scores[-1]) / 2
    return predict(images, tmp_path_factory.mktemp("other"), {"threshold": limit, "image_threshold": limit})


@pytest.fixture(scope="module")
def sections(run, other, tmp_path_factory):
    page = tmp_path_factory.mktemp("page") / "x.html"
    _, subtitle, found = report_predictions([find_run(run), find_run(other)], page, page.parent / "figures")
    assert subtitle == "6 images with a result in every run"
    return {section.title: section for section in found}


def test_masks_overlap():
    one, other = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert mask_overlap(one, other) == 1
    one[0], other[:2] = True, True
    assert mask_overlap(one, other) == 0.5 and mask_overlap(one, ~one) == 0
    assert math.isnan(mask_overlap(one, np.zeros((3, 4), bool)))


def test_runs_and_settings(sections):
    settings, counts = parts([sections["Runs"]], Table)
    assert {row[0] for row in settings.rows} == {"folder", "threshold", "image_threshold"}
    assert [row[1:] for row in counts.rows] == [[7, 3, 3, 1, 0], [7, 1, 5, 1, 0]]


def test_verdicts_and_masks(sections, run, other):
    summary, differing = parts([sections["Where verdicts differ"]], Table)
    assert summary.rows[0][1:5] == [1, 2, 0, 3]
    records = [{each["image"]: each for each in read_predictions(folder)} for folder in (run, other)]
    ious = []
    for image, record in records[0].items():
        if "error" not in record:
            masks = [
                np.asarray(Image.open(folder / each[image]["mask"])) > 0
                for folder, each in zip((run, other), records, strict=True)
            ]
            ious.append(mask_overlap(*masks))
    assert summary.rows[0][5] == pytest.approx(np.mean(ious)) and summary.rows[0][6] == 6
    assert len(differing.rows) == 2
    for row in differing.rows:
        assert [cell.text.split()[1] for cell in row[1:3]] == ["anomalous", "normal"]


def test_scores_and_pictures(sections):
    (chart,) = parts([sections["Scores"]], Chart)
    assert "2 of 6 have another verdict" in chart.caption
    (grid,) = parts([sections["Side by side"]], PictureGrid)
    assert len(grid.rows) == 6 and HOSTILE in "".join(title for title, _ in grid.rows)
    assert all(source.startswith("data:image/webp") for _, cells in grid.rows for source, _ in cells)


def test_a_run_without_verdicts_differs_in_none(run, images, tmp_path):
    predict(images, tmp_path / "plain")
    _, _, sections = report_predictions([find_run(run), find_run(tmp_path / "plain")], tmp_path / "x.html")
    assert "No image has different verdicts." in texts(sections) and "are not counted" in texts(sections)


def test_other_images_are_not_compared(run, tmp_path):
    for name, kept in (("some", 4), ("none", 0)):
        shutil.copytree(run, tmp_path / name)
        records = read_predictions(run)[:kept]
        lines = [
            json.dumps(each) for each in [*records, {"image": "elsewhere.png", "name": "elsewhere", "error": "gone"}]
        ]
        (tmp_path / name / "predictions.jsonl").write_text("".join(f"{line}\n" for line in lines))
    _, subtitle, sections = report_predictions([find_run(run), find_run(tmp_path / "some")], tmp_path / "x.html")
    assert subtitle.startswith(("3 images", "4 images")) and parts(sections[:1], Table)[1].rows[1][-1] == 1
    _, _, sections = report_predictions([find_run(run), find_run(tmp_path / "none")], tmp_path / "x.html")
    assert "no image in common" in texts(sections)


def test_the_page_is_written(run, other, tmp_path):
    assert write_report([run, other], tmp_path / "x.html").stat().st_size > 10_000
