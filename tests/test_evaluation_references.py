"""References in evaluations: draws, what is left out, and means over the draws."""

import math

import pytest
import torch

from tests.common import tiny_model
from tests.training_run import make_records
from vcp_clip_hf import AnomalySegmentationPipeline, VCPCLIPImageProcessor
from vcp_clip_hf.evaluation import evaluate
from vcp_clip_hf.evaluation_references import ReferenceDraw, draw_references, over_draws
from vcp_clip_hf.evaluation_report import EvaluationProtocol, EvaluationReport


IMAGE_LEVEL = EvaluationProtocol(metrics=("image_auroc",))


def records(normal: int, defective: int = 0) -> list[dict]:
    labels = [0] * normal + [1] * defective
    return [{"product": "one", "label": label, "image_id": str(number)} for number, label in enumerate(labels)]


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


def test_references_are_drawn_from_training_images_without_replacement():
    tested, pool = records(3, 2), records(6, 3)
    drawn = {seed: draw_references(tested, pool, 4, seed)["one"] for seed in range(8)}
    for each in drawn.values():
        assert each.source is pool and not each.held_out and each.tested == [0, 1, 2, 3, 4]
        assert len(set(each.indices)) == 4 and all(pool[index]["label"] == 0 for index in each.indices)
    assert len({tuple(each.indices) for each in drawn.values()}) > 1
    assert draw_references(tested, pool, 4, 3)["one"] == drawn[3]


def test_without_training_images_they_are_held_out():
    tested = records(3, 2)
    (drawn,) = draw_references(tested, None, 2, 0).values()
    assert drawn.held_out and sorted(drawn.indices + drawn.tested) == [0, 1, 2, 3, 4]
    assert draw_references(tested, records(0, 4), 2, 0)["one"].held_out


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="one has 3 normal images for training; 4 references cannot be drawn"):
        draw_references(records(5), records(3), 4, 0)
    with pytest.raises(ValueError, match="one has 3 normal images among the evaluated images"):
        draw_references(records(3, 2), None, 4, 0)
    with pytest.raises(ValueError, match="No image of one is left to evaluate"):
        draw_references(records(3), None, 3, 0)


@pytest.mark.parametrize(("count", "seeds"), [(0, (0,)), (True, (0,)), (2, ()), (2, (1, 1))])
def test_draws_out_of_range_are_refused(count, seeds):
    with pytest.raises(ValueError, match=r"(count|seeds)="):
        ReferenceDraw(count, seeds)


def test_means_and_deviations_over_draws():
    draws = [
        {"mean": {"m": value}, "per_product": {"one": {"m": value, "n": math.nan}}, "counts": {}, "reasons": {}}
        for value in (0.5, 0.7)
    ]
    combined = over_draws(draws)
    assert combined["mean"]["m"] == pytest.approx(0.6)
    assert combined["spread"]["mean"]["m"] == pytest.approx(math.sqrt(2) * 0.1)
    for part in (combined, combined["spread"]):
        assert math.isnan(part["per_product"]["one"]["n"])
    assert math.isnan(over_draws(draws[:1])["spread"]["mean"]["m"])


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


def test_training_images_that_are_evaluated_too_are_left_out(model, processor, squares):
    draw, datasets = ReferenceDraw(2, (0, 1)), {"squares": squares}
    report = evaluate(model, processor, datasets, IMAGE_LEVEL, references=draw, reference_pools=datasets)
    assert report.results["squares"]["counts"]["one"]["images"] == 10
    assert "2 of the images" in report.to_text()
