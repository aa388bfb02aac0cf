"""The image tower of an accelerated copy: on a GPU fewer and larger kernels, on a CPU what it was."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.clip.modeling_clip import CLIPAttention

from tests.common import pixels, tiny_hybrid, tiny_model
from tests.imitated_gpu import imitated_gpu, on_imitated_gpu
from vcp_clip_hf import VCPCLIPModel, float8_linear, fused_pointwise
from vcp_clip_hf.accelerated_inference import AcceleratedVCPCLIPModel, accelerate_inference
from vcp_clip_hf.accelerated_vision import copied_parts
from vcp_clip_hf.acceleration_settings import Acceleration
from vcp_clip_hf.fused_pointwise import FusedFunction


PLAIN_PASSES = Acceleration(cuda_graphs=False)


def close(actual, expected, tolerance=1e-6):
    """Compare tensors; the tolerance is relative to the largest magnitude."""
    torch.testing.assert_close(actual, expected, atol=tolerance * expected.abs().max().item(), rtol=0)


class Operators(TorchDispatchMode):
    """Count operators by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


# --- equal to the plain tower ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(48, 48), (24, 40), (45, 50)], ids=["square", "wide", "with a remainder"])
@torch.no_grad()
def test_the_patch_embedding_as_a_product(size):
    embedding = accelerate_inference(tiny_model()).clip.vision_model.embeddings.patch_embedding
    images = pixels(3, *size)
    patches = embedding.product(images)
    close(patches, nn.Conv2d.forward(embedding, images))
    assert patches.flatten(2).transpose(1, 2).is_contiguous(), "the tokens need no copy"


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_queries_keys_and_values_as_one_product(implementation):
    model = tiny_model()
    model.clip.vision_model.config._attn_implementation = implementation
    fast = accelerate_inference(model)
    attention = fast.clip.vision_model.encoder.layers[1].self_attn
    states = torch.randn(2, 17, 64)
    expected, weights = CLIPAttention.forward(attention, states)
    ours, our_weights = attention.attend_joined(states)
    close(ours, expected)
    if implementation == "eager":
        close(our_weights, weights)


@pytest.fixture
def seen():
    """Register an attention implementation that keeps what it gets; return the list of it."""
    calls = []

    def record(module, query, key, value, attention_mask, **kwargs):
        calls.append((query, key, value))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("recorded", record)
    yield calls
    AttentionInterface._global_mapping.pop("recorded")


