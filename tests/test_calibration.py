"""Thresholds: the guarantee by simulation, reports of too few images, the best F1 by brute force."""

import numpy as np
import pytest

from vcp_clip_hf.calibration import from_labeled_scores, from_normal_maps, from_normal_scores


@pytest.mark.parametrize(("n", "rate"), [(99, 0.05), (200, 0.01), (39, 0.1)])
def test_the_false_alarm_rate_holds_for_new_images(n, rate):
    """In expectation over calibration sets, for a distribution with a long tail."""
    generator = np.random.default_rng(0)
    alarms = []
    for _ in range(400):
        scores = generator.standard_t(2, size=n + 200)
        calibration = from_normal_scores(scores[:n], rate)
        assert calibration.reached and calibration.false_alarm_bound <= rate
        alarms.append((scores[n:] >= calibration.threshold).mean())
    assert np.mean(alarms) <= rate * 1.1
    assert np.mean(alarms) >= rate * 0.6, "the threshold is not higher than necessary"


def test_k_of_n_above_gives_k_plus_1_of_n_plus_1():
    scores = np.linspace(0, 0.99, 100)
    calibration = from_normal_scores(scores, 0.05)
    assert calibration.num_above == 4 and calibration.false_alarm_bound == pytest.approx(5 / 101)
    assert (scores >= calibration.threshold).sum() == 4


def test_too_few_images_are_reported():
    calibration = from_normal_scores([0.2, 0.3, 0.1], 0.01)
    assert not calibration.reached and calibration.num_above == 0
    assert calibration.false_alarm_bound == 0.25 and 0.3 < calibration.threshold < 0.3001
    text = calibration.describe()
    assert "25.00%" in text and "1.00%" in text and "99" in text
    assert from_normal_scores(np.zeros(99), 0.01).reached, "99 images are enough for 1 %"


def test_ties_are_never_flagged_beyond_the_rate():
    calibration = from_normal_scores([0.5] * 100, 0.05)
    assert calibration.num_above == 0 and calibration.threshold > 0.5
    assert "Threshold 0.5" in calibration.describe()


def test_the_pixel_threshold_holds_for_new_images():
    generator = np.random.default_rng(1)

    def maps(count):
        # some images are far worse than others: pixels of one image are not independent
        return [np.clip(generator.beta(1, 9, (16, 16)) * generator.choice([1, 1, 1, 2.5]), 0, 1) for _ in range(count)]

    rates = []
    for _ in range(60):
        calibration = from_normal_maps(maps(60), 0.05)
        assert calibration.reached and calibration.false_alarm_bound <= 0.05
        rates.append(np.mean([(each >= calibration.threshold).mean() for each in maps(60)]))
    assert 0.01 < np.mean(rates) <= 0.05


def test_pixel_threshold_of_too_few_images():
    calibration = from_normal_maps([np.full((3, 5), 0.5)] * 4, 0.01)
    assert calibration.threshold == 1 and not calibration.reached
    assert from_normal_maps(iter([np.full((3, 5), 0.5)] * 99), 0.01).threshold == pytest.approx(0.5, abs=1e-3)


def test_best_f1_by_brute_force():
    generator = np.random.default_rng(2)
    for _ in range(20):
        labels = generator.integers(0, 2, 30)
        labels[:2] = 0, 1
        scores = np.round(labels * 0.3 + generator.random(30), 1)
        calibration = from_labeled_scores(scores, labels)
        best = max(2 * labels[scores >= t].sum() / ((scores >= t).sum() + labels.sum()) for t in scores)
        assert calibration.f1 == pytest.approx(best)
        flagged = scores >= calibration.threshold
        assert 2 * labels[flagged].sum() / (flagged.sum() + labels.sum()) == pytest.approx(best)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_normal_scores([], 0.1), "at least one image"),
        (lambda: from_normal_scores([0.1, np.nan], 0.1), "1 of 2 scores are not finite"),
        (lambda: from_normal_scores([0.1], 1.0), "false_alarm_rate=1.0"),
        (lambda: from_normal_maps([], 0.1), "at least one image"),
        (lambda: from_normal_maps([np.array([[1.5]])], 0.1), r"\[0, 1\]"),
        (lambda: from_normal_maps([np.array([[np.nan]])], 0.1), r"\[0, 1\]"),
        (lambda: from_labeled_scores([0.1, 0.2], [1, 1]), "from_normal_scores"),
        (lambda: from_labeled_scores([0.1, 0.2], [1]), "one label"),
        (lambda: from_labeled_scores([0.1, 0.2], [1, 2]), "0 or 1"),
    ],
)
def test_wrong_input_is_explained(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_to_dict_has_plain_values_for_the_preprocessor_configuration():
    values = from_normal_scores([0.1] * 20, 0.1).to_dict()
    assert values["method"] == "conformal" and values["num_images"] == 20 and len(values["date"]) == 10
    assert "f1" not in values
