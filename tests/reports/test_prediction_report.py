"""The report of predict: its numbers are those of the records, for every kind of run."""

import base64
import io
import json
import os
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from PIL import Image

from tests.reports.conftest import HOSTILE, Page, make_pipe, predict, save_image
from vcp_clip_hf import MutualScoring
from vcp_clip_hf.prediction import predict_files, read_predictions
from vcp_clip_hf.reports import thumbnails
from vcp_clip_hf.reports.report import write_report
from vcp_clip_hf.run_settings import RunSettings


def report(folder: Path, page: Path | None = None, **options) -> Page:
    return Page(write_report([folder], page or folder / "report.html", **options))


def gallery(page: Page) -> list[dict]:
    (outline,) = page.json(**{"class": "outline"})
    return outline["pictures"]


def recount(page: Page) -> dict:
    return next(each for each in page.json() if "groups" in each)


@pytest.fixture
def copied(run, tmp_path) -> Path:
    return shutil.copytree(run, tmp_path / "copied")


def test_the_numbers_are_those_of_the_records(run):
    records = {record["image"]: record for record in read_predictions(run)}
    judged = [record for record in records.values() if "error" not in record]
    page = report(run)
    pictures = gallery(page)
    assert len(pictures) == len(records) == 7
    scores = [picture["score"] for picture in pictures if "score" in picture]
    assert scores == sorted((record["score"] for record in judged), reverse=True)
    for picture in pictures:
        record = records[dict(picture["facts"])["File"]]
        assert picture.get("score") == record.get("score") and picture.get("label") == record.get("label")
    counted = recount(page)
    assert counted["recorded"] == {"images": sum(record["label"] == "anomalous" for record in judged)} == {"images": 3}
    assert sorted(counted["groups"]["images"]) == sorted(scores) and counted["fixed"] == {"images": 0}
    (control,) = page.all("div", **{"class": "threshold"})
    assert float(control["data-value"]) == judged[0]["image_threshold"]
    (table,) = (each for each in page.source.split("<tbody>") if ">left</th>" in each)
    assert ">3</td>" in table


def test_failures_have_their_sentences_and_are_not_called_normal(run):
    page = report(run)
    (failed,) = (picture for picture in gallery(page) if "failure" in picture)
    assert failed["title"] == "broken.png" and "label" not in failed and "views" not in failed
    assert "not an image file that Pillow can read" in page.text
    assert "1 image could not be judged and must not be treated as normal" in page.text


def test_links_lead_to_the_files_from_wherever_the_page_is(run, tmp_path):
    for page_file in (run / "report.html", tmp_path / "else where" / "page.html"):
        page = report(run, page_file)
        links = [link for picture in gallery(page) for _, link in picture.get("views", ())]
        assert len(links) == 4 * 6
        for link in links:
            assert (page_file.parent / unquote(link)).is_file(), link
        assert any(link.endswith("%20%231%25.png") for link in links)


def test_a_hostile_name_stays_text(run):
    page = report(run)
    assert [picture["title"] for picture in gallery(page)].count(HOSTILE) == 1
    assert len(page.all("script", type="application/json")) + 1 == len(page.all("script"))


def test_images_that_are_gone_or_changed_are_said_to_be(images, tmp_path):
    moved = shutil.copytree(images, tmp_path / "images")
    output = predict(moved, tmp_path / "out", {"threshold": 0.5})
    whole = Path(write_report([output], output / "a.html")).read_text()
    shutil.rmtree(moved / "left")
    save_image(moved / "right" / "bolt.png", 99)
    (output / "maps" / "right" / "nut.png").write_bytes(b"no map")
    page = report(output)
    pictures = gallery(page)
    assert [len(picture.get("views", ())) for picture in pictures].count(4) == 6, "placeholders stand for them"
    assert page.source != whole


