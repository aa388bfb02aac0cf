"""Training: learning, exact resuming after any kill, several processes, and Hub-ready results."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader
from transformers import pipeline

from tests.common import tiny_model
from tests.processes import run_program, run_two_ranks
from tests.training_run import (
    LONG,
    ONE_RANK,
    make_model_folder,
    make_records,
    on_cached_features,
    settings,
)
from vcp_clip_hf import VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.backbone_loading import learned_state
from vcp_clip_hf.references import REFERENCES_FILE
from vcp_clip_hf.training import make_accelerator, train
from vcp_clip_hf.training_checkpoints import latest_checkpoint
from vcp_clip_hf.training_data import EpochSampler, collate_examples, load_training_data, training_examples


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    make_model_folder(folder)
    return folder


@pytest.fixture(scope="module")
def records():
    return make_records()


@pytest.fixture(scope="module")
def finished(folder, records):
    """An uninterrupted run, with held-out images."""
    return train(settings(folder, "finished"), records, records.select(range(4)))


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


# This bias adds a constant to a whole category token, which the first LayerNorm removes: its gradient is rounding
# noise, of which Adam makes full steps
WITHOUT_EFFECT = "pre_vcp.mini_net.bias"


def assert_same_weights(first: Path, second: Path, atol: float = 0.0):
    ours, theirs = weights_of(first), weights_of(second)
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - ({WITHOUT_EFFECT} if atol else set()):
        difference = (theirs[name] - ours[name]).abs().max()
        assert difference <= atol, f"{name} differs by {difference}"


# Limits for the best epoch on the held-out images: 5 standard deviations below the mean over 24 seeds of this run,
# which was 0.931 +- 0.026 for pixel AP and 0.9943 +- 0.0022 for pixel AUROC. Without learning, the mean pixel AP was
# 0.09.
MIN_PIXEL_AP, MIN_PIXEL_AUROC = 0.80, 0.983


# --- one run --------------------------------------------------------------------------------------------------------


def test_training_learns_and_writes_hub_ready_folders(finished, folder, records):
    assert finished.state.step == 18 and not finished.interrupted
    log = log_of(folder / "finished")
    losses = [entry["loss"] for entry in log if "loss" in entry]
    validations = [entry for entry in log if "validation/pixel_ap" in entry]
    assert losses[-1] < losses[0] and len(validations) == 3
    best = max(entry["validation/pixel_ap"] for entry in validations)
    assert finished.state.best_metric == best > MIN_PIXEL_AP
    assert finished.images_per_second > 0 and finished.peak_memory > 1e6
    for path in (finished.last, finished.best):
        assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"} <= {
            file.name for file in path.iterdir()
        }
    assert max(entry["validation/pixel_auroc"] for entry in validations) > MIN_PIXEL_AUROC
    inspect = pipeline("anomaly-segmentation", model=str(finished.best))
    result, inside = inspect(records[1]["image"]), np.asarray(records[1]["mask"]) > 0
    assert result["anomaly_map"][inside].mean() > result["anomaly_map"][~inside].mean()


def test_training_does_not_change_clip(finished, folder):
    before, after = load_file(folder / "clip" / "model.safetensors"), weights_of(finished.last)
    for name, value in before.items():
        assert torch.equal(after[f"clip.{name}"], value), name


def test_the_learned_part_alone_can_be_saved(folder, records):
    result = train(settings(folder, "adapter", max_train_steps=1, save_adapter_only=True), records)
    assert not any(name.startswith("clip.") for name in weights_of(result.last))
    assert VCPCLIPModel.from_pretrained(result.last) and result.best is None


def test_a_trained_model_can_be_trained_further(finished, folder, records):
    config = settings(folder, "further", model=str(finished.last), max_train_steps=1, learning_rate=1e-9)
    result = train(config, records)
    before, after = weights_of(finished.last), weights_of(result.last)
    assert all((before[name] - value).abs().max() < 0.02 for name, value in after.items())


def test_without_dropout_accumulation_and_checkpointing_change_nothing(tmp_path, records):
    make_model_folder(tmp_path, deep_prompt_dropout=0.0)
    changes = {"max_train_steps": 3, "learning_rate": 1e-3}
    whole = train(settings(tmp_path, "whole", per_device_train_batch_size=8, **changes), records)
    parts = train(settings(tmp_path, "parts", gradient_accumulation_steps=2, **changes), records)
    assert_same_weights(whole.last, parts.last, atol=2e-5)
    less = train(
        settings(tmp_path, "less", per_device_train_batch_size=8, gradient_checkpointing=True, **changes), records
    )
    assert_same_weights(whole.last, less.last, atol=1e-6)


def test_stored_references_stay_in_the_checkpoint(finished, folder, records, caplog):
    source = folder / "with_references"
    inspect = pipeline("anomaly-segmentation", model=str(finished.last))
    memory = inspect.set_references(list(records.select([0, 2])["image"]))
    inspect.save_pretrained(source)
    changes = {"model": str(source), "max_train_steps": 1}
    kept = train(settings(folder, "keeps_references", **changes), records)
    assert pipeline("anomaly-segmentation", model=str(kept.last)).references.digest == memory.digest
    assert REFERENCES_FILE not in caplog.text
    # other sizes and layers of images
    ablated = train(settings(folder, "without_references", ablation="heads-4", **changes), records)
    assert not (ablated.last / REFERENCES_FILE).exists()
    assert f"{REFERENCES_FILE} of {source} is left out" in caplog.text and "--references" in caplog.text


def test_losses_are_reported_to_tensorboard(folder, records):
    train(settings(folder, "tracked", max_train_steps=1, logging_steps=1, report_to=["tensorboard"]), records)
    assert list((folder / "tracked" / "logs").rglob("events*"))


# --- the image head -----------------------------------------------------------------------------------------------


def log_of(folder: Path) -> list[dict]:
    """Return the losses and validations of a log, without the events."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry for entry in log if "event" not in entry]


