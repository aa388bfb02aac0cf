"""Blocks in parts equal transformers' own; attention in pieces equals the fused kernel."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.common import tiny_clip, tiny_model
from vcp_clip_hf import clip_blocks
from vcp_clip_hf.clip_blocks import attend_in_pieces, finish_block, image_block, linear, project_block


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
    monkeypatch.setattr(
        clip_blocks, "attend_in_pieces", lambda *args, **kwargs: calls.append(1) or pieces(*args, **kwargs)
    )
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


# --- products by convolution ----------------------------------------------------------------------------------------


@pytest.fixture
def convolutions(monkeypatch):
    """As on a processor where products are slow; -> calls of the convolution."""
    calls, convolve = [], torch.nn.functional.conv2d
    monkeypatch.setattr(clip_blocks, "_products_are_slow", lambda: True)
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda *args: calls.append(1) or convolve(*args))
    return calls


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "rows", [torch.randn(1, 100, 24), torch.randn(3, 41, 24)[:, 1:]], ids=["one", "cut from three"]
)
@torch.no_grad()
def test_a_convolution_equals_a_product(convolutions, rows, bias):
    layer = torch.nn.Linear(24, 40, bias=bias)
    ours = linear(layer, rows)
    assert convolutions and ours.shape == (*rows.shape[:2], 40)
    torch.testing.assert_close(ours, layer(rows), rtol=0, atol=1e-6)


def test_where_nothing_else_than_a_product_is_known_to_be_right(convolutions):
    layer, rows = torch.nn.Linear(24, 40), torch.randn(1, 100, 24)

    class Adapted(torch.nn.Linear):
        def forward(self, rows):
            return super().forward(rows) + 1

    adapted = Adapted(24, 40)
    linear(layer, rows).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        torch.testing.assert_close(linear(adapted, rows), adapted(rows))
        linear(layer, rows[:, :10])
        linear(layer.bfloat16(), rows.bfloat16())
        layer.float()
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(layer, rows).dtype == torch.bfloat16
        heard = []
        handle = layer.register_forward_hook(lambda *_: heard.append(1))
        linear(layer, rows)
        handle.remove()
        assert heard and not convolutions
        layer.forward = lambda rows: rows[..., :1]
        assert linear(layer, rows).shape == (1, 100, 1)
        del layer.forward
        linear(layer, rows)
        assert convolutions


def test_maps_by_convolution(convolutions):
    model, images = tiny_model(image_size=160), torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        ours = model(images).anomaly_map
    layers = model.config.vision_config.num_hidden_layers
    tower = 1 + 6 * layers  # the patch embedding is one anyway
    assert len(convolutions) == tower + len(model.config.feature_layers)
    convolutions.clear()
    theirs = model(images).anomaly_map  # with gradients
    assert len(convolutions) == tower, "nothing that is learned"
    model.set_attn_implementation("eager")
    convolutions.clear()
    with torch.inference_mode():
        eager = model(images).anomaly_map
    torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours, eager, rtol=0, atol=1e-6)


def test_compiled_it_is_one_graph_of_products(convolutions):
    layer, rows = torch.nn.Linear(24, 40), torch.randn(1, 100, 24)
    with torch.no_grad():
        compiled = torch.compile(lambda rows: linear(layer, rows), fullgraph=True, backend="eager")(rows)
        torch.testing.assert_close(compiled, layer(rows))
    assert not convolutions


@pytest.mark.parametrize(
    ("processor", "capability", "expected"),
    [
        ("vendor_id : AuthenticAMD", "AVX512", True),
        ("AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD", "AVX512", True),
        ("vendor_id : AuthenticAMD", "AVX2", False),
        ("vendor_id : GenuineIntel", "AVX512", False),
        ("", "DEFAULT", False),
    ],
)
def test_which_processors_are_meant(monkeypatch, processor, capability, expected):
    monkeypatch.setattr(clip_blocks, "_processor", lambda: processor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for backend in (torch.backends.mkl, torch.backends.mkldnn):
        monkeypatch.setattr(backend, "is_available", lambda: True)
    assert clip_blocks._products_are_slow.__wrapped__() is expected
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert clip_blocks._products_are_slow.__wrapped__() is False
