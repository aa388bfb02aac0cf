"""What the page does, without a browser and without Gradio."""

import copy
import csv
import io
import json
import zipfile
from pathlib import Path

import inspection
import numpy as np
import pytest
from inspection import Inspector
from PIL import Image
from transformers import pipeline

from tests.space.conftest import count_forwards, picture
from vcp_clip_hf import VCPCLIPImageProcessor


# --- one picture ----------------------------------------------------------------------------------------------------


def test_the_threshold_is_read_from_the_kept_map(inspector, pipe, session, files):
    calls = count_forwards(pipe)
    path = str(files / "part 0.png")
    inspector.segment(session, path)
    assert len(calls) == 1
    level = float(np.quantile(session.segmented.anomaly_map, 0.8))
    for threshold, min_area in ((level, 0), (level, 40), (0.0, 0), (1.0, 0)):
        same, text, (original, marked), scale, regions, _ = inspector.set_threshold(session, threshold, min_area)
        assert same is session and len(calls) == 1, "no second forward pass"
        result = inspector.read(session)
        expected = pipe(path, threshold=threshold, min_area=min_area, regions=True, heatmap=True)
        calls.pop()
        assert result["regions"] == expected["regions"] and result["label"] == expected["label"]
        np.testing.assert_array_equal(np.asarray(result["mask"]), np.asarray(expected["mask"]))
        np.testing.assert_array_equal(result["anomaly_map"], expected["anomaly_map"])
        assert f"part 0.png: {expected['label']}." in text and f"{expected['score']:.3f}" in text
        assert regions.count("<tr>") == len(expected["regions"]) + bool(expected["regions"])
        assert original.size == marked.size == (80, 60) and scale.height >= 60 and scale.width > 80


def test_without_a_threshold_there_is_no_verdict(inspector, session, files):
    _, text, pictures, scale, regions, _ = inspector.segment(session, str(files / "part 1.png"))
    assert "No verdict" in text and not regions and pictures is not None and scale is not None
    assert "anomalous" not in text and "normal" not in text
    _, text, _, _, regions, _ = inspector.set_threshold(session, 0.0, 0)
    assert "anomalous" in text and regions
    # the picture is removed
    _, text, *rest = inspector.segment(session, None)
    assert "Choose a picture" in text and rest == [None, None, "", ""]


def test_the_checkpoints_thresholds_are_where_it_starts(pipe, files):
    pipe.image_processor.threshold = pipe.image_processor.image_threshold = 0.01
    inspector = Inspector(pipe)
    _, text, *_ = inspector.segment(inspector.new_session(), str(files / "part 1.png"))
    assert "anomalous" in text and "threshold 0.010" in text


def test_scores_of_another_scale_keep_their_own_threshold(pipe, files):
    pipe.image_processor.score_mode = "top_k"
    inspector = Inspector(pipe)
    session = inspector.new_session()
    inspector.segment(session, str(files / "part 1.png"))
    _, text, *_, regions, _ = inspector.set_threshold(session, 0.0, 0)
    assert "No verdict" in text and regions, "the map has a threshold, the score has none"
    _, text, _ = inspector.calibrate(session, [str(path) for path in files.glob("*.png")], 0.5)
    assert "by eye" in text and session.threshold == 0.0
    _, text, *_ = inspector.view(session)
    assert f"threshold {session.processor.image_threshold:.3f}" in text


def test_files_are_read_as_the_package_reads_them(inspector, pipe, session, tmp_path):
    deep = np.asarray(picture().convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(tmp_path / "turned.jpg", exif=exif)
    for name, size in (("deep.png", (80, 60)), ("turned.jpg", (60, 80))):
        inspector.segment(session, str(tmp_path / name))
        assert session.segmented.image.size == size
        np.testing.assert_array_equal(session.segmented.anomaly_map, pipe(str(tmp_path / name))["anomaly_map"])


def test_mistakes_become_messages_that_show_no_folder(inspector, session, tmp_path, monkeypatch):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    picture().save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:300])
    picture().save(tmp_path / "<b>large.png")
    monkeypatch.setattr(inspection, "MAX_MEGAPIXELS", 0.004)
    for name, words in (
        ("broken.png", "not an image file"),
        ("<b>large.png", "&lt;b&gt;large.png: the image has 0 megapixels; this page takes up to 0.004"),
        ("gone.png", "not an image file"),
    ):
        _, text, *rest = inspector.segment(session, str(tmp_path / name))
        assert words in text and 'class="message error"' in text and str(tmp_path) not in text
        assert rest == [None, None, "", ""] and session.segmented is None
    monkeypatch.setattr(inspection, "MAX_MEGAPIXELS", 1)
    assert "damaged or truncated" in inspector.segment(session, str(tmp_path / "cut.png"))[1]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "far too large" in inspector.segment(session, str(tmp_path / "<b>large.png"))[1]


# --- many pictures --------------------------------------------------------------------------------------------------


