"""References in evaluations: draws, their independence, means and deviations, tables, and the command line."""

import csv
import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from tests.common import tiny_model, tiny_tokenizer
from tests.evaluation_run import run
from tests.training_run import make_records
from vcp_clip_hf import AnomalySegmentationPipeline, VCPCLIPImageProcessor
from vcp_clip_hf.cli import main as vcp_clip
from vcp_clip_hf.evaluation import evaluate
from vcp_clip_hf.evaluation_references import ReferenceDraw, draw_references, over_draws
from vcp_clip_hf.evaluation_report import EvaluationProtocol, EvaluationReport
from vcp_clip_hf.metrics import AnomalySegmentationEvaluator


IMAGE_LEVEL = EvaluationProtocol(metrics=("image_auroc",))


def records(counts, split="test"):
    """Return records {product: (normal, anomalous)} without images."""
    return [
        {"product": product, "label": label, "image_id": f"{split} {product} {label} {index}"}
        for product, numbers in counts.items()
        for label, number in enumerate(numbers)
        for index in range(number)
    ]


# --- draws ----------------------------------------------------------------------------------------------------------


def test_references_come_from_the_training_images():
    dataset, pool = records({"a": (2, 3), "b": (1, 1)}), records({"a": (9, 0), "b": (6, 0)}, "train")
    drawn = draw_references(dataset, pool, 4, seed=0)
    for product, each in drawn.items():
        chosen = [pool[index] for index in each.indices]
        assert len({record["image_id"] for record in chosen}) == 4  # without replacement
        assert {(record["product"], record["label"]) for record in chosen} == {(product, 0)}
        assert not each.held_out
    assert sorted(index for each in drawn.values() for index in each.tested) == list(range(len(dataset)))


def test_without_normal_training_images_test_images_are_held_out():
    dataset, pool = records({"a": (5, 3), "b": (4, 1)}), records({"a": (3, 0)}, "train")
    drawn = draw_references(dataset, pool, 2, seed=0)
    assert not drawn["a"].held_out and drawn["b"].held_out
    held_out = drawn["b"]
    assert all(dataset[index]["label"] == 0 and dataset[index]["product"] == "b" for index in held_out.indices)
    assert not set(held_out.indices) & set(held_out.tested)
    assert len(held_out.indices) + len(held_out.tested) == 5


def test_a_draw_depends_on_its_seed_and_product_only():
    small, large = records({"b": (9, 1)}), records({"a": (7, 1), "b": (9, 1)})
    first = {seed: draw_references(small, None, 3, seed)["b"] for seed in range(5)}
    assert len({tuple(each.indices) for each in first.values()}) > 1
    for seed, each in first.items():
        again = draw_references(large, None, 3, seed)["b"]
        assert [small[i]["image_id"] for i in each.indices] == [large[i]["image_id"] for i in again.indices]


def test_too_few_normal_images_are_an_error_that_names_the_product():
    with pytest.raises(ValueError, match=r"b has 1 normal images among the evaluated .* 2 references"):
        draw_references(records({"a": (5, 1), "b": (1, 3)}), None, 2, seed=0)
    with pytest.raises(ValueError, match=r"a has 1 normal images for training"):
        draw_references(records({"a": (5, 1)}), records({"a": (1, 0)}), 2, seed=0)
    with pytest.raises(ValueError, match="No image of a is left"):
        draw_references(records({"a": (2, 0)}), None, 2, seed=0)


@pytest.mark.parametrize(
    "arguments", [{"count": 0}, {"count": True}, {"count": 2, "seeds": (1, 1)}, {"count": 1, "seeds": ()}]
)
def test_wrong_draws_are_refused(arguments):
    with pytest.raises(ValueError, match=r"count=|seeds="):
        ReferenceDraw(**arguments)


