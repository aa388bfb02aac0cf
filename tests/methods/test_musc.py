"""MuSc as a model: pipeline, evaluation, saving; its numbers are those of the golden folder (`test_golden`)."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel

from tests.common import pixels
from tests.evaluation_run import run as evaluation_run
from tests.methods.common import tiny_method
from tests.methods.test_named_product import pictures, tiny_of
from tests.processes import run_two_ranks
from tests.test_cli import run
from tests.training_run import make_records
from vcp_clip_hf.checkpoint_folder import complete_parts, load_parts, save_parts
from vcp_clip_hf.evaluation import evaluate
from vcp_clip_hf.evaluation_references import ReferenceDraw
from vcp_clip_hf.evaluation_report import EvaluationReport
from vcp_clip_hf.image_processing_vcp_clip import VCPCLIPImageProcessor
from vcp_clip_hf.method_comparison import published_results
from vcp_clip_hf.methods import MuScConfig
from vcp_clip_hf.metrics import AnomalySegmentationEvaluator
from vcp_clip_hf.mutual_scoring import MutualScoring, score_together


SETTINGS = {"degrees": [1, 3], "rescore_neighbors": [1, 4], "interval": [0.0, 0.5]}


def records_of_two_products():
    """Eight records of each of two products, in turns."""
    records = make_records(24)
    return records.filter(lambda row: row["product"] != "product_2")


def judged(model, processor, images):
    """Judge images as the functions of the method do."""
    pixel_values = processor(images, return_tensors="pt").pixel_values
    layers = model.config.feature_layers
    with torch.no_grad():
        outputs = model(pixel_values, output_hidden_states=layers)
    states = {layer: outputs.hidden_states[layer] for layer in layers}
    patch = model.config.vision_config.patch_size
    size = tuple(pixel_values.shape[-2:])
    scoring = MutualScoring(layers, **{name: getattr(model.config, name) for name in SETTINGS})
    return score_together(states, outputs.image_embeds, (size[0] // patch, size[1] // patch), size, scoring)


def test_the_defaults_are_the_published_ones():
    config = MuScConfig()
    assert config.mutual_scoring() == MutualScoring([6, 12, 18, 24], (1, 3, 5), (0.0, 0.3), None, (1, 2, 3))
    assert (config.position_interpolation, config.image_size) == ("bicubic", 518)
    assert config.vision_config.hidden_act == "gelu"


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="must be odd"):
        MuScConfig(degrees=[2])


@pytest.mark.parametrize("call", ["model", "pipeline", "tiles", "calibrate"])
def test_a_single_image_is_refused(call):
    model = tiny_method("musc")
    inspect, (picture,) = tiny_of(model), pictures(1)
    calls = {
        "model": lambda: model(pixels(1)),
        "pipeline": lambda: inspect(picture),
        "tiles": lambda: inspect(picture, tile_size=60),
        "calibrate": lambda: inspect.calibrate([picture] * 5),
    }
    with pytest.raises(ValueError, match="segment_together"):
        calls[call]()


def test_the_pipeline_judges_together_with_the_settings_of_the_model():
    model = tiny_method("musc", **SETTINGS)
    inspect, images = tiny_of(model), pictures(6)
    results = inspect.segment_together(images, progress=False)
    expected = judged(model, inspect.image_processor, images)
    np.testing.assert_allclose([each["score"] for each in results], expected.image_scores, atol=1e-5)
    assert results[0]["judged_with"]["degrees"] == [1, 3] and results[0]["anomaly_map"].shape == (60, 80)
    other = inspect.segment_together(images, progress=False, degrees=(1,))
    assert other[0]["judged_with"]["degrees"] == [1] and other[0]["judged_with"]["interval"] == [0.0, 0.5]
    with pytest.raises(ValueError, match="has none"):
        inspect.segment_together(images, progress=False, zero_shot_weight=0.5)


@pytest.mark.parametrize("batch_size", [3, 8])
def test_an_evaluation_compares_the_images_of_each_product(batch_size, tmp_path):
    model, records = tiny_method("musc", **SETTINGS), records_of_two_products()
    processor = VCPCLIPImageProcessor.for_model(model.config)
    report = evaluate(model, processor, {"own": records}, "published", batch_size, sheets_dir=tmp_path, progress=False)
    by_hand = AnomalySegmentationEvaluator(metrics=report.protocol.metrics, skip_undefined=True)
    for product in ("product_0", "product_1"):
        rows = [row for row in records if row["product"] == product]
        images = [row["image"].convert("RGB") for row in rows]
        found = judged(model, processor, images)
        labels = processor(images, [row["mask"] for row in rows], return_tensors="np")["labels"]
        by_hand.add(
            list((found.anomaly_maps / 2).float().numpy()),
            list(labels > 0),
            [product] * len(rows),
            image_scores=found.image_scores.tolist(),
            labels=[row["label"] for row in rows],
            image_ids=[row["image_id"] for row in rows],
        )
    expected = by_hand.compute()["per_product"]
    for product, metrics in report.results["own"]["per_product"].items():
        for name in report.protocol.metrics:
            assert metrics[name] == pytest.approx(expected[product][name], abs=1e-4), name
    assert report.settings["seconds_per_image"] > 0
    assert (tmp_path / "own" / "product_1.png").is_file()


def test_two_processes_share_the_products(tmp_path):
    run_two_ranks("-m", "tests.evaluation_run", tmp_path, "musc")
    theirs = EvaluationReport.from_dict(json.loads((tmp_path / "results.json").read_text()))
    ours = evaluation_run("musc", progress=False)
    assert theirs.results["squares"]["counts"] == ours.results["squares"]["counts"]
    for name, values in ours.results["squares"]["per_product"].items():
        assert theirs.results["squares"]["per_product"][name] == pytest.approx(values, abs=1e-5)


def test_references_are_refused():
    model = tiny_method("musc")
    processor = VCPCLIPImageProcessor.for_model(model.config)
    with pytest.raises(ValueError, match="no few-shot mode"):
        model(pixels(1), references={})
    with pytest.raises(ValueError, match="no few-shot mode"):
        evaluate(model, processor, {"own": make_records(15)}, progress=False, references=ReferenceDraw(1, (0,)))


def test_an_evaluation_of_too_few_images_is_refused():
    model = tiny_method("musc")
    processor = VCPCLIPImageProcessor.for_model(model.config)
    with pytest.raises(ValueError, match="own: product_0 has 4 images; MuSc compares"):
        evaluate(model, processor, {"own": make_records(12)}, progress=False)


def test_saved_and_loaded_the_results_are_equal(tmp_path):
    model = tiny_method("musc", **SETTINGS)
    save_parts(tmp_path, complete_parts(model, tokenizer=model.tokenizer))
    parts, images = load_parts(tmp_path), pictures(5)
    assert type(parts.model) is type(model) and parts.model.config.rescore_neighbors == [1, 4]
    card = (tmp_path / "README.md").read_text()
    assert "inspect.segment_together(" in card and "one set of images" in card and "tile" not in card
    assert "calibrate" not in card
    again = AutoModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
    one, other = (tiny_of(each).segment_together(images, progress=False) for each in (model, parts.model))
    assert [each["score"] for each in one] == pytest.approx([each["score"] for each in other], abs=1e-6)


def test_published_numbers_belong_to_their_settings():
    assert published_results(MuScConfig(), "mvtec_ad")["image_auroc"][0] == 97.8
    assert "image_auroc" not in published_results(MuScConfig(), "visa")
    of_visa = published_results(MuScConfig(rescore_neighbors=[1, 8, 9]), "visa")
    assert (of_visa["image_auroc"][0], of_visa["pixel_ap"][0]) == (92.8, 45.1)
    small = published_results(MuScConfig(image_size=238), "mvtec_ad")
    assert small == {}


def test_the_command_line_uses_the_settings_of_the_model(tmp_path):
    model = tiny_method("musc", **SETTINGS)
    save_parts(tmp_path / "model", complete_parts(model, tokenizer=model.tokenizer))
    (tmp_path / "images").mkdir()
    for number, picture in enumerate(pictures(5)):
        picture.save(tmp_path / "images" / f"{number}.png")
    options = ("-m", tmp_path / "model", "-o", tmp_path / "out", "--num-workers", 0)
    assert "segment_together" in run("predict", tmp_path / "images", *options, check=1).stderr
    run("predict", tmp_path / "images", *options, "--together")
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    assert settings["together"]["degrees"] == [1, 3]


def test_the_command_line_evaluates_it(tmp_path):
    model = tiny_method("musc")
    save_parts(tmp_path / "model", complete_parts(model, tokenizer=model.tokenizer))
    for number, row in enumerate(make_records(8)):
        kind = "bad" if row["label"] else "good"
        for folder, image in (("test", row["image"]), ("ground_truth", row["mask"])):
            if image is not None:
                path = tmp_path / "data" / "nut" / folder / kind / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
    dataset = f"folder={tmp_path / 'data'}"
    method = f"musc={tmp_path / 'model'}"
    done = run("evaluate", "--method", method, "--dataset", dataset, "--num-workers", 0, "-o", tmp_path / "out")
    assert "MuSc folder" in done.stdout and "nothing is trained" in done.stdout
    values = json.loads((tmp_path / "out" / "methods.json").read_text())["methods"]["musc"]
    assert values["learned_parameters"] == 0 and values["seconds_per_image"] > 0