def test_an_image_head_leaves_the_training_of_the_other_parts_bit_equal(folder, records):
    changes = {"max_train_steps": 5, "logging_steps": 1}
    plain = train(settings(folder, "without_head", **changes), records)
    headed = train(settings(folder, "with_head", use_image_head=True, **changes), records)
    ours, theirs = weights_of(headed.last), weights_of(plain.last)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert {name.split(".")[0] for name in ours.keys() - theirs.keys()} == {"image_head"}
    log, without = log_of(folder / "with_head"), log_of(folder / "without_head")
    for one, other in zip(log, without, strict=True):
        assert one["loss"] == pytest.approx(other["loss"] + one["image_loss"], abs=1e-5)
        assert "image_loss" not in other
    card = (headed.last / "README.md").read_text()
    assert "| Image head |" in card and "was trained together with it" in card
    assert "image head" not in (plain.last / "README.md").read_text().lower()


@pytest.fixture(scope="module")
def trained_head(finished, folder, records):
    """An image head, trained alone on the finished checkpoint, with held-out images."""
    config = settings(
        folder,
        "head",
        model=str(finished.last),
        trainable="image_head",
        normal_fraction=0.5,
        image_head_learning_rate=0.02,
        metric_for_best_model="image_auroc",
    )
    return train(config, records, make_records(12, seed=1))


def test_a_head_is_trained_on_top_of_a_finished_checkpoint(trained_head, finished, folder):
    before, after = weights_of(finished.last), weights_of(trained_head.last)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    head = {name for name in after if name.startswith("image_head.")}
    assert head == after.keys() - before.keys()
    assert (after["image_head.prominence_weights"] != 0.1).all()
    log = log_of(folder / "head")
    assert len([entry for entry in log if "loss" in entry]) > 0
    assert all(entry["loss"] == pytest.approx(entry["image_loss"]) for entry in log if "loss" in entry)
    pixel = {entry["validation/pixel_ap"] for entry in log if "validation/pixel_ap" in entry}
    assert len(pixel) == 1, "maps stay as they are"
    best = max(entry["validation/image_auroc"] for entry in log if "validation/image_auroc" in entry)
    assert trained_head.state.best_metric == best > 0.9


