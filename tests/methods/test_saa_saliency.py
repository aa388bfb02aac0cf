"""The saliency of SAA+ against loops over positions."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from vcp_clip_hf.methods.saa_saliency import dense_features, make_saliency_network, object_saliency, self_saliency


def unit_vectors(height=5, width=6, depth=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(height, width, depth, generator=generator), dim=-1)


def test_each_position_is_compared_with_all():
    features = unit_vectors()
    vectors = features.reshape(-1, 7).double().numpy()
    for count in (4, 1000):
        expected = [np.sort([0.5 * (1 - a @ b) for b in vectors])[::-1][:count].mean() for a in vectors]
        got = self_saliency(features, count)
        np.testing.assert_allclose(got.flatten(), expected, atol=1e-6)
        assert got.shape == (5, 6) and got.min() >= 0 and got.max() <= 1


def test_an_unusual_position_has_the_highest_saliency():
    features = unit_vectors(1, 1).expand(8, 8, 7).clone()
    features[3, 4] = -features[0, 0]
    saliency = self_saliency(features, 10)
    assert saliency.argmax() == 3 * 8 + 4 and saliency[3, 4] == pytest.approx(1, abs=1e-6)


def test_objects_are_compared_with_the_other_objects():
    features, masks = unit_vectors(), torch.zeros(3, 5, 6, dtype=torch.bool)
    masks[0, :2, :3], masks[1, 1:4, 2:5], masks[2, 4, 5] = True, True, True  # the first two overlap
    vectors, places = features.reshape(-1, 7).double().numpy(), masks.flatten(1).numpy()
    expected = np.zeros(30)
    for own in range(3):
        for a in range(30):
            if places[own, a]:
                # the authors' zero vectors at the object's own positions have the cosine 0
                found = [0.0]
                for b in range(30):
                    if any(places[other, b] for other in range(3) if other != own) and not places[own, b]:
                        found.append(float(vectors[a] @ vectors[b]))
                expected[a] = max(expected[a], 0.5 * (1 - max(found)))
    np.testing.assert_allclose(object_saliency(features, masks).flatten(), expected, atol=1e-6)


def test_a_single_object_or_none_has_nothing_to_be_compared_with():
    features, mask = unit_vectors(), torch.ones(1, 5, 6, dtype=torch.bool)
    assert torch.equal(object_saliency(features, mask), torch.full((5, 6), 0.5))
    assert not object_saliency(features, mask[:0]).any() and not object_saliency(features, ~mask).any()


def test_levels_are_repeated_to_the_size_of_the_first():
    levels = [torch.rand(1, 2, 4, 4), torch.rand(1, 3, 2, 2), torch.rand(1, 1, 1, 1)]
    features = dense_features(levels)
    joined = torch.stack([*levels[0][0, :, 3, 1], *levels[1][0, :, 1, 0], *levels[2][0, :, 0, 0]])
    assert torch.allclose(features[3, 1], joined / joined.norm())


def test_without_timm_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install 'vcp-clip-hf\[saa\]'"):
        make_saliency_network("wide_resnet50_2")


def test_the_network_of_timm_returns_the_levels_1_to_3(monkeypatch):
    # timm is not among the requirements of the tests: what is asked of it
    asked, timm = {}, ModuleType("timm")
    timm.create_model = lambda name, **options: asked.update(options, name=name)
    monkeypatch.setitem(sys.modules, "timm", timm)
    make_saliency_network("wide_resnet50_2", pretrained=True)
    assert asked == {"name": "wide_resnet50_2", "pretrained": True, "features_only": True, "out_indices": (1, 2, 3)}
