"""The stem branch: its formula, its gradients, how its map is fused, and how it joins and leaves a checkpoint."""

import json
import logging
import math

import accelerate
import pytest
import torch
from torch import nn

from tests.common import (
    HYBRID_VISION,
    ROUNDING,
    means_around,
    pixels,
    tiny_config,
    tiny_hybrid,
    tiny_model,
    tiny_model_with_stem_branch,
)
from vcp_clip_hf import VCPCLIPConfig, VCPCLIPImageProcessor, VCPCLIPModel, stem_branch, thresholds
from vcp_clip_hf.accelerated_inference import accelerate_inference, accelerated_or_plain, freeze_for_export
from vcp_clip_hf.convolutional_stem import STEMS
from vcp_clip_hf.losses import segmentation_loss
from vcp_clip_hf.model_card import model_card
from vcp_clip_hf.pipeline_anomaly_segmentation import AnomalySegmentationPipeline
from vcp_clip_hf.stem_branch import VCPCLIPStemBranch, mean_of_similar
from vcp_clip_hf.training_loss import image_level_loss, training_loss


BRANCH = "stem_branch."
VARIANTS = {
    "beside the tower": {},
    "read by the tower too": {"vision_config": HYBRID_VISION},
    "baseline": {"use_pre_vcp": False, "use_post_vcp": False},
    "with image head": {"use_image_head": True},
}


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


# --- the map --------------------------------------------------------------------------------------------------------


