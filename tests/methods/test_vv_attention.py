"""Value-value attention beside a plain reading of its formulas."""

import pytest
import torch

from tests.common import pixels, tiny_clip
from vcp_clip_hf.methods.vv_attention import staged_value_stream, value_attention, value_stream


@pytest.fixture
def tower():
    torch.manual_seed(0)
    clip = tiny_clip(vision={"num_hidden_layers": 8})
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return clip.vision_model


@pytest.fixture
def states(tower):
    """The residual stream of an image, block by block."""
    stream = tower.pre_layrnorm(tower.embeddings(pixels(2, 32, 32)))
    recorded = {0: stream}
    for number, block in enumerate(tower.encoder.layers, start=1):
        stream = block(stream, None)
        recorded[number] = stream
    return recorded


def plain(block, hidden_states):
    """softmax(v v^T / sqrt(head width)) v, head by head, and the output projection."""
    attention = block.self_attn
    values = attention.v_proj(block.layer_norm1(hidden_states))
    heads = [
        torch.softmax(each @ each.transpose(1, 2) / each.shape[-1] ** 0.5, dim=-1) @ each
        for each in values.chunk(attention.num_heads, dim=-1)
    ]
    return attention.out_proj(torch.cat(heads, dim=-1))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_values_are_query_and_key(tower, states, implementation):
    tower.set_attn_implementation(implementation)
    block = tower.encoder.layers[2]
    torch.testing.assert_close(value_attention(block, states[2]), plain(block, states[2]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("first_block", [1, 4])
def test_the_stream_adds_what_the_original_path_gives(tower, states, first_block):
    blocks = tower.encoder.layers
    streams = value_stream(blocks, states, [2, 5, 8], first_block)
    expected = states[first_block - 1]
    for number in range(first_block, 9):
        expected = expected + plain(blocks[number - 1], states[number - 1])
        if number in streams:
            torch.testing.assert_close(streams[number], expected, atol=1e-5, rtol=0)
    assert list(streams) == [2, 5, 8]
    if first_block == 4:
        assert streams[2] is states[2]


def test_every_quarter_of_the_tower_starts_anew(tower, states):
    blocks = tower.encoder.layers
    updates = [plain(block, states[index]) for index, block in enumerate(blocks)]
    streams = staged_value_stream(blocks, states, [3, 4, 8])
    torch.testing.assert_close(streams[4], updates[2] + updates[3], atol=1e-5, rtol=0)
    torch.testing.assert_close(streams[8], updates[6] + updates[7], atol=1e-5, rtol=0)
    assert streams[3] is streams[4]


@pytest.mark.parametrize(("depth", "starts"), [(12, [0, 3, 6, 9]), (6, [0, 3]), (3, [0]), (24, [0, 6, 12, 18])])
def test_stages_of_other_depths(tower, states, depth, starts):
    blocks = (list(tower.encoder.layers) * 3)[:depth]
    many = dict.fromkeys(range(depth), states[0])
    streams = staged_value_stream(blocks, many, range(1, depth + 1))
    changes = [layer - 1 for layer in range(2, depth + 1) if streams[layer] is not streams[layer - 1]]
    assert [0, *changes] == starts
