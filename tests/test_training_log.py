"""The log of a training run, read while it goes on, after its end, and after kills and resumes."""

import datetime
import json
import os

import pytest

from tests.training_run import make_model_folder, make_records, settings
from vcp_clip_hf.training import train
from vcp_clip_hf.training_log import TrainingLog, read_training_log


def write(folder, *lines):
    folder.mkdir(exist_ok=True)
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / "log.jsonl").write_text(text)
    return folder


def loss(step, value=1.0):
    return {"step": step, "loss": value, "epoch": 0}


def validation(step, value=0.5):
    return {"step": step, "validation/pixel_ap": value}


def start(step, event="resumed"):
    return {"step": step, "event": event, "total_steps": 20, "time": "2026-01-02T03:04:05+00:00"}


def steps(records):
    return [record["step"] for record in records]


def test_steps_after_a_resume_replace_those_of_the_killed_session(tmp_path):
    log = [start(0, "started"), *map(loss, range(1, 7)), validation(6), *map(loss, range(7, 10))]
    log += [start(4), loss(5, 2.0), validation(6, 0.7)]
    history = read_training_log(write(tmp_path, *log))
    assert steps(history.losses) == [1, 2, 3, 4, 5] and history.losses[-1]["loss"] == 2.0
    assert [each["validation/pixel_ap"] for each in history.validations] == [0.7]
    assert history.resumed_steps == [4] and history.num_replaced == 6
    assert history.last_step == 6 and history.total_steps == 20 and history.end is None
    assert [each.facts["time"][:4] for each in history.sessions] == ["2026", "2026"]


def test_a_run_resumed_several_times_also_from_older_checkpoints(tmp_path):
    log = [start(0, "started"), loss(10), loss(20), start(20), loss(30), start(10), loss(20, 3.0), start(20)]
    history = read_training_log(write(tmp_path, *log))
    assert [(each["step"], each["loss"]) for each in history.losses] == [(10, 1.0), (20, 3.0)]
    assert history.resumed_steps == [20, 10, 20] and history.last_step == 20


def test_a_new_start_in_the_same_folder_replaces_everything(tmp_path):
    history = read_training_log(
        write(tmp_path, start(0, "started"), loss(1), loss(2), start(0, "started"), loss(1, 9))
    )
    assert [each["loss"] for each in history.losses] == [9] and history.resumed_steps == []


def test_a_log_without_events_shows_resumes_by_repeated_steps(tmp_path):
    log = [loss(2), loss(4), validation(4), loss(6), loss(4, 7.0), validation(4, 0.9), loss(6), loss(6)]
    history = read_training_log(write(tmp_path, *log))
    assert [(each["step"], each["loss"]) for each in history.losses] == [(2, 1.0), (4, 7.0), (6, 1.0)]
    assert [each["validation/pixel_ap"] for each in history.validations] == [0.9]
    assert history.resumed_steps == [2, 4] and not any(each.recorded for each in history.sessions)
    assert history.total_steps is None and history.end is None


def test_ends_count_until_the_run_goes_on(tmp_path):
    log = [start(0, "started"), loss(3), {"step": 3, "event": "interrupted"}]
    assert read_training_log(write(tmp_path, *log)).end["event"] == "interrupted"
    assert read_training_log(write(tmp_path, *log, start(3))).end is None
    finished = read_training_log(write(tmp_path, *log, start(3), loss(20), {"step": 20, "event": "finished"}))
    assert finished.end == {"step": 20, "event": "finished"} and finished.last_step == 20


def test_damaged_lines_are_counted_and_the_others_read(tmp_path):
    damaged = ['{"step": 9, "lo', "[1]", '{"step": true, "loss": 1}', '{"step": -1, "loss": 1}', '{"step": 1}']
    history = read_training_log(write(tmp_path, loss(1), *damaged, {**start(2), "total_steps": "many"}))
    assert steps(history.losses) == [1] and history.num_damaged == 5 and history.total_steps is None


def test_a_folder_that_no_training_wrote(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no log\.jsonl"):
        read_training_log(tmp_path)
    with pytest.raises(ValueError, match="none of its 1 lines has one"):
        read_training_log(write(tmp_path, '{"a": 1}'))


def test_the_time_of_the_last_change_is_known(tmp_path):
    write(tmp_path, loss(1))
    os.utime(tmp_path / "log.jsonl", (0, 86400))
    assert read_training_log(tmp_path).as_of == datetime.datetime(1970, 1, 2, tzinfo=datetime.timezone.utc)


def test_a_record_after_a_kill_within_a_line_is_not_lost(tmp_path):
    write(tmp_path, loss(1))
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 2, "loss": 0.')
    TrainingLog(tmp_path).write(1, event="resumed", total_steps=4)
    TrainingLog(tmp_path).write(2, loss=0.5)
    history = read_training_log(tmp_path)
    assert steps(history.losses) == [1, 2] and history.num_damaged == 1 and history.resumed_steps == [1]


def test_a_real_run_interrupted_and_resumed(tmp_path):
    make_model_folder(tmp_path)
    records = make_records()
    train(settings(tmp_path, max_train_steps=5, logging_steps=1), records, records.select(range(4)))
    train(settings(tmp_path, logging_steps=1, num_train_epochs=2, resume="latest"), records, records.select(range(4)))
    history = read_training_log(tmp_path / "out")
    assert steps(history.losses) == list(range(1, 13)) and steps(history.validations) == [6, 12]
    assert [(each.step, each.resumed) for each in history.sessions] == [(0, False), (5, True)]
    assert history.end["event"] == "finished" and history.total_steps == 12 and history.num_replaced == 0
    assert [each["images"] for each in history.losses] == [4 * step for step in range(1, 13)]
    seconds = [each["seconds"] for each in history.losses]
    assert seconds == sorted(seconds) and seconds[0] > 0
    for record in history.losses:
        assert record["learning_rate"] == 1e-2 and record["temperature_learning_rate"] == 1e-2
        assert record["peak_memory_bytes"] > 1e6 and datetime.datetime.fromisoformat(record["time"])
    assert all(each["validation_seconds"] > 0 for each in history.validations)
    facts = history.sessions[1].facts
    assert facts["steps_per_epoch"] == 6 and facts["processes"] == 1 and facts["device"] == "cpu"


def test_a_run_that_diverges_says_so_in_its_log(tmp_path):
    make_model_folder(tmp_path)
    config = settings(tmp_path, learning_rate=1e30, logging_steps=1)
    with pytest.raises(FloatingPointError):
        train(config, make_records())
    end = read_training_log(tmp_path / "out").end
    assert end["event"] == "diverged" and ("infinite" in end["reason"] or "loss is" in end["reason"])
