"""Runs over image files: what is done again, what is kept, what is refused, and how a run is interrupted."""

import csv
import json
import os
import random
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.common import tiny_model, tiny_tokenizer
from tests.processes import Program
from vcp_clip_hf import AnomalySegmentationPipeline, MutualScoring, VCPCLIPImageProcessor
from vcp_clip_hf.prediction import _chosen_workers, predict_files, read_predictions


ROOT = Path(__file__).parent.parent


def make_pipe(seed: int = 0, **settings) -> AnomalySegmentationPipeline:
    torch.manual_seed(seed)
    model = tiny_model()
    processor = VCPCLIPImageProcessor.for_model(model.config, **{"smoothing_sigma": 2.0, "threshold": 0.5, **settings})
    return AnomalySegmentationPipeline(
        model=model, image_processor=processor, tokenizer=tiny_tokenizer(), device="cpu"
    )


def save_image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


@pytest.fixture(scope="module")
def pipe():
    return make_pipe()


@pytest.fixture
def folder(tmp_path):
    for index in range(4):
        save_image(tmp_path / "in" / f"{index}.png", index)
    return tmp_path / "in"


@pytest.fixture
def predict(pipe, folder, tmp_path):
    def run(sources=(folder,), with_pipe=pipe, **options):
        return predict_files(with_pipe, sources, tmp_path / "out", progress=False, **options)

    return run


def table(output: Path) -> list[str]:
    with open(output / "predictions.csv", newline="") as file:
        return [Path(row["image"]).name for row in csv.DictReader(file)]


# Files to results


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_that_computes_ahead_writes_the_same(predict, folder, tmp_path, monkeypatch, num_workers):
    (folder / "bad.png").write_text("no image")
    options = {"regions": True, "batch_size": 2, "num_workers": num_workers}
    predict(**options)
    first = read_predictions(tmp_path / "out")
    files = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*") if path.suffix in (".png", ".jpg")}
    assert len(files) == 12 and sum("error" in record for record in first) == 1
    monkeypatch.setattr(AnomalySegmentationPipeline, "_overlaps", True)
    predict(overwrite=True, **options)
    assert read_predictions(tmp_path / "out") == first
    assert all(path.read_bytes() == content for path, content in files.items())


def test_scores_and_labels_need_no_maps(predict, tmp_path, pipe):
    full = {record["name"]: record for record in (predict(min_area=3), read_predictions(tmp_path / "out"))[1]}
    predict(overwrite=True, min_area=3, save_maps=None, save_masks=False, save_overlays=False)
    for record in read_predictions(tmp_path / "out"):
        assert not record.keys() & {"map", "mask", "overlay"}
        for name, value in record.items():
            assert value == full[record["name"]][name]
    assert not list((tmp_path / "out").rglob("*.png"))


