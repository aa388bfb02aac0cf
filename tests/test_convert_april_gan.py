"""Conversion of the checkpoints of APRIL-GAN's authors."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.common import FIXTURES, tiny_clip, tiny_tokenizer
from tests.methods.golden import ATTENTION, GoldenFolder, RecordedTokenizer
from tests.methods.golden_april_gan import make_model
from tests.processes import run_program
from vcp_clip_hf.convert_april_gan import convert_april_gan
from vcp_clip_hf.methods import AprilGANModel


# Size in the authors' file -> that of the tiny backbone
SIZES = {1024: 64, 768: 32}


@pytest.fixture
def content():
    """A file in the official layout, with small sizes."""
    layout = json.loads((FIXTURES / "official_checkpoint_layout.json").read_text())["april_gan"]["top_level"]
    return {
        group: {name: torch.randn([SIZES[size] for size in shape]) for name, (shape, _) in entries.items()}
        for group, entries in layout.items()
    }


def convert(content, tmp_path, **kwargs):
    torch.save(content, tmp_path / "visa_pretrained.pth")
    arguments = {"image_size": 48, "tokenizer": tiny_tokenizer(), **kwargs}
    return convert_april_gan(tmp_path / "visa_pretrained.pth", tiny_clip(), **arguments)


def test_every_tensor_of_the_official_layout_has_its_place(content, tmp_path):
    model = convert(content, tmp_path)
    assert model.config.feature_layers == [1, 2, 3, 4] and not model.training
    for name, tensor in content["trainable_linearlayer"].items():
        assert torch.equal(model.adapters.state_dict()[name], tensor), name
    assert not any(parameter.requires_grad for parameter in model.clip.parameters())


def test_a_converted_model_computes_what_the_learned_tensors_say(tmp_path):
    folder = GoldenFolder(FIXTURES / "rivals" / "april_gan")
    model = make_model(folder, RecordedTokenizer(49408))
    learned = load_file(folder.path / "learned.safetensors")
    torch.save({"trainable_linearlayer": learned}, tmp_path / "x.pth")
    config = folder.config
    size, layers = config["image_size"], config["feature_layers"]
    converted = convert_april_gan(tmp_path / "x.pth", folder.clip, size, layers, attn_implementation=ATTENTION)
    pixel_values, text = folder.expected["pixel_values"], folder.expected["text_features_bottle"]
    for each in (model, converted):
        each.text_embeds = lambda names: text.repeat(len(names), 1, 1)
    with torch.no_grad():
        expected, got = model(pixel_values), converted(pixel_values)
    assert torch.equal(got.anomaly_map, expected.anomaly_map) and torch.equal(got.image_scores, expected.image_scores)


def test_the_activation_is_that_of_the_authors_factories(content, tmp_path):
    assert convert(content, tmp_path).config.vision_config.hidden_act == "gelu"
    assert convert(content, tmp_path, image_size=336).config.text_config.hidden_act == "quick_gelu"


def test_every_problem_is_listed_at_once(content, tmp_path):
    layers = content["trainable_linearlayer"]
    del layers["fc.2.bias"]
    layers["fc.1.weight"] = torch.zeros(3, 3)
    layers["fc.0.bias"][0] = torch.inf
    layers["extra"] = torch.zeros(1)
    content["epoch"] = 15
    with pytest.raises(ValueError, match="not an official APRIL-GAN checkpoint") as error:
        convert(content, tmp_path)
    for words in (
        "missing: trainable_linearlayer.fc.2.bias (32,)",
        "wrong shape: trainable_linearlayer.fc.1.weight (3, 3), expected (32, 64)",
        "not finite: trainable_linearlayer.fc.0.bias",
        "unexpected: trainable_linearlayer.extra",
        "unexpected: epoch",
    ):
        assert words in str(error.value)


def test_feature_layers_must_be_as_many_as_the_file_has(content, tmp_path):
    with pytest.raises(ValueError, match=r"feature_layers=\[4\] names 1"):
        convert(content, tmp_path, feature_layers=[4])


def test_the_command_writes_a_folder_that_loads(content, tmp_path):
    torch.save(content, tmp_path / "visa_pretrained.pth")
    tiny_clip().save_pretrained(tmp_path / "clip")
    tiny_tokenizer().save_pretrained(tmp_path / "clip")
    command = ["-m", "vcp_clip_cli", "convert", "--method", "april_gan", "--image-size", "48"]
    options = ["--checkpoint", tmp_path / "visa_pretrained.pth", "--backbone", tmp_path / "clip"]
    options += ["--output", tmp_path / "out"]
    done = run_program(*command, *options)
    assert done.returncode == 0, done.stderr
    assert "8,320 learned parameters" in done.stdout and "skipped" not in done.stdout
    model = AprilGANModel.from_pretrained(tmp_path / "out")
    assert torch.equal(model.adapters.fc[3].bias, content["trainable_linearlayer"]["fc.3.bias"])
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 48, 48), "nut").anomaly_map.shape == (1, 48, 48)
