"""Command line: verbs, options and error messages."""

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.common import golden, tiny_model, tiny_model_with_head, tiny_tokenizer
from tests.methods.common import tiny_method
from tests.processes import Program, run_program
from tests.training_run import make_model_folder, make_records
from tests.video.clips import write_clip
from vcp_clip_hf import (
    AnomalySegmentationPipeline,
    VCPCLIPConfig,
    VCPCLIPImageProcessor,
    VCPCLIPModel,
    __version__,
)
from vcp_clip_hf.cli import main
from vcp_clip_hf.prediction import list_inputs, read_predictions, write_csv


ROOT = Path(__file__).parent.parent


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(*arguments, check: int = 0) -> Done:
    """Run the command line in this process, which saves the seconds that the imports take."""
    stdout, stderr, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code or 0
    done = Done(status, stdout.getvalue(), stderr.getvalue())
    assert done.returncode == check, done.stdout + done.stderr
    return done


def command(*arguments, launch: tuple = (), check: int | None = 0, **environment) -> Done:
    """Run the command line as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", *launch, "vcp_clip_hf.cli", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "TERM": "dumb", **environment},
    )
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model = tiny_model()
    model.save_pretrained(folder)
    VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=2.0, threshold=0.5).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Seven images in several folders, of three formats and several sizes."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    (folder / "line_1" / "deep").mkdir(parents=True)
    names = ["a.png", "b.jpg", "line_1/a.png", "line_1/a.bmp", "line_1/c.png", "line_1/deep/d.jpg", "z.png"]
    for index, name in enumerate(names):
        size = (40 + 7 * index, 60 - 3 * index)
        values = generator.integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), dtype=np.uint8)
        Image.fromarray(values).resize(size, Image.Resampling.BICUBIC).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


# --- predict ----------------------------------------------------------------------------------------------------


def test_predict_writes_maps_masks_overlays_and_records(checkpoint, images, tmp_path):
    done = command("predict", images, "-o", tmp_path, "-m", checkpoint, "--num-workers", 2)
    assert "7 images segmented" in done.stdout and "0 failed" in done.stdout
    records = read_predictions(tmp_path)
    assert len(records) == 7 and len({record["name"] for record in records}) == 7
    for record in records:
        image = Image.open(record["image"])
        assert (record["height"], record["width"]) == (image.height, image.width)
        assert record["label"] in ("normal", "anomalous") and record["threshold"] == 0.5
        stored = Image.open(tmp_path / record["map"])
        assert stored.mode.startswith("I;16") and stored.size == image.size
        values = np.asarray(stored) / 65535
        mask = np.asarray(Image.open(tmp_path / record["mask"]))
        assert set(np.unique(mask)) <= {0, 255}
        clear = abs(values - 0.5) > 1e-4
        np.testing.assert_array_equal((mask > 0)[clear], (values >= 0.5)[clear])
        overlay = Image.open(tmp_path / record["overlay"])
        assert overlay.width > image.width and overlay.height >= image.height, "a color bar is beside it"
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert [row["image"] for row in rows] == [record["image"] for record in records]


def test_predict_from_files_patterns_and_with_options(checkpoint, images, tmp_path):
    sources = [images / "a.png", f"{images}/line_1/*.png"]
    options = ["--maps", "npy", "--no-masks", "--no-overlays", "--format", "coco", "--threshold", 0.3, "--min-area", 3]
    options += ["--normal", "perfect", "--abnormal", "flawed", "--tile-size", 32, "--tile-overlap", 8]
    run("predict", *sources, "-o", tmp_path, "-m", checkpoint, "--num-workers", 0, *options)
    records = read_predictions(tmp_path)
    assert [Path(record["image"]).name for record in records] == ["a.png", "a.png", "c.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "coco",
        "maps",
        "predictions.coco.json",
        "predictions.csv",
        "predictions.jsonl",
        "run.json",
    ]
    assert np.load(tmp_path / records[0]["map"]).dtype == np.float32
    coco = json.loads((tmp_path / "predictions.coco.json").read_text())
    assert len(coco["images"]) == 3 and coco["annotations"]
    annotation = coco["annotations"][0]
    assert annotation["id"] == 1 and annotation["area"] >= 3 and len(annotation["bbox"]) == 4
    assert annotation["segmentation"]["size"] == [coco["images"][0]["height"], coco["images"][0]["width"]]


def test_predict_together(checkpoint, images, tmp_path):
    arguments = ["predict", images, "-o", tmp_path, "-m", checkpoint, "--together", "--num-workers", 0]
    done = run(*arguments, "--subset-size", 10, "--zero-shot-weight", 0.5, "--threshold", 0.1, "--format", "coco")
    assert "7 images segmented" in done.stdout and (tmp_path / "predictions.coco.json").is_file()
    assert "7 images together: 252 comparisons of two images" in done.stderr
    for record in read_predictions(tmp_path):
        judged_with = record["judged_with"]
        assert judged_with["pictures"] == 7 and judged_with["zero_shot_weight"] == 0.5
        assert record["threshold"] == 0.1 and record["label"] is None and "regions" in record
    done = run(*arguments, check=1)
    assert "other settings" in done.stderr and "together: " in done.stderr


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--subset-size", 20], 2, "--subset-size and --zero-shot-weight need --together"),
        (["--zero-shot-weight", 0], 2, "--subset-size and --zero-shot-weight need --together"),
        (["--together", "--tile-size", 32], 2, "--tile-size cannot be used with --together"),
        (["--together", "--subset-size", 9], 2, "Invalid value for '--subset-size'"),
        (["--together", "--regions"], 2, "regions need --threshold"),
        (["--together"], 1, "At least 5 images are needed to judge them together, got 1"),
    ],
)
def test_predict_together_is_refused(checkpoint, images, tmp_path, options, status, message):
    done = run("predict", images / "a.png", "-o", tmp_path, "-m", checkpoint, *options, check=status)
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert not read_predictions(tmp_path)


def test_predict_a_video(checkpoint, tmp_path):
    clip, out = write_clip(tmp_path / "a <clip>.mp4"), tmp_path / "out"
    arguments = ["predict", clip, "-o", out, "-m", checkpoint, "--fps", 5, "--image-threshold", 0.4, "--maps", "none"]
    done = run(*arguments, "--max-frames", 4, "--format", "coco", "--batch-size", 3)
    assert "4 frames segmented" in done.stdout and "annotated video: " in done.stdout
    records = read_predictions(out)
    assert [record["frame"] for record in records] == [0, 2, 4, 6] and records[0]["image_threshold"] == 0.4
    assert json.loads((out / "predictions.coco.json").read_text())["images"][3]["file_name"] == f"{clip}#frame=6"
    done = run(*arguments, "--duration", 1.5, "--no-annotated-video")
    assert "4 frames segmented" in done.stdout and "4 done before" in done.stdout
    assert not (out / "annotated.mp4").exists()  # the former one has only four of eight frames

    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:-200])
    assert (
        "cut.mp4' could not be opened as a video"
        in run("predict", tmp_path / "cut.mp4", "-o", tmp_path / "cut", check=1).stderr
    )


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        (["a.png"], ["--fps", 5], "--every, --fps, --duration, --max-frames, --annotated-video, --give-up and"),
        (["a.png"], ["--no-annotated-video"], "--input-option need a video or a camera"),
        (["a.png", "rtsp://user:s3cret@host/1"], [], "got 2 sources with rtsp://***@host/1"),
        (["a.mp4"], ["--together"], "--together cannot be used with a video"),
        (["a.mp4"], ["--input-option", "listen"], "--input-option needs NAME=VALUE"),
        (["a.mp4"], ["--every", 0], "Invalid value for '--every'"),
        (["a.mp4"], ["--every", 2, "--fps", 2], "every=2 and fps=2.0 cannot be combined"),
        (["a.mp4"], ["--fps", "nan"], "fps=nan must be a number of frames per second above 0"),
        (["a.mp4"], ["--duration", -1], "duration=-1.0 must be a number of seconds above 0"),
        (["a.mp4"], [], "'a.mp4': No such file or directory"),
        (["a.mp4"], ["--annotated-video", "--no-overlays"], "leave out --no-overlays"),
    ],
)
def test_predict_a_video_is_refused(checkpoint, tmp_path, monkeypatch, sources, options, message):
    monkeypatch.chdir(tmp_path)
    status = 2 if message.startswith(("Invalid value", "--", "got")) else 1
    done = run("predict", *sources, "-o", "out", "-m", checkpoint, *options, check=status)
    shown = " ".join(done.stderr.replace("│", " ").split())
    assert message in shown and "s3cret" not in shown
    assert not (tmp_path / "out").exists()


def test_an_unreadable_file_is_listed_and_tried_again(checkpoint, images, tmp_path):
    broken = tmp_path / "in" / "m_broken.png"
    broken.parent.mkdir()
    for name in ("a.png", "z.png"):
        Image.open(images / name).save(broken.parent / name)
    broken.write_bytes((images / "a.png").read_bytes()[:90])
    arguments = ["predict", broken.parent, "-o", tmp_path / "out", "-m", checkpoint, "--num-workers", 0]
    done = run(*arguments, check=1)
    assert "2 images segmented" in done.stdout and "1 failed" in done.stdout
    assert "m_broken.png" in done.stderr and "truncated" in done.stderr
    errors = [record for record in read_predictions(tmp_path / "out") if "error" in record]
    assert len(errors) == 1
    Image.open(images / "a.png").save(broken)
    done = run(*arguments)
    assert "1 image segmented" in done.stdout and "2 done before" in done.stdout
    assert "to do: 1 failed before" in done.stdout
    assert not [record for record in read_predictions(tmp_path / "out") if "error" in record]


def test_a_killed_run_is_completed_by_the_next(checkpoint, tmp_path):
    (tmp_path / "in").mkdir()
    generator = np.random.default_rng(1)
    for index in range(100):
        Image.fromarray(generator.integers(0, 256, (48, 48), dtype=np.uint8)).save(
            tmp_path / "in" / f"{index:03d}.png"
        )
    arguments = ["predict", tmp_path / "in", "-o", tmp_path / "out", "-m", checkpoint, "--num-workers", 0]
    arguments += ["--batch-size", 1]
    process = Program("-m", "vcp_clip_hf.cli", *arguments, output=tmp_path / "said.txt")
    records = tmp_path / "out" / "predictions.jsonl"
    for _ in range(600):
        time.sleep(0.05)
        if records.is_file() and len(records.read_text().splitlines()) > 20:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(read_predictions(tmp_path / "out"))
    assert 20 < before < 100
    with open(records, "a") as file:
        file.write('{"image": "half a rec')  # as a killed process can leave it
    done = run(*arguments)
    assert f"{100 - before} images segmented" in done.stdout and f"{before} done before" in done.stdout
    assert len(read_predictions(tmp_path / "out")) == 100 and len(records.read_text().splitlines()) == 100
    assert "0 images segmented" in run(*arguments).stdout
    assert "100 images segmented" in run(*arguments, "--overwrite").stdout


def test_two_processes_share_the_work(checkpoint, images, tmp_path):
    launch = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m")
    alone = tmp_path / "alone"
    arguments = ["-m", checkpoint, "--num-workers", 0, "--device", "cpu"]
    run("predict", images, "-o", alone, *arguments)
    (images / "bad.png").write_text("no image")
    try:
        done = command(
            *("predict", images, "-o", tmp_path / "two", *arguments),
            launch=launch,
            check=None,
            ACCELERATE_USE_CPU="true",
        )
    finally:
        (images / "bad.png").unlink()
    assert done.returncode != 0 and done.stdout.count("7 images segmented") == 1 and "1 failed" in done.stdout
    assert [path.name for path in sorted((tmp_path / "two").glob("*.jsonl"))] == ["predictions.jsonl"]
    ours = {record["image"]: record for record in read_predictions(tmp_path / "two")}
    for record in read_predictions(alone):
        assert ours[record["image"]]["score"] == pytest.approx(record["score"], abs=1e-5)


def test_names_are_unique_and_do_not_change(images, tmp_path):
    inputs = list_inputs([images])
    names = {Path(image.path).relative_to(images).as_posix(): image.name for image in inputs}
    assert names["line_1/a.bmp"] == "line_1/a" and names["line_1/a.png"] == "line_1/a-2" and names["a.png"] == "a"
    # A name that was given before is kept
    kept = {str(images / "line_1" / "a.png"): "line_1/a"}
    again = {image.path: image.name for image in list_inputs([images], kept)}
    assert again[str(images / "line_1" / "a.png")] == "line_1/a"
    assert again[str(images / "line_1" / "a.bmp")] == "line_1/a-2"
    assert [image.name for image in list_inputs([images / "a.png", images / "a.png"])] == ["a"]
    assert list_inputs(["https://example.org/x/part.png?size=1"])[0].name == "part"


def test_a_table_that_cannot_be_written_leaves_the_former_one(tmp_path):
    path = tmp_path / "predictions.csv"
    write_csv([{"image": "a.png", "score": 0.5}], path)
    before = path.read_text()
    with pytest.raises(AttributeError):
        write_csv([{"image": "b.png"}, ["no record"]], path)
    assert path.read_text() == before and before.splitlines()[1].startswith("a.png,0.5,")


# --- the other verbs ----------------------------------------------------------------------------------------------


def test_calibrate_on_normal_images_and_with_defects(checkpoint, images, tmp_path):
    done = run("calibrate", images, "-m", checkpoint, "-o", tmp_path / "tuned", "--false-alarm-rate", 0.2)
    assert "Images: Threshold" in done.stdout and "from 7 normal images" in done.stdout and "saved in" in done.stdout
    assert "Masks: the threshold of the images." in done.stdout and "7/7" in done.stderr
    saved = json.loads((tmp_path / "tuned" / "preprocessor_config.json").read_text())
    assert saved["calibration"]["image"]["num_images"] == 7 and saved["threshold"] == saved["image_threshold"]
    assert "calibration" in run("info", "-m", tmp_path / "tuned").stdout
    # Into the folder itself, and with a rate that seven images cannot guarantee
    done = run("calibrate", images, "-m", tmp_path / "tuned", "--pixel-false-alarm-rate", 0.3)
    assert done.stdout.count("so few images") == 1 and "of normal pixels are expected above it" in done.stdout
    again = json.loads((tmp_path / "tuned" / "preprocessor_config.json").read_text())
    assert again["calibration"]["pixel"]["method"] == "conformal_risk_control"
    done = run("calibrate", images / "a.png", "-m", tmp_path / "tuned", "--defects", images / "line_1")
    assert "best F1" in done.stdout


def test_the_score_of_the_image_head(checkpoint, images, tmp_path):
    model = tiny_model_with_head()
    model.save_pretrained(tmp_path / "model")
    processor = VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=2.0, threshold=0.5)
    processor.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    own = ("--score-mode", "image_head")
    done = run(
        "calibrate", images, "-m", tmp_path / "model", "-o", tmp_path / "tuned", "--false-alarm-rate", 0.2, *own
    )
    assert "since scores of 'image_head' are not values of a map" in done.stdout
    saved = json.loads((tmp_path / "tuned" / "preprocessor_config.json").read_text())
    assert saved["score_mode"] == saved["calibration"]["settings"]["score_mode"] == "image_head"
    run("predict", images, "-m", tmp_path / "tuned", "-o", tmp_path / "stored", "--num-workers", 0)
    run("predict", images, "-m", tmp_path / "model", "-o", tmp_path / "given", "--num-workers", 0, *own)
    stored, given = (
        {record["image"]: record["score"] for record in read_predictions(tmp_path / name)}
        for name in ("stored", "given")
    )
    assert stored == pytest.approx(given, abs=1e-6) and len(stored) == 7
    out = tmp_path / "none"
    failed = run("predict", images, "-m", checkpoint, "-o", out, "--num-workers", 0, *own, check=1)
    assert "outputs.image_scores is None" in failed.stderr


def test_calibrate_with_a_report_keeps_it_beside_the_checkpoint(checkpoint, images, tmp_path):
    (tmp_path / "broken.png").write_text("no image")
    arguments = ("-m", checkpoint, "-o", tmp_path / "tuned", "--false-alarm-rate", 0.2, "--report")
    done = run("calibrate", images, tmp_path / "broken.png", tmp_path / "gone", *arguments, check=1)
    assert f"wrote {tmp_path / 'tuned-report' / 'report.html'}" in done.stdout
    page = (tmp_path / "tuned-report" / "report.html").read_text()
    assert "broken.png" in page and "gone" in page and "Normal images with the highest scores" in page
    kept = (tmp_path / "tuned-report" / "scores.jsonl").read_text()
    assert "a.png" in kept
    for file in (tmp_path / "tuned").rglob("*"):
        assert not file.is_file() or b"a.png" not in file.read_bytes(), "names of images stay out of the checkpoint"
    again = run("report", tmp_path / "tuned", "-o", tmp_path / "again.html")
    assert "again.html" in again.stdout and (tmp_path / "again.html").stat().st_size > 10_000
    (tmp_path / "other-report").mkdir()
    refused = run("calibrate", images, "-m", checkpoint, "-o", tmp_path / "other", "--report", check=1)
    assert "exists and is not the record of a calibration" in refused.stderr and not (tmp_path / "other").exists()


def test_calibrate_does_not_stop_at_unreadable_files(checkpoint, images, tmp_path):
    (tmp_path / "broken.png").write_text("not an image")
    arguments = ["-m", checkpoint, "-o", tmp_path / "tuned", "--false-alarm-rate", 0.2]
    done = run("calibrate", images, tmp_path / "broken.png", tmp_path / "gone", *arguments, check=1)
    assert "from 7 normal images" in done.stdout and "saved in" in done.stdout
    failed = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 1 and "gone" in failed[0]
    assert "left out: 1 with other endings (.txt 1)" in done.stderr
    assert "broken.png" in run("calibrate", tmp_path / "broken.png", *arguments, check=1).stderr


def test_predict_is_refused_with_other_settings(checkpoint, images, tmp_path):
    arguments = ["predict", images, "-o", tmp_path, "-m", checkpoint, "--num-workers", 0]
    run(*arguments)
    done = run(*arguments, "--threshold", 0.4, check=1)
    assert "threshold: 0.5 -> 0.4" in done.stderr and "--overwrite" in done.stderr
    assert "7 images segmented" in run(*arguments, "--threshold", 0.4, "--overwrite").stdout
    # annotations are added to a finished run
    assert "7 with missing outputs" in run(*arguments, "--threshold", 0.4, "--format", "coco").stdout
    assert json.loads((tmp_path / "predictions.coco.json").read_text())["annotations"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "--threshold", 50), "Invalid value for '--threshold'"),
        (("predict", "--threshold", "nan"), "Invalid value for '--threshold'"),
        (("predict", "--image-threshold", -1), "Invalid value for '--image-threshold'"),
        (
            ("predict", "--image-threshold", 1.5),
            "image_threshold=1.5 must be a number in [0, 1]",
        ),
        (("predict", "--tile-overlap", 8), "tile_overlap=8 needs tile_size"),
        (("predict", "--fast-decode", "--tile-size", 64), "--tile-size cannot be used with --fast-decode"),
        (("predict", "--fast-decode", "--references", "IMAGES"), "--references cannot be used with --fast-decode"),
        (
            ("predict", "--device", "cpu", "--dtype", "float8"),
            "float8 needs a model in bfloat16 on an NVIDIA GPU",
        ),
        (("calibrate", "--device", "cpu", "--dtype", "float8"), "compute capability 8.9"),
        (("predict", "--normal", "bad", "--abnormal", "bad"), "prompts are the same"),
        (("predict", "--normal", "flawless"), "The abnormal prompts [] must be words"),
        (("predict", "--reference-copies", "flips"), "--max-reference-patches need --references"),
        (("predict", "--max-reference-patches", 5), "--max-reference-patches need --references"),
        (("calibrate", "--max-reference-patches", 5), "--max-reference-patches need --references"),
        (("calibrate", "--false-alarm-rate", 0), "false_alarm_rate=0.0 must lie between 0 and 1"),
        (("calibrate", "--pixel-false-alarm-rate", "nan"), "pixel_false_alarm_rate=nan must lie between 0 and 1"),
        (("calibrate", "--defects", "IMAGES", "--false-alarm-rate", 0.1), "Leave out the rate"),
    ],
)
def test_values_that_mean_nothing_are_refused(checkpoint, images, tmp_path, arguments, message):
    verb, *options = [images if each == "IMAGES" else each for each in arguments]
    status = 2 if message.startswith(("Invalid value", "--")) else 1
    done = run(verb, images / "a.png", "-m", checkpoint, "-o", tmp_path / "out", *options, check=status)
    assert message in " ".join(done.stderr.replace("│", " ").split())


def test_predict_with_other_settings_than_those_of_the_calibration_has_no_verdicts(checkpoint, images, tmp_path):
    run("calibrate", images, "-m", checkpoint, "-o", tmp_path / "tuned", "--false-alarm-rate", 0.2)
    run("predict", images, "-m", tmp_path / "tuned", "-o", tmp_path / "same")
    run("predict", images, "-m", tmp_path / "tuned", "-o", tmp_path / "tiles", "--tile-size", 32)
    run("predict", images, "-m", tmp_path / "tuned", "-o", tmp_path / "own", "--tile-size", 32, "--threshold", 0.01)
    for name, labels in (("same", {"normal"}), ("tiles", {None}), ("own", {"anomalous"})):
        records = [record for record in read_predictions(tmp_path / name) if "error" not in record]
        assert {record["label"] for record in records} == labels
        assert {"mask" in record for record in records} == {None not in labels}


def test_another_size_of_the_input(checkpoint, images, tmp_path):
    size = json.loads((checkpoint / "preprocessor_config.json").read_text())["size"]["height"]
    larger = ("--image-size", 2 * size)
    for name, options in (("usual", ()), ("larger", larger)):
        run("predict", images / "a.png", "-m", checkpoint, "-o", tmp_path / name, "--maps", "npy", *options)
    usual, other = (np.load(next((tmp_path / name / "maps").iterdir())) for name in ("usual", "larger"))
    assert usual.shape == other.shape and not np.allclose(usual, other, atol=1e-3)
    # thresholds belong to the size that they were measured at, and a calibrated checkpoint keeps it
    run("calibrate", images, "-m", checkpoint, "-o", tmp_path / "tuned", "--false-alarm-rate", 0.2, *larger)
    run("predict", images / "a.png", "-m", tmp_path / "tuned", "-o", tmp_path / "again", "--maps", "npy")
    sizes = f"{2 * size}, {2 * size}", f"{2 * size} x {2 * size} pixels; images are resized to it"
    assert sizes[0] in " ".join(run("info", "-m", tmp_path / "tuned").stdout.split())
    assert sizes[1] in (tmp_path / "tuned" / "README.md").read_text()
    assert np.array_equal(np.load(next((tmp_path / "again" / "maps").iterdir())), other)
    assert {record["label"] for record in read_predictions(tmp_path / "again")} == {"normal"}
    run("predict", images / "a.png", "-m", tmp_path / "tuned", "-o", tmp_path / "back", "--image-size", size)
    assert {record["label"] for record in read_predictions(tmp_path / "back")} == {None}
    run("predict", images / "a.png", "-m", checkpoint, "-o", tmp_path / "wide", "--image-size", f"{size}x{2 * size}")
    run_settings = json.loads((tmp_path / "wide" / "run.json").read_text())["settings"]
    assert run_settings["size"] == {"height": size, "width": 2 * size}
    odd = run("predict", images, "-m", checkpoint, "-o", tmp_path / "odd", "--image-size", 2 * size + 1, check=1)
    assert "a multiple of the model's patch size" in odd.stderr and not (tmp_path / "odd").exists()
    for text in ("large", "1x2x3", "64x", "-64"):
        unknown = run("predict", images, "-m", checkpoint, "-o", tmp_path / "odd", f"--image-size={text}", check=2)
        assert f"'{text}' must be a number of pixels, such as 320, or HEIGHTxWIDTH" in " ".join(unknown.stderr.split())


def test_another_way_to_resize(checkpoint, images, tmp_path):
    kept = ("--resize-mode", "keep_ratio")
    for name, options in (("squash", ()), ("kept", kept)):
        run("predict", images, "-m", checkpoint, "-o", tmp_path / name, "--maps", "npy", "--num-workers", 0, *options)
    squash, other = (np.load(next((tmp_path / name / "maps").glob("z*"))) for name in ("squash", "kept"))
    assert squash.shape == other.shape and not np.allclose(squash, other, atol=1e-3)
    # a calibrated checkpoint keeps the way, and its thresholds belong to it
    run("calibrate", images, "-m", checkpoint, "-o", tmp_path / "tuned", "--false-alarm-rate", 0.2, *kept)
    for name, options, labels in (("again", (), {"normal"}), ("back", ("--resize-mode", "squash"), {None})):
        run("predict", images, "-m", tmp_path / "tuned", "-o", tmp_path / name, "--num-workers", 0, *options)
        assert {record["label"] for record in read_predictions(tmp_path / name)} == labels
    refused = run("predict", images, "-m", checkpoint, "-o", tmp_path / "squash", *kept, check=1)
    assert "resize_mode" in refused.stderr


def test_evaluate(checkpoint, tmp_path):
    for index, record in enumerate(make_records(6)):
        kind = "broken" if record["label"] else "good"
        (tmp_path / "data" / "test" / kind).mkdir(parents=True, exist_ok=True)
        record["image"].save(tmp_path / "data" / "test" / kind / f"{index}.png")
        if record["mask"] is not None:
            (tmp_path / "data" / "ground_truth" / kind).mkdir(parents=True, exist_ok=True)
            record["mask"].save(tmp_path / "data" / "ground_truth" / kind / f"{index}_mask.png")
    done = run(
        *("evaluate", f"folder={tmp_path / 'data'}", "-m", checkpoint, "-o", tmp_path / "out", "--num-workers", 0)
    )
    assert "AUROC" in done.stdout and (tmp_path / "out" / "results.json").is_file()
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert report["protocol"]["score_mode"] is None
    assert not (tmp_path / "out" / "details").exists()
    top = ("--score-mode", "top_k", "--num-workers", 0)
    run("evaluate", f"folder={tmp_path / 'data'}", "-m", checkpoint, "-o", tmp_path / "top", *top)
    protocol = json.loads((tmp_path / "top" / "results.json").read_text())["protocol"]
    assert protocol["score_mode"] == "top_k" and protocol["description"].endswith("; image score 'top_k'")
    run("evaluate", f"folder={tmp_path / 'data'}", "-m", checkpoint, "-o", tmp_path / "larger", "--image-size", 56)
    assert json.loads((tmp_path / "larger" / "results.json").read_text())["results"] != report["results"]
    for option, value in (("--image-size", 56), ("--resize-mode", "pad")):
        of_methods = run("evaluate", "folder=x", "--method", "winclip", option, value, check=2)
        assert f"{option} is not for --method" in " ".join(of_methods.stderr.replace("│", " ").split())
    assert "'x' must be one of" in run("evaluate", "folder=x", "--protocol", "x", check=2).stderr
    assert "visa" in run("evaluate", "visaa=x", check=1).stderr

    data, out = f"folder={tmp_path / 'data'}", tmp_path / "reported"
    done = run("evaluate", data, "-m", checkpoint, "-o", out, "--num-workers", 0, "--report")
    assert (
        f"wrote {out / 'report.html'}" in done.stdout
        and "<h1>Evaluation on folder" in (out / "report.html").read_text()
    )
    assert json.loads((out / "results.json").read_text())["results"] == report["results"]
    both = tmp_path / "both.html"
    run("report", out, tmp_path / "out", "-o", both)
    assert "Comparison of 2 evaluations" in both.read_text()
    assert "--output FOLDER" in run("evaluate", data, "-m", checkpoint, "--report", check=2).stderr


def test_the_report_of_methods(checkpoint, tmp_path):
    for index, record in enumerate(make_records(6)):
        kind = "broken" if record["label"] else "good"
        (tmp_path / "data" / "test" / kind).mkdir(parents=True, exist_ok=True)
        record["image"].save(tmp_path / "data" / "test" / kind / f"{index}.png")
    out, names = tmp_path / "out", (f"vcp_clip={checkpoint}", "winclip")
    backbone = ("--backbone", checkpoint, "--num-workers", 0)
    run("evaluate", f"folder={tmp_path / 'data'}", "--method", *names, *backbone, "-o", out, "--report")
    page = (out / "report.html").read_text()
    assert "Comparison of 2 methods" in page and "WinCLIP: folder: zero-shot, nothing is trained." in page
    run("report", out, "-o", tmp_path / "again.html")
    assert "Comparison of 2 methods" in (tmp_path / "again.html").read_text()
    shutil.rmtree(out / "methods")
    assert "Evaluate again with --report" in run("report", out, "-o", tmp_path / "again.html", check=1).stderr


def test_references_on_the_command_line(checkpoint, images, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    normal = ["--references", images / "a.png", "--references", images / "line_1" / "deep"]
    done = run("predict", images / "z.png", "-m", checkpoint, "-o", tmp_path / "out", *normal)
    assert "References: 2 normal pictures from a.png, deep" in done.stderr
    broken = [*normal, "--references", tmp_path / "broken.png"]
    done = run("predict", images / "z.png", "-m", checkpoint, "-o", tmp_path / "out", *broken, check=1)
    assert f"failed: {tmp_path / 'broken.png'}: " in done.stderr and "1 done before" in done.stdout
    done = run("predict", images / "z.png", "-m", checkpoint, "-o", tmp_path / "out", *normal[:2], check=1)
    assert "one folder never mixes two: references" in done.stderr


def test_calibrate_with_references(checkpoint, images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "images")
    shutil.copy(folder / "a.png", folder / "copy.png")
    tuned, arguments = tmp_path / "tuned", (folder, "-m", checkpoint, "--false-alarm-rate", 0.2)
    done = run("calibrate", *arguments, "-o", tuned, "--references", folder)
    assert "from 7 normal images, each scored against the other references" in done.stdout
    done = run("calibrate", *arguments, "-o", tmp_path / "drawn", "--references", "k=5")
    assert "normal pictures from" in done.stderr and "and 2 more" in done.stderr
    run("predict", images, "-m", tuned, "-o", tmp_path / "with")
    run("predict", images, "-m", tuned, "-o", tmp_path / "without", "--reference-weight", 0)
    for name, labels in (("with", {"normal"}), ("without", {None})):
        assert {record["label"] for record in read_predictions(tmp_path / name)} == labels
    assert "after drawing 8 of the" in " ".join(
        run("calibrate", *arguments, "-o", tuned, "--references", "k=8", check=2).stderr.replace("│", " ").split()
    )


@pytest.mark.parametrize("split", ["test", "all", "train+test"])
def test_evaluate_with_references(checkpoint, tmp_path, split):
    """References are never among the evaluated images, whatever the split."""
    generator = np.random.default_rng(0)
    for place, count in (("train/good", 3), ("test/good", 2), ("test/crack", 2)):
        (tmp_path / "part" / place).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "part" / place / f"{number}.png")
    arguments = ("evaluate", f"folder={tmp_path}", "-m", checkpoint, "--split", split)
    done = run(*arguments, "--references", "k=2", "--reference-seeds", 2, "-o", tmp_path / "results")
    counts = json.loads((tmp_path / "results" / "results.json").read_text())["results"]["folder"]["counts"]
    assert [each["images"] for each in counts.values()] == [4 if split == "test" else 5]
    assert "With 2 references of each product, seeds 0, 1" in done.stdout
    done = run(*arguments, "--reference-seeds", 2, check=2)
    assert "need --references k=N" in done.stderr


def test_train_and_convert(tmp_path):
    folder = make_model_folder(tmp_path)
    options = f"{{num_images: 8, num_test_images: 0, size: 48, cache_dir: {tmp_path / 'cache'}}}"
    run(
        *("train", "--model", folder, "--dataset", "synthetic", "--split", "train", "--dataset_options", options),
        *("--num_train_epochs", 1, "--per_device_train_batch_size", 4, "--dataloader_num_workers", 0),
        *("--output_dir", tmp_path / "run"),
    )
    assert VCPCLIPModel.from_pretrained(tmp_path / "run" / "last")
    assert "did you mean '--seed'" in run("train", "--sed", 1, check=2).stderr

    values = golden("official_a")
    values.backbone.save_pretrained(tmp_path / "clip")
    done = run(
        *("convert", "--checkpoint", values.checkpoint, "--backbone", tmp_path / "clip", "--image_size", 64),
        *("--output", tmp_path / "converted"),
    )
    assert "learned parameters" in done.stdout and (tmp_path / "converted" / "config.json").is_file()


def test_info(checkpoint):
    text = run("info", "-m", checkpoint).stdout
    for words in ("vcp_clip_hf", "torch", "cpu, 1 threads", "a photo of a damaged {}", "0.5"):
        assert words in text
    facts = json.loads(run("info", "-m", checkpoint, "--json").stdout)
    assert facts["image size"] == [48, 48] and facts["vcp_clip_hf"] == __version__ and facts["references"] is None
    names = run("info", "--datasets").stdout
    assert "mvtec_ad" in names and "CC BY" in names
    assert run("--version").stdout.strip() == __version__


def test_info_describes_the_references(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "referenced")
    pipe = AnomalySegmentationPipeline(
        model=VCPCLIPModel.from_pretrained(folder), image_processor=VCPCLIPImageProcessor.from_pretrained(folder)
    )
    memory = pipe.set_references([Image.new("RGB", (60, 60), color) for color in ("red", "gray")], source="station 3")
    memory.save(folder)
    assert json.loads(run("info", "-m", folder, "--json").stdout)["references"] == memory.describe()
    assert "2 normal pictures from station 3" in run("info", "-m", folder).stdout


def test_info_of_another_method(tmp_path):
    model = tiny_method()
    model.save_pretrained(tmp_path)
    VCPCLIPImageProcessor.for_model(model.config).save_pretrained(tmp_path)
    facts = json.loads(run("info", "-m", tmp_path, "--json").stdout)
    assert "prompts" not in facts and facts["references"] is None


def test_the_help_lists_verbs_and_options():
    text = run("--help").stdout
    for verb in ("predict", "calibrate", "evaluate", "train", "convert", "info"):
        assert verb in text
    text = run("predict", "--help").stdout
    for option in ("--threshold", "--tile-size", "--format", "--roi-mask", "--abnormal", "the embedded vcp-clip-tiny"):
        assert option in text
    text = run("train", "--help").stdout
    assert "Optimization:" in text and "--learning-rate FLOAT" in text


def test_help_and_version_need_neither_torch_nor_transformers():
    """Import the module without the package's `__init__`, which imports the model, and run the help of verbs."""
    program = """
import sys, types
package = types.ModuleType("vcp_clip_hf")
package.__path__ = ["vcp_clip_hf"]
sys.modules["vcp_clip_hf"] = package
from vcp_clip_hf.cli import main
for arguments in (["--help"], ["--version"], ["predict", "--help"], ["train", "--help"]):
    try:
        main(arguments)
    except SystemExit as end:
        assert not end.code, arguments
heavy = {"accelerate", "datasets", "numpy", "torch", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert __version__ in done.stdout


def test_options_and_verbs_are_spelled_with_hyphens_or_underscores(checkpoint, images, tmp_path):
    spellings = [("out-1", "--batch-size", "--no-overlays"), ("out_2", "--batch_size", "--no_overlays")]
    for name, batch_size, no_overlays in spellings:
        options = [batch_size, 3, no_overlays, "--num-workers=0", "--image_threshold=0.2", "--normal", "un_used-word"]
        run("predict", images / "a.png", "-o", tmp_path / name, "-m", checkpoint, *options, "--abnormal", "bad_word")
    first, second = (read_predictions(tmp_path / name) for name, _, _ in spellings)
    assert first == second and first[0]["image_threshold"] == 0.2 and "overlay" not in first[0]
    for verb in ("push-dataset", "push_dataset"):
        assert "Part of the dataset" in run(verb, "--help").stdout
    for option in ("--image-size", "--image_size"):
        message = run("convert", "--checkpoint", "gone.pth", "--output", tmp_path, option, "8", check=1).stderr
        assert "gone.pth" in message


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch, tmp_path):
    """Only mistakes of the user end in one line."""
    monkeypatch.setattr(VCPCLIPConfig, "from_pretrained", lambda *_: len(3))
    with pytest.raises(TypeError, match="has no len"):
        main(["info"])


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["predct"], 2, "Did you mean 'predict'"),
        (["predict", "x.png", "-o", "out", "--treshold", "1"], 2, "--threshold"),
        (["predict", "gone.png", "-o", "{tmp}", "-m", "{checkpoint}"], 1, "'gone.png' is neither a file"),
        (["predict", "{tmp}", "-o", "{tmp}/out", "-m", "{checkpoint}"], 1, "has no image"),
        (["predict", "{images}", "-o", "{tmp}", "-m", "nobody/nothing"], 1, "nobody/nothing"),
        (["calibrate", "{images}", "-m", "nobody/nothing"], 2, "give --output"),
        (["predict", "{images}", "-o", "{tmp}", "-m", "{checkpoint}", "--score", "x"], 2, "No such option"),
    ],
)
def test_mistakes_end_in_one_line(checkpoint, images, tmp_path, arguments, status, message):
    places = {"{tmp}": str(tmp_path), "{checkpoint}": str(checkpoint), "{images}": str(images)}
    for name, value in places.items():
        arguments = [argument.replace(name, value) for argument in arguments]
    done = run(*arguments, check=status)
    assert message in done.stderr


def test_a_mistake_in_a_real_process(images, tmp_path):
    done = run_program("-m", "vcp_clip_hf.cli", "predict", images, "-o", tmp_path, "-m", "nobody/nothing")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: There is no folder 'nobody/nothing'" in done.stderr


def test_regions_get_names(checkpoint, images, tmp_path):
    names = ("--defect-name", "scratch", "--defect-name", "hole")
    run("predict", images / "a.png", "-o", tmp_path, "-m", checkpoint, *names)
    (record,) = read_predictions(tmp_path)
    assert record["regions"] and {region["name"] for region in record["regions"]} <= {"scratch", "hole"}
    done = run("predict", images / "a.png", "-o", tmp_path, "-m", checkpoint, *names[:3], "hole 2", check=1)
    assert "defect_names" in done.stderr and "--overwrite" in done.stderr


def test_regions_need_a_threshold(images, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    VCPCLIPImageProcessor.for_model(model.config).save_pretrained(tmp_path)
    done = run("predict", images, "-o", tmp_path / "out", "-m", tmp_path, "--regions", check=2)
    assert "--threshold" in done.stderr and "calibrate" in done.stderr
