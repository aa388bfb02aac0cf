"""Linear layers in float8: the kernel computes what the format says, and unsuitable devices are named."""

import copy

import pytest
import torch
from torch import nn

from examples.research.float8_accuracy import EmulatedFloat8Linear, emulate_float8
from tests.common import TINY_VISION, pixels, tiny_model
from tests.imitated_gpu import imitated_gpu, on_imitated_gpu
from vcp_clip_hf import accelerated_vision, float8_linear
from vcp_clip_hf.accelerated_inference import AcceleratedVCPCLIPModel, accelerate_inference, accelerated_or_plain
from vcp_clip_hf.acceleration_settings import Acceleration
from vcp_clip_hf.float8_linear import (
    Float8Linear,
    Float8Matrix,
    QuantizedActivation,
    add_normalize_and_quantize,
    check_float8,
    quantize_rows,
)
from vcp_clip_hf.fused_pointwise import FusedFunction, quick_gelu_of_rows


FLOAT8 = Acceleration(float8=True)


@pytest.fixture
def on_any_device(monkeypatch):
    """Let float8 run on a CPU, which computes the same product as a GPU."""
    for module in (float8_linear, accelerated_vision):
        monkeypatch.setattr(module, "check_float8", lambda weight: None)


@pytest.fixture
def uncompiled(monkeypatch):
    """Compute without the compiler: faster in tests, and rounded to bfloat16 after each operation."""
    for function in fused_functions():
        monkeypatch.setattr(function, "_failed", True)


def fused_functions():
    return [each for each in vars(float8_linear).values() if isinstance(each, FusedFunction)]


@pytest.fixture
def capability(monkeypatch):
    """Return a function that sets the compute capability of the imitated GPU, which is 9.0 before."""

    def set_to(*value):
        monkeypatch.setattr(float8_linear, "_compute_capability", lambda device: value)

    set_to(9, 0)
    return set_to


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e4], ids=["tiny", "usual", "large"])
def test_rows_are_kept_to_the_precision_of_the_format(size):
    rows = size * torch.randn(50, 64)
    values, scales = quantize_rows(rows)
    assert values.dtype == torch.float8_e4m3fn and scales.shape == (50, 1) and scales.dtype == torch.float32
    torch.testing.assert_close(values.float().abs().amax(dim=1), torch.full((50,), 448.0))
    # Three bits after the leading one; below 2^-6 numbers are multiples of 2^-9
    error = (values.float() * scales - rows).abs()
    assert (error <= (rows.abs() * 2**-4).maximum(scales * 2**-10) * 1.001).all()


def test_rows_of_zeros_stay_zeros():
    values, scales = quantize_rows(torch.zeros(3, 16, dtype=torch.bfloat16))
    assert (values.float() == 0).all() and (scales > 0).all()


@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_that_of_the_quantized_numbers(bias):
    weight, rows = torch.randn(96, 64).bfloat16(), torch.randn(2, 37, 64).bfloat16()
    offset = torch.randn(96).bfloat16() if bias else None
    matrix = Float8Matrix.of(weight)
    ours = matrix.product(rows, offset)
    values, scales = quantize_rows(rows)
    exact = (values.double() * scales) @ (matrix.values.double() * matrix.scales.T).T
    exact = exact if offset is None else exact + offset
    assert ours.shape == (2, 37, 96) and ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), exact, rtol=2**-7, atol=1e-4)
    plain = nn.functional.linear(rows.float(), weight.float(), None if offset is None else offset.float())
    assert 0 < (ours - plain).norm() / plain.norm() < 0.05


def test_the_emulation_equals_the_layer(on_any_device):
    layer = nn.Linear(64, 96).bfloat16().requires_grad_(False)
    emulated = copy.deepcopy(layer)
    emulated.__class__ = EmulatedFloat8Linear
    Float8Linear.take_over(layer)
    rows = torch.randn(2, 37, 64).bfloat16()
    torch.testing.assert_close(layer(rows), emulated(rows), rtol=2**-7, atol=1e-4)


@pytest.mark.parametrize("hidden_act", ["gelu", "quick_gelu"])
@torch.no_grad()
def test_the_image_tower_equals_the_emulated_one(on_any_device, uncompiled, hidden_act):
    model, images = tiny_model(vision_config={**TINY_VISION, "hidden_act": hidden_act}).bfloat16(), pixels(2)
    ours = accelerate_inference(model, FLOAT8)(images, output_hidden_states=True)
    emulate_float8(model.clip.vision_model)
    expected = model(images, output_hidden_states=True)
    for our, their in zip(ours.hidden_states, expected.hidden_states, strict=True):
        assert relative_difference(our, their) < 0.02, "products and attention are summed in another order"
    assert torch.equal(ours.hidden_states[0], expected.hidden_states[0])


