import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.common import FIXTURES
from tests.metrics import brute_force
from vcp_clip_hf.metrics.curves import (
    RankedScores,
    UndefinedMetricError,
    auroc,
    average_precision,
    f1_max,
    iou,
    pro,
    pro_200_steps,
)


def pixel_metrics(ranked: RankedScores, fpr_limit: float = 0.3) -> dict[str, float]:
    best, threshold = f1_max(ranked)
    try:
        estimate = pro_200_steps(ranked, fpr_limit)
    except UndefinedMetricError:
        estimate = float("nan")
    return {
        "pixel_auroc": auroc(ranked),
        "pixel_ap": average_precision(ranked),
        "pixel_f1_max": best,
        "pixel_f1_threshold": threshold,
        "pixel_iou": iou(ranked, threshold),
        "pixel_pro": pro(ranked, fpr_limit),
        "pixel_pro_200": estimate,
    }


@pytest.mark.parametrize("name", ["metrics_a", "metrics_ties"])
def test_equal_to_the_golden_values(name):
    tensors = load_file(FIXTURES / name / "maps.safetensors")
    maps, masks = tensors["maps"], tensors["masks"]
    pixels = RankedScores.from_maps(maps, masks)
    images = RankedScores.from_labels(maps.max(axis=(1, 2)), masks.any(axis=(1, 2)))
    best, threshold = f1_max(pixels)
    computed = {
        "pixel_auroc": auroc(pixels),
        "pixel_ap": average_precision(pixels),
        "pixel_f1_max": best,
        "best_threshold": threshold,
        "iou_at_best_threshold_strict": iou(pixels, threshold),
        "pixel_pro_200_steps": pro_200_steps(pixels),
        "pixel_pro_exact": pro(pixels),
        "image_auroc": auroc(images),
        "image_ap": average_precision(images),
        "image_f1_max": f1_max(images)[0],
    }
    assert computed == pytest.approx(json.loads((FIXTURES / name / "expected.json").read_text()), abs=1e-6, rel=0)


@pytest.mark.parametrize("fpr_limit", [0.3, 0.05, 1.0])
@pytest.mark.parametrize("kind", brute_force.KINDS)
def test_equal_to_the_definitions(kind, fpr_limit):
    maps, masks = brute_force.example(kind)
    computed = pixel_metrics(RankedScores.from_maps(maps, masks), fpr_limit)
    expected = brute_force.pixel_metrics(maps, masks, fpr_limit)
    assert computed == pytest.approx(expected, abs=1e-12, rel=0, nan_ok=True)


@pytest.mark.parametrize("kind", brute_force.KINDS)
def test_equal_to_scikit_learn(kind):
    metrics = pytest.importorskip("sklearn.metrics")
    maps, masks = brute_force.example(kind, seed=1)
    ranked = RankedScores.from_maps(maps, masks)
    labels, scores = masks.ravel(), maps.ravel()
    precision, recall, thresholds = metrics.precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    best, threshold = f1_max(ranked)
    assert auroc(ranked) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(ranked) == pytest.approx(metrics.average_precision_score(labels, scores), abs=1e-12)
    assert best == pytest.approx(f1.max(), abs=1e-12)
    assert threshold == thresholds[f1.argmax()]
    assert iou(ranked, threshold) == pytest.approx(metrics.jaccard_score(labels, scores > np.float32(threshold)))


def test_perfect_scores():
    masks = np.zeros((2, 8, 8), bool)
    masks[0, 2:5, 2:5] = masks[1, 6, 6] = True
    maps = np.where(masks, 0.9, 0.1) + np.random.default_rng(0).random(masks.shape) * 0.1
    ranked = RankedScores.from_maps(maps, masks)
    lowest_hit = maps[masks].min()
    assert auroc(ranked) == average_precision(ranked) == pro(ranked) == 1.0
    assert f1_max(ranked) == (1.0, lowest_hit)
    assert iou(ranked, 0.5) == 1.0
    # Strictly above the threshold of F1-max, the pixel with that score is missed
    assert iou(ranked, lowest_hit) == pytest.approx(9 / 10)


def test_inverted_scores():
    masks = np.zeros((1, 10, 10), bool)
    masks[0, :2] = True
    maps = np.where(masks, 0.1, 0.9) + np.random.default_rng(0).random(masks.shape) * 0.1
    ranked = RankedScores.from_maps(maps, masks)
    assert auroc(ranked) == pro(ranked) == 0.0
    # The best threshold then marks all pixels
    assert f1_max(ranked)[0] == pytest.approx(2 * 0.2 / 1.2)
    hits = np.arange(1, 21)
    assert average_precision(ranked) == pytest.approx((hits / (80 + hits)).mean())