def convolved(maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Convolve maps (C, h, w) with a 3 x 3 kernel, patch by patch, zeros outside."""
    _, height, width = maps.shape
    padded = torch.zeros(maps.shape[0], height + 2, width + 2)
    padded[:, 1:-1, 1:-1] = maps
    found = torch.zeros(len(weight), height, width)
    for row in range(height):
        for column in range(width):
            window = padded[:, row : row + 3, column : column + 3]
            found[:, row, column] = (weight * window).sum(dim=(1, 2, 3)) + bias
    return found


def deviation(maps: torch.Tensor) -> torch.Tensor:
    return maps.var(dim=(1, 2), correction=0, keepdim=True).sqrt()


def similar_by_hand(features: torch.Tensor, step: int = 2) -> torch.Tensor:
    """Return the mean of the patches (C, h, w) most like each one: every second one, at least four patches away."""
    _, height, width = features.shape
    found = torch.zeros_like(features)
    for row in range(height):
        for column in range(width):
            places = [(y, x) for y in range(0, height, step) for x in range(0, width, step)]
            far = [(y, x) for y, x in places if max(abs(y - row), abs(x - column)) > 3]
            others = [features[:, y, x] for y, x in far or places]
            weights = [math.exp(float(features[:, row, column] @ each) / 3 / 0.02) for each in others]
            for each, weight in zip(others, weights, strict=True):
                found[:, row, column] += each * weight / sum(weights)
    return found


def logits_by_hand(model: VCPCLIPModel, image: torch.Tensor) -> torch.Tensor:
    """Compute the mean logits (2h, 2w) of the cells of one image from the formulas of the documentation."""
    branch, grid = model.stem_branch, (image.shape[1] // 8, image.shape[2] // 8)
    outputs = model(image[None], output_hidden_states=["stem"])
    features = outputs.stem_features[0].T.unflatten(1, grid)
    mean = features.mean(dim=(1, 2), keepdim=True)
    to_surroundings = 24 * (features - means_around(features, 5))
    variation = 0.3 + deviation(to_surroundings)
    to_similar = features - similar_by_hand(features)
    stages = {176: (24, 40, 112), 192: (24, 48, 120)}[len(features)]
    distances = torch.stack([each.square().sum(dim=0).sqrt() for each in to_similar.split(stages)])
    relative = distances / (0.02 + distances.mean(dim=(1, 2), keepdim=True))
    compared = [each / variation for each in (24 * (features - mean), to_surroundings, 24 * to_similar)]
    read = torch.cat([8 * features, *compared, 6 * distances, relative])

    cells, surroundings = torch.zeros(56, 2 * grid[0], 2 * grid[1]), torch.zeros(56, 2 * grid[0], 2 * grid[1])
    of_patches = outputs.stem_cells[0].T.unflatten(0, (56, 4)).unflatten(2, grid)
    of_surroundings = means_around(of_patches.mean(dim=1), 2)
    for cell in range(4):
        place = (slice(None), slice(cell // 2, None, 2), slice(cell % 2, None, 2))
        cells[place], surroundings[place] = of_patches[:, cell], of_surroundings
    variation = 0.1 + deviation(cells - surroundings)
    cell_mean = cells.mean(dim=(1, 2), keepdim=True)
    read_cells = torch.cat([(cells - cell_mean) / variation, (cells - surroundings) / variation])
    text = outputs.text_embeds[0]
    return torch.stack([head_by_hand(branch, head, read, read_cells, text) for head in range(3)]).mean(dim=0)


def head_by_hand(
    branch: VCPCLIPStemBranch, head: int, read: torch.Tensor, read_cells: torch.Tensor, text: torch.Tensor
) -> torch.Tensor:
    """Compute the logits (2h, 2w) of one head: its channels of patches and cells read its own channels only."""
    own, of_cells = (slice(width * head, width * (head + 1)) for width in (64, 32))
    maps = pointwise(branch.entry, own, read)
    for norm, convolution in zip(branch.norms, branch.neighbors, strict=True):
        maps = normalized(norm, own, nn.functional.gelu(maps))
        maps = convolved(maps, convolution.weight[own], convolution.bias[own])
    cosines = in_cells(cosines_by_hand(branch.projections[head], nn.functional.gelu(maps), text))
    maps = in_cells(pointwise(branch.to_cells, of_cells, nn.functional.gelu(maps)))
    maps = maps + pointwise(branch.cell_entry, of_cells, read_cells)
    for norm, convolution in zip(branch.cell_norms, branch.cell_neighbors, strict=True):
        maps = normalized(norm, of_cells, nn.functional.gelu(maps))
        maps = convolved(maps, convolution.weight[of_cells], convolution.bias[of_cells])
    cosines = cosines + cosines_by_hand(branch.cell_projections[head], nn.functional.gelu(maps), text)
    return branch.logit_scale[head].exp() * cosines[0]


def cosines_by_hand(projection: nn.Linear, maps: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Compare the tokens of maps (C, h, w) with the difference of the texts, (1, h, w)."""
    tokens = torch.einsum("dc,chw->dhw", projection.weight, maps) + projection.bias[:, None, None]
    return torch.einsum("d,dhw->hw", text[1] - text[0], tokens / tokens.norm(dim=0))[None]


def pointwise(convolution: nn.Conv2d, channels: slice, maps: torch.Tensor) -> torch.Tensor:
    found = torch.einsum("dc,chw->dhw", convolution.weight[channels, :, 0, 0], maps)
    return found + convolution.bias[channels, None, None]


def normalized(norm: nn.GroupNorm, channels: slice, maps: torch.Tensor) -> torch.Tensor:
    """Normalize groups of 8 channels over the image."""
    groups = maps.unflatten(0, (-1, 8))
    spread = groups.var(dim=(1, 2, 3), correction=0, keepdim=True)
    groups = (groups - groups.mean(dim=(1, 2, 3), keepdim=True)) / (spread + norm.eps).sqrt()
    return groups.flatten(0, 1) * norm.weight[channels, None, None] + norm.bias[channels, None, None]


def in_cells(maps: torch.Tensor) -> torch.Tensor:
    """Interpolate patches (C, h, w) at the middles of their cells, (C, 2h, 2w): 3/4 of its patch, 1/4 of the next."""
    for dim in (1, 2):
        first, last = maps.narrow(dim, 0, 1), maps.narrow(dim, maps.shape[dim] - 1, 1)
        before = torch.cat([first, maps], dim).narrow(dim, 0, maps.shape[dim])
        after = torch.cat([maps, last], dim).narrow(dim, 1, maps.shape[dim])
        maps = torch.stack([0.75 * maps + 0.25 * before, 0.75 * maps + 0.25 * after], dim + 1).flatten(dim, dim + 1)
    return maps


def tokens_of_stages(*size: int) -> torch.Tensor:
    """Return random features (1, 176, h, w), whose stages have unit length."""
    stages = torch.randn(1, 176, *size, generator=torch.Generator().manual_seed(0)).split((24, 40, 112), dim=1)
    return torch.cat([nn.functional.normalize(stage, dim=1) for stage in stages], dim=1)


def test_similar_patches_are_looked_for_elsewhere_in_the_image():
    features = tokens_of_stages(12, 9)
    close(mean_of_similar(features, 3)[0], similar_by_hand(features[0]))
    other = features.clone()
    other[..., 0, 0] = 0.9 * other[..., 0, 0] + 0.1 * other[..., 10, 8]  # a read position, far from the last one
    assert not torch.equal(mean_of_similar(other, 3)[..., 11, 8], mean_of_similar(features, 3)[..., 11, 8])
    assert torch.equal(mean_of_similar(other, 3)[..., 2, 2], mean_of_similar(features, 3)[..., 2, 2]), "too near"


def test_a_large_image_has_candidates_that_are_farther_apart(monkeypatch):
    features = tokens_of_stages(12, 9)
    monkeypatch.setattr(stem_branch, "_MOST_CANDIDATES", 12)
    close(mean_of_similar(features, 3)[0], similar_by_hand(features[0], step=3))


def test_a_patch_that_is_repeated_has_no_distance_from_similar_ones():
    features = tokens_of_stages(12, 12)
    features[..., 0, 0] = features[..., 10, 10]
    difference = (features - mean_of_similar(features, 3)).norm(dim=1)[0]
    assert difference[10, 10] < 1e-3 and difference[11, 11] > 0.1


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 4)])
def test_a_small_image_has_near_patches_only(size):
    features = tokens_of_stages(*size)
    close(mean_of_similar(features, 3)[0], similar_by_hand(features[0]), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_similar_patches_are_found_in_single_precision(dtype):
    features = tokens_of_stages(12, 9).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = mean_of_similar(features, 3)
    assert found.dtype == dtype and torch.equal(found, mean_of_similar(features.float(), 3).to(dtype))


@torch.no_grad()
@pytest.mark.parametrize("stem", STEMS)
def test_the_logits_are_the_documented_formula(stem):
    vision = {**HYBRID_VISION, "stem": stem, "stem_projection": False}
    # the surroundings have a border
    model, images = tiny_model_with_stem_branch(vision_config=vision), pixels(2, 104, 64)
    maps = model(images).stem_map
    assert maps.shape == (2, 104, 64) and maps.dtype == torch.float32 and maps.std() > 0.02
    for image, found in zip(images, maps, strict=True):
        logits = logits_by_hand(model, image)[None, None]
        expected = nn.functional.interpolate(logits, size=(104, 64), mode="bilinear", align_corners=False)
        close(found, expected[0, 0].sigmoid())


@pytest.mark.parametrize("weight", [0, 0.3, 1])
@torch.no_grad()
def test_the_fused_map_is_the_sigmoid_of_the_mean_of_the_logits(weight):
    model, images = tiny_model_with_stem_branch(stem_branch_weight=weight), pixels(2)
    outputs = model(images)
    of_text = 0.25 * outputs.base_map + 0.75 * outputs.vcp_map
    logits = (1 - weight) * torch.logit(of_text) + weight * torch.logit(outputs.stem_map)
    close(outputs.anomaly_map, logits.sigmoid())
    close(outputs.anomaly_map, of_text if weight == 0 else outputs.anomaly_map)


@torch.no_grad()
def test_the_other_maps_are_those_without_the_branch():
    model, images = tiny_model_with_stem_branch(), pixels(2)
    plain = tiny_model()
    left_out = plain.load_state_dict(model.state_dict(), strict=False).unexpected_keys
    assert all(name.startswith(BRANCH) or ".patch_embedding.stem." in name for name in left_out)
    outputs, expected = model(images), plain(images)
    for name in ("base_map", "vcp_map", "text_embeds", "image_embeds"):
        assert torch.equal(outputs[name], expected[name])
    assert expected.stem_map is None and (outputs.anomaly_map - expected.anomaly_map).abs().max() > 0.01


@torch.no_grad()
def test_a_batch_equals_its_images_one_by_one():
    model, images = tiny_model_with_stem_branch(), pixels(4)
    together = model(images)
    for index in range(4):
        alone = model(images[index : index + 1])
        close(alone.stem_map[0], together.stem_map[index])
        close(alone.anomaly_map[0], together.anomaly_map[index])


@torch.no_grad()
def test_other_words_give_another_map():
    model, images = tiny_model_with_stem_branch(), pixels(1)
    other = tiny_config(normal=("a {} in order",), abnormal=("an {} with a hole",))
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(each[0]) for each in (other.normal_prompt_input_ids, other.abnormal_prompt_input_ids)],
        batch_first=True,
        padding_value=513,
    )
    assert (model(images, prompt_input_ids=ids[:, None]).stem_map - model(images).stem_map).abs().max() > 1e-3