def test_relative_paths_start_where_the_run_started(images, tmp_path, monkeypatch):
    shutil.copytree(images, tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    predict(Path("images"), tmp_path / "out", {"threshold": 0.5})
    expected = report(tmp_path / "out").json(**{"class": "pictures"})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    page = report(tmp_path / "out")
    assert page.json(**{"class": "pictures"}) == expected
    links = [link for picture in gallery(page) for _, link in picture.get("views", ())]
    assert all((tmp_path / "out" / unquote(link)).is_file() for link in links)


def test_a_run_without_thresholds_has_scores_and_no_verdicts(images, tmp_path):
    page = report(predict(images, tmp_path / "out", save_overlays=False))
    assert "had no image threshold, so images have scores but no verdicts" in page.text
    pictures = [picture for picture in gallery(page) if "failure" not in picture]
    assert all("label" not in picture for picture in pictures)
    assert [[name for name, _ in picture["views"]] for picture in pictures] == [["Image", "Overlay", "Map"]] * 6
    assert recount(page)["start"].startswith("This run had no image threshold")
    assert "Nothing is guaranteed" in page.text


def test_a_run_without_any_picture_on_the_disk_is_reported(images, tmp_path):
    output = predict(
        images, tmp_path / "out", {"threshold": 0.5}, save_maps=None, save_masks=False, save_overlays=False
    )
    pictures = [picture for picture in gallery(report(output)) if "failure" not in picture]
    assert [[name for name, _ in picture["views"]] for picture in pictures] == [["Image"]] * 6


def test_maps_as_arrays_are_shown(images, tmp_path):
    as_arrays = report(predict(images, tmp_path / "npy", {"threshold": 0.5}, save_maps="npy"))
    as_pngs = report(predict(images, tmp_path / "png", {"threshold": 0.5}))
    assert as_arrays.json(**{"class": "pictures"}) == as_pngs.json(**{"class": "pictures"})


def test_one_image_and_only_failures(tmp_path):
    save_image(tmp_path / "one" / "a.png", 1)
    page = report(predict(tmp_path / "one", tmp_path / "out", {"threshold": 0.5}))
    assert "1 image, as of" in page.text and len(gallery(page)) == 1
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.png").write_bytes(b"")
    page = report(predict(tmp_path / "none", tmp_path / "failed", {"threshold": 0.5}))
    assert "the file is empty (0 bytes)" in page.text and not page.all("svg")
    assert [picture["title"] for picture in gallery(page)] == ["a.png"]


def test_min_area_keeps_images_normal_at_every_threshold(images, run, tmp_path):
    threshold = read_predictions(run)[0]["threshold"]
    page = report(predict(images, tmp_path / "out", {"threshold": threshold}, min_area=10**6))
    counted = recount(page)
    assert counted["recorded"] == {"images": 0} and counted["fixed"] == {"images": 3}
    assert len(counted["groups"]["images"]) == 3
    assert [picture.get("fixed", False) for picture in gallery(page)].count(True) == 3
    assert "Regions below 1000000 pixels were dropped" in page.text and "applies to 3 images of this run" in page.text


def test_what_the_calibration_guarantees(images, tmp_path):
    for number in range(20):
        save_image(tmp_path / "normal" / f"{number}.png", 100 + number)
    pipe = make_pipe()
    pipe.calibrate([str(path) for path in (tmp_path / "normal").iterdir()], false_alarm_rate=0.1)
    predict_files(pipe, [images], tmp_path / "out", progress=False)
    page = report(tmp_path / "out")
    source = "from 20 normal images"
    assert source in page.text and "of normal images are expected above it" in page.text
    assert "does not hold" not in page.text
    predict_files(pipe, [images], tmp_path / "other", progress=False, image_threshold=0.123)
    page = report(tmp_path / "other")
    assert source in page.text and "the image threshold of this run is 0.123, not the calibrated" in page.text
    assert "were measured in" not in page.text
    pipe.model.to(torch.bfloat16)
    predict_files(pipe, [images], tmp_path / "rounded", progress=False)
    assert "were measured in float32, and this run computed in bfloat16" in report(tmp_path / "rounded").text


def test_images_judged_together_and_references_are_named(tmp_path):
    for number in range(6):
        save_image(tmp_path / "in" / f"{number}.png", number)
    page = report(predict(tmp_path / "in", tmp_path / "together", together=MutualScoring()))
    assert "were judged together" in page.text and dict(gallery(page)[0]["facts"])["Judged with"].endswith(
        "images of this run"
    )
    pipe = make_pipe()
    pipe.set_references([str(tmp_path / "in" / "0.png")], 0.5)
    predict_files(pipe, [tmp_path / "in"], tmp_path / "referenced", progress=False)
    assert "also compared with reference images of the product (weight 0.5)" in report(tmp_path / "referenced").text


def test_frames_of_a_video_have_a_time_and_no_file_of_their_own(copied):
    records = [record for record in read_predictions(copied) if "error" not in record]
    for number, record in enumerate(records):
        record |= {
            "image": f"line.mp4#frame={number}",
            "video": "line.mp4",
            "frame": number,
            "time_seconds": number / 4,
        }
    (copied / "predictions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    pictures = gallery(report(copied))
    assert [[name for name, _ in picture["views"]] for picture in pictures] == [["Overlay", "Map", "Mask"]] * 6
    assert {dict(picture["facts"])["Time in the video"] for picture in pictures} >= {"0.00 s", "1.25 s"}


def test_a_run_of_an_earlier_version_or_without_settings_is_reported(copied):
    content = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps({"settings": content["settings"]}))
    assert "Nothing is guaranteed" in report(copied).text
    (copied / "run.json").unlink()
    assert "run.json is missing or damaged" in report(copied).text


def test_more_images_than_a_page_shows_are_named(run, monkeypatch):
    monkeypatch.setattr("vcp_clip_hf.reports.prediction_report._MOST_PICTURES", 4)
    page = report(run)
    assert len(gallery(page)) == 4 and "The 4 of 7 images with the highest scores are shown" in page.text
    assert len(recount(page)["groups"]["images"]) == 6, "the counts are those of all images"


def test_pictures_shrink_until_the_page_is_small_enough(run, monkeypatch):
    sizes = []
    monkeypatch.setattr("vcp_clip_hf.reports.prediction_pictures._SIDES", (640, 16))
    for budget in (1_000_000, 1000):
        monkeypatch.setattr("vcp_clip_hf.reports.prediction_pictures._BUDGET", budget)
        first = report(run).json(**{"class": "pictures"})[0][0][0]
        sizes.append(Image.open(io.BytesIO(base64.b64decode(first.partition(",")[2]))).size)
    assert sizes == [(80, 64), (16, 13)]


def test_figures_for_papers(run, tmp_path):
    report(run, tmp_path / "report.html", figures=tmp_path / "figures")
    assert {name.rpartition("-")[0] for name in os.listdir(tmp_path / "figures")} == {"qualitative-grid", "scores"}


def test_an_empty_folder_of_records_is_an_error(tmp_path):
    (tmp_path / "predictions.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"has no record of an image in predictions\.jsonl"):
        write_report([tmp_path], tmp_path / "report.html")


def test_what_a_report_needs_is_stored_and_not_compared(run):
    stored = RunSettings.read(run)
    assert stored.context["folder"] == os.getcwd()
    moved = RunSettings(stored.values, {"folder": "/elsewhere"})
    assert moved.differences(stored) == [] and moved == stored


@pytest.mark.parametrize(
    "damage",
    [
        {"score": None},
        {"score": float("nan")},
        {"score": "0.5"},
        {"name": 5},
        {"image": 5},
        {"error": None},
        {"map": 7},
    ],
)
def test_records_that_are_damaged_are_left_out_and_counted(copied, damage):
    lines = (copied / "predictions.jsonl").read_text().splitlines()
    scored = next(number for number, line in enumerate(lines) if "score" in json.loads(line))
    lines[scored] = json.dumps({**json.loads(lines[scored]), **damage})
    (copied / "predictions.jsonl").write_text("\n".join(lines))
    page = report(copied)
    assert len(gallery(page)) == len(lines) - 1 and "1 record could not be read" in page.text


def test_a_run_with_failures_only_knows_its_thresholds(tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.png").write_bytes(b"")
    settings = {"threshold": 0.25, "image_threshold": 0.75}
    page = report(predict(tmp_path / "none", tmp_path / "failed", settings))
    facts = "".join(page.text.split())
    assert "Imagethreshold0.75Pixelthreshold0.25" in facts


def test_records_without_the_size_of_the_image_show_it(copied):
    records = [json.loads(line) for line in (copied / "predictions.jsonl").read_text().splitlines()]
    expected = gallery(report(copied)), report(copied).json(**{"class": "pictures"})
    for record in records:
        record.pop("bytes", None)
    (copied / "predictions.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert (gallery(report(copied)), report(copied).json(**{"class": "pictures"})) == expected


def test_files_outside_of_the_run_are_not_shown(run, copied):
    records = [json.loads(line) for line in (copied / "predictions.jsonl").read_text().splitlines()]
    scored = next(record for record in records if "map" in record)
    scored["map"] = os.path.relpath(run / scored["map"], copied)
    (copied / "predictions.jsonl").write_text("\n".join(map(json.dumps, records)))
    shown = [view for chunk in report(copied).json(**{"class": "pictures"}) for picture in chunk for view in picture]
    assert thumbnails.placeholder("outside of the run's folder", 640) in shown
