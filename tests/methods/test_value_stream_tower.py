"""Both streams of the image tower in one pass, against the blocks of CLIP and the stream after the pass."""

import pytest
import torch

from tests.common import pixels, tiny_clip
from vcp_clip_hf.methods.value_stream_tower import SharedValueAttention, ValueStreamEncoder
from vcp_clip_hf.methods.vv_attention import ValueStream, value_stream
from vcp_clip_hf.modeling_frozen_clip import with_blocks_of
from vcp_clip_hf.vision_tower import LayerStates


DEPTH = 4


@pytest.fixture
def tower():
    """An image tower with the encoder of both streams."""
    tower = tiny_clip(vision={"image_size": 48}).vision_model
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.mul_(3)
    tower.encoder = with_blocks_of(tower.encoder, ValueStreamEncoder)
    for layer in tower.encoder.layers:
        layer.self_attn.__class__ = SharedValueAttention
    return tower


def ordinary_states(tower, images):
    """Return the residual stream: the input of the first block, then the output of each."""
    states = [tower.pre_layrnorm(tower.embeddings(images))]
    for layer in tower.encoder.layers:
        states.append(layer(states[-1], None))
    return dict(enumerate(states))


@pytest.mark.parametrize("first_block", range(1, DEPTH + 1))
@pytest.mark.parametrize("layers", [[DEPTH], [2], [1, 3], [1, 2, 3, 4]])
@torch.no_grad()
def test_the_stream_is_the_one_computed_after_the_pass(tower, first_block, layers):
    images = pixels(2)
    states = ordinary_states(tower, images)
    stream, ordinary = ValueStream(layers, first_block), LayerStates([0, 2])
    outputs = tower(images, layer_states=ordinary, value_stream=stream)
    expected = value_stream(tower.encoder.layers, states, layers, first_block)
    assert stream.states.keys() == expected.keys()
    for layer, value in expected.items():
        torch.testing.assert_close(stream.states[layer], value, atol=1e-5, rtol=1e-5)
    for layer in (0, 2):
        torch.testing.assert_close(ordinary.states[layer], states[layer], atol=1e-5, rtol=1e-5)
    # The class token of the last block, alone or with all others
    torch.testing.assert_close(stream.class_token, states[DEPTH][:, 0], atol=1e-5, rtol=1e-5)
    assert torch.equal(outputs.pooler_output, tower.post_layernorm(stream.class_token))


@torch.no_grad()
def test_the_last_block_is_computed_for_the_class_token_only(tower):
    images, shapes = pixels(2), []
    tower.encoder.layers[-1].mlp.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape)))
    tower(images, value_stream=ValueStream([DEPTH], 2))
    tower(images, value_stream=ValueStream([DEPTH], 2), layer_states=LayerStates([DEPTH]))
    assert shapes == [(2, 1, 64), (2, 37, 64)]


@torch.no_grad()
def test_values_are_projected_once_and_there_are_no_further_queries_and_keys(tower):
    calls = dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj"), 0)

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    for layer in tower.encoder.layers:
        for name in calls:
            getattr(layer.self_attn, name).register_forward_hook(count(name))
    tower(pixels(1), value_stream=ValueStream([3], 2))
    # Value-value attention in blocks 2 and 3: none is needed after the last requested layer
    assert calls == {"q_proj": 4, "k_proj": 4, "v_proj": 4, "out_proj": 6}


@torch.no_grad()
def test_without_a_stream_the_tower_is_clips(tower):
    images, ordinary = pixels(1), LayerStates([1])
    states = ordinary_states(tower, images)
    torch.testing.assert_close(tower(images, layer_states=ordinary).last_hidden_state, states[DEPTH])
    torch.testing.assert_close(ordinary.states[1], states[1])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gradients_reach_both_streams(tower, attention):
    tower.config._attn_implementation = attention
    images, stream = pixels(1), ValueStream([DEPTH], 2)
    tower(images, value_stream=stream)
    stream.states[DEPTH].sum().backward()
    grads = {name: parameter.grad for name, parameter in tower.encoder.named_parameters()}
    assert grads["layers.3.self_attn.v_proj.weight"].abs().sum() > 0
    assert grads["layers.1.mlp.fc1.weight"].abs().sum() > 0
    # The stream does not contain the ordinary branch of the last block
    assert grads["layers.3.mlp.fc1.weight"] is None
