"""Cached image features: training with them, and their replacement when tower, images or preprocessing change."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tests.common import pixels, tiny_model_with_stem_branch
from tests.processes import run_two_ranks
from tests.training_run import (
    ONE_RANK,
    make_model_folder,
    make_records,
    on_cached_features,
    settings,
)
from vcp_clip_hf import VCPCLIPConfig, VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.feature_cache import CachedFeatures, cache_image_features, feature_cache_size
from vcp_clip_hf.training import _features_fingerprint, train


@pytest.fixture
def folder(tmp_path):
    make_model_folder(tmp_path)
    return tmp_path


def run(folder, output, **changes):
    config = settings(folder, output, augmentation=False, **changes)
    result = train(config, make_records(), accelerator=Accelerator(cpu=True))
    return VCPCLIPModel.from_pretrained(result.last), result


def test_training_on_cached_features_equals_training_on_images(folder):
    short = {"max_train_steps": 4, "learning_rate": 1e-3}
    untrained, _ = run(folder, "untrained", max_train_steps=1, learning_rate=1e-30, temperature_learning_rate=1e-30)
    fresh, plain = run(folder, "fresh", **short)
    cached, result = run(folder, "cached", image_feature_dir=str(folder / "features"), **short)
    assert result.loss == pytest.approx(plain.loss, rel=2e-3), "features in float16"
    ours, theirs, start = (
        torch.cat([value.flatten() for value in model.parameters() if value.requires_grad])
        for model in (cached, fresh, untrained)
    )
    moved = (theirs - start).norm()
    assert moved > 0.01
    assert (ours - theirs).norm() < 0.05 * moved


def test_features_of_another_size_than_the_configurations_are_refused(folder):
    processor = VCPCLIPImageProcessor.from_pretrained(folder / "model")
    processor.at_size(2 * processor.size.height).save_pretrained(folder / "model")
    with pytest.raises(ValueError, match=r"image_size of config\.json\), and the image processor gives"):
        run(folder, "out", image_feature_dir=str(folder / "features"), max_train_steps=1)
    assert not (folder / "features").exists()
    run(folder, "out", max_train_steps=1)


def test_the_cache_has_the_predicted_size_and_is_reused(folder, caplog, monkeypatch):
    features = folder / "features"
    run(folder, "out", image_feature_dir=str(features), max_train_steps=1)
    data = CachedFeatures(features)
    config = VCPCLIPConfig.from_pretrained(folder / "model")
    size = feature_cache_size(len(data), config)
    headers = 4 * 128
    assert sum(path.stat().st_size for path in features.glob("*.npy")) == size + headers
    assert data[3]["patch_tokens"].shape == (4, 36, 64) and data[3]["labels"].max() == 1

    monkeypatch.setattr(VCPCLIPModel, "encode_image_with_states", None)  # calling it would fail
    run(folder, "out", image_feature_dir=str(features), max_train_steps=2, resume="latest")


def test_features_for_an_image_head_hold_the_labels_of_images(folder):
    features = folder / "features"
    short = {"image_feature_dir": str(features), "max_train_steps": 1}
    run(folder, "plain", **short)
    assert "is_anomalous" not in CachedFeatures(features)[0]
    plain = json.loads((features / "features.json").read_text())
    model, _ = run(folder, "head", use_image_head=True, **short)
    data = CachedFeatures(features)
    assert [bool(data[index]["is_anomalous"]) for index in range(4)] == [False, True, False, True]
    assert (
        feature_cache_size(1, model.config)
        == feature_cache_size(1, VCPCLIPConfig.from_pretrained(folder / "model")) + 1
    )
    assert json.loads((features / "features.json").read_text()) == {**plain, "is_anomalous": True}
    run(folder, "head", use_image_head=True, resume="latest", **{**short, "max_train_steps": 2})


def test_two_processes_share_a_cache_and_train_like_one(tmp_path):
    make_model_folder(tmp_path, deep_prompt_dropout=0.0)
    one_folder = tmp_path / "of_one"
    config = settings(tmp_path, "one", **{**ONE_RANK, **on_cached_features(one_folder)})
    one = train(config, make_records(), accelerator=Accelerator(cpu=True))

    command = ("-m", "tests.training_run", tmp_path)
    output = run_two_ranks(*command, "two", "two_ranks_cached")
    assert output.count("GiB in") == 1, "only one process logs"
    theirs, ours = CachedFeatures(tmp_path / "features"), CachedFeatures(one_folder / "features")
    assert len(ours) == len(theirs) == len(make_records())
    for index in range(len(ours)):
        for name, value in ours[index].items():
            torch.testing.assert_close(theirs[index][name], value, rtol=0, atol=2e-3)
    losses = [
        [
            json.loads(line)["loss"]
            for line in (tmp_path / name / "log.jsonl").read_text().splitlines()
            if "loss" in line
        ]
        for name in ("one", "two")
    ]
    assert losses[0] and losses[1] == pytest.approx(losses[0], abs=1e-3)
    assert one.state.step > 1

    made = (tmp_path / "features" / "patch_tokens.npy").stat().st_mtime_ns
    assert "GiB in" not in run_two_ranks(*command, "again", "two_ranks_cached")
    assert (tmp_path / "features" / "patch_tokens.npy").stat().st_mtime_ns == made


def _examples(values):
    example = {"labels": torch.zeros(48, 48, dtype=torch.uint8), "has_mask": torch.tensor(True)}
    return [{"pixel_values": value.expand(3, 48, 48), **example} for value in values]


def test_the_cache_is_replaced_for_another_tower_or_other_images(folder, tmp_path):
    model = VCPCLIPModel.from_clip(folder / "clip", config=VCPCLIPConfig.from_pretrained(folder / "model"))
    accelerator, target = Accelerator(cpu=True), tmp_path / "features"

    def first(values, fingerprint):
        examples = _examples(values)
        return cache_image_features(model, examples, target, 2, 0, accelerator, fingerprint)[0]["patch_tokens"]

    ones = first(torch.ones(3), "ones")
    assert torch.equal(first(torch.zeros(3), "ones"), ones), "the fingerprint is the same"
    zeros = first(torch.zeros(3), "zeros")
    assert not torch.equal(zeros, ones)
    with torch.no_grad():
        model.clip.vision_model.encoder.layers[0].mlp.fc1.bias.add_(0.5)
    assert not torch.equal(first(torch.zeros(3), "zeros"), zeros)
    (target / "features.json").unlink()  # as after a kill
    assert torch.equal(first(torch.ones(3), "zeros"), first(torch.ones(3), "zeros"))


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_a_model_with_a_stem_branch_computes_the_same_from_its_features(mixed_precision, tmp_path):
    model = tiny_model_with_stem_branch().train()
    examples = _examples(torch.linspace(-1, 1, 3)[:, None, None, None] * pixels(1))
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision=mixed_precision)
    try:
        features = cache_image_features(model, examples, tmp_path, 2, 0, accelerator, "stems")
    finally:
        AcceleratorState._reset_state()
    stored = [features[index] for index in range(3)]
    for name, width in (("stem_features", 176), ("stem_cells", 224)):
        assert stored[0][name].shape == (36, width) and stored[0][name].dtype == torch.float16
    size = feature_cache_size(3, model.config)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.npy")) == size + 6 * 128
    names, model = ("patch_tokens", "image_embeds", "stem_features", "stem_cells"), model.eval()
    for scale in (model.base_logit_scale, model.vcp_logit_scale, model.stem_branch.logit_scale):
        scale.data.fill_(1.0)  # half precision is visible at the usual temperature
    with torch.no_grad():
        outputs = model(**{name: torch.stack([each[name] for each in stored]) for name in names})
        expected = model(torch.stack([each["pixel_values"] for each in examples]))
    for name in ("stem_map", "anomaly_map"):
        torch.testing.assert_close(outputs[name], expected[name], atol=0.02, rtol=0)
    assert expected.stem_map.std() > 0.02


def test_a_full_disk_is_reported_before_any_computation(folder, tmp_path, monkeypatch):
    model = VCPCLIPModel.from_clip(folder / "clip", config=VCPCLIPConfig.from_pretrained(folder / "model"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"take 0\.00 GiB.*image_feature_dir"):
        cache_image_features(model, _examples(torch.ones(3)), tmp_path / "f", 2, 0, Accelerator(cpu=True), "")


def test_augmentation_and_cached_features_exclude_each_other(folder):
    with pytest.raises(ValueError, match="needs augmentation=false"):
        settings(folder, augmentation=True, image_feature_dir=str(folder))


def test_the_model_needs_both_kinds_of_features(folder):
    model = VCPCLIPModel.from_clip(folder / "clip", config=VCPCLIPConfig.from_pretrained(folder / "model")).eval()
    pixel_values = torch.randn(2, 3, 48, 48)
    tokens, embeds = model.encode_image(pixel_values)
    tokens = torch.stack(tokens, dim=1)
    ours = model(patch_tokens=tokens, image_embeds=embeds).anomaly_map
    torch.testing.assert_close(ours, model(pixel_values).anomaly_map, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="either pixel_values, or"):
        model(patch_tokens=tokens)
    with pytest.raises(ValueError, match="either pixel_values, or"):
        model()


def test_the_cache_needs_a_dataset_with_a_fingerprint(folder):
    with pytest.raises(ValueError, match="needs a Hugging Face Dataset"):
        config = settings(folder, augmentation=False, image_feature_dir=str(folder / "features"))
        train(config, list(make_records()), accelerator=Accelerator(cpu=True))


def test_the_fingerprint_changes_with_the_preprocessing():
    records, processor = make_records(), VCPCLIPImageProcessor()
    plain = _features_fingerprint(records, processor)
    assert plain == _features_fingerprint(records, VCPCLIPImageProcessor())
    assert plain != _features_fingerprint(records, VCPCLIPImageProcessor(resize_mode="pad"))