def test_random_scores():
    generator = np.random.default_rng(0)
    masks = generator.random((20, 100, 100)) < 0.05
    ranked = RankedScores.from_maps(generator.random(masks.shape, dtype=np.float32), masks)
    assert auroc(ranked) == pytest.approx(0.5, abs=0.01)
    assert average_precision(ranked) == pytest.approx(0.05, abs=0.005)
    # The overlap equals the false positive rate: a triangle of height 0.3
    assert pro(ranked) == pytest.approx(0.15, abs=0.01)
    assert pro(ranked, fpr_limit=1.0) == pytest.approx(0.5, abs=0.01)


def test_constant_maps():
    masks = np.zeros((2, 10, 10), bool)
    masks[0, 0] = True
    ranked = RankedScores.from_maps(np.full(masks.shape, 0.25, np.float32), masks)
    assert auroc(ranked) == 0.5
    assert average_precision(ranked) == pytest.approx(0.05)
    assert f1_max(ranked) == (pytest.approx(2 * 0.05 / 1.05), 0.25)
    assert iou(ranked, 0.25) == 0.0
    assert pro(ranked) == pytest.approx(0.15)
    with pytest.raises(UndefinedMetricError, match=r"all scores are equal \(0.25\)"):
        pro_200_steps(ranked)


def test_pro_counts_regions_not_pixels():
    masks = np.zeros((1, 10, 10), bool)
    masks[0, 0, 0] = masks[0, 5:, 5:] = True
    maps = np.zeros(masks.shape)
    maps[0, 5:, 5:] = 1.0  # the large region is found, the one pixel is not
    ranked = RankedScores.from_maps(maps, masks)
    # Up from (0, 0) to (0, 1/2), then straight to (1, 1)
    assert pro(ranked, fpr_limit=0.3) == pytest.approx(0.5 + 0.5 * 0.3 / 2)
    assert auroc(ranked) > 0.97


def test_pro_is_cut_by_interpolation():
    # Four normal pixels, the second of which ties with one of two regions
    maps = np.array([[[0.9, 0.8, 0.7, 0.7, 0.2, 0.1]]])
    masks = np.array([[[True, False, True, False, False, False]]])
    # (0, 0), (0, 1/2), (1/4, 1/2), (1/2, 1), (1, 1)
    ranked = RankedScores.from_maps(maps, masks)
    assert pro(ranked, fpr_limit=0.25) == pytest.approx(0.5)
    assert pro(ranked, fpr_limit=0.3) == pytest.approx((0.25 * 0.5 + 0.05 * (0.5 + 0.6) / 2) / 0.3)
    assert pro(ranked, fpr_limit=1.0) == pytest.approx(0.125 + 0.25 * 0.75 + 0.5)


def test_only_the_authors_estimator_changes_with_rescaling():
    maps, masks = brute_force.example("random")
    ranked, rescaled = (
        RankedScores.from_maps(maps, masks),
        RankedScores.from_maps(maps.astype(np.float64) ** 12, masks),
    )
    assert pro(rescaled) == pytest.approx(pro(ranked), abs=1e-12)
    assert abs(pro_200_steps(rescaled) - pro_200_steps(ranked)) > 0.02


def test_the_lowest_of_equally_good_thresholds_is_chosen():
    maps, masks = np.array([[[0.9, 0.7, 0.6, 0.5, 0.1]]]), np.array([[[True, False, False, True, False]]])
    # One of two found without a false alarm, or both with two: 2 / 3 either way
    assert f1_max(RankedScores.from_maps(maps, masks)) == (2 / 3, 0.5)


def test_the_authors_thresholds_are_not_rounded():
    # The scores are next to the float64 thresholds, which rounding to float32 would move to the other side
    lowest, highest = np.float32(0.1), np.float32(0.9)
    maps = np.arange(lowest, highest, (highest - lowest) / np.float32(200)).astype(np.float32).reshape(1, 10, -1)
    maps[0, -1, -1] = highest
    masks = np.random.default_rng(0).random(maps.shape) < 0.4
    estimate = pro_200_steps(RankedScores.from_maps(maps, masks))
    assert estimate == pytest.approx(brute_force.pro_200_steps(maps, masks), abs=1e-12)


@pytest.mark.parametrize("kind", ["random", "tied"])
def test_scores_may_have_any_range(kind):
    maps, masks = brute_force.example(kind)
    maps = maps * 64 - 80  # exact in float32
    computed = pixel_metrics(RankedScores.from_maps(maps, masks))
    assert computed == pytest.approx(brute_force.pixel_metrics(maps, masks), abs=1e-12, rel=0)