def test_the_card_tells_both_trainings_apart(trained_head, finished):
    facts = json.loads((trained_head.last / "training.json").read_text())
    source = json.loads((finished.last / "training.json").read_text())
    head = facts.pop("image_head")
    assert {**facts, "fingerprint": None} == {**source, "fingerprint": None}
    assert head["hyper_parameters"]["normal_fraction"] == 0.5
    assert head["hyper_parameters"]["image_head_learning_rate"] == 0.02
    assert "image_head_learning_rate" not in source["hyper_parameters"]
    card = (trained_head.last / "README.md").read_text()
    assert "the model of the paper has none" in card
    assert "The image head, which the paper's model does not have, was trained afterwards" in card
    assert card.count("| Optimizer steps |") == 2


def test_a_head_on_a_random_model_separates_pictures_that_it_has_not_seen(tmp_path):
    """Check the head alone: the maps of a model that was never trained tell nothing."""
    torch.manual_seed(0)
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    processor = VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=1.0)
    processor.save_pretrained(tmp_path / "model")
    config = settings(
        tmp_path,
        trainable="image_head",
        normal_fraction=0.5,
        image_head_learning_rate=0.01,
        num_train_epochs=8,
        metric_for_best_model="image_auroc",
        **on_cached_features(tmp_path),
    )
    result = train(config, make_records(32), accelerator=Accelerator(cpu=True))
    unseen = make_records(100, seed=5)
    inspect = pipeline("anomaly-segmentation", model=str(result.last), image_processor=processor)
    labels = np.array(unseen["label"])
    by_head, by_map = (
        np.array([each["score"] for each in inspect(list(unseen["image"]), score_mode=score_mode, batch_size=8)])
        for score_mode in ("image_head", "max")
    )
    # over six seeds of the model: 0.86 to 0.98 by the head, 0.40 to 0.66 by the maximum of the map
    assert roc_auc_score(labels, by_head) > 0.8 > roc_auc_score(labels, by_map)
    card = (result.last / "README.md").read_text()
    assert "no record of its training.\n\nThe image head" in card


def test_a_head_run_is_resumed_exactly(trained_head, finished, folder, records):
    config = {
        "model": str(finished.last),
        "trainable": "image_head",
        "normal_fraction": 0.5,
        "image_head_learning_rate": 0.02,
        "metric_for_best_model": "image_auroc",
    }
    train(settings(folder, "head_parts", max_train_steps=7, **config), records)
    train(settings(folder, "head_parts", resume="latest", **config), records)
    assert_same_weights(trained_head.last, folder / "head_parts" / "last")
    with pytest.raises(ValueError, match="normal_fraction"):
        train(settings(folder, "head_parts", resume="latest", **{**config, "normal_fraction": 0.25}), records)


def test_a_head_alone_needs_trained_weights_and_an_image_metric(folder, records):
    with pytest.raises(OSError, match="has no weights"):
        train(settings(folder, "no_weights", trainable="image_head"), records)
    with pytest.raises(ValueError, match=r"stays the same while only the image head.*image_auroc"):
        train(settings(folder, "by_pixels", trainable="image_head"), records, records)


# --- resuming -----------------------------------------------------------------------------------------------------


def test_a_run_resumed_within_an_epoch_ends_with_the_same_weights(finished, folder, records):
    first = train(settings(folder, "two_parts", max_train_steps=8), records, records.select(range(4)))
    assert first.state.step == 8 and first.state.epoch == 1 and first.state.step_in_epoch == 2
    second = train(settings(folder, "two_parts", resume="latest"), records, records.select(range(4)))
    assert second.state.step == 18
    assert_same_weights(finished.last, second.last)
    assert_same_weights(finished.best, second.best)
    assert second.state == finished.state


