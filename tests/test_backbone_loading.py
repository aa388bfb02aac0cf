"""Saving and loading: full, learned part only, sharded, other number formats, fresh process."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, CLIPModel

from tests.common import HYBRID_VISION, pixels, tiny_clip, tiny_model, tiny_tokenizer
from tests.processes import run_program
from vcp_clip_hf import VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.methods import METHODS
from vcp_clip_hf.vision_tower import VCPCLIPVisionEmbeddings


def assert_same(model, again):
    """Compare every parameter and every buffer, including those that are not saved, and the outputs."""
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(model, kind)()), dict(getattr(again, kind)())
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert torch.equal(value, theirs[name]), name
            assert value.requires_grad == theirs[name].requires_grad, name
    images = pixels(2)
    with torch.no_grad():
        # Not bit-equal: the memory alignment of a tensor changes how a matrix product is divided
        torch.testing.assert_close(again(images).anomaly_map, model(images).anomaly_map, atol=1e-6, rtol=0)


@pytest.fixture
def adapter(tmp_path):
    """A model on a saved backbone, and its checkpoint with the learned part only."""
    tiny_clip().save_pretrained(tmp_path / "clip")
    tiny_tokenizer().save_pretrained(tmp_path / "clip")
    model = VCPCLIPModel.from_clip(tmp_path / "clip", image_size=48)
    model.save_pretrained(tmp_path / "adapter", adapter_only=True)
    return model, tmp_path


def test_full(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert_same(model, VCPCLIPModel.from_pretrained(tmp_path))
    assert_same(model, AutoModel.from_pretrained(tmp_path))


@pytest.mark.parametrize(
    "fields", [{"use_post_vcp": False}, {"use_pre_vcp": False}, {"num_deep_prompt_tokens": 0}], ids=str
)
def test_parts_that_are_switched_off_leave_no_weights(fields, tmp_path):
    model = tiny_model(**fields)
    model.save_pretrained(tmp_path)
    assert_same(model, VCPCLIPModel.from_pretrained(tmp_path))


def test_sharded(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same(model, VCPCLIPModel.from_pretrained(tmp_path))


def test_bfloat16(tmp_path):
    model = tiny_model().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    again = VCPCLIPModel.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    assert_same(model, again)
    assert VCPCLIPModel.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_learned_part_only(adapter):
    model, folder = adapter
    saved = load_file(folder / "adapter" / "model.safetensors")
    assert saved and not any(name.startswith("clip.") for name in saved)
    assert json.loads((folder / "adapter" / "config.json").read_text())["backbone_included"] is False
    assert model.config.backbone_included is True, "saving must not change the model"

    again, info = VCPCLIPModel.from_pretrained(folder / "adapter", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_same(model, again)
    assert_same(model, AutoModel.from_pretrained(folder / "adapter"))
    # It can be saved in full again
    again.save_pretrained(folder / "full")
    assert_same(model, VCPCLIPModel.from_pretrained(folder / "full"))


def test_learned_part_only_in_shards_and_variants(adapter):
    model, folder = adapter
    model.save_pretrained(folder / "shards", adapter_only=True, max_shard_size="50KB")
    assert len(list((folder / "shards").glob("model-*.safetensors"))) > 1
    assert_same(model, VCPCLIPModel.from_pretrained(folder / "shards"))
    for size in ("1GB", "50KB"):
        model.save_pretrained(folder / size, adapter_only=True, variant="fp32", max_shard_size=size)
        assert_same(model, VCPCLIPModel.from_pretrained(folder / size, variant="fp32"))


def test_arguments_reach_an_adapter_only_model(adapter):
    _, folder = adapter
    again = VCPCLIPModel.from_pretrained(
        folder / "adapter", dtype=torch.bfloat16, attn_implementation="eager", fusion_weight=0.5
    )
    assert again.dtype == torch.bfloat16 and again.clip.text_projection.weight.dtype == torch.bfloat16
    assert again.clip.vision_model.config._attn_implementation == "eager"
    assert again.config.fusion_weight == 0.5


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", torch.float64])
def test_an_adapter_only_model_takes_every_dtype(adapter, dtype):
    model, folder = adapter
    again = AutoModel.from_pretrained(folder / "adapter", dtype=dtype)
    expected = {"auto": torch.float32, "bfloat16": torch.bfloat16}.get(dtype, dtype)
    assert {parameter.dtype for parameter in again.parameters()} == {expected}
    if dtype == "auto":
        assert_same(model, again)


def test_the_backbone_may_lie_beside_the_checkpoint_or_elsewhere(adapter):
    model, folder = adapter
    config_file = folder / "adapter" / "config.json"
    config = json.loads(config_file.read_text())
    config["backbone_name_or_path"] = "../clip"
    config_file.write_text(json.dumps(config))
    assert_same(model, VCPCLIPModel.from_pretrained(folder / "adapter"))

    (folder / "clip").rename(folder / "moved")
    assert_same(model, VCPCLIPModel.from_pretrained(folder / "adapter", backbone_name_or_path=str(folder / "moved")))


def test_a_backbone_that_is_not_there_is_named_with_the_way_out(adapter):
    _, folder = adapter
    with pytest.raises(OSError) as error:
        VCPCLIPModel.from_pretrained(folder / "adapter", backbone_name_or_path="nobody/nothing")
    for words in ("nobody/nothing", "learned part only", "backbone_name_or_path="):
        assert words in str(error.value)


def test_another_backbone_is_refused_in_one_line(adapter):
    _, folder = adapter
    tiny_clip(vision={"num_hidden_layers": 5}).save_pretrained(folder / "deeper")
    with pytest.raises(ValueError, match="num_hidden_layers: 4 in the checkpoint, 5 in the backbone"):
        VCPCLIPModel.from_pretrained(folder / "adapter", backbone_name_or_path=str(folder / "deeper"))


def test_no_backbone_to_name_is_an_error_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="backbone_name_or_path is not set"):
        tiny_model().save_pretrained(tmp_path / "adapter", adapter_only=True)
    assert not (tmp_path / "adapter").exists()


def test_missing_weights_are_named(adapter):
    _, folder = adapter
    (folder / "adapter" / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        VCPCLIPModel.from_pretrained(folder / "adapter")


def test_the_backbone_can_be_taken_out_again(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    clip = CLIPModel.from_pretrained(tmp_path)
    for name, value in model.clip.state_dict().items():
        assert torch.equal(clip.state_dict()[name], value), name


def test_a_fresh_process_loads_through_the_auto_classes(adapter):
    model, folder = adapter
    VCPCLIPImageProcessor.for_model(model.config).save_pretrained(folder / "adapter")
    images = pixels(1)
    torch.save(images, folder / "images.pt")
    program = (
        "import torch, vcp_clip_hf\n"
        "from transformers import AutoConfig, AutoImageProcessor, AutoModel\n"
        f"model = AutoModel.from_pretrained({str(folder / 'adapter')!r})\n"
        f"processor = AutoImageProcessor.from_pretrained({str(folder / 'adapter')!r})\n"
        "assert type(processor).__name__ == 'VCPCLIPImageProcessor' and processor.size.height == 48\n"
        f"maps = model(torch.load({str(folder / 'images.pt')!r})).anomaly_map\n"
        f"torch.save(maps.detach(), {str(folder / 'maps.pt')!r})\n"
    )
    done = run_program("-c", program)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        torch.testing.assert_close(torch.load(folder / "maps.pt"), model(images).anomaly_map, atol=1e-6, rtol=0)


def test_auto_classes_find_ours(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    VCPCLIPImageProcessor.for_model(model.config, threshold=0.25).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)).__name__ == "VCPCLIPConfig"
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(processor, VCPCLIPImageProcessor) and processor.threshold == 0.25


# --- image towers with a convolutional stem -------------------------------------------------------------------------

STEM_WEIGHT = "vision_model.embeddings.patch_embedding.stem.first.weight"


def saved_hybrid_clip(folder) -> CLIPModel:
    """Save a CLIP of transformers whose image embeddings are ours, and its tokenizer."""
    clip = CLIPModel(tiny_clip(vision=dict(HYBRID_VISION)).config)
    clip.vision_model.embeddings = VCPCLIPVisionEmbeddings(clip.config.vision_config)
    clip.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return clip


def assert_is_the_clip(model: VCPCLIPModel, clip: CLIPModel) -> None:
    ours, theirs = model.clip.state_dict(), clip.state_dict()
    assert ours.keys() == theirs.keys() and STEM_WEIGHT in ours
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    assert model.config.vision_config.stem == "efficientnet_lite0"
    assert not any(each.requires_grad for each in model.clip.parameters())


def test_a_backbone_with_a_stem_is_loaded_whole(tmp_path):
    clip = saved_hybrid_clip(tmp_path / "clip")
    model = VCPCLIPModel.from_clip(tmp_path / "clip", image_size=48)
    assert_is_the_clip(model, clip)
    assert_is_the_clip(VCPCLIPModel.from_clip(clip, image_size=48, tokenizer=tiny_tokenizer()), clip)

    model.save_pretrained(tmp_path / "whole")
    tiny_tokenizer().save_pretrained(tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["vision_config"]["stem"]
    assert_same(model, VCPCLIPModel.from_pretrained(tmp_path / "whole"))
    assert_is_the_clip(VCPCLIPModel.from_clip(tmp_path / "whole", image_size=48), clip)

    model.save_pretrained(tmp_path / "adapter", adapter_only=True)
    assert not any(name.startswith("clip.") for name in load_file(tmp_path / "adapter" / "model.safetensors"))
    assert_same(model, VCPCLIPModel.from_pretrained(tmp_path / "adapter"))
    for backbone in ("clip", "whole"):
        again = VCPCLIPModel.from_pretrained(
            tmp_path / "adapter", backbone_name_or_path=str(tmp_path / backbone), dtype=torch.bfloat16
        )
        weight = again.clip.state_dict()[STEM_WEIGHT]
        assert torch.equal(weight, clip.state_dict()[STEM_WEIGHT].bfloat16())


def test_every_method_takes_a_backbone_with_a_stem(tmp_path):
    clip = saved_hybrid_clip(tmp_path)
    model = METHODS["april_gan"].fitted_to(tmp_path, image_size=48)
    assert_is_the_clip(model, clip)


def without_weights(folder, *names: str) -> None:
    """Remove weights from a saved model."""
    weights = load_file(folder / "model.safetensors")
    for name in names:
        del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_missing_weights_of_a_stem_are_an_error(tmp_path):
    saved_hybrid_clip(tmp_path / "clip")
    model = VCPCLIPModel.from_clip(tmp_path / "clip", image_size=48)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "adapter", adapter_only=True)
    without_weights(tmp_path / "clip", STEM_WEIGHT, STEM_WEIGHT.replace("weight", "bias"))
    without_weights(tmp_path / "whole", f"clip.{STEM_WEIGHT}")
    named = re.escape(STEM_WEIGHT.replace("weight", "bias"))
    with pytest.raises(ValueError, match=f"not a complete CLIP: 2 tensors are missing, such as {named}"):
        VCPCLIPModel.from_clip(tmp_path / "clip", image_size=48)
    with pytest.raises(ValueError, match="2 tensors are missing"):
        VCPCLIPModel.from_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="whole' are not a complete CLIP: 1 tensors are missing"):
        VCPCLIPModel.from_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="1 tensors are missing"):
        VCPCLIPModel.from_clip(tmp_path / "whole", image_size=48, tokenizer=tiny_tokenizer())
    # transformers' own class drops the stem
    with pytest.raises(ValueError, match="68 tensors are missing"):
        VCPCLIPModel.from_clip(CLIPModel.from_pretrained(tmp_path / "clip"), image_size=48, tokenizer=tiny_tokenizer())


def test_a_backbone_with_another_stem_is_refused(adapter):
    _, folder = adapter
    saved_hybrid_clip(folder / "hybrid")
    message = "vision_config.stem: None in the checkpoint, efficientnet_lite0 in the backbone"
    with pytest.raises(ValueError, match=message):
        VCPCLIPModel.from_pretrained(folder / "adapter", backbone_name_or_path=str(folder / "hybrid"))


def test_checkpoints_without_a_stem_do_not_name_one(adapter):
    model, folder = adapter
    model.save_pretrained(folder / "whole")
    for file in folder.glob("*/config.json"):
        assert "stem" not in json.loads(file.read_text())["vision_config"]