@torch.no_grad()
def test_the_attention_that_was_chosen_gets_views(seen, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model = VCPCLIPModel.from_pretrained(tmp_path, attn_implementation={"vision_config": "recorded"})
    fast, images = accelerate_inference(model), pixels(2)
    close(fast(images).anomaly_map, model(images).anomaly_map)
    seen.clear()
    fast.clip.vision_model.encoder.layers[0].self_attn.attend_joined(torch.randn(2, 17, 64))
    ((query, key, value),) = seen
    storage = query.untyped_storage()
    for each in (query, key, value):
        assert each.shape == (2, 2, 17, 32) and each.stride(-1) == 1
        assert each.untyped_storage().data_ptr() == storage.data_ptr()
    assert storage.nbytes() == 3 * query.nbytes


def test_flash_attention_of_either_tower_is_no_obstacle():
    model = tiny_model()
    for name in ("flash_attention_3", "kernels-community/flash-attn3"):
        model.clip.vision_model.config._attn_implementation = name
        model.clip.text_model.config._attn_implementation = name
        fast = accelerate_inference(model)
        assert fast.clip.vision_model.config._attn_implementation == name


@torch.no_grad()
def test_compiled_elementwise_operations():
    model, images = tiny_model(hidden_act="quick_gelu"), pixels(2)
    plain, fast = (
        accelerate_inference(model, each) for each in (Acceleration(), Acceleration(compile_pointwise=True))
    )
    ours, theirs = (each(images, output_hidden_states=True) for each in (fast, plain))
    close(ours.anomaly_map, theirs.anomaly_map, 1e-5)
    for our, their in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        close(our, their)
    for function in (fused_pointwise._fused_normalized_sum, fused_pointwise._fused_quick_gelu):
        assert function._compiled is not None and not function._failed


# --- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_model, tiny_hybrid], ids=["CLIP's patch embedding", "a stem"])
def test_the_kernels_on_a_gpu(make):
    model = make()
    with imitated_gpu():
        model = on_imitated_gpu(model)
        images = torch.empty(2, 3, 48, 48, device="cuda")
        counts = {}
        for each in (model, AcceleratedVCPCLIPModel.copy_of(model, PLAIN_PASSES)):
            tower = each.clip.vision_model
            tower(images, interpolate_pos_encoding=True)  # constants are computed
            with Operators() as operators, torch.no_grad():
                states = tower(images, interpolate_pos_encoding=True).last_hidden_state
            assert states.device.type == "cuda" and states.shape == (2, 37, 64) and states.dtype == torch.float32
            counts[each] = operators.counts
    plain, fast = counts.values()
    convolutions = 0 if make is tiny_model else plain["convolution"]
    assert plain["addmm"] - fast["addmm"] == 2 * 4 and fast["convolution"] == convolutions
    assert fast["mm"] - plain["mm"] == (make is tiny_model)
    assert fast["_upsample_bicubic2d_aa"] == 0 and fast["cat"] == plain["cat"] - 1, "of the position table"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_pass_on_a_gpu(dtype):
    model = tiny_model().to(dtype)
    with imitated_gpu():
        fast = AcceleratedVCPCLIPModel.copy_of(on_imitated_gpu(model), PLAIN_PASSES)
        for _ in range(2):
            outputs = fast(torch.empty(2, 3, 48, 48, device="cuda"), output_hidden_states=True)
        assert outputs.anomaly_map.device.type == "cuda" and outputs.anomaly_map.shape == (2, 48, 48)
        assert {each.dtype for each in outputs.hidden_states} == {dtype}


def test_float8_on_a_gpu(monkeypatch):
    monkeypatch.setattr(float8_linear, "_compute_capability", lambda device: (9, 0))
    for function in (each for each in vars(float8_linear).values() if isinstance(each, FusedFunction)):
        monkeypatch.setattr(function, "_failed", True)  # tensors without values cannot be compiled
    model = tiny_model().bfloat16()
    with imitated_gpu():
        fast = AcceleratedVCPCLIPModel.copy_of(on_imitated_gpu(model), Acceleration(cuda_graphs=False, float8=True))
        images = torch.empty(2, 3, 48, 48, device="cuda")
        fast(images)
        with Operators() as operators:
            assert fast(images).anomaly_map.device.type == "cuda"
    assert operators.counts["_scaled_mm"] == 4 * 4


def test_on_a_cpu_nothing_is_joined():
    fast = accelerate_inference(tiny_model())
    fast(pixels(1))
    assert not any(block.self_attn.joined.values for block in fast.clip.vision_model.encoder.layers)


# --- changed weights ------------------------------------------------------------------------------------------------


def test_copied_parts_follow_the_device_and_the_settings():
    tower = tiny_model().clip.vision_model
    names = {module: name for name, module in tower.named_modules()}

    def named(tower, settings):
        return {names[each] for each in copied_parts(tower, settings)}

    joined = {f"encoder.layers.{n}.self_attn.{part}_proj" for n in range(4) for part in "qkv"}
    others = {f"encoder.layers.{n}.{part}" for n in range(4) for part in ("self_attn.out_proj", "mlp.fc1", "mlp.fc2")}
    assert named(tower, Acceleration()) == {"embeddings"}
    assert named(tower, Acceleration(float8=True)) == {"embeddings", *joined, *others}
    with imitated_gpu():
        tower = on_imitated_gpu(tower)
        names = {module: name for name, module in tower.named_modules()}
        assert named(tower, Acceleration()) == {"embeddings", *joined}


def test_joined_weights_follow_the_copy():
    fast = accelerate_inference(tiny_model())
    attention = fast.clip.vision_model.encoder.layers[0].self_attn
    attention.attend_joined(torch.randn(1, 5, 64))
    fast.to(torch.bfloat16)
    assert attention.attend_joined(torch.randn(1, 5, 64).bfloat16())[0].dtype == torch.bfloat16