def test_a_signal_saves_a_checkpoint_and_stops_the_run(folder, records):
    timer = threading.Timer(0.7, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    result = train(settings(folder, "stopped", num_train_epochs=500, checkpointing_steps=1000), records)
    assert result.interrupted and result.last is None and result.state.step < 3000
    checkpoint = max((folder / "stopped" / "checkpoints").iterdir())
    assert int(checkpoint.name.removeprefix("step-")) == result.state.step
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_with_the_same_weights(folder, records):
    """kill -9 at random moments: during imports, loading, steps, checkpoints, validation. Then resume=latest."""
    expected = train(settings(folder, "unharmed", **LONG), records, records.select(range(4)))
    command = [sys.executable, "-m", "tests.training_run", str(folder), "killed", "long"]
    generator = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    reached = []
    for _ in range(10):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(generator.uniform(3, 12))
        assert process.poll() is None, "the run ended before it could be killed"
        process.kill()
        process.wait()
        latest = latest_checkpoint(folder / "killed" / "checkpoints")
        reached.append(0 if latest is None else int(latest.name.removeprefix("step-")))
    assert reached == sorted(reached) and 0 < reached[-1] < expected.state.step, reached
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=600)
    print(f"killed after steps {reached}, finished at {expected.state.step}")
    assert_same_weights(expected.last, folder / "killed" / "last")
    assert_same_weights(expected.best, folder / "killed" / "best")


# state.json as version 0.1.0 wrote it for a run with the settings of tests/training_run.py
STATE_0_1_0 = """{
  "step": 2, "epoch": 0, "step_in_epoch": 2, "best_metric": null, "best_step": null,
  "settings": {
    "dataset": "synthetic", "dataset_options": {}, "split": "test", "products": null, "validation_products": 0,
    "augmentation": true, "mosaic_probability": 0.0, "synthetic_anomaly_probability": 0.0, "learning_rate": 0.01,
    "temperature_learning_rate": 0.01, "adam_beta1": 0.5, "adam_beta2": 0.999, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1, "seed": 333, "num_processes": 1
  },
  "scaler": null, "seconds": 0.167
}"""


def test_a_checkpoint_of_version_0_1_0_is_resumed(folder, records):
    expected = train(settings(folder, "four_steps", max_train_steps=4), records)
    train(settings(folder, "old", max_train_steps=2), records)
    (checkpoint,) = (folder / "old" / "checkpoints").iterdir()
    assert {file.name for file in checkpoint.iterdir()} == {
        "learned.safetensors",
        "optimizer.safetensors",
        "state.json",
    }
    (checkpoint / "state.json").write_text(STATE_0_1_0)
    resumed = train(settings(folder, "old", max_train_steps=4, resume="latest"), records)
    assert resumed.state.step == 4
    assert_same_weights(expected.last, resumed.last)


def test_a_new_run_does_not_overwrite_an_earlier_one(finished, folder, records):
    with pytest.raises(ValueError, match="resume=latest"):
        train(settings(folder, "finished"), records)


def test_a_run_with_other_settings_cannot_be_resumed(finished, folder, records):
    with pytest.raises(ValueError, match=r"learning_rate: 0\.01 then, 0\.5 now"):
        train(settings(folder, "finished", resume="latest", learning_rate=0.5), records)
    with pytest.raises(ValueError, match="per_device_train_batch_size: 4 then, 8 now"):
        train(settings(folder, "finished", resume="latest", per_device_train_batch_size=8), records)
    with pytest.raises(FileNotFoundError, match="not a complete checkpoint"):
        train(settings(folder, "other", resume=str(folder / "nowhere")), records)


