"""Ranges of thresholds, the comparison with them, and the settings that they hold for."""

import logging

import numpy as np
import pytest
import torch

from vcp_clip_hf.thresholds import (
    TOLERANCE,
    Thresholds,
    _warn_once,
    calibrated_thresholds,
    differing_settings,
    resolve_thresholds,
)


SETTINGS = {"score_mode": "max", "top_k_fraction": 0.1, "size": [48, 48], "tiling": None, "prompts": {"normal": [[1]]}}
CALIBRATION = {"image": {"threshold": 0.7}, "pixel": {"threshold": 0.4}, "settings": SETTINGS}
STORED = {"threshold": 0.4, "image_threshold": 0.7, "calibration": CALIBRATION}


@pytest.fixture(autouse=True)
def _nothing_warned_before():
    _warn_once.cache_clear()


def test_an_image_threshold_is_filled_in_where_scores_are_values_of_the_map():
    assert Thresholds.of(0.5, None, "max") == Thresholds(0.5, 0.5)
    assert Thresholds.of(0.5, 0.7, "max") == Thresholds(0.5, 0.7)
    assert Thresholds.of(0.5, None, "top_k") == Thresholds(0.5, None)
    assert Thresholds.of(0.5, None, "image_head") == Thresholds(0.5, None)
    assert Thresholds.of(None, None, "max") == Thresholds(None, None)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 0.7, 1.0, np.float64(0.1), np.float32(0.7)])
def test_arrays_tensors_and_scores_are_compared_alike(threshold):
    """Also values that equal the threshold in float32 only."""
    values = np.array([[0.1, 0.3], [0.7, 0.5], [0.0, 1.0]], np.float32)
    thresholds = Thresholds.of(threshold, None, "max")
    mask = thresholds.mask(values)
    np.testing.assert_array_equal(mask, thresholds.mask(torch.from_numpy(values)))
    assert mask[values == np.float32(threshold)].all()
    for value, flagged in zip(values.flat, mask.flat, strict=True):
        assert (thresholds.label(float(value)) == "anomalous") == flagged


def test_the_last_digits_do_not_decide():
    """A threshold is often equal to a score, and another batch size changes a score by about 1e-7."""
    generator = np.random.default_rng(0)
    scores = generator.random(2000, dtype=np.float32)
    noise = generator.uniform(-3e-7, 3e-7, 2000).astype(np.float32)
    for score, changed in zip(scores, scores + noise, strict=True):
        thresholds = Thresholds(float(score), float(score))
        assert thresholds.label(float(changed)) == "anomalous" and thresholds.mask(np.array([changed])).all()
        below = np.float32(score - 2.5 * TOLERANCE)
        assert thresholds.label(float(below)) == "normal" and not thresholds.mask(np.array([below])).any()


@pytest.mark.parametrize("value", [50, -1, 2.5, float("nan"), float("inf"), "0.5", True, [0.5, 0.6]])
@pytest.mark.parametrize("score_mode", ["max", "top_k", "image_head"])
def test_values_outside_the_scale_are_refused(value, score_mode):
    with pytest.raises(ValueError, match=r"^threshold=.* must be a number in \[0, 1\], the scale of a map"):
        Thresholds.of(value, None, score_mode)
    highest = {"max": 1, "top_k": 2, "image_head": 1}[score_mode]
    with pytest.raises(ValueError, match=rf"^image_threshold=.* in \[0, {highest}\], the scale of the score"):
        Thresholds.of(None, value, score_mode)


def test_each_score_has_its_own_scale():
    assert Thresholds.of(None, 1.5, "top_k").image == 1.5
    with pytest.raises(ValueError, match=r"image_threshold=1\.5"):
        Thresholds.of(None, 1.5, "max")


