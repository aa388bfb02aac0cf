"""Position embeddings at other sizes, held against torch's own interpolation; hidden states of chosen blocks."""

import pytest
import torch
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

from tests.common import pixels, tiny_model
from vcp_clip_hf.vision_tower import LayerStates, resize_position_table


@pytest.mark.parametrize("grid", [(6, 6), (3, 5)])
def test_the_table_is_resized_with_antialiasing(grid):
    table = torch.randn(1, 17, 64)
    patches = table[0, 1:].T.view(1, 64, 4, 4)
    resized = resize_position_table(table, grid)
    expected = torch.nn.functional.interpolate(patches, grid, mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(resized[0, 1:], expected[0].flatten(1).T, atol=1e-6, rtol=0)
    assert torch.equal(resized[:, 0], table[:, 0])
    plain = torch.nn.functional.interpolate(patches, grid, mode="bicubic", align_corners=False)
    assert (expected - plain).abs().max() > 1e-3


def test_the_pretraining_grid_is_left_alone():
    table = torch.randn(1, 17, 64)
    assert resize_position_table(table, (4, 4)) is table


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_kept(dtype):
    table = torch.randn(1, 17, 64)
    resized = resize_position_table(table.to(dtype), (6, 6))
    assert resized.dtype == dtype
    torch.testing.assert_close(resized.float(), resize_position_table(table, (6, 6)), atol=0.02, rtol=0)


@torch.no_grad()
def test_at_the_pretraining_size_the_embeddings_are_those_of_clip():
    ours = tiny_model().clip.vision_model.embeddings
    theirs = CLIPVisionEmbeddings(ours.config)
    theirs.load_state_dict(ours.state_dict())
    images = pixels(2, 32, 32)
    assert torch.equal(ours(images, interpolate_pos_encoding=True), theirs(images))


@torch.no_grad()
def test_the_states_of_chosen_blocks_are_those_that_clip_records():
    model, images = tiny_model(), pixels(2, 32, 32)
    recorded = model.clip.vision_model(images, output_hidden_states=True).hidden_states
    chosen = LayerStates((0, 2, 4))
    model.clip.vision_model(images, layer_states=chosen)
    assert chosen.states.keys() == {0, 2, 4} and len(recorded) == 5
    for layer, value in chosen.states.items():
        assert torch.equal(value, recorded[layer])