def test_latest_without_a_checkpoint_starts_a_new_run(folder, records):
    result = train(settings(folder, "fresh", resume="latest", max_train_steps=1), records)
    assert result.state.step == 1


def test_an_unfinished_checkpoint_is_ignored(folder, records):
    train(settings(folder, "torn", max_train_steps=2), records)
    torn = folder / "torn" / "checkpoints" / ".step-00000099.unfinished"
    torn.mkdir()
    (torn / "state.json").write_text("{")
    assert train(settings(folder, "torn", max_train_steps=3, resume="latest"), records).state.step == 3


# --- several processes --------------------------------------------------------------------------------------------


def test_two_processes_equal_one_with_the_same_global_batch(tmp_path, records):
    """Losses agree to 1e-3; weights to 1 % of their change, since Adam makes full steps of rounding noise too."""
    make_model_folder(tmp_path, deep_prompt_dropout=0.0)
    start = train(settings(tmp_path, "start", **{**ONE_RANK, "max_train_steps": 1, "learning_rate": 1e-9}), records)
    one = train(settings(tmp_path, "one", **ONE_RANK), records, records.select(range(5)))
    run_two_ranks("-m", "tests.training_run", tmp_path, "two", "two_ranks")
    before, ours, theirs = (weights_of(path) for path in (start.last, one.last, tmp_path / "two" / "last"))
    names = learned_state(VCPCLIPModel.from_pretrained(one.last).state_dict()).keys() - {WITHOUT_EFFECT}
    change = sum((ours[name] - before[name]).square().sum() for name in names).sqrt()
    difference = sum((ours[name] - theirs[name]).square().sum() for name in names).sqrt()
    assert difference < 0.01 * change
    for entry, expected in zip(*(log_of(tmp_path / name) for name in ("two", "one")), strict=True):
        for measured in ("time", "seconds", "validation_seconds", "peak_memory_bytes"):
            assert (measured in entry) == (measured in expected)
            entry.pop(measured, None), expected.pop(measured, None)
        assert entry == pytest.approx(expected, abs=1e-3)


# --- order and examples -------------------------------------------------------------------------------------------


def test_the_order_is_a_permutation_that_can_start_anywhere():
    sampler = EpochSampler(10, seed=1, batch_size=2)
    sampler.set_place(0, 0)
    whole = list(sampler)
    assert sorted(whole) == list(range(10)) and sampler.num_batches == 5
    sampler.set_place(0, 3)
    assert list(sampler) == whole[6:] and len(sampler) == 4
    sampler.set_place(1, 0)
    assert list(sampler) != whole
    several = EpochSampler(10, seed=1, batch_size=2, num_processes=3)
    several.set_place(0, 0)
    assert len(several) == 12 and several.num_batches == 2 and list(several)[:10] == whole
    assert list(several)[10:] == whole[:2]


@pytest.mark.parametrize(("fraction", "expected"), [(0.5, {2}), (0.25, {1}), (0.75, {3}), (1.0, {4}), (0.0, {0})])
def test_every_batch_has_its_share_of_normal_images(fraction, expected):
    labels = np.array([0] * 5 + [1] * 15)
    sampler = EpochSampler(20, seed=1, batch_size=4, labels=labels, normal_fraction=fraction)
    sampler.set_place(0, 0)
    order = list(sampler)
    assert {int((labels[order[start : start + 4]] == 0).sum()) for start in range(0, 20, 4)} == expected
    if fraction == 0.5:
        counts = np.bincount(order, minlength=20)
        assert set(counts[:5]) == {2} and set(counts[5:]) == {0, 1}, "the rarer kind comes several times"
        sampler.set_place(0, 3)
        assert list(sampler) == order[12:]
        sampler.set_place(1, 0)
        assert set(sampler) != set(order), "other images of the more frequent kind"
        several = EpochSampler(20, 1, 4, num_processes=3, labels=labels, normal_fraction=fraction)
        several.set_place(0, 0)
        assert list(several) == order + order[:4]


