"""Bounds of the streaming mode, which must hold for any order of the scores within a bin."""

import numpy as np
import pytest

from tests.metrics import brute_force
from vcp_clip_hf.metrics import PIXEL_METRICS, AnomalySegmentationEvaluator
from vcp_clip_hf.metrics.curves import UndefinedMetricError
from vcp_clip_hf.metrics.score_histogram import ScoreGrid


def streamed(maps, masks, mantissa_bits: int = 11, score_range=(0.0, 1.0), fpr_limit: float = 0.3) -> dict:
    """Return (lower bound, value, upper bound) by pixel metric."""
    evaluator = AnomalySegmentationEvaluator(
        PIXEL_METRICS, mode="streaming", mantissa_bits=mantissa_bits, score_range=score_range, fpr_limit=fpr_limit
    )
    for start in range(0, len(maps), 2):
        evaluator.add(maps[start : start + 2], masks[start : start + 2])
    result = evaluator.compute()
    values, limits = result["per_product"]["all"], result["bounds"]["per_product"]["all"]
    return {name: (limits[name][0], values[name], limits[name][1]) for name in PIXEL_METRICS}


def assert_contains(bounds: dict, exact: dict) -> None:
    for name, (lower, value, upper) in bounds.items():
        if np.isnan(exact[name]):
            continue  # the authors' estimator: 0 / 0
        assert lower <= exact[name] <= upper, f"{name}: {exact[name]} is not in [{lower}, {upper}]"
        assert lower <= value <= upper, f"{name}: {value} is not in [{lower}, {upper}]"
        assert name == "pixel_f1_threshold" or 0 <= lower <= upper <= 1


@pytest.mark.parametrize("mantissa_bits", [4, 6, 11])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", brute_force.KINDS)
def test_bounds_contain_the_exact_values(kind, seed, mantissa_bits):
    maps, masks = brute_force.example(kind, seed, side=14)
    assert_contains(streamed(maps, masks, mantissa_bits), brute_force.pixel_metrics(maps, masks))


@pytest.mark.parametrize("fpr_limit", [0.01, 0.05, 1.0])
@pytest.mark.parametrize("kind", ["random", "tied", "skewed"])
def test_bounds_with_other_limits(kind, fpr_limit):
    maps, masks = brute_force.example(kind, seed=2, side=14)
    assert_contains(streamed(maps, masks, 4, fpr_limit=fpr_limit), brute_force.pixel_metrics(maps, masks, fpr_limit))


def exact(maps, masks, fpr_limit: float = 0.3) -> dict:
    """Return all pixel metrics of the exact mode, which other tests compare with the definitions."""
    evaluator = AnomalySegmentationEvaluator(PIXEL_METRICS, fpr_limit=fpr_limit)
    evaluator.add(maps, masks)
    return evaluator.compute()["per_product"]["all"]


@pytest.mark.parametrize("seed", range(60))
def test_bounds_contain_the_exact_values_of_crowded_bins(seed):
    """Few and wide bins, with many scores in each, in an order that may favor either side."""
    generator = np.random.default_rng(seed)
    masks = generator.random((3, 16, 16)) < generator.choice([0.01, 0.1, 0.5])
    masks[0, 0, 0] = True
    favor = generator.uniform(-0.02, 0.02)
    maps = generator.beta(*generator.uniform(0.3, 5, 2), masks.shape) + favor * masks
    maps = maps.clip(0, 1).astype(generator.choice([np.float32, np.float64]))
    if seed % 3 == 0:
        maps = np.round(maps, 2)  # some bins hold one score, others several
    fpr_limit = generator.choice([0.02, 0.3, 1.0])
    assert_contains(streamed(maps, masks, 4, fpr_limit=fpr_limit), exact(maps, masks, fpr_limit))


