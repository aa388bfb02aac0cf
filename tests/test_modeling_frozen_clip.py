"""The base of all models on a frozen CLIP, with the smallest model that has it."""

import pytest
import torch
from torch.nn.functional import interpolate
from transformers import CLIPModel

from tests.common import pixels, tiny_clip
from tests.methods.common import tiny_method
from vcp_clip_hf.modeling_frozen_clip import check_labels, requested_states
from vcp_clip_hf.vision_tower import resize_position_table


@pytest.mark.parametrize(
    ("requested", "expected"),
    [(None, []), (False, []), (True, [0, 1, 2]), (1, [1]), (-1, [2]), ([0, 2, 7], [0, 2]), ([-3, 0], [0])],
)
def test_requested_states(requested, expected):
    assert requested_states(requested, 3) == expected


@pytest.mark.parametrize("requested", [["stem_cells"], ["stem", "1"], "stem"])
def test_unknown_names_of_states_are_refused(requested):
    with pytest.raises(ValueError, match="must be numbers of blocks, and 'stem'"):
        requested_states(requested, 3)


@torch.no_grad()
def test_the_image_tower_is_clips():
    model, images = tiny_method(), pixels(2, 32, 32)
    states, pooled = model.run_image_tower(images, [0, 2, 4])
    clip = CLIPModel(model.clip.config).eval()
    clip.load_state_dict(model.clip.state_dict())
    expected = clip.vision_model(images, output_hidden_states=True)
    assert set(states) == {0, 2, 4}
    for layer, state in states.items():
        torch.testing.assert_close(state, expected.hidden_states[layer])
    torch.testing.assert_close(pooled, expected.pooler_output)


@pytest.mark.parametrize(("mode", "antialias"), [("bicubic", True), ("bicubic", False), ("bilinear", False)])
@pytest.mark.parametrize("side", [3, 7])
def test_ways_to_resize_positions(mode, antialias, side):
    table = torch.randn(1, 26, 4)
    name = f"{mode}_antialias" if antialias else mode
    grid = table[:, 1:].reshape(1, 5, 5, 4).permute(0, 3, 1, 2)
    expected = interpolate(grid, size=(side, side), mode=mode, antialias=antialias).flatten(2).transpose(1, 2)
    found = resize_position_table(table, (side, side), name)
    torch.testing.assert_close(found[:, 1:], expected)
    assert torch.equal(found[:, :1], table[:, :1])


@torch.no_grad()
def test_positions_start_from_the_pretrained_grid_each_time():
    model = tiny_method(position_interpolation="bilinear")
    first = model.run_image_tower(pixels(1, 48, 48), [0])[0][0].shape
    images = pixels(1, 64, 64)
    again, _ = model.run_image_tower(images, [4])
    fresh, _ = tiny_method(position_interpolation="bilinear").run_image_tower(images, [4])
    assert first[1] == 37 and again[4].shape == fresh[4].shape
    other = tiny_method(position_interpolation="bicubic")
    other.load_state_dict(model.state_dict())
    assert not torch.allclose(other.run_image_tower(images, [4])[0][4], again[4])


def test_clip_stays_frozen_and_in_evaluation_mode():
    model = tiny_method().train()
    assert model.training and not any(module.training for module in model.clip.modules())
    model.clip.vision_model.requires_grad_(True)
    model.train()
    assert model.clip.vision_model.training and not model.clip.text_model.training


def test_the_backbone_of_a_configuration_is_compared_with_the_given_one():
    config = tiny_method().config
    with pytest.raises(ValueError, match="not the one the checkpoint was trained with"):
        type(tiny_method()).from_clip(tiny_clip(vision={"hidden_size": 32}), config=config)


def test_labels_are_checked():
    check_labels(torch.zeros(1, 4, 4), (1, 4, 4))
    with pytest.raises(ValueError, match="expected"):
        check_labels(torch.zeros(4, 4), (1, 4, 4))
    with pytest.raises(ValueError, match=r"from 0\.0 to 2\.0"):
        check_labels(torch.eye(4)[None] * 2, (1, 4, 4))
