"""The CPU ways of linear layers and attention: equal to the plain ones, and used only where they are meant to be."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.common import tiny_clip, tiny_model
from vcp_clip_hf import cpu_kernels
from vcp_clip_hf.accelerated_inference import accelerate_inference
from vcp_clip_hf.cpu_kernels import CPU_ATTENTION, ConvolutionLinear, attend_in_pieces


# --- attention in pieces --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece_bytes", [1, 2**12, 2**23], ids=["one head", "some heads", "all heads"])
def test_pieces_equal_the_whole(monkeypatch, piece_bytes):
    monkeypatch.setattr(cpu_kernels, "_PIECE_BYTES", piece_bytes)
    query, key, value = (torch.randn(2, 3, 20, 8) for _ in range(3))
    expected = scaled_dot_product_attention(query, key, value, scale=0.3)
    torch.testing.assert_close(attend_in_pieces(query, key, value, 0.3), expected, rtol=0, atol=1e-6)


def test_only_bfloat16_on_an_amd_processor_without_gradients_goes_in_pieces(monkeypatch):
    calls = []
    monkeypatch.setattr(cpu_kernels, "_is_amd", lambda: True)
    pieces = attend_in_pieces
    monkeypatch.setattr(cpu_kernels, "attend_in_pieces", lambda *args: calls.append(1) or pieces(*args))
    clip = tiny_clip()
    clip.vision_model.config._attn_implementation = CPU_ATTENTION
    layer = clip.vision_model.encoder.layers[0]
    states = torch.randn(1, 300, 64)
    with torch.no_grad():
        whole = layer(states, None)
        assert not calls, "float32"
        with torch.autocast("cpu", torch.bfloat16):
            half = layer(states, None)
        assert len(calls) == 1
        torch.testing.assert_close(half.float(), whole, rtol=0, atol=0.05)
        layer.bfloat16()
        layer(states[:, :100].bfloat16(), None)
        assert len(calls) == 1, "few tokens"
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(cpu_kernels, "_is_amd", lambda: False)
            layer(states.bfloat16(), None)
        assert len(calls) == 1, "another processor"
    layer(states.bfloat16(), None)
    assert len(calls) == 1, "gradients"


def test_maps_in_bfloat16_are_those_of_the_fused_kernel(monkeypatch):
    monkeypatch.setattr(cpu_kernels, "_is_amd", lambda: True)
    model = accelerate_inference(tiny_model(image_size=160).bfloat16())
    pixel_values = torch.randn(2, 3, 160, 160).bfloat16()
    ours = model(pixel_values).anomaly_map
    monkeypatch.setattr(cpu_kernels, "_MANY_TOKENS", 10**6)
    theirs = model(pixel_values).anomaly_map
    assert 0 < (ours - theirs).abs().max() < 0.05


# --- products by convolution ----------------------------------------------------------------------------------------


@pytest.fixture
def convolutions(monkeypatch):
    """Pretend that products are slow on this processor; return the list of the convolution's calls."""
    calls, convolve = [], torch.nn.functional.conv2d
    monkeypatch.setattr(cpu_kernels, "_products_are_slow", lambda: True)
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda *args: calls.append(1) or convolve(*args))
    return calls


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "rows", [torch.randn(1, 100, 24), torch.randn(3, 41, 24)[:, 1:]], ids=["one", "cut from three"]
)
@torch.no_grad()
def test_a_convolution_equals_a_product(convolutions, rows, bias):
    layer = ConvolutionLinear(24, 40, bias=bias)
    ours = layer(rows)
    assert convolutions and ours.shape == (*rows.shape[:2], 40)
    torch.testing.assert_close(ours, torch.nn.Linear.forward(layer, rows), rtol=0, atol=1e-6)


def test_everything_else_is_a_product(convolutions):
    layer, rows = ConvolutionLinear(24, 40), torch.randn(1, 100, 24)
    layer(rows).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        layer(rows[:, :10])
        layer(rows[0])
        layer.bfloat16()(rows.bfloat16())
        layer.float()
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(rows).dtype == torch.bfloat16
        assert not convolutions
        layer(rows)
        assert convolutions


def test_maps_by_convolution(convolutions):
    model, images = tiny_model(image_size=160), torch.randn(2, 3, 160, 160)
    ours = accelerate_inference(model)(images).anomaly_map
    layers = model.config.vision_config.num_hidden_layers
    # The patch embedding is a convolution by itself
    assert len(convolutions) == 1 + 6 * layers + len(model.config.feature_layers)
    convolutions.clear()
    with torch.no_grad():
        theirs = model(images).anomaly_map
    assert len(convolutions) == 1, "the plain model computes products"
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_compiled_it_is_one_graph_of_products(convolutions):
    layer, rows = ConvolutionLinear(24, 40), torch.randn(1, 100, 24)
    with torch.no_grad():
        compiled = torch.compile(lambda rows: layer(rows), fullgraph=True, backend="eager")(rows)
        torch.testing.assert_close(compiled, torch.nn.Linear.forward(layer, rows))
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
def test_the_convolution_is_meant_for_amd_with_avx_512(monkeypatch, processor, capability, expected):
    monkeypatch.setattr(cpu_kernels, "_processor", lambda: processor)
    monkeypatch.setattr(cpu_kernels, "_is_amd", cpu_kernels._is_amd.__wrapped__)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for backend in (torch.backends.mkl, torch.backends.mkldnn):
        monkeypatch.setattr(backend, "is_available", lambda: True)
    assert cpu_kernels._products_are_slow.__wrapped__() is expected
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert cpu_kernels._products_are_slow.__wrapped__() is False