def test_a_share_of_images_that_do_not_exist_is_refused(folder, records):
    for label, kind in ((0, "anomalous"), (1, "normal")):
        with pytest.raises(
            ValueError, match=rf"normal_fraction=0\.5 needs {kind} images, and the training data has none"
        ):
            EpochSampler(4, 1, 2, labels=np.full(4, label), normal_fraction=0.5)
    defective = records.filter(lambda row: row["label"] == 1)
    with pytest.raises(ValueError, match="needs normal images"):
        train(settings(folder, "no_normals", normal_fraction=0.5), defective)


def test_examples_know_whether_they_are_anomalous(folder, records):
    unmasked = records.map(lambda row: {"mask": None})
    processor = VCPCLIPImageProcessor.from_pretrained(folder / "model")
    examples = training_examples(unmasked, processor, settings(folder, augmentation=False))
    assert [bool(examples[index]["is_anomalous"]) for index in range(4)] == [False, True, False, True]
    painted = training_examples(records, processor, settings(folder, synthetic_anomaly_probability=1.0))
    assert [bool(painted[index]["is_anomalous"]) for index in range(4)] == [True] * 4
    batch = collate_examples([examples[0], examples[1]])
    assert batch["is_anomalous"].tolist() == [False, True]


def test_examples_are_preprocessed_and_augmented_by_epoch(folder, records):
    config = settings(folder, augmentation=False)
    processor = VCPCLIPImageProcessor.from_pretrained(folder / "model")
    examples = training_examples(records, processor, config)
    example = examples[1]
    expected = processor(records[1]["image"], records[1]["mask"], return_tensors="pt")
    assert torch.equal(example["pixel_values"], expected.pixel_values[0])
    assert torch.equal(example["labels"].long(), expected.labels[0])
    assert example["has_mask"] and examples[0]["has_mask"], "the mask of a normal image is known to be empty"
    augmented = training_examples(records, processor, settings(folder))
    first = augmented[1]["pixel_values"]
    assert not torch.equal(first, example["pixel_values"]) and torch.equal(first, augmented[1]["pixel_values"])
    augmented.set_epoch(1)
    assert not torch.equal(first, augmented[1]["pixel_values"])


def test_images_of_several_shapes_are_squashed_for_training(folder, records):
    sizes = [(48, 48), (96, 30), (40, 80)]

    def stretched(record, index):
        mask = record["mask"] and record["mask"].resize(sizes[index % 3], Image.Resampling.NEAREST)
        return {"image": record["image"].resize(sizes[index % 3]), "mask": mask}

    processor = VCPCLIPImageProcessor.from_pretrained(folder / "model", resize_mode="keep_ratio")
    shaped, config = records.map(stretched, with_indices=True), settings(folder, "shaped")
    examples = training_examples(shaped, processor, config)
    assert {tuple(examples[index]["pixel_values"].shape) for index in range(6)} == {(3, 48, 48)}
    assert {tuple(examples[index]["labels"].shape) for index in range(6)} == {(48, 48)}
    assert processor.resize_mode == "keep_ratio"


def test_normal_images_suffice_with_synthetic_anomalies(folder, records):
    good = records.filter(lambda row: row["label"] == 0)
    with pytest.raises(ValueError, match="synthetic_anomaly_probability"):
        train(settings(folder, "good_only"), good)
    result = train(settings(folder, "painted", synthetic_anomaly_probability=0.7, num_train_epochs=4), good)
    assert result.state.step == 12 and np.isfinite(result.loss)


def test_images_without_masks_train_with_their_labels(folder, records):
    unmasked = records.map(lambda row: {"mask": None})
    result = train(settings(folder, "labels_only", num_train_epochs=4), unmasked)
    inspect = pipeline("anomaly-segmentation", model=str(result.last))
    scores = [inspect(row["image"])["score"] for row in records]
    assert np.mean(scores[1::2]) > np.mean(scores[::2])


