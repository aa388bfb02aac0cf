"""Features of transformers and accelerate with the trained methods: offloading, other dtypes, attentions."""

import accelerate
import pytest
import torch

from tests.common import pixels
from tests.methods.common import tiny_method


TRAINED = ["anomaly_clip", "cocoop"]

OFFLOADING = {
    "cpu_offload": lambda model, folder: accelerate.cpu_offload(model, torch.device("cpu")),
    "disk_offload": lambda model, folder: accelerate.disk_offload(model, folder / "weights", torch.device("cpu")),
}


@pytest.mark.parametrize("offload", OFFLOADING.values(), ids=OFFLOADING.keys())
@pytest.mark.parametrize("method", TRAINED)
@torch.no_grad()
def test_offloaded_weights_give_the_same_maps(method, offload, tmp_path):
    model, images = tiny_method(method), pixels(2)
    expected = model(images, "nut").anomaly_map
    offloaded = offload(model, tmp_path)
    assert any(parameter.device.type == "meta" for parameter in offloaded.parameters())
    torch.testing.assert_close(offloaded(images, "nut").anomaly_map, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", TRAINED)
@torch.no_grad()
def test_a_model_larger_than_memory_is_loaded_and_runs(method, tmp_path):
    model, images = tiny_method(method), pixels(2)
    model.save_pretrained(tmp_path / "checkpoint")
    loaded = type(model).from_pretrained(
        tmp_path / "checkpoint", device_map="auto", max_memory={"cpu": "300KB"}, offload_folder=tmp_path / "weights"
    )
    assert any(parameter.device.type == "meta" for parameter in loaded.parameters())
    torch.testing.assert_close(loaded(images, "nut").anomaly_map, model(images, "nut").anomaly_map, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", TRAINED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_gives_maps_in_float32(method, dtype):
    model, images = tiny_method(method), pixels(1)
    expected = model(images, "nut")
    outputs = model.to(dtype)(images.to(dtype), "nut")
    assert outputs.anomaly_map.dtype == outputs.image_scores.dtype == torch.float32
    assert (outputs.anomaly_map - expected.anomaly_map).abs().mean() < 0.05


@pytest.mark.parametrize("method", TRAINED)
@torch.no_grad()
def test_eager_attention_gives_the_same_maps(method):
    model, images = tiny_method(method), pixels(1)
    expected = model(images, "nut").anomaly_map
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(images, "nut").anomaly_map, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", TRAINED)
@torch.no_grad()
def test_sides_need_not_be_equal(method):
    outputs = tiny_method(method)(pixels(1, 32, 56), "nut")
    assert outputs.anomaly_map.shape == (1, 32, 56)
