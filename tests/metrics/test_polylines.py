"""Curves with few points: close to the exact curve in both directions, with the areas of the metrics."""

import numpy as np
import pytest

from vcp_clip_hf.metrics import AnomalySegmentationEvaluator, RankedScores, auroc, average_precision, pro
from vcp_clip_hf.metrics.curves import over_false_positives
from vcp_clip_hf.metrics.polylines import TOLERANCE, drawn_curves, simplified


def some_maps(seed: int = 0, count: int = 12):
    """Return smooth maps with noise, and masks of every second image."""
    generator = np.random.default_rng(seed)
    maps, masks = [], []
    for number in range(count):
        mask = np.zeros((40, 40), bool)
        if number % 2:
            top, left = generator.integers(0, 28, 2)
            mask[top : top + 12, left : left + 9] = True
        waves = np.sin(np.arange(40) / generator.uniform(2, 9))[:, None] * np.cos(np.arange(40) / 5)
        values = 0.3 + 0.1 * waves + 0.1 * generator.normal(size=(40, 40)) + generator.uniform(0, 0.3) * mask
        maps.append(values.clip(0, 1).astype(np.float32))
        masks.append(mask)
    return maps, masks


def distances(points: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance of each point from a polyline, over all its segments."""
    starts, ends = np.stack([x, y], 1)[:-1], np.stack([x, y], 1)[1:]
    along = ends - starts
    lengths = np.maximum((along**2).sum(1), 1e-30)
    place = np.clip(((points[:, None] - starts) * along).sum(2) / lengths, 0, 1)
    nearest = starts + place[..., None] * along
    return np.sqrt(((points[:, None] - nearest) ** 2).sum(2)).min(1)


def dense(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return points on a polyline, at most 0.002 apart."""
    places = [
        np.linspace((x0, y0), (x1, y1), 2 + int(max(abs(x1 - x0), abs(y1 - y0)) / 2e-3))
        for x0, y0, x1, y1 in zip(x[:-1], y[:-1], x[1:], y[1:], strict=True)
    ]
    return np.concatenate(places)


def exact_curves(ranked: RankedScores) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    recall = np.append(0, ranked.true_positives / ranked.num_positives)
    precision = ranked.true_positives / (ranked.true_positives + ranked.false_positives)
    return {
        "roc": over_false_positives(ranked, ranked.true_positives / ranked.num_positives),
        "precision_recall": (np.repeat(recall, 2)[1:-1], np.repeat(precision, 2)),
    }


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return every third corner, so that a comparison of all pairs stays small."""
    kept = np.unique(np.append(np.arange(0, len(x), 3), len(x) - 1))
    return x[kept], y[kept]


@pytest.mark.parametrize("name", ["roc", "precision_recall"])
def test_the_drawn_curve_is_within_a_thousandth_of_the_exact_one(name):
    ranked = RankedScores.from_maps(*some_maps())
    exact, drawn = exact_curves(ranked)[name], drawn_curves(ranked)[name]
    assert len(exact[0]) > 1000 and len(drawn[0]) < 450
    assert distances(np.stack(thinned(*exact), 1), *drawn).max() <= TOLERANCE
    assert distances(dense(*drawn)[::2], *exact).max() <= TOLERANCE


@pytest.mark.parametrize("limit", [0.3, 0.05, 1.0])
def test_the_areas_under_drawn_curves_are_the_metrics(limit):
    ranked = RankedScores.from_maps(*some_maps(1))
    curves = drawn_curves(ranked, limit)
    area = {name: np.trapezoid(y, x) for name, (x, y) in curves.items()}
    assert area["roc"] == pytest.approx(auroc(ranked), abs=2e-3)
    assert area["precision_recall"] == pytest.approx(average_precision(ranked), abs=2e-3)
    assert curves["pro"][0][-1] == limit and area["pro"] / limit == pytest.approx(pro(ranked, limit), abs=5e-3)


def test_curves_of_a_histogram_are_those_of_the_scores():
    maps, masks = some_maps(2)
    found = []
    for mode in ("exact", "streaming"):
        evaluator = AnomalySegmentationEvaluator(mode=mode)
        evaluator.add(maps, masks)
        found.append(evaluator.curves()["all"])
    assert (
        list(found[0])
        == list(found[1])
        == ["image_roc", "image_precision_recall"] + [f"pixel_{name}" for name in ("roc", "precision_recall", "pro")]
    )
    for name, curve in found[0].items():
        assert distances(dense(*curve), *found[1][name]).max() < 5 * TOLERANCE, name


def test_images_of_one_kind_have_no_curves():
    evaluator = AnomalySegmentationEvaluator()
    maps, _ = some_maps(3, 2)
    evaluator.add(maps[:1], [np.zeros((40, 40), bool)], ["normal"])
    evaluator.add(maps[:1], None, ["unmasked"], labels=[1])
    evaluator.add(maps[1:], None, ["unmasked"], labels=[0])
    curves = evaluator.curves()
    assert curves["normal"] == {} and list(curves["unmasked"]) == ["image_roc", "image_precision_recall"]


def test_steps_of_few_images_stay_steps():
    x, y = drawn_curves(RankedScores.from_labels([0.9, 0.5, 0.4, 0.1], [1, 0, 1, 0]))["roc"]
    assert (x.tolist(), y.tolist()) == ([0, 0, 0.5, 0.5, 1], [0, 0.5, 0.5, 1, 1])


def test_a_wild_stretch_keeps_its_extremes():
    x = np.linspace(0, 1e-4, 1001)
    y = np.where(np.arange(1001) % 2, 0.2, 0.8)
    kept_x, kept_y = simplified(x, y)
    assert len(kept_x) <= 4 and {0.2, 0.8} == set(kept_y) and (kept_x[0], kept_x[-1]) == (0, 1e-4)