def reordered(maps: np.ndarray, masks: np.ndarray, grid: ScoreGrid, abnormal_first: bool) -> np.ndarray:
    """
    Return maps with the same histogram. In each bin, the abnormal pixels are first, with one score, or last, with
    many.
    """
    bins = grid.index(maps)
    result = np.empty(maps.shape, np.float64)
    for number in np.unique(bins):
        low, high = max(grid.lower_edge(int(number)), 0.0), grid.lower_edge(int(number) + 1)
        members = bins == number
        share = np.linspace(0.1, 0.4, members.sum()) + (0.5 if not abnormal_first else 0.0)
        share = np.where(masks[members], (0.9 if abnormal_first else share - 0.5), share)
        result[members] = low + (high - low) * share
    assert (grid.index(result) == bins).all()
    return result


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_bound_could_be_narrower(seed):
    maps, masks = brute_force.example("random", seed)
    maps = (0.02 + 0.96 * maps).astype(np.float64)  # outside the two outermost bins
    grid = ScoreGrid(mantissa_bits=4)
    best, worst = reordered(maps, masks, grid, True), reordered(maps, masks, grid, False)
    exact_best, exact_worst = exact(best, masks), exact(worst, masks)
    bounds = streamed(best, masks, 4)
    for name in ("pixel_auroc", "pixel_pro"):
        assert exact_best[name] == pytest.approx(bounds[name][2], abs=2e-9)
        assert exact_worst[name] == pytest.approx(bounds[name][0], abs=2e-9)
        assert bounds[name][2] - bounds[name][0] > 0.01
    assert exact_best["pixel_ap"] == pytest.approx(bounds["pixel_ap"][2], abs=2e-9)
    assert exact_worst["pixel_ap"] == pytest.approx(bounds["pixel_ap"][0], abs=1e-3)  # an integral in place of a sum
    assert exact_best["pixel_f1_max"] == pytest.approx(bounds["pixel_f1_max"][2], abs=2e-9)
    assert exact_worst["pixel_f1_max"] == pytest.approx(bounds["pixel_f1_max"][0], abs=2e-9)


def test_bounds_are_narrow_by_default_and_narrower_with_more_bins():
    generator = np.random.default_rng(0)
    masks = np.zeros((8, 128, 128), bool)
    masks[1:4, 20:40, 50:80] = True
    maps = (generator.beta(2, 8, masks.shape) + 0.3 * masks).clip(0, 1).astype(np.float32)
    coarse, default, fine = (streamed(maps, masks, bits) for bits in (9, 11, 13))
    width = {name: default[name][2] - default[name][0] for name in default}
    del width["pixel_f1_threshold"]  # where F1 is flat, many thresholds are as good
    assert max(width.values()) < 1e-3, width
    for name in ("pixel_auroc", "pixel_ap", "pixel_pro", "pixel_pro_200"):
        assert fine[name][2] - fine[name][0] < 0.4 * width[name] < 0.4**2 * (coarse[name][2] - coarse[name][0])


@pytest.mark.parametrize("kind", ["tied", "half_precision", "two_levels"])
def test_bounds_are_exact_if_each_score_has_its_own_bin(kind):
    maps, masks = brute_force.example(kind)
    for name, (lower, value, upper) in streamed(maps, masks).items():
        expected = exact(maps, masks)[name]
        if not np.isnan(expected):
            assert (lower, value, upper) == pytest.approx((expected,) * 3, abs=2e-9), name


@pytest.mark.parametrize("score_range", [(0.0, 1.0), (-3.0, 4.7)])
def test_the_estimated_threshold_does_not_reach_into_the_next_bin(score_range):
    grid = ScoreGrid(*score_range, mantissa_bits=4)
    masks = np.array([[[False, True, True, False]]])
    for number in range(400, 600, 3):
        above = np.float32(grid.lower_edge(number))
        if grid.index(above) < number:
            above = np.nextafter(above, np.float32(np.inf))
        below = np.nextafter(above, np.float32(-np.inf))
        assert grid.index(below) == number - 1 and grid.index(above) == number
        maps = np.array([[[below, above, np.nextafter(above, np.float32(np.inf)), score_range[0]]]], np.float32)
        bounds = streamed(maps, masks, 4, score_range)
        assert bounds["pixel_f1_max"][1] == 1.0
        assert ((maps >= np.float32(bounds["pixel_f1_threshold"][1])) == masks).all()