def test_a_batch_can_be_downloaded(inspector, pipe, session, files):
    (files / "broken.png").write_bytes(b"no picture")
    paths = [str(path) for path in sorted(files.iterdir())]
    # below the score: a batch and a single image differ in the last digit
    session.threshold = float(pipe(str(files / "part 0.png"))["score"]) - 1e-4
    steps = []
    _, text, table, pictures, archive = inspector.segment_batch(session, paths, lambda step, desc: steps.append(step))
    assert "4 segmented, 1 failed" in text and steps == [(0, 4)]
    assert "broken.png: not an image file" in table and len(pictures) == 4
    assert str(files) not in text + table
    with zipfile.ZipFile(archive) as content:
        names = set(content.namelist())
        lines = content.read("predictions.jsonl").decode()
        rows = list(csv.DictReader(io.StringIO(content.read("predictions.csv").decode())))
        values = np.asarray(Image.open(io.BytesIO(content.read("maps/part 0.png"))))
    assert {"maps/part 1.png", "masks/part 1.png", "overlays/part 1.jpg"} <= names
    assert str(files) not in lines
    records = {record["image"]: record for record in map(json.loads, lines.splitlines())}
    assert (
        set(records) == {row["image"] for row in rows} == {"broken.png", *(f"part {index}.png" for index in range(4))}
    )
    expected = pipe(str(files / "part 0.png"), threshold=session.threshold, regions=True)
    assert records["part 0.png"]["score"] == pytest.approx(expected["score"], abs=1e-5)
    assert records["part 0.png"]["label"] == "anomalous" and "regions" in records["part 0.png"]
    np.testing.assert_allclose(values / 65535, expected["anomaly_map"], atol=2e-5)
    # the next batch replaces it
    *_, second = inspector.segment_batch(session, paths[:2])
    assert not Path(archive).exists() and Path(second).is_file()
    session.close()
    assert not Path(second).exists()


def test_a_batch_has_limits(inspector, session, files, monkeypatch):
    for paths in (None, [], [str(files / "notes.txt")]):
        _, text, *rest = inspector.segment_batch(session, paths)
        assert "No images" in text and rest == ["", [], None]
    monkeypatch.setattr(inspection, "MAX_FILES", 3)
    _, text, *rest = inspector.segment_batch(session, [str(path) for path in files.iterdir()])
    assert "4 images; this page takes up to 3" in text and rest == ["", [], None]
    (files / "broken.png").write_bytes(b"no picture")
    _, text, table, pictures, archive = inspector.segment_batch(session, [str(files / "broken.png")])
    assert "0 segmented, 1 failed" in text and "broken.png" in table and not pictures and archive


# --- calibration and words ------------------------------------------------------------------------------------------


def test_calibration_is_the_pipelines_and_stays_with_the_visitor(inspector, pipe, session, files, checkpoint):
    other = inspector.new_session()
    paths = [str(path) for path in sorted(files.iterdir())]
    _, text, config = inspector.calibrate(session, paths, 0.5)
    reference = pipeline("anomaly-segmentation", model=checkpoint)
    calibration = reference.calibrate([path for path in paths if path.endswith(".png")], false_alarm_rate=0.5)
    assert session.threshold == pytest.approx(calibration.threshold) and calibration.describe() in text
    saved = VCPCLIPImageProcessor.from_pretrained(Path(config).parent)
    assert saved.threshold == session.threshold and saved.calibration["image"]["num_images"] == 4
    assert pipe.image_processor.threshold is None and other.processor.threshold is other.threshold is None
    # a rate that four images cannot guarantee
    _, text, _ = inspector.calibrate(session, paths, 0.01)
    assert "cannot be guaranteed" in text and "warning" in text


def test_a_calibration_that_fails_changes_nothing(inspector, session, files):
    inspector.calibrate(session, [str(files / "part 0.png")], 0.5)
    before = session.threshold, session.processor
    (files / "broken.png").write_bytes(b"no picture")
    for paths, words in (([], "No images"), ([str(path) for path in files.iterdir()], "broken.png: not an image")):
        _, text, config = inspector.calibrate(session, paths, 0.5)
        assert words in text and str(files) not in text and config is None
        assert (session.threshold, session.processor) == before


def test_words_are_the_pipelines_prompts(inspector, pipe, session, files):
    path = str(files / "part 0.png")
    inspector.segment(session, path)
    own = session.segmented.anomaly_map
    _, text = inspector.set_words(session, "flawless\n a photo of a clean {} \n", "cracked\nworn")
    assert 'class="message normal"' in text
    prompts = {"normal": ["flawless", "a photo of a clean {}"], "abnormal": ["cracked", "worn"]}
    assert session.prompts == prompts
    np.testing.assert_array_equal(session.segmented.anomaly_map, pipe(path, prompts=prompts)["anomaly_map"])
    assert np.abs(session.segmented.anomaly_map - own).max() > 1e-4
    # a mistake does not change the words
    for normal, abnormal, words in (
        ("a", "b\nc", "same number"),
        ("a", "", "both states"),
        ("{} {}", "b", "exactly one"),
    ):
        _, text = inspector.set_words(session, normal, abnormal)
        assert words in text and "error" in text and session.prompts == prompts
    session.threshold = 0.5
    _, text = inspector.set_words(session, "", "")
    assert session.prompts is None and "calibrate again" in text
    np.testing.assert_array_equal(session.segmented.anomaly_map, own)


def test_words_need_a_tokenizer(inspector, pipe, session):
    _, text = inspector.set_words(session, "good", "bad")
    assert "error" not in text, "without a picture they are tried on an empty one"
    pipe.tokenizer = None
    session.prompts = None
    _, text = inspector.set_words(session, "good", "bad")
    assert "tokenizer" in text and "error" in text and session.prompts is None


def test_the_checkpoints_own_threshold_is_said_to_be_of_other_products(pipe, files):
    shared = copy.copy(pipe)
    shared.image_processor = copy.deepcopy(pipe.image_processor)
    shared.image_processor.threshold = 0.4
    inspector = Inspector(shared)
    session = inspector.new_session()
    path = str(files / "part 0.png")
    assert "measured on other products" in inspector.segment(session, path)[1]
    assert "measured on other products" not in inspector.set_threshold(session, 0.3, 0)[1]
