"""The convolutional stem held against a plain reading of its definition; whole models with a stem."""

import copy

import accelerate
import pytest
import torch
from torch import nn

from tests.common import HYBRID_VISION, means_around, pixels, tiny_config, tiny_hybrid, tiny_model
from tests.methods.common import tiny_method
from vcp_clip_hf import VCPCLIPModel
from vcp_clip_hf.backbone_loading import check_backbone
from vcp_clip_hf.convolutional_stem import (
    STEMS,
    VCPCLIPEfficientNetLiteStem,
    VCPCLIPHybridPatchEmbedding,
    VCPCLIPSamePadding,
    check_stem_layer,
    layer_width,
    projects_stem,
    stem_of,
    without_stem_layer,
)
from vcp_clip_hf.methods import METHODS


@pytest.fixture
def stem(request) -> VCPCLIPEfficientNetLiteStem:
    """A stem whose biases are not zero, so that zeros around an image are not like its content."""
    torch.manual_seed(0)
    stem = VCPCLIPEfficientNetLiteStem(STEMS[getattr(request, "param", "efficientnet_lite0")])
    stem.initialize()
    with torch.no_grad():
        for module in stem.modules():
            if isinstance(module, nn.Conv2d):
                module.bias.normal_(std=0.3)
    return stem.requires_grad_(False)


def embedding_of(model) -> VCPCLIPHybridPatchEmbedding:
    return model.clip.vision_model.embeddings.patch_embedding


# --- the features ---------------------------------------------------------------------------------------------------


def convolve_same(x: torch.Tensor, convolution: nn.Conv2d) -> torch.Tensor:
    """Convolve one image (C, H, W) as TensorFlow's "SAME" is defined: position by position, zeros outside."""
    (side, _), (stride, _), weight = convolution.kernel_size, convolution.stride, convolution.weight
    sizes = [-(-length // stride) for length in x.shape[1:]]
    before = [
        max((size - 1) * stride + side - length, 0) // 2 for size, length in zip(sizes, x.shape[1:], strict=True)
    ]
    found = torch.zeros(convolution.out_channels, *sizes)
    for row in range(sizes[0]):
        for column in range(sizes[1]):
            window = torch.zeros(x.shape[0], side, side)
            for down in range(side):
                for right in range(side):
                    y, z = row * stride - before[0] + down, column * stride - before[1] + right
                    if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                        window[:, down, right] = x[:, y, z]
            found[:, row, column] = (weight * window).sum(dim=(1, 2, 3)) + convolution.bias
    return found


@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (1, 5)])
def test_padding_is_that_of_tensorflow(side, size):
    convolution = nn.Conv2d(1, 3, side, 2).requires_grad_(False)
    image = torch.randn(1, *size)
    expected = convolve_same(image, convolution)
    torch.testing.assert_close(convolution(VCPCLIPSamePadding(side)(image[None]))[0], expected)


# The last block with the output strides 2, 4, 8 and 16, by the number of blocks
LAST_BLOCKS = {11: (0, 2, 4, 10), 15: (0, 3, 6, 14)}