def test_products_are_held_out_by_number_or_name(tmp_path):
    options = {"num_images": 40, "num_test_images": 0, "size": 32, "cache_dir": str(tmp_path)}
    config = settings(
        tmp_path, products=["nut", "washer", "gear"], split="train", validation_products=1, dataset_options=options
    )
    training, validation = load_training_data(config)
    assert set(training["product"]) == {"gear", "nut"} and set(validation["product"]) == {"washer"}
    config.validation_products = ["nut", "gear"]
    training, validation = load_training_data(config)
    assert set(training["product"]) == {"washer"}
    for wrong, message in (
        (3, "leave nothing"),
        (["bolt"], "not among the products"),
        (["nut", "gear", "washer"], "all"),
    ):
        config.validation_products = wrong
        with pytest.raises(ValueError, match=message):
            load_training_data(config)


def test_a_batch_keeps_has_mask_off_the_device(folder, records):
    examples = training_examples(records, VCPCLIPImageProcessor.from_pretrained(folder / "model"), settings(folder))
    loader = Accelerator(cpu=True).prepare(DataLoader(examples, 4, collate_fn=collate_examples))
    batch = next(iter(loader))
    assert batch["pixel_values"].shape == (4, 3, 48, 48) and batch["labels"].dtype == torch.uint8
    assert batch["has_mask"] == [True] * 4
    assert collate_examples([{"has_mask": torch.tensor(value)} for value in (True, False)])["has_mask"] == [
        True,
        False,
    ]


def test_a_run_is_saved_where_the_peak_memory_is_unknown(folder, records, monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows, where importing it fails
    result = train(settings(folder, "windows", max_train_steps=1), records)
    assert result.peak_memory is None
    card = (result.last / "README.md").read_text()
    assert "mixed precision" in card and "peak memory" not in card


def test_a_second_mixed_precision_in_one_process_is_refused(folder):
    present = Accelerator().mixed_precision
    other = "no" if present == "bf16" else "bf16"
    with pytest.raises(ValueError, match=f"mixed_precision='{present}', and the configuration asks for '{other}'"):
        make_accelerator(settings(folder, mixed_precision=other))
    assert make_accelerator(settings(folder, mixed_precision=present)).mixed_precision == present
    assert make_accelerator(settings(folder)).mixed_precision == present


def test_an_accelerator_must_accumulate_as_the_configuration_says(folder, records):
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps=1.*configuration 2"):
        train(settings(folder, gradient_accumulation_steps=2), records, accelerator=Accelerator())


def test_a_loss_that_is_not_finite_stops_the_run(folder, records):
    with pytest.raises(FloatingPointError, match="Lower learning_rate"):
        train(settings(folder, "exploded", learning_rate=1e38, logging_steps=1), records)


def test_the_learned_state_is_the_parameters_with_gradients():
    model = tiny_model()
    assert learned_state(model.state_dict()).keys() == {
        name for name, value in model.named_parameters() if value.requires_grad
    }


def test_the_example_program_trains_and_refuses_a_typo(folder, tmp_path):
    """Run the real command on generated data, then once more with a misspelled option."""
    command = [ROOT / "examples" / "train.py", "--model", str(folder / "model")]
    options = "{num_images: 16, num_test_images: 0, size: 48, cache_dir: %s}" % (tmp_path / "cache")
    command += ["--dataset", "synthetic", "--split", "train", "--dataset_options", options, "--num_train_epochs", "1"]
    command += [
        "--per_device_train_batch_size",
        "8",
        "--dataloader_num_workers",
        "0",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    done = run_program(*command)
    assert done.returncode == 0, done.stderr
    assert "step 2" in done.stdout and (tmp_path / "run" / "last" / "model.safetensors").is_file()
    again = run_program(*command, "--resumee", "latest")
    assert again.returncode == 2 and "did you mean '--resume'" in again.stderr
