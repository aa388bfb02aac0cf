"""Blocks in parts equal transformers' own; attention in pieces equals the fused kernel."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.common import tiny_clip, tiny_model
from vcp_clip_hf import clip_blocks
from vcp_clip_hf.clip_blocks import attend_in_pieces, finish_block, image_block, project_block


@pytest.mark.parametrize("piece_bytes", [1, 2**12, 2**23], ids=["one head", "some heads", "all heads"])
def test_pieces_equal_the_whole(monkeypatch, piece_bytes):
    monkeypatch.setattr(clip_blocks, "_PIECE_BYTES", piece_bytes)
    query, key, value = (torch.randn(2, 3, 20, 8) for _ in range(3))
    expected = scaled_dot_product_attention(query, key, value, scale=0.3)
    torch.testing.assert_close(attend_in_pieces(query, key, value, 0.3), expected, rtol=0, atol=1e-6)


def test_a_block_in_parts_equals_transformers_own():
    layer = tiny_clip().vision_model.encoder.layers[0]
    states = torch.randn(2, 17, 64)
    query, key, value = project_block(layer, states)
    ours = finish_block(layer, states, attend_in_pieces(query, key, value, layer.self_attn.scale))
    torch.testing.assert_close(ours, layer(states, None), rtol=0, atol=1e-5)


def test_only_bfloat16_on_a_cpu_without_gradients_goes_in_pieces(monkeypatch):
    calls = []
    pieces = attend_in_pieces
    monkeypatch.setattr(clip_blocks, "attend_in_pieces", lambda *args: calls.append(1) or pieces(*args))
    layer = tiny_clip().vision_model.encoder.layers[0]
    states = torch.randn(1, 300, 64)
    with torch.no_grad():
        whole = image_block(layer, states)
        assert not calls, "float32"
        with torch.autocast("cpu", torch.bfloat16):
            half = image_block(layer, states)
        assert len(calls) == 1
        torch.testing.assert_close(half.float(), whole, rtol=0, atol=0.05)
        image_block(layer.bfloat16(), states[:, :100].bfloat16())
        assert len(calls) == 1, "few tokens"
    image_block(layer, states.bfloat16())
    assert len(calls) == 1, "gradients"


def test_maps_in_bfloat16_are_those_of_the_fused_kernel(monkeypatch):
    model = tiny_model(image_size=160).bfloat16()
    pixel_values = torch.randn(2, 3, 160, 160).bfloat16()
    with torch.inference_mode():
        ours = model(pixel_values).anomaly_map.float()
        monkeypatch.setattr(clip_blocks, "_MANY_TOKENS", 10**6)
        theirs = model(pixel_values).anomaly_map.float()
    assert 0 < (ours - theirs).abs().max() < 0.05
