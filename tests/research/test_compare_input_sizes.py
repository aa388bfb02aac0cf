"""Means of the maps of several input sizes: one size is the evaluation, several are means of logits."""

import json

import pytest
import torch

from examples.research import compare_input_sizes
from examples.research.compare_input_sizes import METRICS, compare
from tests.common import tiny_model
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