@torch.no_grad()
def test_compiled_the_image_tower_is_as_exact(on_any_device):
    model, images = tiny_model().bfloat16(), pixels(2)
    fast = accelerate_inference(model, FLOAT8)
    ours = fast(images, output_hidden_states=True)
    assert not any(function._failed for function in fused_functions())
    exact = model.float()(images, output_hidden_states=True)
    emulate_float8(model.bfloat16().clip.vision_model)
    emulated = model(images, output_hidden_states=True)
    for our, their, right in zip(ours.hidden_states, emulated.hidden_states, exact.hidden_states, strict=True):
        assert relative_difference(our, right) < 1.2 * relative_difference(their, right)


def relative_difference(ours, theirs):
    return (ours - theirs).float().norm() / theirs.float().norm()


@pytest.mark.parametrize("activation", [nn.functional.gelu, quick_gelu_of_rows])
@torch.no_grad()
def test_operations_that_end_in_float8(activation):
    norm = nn.LayerNorm(64)
    nn.init.normal_(norm.weight)
    residual, update = torch.randn(2, 5, 64), torch.randn(2, 5, 64)
    states, normalized = add_normalize_and_quantize(residual, update, norm)
    torch.testing.assert_close(states, residual + update)
    activated = QuantizedActivation(activation)(residual)
    for rows, exact in ((normalized, norm(residual + update)), (activated, activation(residual))):
        assert rows.values.dtype == torch.float8_e4m3fn and rows.scales.shape == (2, 5, 1)
        error = (rows.values.float() * rows.scales - exact).abs()
        assert (error <= (exact.abs() * 2**-4).maximum(rows.scales * 2**-10) * 1.001).all()


# --- weights --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_changed_weight_is_quantized_anew(on_any_device, uncompiled):
    model, images = tiny_model().bfloat16(), pixels(1)
    fast = accelerated_or_plain(model, settings=FLOAT8)
    before = fast(images).anomaly_map
    assert accelerated_or_plain(model, fast, FLOAT8) is fast
    model.clip.vision_model.encoder.layers[1].mlp.fc1.weight.data.mul_(1.5)
    again = accelerated_or_plain(model, fast, FLOAT8)
    assert again is not fast and (again(images).anomaly_map - before).abs().max() > 0


@torch.no_grad()
def test_a_moved_copy_quantizes_again(on_any_device, uncompiled):
    fast = accelerate_inference(tiny_model().bfloat16(), FLOAT8)
    fast(pixels(1))
    block = fast.clip.vision_model.encoder.layers[0]
    layer, attention = block.mlp.fc1, block.self_attn
    assert layer.matrix.values and attention.joined.values
    fast.to(torch.bfloat16)
    assert not layer.matrix.values and not attention.joined.values


# --- devices --------------------------------------------------------------------------------------------------------


def test_a_cpu_is_refused():
    with pytest.raises(ValueError, match=r"float8=True needs .* but the model is on cpu\. Call model\.to\("):
        accelerate_inference(tiny_model().bfloat16(), FLOAT8)


def test_other_weights_and_gpus_are_refused(capability):
    with imitated_gpu():
        weight = torch.empty(64, 96, device="cuda", dtype=torch.bfloat16)
        check_float8(weight)
        with pytest.raises(ValueError, match="the model is in float32"):
            check_float8(weight.float())
        with pytest.raises(ValueError, match=r"a weight has the shape \(64, 90\)"):
            check_float8(torch.empty(64, 90, device="cuda", dtype=torch.bfloat16))
        capability(8, 9)
        check_float8(weight)
        capability(8, 6)
        with pytest.raises(ValueError, match=r"cuda:0 has compute capability 8\.6"):
            check_float8(weight)


def test_a_copy_that_is_converted_later_is_refused_at_its_first_use(capability):
    model = tiny_model().bfloat16()
    with imitated_gpu():
        fast = AcceleratedVCPCLIPModel.copy_of(on_imitated_gpu(model), FLOAT8)
        layer = fast.clip.vision_model.encoder.layers[0].mlp.fc1
        # not with `layer.float()`, which refuses tensors of the imitated device that other objects refer to
        layer.weight = torch.nn.Parameter(layer.weight.detach().float(), requires_grad=False)
        with pytest.raises(ValueError, match="the model is in float32"):
            layer(torch.empty(1, 5, 64, device="cuda"))
