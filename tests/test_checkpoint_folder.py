"""Loading and saving the parts of a checkpoint."""

import json
import shutil

import pytest
import torch

from tests.common import tiny_model, tiny_tokenizer
from vcp_clip_hf import EMBEDDED_CHECKPOINT, VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.backbone_loading import BACKBONE_PREFIX, learned_state
from vcp_clip_hf.checkpoint_folder import CheckpointParts, complete_parts, load_parts, save_calibration, save_parts
from vcp_clip_hf.model_card import is_generated


CONVERTED = {"converted_from": {"file": "train.pth", "sha256": "0"}}


@pytest.fixture
def parts():
    torch.manual_seed(0)
    model = tiny_model()
    processor = VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=1.0, threshold=0.25)
    return CheckpointParts(model, processor, tiny_tokenizer())


def assert_equal(one: CheckpointParts, other: CheckpointParts) -> None:
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert one.image_processor.to_dict() == other.image_processor.to_dict()
    assert one.tokenizer.get_vocab() == other.tokenizer.get_vocab()


@pytest.mark.parametrize("adapter_only", [False, True])
def test_parts_come_back_equal(adapter_only, parts, tmp_path):
    parts.model.clip.save_pretrained(tmp_path / "clip")
    parts.model.config.backbone_name_or_path = str(tmp_path / "clip")
    save_parts(tmp_path / "saved", parts, adapter_only=adapter_only, training_facts=CONVERTED)
    files = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "training.json", "README.md"} <= files
    assert not [name for name in files if name.endswith(".py")]
    assert_equal(load_parts(tmp_path / "saved"), parts)
    assert_equal(complete_parts(VCPCLIPModel.from_pretrained(tmp_path / "saved")), parts)


def test_other_dtypes_fields_and_backbones(parts, tmp_path):
    parts.model.clip.save_pretrained(tmp_path / "saved" / "clip")
    parts.model.config.backbone_name_or_path = "no/such/clip"
    save_parts(tmp_path / "saved", parts, adapter_only=True)
    with pytest.raises(OSError, match="'no/such/clip' could not be loaded"):
        load_parts(tmp_path / "saved")
    loaded = load_parts(tmp_path / "saved", "clip", dtype=torch.float16, fusion_weight=0.125)
    assert loaded.model.dtype == torch.float16 and loaded.model.config.fusion_weight == 0.125
    assert loaded.model.config.backbone_name_or_path == "clip"


def test_without_weights_there_is_an_untrained_model_on_request_only(parts, tmp_path):
    parts.model.config.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load_parts(tmp_path)
    with pytest.raises(ValueError, match=r"no weights and its config\.json names no backbone. Pass backbone="):
        load_parts(tmp_path, untrained=True)
    parts.model.clip.save_pretrained(tmp_path / "clip")
    tiny_tokenizer().save_pretrained(tmp_path / "clip")
    made = load_parts(tmp_path, "clip", untrained=True)
    ours, theirs = parts.model.state_dict(), made.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith(BACKBONE_PREFIX))
    assert learned_state(theirs).keys() == learned_state(ours).keys()
    # the image processor has default settings, and the tokenizer is the backbone's
    assert made.image_processor.size.height == 48 and made.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()


def test_the_embedded_backbone_has_a_short_name(tmp_path):
    embedded = load_parts(EMBEDDED_CHECKPOINT)
    embedded.model.config.save_pretrained(tmp_path)
    made = load_parts(tmp_path, "embedded", untrained=True)
    name = "clip.visual_projection.weight"
    assert torch.equal(made.model.state_dict()[name], embedded.model.state_dict()[name])
    assert made.tokenizer.get_vocab() == embedded.tokenizer.get_vocab()


def test_missing_parts_are_reported(parts, tmp_path, caplog):
    parts.model.save_pretrained(tmp_path)
    for found in (load_parts(tmp_path), complete_parts(parts.model)):
        assert found.tokenizer is None and found.image_processor.threshold is None
    no_tokenizer, no_processor, new_model = caplog.messages
    assert "other prompts and product names cannot be tokenized" in no_tokenizer
    assert no_processor.startswith(f"{tmp_path} comes without an image processor")
    assert new_model.startswith("The model comes without an image processor")
    # a tokenizer with another vocabulary does not fit the model
    shutil.copytree(EMBEDDED_CHECKPOINT, tmp_path / "other")
    (tmp_path / "other" / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    (tmp_path / "other" / "tokenizer_config.json").rename(tmp_path / "tokenizer_config.json")
    assert load_parts(tmp_path).tokenizer is None


def test_given_parts_are_kept(parts, tmp_path):
    save_parts(tmp_path, parts)
    model = VCPCLIPModel.from_pretrained(tmp_path)
    other = VCPCLIPImageProcessor.for_model(model.config, threshold=0.75)
    found = complete_parts(model, other)
    assert found.model is model and found.image_processor is other and found.tokenizer is not None


def test_facts_of_the_source_are_copied_and_those_of_a_training_are_not_mixed_with_them(parts, tmp_path):
    save_parts(tmp_path / "one", parts, training_facts=CONVERTED)
    (tmp_path / "one" / "card.json").write_text('{"name": "the first"}')
    loaded = load_parts(tmp_path / "one")
    save_parts(tmp_path / "two", loaded)
    text = (tmp_path / "two" / "README.md").read_text()
    assert "# the first" in text and "train.pth" in text
    save_parts(tmp_path / "three", loaded, training_facts={"converted_from": {"file": "other.pth", "sha256": "0"}})
    text = (tmp_path / "three" / "README.md").read_text()
    assert "the first" not in text and "train.pth" not in text and "other.pth" in text


def test_calibration_changes_thresholds_and_card_only(parts, tmp_path):
    save_parts(tmp_path / "one", parts)
    loaded = load_parts(tmp_path / "one")
    before = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    with torch.no_grad():
        loaded.model.base_logit_scale += 1  # must not be written
    loaded.image_processor.threshold = 0.75
    save_calibration(tmp_path / "one", loaded)
    after = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"preprocessor_config.json", "README.md"}
    assert "at least 0.75 belong to the mask" in after["README.md"].decode()

    save_calibration(tmp_path / "two", loaded)
    assert_equal(load_parts(tmp_path / "two"), loaded)


def test_code_is_included_with_the_names_that_transformers_looks_for(parts, tmp_path):
    save_parts(tmp_path, parts, include_code=True)
    config = json.loads((tmp_path / "config.json").read_text())
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    named = {*config["auto_map"].values(), *processor["auto_map"].values()}
    named |= {task["impl"] for task in config["custom_pipelines"].values()}
    for name in named:
        module, kind = name.split(".")
        assert f"class {kind}" in (tmp_path / f"{module}.py").read_text()
    assert len(named) == 4 and list(config["custom_pipelines"]) == ["anomaly-segmentation"]
    assert not (tmp_path / "checkpoint_folder.py").exists() and not (tmp_path / "hub.py").exists()
    # the objects are unchanged
    save_parts(tmp_path / "plain", parts)
    assert "auto_map" not in (tmp_path / "plain" / "config.json").read_text()
    assert is_generated((tmp_path / "plain" / "README.md").read_text())


def test_another_backbone_for_a_checkpoint_that_includes_its_own_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="includes the weights of its CLIP, so backbone="):
        load_parts(tmp_path, backbone="embedded")