@torch.no_grad()
def test_features_instead_of_pixels():
    model, images = tiny_model_with_stem_branch(), pixels(2)
    expected = model(images, output_hidden_states=["stem"])
    tokens, embeds = model.encode_image(images)
    given = {"patch_tokens": torch.stack(tokens, dim=1), "image_embeds": embeds}
    of_stem = {name: expected[name] for name in ("stem_features", "stem_cells")}
    outputs = model(**given, **of_stem)
    close(outputs.anomaly_map, expected.anomaly_map)
    for name, width in (("stem_features", 176), ("stem_cells", 224)):
        with pytest.raises(ValueError, match=f"has a stem branch: give {name} with patch_tokens"):
            model(**given, **{**of_stem, name: None})
        with pytest.raises(ValueError, match=rf"{name} has shape \(2, 35, {width}\), expected \(2, 36, {width}\)"):
            model(**given, **{**of_stem, name: of_stem[name][:, 1:]})
        with pytest.raises(ValueError, match="the model computes those of pixel_values itself"):
            model(images, **{name: of_stem[name]})
        with pytest.raises(ValueError, match=f"has no stem branch, so it takes no {name}"):
            tiny_model()(**given, **{name: of_stem[name]})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_is_close_and_maps_are_float32(dtype):
    model, images = tiny_model_with_stem_branch(), pixels(2)
    for scale in (model.base_logit_scale, model.vcp_logit_scale, model.stem_branch.logit_scale):
        scale.fill_(2.0)
    expected = model(images).stem_map
    outputs = model.to(dtype)(images.to(dtype))
    assert outputs.stem_map.dtype == outputs.anomaly_map.dtype == torch.float32
    close(outputs.stem_map, expected, atol=0.05)


