"""Smoothing against scipy, resizing, settings out of range."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from vcp_clip_hf import VCPCLIPImageProcessor
from vcp_clip_hf.anomaly_scoring import AUTHORS_SCORING, AnomalyScoring, gaussian_smooth, resize_map


@pytest.mark.parametrize(("size", "sigma"), [((64, 64), 8), ((40, 23), 8), ((16, 90), 2.5), ((5, 3), 4), ((1, 7), 1)])
def test_smoothing_equals_scipy(size, sigma):
    """Check this also if the kernel is longer than the map."""
    maps = torch.rand(2, *size)
    expected = np.stack([gaussian_filter(each.numpy(), sigma) for each in maps])
    np.testing.assert_allclose(gaussian_smooth(maps, sigma).numpy(), expected, atol=1e-6)
    assert gaussian_smooth(maps, 0) is maps


def test_maps_of_every_shape_are_resized():
    maps = torch.rand(3, 2, 5, 7)
    resized = resize_map(maps, (10, 21))
    assert resized.shape == (3, 2, 10, 21)
    torch.testing.assert_close(resize_map(maps[1, 1], (10, 21)), resized[1, 1])
    assert resize_map(maps, (5, 7)) is maps


def test_the_processor_starts_from_the_authors_smoothing_and_fraction():
    processor = VCPCLIPImageProcessor()
    assert (processor.smoothing_sigma, processor.top_k_fraction) == (8, 2000 / 518**2)
    scoring = AnomalyScoring(threshold=None, image_threshold=None, **AUTHORS_SCORING)
    maps = torch.rand(1, 518, 518)
    expected = maps.flatten().sort().values[-2000:].mean() * 2
    assert scoring.score_tensor(maps, [maps, maps]).tolist() == [pytest.approx(expected.item(), abs=1e-5)]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"score_mode": "mean"}, "score_mode='mean'"),
        ({"top_k_fraction": 1.5}, "top_k_fraction=1.5"),
        ({"smoothing_sigma": -1}, "smoothing_sigma=-1"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        AnomalyScoring(**{"threshold": 0.5, "image_threshold": 0.5, **AUTHORS_SCORING, **setting})


def scoring(**settings) -> AnomalyScoring:
    return AnomalyScoring(**{"threshold": None, "image_threshold": None, **AUTHORS_SCORING, **settings})


def test_the_score_of_the_image_head_is_the_models_own():
    own, maps = torch.tensor([0.25, 0.75]), torch.rand(2, 8, 8)
    of_head = scoring(score_mode="image_head")
    assert of_head.score_tensor(maps, [maps], own).tolist() == [0.25, 0.75]
    assert torch.equal(of_head.score_tensor(maps, [maps], own.double()), own)
    for other in ("max", "top_k"):
        of_other = scoring(score_mode=other)
        assert torch.equal(of_other.score_tensor(maps, [maps], own), of_other.score_tensor(maps, [maps]))
    with pytest.raises(ValueError, match=r"image_scores is None.*train an image head for it: `vcp-clip train"):
        of_head.score_tensor(maps, [maps])


def test_the_score_of_the_image_head_has_a_threshold_of_its_own():
    of_head = scoring(score_mode="image_head", threshold=0.5)
    assert of_head.thresholds.pixel == 0.5 and of_head.thresholds.image is None
    result = scoring(score_mode="image_head", threshold=0.5, image_threshold=0.9).result(torch.ones(4, 4), 0.8)
    assert result["label"] == "normal" and result["mask"].all()
    with pytest.raises(ValueError, match=r"image_threshold=1.5 must be a number in \[0, 1\], the scale of the score"):
        scoring(score_mode="image_head", image_threshold=1.5)


def test_the_score_of_the_image_head_cannot_be_restricted_to_a_region():
    scoring(score_mode="top_k").check_region(True)
    scoring(score_mode="image_head").check_region(False)
    with pytest.raises(ValueError, match=r"scores the whole image.*Use score_mode='max' or 'top_k' with a region"):
        scoring(score_mode="image_head").check_region(True)