def test_settings_are_compared_as_they_are_after_saving():
    assert differing_settings(CALIBRATION, {**SETTINGS, "size": (48, 48), "prompts": {"normal": ((1,),)}}) == {}
    assert differing_settings(CALIBRATION, {**SETTINGS, "size": [64, 48]}) == {"size": ([48, 48], [64, 48])}
    assert differing_settings(CALIBRATION, {**SETTINGS, "top_k_fraction": 0.2}) == {}, "only top_k reads it"
    of_head = {"settings": {**SETTINGS, "score_mode": "image_head"}}
    assert differing_settings(of_head, {**of_head["settings"], "top_k_fraction": 0.2}) == {}
    assert set(differing_settings(of_head, {**SETTINGS, "top_k_fraction": 0.2})) == {"score_mode"}
    assert differing_settings(CALIBRATION, {"unknown": 1}) == differing_settings(None, SETTINGS) == {}
    top_k = {"settings": {"score_mode": "top_k", "top_k_fraction": 0.1}}
    assert set(differing_settings(top_k, {"score_mode": "top_k", "top_k_fraction": 0.2})) == {"top_k_fraction"}


def test_a_calibration_of_version_0_1_0_is_held_to_its_score():
    former = {"image": {"threshold": 0.7}, "score_mode": "top_k"}
    assert differing_settings(former, SETTINGS) == {"score_mode": ("top_k", "max")}
    assert differing_settings({"image": {"threshold": 0.7}}, SETTINGS) == {}
    assert calibrated_thresholds(former) == [0.7] and calibrated_thresholds(None) == []


@pytest.mark.parametrize(
    ("given", "changed", "expected"),
    [
        ({}, {}, (0.4, 0.7)),
        ({"threshold": 0.5}, {}, (0.5, 0.7)),
        ({}, {"tiling": {"tile_size": 48}}, (None, None)),
        ({"threshold": 0.5}, {"tiling": {"tile_size": 49}}, (0.5, None)),
        ({"threshold": 0.5, "image_threshold": 0.6}, {"tiling": {"tile_size": 50}}, (0.5, 0.6)),
        ({"threshold": None}, {"prompts": {"normal": [[2]]}}, (None, None)),
    ],
)
def test_thresholds_hold_for_the_settings_of_their_calibration(given, changed, expected, caplog):
    with caplog.at_level(logging.WARNING, logger="vcp_clip_hf.thresholds"):
        chosen = resolve_thresholds(given, STORED, {**SETTINGS, **changed})
    assert (chosen["threshold"], chosen["image_threshold"]) == expected
    if ("threshold" in given and given["threshold"] is not None) or not changed:
        assert not caplog.records, "a threshold of the call is the caller's own, and serves for the label"
    elif "tiling" in changed:
        assert f"tiling was None, is {changed['tiling']}. Results have no masks and no labels." in caplog.text
    else:
        assert "other prompts" in caplog.text and "threshold=..." in caplog.text


def test_another_data_type_is_warned_of(caplog):
    stored = {**STORED, "calibration": {**CALIBRATION, "settings": {**SETTINGS, "dtype": "float32"}}}
    with caplog.at_level(logging.WARNING, logger="vcp_clip_hf.thresholds"):
        for own in (STORED, stored):  # earlier versions did not record it
            assert set(resolve_thresholds({}, own, {**SETTINGS, "dtype": "float32"}).values()) == {0.4, 0.7}
        resolve_thresholds({}, STORED, {**SETTINGS, "dtype": "float16"})
        resolve_thresholds({"threshold": 0.5, "image_threshold": 0.5}, stored, {**SETTINGS, "dtype": "float16"})
        assert not caplog.records
        chosen = resolve_thresholds({}, stored, {**SETTINGS, "dtype": "float16"})
    assert set(chosen.values()) == {0.4, 0.7}
    assert "(threshold, image_threshold) were measured in float32, and this call computes in float16" in caplog.text


def test_a_missing_label_is_told_where_the_threshold_of_the_call_cannot_give_it(caplog):
    stored = {**STORED, "calibration": {**CALIBRATION, "settings": {"score_mode": "top_k", "tiling": None}}}
    with caplog.at_level(logging.WARNING, logger="vcp_clip_hf.thresholds"):
        chosen = resolve_thresholds({"threshold": 0.5}, stored, {"score_mode": "top_k", "tiling": {"tile_size": 51}})
    assert chosen == {"threshold": 0.5, "image_threshold": None}
    assert "(image_threshold) do not apply" in caplog.text and "Results have no labels." in caplog.text


def test_a_threshold_that_was_set_by_hand_holds_always():
    by_hand = {**STORED, "threshold": 0.45}
    other = {**SETTINGS, "size": [96, 96]}
    assert resolve_thresholds({}, by_hand, other) == {"threshold": 0.45, "image_threshold": None}