@torch.no_grad()
def test_offloaded_weights_give_the_same_map():
    model, images = tiny_model_with_stem_branch(), pixels(2)
    expected = model(images).stem_map
    close(accelerate.cpu_offload(model, torch.device("cpu"))(images).stem_map, expected, atol=1e-6)


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trains_clip", [False, True])
def test_the_gradients_of_the_other_parts_are_bit_equal_with_and_without_the_branch(trains_clip):
    fields = {"deep_prompt_dropout": 0, "vision_config": dict(HYBRID_VISION)}
    model, images, labels = tiny_model_with_stem_branch(**fields), pixels(2), torch.zeros(2, 48, 48)
    labels[0, 8:24, 8:24] = 1
    plain = tiny_model(**fields)
    plain.load_state_dict(model.state_dict(), strict=False)
    for each in (plain, model):
        each.clip.requires_grad_(trains_clip)
    losses = []
    for each in (plain, model):
        losses.append(each(images, labels=labels).loss)
        losses[-1].backward()
    parameters = dict(model.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, parameters[name].grad), name
    trained = [name for name, parameter in plain.named_parameters() if parameter.grad is not None]
    assert any(".stem." in name for name in trained) == trains_clip
    of_branch = [parameter.grad for name, parameter in parameters.items() if name.startswith(BRANCH)]
    assert len(of_branch) == 35 and all(each is not None and each.abs().max() > 0 for each in of_branch)
    assert losses[1] > losses[0]


def test_the_loss_of_the_branch_is_the_weighted_cross_entropy_of_its_heads():
    model, images, labels = tiny_model_with_stem_branch(), pixels(2), torch.zeros(2, 48, 48)
    labels[0, 8:24, 8:24] = 1
    outputs = model(images, labels=labels, output_layer_maps=True)
    assert outputs.stem_head_logits.shape == (2, 3, 48, 48)
    close(outputs.stem_head_logits.mean(dim=1).sigmoid(), outputs.stem_map)
    of_abnormal = nn.functional.logsigmoid(outputs.stem_head_logits) * labels[:, None]
    of_normal = nn.functional.logsigmoid(-outputs.stem_head_logits) * (1 - labels[:, None])
    expected = -(4 * of_abnormal + of_normal).mean()
    others = segmentation_loss(outputs.base_layer_maps, labels) + segmentation_loss(outputs.vcp_layer_maps, labels)
    close(outputs.loss - others, expected)
    close(training_loss(outputs, labels, torch.tensor([True, True])), outputs.loss)
    assert model(images, labels=labels).stem_head_logits is None

    # the second image is anomalous, and its mask is unknown: its map must rise somewhere
    outputs = model(images, output_layer_maps=True)
    known = model(images[:1], labels=labels[:1]).loss
    maps = (outputs.base_layer_maps, outputs.vcp_layer_maps, outputs.stem_map[:, None])
    unknown = sum(image_level_loss(each[1:]) for each in maps)
    close(training_loss(outputs, labels, torch.tensor([True, False])), (known + unknown) / 2)