@pytest.mark.parametrize(
    ("device", "cores", "processes", "expected"),
    [("cpu", 64, 1, 2), ("cuda", 16, 1, 8), ("cuda", 16, 4, 4), ("cuda", 2, 4, 2)],
)
def test_readers_are_chosen_for_the_device(device, cores, processes, expected, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert _chosen_workers(torch.device(device)) == expected


def test_regions_without_a_threshold_end_the_run(folder, tmp_path):
    with pytest.raises(ValueError, match="Regions need a threshold"):
        predict_files(make_pipe(threshold=None), [folder], tmp_path / "out", regions=True, progress=False)


def test_arguments_that_the_references_refuse_leave_the_folder_as_it_is(folder, tmp_path):
    pipe = make_pipe()
    pipe.set_references([folder / "0.png", folder / "1.png"])
    output = tmp_path / "out"
    with pytest.raises(ValueError, match="fast_decode=True is not possible here: references"):
        predict_files(pipe, [folder], output, fast_decode=True, progress=False)
    assert not output.exists()
    predict_files(pipe, [folder], output, progress=False)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    for options in ({"fast_decode": True}, {"tile_size": 16}):
        with pytest.raises(ValueError):
            predict_files(pipe, [folder], output, progress=False, overwrite=True, **options)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


# What a second run does


def test_a_second_run_does_what_is_new_changed_or_missing(predict, folder, tmp_path):
    first = predict()
    assert first.predicted == 4 and dict(first.reasons) == {"new": 4}
    again = predict()
    assert (again.predicted, again.skipped, dict(again.reasons)) == (0, 4, {})
    before = {record["image"]: record for record in read_predictions(tmp_path / "out")}

    save_image(folder / "0.png", seed=100)  # another picture under the same name
    save_image(folder / "4.png", seed=4)
    (tmp_path / "out" / "maps" / "1.png").unlink()
    torn = tmp_path / "out" / "overlays" / "2.jpg"
    torn.write_bytes(torn.read_bytes()[:100])
    summary = predict()
    assert dict(summary.reasons) == {"changed": 1, "new": 1, "with missing outputs": 2}
    assert summary.predicted == 4 and summary.skipped == 1
    assert "4 images segmented" in summary.describe() and "1 done before" in summary.describe()
    assert "to do: 1 changed, 1 new, 2 with missing outputs" in summary.describe()
    after = {record["image"]: record for record in read_predictions(tmp_path / "out")}
    assert len(after) == 5 and table(tmp_path / "out") == [f"{index}.png" for index in range(5)]
    assert after[str(folder / "0.png")]["score"] != before[str(folder / "0.png")]["score"]
    for name in ("1.png", "2.png", "3.png"):
        assert after[str(folder / name)] == before[str(folder / name)]
    for record in after.values():
        for kind in ("map", "mask", "overlay"):
            Image.open(tmp_path / "out" / record[kind]).load()
    assert predict().predicted == 0


def test_a_replaced_file_of_the_same_size_is_noticed(predict, folder):
    predict()
    path = folder / "1.png"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert dict(predict().reasons) == {"changed": 1}


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.6},
        {"image_threshold": 0.4},
        {"tile_size": 24},
        {"prompts": {"normal": "perfect", "abnormal": "flawed"}},
        {"min_area": 9},
        {"smoothing_sigma": 1.0},
    ],
)
def test_other_settings_are_refused_and_change_nothing(predict, tmp_path, options):
    predict()
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    name = next(iter(options)).replace("prompts", "prompt_input_ids")
    with pytest.raises(ValueError, match=rf"other settings.*{name}: .* -> .*--overwrite") as caught:
        predict(**options)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in before} == before
    assert predict(overwrite=True, **options).predicted == 4
    assert predict(**options).predicted == 0


def test_regions_without_a_threshold_are_refused_before_anything_is_written(predict, tmp_path):
    with pytest.raises(ValueError, match="Regions need a threshold, and there is none for this call"):
        predict(with_pipe=make_pipe(threshold=None), regions=True)
    assert not (tmp_path / "out").exists()
    assert predict(with_pipe=make_pipe(threshold=None), regions=True, threshold=0.5).predicted == 4


def test_defaults_of_the_pipeline_count_for_regions(predict, tmp_path):
    pipe = make_pipe(threshold=None)
    pipe._forward_params["threshold"] = 0.5
    assert predict(with_pipe=pipe, regions=True).predicted == 4
    pipe = make_pipe(threshold=None)
    pipe._postprocess_params["regions"] = True
    with pytest.raises(ValueError, match="Regions need a threshold"):
        predict(with_pipe=pipe, overwrite=True)
    assert len(read_predictions(tmp_path / "out")) == 4


def test_another_model_is_refused(predict, tmp_path):
    predict()
    with pytest.raises(ValueError, match=r"model: VCPCLIPModel \(\w+\) -> VCPCLIPModel \(\w+\)"):
        predict(with_pipe=make_pipe(seed=1))
    with pytest.raises(ValueError, match=r"threshold: 0.5 -> 0.7"):
        predict(with_pipe=make_pipe(threshold=0.7))
    assert predict(with_pipe=make_pipe(seed=1), overwrite=True).predicted == 4


def test_records_without_settings_are_refused(predict, tmp_path):
    predict()
    (tmp_path / "out" / "run.json").unlink()
    with pytest.raises(ValueError, match=r"no run.json .*--overwrite"):
        predict()


def test_outputs_are_added_to_a_finished_run(predict, tmp_path):
    predict(save_maps=None, save_overlays=False)
    assert dict(predict(save_maps=None, save_overlays=False, regions=True).reasons) == {"with missing outputs": 4}
    assert all("regions" in record for record in read_predictions(tmp_path / "out"))
    assert predict(save_maps="npy", save_overlays=False, regions=True).predicted == 4
    assert predict(save_maps="npy", save_overlays=False, regions=True).predicted == 0
    # fewer outputs are no reason to compute again
    assert predict(save_maps=None, save_masks=False, save_overlays=False).predicted == 0


def test_overwrite_removes_the_former_results(predict, folder, tmp_path):
    predict()
    (folder / "3.png").unlink()
    predict(overwrite=True, save_overlays=False)
    left = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    pictures = [f"{kind}/{index}.png" for kind in ("maps", "masks") for index in range(3)]
    assert left == [*pictures, "predictions.csv", "predictions.jsonl", "run.json"]


