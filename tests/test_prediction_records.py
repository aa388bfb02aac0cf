"""Records of segmented images and the table of them."""

import csv
import json
import os
from pathlib import Path

from vcp_clip_hf.json_lines import end_last_line
from vcp_clip_hf.prediction_records import file_state, read_predictions, write_csv, write_records


def record(image: str, **values) -> dict:
    return {"image": image, "name": "n", "score": 0.5, "label": "normal", **values}


def read_table(path: Path) -> list[dict]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_cells_are_no_formulas(tmp_path):
    names = ["=cmd|' -C calc'!A0.png", "+1.png", "-1.png", "@x.png", "\tx.png", "\rx.png", "plain=.png", "'quoted.png"]
    write_csv([record(name) for name in names], tmp_path / "t.csv")
    cells = [row["image"] for row in read_table(tmp_path / "t.csv")]
    assert cells == [*("'" + name for name in names[:5]), "'\\rx.png", *names[6:]]
    write_csv([{"image": "a.png", "name": "a", "error": "=1+1", "score": -0.5}], tmp_path / "t.csv")
    (row,) = read_table(tmp_path / "t.csv")
    assert row["error"] == "'=1+1" and row["score"] == "-0.5"


def test_any_file_name_is_written(tmp_path):
    names = [os.fsdecode(b"\xff\xfe.png"), "two\nlines.png", 'quo"te, comma.png', "😀.png", "\u2028.png", "x" * 200]
    records = [record(name) for name in names]
    write_records(records, tmp_path / "predictions.jsonl")
    assert read_predictions(tmp_path) == records
    write_csv(records, tmp_path / "t.csv")
    cells = [row["image"] for row in read_table(tmp_path / "t.csv")]
    assert cells == ["\\udcff\\udcfe.png", *names[1:]]


def test_torn_and_foreign_lines_are_skipped(tmp_path):
    path = tmp_path / "predictions.jsonl"
    good = json.dumps(record("a.png"))
    path.write_bytes(f'{good}\n[1]\n3\n{{"image": "b.png"}}\n'.encode() + b'\xff\xfe\n{"image": "half')
    end_last_line(path)
    with open(path, "a") as file:
        file.write(json.dumps(record("c.png")) + "\n")
    assert [each["image"] for each in read_predictions(tmp_path)] == ["a.png", "c.png"]


def test_the_state_of_a_file(tmp_path):
    path = tmp_path / "a.png"
    assert file_state(str(path)) == {} and file_state("https://example.org/a.png") == {}
    path.write_bytes(b"12345")
    os.utime(path, ns=(1, 2_000_000_001))
    assert file_state(str(path)) == {"bytes": 5, "mtime_ns": 2_000_000_001}