def test_the_estimated_threshold_reaches_the_estimated_f1():
    maps, masks = brute_force.example("random")
    for mantissa_bits in (4, 6, 8):
        bounds = streamed(maps, masks, mantissa_bits)
        found = maps >= np.float32(bounds["pixel_f1_threshold"][1])
        reached = 2 * (found & masks).sum() / (found.sum() + masks.sum())
        assert reached == pytest.approx(bounds["pixel_f1_max"][1], abs=1e-12)


@pytest.mark.parametrize("score_range", [(0.0, 1.0), (-3.0, 5.0), (0.0, 1e-3), (100.0, 255.0)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bins_keep_the_order(score_range, dtype):
    grid = ScoreGrid(*score_range, mantissa_bits=5)
    generator = np.random.default_rng(0)
    span = score_range[1] - score_range[0]
    shares = np.concatenate([generator.random(3000), 2.0 ** generator.uniform(-40, 0, 1000), [0, 0.5, 1]])
    scores = np.sort(np.concatenate([shares, 1 - shares]) * span + score_range[0]).astype(dtype)
    bins = grid.index(scores)
    assert (np.diff(bins) >= 0).all()
    assert bins[0] == 0 and bins[-1] == grid.num_bins - 1
    # A bin is no wider than its share of the distance to the nearer end
    inner = scores[(bins > 0) & (bins < grid.num_bins - 1)].astype(np.float64)
    for score in inner[::97]:
        number = int(grid.index(score))
        width = grid.lower_edge(number + 1) - grid.lower_edge(number)
        assert width <= 1.01 * 2**-5 * min(score - score_range[0], score_range[1] - score) + 1e-6 * span


@pytest.mark.parametrize("score_range", [(0.0, 1.0), (-3.0, 5.0)])
def test_edges_agree_with_bins(score_range):
    grid = ScoreGrid(*score_range, mantissa_bits=4)
    for number in (1, 2, 17, 400, 496, 497, 700, grid.num_bins - 1):
        edge = grid.lower_edge(number)
        assert grid.index(edge) >= number > grid.index(np.nextafter(edge, -np.inf))


def test_scores_at_and_just_beyond_the_ends():
    grid = ScoreGrid()
    assert grid.index(np.float32([0.0, -0.0, -1e-7, 1e-12])).tolist() == [0, 0, 0, 0]
    assert grid.index(np.float32([1.0, 1.0000001])).tolist() == [grid.num_bins - 1] * 2
    grid.check(np.float32([-1e-7, 1.0000001]))
    for scores in ([0.0, 1.01], [-0.1, 1.0]):
        with pytest.raises(ValueError, match="score_range"):
            grid.check(np.array(scores))


@pytest.mark.parametrize(
    "arguments",
    [
        {"low": 1.0},
        {"low": 2.0},
        {"high": np.inf},
        {"low": np.nan},
        {"mantissa_bits": 3},
        {"mantissa_bits": 17},
    ],
)
def test_invalid_grids_are_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        ScoreGrid(**arguments)


def test_undefined_metrics_have_the_reasons_of_the_exact_mode():
    masks = np.zeros((2, 6, 6), bool)
    masks[0, 0] = True
    perfect = np.where(masks, 1.0, 0.0).astype(np.float32)
    cases = [
        (perfect, np.zeros_like(masks)),
        (perfect, np.ones_like(masks)),
        (perfect, masks),
        (1 - perfect, masks),
        (np.full_like(perfect, 0.5), masks),
    ]
    for maps, truth in cases:
        reasons = []
        for mode in ("exact", "streaming"):
            evaluator = AnomalySegmentationEvaluator(PIXEL_METRICS, mode=mode)
            evaluator.add(maps, truth)
            result = evaluator.compute()
            reasons.append(result["reasons"].get("all", {}))
            assert {n for n, v in result["per_product"]["all"].items() if np.isnan(v)} == set(reasons[-1])
        assert reasons[0] == reasons[1]


def test_the_lowest_of_equally_good_thresholds_is_chosen():
    maps, masks = np.array([[[0.9, 0.7, 0.6, 0.5, 0.1]]]), np.array([[[True, False, False, True, False]]])
    assert streamed(maps, masks)["pixel_f1_threshold"][1] == 0.5


def test_an_undefined_metric_is_a_value_error():
    assert issubclass(UndefinedMetricError, ValueError)
