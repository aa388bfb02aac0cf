"""A backbone in 8 bits. Tests that need torchao run with `make test-torchao`, in an environment of their own."""

import importlib.util
import json

import pytest
import torch
from transformers import BitsAndBytesConfig, QuantoConfig

from examples.research import compare_with_rivals
from tests.common import pixels, tiny_model, tiny_model_with_stem_branch
from vcp_clip_hf import EMBEDDED_CHECKPOINT, VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.backbone_loading import quantize_backbone_only


LEARNED = {"pre_vcp", "deep_prompts", "prompt_norm", "feature_projections", "post_vcp", "stem_branch", "image_head"}
needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")


def int8(way: str):
    """Return a torchao configuration: "weights" only, or "activations" too."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(
        {"weights": Int8WeightOnlyConfig, "activations": Int8DynamicActivationInt8WeightConfig}[way]()
    )


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (QuantoConfig(weights="int8"), "modules_to_not_convert"),
        (QuantoConfig(weights="int8").to_dict(), "modules_to_not_convert"),
        (BitsAndBytesConfig(load_in_8bit=True), "llm_int8_skip_modules"),
    ],
    ids=["object", "dictionary", "another name of the field"],
)
def test_the_learned_part_is_not_quantized(config, field):
    assert set(getattr(quantize_backbone_only(config), field)) == LEARNED
    assert (config.get(field) if isinstance(config, dict) else getattr(config, field)) is None, (
        "the configuration of the caller must not change"
    )


def test_modules_that_the_caller_skips_stay_skipped():
    config = QuantoConfig(weights="int8", modules_to_not_convert=["visual_projection", "post_vcp"])
    kept = quantize_backbone_only(config).modules_to_not_convert
    assert set(kept) == {"visual_projection", *LEARNED} and len(kept) == 8


def test_the_learned_part_is_everything_except_clip():
    with_weights = {
        name for name, module in tiny_model_with_stem_branch(use_image_head=True).named_children() if name != "clip"
    }
    assert with_weights == LEARNED


@needs_torchao
@pytest.mark.parametrize(("way", "tolerance"), [("weights", 0.01), ("activations", 0.05)])
@torch.no_grad()
def test_the_embedded_checkpoint_in_8_bits(way, tolerance):
    exact = VCPCLIPModel.from_pretrained(EMBEDDED_CHECKPOINT, dtype=torch.float32)
    model = VCPCLIPModel.from_pretrained(EMBEDDED_CHECKPOINT, dtype=torch.float32, quantization_config=int8(way))
    linear = {
        f"{name}.weight"
        for name, module in exact.clip.named_modules(prefix="clip")
        if isinstance(module, torch.nn.Linear)
    }
    assert {name for name, each in model.named_parameters() if type(each) is not torch.nn.Parameter} == linear
    images = pixels(2, 224, 224)
    maps = [each(images).anomaly_map for each in (model, exact)]
    difference = (maps[0] - maps[1]).abs()
    assert difference.mean() > 0 and difference.max() < tolerance
    torch.testing.assert_close(
        model(images).anomaly_map, maps[0], msg="cached keys and values must belong to these weights"
    )


@needs_torchao
def test_the_comparison_in_8_bits(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    VCPCLIPImageProcessor.for_model(model.config).save_pretrained(tmp_path)
    options = ["--model", str(tmp_path), "--int8", "--dataset", "synthetic", "--num_test_images", "20"]
    values = compare_with_rivals.main(options)["synthetic"]
    for title in ("int8 weights", "int8 weights and activations"):
        assert values[title] != values["VCP-CLIP"]
        assert values[title]["pixel_auroc"] == pytest.approx(values["VCP-CLIP"]["pixel_auroc"], abs=0.05)


@needs_torchao
def test_a_checkpoint_that_could_not_be_loaded_is_not_written(tmp_path):
    tiny_model().save_pretrained(tmp_path / "exact")
    model = VCPCLIPModel.from_pretrained(tmp_path / "exact", quantization_config=int8("weights"))
    with pytest.raises(ValueError, match="quantize it whenever it is loaded"):
        model.save_pretrained(tmp_path / "quantized")
    assert not (tmp_path / "quantized").exists()
    assert "quantization_config" not in json.loads((tmp_path / "exact" / "config.json").read_text())


@needs_torchao
@torch.no_grad()
def test_a_checkpoint_without_its_backbone(tmp_path):
    model = tiny_model()
    model.clip.save_pretrained(tmp_path / "clip")
    model.config.backbone_name_or_path = str(tmp_path / "clip")
    model.save_pretrained(tmp_path / "adapter", adapter_only=True)
    again = VCPCLIPModel.from_pretrained(tmp_path / "adapter", quantization_config=int8("weights"))
    assert type(again.clip.visual_projection.weight) is not torch.nn.Parameter
    images = pixels(1)
    torch.testing.assert_close(again(images).anomaly_map, model(images).anomaly_map, atol=0.05, rtol=0)