def test_removed_images_stay_out_of_the_tables(predict, folder, tmp_path):
    predict()
    (folder / "1.png").unlink()
    summary = predict()
    assert summary.removed == 1 and summary.skipped == 3 and "1 earlier record" in summary.describe()
    assert table(tmp_path / "out") == ["0.png", "2.png", "3.png"]
    assert len(read_predictions(tmp_path / "out")) == 3


def test_images_of_other_sources_are_kept_while_they_are_unchanged(predict, folder, tmp_path):
    predict([folder / "0.png"])
    assert predict([folder / "1.png"]).removed == 0
    assert sorted(table(tmp_path / "out")) == ["0.png", "1.png"]
    save_image(folder / "0.png", seed=9)
    assert predict([folder / "1.png"]).removed == 1 and table(tmp_path / "out") == ["1.png"]


def test_one_file_in_two_spellings_has_one_record(predict, folder, tmp_path, monkeypatch):
    predict()
    monkeypatch.chdir(folder.parent)
    assert predict(["in"]).predicted == 0 and len(table(tmp_path / "out")) == 4


def test_outdated_tables_are_absent_until_the_run_is_done(predict, folder, tmp_path):
    predict()
    coco = tmp_path / "out" / "predictions.coco.json"
    coco.write_text("{}")
    predict()
    assert coco.exists()  # nothing has changed
    save_image(folder / "4.png")
    predict()
    assert not coco.exists() and len(table(tmp_path / "out")) == 5


# Sources and names


