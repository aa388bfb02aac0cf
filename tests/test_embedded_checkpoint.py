"""The checkpoint inside the package: there, small, whole, and able to find defects on kinds it was not trained on."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from transformers import AutoTokenizer, pipeline

from examples.research import write_hub_configs
from vcp_clip_hf import EMBEDDED_CHECKPOINT, VCPCLIPConfig, VCPCLIPModel
from vcp_clip_hf.data import load_anomaly_dataset
from vcp_clip_hf.data.synthetic_defects import UNSEEN_PRODUCTS, render_sample
from vcp_clip_hf.evaluation import evaluate
from vcp_clip_hf.evaluation_report import EvaluationProtocol


FOLDER = Path(EMBEDDED_CHECKPOINT)
# Metrics of 40 pictures of unseen families at 128 pixels: mean minus three standard deviations over ten draws (seeds 0
# to 9 of `load_anomaly_dataset`), measured on 2026-11-28: AUROC 0.890 - 3 * 0.0327, AP 0.313 - 3 * 0.0711
LOWEST = {"pixel_auroc": 0.792, "pixel_ap": 0.100}


@pytest.fixture(scope="module")
def inspect():
    return pipeline("anomaly-segmentation", device=-1)


def test_it_is_small_and_in_half_precision():
    files = {path.name for path in FOLDER.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "README.md"} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    weights = load_file(FOLDER / "model.safetensors")
    assert (FOLDER / "model.safetensors").stat().st_size <= 13e6
    assert all(bool(value.isfinite().all()) for value in weights.values() if value.is_floating_point())


def test_it_is_the_checkpoint_that_the_hub_config_describes():
    ours = VCPCLIPConfig.from_pretrained(FOLDER).to_dict()
    described = VCPCLIPConfig.from_pretrained(write_hub_configs.ROOT / "vcp-clip-tiny").to_dict()
    unimportant = {"dtype", "architectures", "_name_or_path", "transformers_version"}
    assert {name for name in described if ours[name] != described[name]} <= unimportant | {
        "text_config",
        "vision_config",
    }
    for tower in ("text_config", "vision_config"):
        for name, value in described[tower].items():
            assert name in unimportant or ours[tower][name] == value, (tower, name)
    facts = json.loads((FOLDER / "training.json").read_text())
    assert facts["products"] == sorted(write_hub_configs.embedded_products())
    assert not set(facts["products"]) & {*UNSEEN_PRODUCTS, *write_hub_configs.KEPT_OUT}


def test_it_is_what_the_pipeline_takes_when_no_model_is_named(inspect):
    assert Path(inspect.model.name_or_path) == FOLDER
    picture = render_sample(UNSEEN_PRODUCTS[0], 5, 0, 200, "auto").image
    result = inspect(picture, heatmap=True, regions=True)
    assert result["anomaly_map"].shape == (200, 200) and result["label"] in ("normal", "anomalous")
    assert result["mask"].size == result["heatmap"].size == (200, 200)
    assert inspect.image_processor.calibration["image"]["method"]
    batched = inspect([picture, picture.resize((96, 144))], batch_size=2)
    np.testing.assert_allclose(batched[0]["anomaly_map"], result["anomaly_map"], atol=1e-5)


def test_references_are_compared_by_the_stem():
    inspect = pipeline("anomaly-segmentation", device=-1)
    pictures = [render_sample(UNSEEN_PRODUCTS[0], 5, index, 128, None).image for index in range(3)]
    memory = inspect.set_references(pictures[:2])
    assert memory.settings.layers == ("stem",) and memory.banks["stem"].shape[1] == 192
    assert memory.settings.is_relative and inspect.model.config.reference_fusion == "logits"
    assert inspect(pictures[0])["score"] < inspect(pictures[2])["score"]


def test_the_stem_branch_has_its_part_in_the_map(inspect):
    picture = render_sample(UNSEEN_PRODUCTS[0], 5, 0, 200, "auto").image
    maps = inspect(picture, output_branch_maps=True)
    assert maps["stem_map"].std() > 0.01 and maps["base_map"].std() > 0.01
    model = VCPCLIPModel.from_pretrained(FOLDER, use_stem_branch=False)
    without = pipeline("anomaly-segmentation", model, image_processor=inspect.image_processor, device=-1)
    assert np.abs(without(picture)["anomaly_map"] - maps["anomaly_map"]).max() > 0.01


def test_other_words_change_the_map(inspect):
    picture = render_sample(UNSEEN_PRODUCTS[0], 5, 0, 200, "auto").image
    plain = inspect(picture)["anomaly_map"]
    other = inspect(picture, prompts={"normal": "clean", "abnormal": "scratched"})["anomaly_map"]
    assert np.abs(plain - other).max() > 1e-4
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert len(tokenizer) == VCPCLIPConfig.from_pretrained(FOLDER).text_config.vocab_size


def test_it_finds_defects_on_products_it_was_not_trained_on(inspect):
    """Check that its metrics are above bounds that random weights do not reach."""
    unseen = load_anomaly_dataset("synthetic", split="test", num_images=0, num_test_images=40, size=128)
    protocol = EvaluationProtocol(metrics=("pixel_auroc", "pixel_ap"), skip_undefined=True)
    found = evaluate(inspect.model, inspect.image_processor, {"unseen": unseen}, protocol, progress=False)
    untrained = VCPCLIPModel(VCPCLIPConfig.from_pretrained(FOLDER)).float()
    chance = evaluate(untrained, inspect.image_processor, {"unseen": unseen}, protocol, progress=False)
    ours, theirs = (report.results["unseen"]["mean"] for report in (found, chance))
    for metric, lowest in LOWEST.items():
        assert theirs[metric] < lowest < ours[metric]
