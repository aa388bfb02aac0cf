"""Means of the maps of several input sizes: one size is the evaluation, several are means of logits."""

import json

import pytest
import torch

from examples.research import compare_input_sizes
from examples.research.compare_input_sizes import METRICS, compare
from examples.research.compare_with_rivals import load_sets
from tests.common import tiny_model, tiny_model_with_stem_branch
from vcp_clip_hf import VCPCLIPImageProcessor
from vcp_clip_hf.data import load_anomaly_dataset
from vcp_clip_hf.evaluation import evaluate
from vcp_clip_hf.evaluation_report import EvaluationProtocol


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    model = tiny_model().eval()
    images = load_anomaly_dataset(
        "synthetic", split="test", num_images=0, num_test_images=8, size=64, products=["marble", "spring"]
    )
    return model, VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=1.0), images


def test_one_size_is_the_evaluation(parts):
    model, processor, images = parts
    found = compare(model, processor, {"generated": images}, [[48], [48, 48], [32, 64]])["generated"]
    protocol = EvaluationProtocol(metrics=METRICS, skip_undefined=True)
    expected = evaluate(model, processor, {"generated": images}, protocol, progress=False).results["generated"]["mean"]
    assert found["48"] == pytest.approx(expected, abs=1e-4)
    assert found["48 + 48"] == pytest.approx(expected, abs=1e-4)
    assert found["32 + 64"] != pytest.approx(expected, abs=1e-3)


def test_the_program(parts, tmp_path, monkeypatch, capsys):
    model, processor, images = parts
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    monkeypatch.setattr(compare_input_sizes, "load_sets", lambda names, _: dict.fromkeys(names, images))
    output = tmp_path / "table.json"
    arguments = ["--model", str(tmp_path), "--dataset", "synthetic", "--dataset", f"folder={tmp_path}"]
    arguments += ["--sizes", "48", "--sizes", "32", "48", "--output_file", str(output)]
    table = compare_input_sizes.main(arguments)
    assert json.loads(output.read_text()).keys() == table.keys() == {"synthetic", f"folder={tmp_path}"}
    assert "32 + 48: " in capsys.readouterr().out


def test_another_weight_of_the_stem_branch(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = tiny_model_with_stem_branch()
    for part in (model, VCPCLIPImageProcessor.for_model(model.config)):
        part.save_pretrained(tmp_path)
    measured = []
    monkeypatch.setattr(compare_input_sizes, "compare", lambda model, *_: measured.append(model.config) or {})
    monkeypatch.setattr(compare_input_sizes, "show", lambda *_: None)
    arguments = ["--model", str(tmp_path), "--dataset", "synthetic", "--num_test_images", "2", "--sizes", "48"]
    compare_input_sizes.main(arguments)
    compare_input_sizes.main([*arguments, "--stem_branch_weight", "0.65"])
    assert [each.stem_branch_weight for each in measured] == [0.5, 0.65]


def test_the_weight_of_a_branch_that_is_absent_is_refused(parts, tmp_path):
    parts[0].save_pretrained(tmp_path)
    arguments = ["--model", str(tmp_path), "--dataset", "synthetic", "--sizes", "48", "--stem_branch_weight", "0.65"]
    with pytest.raises(ValueError, match="has no stem branch: leave out --stem_branch_weight"):
        compare_input_sizes.main(arguments)


def test_pictures_for_choices_are_half_anomalous_and_one_product():
    pictures = load_sets(["defect_pictures"], 6)["defect_pictures"]
    assert pictures["label"] == [0, 1] * 3 and set(pictures["product"]) == {"pictures"}
    assert pictures[0]["image"].size == (448, 448)
    assert all(name.startswith("test/") for name in pictures["image_id"])
    model, processor = tiny_model().eval(), VCPCLIPImageProcessor.for_model(tiny_model().config)
    found = compare(model, processor, {"pictures": pictures}, [[48]])["pictures"]["48"]
    assert all(0 <= found[metric] <= 1 for metric in METRICS)