def test_problems_of_sources_do_not_end_the_run(predict, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (folder / "broken_link.png").symlink_to(tmp_path / "gone.png")
    summary = predict([tmp_path / "gone", tmp_path / "empty", folder])
    assert summary.predicted == 4
    failed = {Path(path).name: sentence for path, sentence in summary.errors}
    assert set(failed) == {"gone", "empty", "broken_link.png"}
    assert all(len(sentence) > 20 for sentence in failed.values())
    with pytest.raises(FileNotFoundError, match="empty"):
        predict([tmp_path / "gone", tmp_path / "empty"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_any_file_name_is_segmented(predict, tmp_path, num_workers):
    names = [os.fsdecode(b"not utf-8 \xff\xfe.png"), "two\nlines.png", 'quo"te.png', "=cmd|' -C calc'!A0.png"]
    names += [
        "😀 emoji.png",
        "x" * 196 + ".png",
        "x" * 250 + ".png",
        "a.png",
        "A.png",
        "a.jpg",
        "a.png.bmp",
        "b.png/c.png",
    ]
    names += ["-o.png", "a,b;c.png", " .png", "\\.png", "%s.png", "{0}.png"]
    for name in names:
        save_image(tmp_path / "odd" / name)
    summary = predict([tmp_path / "odd"], num_workers=num_workers)
    assert summary.predicted == len(names) and not summary.errors
    records = read_predictions(tmp_path / "out")
    assert {os.path.relpath(record["image"], tmp_path / "odd") for record in records} == set(names)
    assert len({record["map"].casefold() for record in records}) == len(names)
    assert all((tmp_path / "out" / record[kind]).is_file() for record in records for kind in ("map", "overlay"))
    with open(tmp_path / "out" / "predictions.csv", encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(names)
    assert predict([tmp_path / "odd"]).skipped == len(names)


# Images judged together


@pytest.fixture
def predict_together(predict, folder):
    for index in range(4, 6):
        save_image(folder / f"{index}.png", index)

    def run(**options):
        return predict(together=MutualScoring(**options.pop("scoring", {})), **options)

    return run


def test_images_are_judged_together_once(predict_together, folder, tmp_path):
    summary = predict_together(threshold=0.1)
    assert summary.predicted == 6 and not summary.errors
    records = read_predictions(tmp_path / "out")
    assert all(record["judged_with"]["pictures"] == 6 and record["label"] is None for record in records)
    assert all(
        (tmp_path / "out" / record[kind]).is_file() for record in records for kind in ("map", "mask", "overlay")
    )
    again = predict_together(threshold=0.1)
    assert (again.predicted, again.skipped, dict(again.reasons)) == (0, 6, {})


def test_missing_outputs_are_made_again_from_the_whole_set(predict_together, tmp_path):
    predict_together()
    before = {record["image"]: record for record in read_predictions(tmp_path / "out")}
    (tmp_path / "out" / "maps" / "1.png").unlink()
    summary = predict_together()
    assert summary.predicted == 1 and summary.skipped == 5
    assert {record["image"]: record for record in read_predictions(tmp_path / "out")} == before


@pytest.mark.parametrize("change", ["new", "changed", "removed", "settings", "each by itself"])
def test_another_set_or_other_settings_are_refused(predict_together, predict, folder, tmp_path, change):
    predict_together()
    run, message = predict_together, r"images: 6 images \(list \w+\) -> [567] images \(list \w+\)"
    if change == "new":
        save_image(folder / "6.png", 6)
    elif change == "changed":
        save_image(folder / "0.png", 100)
    elif change == "removed":
        (folder / "0.png").unlink()
    elif change == "settings":
        message, options = "together: ", {"scoring": {"degrees": [1]}}
        run = lambda **others: predict_together(**options, **others)  # noqa: E731
    else:
        run, message = predict, "together: .* -> not set"
    with pytest.raises(ValueError, match=f"{message}.*--overwrite"):
        run()
    assert run(overwrite=True).predicted == len(list(folder.iterdir()))
    assert run().predicted == 0


def test_an_unreadable_image_stays_left_out_until_it_changes(predict_together, folder, tmp_path):
    (folder / "3.png").write_bytes(b"no picture")
    for predicted in (5, 0):
        summary = predict_together()
        assert summary.predicted == predicted and summary.skipped == 5 - predicted
        assert [Path(path).name for path, _ in summary.errors] == ["3.png"]
    assert all(record.get("judged_with", {}).get("pictures", 5) == 5 for record in read_predictions(tmp_path / "out"))
    save_image(folder / "3.png", 3)
    with pytest.raises(ValueError, match=r"images: .*--overwrite"):
        predict_together()


def test_too_few_images_leave_no_records(predict_together, folder, tmp_path):
    for index in range(2):
        (folder / f"{index}.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"At least 5 images .* 4 of 6 could be read .*0\.png"):
        predict_together()
    assert not read_predictions(tmp_path / "out")


# Interruptions


def start(folder: Path, output: Path, checkpoint: Path, *options: str) -> Program:
    arguments = ["predict", folder, "-o", output, "-m", checkpoint, *options]
    return Program("-m", "vcp_clip_hf.cli", *arguments, start_new_session=True)


def wait_for_records(process: Program, output: Path, count: int) -> None:
    records = output / "predictions.jsonl"
    for _ in range(1200):
        if records.is_file() and records.read_bytes().count(b"\n") >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("no records after a minute")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    make_pipe().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    for index in range(400):
        save_image(folder / f"{index:03d}.png", index)
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_a_way_on(many, checkpoint, tmp_path, number):
    output, pictures = tmp_path / "out", many / "[01]*.png"
    process = start(pictures, output, checkpoint, "--batch-size", "1", "--num-workers", "2")
    wait_for_records(process, output, 10)
    # as a terminal does, to all processes of the run; SIGTERM comes from a manager, to the first one
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert "run the same command again" in stderr and "Traceback" not in stderr
    assert stderr.count("Interrupted") == 1
    done = len(read_predictions(output))
    assert 10 <= done < 200 and not (output / "predictions.csv").exists()
    summary = predict_files(make_pipe(), [pictures], output, progress=False)
    assert summary.predicted == 200 - done and summary.skipped == done and len(table(output)) == 200


def test_a_comparison_can_be_interrupted(many, checkpoint, tmp_path):
    process = start(many, tmp_path / "out", checkpoint, "--together", "--num-workers", "0")
    shown = ""
    while not re.search(r"compare: +[1-9]\d?%", shown):
        assert process.poll() is None, shown
        shown += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert "run the same command again" in stderr and "Traceback" not in stderr
    assert not read_predictions(tmp_path / "out")


@pytest.mark.slow
def test_every_file_is_there_once_after_several_kills(many, checkpoint, tmp_path):
    output, chance = tmp_path / "out", random.Random(0)
    for count in (5, 90, 180, 270):
        process = start(many, output, checkpoint, "--batch-size", "2", "--num-workers", str(chance.randrange(3)))
        wait_for_records(process, output, count)
        time.sleep(chance.random() / 10)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (output / "predictions.csv").exists()
    process = start(many, output, checkpoint)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    lines = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    names = sorted(path.name for path in many.iterdir())
    assert [Path(line["image"]).name for line in lines] == names == table(output)
    for line in lines:
        for kind in ("map", "mask", "overlay"):
            Image.open(output / line[kind]).load()
    assert {path.stem for path in (output / "maps").iterdir()} == {Path(name).stem for name in names}
