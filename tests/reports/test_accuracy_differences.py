"""Differences between evaluations: exact values, intervals with the stated coverage, common images only."""

import numpy as np
import pytest

from tests.reports.evaluations import evaluation
from tests.training_run import make_records
from vcp_clip_hf.metrics import RankedScores, auroc
from vcp_clip_hf.reports.accuracy_differences import differences, keyed_images
from vcp_clip_hf.reports.evaluation_files import read_evaluation


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "other")]
    for seed, folder in enumerate(folders):
        evaluation(folder, seed)
    return [read_evaluation(folder) for folder in folders]


def test_values_are_the_evaluators(runs):
    found = differences(*runs)
    assert [each.metric for each in found[:5]] == runs[0].report.metrics
    assert {each.product for each in found} == {"product_0", "product_1", "product_2", "mean"}
    for each in found:
        for run, value in zip(runs, (each.first, each.other), strict=True):
            result = run.report.results["squares"]
            values = result["mean"] if each.product == "mean" else result["per_product"][each.product]
            assert value == pytest.approx(values[each.metric], abs=1e-12)
        assert not each.estimated and each.low <= each.value <= each.high


def test_a_run_does_not_differ_from_itself(runs):
    for each in differences(runs[0], runs[0]):
        assert (each.value, each.low, each.high, each.is_clear) == (0, 0, 0, False)


def test_intervals_turn_with_the_order_of_the_runs(runs):
    for there, back in zip(differences(*runs), differences(*reversed(runs)), strict=True):
        assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low), abs=1e-9)


def test_the_interval_is_that_of_images_drawn_by_hand(runs):
    (found,) = [each for each in differences(*runs) if (each.product, each.metric) == ("product_1", "image_auroc")]
    scores = [np.array([image["score"] for image in run.of_product("squares", "product_1")]) for run in runs]
    labels = np.array([image["label"] for image in runs[0].of_product("squares", "product_1")])
    generator = np.random.default_rng(1)
    drawn = []
    for _ in range(2000):
        chosen = np.concatenate(
            [generator.choice(np.flatnonzero(labels == kind), (labels == kind).sum()) for kind in (0, 1)]
        )
        first, other = (auroc(RankedScores.from_labels(each[chosen], labels[chosen])) for each in scores)
        drawn.append(other - first)
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.07)


def test_common_images_are_compared_and_pixels_estimated(runs, tmp_path):
    evaluation(tmp_path, 1, make_records(24).select(range(4, 24)))
    part = read_evaluation(tmp_path)
    assert len(set(keyed_images(runs[0])) & set(keyed_images(part))) == 20
    found = {(each.product, each.metric): each for each in differences(runs[0], part)}
    whole = {(each.product, each.metric): each for each in differences(runs[1], part)}
    for key, each in found.items():
        assert each.images == {"product_0": 6, "product_1": 7, "product_2": 7, "mean": 20}[key[0]]
        assert each.estimated == key[1].startswith("pixel")
        # the same model on the same images
        assert whole[key].value == pytest.approx(0, abs=1e-9)
    exact = part.report.results["squares"]["per_product"]["product_0"]
    assert found["product_0", "pixel_auroc"].other == pytest.approx(exact["pixel_auroc"], abs=5e-3)
    assert found["product_0", "image_ap"].other == pytest.approx(exact["image_ap"], abs=1e-12)


def test_metrics_without_samples_have_no_interval(tmp_path):
    for seed in (0, 1):
        evaluation(tmp_path / str(seed), seed, make_records(12), protocol="published")
    found = differences(*(read_evaluation(tmp_path / str(seed)) for seed in (0, 1)))
    steps = [each for each in found if each.metric == "pixel_pro_200"]
    assert steps and all(each.low is None and each.is_clear is None for each in steps)
    assert all(each.low is not None for each in found if each.metric != "pixel_pro_200")


def test_undefined_metrics_are_left_out(tmp_path):
    for seed in (0, 1):
        evaluation(tmp_path / str(seed), seed, make_records(8).select(range(0, 8, 2)))
    assert differences(*(read_evaluation(tmp_path / str(seed)) for seed in (0, 1))) == []


def test_one_image_of_a_label_has_no_interval_and_undefined_metrics_no_mean(tmp_path):
    records = make_records(24)
    kinds = [(record["product"], record["label"]) for record in records]
    lonely, without = kinds.index(("product_0", 1)), ("product_1", 0)
    kept = [
        number
        for number, kind in enumerate(kinds)
        if kind != without and (kind != ("product_0", 1) or number == lonely)
    ]
    for seed in (0, 1):
        evaluation(tmp_path / str(seed), seed, records.select(kept))
    first, other = (read_evaluation(tmp_path / name) for name in ("0", "1"))
    found = differences(first, other)
    assert {each.is_clear for each in found if each.product == "product_0"} == {None}
    mean = {each.metric for each in found if each.product == "mean"}
    assert mean == {name for name, value in first.report.results["squares"]["mean"].items() if value == value}