def test_means_and_deviations_over_draws():
    results = [
        {
            "mean": {"x": value},
            "per_product": {"a": {"x": value, "y": math.nan}},
            "counts": {"a": {"images": 3}},
            "reasons": {},
        }
        for value in (0.2, 0.4, 0.9)
    ]
    combined = over_draws(results)
    assert combined["mean"]["x"] == pytest.approx(0.5)
    assert combined["spread"]["mean"]["x"] == pytest.approx(np.std([0.2, 0.4, 0.9], ddof=1))
    assert math.isnan(combined["per_product"]["a"]["y"]) and math.isnan(combined["spread"]["per_product"]["a"]["y"])
    assert math.isnan(over_draws(results[:1])["spread"]["mean"]["x"])


# --- evaluation -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report():
    return run(references=ReferenceDraw(1, (0, 1), {"weight": 0.5}))


def test_the_numbers_are_those_of_a_pipeline_with_the_same_references(report):
    torch.manual_seed(0)
    model = tiny_model()
    processor = VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=1.0)
    dataset, draws = make_records(13), []
    for seed in (0, 1):
        evaluator = AnomalySegmentationEvaluator(metrics=("pixel_auroc", "pixel_ap"))
        for product, drawn in draw_references(dataset, None, 1, seed).items():
            pipe = AnomalySegmentationPipeline(model=model, image_processor=processor)
            pipe.set_references(drawn.images(), weight=0.5)
            for index in drawn.tested:
                found = pipe(dataset[index]["image"].resize((48, 48), Image.Resampling.BICUBIC))
                mask = dataset[index]["mask"]
                mask = np.zeros((48, 48), bool) if mask is None else np.asarray(mask.resize((48, 48))) > 127
                evaluator.add(found["anomaly_map"][None], mask[None], [product])
        draws.append(evaluator.compute()["mean"])
    for metric in ("pixel_auroc", "pixel_ap"):
        values = [each[metric] for each in draws]
        assert report.results["squares"]["mean"][metric] == pytest.approx(np.mean(values), abs=2e-3)
        assert report.results["squares"]["spread"]["mean"][metric] == pytest.approx(np.std(values, ddof=1), abs=2e-3)


def test_without_weight_a_draw_without_held_out_images_is_the_zero_shot_evaluation():
    pool = [record for record in make_records(30, seed=1) if record["label"] == 0]
    drawn = run(references=ReferenceDraw(1, (0,), {"weight": 0.0}), reference_pools={"squares": pool})
    for product, values in run().results["squares"]["per_product"].items():
        assert drawn.results["squares"]["per_product"][product] == pytest.approx(values, abs=1e-4)


def test_tables_show_deviations_and_where_references_are_from(report, tmp_path):
    sentence = "With 1 reference of each product, seeds 0, 1: means and standard deviations over the draws."
    for text in (report.to_text(), report.to_markdown()):
        assert sentence in text and "drawn from the evaluated images, and left out" in text and " ± " in text
    row = next(csv.DictReader(io.StringIO(report.to_csv())))
    assert float(row["pixel_auroc_spread"]) == pytest.approx(
        100 * report.results["squares"]["spread"]["per_product"][row["product"]]["pixel_auroc"]
    )
    report.save(tmp_path)
    again = EvaluationReport.from_dict(json.loads((tmp_path / "results.json").read_text()))
    assert again.to_markdown() == report.to_markdown()
    assert "±" not in run().to_markdown() and "spread" not in run().to_csv()


def test_sheets_show_the_first_draw(tmp_path):
    report = run(references=ReferenceDraw(1, (0, 1)), sheets_dir=tmp_path)
    assert len(list((tmp_path / "squares").iterdir())) == len(report.results["squares"]["per_product"])


# --- images that are references themselves ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny_model().eval()


@pytest.fixture(scope="module")
def processor(model):
    return VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=1.0)


@pytest.fixture(scope="module")
def squares():
    return make_records(12).map(lambda row: {"product": "one"})


