"""Thresholds: the guarantee by simulation, reports of too few images, the best F1 by brute force."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vcp_clip_hf.calibration import (
    describe_calibration,
    from_labeled_scores,
    from_normal_maps,
    from_normal_scores,
)
from vcp_clip_hf.memory_builder import MemoryBuilder
from vcp_clip_hf.memory_settings import MemorySettings
from vcp_clip_hf.nearest_patches import nearest_distance
from vcp_clip_hf.thresholds import Thresholds


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
    assert not calibration.reached and calibration.false_alarm_bound == 0.2
    assert calibration.threshold == pytest.approx(0.5, abs=1e-3) and calibration.threshold > 0.5, "a map can reach it"
    text = calibration.describe()
    assert "1.00% cannot be guaranteed with so few images; at least 99 are needed" in text
    assert "flags as few of these pixels as possible" in text
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


@pytest.mark.parametrize("count", [4, 200])
def test_a_pixel_threshold_never_lies_at_the_end_of_the_scale(count):
    """Also if pixels of normal images are saturated, so that the rate cannot be reached with any number of images."""
    saturated = np.full((4, 5), 0.25)
    saturated[0] = 1
    calibration = from_normal_maps([saturated] * count, 0.01)
    assert calibration.threshold == pytest.approx(0.25, abs=1e-3) and not calibration.reached
    assert calibration.false_alarm_bound == pytest.approx((0.25 * count + 1) / (count + 1))
    words = "so few images" if count == 4 else "end of the scale, where more of these pixels lie"
    assert words in calibration.describe()


def test_scores_at_the_end_of_their_scale_have_no_threshold():
    assert from_normal_scores([0.5, 1.0], 0.7, highest=1).threshold == 0.75
    with pytest.raises(ValueError, match=r"1 of 2 normal images have the highest score possible, 1, .* larger rate"):
        from_normal_scores([0.5, 1.0], 0.3, highest=1)


@pytest.mark.parametrize("noise", [1e-7, 5e-7])
def test_no_threshold_lies_within_rounding_of_a_score(noise):
    """Scores that another batch size changes in the last digit keep their verdicts."""
    generator = np.random.default_rng(3)
    for seed in range(50):
        # ties up to rounding, at every place
        scores = np.repeat(generator.random(20), 5) + generator.uniform(-noise, noise, 100)
        labels = generator.integers(0, 2, 100)
        labels[:2] = 0, 1
        for calibration in (from_normal_scores(scores, 0.01 * (1 + seed)), from_labeled_scores(scores, labels)):
            thresholds = Thresholds(None, calibration.threshold)
            verdicts = [thresholds.label(score) for score in scores]
            again = scores + generator.uniform(-noise, noise, 100)
            assert verdicts == [thresholds.label(score) for score in again]
            if calibration.method == "conformal":
                assert verdicts.count("anomalous") == calibration.num_above and calibration.reached


def test_the_bound_counts_the_pixels_that_masks_include():
    maps = np.random.default_rng(4).random((50, 20, 20)).astype(np.float32)
    calibration = from_normal_maps(maps, 0.1)
    flagged = Thresholds(calibration.threshold, None).mask(maps).mean(axis=(1, 2))
    assert (flagged.sum() + 1) / 51 <= calibration.false_alarm_bound + 1e-12 <= 0.1 + 2e-12


def test_both_thresholds_are_described():
    image, pixel = (
        from_normal_scores([0.1] * 20, 0.1).to_dict(),
        from_normal_maps([np.zeros((2, 2))] * 20, 0.1).to_dict(),
    )
    both = describe_calibration({"image": image, "pixel": pixel, "settings": {"score_mode": "max"}})
    assert [line.split(":")[0] for line in both] == ["Images", "Masks"] and "normal pixels" in both[1]
    (_, shared) = describe_calibration({"image": image, "score_mode": "max"})
    assert shared == "Masks: the threshold of the images."
    for score_mode in ("top_k", "image_head"):
        (_, absent) = describe_calibration({"image": image, "settings": {"score_mode": score_mode}})
        assert absent.startswith(f"Masks: no threshold, since scores of '{score_mode}' are not values of a map")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_normal_scores([0.1], float("nan")), "false_alarm_rate=nan must lie between 0 and 1"),
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


# --- thresholds with a memory of references -------------------------------------------------------------------------

SIDE, WIDTH, FRESH = 2, 3, 16


def normal_pictures(count: int, kinds: torch.Tensor) -> torch.Tensor:
    """Draw patches (count, SIDE * SIDE, WIDTH) of pictures, some of them noisier than others."""
    noise = 0.05 + 0.4 * torch.rand(count, 1, 1) ** 4
    return kinds[torch.randint(len(kinds), (count, SIDE * SIDE))] + noise * torch.randn(count, SIDE * SIDE, WIDTH)


def memory_maps(references: torch.Tensor, fresh: torch.Tensor) -> dict[str, np.ndarray]:
    """
    Return maps (pictures, SIDE * SIDE) in [0, 1] of

    - `fresh`: new pictures,
    - `leave_one_out`: references, each against the others,
    - `naive`: references against a memory with themselves.
    """
    count = len(references)
    builder = MemoryBuilder(MemorySettings(layers=(0,)))
    for index, patches in enumerate(references):
        builder.add(str(index), [torch.cat([patches[:1], patches])[None]], (SIDE, SIDE))
    memory = builder.finish()
    assert memory.exact
    alone = [memory.without(index) for index in range(count)]
    each = zip(references, alone, strict=True)
    return {
        "fresh": nearest_distance(fresh, memory.banks[0]).numpy() / 2,
        "naive": nearest_distance(references, memory.banks[0]).numpy() / 2,
        "leave_one_out": torch.stack([nearest_distance(one, others.banks[0]) for one, others in each]).numpy() / 2,
    }


def simulate(n: int, rate: float, draws: int) -> dict[str, SimpleNamespace]:
    """Return the rates of false alarms and of flagged pixels in new pictures, and what was guaranteed."""
    torch.manual_seed(n)
    found: dict[str, list[tuple[float, ...]]] = {"leave_one_out": [], "naive": [], "split": []}
    for _ in range(draws):
        kinds = torch.randn(6, WIDTH)
        pictures, fresh = normal_pictures(2 * n, kinds), normal_pictures(FRESH, kinds)
        maps = memory_maps(pictures[:n], torch.cat([fresh, pictures[n:]]))
        maps["split"] = maps["fresh"][FRESH:]
        for way, rows in found.items():
            image = from_normal_scores(maps[way].max(axis=1), rate, highest=1)
            pixel = from_normal_maps(maps[way], rate)
            new = maps["fresh"][:FRESH]
            alarms = np.mean(
                [Thresholds(None, image.threshold).label(score) == "anomalous" for score in new.max(axis=1)]
            )
            flagged = Thresholds(pixel.threshold, None).mask(new).mean()
            rows.append((alarms, flagged, image.false_alarm_bound, pixel.false_alarm_bound))
    return {way: _summary(np.array(rows)) for way, rows in found.items()}


def _summary(rows: np.ndarray) -> SimpleNamespace:
    means, errors = rows.mean(axis=0), rows.std(axis=0) / len(rows) ** 0.5
    (alarms, flagged, bound, pixel_bound), (error, pixel_error) = means, errors[:2]
    return SimpleNamespace(
        alarms=alarms, flagged=flagged, bound=bound, pixel_bound=pixel_bound, error=error, pixel_error=pixel_error
    )


@pytest.mark.parametrize(("n", "rate", "draws"), [(4, 0.2, 400), (19, 0.1, 200), (39, 0.05, 150)])
def test_thresholds_with_references_keep_their_promise(n, rate, draws):
    """
    The rate of false alarms on new normal pictures, averaged over many sets of references, is at most the one stated.

    References scored against a memory with themselves have no distance, so that nearly every new picture is flagged:
    this simulation can fail.
    """
    found = simulate(n, rate, draws)
    for way in ("leave_one_out", "split"):
        seen = found[way]
        assert seen.bound <= rate + 1e-9 and seen.pixel_bound <= rate + 1e-9
        assert seen.alarms <= seen.bound + 3 * seen.error, way
        assert seen.flagged <= seen.pixel_bound + 3 * seen.pixel_error, way
        # not by flagging nothing
        assert seen.alarms > 0.3 * seen.bound and seen.flagged > 0.1 * seen.pixel_bound, way
    naive = found["naive"]
    assert naive.alarms > naive.bound + 0.5 and naive.flagged > naive.pixel_bound + 0.3
