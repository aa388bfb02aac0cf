"""The report of a calibration: what the threshold guarantees, which images determine it, and what was left out."""

import html
import json
import re
import shutil

import numpy as np
import pytest

from tests.reports.conftest import HOSTILE, Page, make_pipe, save_image
from vcp_clip_hf.calibration import from_normal_scores
from vcp_clip_hf.calibration_record import CalibrationRecord
from vcp_clip_hf.input_images import InputImage, find_inputs
from vcp_clip_hf.reports.report import write_report


def calibrate(pipe, folder, normal, defects=(), **options):
    """Calibrate as the command line does, and return the report's page."""
    inputs = find_inputs([normal]).images, find_inputs(defects).images
    labels = [0] * len(inputs[0]) + [1] * len(inputs[1])
    record = CalibrationRecord([*inputs[0], *inputs[1]], labels)
    pipe.calibrate(
        [image.path for image in record.images],
        labels if defects else None,
        on_error="return",
        on_result=record,
        **options,
    )
    record.write(folder, pipe.image_processor.calibration, folder.with_name("checkpoint"), [("gone/<b>", "is gone")])
    return Page(write_report([folder], folder / "report.html"))


@pytest.fixture(scope="module")
def normal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("normal")
    for number in range(9):
        save_image(folder / f"part {number}.png", 50 + number)
    save_image(folder / HOSTILE, 60)
    (folder / "broken.png").write_bytes(b"not a picture")
    return folder


@pytest.fixture(scope="module")
def defects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("defects")
    for number in range(3):
        save_image(folder / f"bad {number}.png", 90 + number)
    return folder


def scores_of(folder, label=0):
    records = map(json.loads, (folder / "scores.jsonl").read_text().splitlines())
    return sorted(each["score"] for each in records if "score" in each and each["label"] == label)


def test_normal_images_with_the_guaranteed_rate(normal, tmp_path):
    page = calibrate(make_pipe(), tmp_path / "r", normal, false_alarm_rate=0.3, pixel_false_alarm_rate=0.2)
    scores = scores_of(tmp_path / "r")
    expected = from_normal_scores(scores, 0.3)
    assert expected.num_above > 0
    assert f"{expected.false_alarm_bound:.2%}" in page.text and "30.00%" in page.text
    assert f"{expected.num_above} of 10" in page.text and f"{expected.threshold:.4g}" in page.text
    assert expected.describe() in page.text
    for rate in (0.01, 0.1, 0.2):
        other = from_normal_scores(scores, rate)
        assert f"{other.threshold:.4g}" in page.text and f"{other.false_alarm_bound:.2%}" in page.text
    assert "cannot be guaranteed; 99 images are needed" in page.text
    assert "Are they really normal?" in page.text and "Precision" not in page.text
    (outline,) = page.json(**{"class": "outline"})
    assert [each["score"] for each in outline["pictures"]] == scores[::-1]
    assert HOSTILE in [each["title"] for each in outline["pictures"]] and not page.all("b")
    assert [view[0] for view in outline["pictures"][0]["views"]] == ["Image", "Overlay", "Map"]
    assert "gone/<b>" in page.text and "broken.png" in page.text and "not an image file" in page.text


def test_too_few_images_for_the_rate_are_a_warning(normal, tmp_path):
    page = calibrate(make_pipe(), tmp_path / "r", normal, false_alarm_rate=0.01)
    (warning,) = re.findall(r'<p class="warning">(.*?)</p>', page.source)
    assert "at least 99 are needed" in html.unescape(warning)


def test_images_with_defects_show_f1_and_the_lowest_of_them(normal, defects, tmp_path):
    pipe = make_pipe()
    page = calibrate(pipe, tmp_path / "r", normal, [str(defects)])
    calibration = pipe.image_processor.calibration["image"]
    assert f"{calibration['f1']:.4g}" in page.text and "Precision and recall" in page.text
    assert "Images with defects, lowest scores" in page.text and "guaranteed: at most" not in page.text
    missed = sum(score < calibration["threshold"] for score in scores_of(tmp_path / "r", 1))
    assert f"{missed} of 3" in page.text
    normals, anomalous = page.json(**{"class": "outline"})
    assert [each["score"] for each in anomalous["pictures"]] == scores_of(tmp_path / "r", 1)
    assert [each["score"] for each in normals["pictures"]] == scores_of(tmp_path / "r")[::-1]


def test_one_image_alone(normal, tmp_path):
    page = calibrate(make_pipe(), tmp_path / "r", str(normal / "part 0.png"), false_alarm_rate=0.5)
    assert "0 of 1" in page.text and "50.00%" in page.text


def test_images_that_are_gone_stay_in_the_report(normal, tmp_path):
    shutil.copytree(normal, tmp_path / "normal")
    pipe = make_pipe()
    calibrate(pipe, tmp_path / "r", tmp_path / "normal", false_alarm_rate=0.3)
    shutil.rmtree(tmp_path / "normal")
    page = Page(write_report([tmp_path / "r"], tmp_path / "later.html"))
    (outline,) = page.json(**{"class": "outline"})
    assert len(outline["pictures"]) == 10 and "part 0.png" in page.text


def test_a_saturated_scale_has_no_threshold_for_small_rates(tmp_path):
    record = CalibrationRecord([InputImage(f"{number}.png", f"{number}") for number in range(4)], [0] * 4)
    for position, score in enumerate((0.2, 0.3, 1.0, 1.0)):
        record(position, {"score": score, "anomaly_map": np.full((4, 4), score, np.float32)})
    made = from_normal_scores([0.2, 0.3, 1.0, 1.0], 0.7)
    record.write(tmp_path / "r", {"image": made.to_dict(), "settings": {"score_mode": "max"}}, tmp_path)
    page = Page(write_report([tmp_path / "r"], tmp_path / "r.html"))
    assert "no threshold keeps this rate" in page.text and made.describe() in page.text


def test_figures_are_written(normal, tmp_path):
    calibrate(make_pipe(), tmp_path / "r", normal, false_alarm_rate=0.3)
    write_report([tmp_path / "r"], tmp_path / "r.html", tmp_path / "figures")
    stems = {file.name.rpartition("-")[0] for file in (tmp_path / "figures").iterdir()}
    assert stems == {"calibration-scores", "calibration-false-alarms"}


def test_a_checkpoint_without_a_record_says_how_to_get_one(normal, tmp_path):
    pipe = make_pipe()
    pipe.calibrate(str(normal / "part 0.png"), false_alarm_rate=0.5)
    pipe.image_processor.save_pretrained(tmp_path / "checkpoint")
    with pytest.raises(FileNotFoundError, match="again with --report"):
        write_report([tmp_path / "checkpoint"], tmp_path / "r.html")