def test_close_float64_scores_are_distinguished():
    maps = np.array([[[0.5, 0.5 + 1e-12, 0.5 - 1e-12]]])
    masks = np.array([[[False, True, False]]])
    assert auroc(RankedScores.from_maps(maps, masks)) == 1.0
    assert auroc(RankedScores.from_maps(maps.astype(np.float32), masks)) == 0.5


@pytest.mark.parametrize("convert", [torch.from_numpy, lambda a: list(torch.from_numpy(a)), list])
def test_arrays_tensors_and_lists_are_accepted(convert):
    maps, masks = brute_force.example("random")
    expected = pixel_metrics(RankedScores.from_maps(maps, masks))
    assert pixel_metrics(RankedScores.from_maps(convert(maps), convert(masks))) == expected
    assert pixel_metrics(RankedScores.from_maps(convert(maps), convert(masks.astype(np.uint8)))) == expected


def test_images_may_differ_in_size():
    generator = np.random.default_rng(0)
    shapes = [(5, 9), (12, 3), (7, 7)]
    maps = [generator.random(shape) for shape in shapes]
    masks = [generator.random(shape) < 0.3 for shape in shapes]
    ranked = RankedScores.from_maps(maps, masks)
    scores = np.concatenate([m.ravel() for m in maps])
    assert auroc(ranked) == pytest.approx(
        brute_force.auroc(scores, np.concatenate([m.ravel() for m in masks])), abs=1e-12
    )


@pytest.mark.parametrize("function", [auroc, average_precision, f1_max, pro, pro_200_steps, lambda r: iou(r, 0.5)])
@pytest.mark.parametrize("abnormal, reason", [(False, "no abnormal pixels"), (True, "no normal pixels")])
def test_both_classes_are_needed(function, abnormal, reason):
    maps = np.random.default_rng(0).random((2, 4, 4))
    ranked = RankedScores.from_maps(maps, np.full(maps.shape, abnormal))
    with pytest.raises(UndefinedMetricError, match=reason):
        function(ranked)


def test_the_authors_estimator_may_be_undefined():
    masks = np.zeros((1, 4, 4), bool)
    masks[0, 0] = True
    with pytest.raises(UndefinedMetricError, match="cannot be stretched"):
        pro_200_steps(RankedScores.from_maps(np.where(masks, 1.0, 0.0), masks))
    with pytest.raises(UndefinedMetricError, match="false positive rate below"):
        pro_200_steps(RankedScores.from_maps(np.where(masks, 0.0, 1.0), masks))


def test_scores_too_close_for_200_steps_are_refused():
    maps = np.array([[[1.0, 1.0, np.nextafter(np.float32(1), np.float32(2))]]], np.float32)
    with pytest.raises(UndefinedMetricError, match="200 steps"):
        pro_200_steps(RankedScores.from_maps(maps, np.array([[[True, False, False]]])))


def test_pro_needs_maps():
    ranked = RankedScores.from_labels([0.1, 0.9], [0, 1])
    with pytest.raises(ValueError, match="from_maps"):
        pro(ranked)


@pytest.mark.parametrize("fpr_limit", [0.0, -0.1, 1.5, float("nan")])
def test_fpr_limit_is_checked(fpr_limit):
    ranked = RankedScores.from_maps(*brute_force.example("random"))
    for function in (pro, pro_200_steps):
        with pytest.raises(ValueError, match="fpr_limit"):
            function(ranked, fpr_limit=fpr_limit)


def test_f1_max_is_computed_once():
    ranked = RankedScores.from_maps(*brute_force.example("random"))
    assert f1_max(ranked) is f1_max(ranked)


def test_inputs_are_not_changed():
    maps, masks = brute_force.example("random")
    before = maps.copy()
    pixel_metrics(RankedScores.from_maps(maps, masks))
    np.testing.assert_array_equal(maps, before)


def test_bad_images_are_named():
    maps, masks = brute_force.example("random")
    maps[2, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"Image 2: .* 1 of 400 pixels that are NaN"):
        RankedScores.from_maps(maps, masks)
    with pytest.raises(ValueError, match="4 maps came with 3 masks"):
        RankedScores.from_maps(maps, masks[:3])
    with pytest.raises(ValueError, match="no maps"):
        RankedScores.from_maps([], [])


def test_bad_labels_are_refused():
    with pytest.raises(ValueError, match="2 scores came with 3 labels"):
        RankedScores.from_labels([0.1, 0.2], [0, 1, 1])
    with pytest.raises(ValueError, match=r"0 \(normal\) or 1"):
        RankedScores.from_labels([0.1, 0.2], [0, 2])
    with pytest.raises(ValueError, match="1 values that are NaN or infinite, at 1"):
        RankedScores.from_labels([0.1, np.inf], [0, 1])
