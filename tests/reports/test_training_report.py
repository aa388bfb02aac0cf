"""The report of a training run: finished, running, killed and resumed, diverged, or with an earlier log."""

import json
import os

import pytest

from tests.reports.conftest import HOSTILE, Page
from tests.training_run import make_model_folder, make_records, settings
from vcp_clip_hf.reports.report import write_report
from vcp_clip_hf.reports.training_curves import duration
from vcp_clip_hf.reports.training_report import write_training_report
from vcp_clip_hf.training import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was interrupted and resumed, with a report."""
    folder = tmp_path_factory.mktemp("training")
    make_model_folder(folder)
    records, held_out = make_records(), make_records(6, seed=1)
    train(settings(folder, max_train_steps=5, logging_steps=1), records, held_out)
    train(settings(folder, num_train_epochs=2, logging_steps=1, resume="latest", report=True), records, held_out)
    return folder / "out"


def log_of(folder, *records):
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def headings(page):
    return [each["id"] for each in page.all("section")]


def test_a_finished_run_shows_losses_validations_rates_time_and_its_resume(finished):
    page = Page(finished / "report.html")
    log = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert "The run is finished" in page.text and "Resumed 1 time" in page.text
    loss = [each["loss"] for each in log if "loss" in each][-1]
    assert f"{loss:.4g}" in page.text and "of 12 steps" in page.text and "48" in page.text
    best = max(each["validation/pixel_ap"] for each in log if "validation/pixel_ap" in each)
    assert f"{100 * best:.1f} %" in page.text and "best pixel AP on held-out products" in page.text
    assert {each["href"] for each in page.all("a")} >= {"./last", "./best"}
    alts = [each["aria-label"] for each in page.all("div", role="img")]
    assert [alt.split(":")[0] for alt in alts] == [
        "Line chart of the loss",
        "Line chart of the metrics on held-out products over 2 validations",
        "Line chart of the learning rates",
        "Line chart of the speed",
        "Line chart of the peak memory",
    ]
    assert page.source.count(">resumed<") >= len(alts), "each chart marks the resume"
    assert "learning_rate" in page.text and "learned part 0.01 at the end" in alts[2]


def test_a_run_that_goes_on_says_as_of_when(finished, tmp_path):
    lines = (finished / "log.jsonl").read_text().splitlines()[:4]
    folder = tmp_path / "going"
    folder.mkdir()
    (folder / "log.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "lo')
    os.utime(folder / "log.jsonl", (0, 86400))
    page = Page(write_training_report(folder))
    assert "still going, or it was killed. As of 1970-01-02 00:00 UTC" in page.text
    assert "1 line of the log could not be read" in page.text and "had reached step 3" in page.text
    assert "No products are held out" in page.text and "Settings" not in page.text


def test_a_killed_run_shows_where_steps_were_done_again(tmp_path):
    begun = {"event": "started", "total_steps": 20, "time": "2026-01-02T03:04:05+00:00", "device": "cpu"}
    records = [{"step": 0, **begun}, *({"step": step, "loss": 1.0, "epoch": 0} for step in range(1, 8))]
    records += [{**begun, "step": 4, "event": "resumed"}, {"step": 5, "loss": 0.5, "epoch": 0}]
    page = Page(write_training_report(log_of(tmp_path, *records)))
    assert "3 records of steps that were done again after a kill are replaced" in page.text
    assert "0.5 at step 5" in page.all("div", role="img")[0]["aria-label"]
    assert "2026-01-02 03:04:05" in page.text


def test_a_diverged_and_an_interrupted_run(tmp_path):
    reason = f"The loss is nan {HOSTILE}"
    end = {"step": 3, "event": "diverged", "reason": reason}
    page = Page(write_training_report(log_of(tmp_path / "a", {"step": 2, "loss": 1.0, "epoch": 0}, end)))
    assert f"The run diverged: {reason} at step 3." in page.text and not page.all("script", id="alert")
    end = {"step": 2, "event": "interrupted"}
    page = Page(write_training_report(log_of(tmp_path / "b", {"step": 2, "loss": 1.0, "epoch": 0}, end)))
    assert "interrupted after step 2" in page.text and "--resume latest" in page.text


def test_a_log_of_version_0_1_0_and_a_single_record(tmp_path):
    page = Page(write_training_report(log_of(tmp_path, {"step": 10, "loss": 2.5, "epoch": 0})))
    assert "no times and no memory" in page.text and "no learning rates" in page.text
    validation = {"step": 10, "validation/pixel_ap": float("nan"), "validation/pixel_auroc": 0.9}
    (tmp_path / "training_config.yaml").write_text("metric_for_best_model: pixel_ap\nlearning_rate: 4.0e-05\n")
    page = Page(write_training_report(log_of(tmp_path, {"step": 10, "loss": 2.5, "epoch": 0}, validation)))
    assert "90.0" in page.text and "4e-05" in page.text and "best pixel AP" not in page.text


def test_many_records_become_a_running_mean_and_a_short_table(tmp_path):
    records = [{"step": step, "loss": 1.0 + step % 2, "epoch": 0} for step in range(1, 1001)]
    page = Page(write_training_report(log_of(tmp_path, *records)))
    assert "Mean over 17 records" in page.source and "200 of 1,000 records" in page.source
    assert len(page.source) < 200_000


def test_settings_that_cannot_be_read_are_left_out(tmp_path):
    log_of(tmp_path, {"step": 1, "loss": 1.0, "epoch": 0})
    for content in (b"\xff", b"a: [", b"- 3"):
        (tmp_path / "training_config.yaml").write_bytes(content)
        assert "Settings" not in Page(write_training_report(tmp_path)).text


def test_figures_of_a_run_are_files_in_both_widths(finished, tmp_path):
    write_report([finished], tmp_path / "r.html", tmp_path / "figures")
    stems = {"loss", "validation", "learning-rate", "speed", "memory"}
    expected = {f"training-{stem}-{mm}mm.{end}" for stem in stems for mm in (85, 175) for end in ("svg", "pdf")}
    assert {file.name for file in (tmp_path / "figures").iterdir()} == expected


def test_the_extra_is_checked_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr("vcp_clip_hf.reports.extra.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "vcp-clip-hf\[report\]"'):
        train(settings(tmp_path, model="nowhere", report=True))


def test_durations():
    assert [duration(each) for each in (0.5, 59, 61, 3661)] == ["0.5 s", "59 s", "1 min 01 s", "1 h 01 min"]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_are_reported(tmp_path, loss):
    page = Page(write_report([log_of(tmp_path / "only", {"step": 1, "loss": loss})], tmp_path / "only.html"))
    assert "No logged loss is a finite number" in page.text
    records = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": loss}]
    page = Page(write_report([log_of(tmp_path / "last", *records)], tmp_path / "last.html"))
    assert page.all("svg")