# --- the parts around it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_the_accelerated_copy_gives_the_same_maps(fields):
    model, images = tiny_model_with_stem_branch(**fields), pixels(3)
    for name, parameter in model.named_parameters():
        if name.endswith("logit_scale"):
            parameter.fill_(math.log(1 / 0.07))
    expected = model(images)
    for fast in (accelerate_inference(model), freeze_for_export(model, (48, 48))):
        outputs = fast(images)
        close(outputs.anomaly_map, expected.anomaly_map, atol=1e-6)
        close(outputs.stem_map, expected.stem_map, atol=1e-6)
    kept = accelerated_or_plain(model)
    assert accelerated_or_plain(model, kept) is kept
    for projection in model.stem_branch.cell_projections:
        projection.weight.mul_(2).add_(0.1)
    again = accelerated_or_plain(model, kept)
    close(again(images).stem_map, model(images).stem_map, atol=1e-6)


@torch.no_grad()
def test_the_image_head_reads_the_branch():
    model, images = tiny_model_with_stem_branch(use_image_head=True), pixels(2)
    assert len(model.image_head.prominence_weights) == 2 * 4 + 1
    before = model(images).image_logits
    model.image_head.prominence_weights[-1] += 1
    risen = model(images).image_logits
    assert (risen > before).all()
    for projection in model.stem_branch.cell_projections:
        projection.weight.mul_(-1)
    assert ((model(images).image_logits - risen).abs() > 1e-4).all()


def test_references_are_fused_with_the_map_of_the_branch():
    model = tiny_model_with_stem_branch(reference_layers=["stem", 4])
    pipe = AnomalySegmentationPipeline(model=model, image_processor=VCPCLIPImageProcessor.for_model(model.config))
    image = torch.rand(48, 48, 3).mul(255).byte().numpy()
    before = pipe(image, output_branch_maps=True)
    assert before["stem_map"].shape == (48, 48) and "reference_map" not in before
    pipe.set_references([image], copies="none")
    after = pipe(image, output_branch_maps=True, reference_weight=0.5)
    # an image is not compared with itself
    for name in ("stem_map", "base_map"):
        close(
            torch.as_tensor(after[name]), (torch.as_tensor(before[name]) + torch.as_tensor(after["reference_map"])) / 2
        )
    tiled = pipe(image, output_branch_maps=True, tile_size=24, reference_weight=0)
    assert tiled["stem_map"].shape == (48, 48)


# --- configurations and checkpoints ---------------------------------------------------------------------------------