def test_stored_references_are_left_out(model, processor, squares):
    pipe = AnomalySegmentationPipeline(model=model, image_processor=processor)
    normal = [index for index, label in enumerate(squares["label"]) if label == 0]
    memory = pipe.set_references([squares[index]["image"] for index in normal[:2]])
    others = squares.select([index for index in range(len(squares)) if index not in normal[:2]])
    report = evaluate(model, processor, {"squares": squares}, IMAGE_LEVEL, batch_size=3, references=memory)
    expected = evaluate(model, processor, {"squares": others}, IMAGE_LEVEL, references=memory)
    assert report.results["squares"]["mean"] == pytest.approx(expected.results["squares"]["mean"])
    assert report.results["squares"]["counts"] == expected.results["squares"]["counts"]
    assert "Left out, because they are references: 2 of the images." in report.to_text()
    assert "Left out" not in expected.to_text()
    again = EvaluationReport.from_dict(report.to_dict())
    assert again.to_markdown() == report.to_markdown()
    with pytest.raises(ValueError, match="All images to evaluate are references"):
        evaluate(model, processor, {"squares": squares.select(normal[:2])}, IMAGE_LEVEL, references=memory)


def test_stored_references_of_tiles_are_refused(model, processor, squares):
    pipe = AnomalySegmentationPipeline(model=model, image_processor=processor)
    memory = pipe.set_references([squares[0]["image"]], tile_size=24)
    with pytest.raises(ValueError, match=r"tiling was .*tile_size': 24.*, is None"):
        evaluate(model, processor, {"squares": squares}, IMAGE_LEVEL, references=memory)


def test_training_images_that_are_evaluated_too_are_left_out(model, processor, squares):
    draw, datasets = ReferenceDraw(2, (0, 1)), {"squares": squares}
    report = evaluate(model, processor, datasets, IMAGE_LEVEL, references=draw, reference_pools=datasets)
    assert report.results["squares"]["counts"]["one"]["images"] == 10
    assert "2 of the images" in report.to_text()


# --- the command line -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    model = tiny_model()
    processor = VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=1.0)
    pipe = AnomalySegmentationPipeline(model=model, image_processor=processor, tokenizer=tiny_tokenizer())
    pipe.set_references([record["image"] for record in make_records(6) if record["label"] == 0], source="line 3")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    for index, record in enumerate(make_records(12)):
        kind = "broken" if record["label"] else "good"
        for place, picture in (("test", record["image"]), ("ground_truth", record["mask"])):
            if picture is not None:
                path = folder / "part" / place / kind / f"{index:03d}{'_mask' * (place != 'test')}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
    return folder


def evaluated(checkpoint, dataset, *options, capsys):
    with pytest.raises(SystemExit) as ended:
        vcp_clip(["evaluate", f"folder={dataset}", "--model", str(checkpoint), "--num-workers", "0", *options])
    output = capsys.readouterr()
    assert ended.value.code == 0, output.err
    return output


def test_evaluate_with_drawn_and_with_stored_references(checkpoint, dataset, capsys):
    drawn = evaluated(checkpoint, dataset, "--references", "k=2", "--reference-seeds", "2", capsys=capsys)
    assert "With 2 references of each product, seeds 0, 1" in drawn.out and "±" in drawn.out
    stored = evaluated(checkpoint, dataset, "--references", "stored", capsys=capsys)
    assert "normal pictures from line 3" in stored.out and "±" not in stored.out
    zero_shot = evaluated(checkpoint, dataset, capsys=capsys)
    assert "--references stored uses them" in zero_shot.err and "eference" not in zero_shot.out


@pytest.mark.parametrize("value", ["4", "k=0", "k=", "all"])
def test_wrong_references_are_refused(checkpoint, dataset, value, capsys):
    with pytest.raises(AssertionError, match=r"k=N"):
        evaluated(checkpoint, dataset, "--references", value, capsys=capsys)
