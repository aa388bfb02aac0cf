"""What a calibration measured: kept beside the checkpoint, never inside."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vcp_clip_hf.calibration_record import CalibrationRecord, read_calibration, record_folder
from vcp_clip_hf.input_images import InputImage


CALIBRATION = {"image": {"threshold": 0.5, "method": "conformal", "num_images": 3}}


def result(score, size=(8, 10)):
    return {"score": score, "anomaly_map": np.full(size, score, np.float32)}


def record_of(scores, labels):
    images = [InputImage(f"images/{number}.png", f"{number}") for number in range(len(scores))]
    record = CalibrationRecord(images, labels)
    for position, score in enumerate(scores):
        record(position, result(score) if isinstance(score, float) else score)
    return record


def test_the_record_is_written_and_read(tmp_path):
    record = record_of([0.25, {"error": "broken"}, 0.75, {"left_out": "one of the references"}], [0, 0, 1, 0])
    folder = record_folder(tmp_path / "checkpoint")
    assert folder == tmp_path / "checkpoint-report"
    record.write(folder, CALIBRATION, tmp_path / "checkpoint", [("gone", "does not exist")])
    for given in (folder, tmp_path / "checkpoint"):
        facts, records = read_calibration(given)
        assert facts["calibration"] == CALIBRATION and facts["folder"] == folder
        assert facts["images"] == {"normal": 3, "anomalous": 1} and facts["problems"] == [["gone", "does not exist"]]
        assert [each.get("score") for each in records] == [0.25, None, 0.75, None]
        assert records[1]["error"] == "broken" and records[3]["left_out"] == "one of the references"
    with Image.open(folder / records[2]["map"]) as drawn:
        np.testing.assert_allclose(np.asarray(drawn) / 65535, 0.75, atol=1e-4)
        assert drawn.size == (10, 8)


def test_maps_of_the_highest_normal_and_the_lowest_anomalous_images_are_kept(tmp_path):
    scores = [float(each) for each in np.random.default_rng(0).permutation(100) / 100]
    record = record_of(scores, [0] * 50 + [1] * 50)
    record.write(tmp_path / "r", CALIBRATION, tmp_path)
    _, records = read_calibration(tmp_path / "r")
    kept = [each["label"] for each in records if "map" in each]
    assert kept.count(0) == kept.count(1) == 24
    normal, anomalous = ([each for each in records if each["label"] == label] for label in (0, 1))
    highest = sorted(normal, key=lambda each: -each["score"])[:24]
    lowest = sorted(anomalous, key=lambda each: each["score"])[:24]
    assert all("map" in each for each in (*highest, *lowest))
    assert len(list((tmp_path / "r" / "maps").iterdir())) == 48


def test_large_maps_are_reduced(tmp_path):
    record = CalibrationRecord([InputImage("a.png", "a")], [0])
    record(0, result(0.5, (500, 2000)))
    record.write(tmp_path / "r", CALIBRATION, tmp_path)
    with Image.open(tmp_path / "r" / "maps" / "000000.png") as drawn:
        assert drawn.size == (640, 160)
    assert json.loads((tmp_path / "r" / "scores.jsonl").read_text())["width"] == 2000


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "mine-report").mkdir()
    with pytest.raises(FileExistsError, match="exists and is not the record of a calibration"):
        record_folder(tmp_path / "mine")
    record_of([0.5], [0]).write(tmp_path / "other-report", CALIBRATION, tmp_path)
    assert record_folder(tmp_path / "other") == tmp_path / "other-report"


def test_the_current_folder_has_its_record_beside_it(tmp_path, monkeypatch):
    (tmp_path / "checkpoint").mkdir()
    monkeypatch.chdir(tmp_path / "checkpoint")
    for given in (".", "../checkpoint", "inside/.."):
        assert record_folder(Path(given)) == tmp_path / "checkpoint-report"


def test_missing_and_damaged_records(tmp_path):
    with pytest.raises(FileNotFoundError, match="again with --report"):
        read_calibration(tmp_path)
    for content in ("{", "[]", '{"calibration": {}}', '{"calibration": {"image": {"threshold": "high"}}}'):
        (tmp_path / "calibration.json").write_text(content)
        (tmp_path / "scores.jsonl").write_text("")
        with pytest.raises(ValueError, match="is damaged"):
            read_calibration(tmp_path)