@torch.no_grad()
def test_a_branch_comes_back_bit_equal_and_can_be_left_out(tmp_path, caplog):
    model, images = tiny_model_with_stem_branch(), pixels(2)
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["use_stem_branch"] is True and stored["stem_branch_weight"] == 0.5
    loaded = VCPCLIPModel.from_pretrained(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert torch.equal(loaded(images).anomaly_map, model(images).anomaly_map)
    with caplog.at_level(logging.WARNING):
        without = VCPCLIPModel.from_pretrained(tmp_path, use_stem_branch=False)
    assert "LOAD REPORT" not in caplog.text and without.stem_branch is None
    assert torch.equal(without(images).vcp_map, model(images).vcp_map)
    assert "stem_branch" not in json.dumps(without.config.to_dict())


def test_a_branch_with_missing_weights_is_an_error(tmp_path):
    """With random weights in their place, the map would be wrong without a word."""
    model = tiny_model_with_stem_branch()
    kept = {name: value for name, value in model.state_dict().items() if "cell_neighbors.1" not in name}
    model.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(OSError, match=r"2 tensors are missing, such as stem_branch\.cell_neighbors\.1"):
        VCPCLIPModel.from_pretrained(tmp_path)
    assert VCPCLIPModel.from_pretrained(tmp_path, use_stem_branch=False).stem_branch is None


def test_an_image_head_fits_a_model_with_a_branch_or_one_without(tmp_path):
    tiny_model_with_stem_branch(use_image_head=True).save_pretrained(tmp_path / "with")
    vision = {**HYBRID_VISION, "stem_projection": False}
    tiny_model(vision_config=vision, use_image_head=True).save_pretrained(tmp_path / "without")
    for name, requested in (("with", False), ("without", True)):
        with pytest.raises(ValueError, match=f"was trained {name} a stem branch and cannot be used"):
            VCPCLIPModel.from_pretrained(tmp_path / name, use_stem_branch=requested)
        model = VCPCLIPModel.from_pretrained(tmp_path / name, use_stem_branch=requested, use_image_head=False)
        assert (model.stem_branch is not None) == requested and model.image_head is None
        assert VCPCLIPModel.from_pretrained(tmp_path / name).image_head is not None


def test_the_uncertainty_of_a_map_includes_the_branch():
    model = tiny_model_with_stem_branch()
    pipe = AnomalySegmentationPipeline(model=model, image_processor=VCPCLIPImageProcessor.for_model(model.config))
    image = torch.rand(48, 48, 3).mul(255).byte().numpy()
    maps = pipe(image, output_uncertainty=True, output_layer_maps=True, output_branch_maps=True)
    stack = [*maps["base_layer_maps"], *maps["vcp_layer_maps"], maps["stem_map"]]
    close(
        torch.as_tensor(maps["uncertainty_map"]), torch.stack(list(map(torch.as_tensor, stack))).std(0, correction=0)
    )


@pytest.mark.parametrize("changed", [{"use_stem_branch": False}, {"stem_branch_weight": 0.2}, {"fusion_weight": 0.5}])
def test_calibrated_thresholds_do_not_hold_for_other_branches(changed, tmp_path, caplog):
    model = tiny_model_with_stem_branch()
    processor = VCPCLIPImageProcessor.for_model(model.config)
    pipe = AnomalySegmentationPipeline(model=model, image_processor=processor)
    images = [torch.rand(48, 48, 3).mul(255).byte().numpy() for _ in range(5)]
    pipe.calibrate(images, false_alarm_rate=0.2)
    assert processor.calibration["settings"]["branch_weights"] == {"fusion_weight": 0.75, "stem_branch_weight": 0.5}
    assert pipe(images[0])["label"] is not None
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)

    other = VCPCLIPModel.from_pretrained(tmp_path, **changed)
    thresholds._warn_once.cache_clear()  # another test may have had the same warning
    with caplog.at_level(logging.WARNING):
        result = AnomalySegmentationPipeline(model=other, image_processor=processor)(images[0])
    assert result["label"] is None and result["mask"] is None
    assert "branch_weights was {'fusion_weight': 0.75, 'stem_branch_weight': 0.5}, is {" in caplog.text
    other.save_pretrained(tmp_path)
    assert "thresholds are **not used**: they were measured with another fusion of maps" in str(model_card(tmp_path))


def test_a_weight_out_of_range_is_refused_while_loading(tmp_path):
    tiny_model_with_stem_branch().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"stem_branch_weight=2 must lie in \[0, 1\]"):
        VCPCLIPModel.from_pretrained(tmp_path, stem_branch_weight=2)


@pytest.mark.parametrize("adapter_only", [False, True])
@torch.no_grad()
def test_a_saved_adapter_has_the_branch(adapter_only, tmp_path):
    model, images = tiny_model_with_stem_branch(), pixels(2)
    model.clip.save_pretrained(tmp_path / "clip")
    model.config.backbone_name_or_path = str(tmp_path / "clip")
    model.save_pretrained(tmp_path / "model", adapter_only=adapter_only)
    loaded = VCPCLIPModel.from_pretrained(tmp_path / "model")
    state = loaded.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(loaded(images).anomaly_map, model(images).anomaly_map, **ROUNDING)
    torch.testing.assert_close(loaded(images, return_dict=False)[1], model(images).base_map, **ROUNDING)


def test_a_branch_is_added_to_a_checkpoint_without_one(tmp_path, caplog):
    tiny_hybrid().save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        model = VCPCLIPModel.from_pretrained(tmp_path, use_stem_branch=True)
    assert "has no stem branch; a new one is initialized. Its map is random until" in caplog.text
    assert model.stem_branch.logit_scale.tolist() == pytest.approx(3 * [math.log(1 / 0.07)])
    assert model(pixels(1)).stem_map.isfinite().all()


def test_fields_are_checked():
    with pytest.raises(ValueError, match="reads the features of a convolutional stem, and the image tower has none"):
        tiny_config(use_stem_branch=True)
    with pytest.raises(ValueError, match=r"stem_branch_weight=1.5 must lie in \[0, 1\]"):
        tiny_config(vision_config=dict(HYBRID_VISION), use_stem_branch=True, stem_branch_weight=1.5)
    assert not VCPCLIPConfig().use_stem_branch and "stem_branch_weight" not in VCPCLIPConfig().to_dict()