def plain_reading(stem: VCPCLIPEfficientNetLiteStem, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Compute features of patches and cells, and details, of an image (3, H, W) from its blocks' outputs."""
    outputs, handles = {}, []
    at_2, at_4, at_8, at_16 = LAST_BLOCKS[len(stem.blocks)]
    for block in (at_2, at_4, at_8, at_16):
        handles.append(stem.blocks[block].register_forward_hook(lambda _, __, y, key=block: outputs.update({key: y})))
    stem(image[None])
    for handle in handles:
        handle.remove()
    grid = (image.shape[1] // 8, image.shape[2] // 8)
    levels = []
    for block in (at_4, at_8, at_16):
        means = means_around(outputs[block][0], 1)
        features = torch.zeros(len(means), *grid)
        for row in range(grid[0]):
            for column in range(grid[1]):
                if block == at_4:
                    value = means[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean(dim=(1, 2))
                elif block == at_8:
                    value = means[:, row, column]
                else:
                    value = interpolated(means, row, column, grid)
                features[:, row, column] = value / value.norm()
        levels.append(features)
    cells, details = torch.zeros(56, 4, *grid), torch.zeros(16 * 16 + 24 * 4, *grid)
    for row in range(grid[0]):
        for column in range(grid[1]):
            within = [
                outputs[block][0, :, side * row : side * (row + 1), side * column : side * (column + 1)].flatten()
                for block, side in ((at_2, 4), (at_4, 2))
            ]
            details[:, row, column] = torch.cat(within)
            for cell in range(4):
                top, left = 4 * row + cell // 2 * 2, 4 * column + cell % 2 * 2
                window = outputs[at_2][0, :, top : top + 2, left : left + 2]
                cells[:, cell, row, column] = torch.cat(
                    [window.amax((1, 2)), window.amin((1, 2)), outputs[at_4][0, :, top // 2, left // 2]]
                )
    return torch.cat(levels), cells.flatten(0, 1), details


def interpolated(x: torch.Tensor, row: int, column: int, grid: tuple[int, int]) -> torch.Tensor:
    """Return the bilinear value of (C, h, w) at the center of a cell of a grid."""
    parts = []
    for index, cells, length in ((row, grid[0], x.shape[1]), (column, grid[1], x.shape[2])):
        place = max((index + 0.5) * length / cells - 0.5, 0)
        low = int(place)
        parts.append((low, min(low + 1, length - 1), place - low))
    (top, bottom, down), (left, right, over) = parts
    upper = (1 - over) * x[:, top, left] + over * x[:, top, right]
    lower = (1 - over) * x[:, bottom, left] + over * x[:, bottom, right]
    return (1 - down) * upper + down * lower


@pytest.mark.parametrize("stem", STEMS, indirect=True)
@pytest.mark.parametrize("size", [(48, 48), (40, 24), (8, 24), (24, 8), (8, 8)], ids=str)
def test_features_cells_and_details_are_those_of_the_definition(stem, size):
    images = pixels(2, *size)
    outputs, grid = stem(images), (size[0] // 8, size[1] // 8)
    num_features = {11: 176, 15: 192}[len(stem.blocks)]
    assert [tuple(each.shape) for each in outputs] == [(2, width, *grid) for width in (num_features, 224, 352)]
    for image, *found in zip(images, *outputs, strict=True):
        for ours, expected in zip(found, plain_reading(stem, image), strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_features_do_not_need_cells_and_details(stem):
    images = pixels(2)
    outputs = stem(images, with_cells=False, with_details=False)
    assert outputs.cells is None and outputs.details is None and torch.equal(outputs.features, stem(images).features)


def test_backward_hooks_and_gradients_of_a_trained_stem(stem):
    """Without gradients, activations are computed in place."""
    images, seen = pixels(1), []
    expected = stem(images)[0]
    stem.requires_grad_(True)
    stem.blocks[3].expand.register_full_backward_hook(lambda *_: seen.append(1))
    features = stem(images).features
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    features.square().sum().backward()
    assert seen and all(each.grad is not None and each.grad.isfinite().all() for each in stem.parameters())


def test_a_block_is_three_convolutions(stem):
    image = torch.randn(24, 5, 4)
    for number in (3, 2):  # with stride 2 and a kernel of 5, and with a residual
        block = stem.blocks[number]
        inner = nn.functional.relu6(block.expand(image[None]))[0]
        one_by_one = [nn.Conv2d(1, 1, block.depthwise.kernel_size, block.depthwise.stride) for _ in inner]
        for index, each in enumerate(one_by_one):
            each.weight.data, each.bias.data = block.depthwise.weight[index : index + 1], block.depthwise.bias[[index]]
        filtered = torch.cat([convolve_same(x[None], each) for x, each in zip(inner, one_by_one, strict=True)])
        expected = block.project(nn.functional.relu6(filtered)[None])[0] + (image if number == 2 else 0)
        torch.testing.assert_close(block(image[None])[0], expected, atol=1e-5, rtol=1e-5)


def test_a_grid_of_odd_numbers_and_the_batch(stem):
    images = pixels(4, 232, 216)
    together = stem(images)
    assert [tuple(each.shape) for each in together] == [(4, width, 29, 27) for width in (176, 224, 352)]
    for index, image in enumerate(images):
        for alone, each in zip(stem(image[None]), together, strict=True):
            torch.testing.assert_close(alone[0], each[index], atol=1e-5, rtol=1e-5)


def test_the_memory_layout_of_images_changes_nothing(stem):
    images = pixels(2)
    turned = images.transpose(2, 3).contiguous().transpose(2, 3)
    for other in (images.contiguous(memory_format=torch.channels_last), turned):
        for found, expected in zip(stem(other), stem(images), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_random_weights_keep_the_size_of_the_signal():
    stem = embedding_of(VCPCLIPModel(tiny_config(vision_config=dict(HYBRID_VISION)))).stem
    sizes = []
    for block in stem.blocks:
        block.register_forward_hook(lambda _, __, output: sizes.append(output.std().item()))
    stem(pixels(2))
    assert len(sizes) == 11 and min(sizes) > 0.1 and max(sizes) < 100
    assert all(not each.bias.any() for each in stem.modules() if isinstance(each, nn.Conv2d))


# --- the patch embedding --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_embedding_is_clips_and_a_map_of_the_features(stem):
    embedding = embedding_of(tiny_hybrid())
    embedding.stem = stem
    image = pixels(1, 104, 96)  # 13 x 12 patches: the surroundings have a border
    features, _, details = plain_reading(stem, image[0])
    mean, around = features.mean(dim=(1, 2), keepdim=True), means_around(features, 5)
    parts = torch.cat([8 * features, 24 * (features - mean), 24 * (features - around), 0.15 * details])
    mapped = torch.einsum("dc,chw->dhw", embedding.stem_projection.weight, parts)
    patches = nn.functional.conv2d(image, embedding.weight, stride=8)[0]
    expected = patches + mapped + embedding.stem_projection.bias[:, None, None]
    torch.testing.assert_close(embedding(image)[0], expected, atol=1e-4, rtol=1e-5)
    recorded = []
    assert torch.equal(embedding(image, lambda *values: recorded.append(values)), embedding(image))
    assert [name for name, _ in recorded] == ["stem", "stem_cells"]
    for (_, tokens), maps in zip(recorded, stem(image), strict=False):
        assert torch.equal(tokens.mT.unflatten(2, (13, 12)), maps)


@torch.no_grad()
def test_a_stem_for_references_alone_leaves_the_tower_as_it_is(tmp_path):
    vision = {**HYBRID_VISION, "stem_projection": False}
    plain, model = tiny_model(), tiny_model(vision_config=vision, reference_layers=["stem", 4])
    assert not projects_stem(model.config.vision_config) and projects_stem(tiny_hybrid().config.vision_config)
    left_out = model.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert left_out and all(".patch_embedding.stem." in name for name in left_out)

    runs, images = [], pixels(2)
    embedding_of(model).stem.register_forward_hook(lambda *_: runs.append(1))
    assert torch.equal(model(images).anomaly_map, plain(images).anomaly_map) and not runs
    outputs = model(images, output_hidden_states=["stem", 4])
    assert len(runs) == 1 and outputs.stem_features.shape == (2, 36, 176)
    assert torch.equal(outputs.anomaly_map, plain(images).anomaly_map)

    model.save_pretrained(tmp_path)
    again = VCPCLIPModel.from_pretrained(tmp_path)
    assert not projects_stem(again.config.vision_config)
    assert torch.equal(again(images, output_hidden_states=["stem"]).stem_features, outputs.stem_features)


def test_a_backbone_must_be_read_in_the_same_way():
    reads = tiny_config(vision_config=dict(HYBRID_VISION))
    does_not = tiny_config(vision_config={**HYBRID_VISION, "stem_projection": False})
    check_backbone(does_not, does_not.to_clip_config(), "here")
    for ours, theirs in ((reads, does_not), (does_not, reads)):
        with pytest.raises(ValueError, match=r"vision_config\.stem_projection: (True|False) in the checkpoint"):
            check_backbone(ours, theirs.to_clip_config(), "here")


def test_names_of_layers():
    hybrid, plain = tiny_config(vision_config=dict(HYBRID_VISION)).vision_config, tiny_config().vision_config
    assert stem_of(hybrid) == "efficientnet_lite0" and stem_of(plain) is None
    assert layer_width("stem", hybrid) == 176 and layer_width("stem_cells", hybrid) == 224
    assert layer_width(3, hybrid) == layer_width(3, plain) == 64
    assert without_stem_layer(("stem", 0, 2)) == [0, 2] and without_stem_layer([1]) == [1]
    check_stem_layer(["stem", 1], hybrid)
    check_stem_layer([0, 1], plain)
    with pytest.raises(ValueError, match=r"this tower has none \(vision_config.stem\). Choose numbers of blocks"):
        check_stem_layer(["stem", 1], plain)


# --- whole models ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_every_part_of_the_embedding_reaches_the_map():
    model, images = tiny_hybrid(), pixels(1)
    expected = model(images).anomaly_map
    embedding = embedding_of(model)
    for parameter in (embedding.weight, embedding.stem.blocks[10].project.weight, embedding.stem_projection.weight):
        before = parameter.clone()
        parameter.normal_()
        assert (model(images).anomaly_map - expected).abs().max() > 1e-3
        parameter.copy_(before)
    assert torch.equal(model(images).anomaly_map, expected)


@torch.no_grad()
def test_the_features_are_returned_and_computed_once():
    model, images = tiny_hybrid(), pixels(2, 40, 24)
    calls = []
    embedding_of(model).stem.register_forward_hook(lambda _, __, output: calls.append(output[0]))
    outputs = model(images, output_hidden_states=["stem", 0, 2])
    assert len(calls) == 1
    assert torch.equal(outputs.stem_features, calls[0].flatten(2).transpose(1, 2))
    assert outputs.stem_features.shape == (2, 15, 176)
    assert [each is not None for each in outputs.hidden_states] == [True, False, True, False, False]
    plain = model(images, output_hidden_states=[0, 2])
    assert plain.stem_features is None and torch.equal(plain.hidden_states[2], outputs.hidden_states[2])
    assert torch.equal(plain.anomaly_map, outputs.anomaly_map)
    alone = model(images, output_hidden_states=["stem"])
    assert alone.hidden_states is None and torch.equal(alone.stem_features, outputs.stem_features)
    assert model(images, output_hidden_states=True).stem_features is None


def test_features_of_a_tower_without_a_stem():
    with pytest.raises(ValueError, match="this tower has none"):
        tiny_model()(pixels(1), output_hidden_states=["stem"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_other_dtypes(dtype):
    model, images = tiny_hybrid(), pixels(2)
    for scale in (model.base_logit_scale, model.vcp_logit_scale):
        scale.fill_(2.0)
    other = copy.deepcopy(model).to(dtype)
    outputs = other(images.to(dtype), output_hidden_states=["stem"])
    expected = model(images, output_hidden_states=["stem"])
    assert outputs.stem_features.dtype == dtype and outputs.anomaly_map.dtype == torch.float32
    torch.testing.assert_close(outputs.stem_features, expected.stem_features.to(dtype), atol=0.02, rtol=0)
    torch.testing.assert_close(outputs.anomaly_map, expected.anomaly_map, atol=0.05, rtol=0)


@torch.no_grad()
def test_autocast_and_channels_last():
    model, images = tiny_hybrid(), pixels(2)
    for scale in (model.base_logit_scale, model.vcp_logit_scale):
        scale.fill_(2.0)
    expected = model(images).anomaly_map
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(images).anomaly_map, expected, atol=0.05, rtol=0)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images).anomaly_map, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_offloaded_weights_give_the_same_features():
    model, images = tiny_hybrid(), pixels(2)
    expected = model(images, output_hidden_states=["stem"])
    offloaded = accelerate.cpu_offload(model, torch.device("cpu"))
    outputs = offloaded(images, output_hidden_states=["stem"])
    torch.testing.assert_close(outputs.anomaly_map, expected.anomaly_map, atol=1e-6, rtol=0)
    assert torch.equal(outputs.stem_features, expected.stem_features)


def test_a_stem_is_frozen_with_clip_and_trained_with_it():
    model, images, labels = tiny_hybrid(deep_prompt_dropout=0), pixels(2), torch.zeros(2, 48, 48)
    parameters = dict(embedding_of(model).named_parameters())
    assert len(parameters) == 2 * 33 + 3 and not any(each.requires_grad for each in parameters.values())
    model.train()
    model(images, labels=labels).loss.backward()
    assert all(each.grad is None for each in parameters.values())
    model.clip.requires_grad_(True)
    model.train()
    model(images, labels=labels).loss.backward()
    expected = {name: each.grad.clone() for name, each in parameters.items()}
    assert all(each.abs().sum() > 0 for each in expected.values())
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(images, labels=labels).loss.backward()
    for name, each in parameters.items():
        torch.testing.assert_close(each.grad, expected[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "saa"])
@torch.no_grad()
def test_methods_on_a_tower_with_a_stem(name):
    model = tiny_method(name, vision=dict(HYBRID_VISION))
    images = pixels(2)
    outputs = model(images, output_hidden_states=["stem", 1])
    embedding = embedding_of(model)
    assert torch.equal(outputs.stem_features, embedding.stem(images)[0].flatten(2).transpose(1, 2))
    embedding.stem_projection.weight.zero_()
    assert not torch.equal(model(images, output_hidden_states=[1]).hidden_states[1], outputs.hidden_states[1])
    named = model.for_product("bolt")(images, output_hidden_states=["stem"])
    assert torch.equal(named.stem_features, outputs.stem_features)
