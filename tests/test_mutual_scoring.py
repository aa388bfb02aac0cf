"""Mutual scoring against the numbers of the authors' code, and what its results may not depend on."""

import json
from functools import lru_cache

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel

from tests.common import FIXTURES
from vcp_clip_hf import mutual_scoring
from vcp_clip_hf.mutual_scoring import (
    MutualScoring,
    lnamd,
    mutual_scores,
    mutual_scoring_cost,
    patch_scores,
    rscin,
    score_together,
)


FOLDER = FIXTURES / "rivals" / "musc"
TOLERANCE = 1e-5


@lru_cache
def golden() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "expected.safetensors")


@lru_cache
def settings() -> dict:
    return json.loads((FOLDER / "config.json").read_text())


def golden_scoring(**fields) -> MutualScoring:
    config = settings()
    return MutualScoring(
        **{
            "layers": config["feature_layers"],
            "degrees": config["r_list"],
            "interval": config["interval"],
            "rescore_neighbors": config["rscin_k"],
            **fields,
        }
    )


def backbone() -> CLIPModel:
    config = settings()
    text = {**config["text"], "intermediate_size": 4 * config["text"]["hidden_size"]}
    vision = {**config["vision"], "intermediate_size": 4 * config["vision"]["hidden_size"]}
    common = {"hidden_act": config["hidden_act"], "projection_dim": config["projection_dim"]}
    clip = CLIPModel(
        CLIPConfig(text_config={**text, **common}, vision_config={**vision, **common}, projection_dim=24)
    ).eval()
    weights = load_file(FOLDER / "backbone.safetensors")
    image_part = {name: value for name, value in weights.items() if name.startswith(("vision", "visual"))}
    missing, unexpected = clip.load_state_dict(image_part, strict=False)
    assert not unexpected and not [name for name in missing if name.startswith(("vision", "visual"))]
    return clip


def states() -> dict[int, torch.Tensor]:
    return {layer: golden()[f"patch_tokens_{layer}"] for layer in settings()["feature_layers"]}


def unit_vectors(*shape: int) -> torch.Tensor:
    return normalize(torch.randn(*shape), dim=-1)


