import math
import sys

import evaluate
import numpy as np
import pytest
import torch

from tests.metrics import brute_force
from vcp_clip_hf import metrics
from vcp_clip_hf.metrics import AnomalySegmentationEvaluator, AnomalySegmentationMetric


@pytest.fixture
def images():
    maps, masks = brute_force.example("random", images=6)
    return maps, masks, ["bottle"] * 3 + ["cable"] * 3


def expected(images, **options) -> dict:
    evaluator = AnomalySegmentationEvaluator(skip_undefined=True, **options)
    evaluator.add(*images)
    return evaluator.compute()


@pytest.mark.parametrize("mode", ["exact", "streaming"])
def test_all_ways_to_add_images_give_the_same_result(images, mode):
    maps, masks, products = images
    metric = AnomalySegmentationMetric(mode=mode, skip_undefined=True)
    assert isinstance(metric, evaluate.Metric)
    results = []

    for row in range(6):
        metric.add(prediction=maps[row], reference=masks[row], product=products[row])
    assert len(metric) == 6
    results.append(metric.compute())

    for rows in (slice(0, 2), slice(2, 6)):
        metric.add_batch(
            predictions=torch.from_numpy(maps[rows]), references=torch.from_numpy(masks[rows]), products=products[rows]
        )
    results.append(metric.compute())

    results.append(metric.compute(predictions=maps, references=masks, products=products))

    metric.add_batch(predictions=maps[:4], references=masks[:4], products=products[:4])
    results.append(metric.compute(predictions=list(maps[4:]), references=list(masks[4:]), products=products[4:]))

    reference = expected(images, mode=mode)
    for result in results:
        for name, values in reference["per_product"].items():
            assert result["per_product"][name] == pytest.approx(values, abs=1e-13, rel=0, nan_ok=True)
        assert result["counts"] == reference["counts"]


def test_compute_forgets_the_images_except_after_an_error(images):
    maps, masks, products = images
    metric = AnomalySegmentationMetric()
    metric.add_batch(predictions=maps, references=masks, products=products)
    with pytest.raises(ValueError, match="NaN"):
        metric.compute(predictions=maps * math.nan, references=masks)
    assert len(metric) == 6
    metric.compute()
    assert len(metric) == 0
    with pytest.raises(ValueError, match="nothing to evaluate"):
        metric.compute()
    with pytest.raises(ValueError, match="references, products came without predictions"):
        metric.compute(references=masks, products=products)


def test_optional_inputs_are_passed_on(images):
    maps = images[0]
    metric = AnomalySegmentationMetric(["image_auroc"])
    scores = np.arange(6.0)
    metric.add_batch(
        predictions=maps[:5],
        references=None,
        products="bottle",
        image_scores=scores[:5],
        labels=[0, 0, 1, 0, 1],
        image_ids=list("abcde"),
    )
    metric.add(prediction=maps[5], product="bottle", image_score=5.0, label=1, image_id="f")
    with pytest.raises(ValueError, match="'c'"):
        metric.add(prediction=maps[5], product="bottle", label=1, image_id="c")
    assert metric.compute()["per_product"]["bottle"]["image_auroc"] == pytest.approx(8 / 9)


def test_maps_are_reduced_when_added_and_nothing_is_written(images, tmp_path):
    maps, masks, _ = images
    metric = AnomalySegmentationMetric(mode="streaming", cache_dir=str(tmp_path / "cache"))
    metric.add_batch(predictions=maps, references=masks)
    assert metric.writer is None and metric.data is None
    assert not (tmp_path / "cache").exists()
    metric.compute()
    assert not (tmp_path / "cache").exists()


def test_states_of_metrics_can_be_merged(images):
    maps, masks, products = images
    metrics = [AnomalySegmentationMetric(skip_undefined=True) for _ in range(2)]
    for metric, rows in zip(metrics, (slice(0, None, 2), slice(1, None, 2)), strict=True):
        metric.add_batch(predictions=maps[rows], references=masks[rows], products=products[rows])
    total = AnomalySegmentationEvaluator(skip_undefined=True)
    for metric in metrics:
        total.merge(AnomalySegmentationEvaluator.from_state_dict(metric.evaluator.state_dict()))
    reference = expected(images)
    for name, values in reference["per_product"].items():
        assert total.compute()["per_product"][name] == pytest.approx(values, abs=1e-13, rel=0, nan_ok=True)


def test_several_processes_of_evaluate_are_refused():
    with pytest.raises(ValueError, match=r"num_process=2 .*state_dict"):
        AnomalySegmentationMetric(num_process=2, process_id=0, experiment_id="x")


def test_without_the_library_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)  # as if not installed: importing it fails
    monkeypatch.delitem(sys.modules, "vcp_clip_hf.metrics.anomaly_segmentation")
    with pytest.raises(ImportError, match=r'pip install "vcp-clip-hf\[evaluate\]"'):
        metrics.AnomalySegmentationMetric  # noqa: B018
    assert metrics.AnomalySegmentationEvaluator().metrics, "the evaluator works without it"


def test_the_metric_describes_itself():
    metric = AnomalySegmentationMetric()
    assert metric.name == "anomaly_segmentation_metric"
    assert set(metric.features) == {"predictions", "references"}
    assert "predictions: anomaly maps" in metric.add_batch.__doc__
    assert "VCP-CLIP" in metric.citation
    assert "stored examples: 0" in repr(metric)
