"""Steps that make the embedded checkpoint, on small settings; tests/test_embedded_checkpoint.py checks the result."""

import json

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import AutoModel

from examples.research import embedded_checkpoint, pretrain_clip
from examples.research.captioned_views import load_tokenizer
from tests.research.stem_weights import write_random_weights
from vcp_clip_hf import VCPCLIPConfig, VCPCLIPImageProcessor
from vcp_clip_hf.data import load_anomaly_dataset
from vcp_clip_hf.generator import select_products


TOWER = ["--width", "64", "--depth", "2", "--map_layers", "1", "2", "--projection_dim", "32", "--image_size", "32"]
RUN = {
    "dataset_options": {"num_images": 4, "num_test_images": 20, "size": 48},
    "per_device_train_batch_size": 2,
    "num_train_epochs": 1,
    "dataloader_num_workers": 0,
    "mixed_precision": "no",
}


@pytest.fixture(autouse=True)
def _as_a_process_of_its_own():
    """Forget the mixed precision of earlier tests: Accelerate keeps that of the first run of a process."""
    AcceleratorState._reset_state()


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Write a backbone with a stem and random weights, and small settings of the trainings; return the folder."""
    options = pretrain_clip.parse(["--output_dir", "", *TOWER])
    tokenizer = load_tokenizer(options)
    clip = pretrain_clip.make_config(tokenizer, options)
    torch.manual_seed(1)  # not the seed of the untrained rival
    weights = write_random_weights(tmp_path / "weights.pt")
    pretrain_clip.make_model(clip, weights).save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")

    original, folder = embedded_checkpoint.SETTINGS, tmp_path / "settings"
    towers = {"text_config": clip.text_config.to_dict(), "vision_config": clip.vision_config.to_dict()}
    fields = {"projection_dim": 32, "image_size": 48, "feature_layers": options.map_layers}
    config = VCPCLIPConfig.from_pretrained(original, **towers, **fields)
    config.save_pretrained(folder)
    VCPCLIPImageProcessor.for_model(config, smoothing_sigma=1.0).save_pretrained(folder)
    run = {**yaml.safe_load((original / "train.yaml").read_text()), **RUN}
    (folder / "train.yaml").write_text(yaml.safe_dump(run))
    monkeypatch.setattr(embedded_checkpoint, "SETTINGS", folder)
    monkeypatch.setattr(embedded_checkpoint, "NUM_MATERIAL_PICTURES", 4)
    monkeypatch.setattr(embedded_checkpoint, "IMAGE_HEAD_EPOCHS", 1)
    return tmp_path


@pytest.mark.usefixtures("small")
def test_training_pictures_show_products_and_materials():
    table = embedded_checkpoint.training_pictures()
    materials = [row for row in table if row["product"].startswith("material ")]
    assert len(table) == 8 and len(materials) == 4 and sum(row["label"] for row in materials) == 2
    rendered = {row["product"] for row in table} - {row["product"] for row in materials}
    assert rendered <= set(select_products("seen")) - set(embedded_checkpoint.KEPT_OUT)
    assert {row["image"].size for row in table} == {(48, 48)}


@pytest.mark.usefixtures("small")
def test_thresholds_come_from_pictures_that_no_training_used():
    normal = embedded_checkpoint.normal_pictures(7)
    assert len(normal) == 7 and {picture.size for picture in normal} == {(48, 48)}
    trained = {row["image"].tobytes() for row in embedded_checkpoint.training_pictures()}
    assert not trained & {picture.tobytes() for picture in normal}


def test_both_trainings_leave_the_frozen_parts_as_they_are_and_run_once(small):
    backbone = load_file(small / "clip" / "model.safetensors")
    vcp = embedded_checkpoint.train_on(small / "clip", small / "vcp")
    head = embedded_checkpoint.train_image_head(vcp, small / "image-head", small / "image-features-clip")
    trained, with_head = (load_file(folder / "model.safetensors") for folder in (vcp, head))
    assert all(torch.equal(trained[f"clip.{name}"], value) for name, value in backbone.items())
    added = {name for name in with_head if name not in trained}
    assert added and all(name.startswith("image_head.") for name in added)
    assert all(torch.equal(with_head[name], value) for name, value in trained.items())
    facts = json.loads((head / "training.json").read_text())
    assert any(name.startswith("material ") for name in facts["products"])

    times = {path: path.stat().st_mtime_ns for path in (*vcp.iterdir(), *head.iterdir())}
    embedded_checkpoint.train_on(small / "clip", small / "vcp")
    embedded_checkpoint.train_image_head(vcp, small / "image-head", small / "image-features-clip")
    assert {path: path.stat().st_mtime_ns for path in times} == times, "finished steps are not repeated"

    embedded_checkpoint.finish(head, small / "out", num_normal=48, num_test_images=20)
    weights = load_file(small / "out" / "model.safetensors")
    assert all(value.dtype == torch.float16 for value in weights.values() if value.is_floating_point())
    processor = VCPCLIPImageProcessor.from_pretrained(small / "out")
    assert 0 < processor.threshold <= 1 and processor.calibration["image"]["num_images"] == 48
    assert VCPCLIPConfig.from_pretrained(small / "out").backbone_name_or_path is None
    card = (small / "out" / "README.md").read_text()
    assert all(word in card for word in ("apache-2.0", "ImageNet", "EfficientNet-Lite0", "CC0 1.0", "Poly Haven"))
    model = AutoModel.from_pretrained(small / "out")
    assert model.dtype == torch.float32
    assert model(torch.zeros(1, 3, 48, 48)).image_scores is not None


def test_the_untrained_rival_has_the_trained_stem_alone(small, monkeypatch):
    parse, weights = pretrain_clip.parse, small / "weights.pt"
    monkeypatch.setattr(pretrain_clip, "parse", lambda words: parse([*words, *TOWER, "--stem_weights", str(weights)]))
    rivals = embedded_checkpoint.make_rivals(small)
    assert list(rivals) == ["untrained backbone", "baseline without VCP"]
    untrained, clip = (load_file(small / name / "model.safetensors") for name in ("untrained-clip", "clip"))
    same = {name for name, value in untrained.items() if torch.equal(value, clip[name])}
    assert {name for name in untrained if ".stem." in name} <= same
    assert "visual_projection.weight" not in same
    assert not VCPCLIPConfig.from_pretrained(rivals["baseline without VCP"]).use_pre_vcp


def test_times_of_interrupted_runs_are_added(tmp_path):
    times = tmp_path / "runs" / "times.json"
    times.parent.mkdir()
    times.write_text(json.dumps({"step, seconds": 100.0}))

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedded_checkpoint.timed(times, "step, seconds", stop)
    assert 100 <= json.loads(times.read_text())["step, seconds"] < 101
    embedded_checkpoint.timed(times, "other, seconds", lambda: None)
    assert json.loads(times.read_text())["other, seconds"] < 1 and "torch" in json.loads(times.read_text())["machine"]


def test_the_guide_names_what_is_kept_out():
    guide = (embedded_checkpoint.ROOT / "docs" / "embedded_checkpoint.md").read_text()
    assert all(f"`{family}`" in guide for family in embedded_checkpoint.KEPT_OUT)


def test_test_images_show_no_training_products():
    products = select_products("seen")
    assert not set(embedded_checkpoint.KEPT_OUT) - set(products)
    data = load_anomaly_dataset("synthetic", split="test", num_images=0, num_test_images=20, size=48)
    assert not set(data["product"]) & set(products)