def by_definition(features: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Return the scores of patches as the method is written: all distances in float64, sorted."""
    features = features.double()
    count, rows = len(features), []
    for i in range(count):
        nearest = torch.stack([torch.cdist(features[i], features[j]).amin(dim=1) for j in range(count) if j != i])
        ranks = slice(int(low * (count - 1)), int(high * (count - 1)))
        rows.append(nearest.sort(dim=0).values[ranks].mean(dim=0))
    return torch.stack(rows)


# The authors' numbers


def test_image_tower_without_antialiasing():
    """MuSc resizes the position table without antialiasing, as transformers does."""
    clip, expected = backbone(), golden()
    with torch.no_grad():
        outputs = clip.vision_model(expected["pixel_values"], interpolate_pos_encoding=True, output_hidden_states=True)
        embeds = clip.visual_projection(outputs.pooler_output)
    for layer, tokens in states().items():
        torch.testing.assert_close(outputs.hidden_states[layer], tokens, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(embeds, expected["image_embeds"], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(normalize(embeds, dim=-1), expected["class_tokens"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("degree", [1, 3, 5])
@pytest.mark.parametrize("layer", [3, 12])
def test_neighborhood_averages(degree, layer):
    found = lnamd(states()[layer][:, 1:], (7, 7), degree)
    torch.testing.assert_close(found, golden()[f"lnamd_r{degree}_layer{layer}"], rtol=0, atol=TOLERANCE)


def test_scores_and_maps():
    expected = golden()
    found = score_together(states(), expected["image_embeds"], (7, 7), (56, 56), golden_scoring())
    for name, value in (
        ("msm_scores", found.patch_scores),
        ("anomaly_map", found.anomaly_maps),
        ("image_score_raw", found.raw_scores),
        ("image_score", found.image_scores),
    ):
        assert value.dtype == expected[name].dtype, name
        torch.testing.assert_close(value, expected[name], rtol=0, atol=TOLERANCE, msg=name)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_rescored_images(k):
    found = rscin(golden()["image_score_raw"], golden()["class_tokens"], [k])
    torch.testing.assert_close(found, golden()[f"rscin_k{k}"], rtol=0, atol=TOLERANCE)


def test_the_golden_has_no_other_quantity():
    names = {"pixel_values", "image_embeds", "class_tokens", "msm_scores", "anomaly_map", "image_score_raw"}
    names |= {"image_score", *(f"patch_tokens_{layer}" for layer in (3, 6, 9, 12))}
    names |= {f"lnamd_r{degree}_layer{layer}" for degree in (1, 3, 5) for layer in (3, 12)}
    assert set(golden()) == names | {f"rscin_k{k}" for k in (1, 2, 3)}


# By definition


@pytest.mark.parametrize(("count", "interval"), [(5, (0.0, 0.3)), (9, (0.0, 0.3)), (8, (0.2, 0.7)), (6, (0.0, 1.0))])
def test_scores_are_the_mean_of_the_chosen_ranks(count, interval):
    features = unit_vectors(count, 12, 8)
    found = mutual_scores(features, interval)
    torch.testing.assert_close(found, by_definition(features, *interval), rtol=0, atol=1e-6)


@pytest.mark.parametrize("block_bytes", [1, 4000, 9000, 40_000])
def test_blocks_change_nothing(block_bytes):
    features = unit_vectors(11, 12, 8)
    torch.testing.assert_close(
        mutual_scores(features, block_bytes=block_bytes), mutual_scores(features), rtol=0, atol=1e-6
    )


def test_distances_in_a_file_change_nothing():
    features = unit_vectors(7, 12, 8)
    assert torch.equal(mutual_scores(features, memory_limit=0), mutual_scores(features))


def test_identical_pictures_have_distance_zero():
    features = unit_vectors(1, 12, 64).expand(6, -1, -1)
    found = mutual_scores(features)
    assert found.min() >= 0 and found.max() < 1e-3


def test_what_no_other_picture_has_scores_highest():
    features = unit_vectors(1, 12, 64).repeat(7, 1, 1)
    features[2, 5] = unit_vectors(64)
    found = mutual_scores(features)
    assert found.argmax() == 2 * 12 + 5 and found.max() > 0.5
    assert found.flatten().topk(2).values[1] < 1e-3


def test_grids_need_not_be_square():
    tokens = torch.randn(2, 15, 4)
    found = lnamd(tokens, (3, 5), 3)
    values = (tokens - tokens.mean(dim=(1, 2), keepdim=True)) / (
        tokens.var(dim=(1, 2), correction=0, keepdim=True) + 1e-5
    ).sqrt()
    padded = torch.nn.functional.pad(values.unflatten(1, (3, 5)), (0, 0, 1, 1, 1, 1))
    mean = sum(padded[:, row : row + 3, column : column + 5] for row in range(3) for column in range(3)) / 9
    torch.testing.assert_close(found, normalize(mean.flatten(1, 2), dim=-1), rtol=0, atol=1e-6)


def test_every_pair_is_reported():
    pairs = []
    patch_scores(
        {1: torch.randn(6, 12, 8), 2: torch.randn(6, 12, 8)},
        (3, 4),
        golden_scoring(layers=[1, 2]),
        4000,
        10,
        pairs.append,
    )
    assert sum(pairs) == mutual_scoring_cost(6, (3, 4), 8, golden_scoring(layers=[1, 2])).comparisons == 15 * 2 * 3


def test_subsets_are_judged_by_themselves():
    hidden, embeds = {1: torch.randn(21, 13, 8)}, torch.randn(21, 6)
    scoring = MutualScoring(degrees=[1, 3], subset_size=10)
    whole = score_together(hidden, embeds, (3, 4), (12, 16), scoring)
    parts = [
        score_together({1: hidden[1][part]}, embeds[part], (3, 4), (12, 16), MutualScoring(degrees=[1, 3]))
        for part in (slice(0, 7), slice(7, 14), slice(14, 21))
    ]
    assert torch.equal(whole.anomaly_maps, torch.cat([part.anomaly_maps for part in parts]))
    # scores of images are compared over all of them
    torch.testing.assert_close(whole.image_scores, rscin(whole.raw_scores, normalize(embeds, dim=-1)))
    assert whole.image_scores.dtype == torch.float32


def test_scores_without_rescoring_are_the_maxima():
    scoring = MutualScoring(rescore_neighbors=())
    found = score_together({1: torch.randn(5, 13, 8)}, torch.randn(5, 6), (3, 4), (12, 16), scoring)
    assert torch.equal(found.image_scores, found.anomaly_maps.flatten(1).amax(dim=1).float())


def test_equal_scores_stay_defined():
    assert torch.equal(rscin(torch.ones(6), unit_vectors(6, 4)), torch.zeros(6))


def test_cost():
    scoring = MutualScoring(layers=[6, 12, 18, 24])
    cost = mutual_scoring_cost(100, (37, 37), 1024, scoring)
    assert cost.comparisons == 4950 * 12 and cost.flops == 4950 * 12 * 2 * 1369**2 * 1024
    assert cost.token_bytes == 100 * 4 * 1369 * 1024 * 4 and cost.distance_bytes == 100 * 100 * 1369 * 4
    halves = mutual_scoring_cost(100, (37, 37), 1024, MutualScoring(layers=scoring.layers, subset_size=50))
    assert halves.comparisons == 2 * 1225 * 12 and halves.token_bytes * 2 == cost.token_bytes
    assert "100 images" in cost.describe() and "228 TFLOP" in cost.describe()


# What is refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"degrees": [1, 2]}, "must be odd"),
        ({"degrees": []}, "at least one"),
        ({"degrees": [3, 3]}, "different"),
        ({"interval": (0.3, 0.3)}, "low < high"),
        ({"interval": (0, 1.5)}, "low < high"),
        ({"subset_size": 9}, "at least 10"),
        ({"rescore_neighbors": [0]}, "1 or more"),
        ({"zero_shot_weight": 1.5}, r"\[0, 1\]"),
        ({"layers": [1.5]}, "whole numbers"),
    ],
)
def test_settings_out_of_range(fields, message):
    with pytest.raises(ValueError, match=message):
        MutualScoring(**fields)


def test_too_few_pictures():
    with pytest.raises(ValueError, match=r"At least 5 images .* got 4"):
        mutual_scores(unit_vectors(4, 12, 8))
    with pytest.raises(ValueError, match=r"no rank among the 4 other images"):
        mutual_scores(unit_vectors(5, 12, 8), (0.0, 0.2))
    with pytest.raises(ValueError, match="5 images cannot be averaged over 9"):
        rscin(torch.rand(5), unit_vectors(5, 4), [1, 8, 9])


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"expected \(B, 3 \* 4, D\)"):
        lnamd(torch.randn(2, 13, 8), (3, 4), 1)
    with pytest.raises(ValueError, match="degree=2"):
        lnamd(torch.randn(2, 12, 8), (3, 4), 2)
    with pytest.raises(ValueError, match="has 4 blocks"):
        MutualScoring(layers=[5]).on([1, 2], 4)


def test_products_in_bfloat16_are_added_in_float32():
    """The product of a GPU, with the type that it is asked for; fake tensors check it without one."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        row, targets = (torch.empty(count, 8, device="cuda", dtype=torch.bfloat16) for count in (3, 5))
        out = torch.empty(3, 5, device="cuda")
        mutual_scoring._multiply(row, targets, out)
        assert out.dtype == torch.float32
