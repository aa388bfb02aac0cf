"""Conversion of the authors' checkpoints. `test_modeling_vcp_clip` compares the outputs of converted models."""

import pickle

import pytest
import torch
from transformers import AutoTokenizer

from tests.common import golden, tiny_clip, tiny_tokenizer
from tests.processes import run_program
from vcp_clip_hf import VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.convert_vcp_clip_to_hf import convert_checkpoint, official_image_processor


def convert(content, tmp_path, name="official_a", **kwargs):
    values = golden(name)
    torch.save(content, tmp_path / "changed.pth")
    arguments = {"image_size": values.config["image_size"], **values.prompts, **kwargs}
    return convert_checkpoint(tmp_path / "changed.pth", values.backbone, **arguments)


@pytest.fixture
def content():
    return torch.load(golden("official_a").checkpoint, weights_only=True)


def test_sizes_come_from_the_file_and_settings_from_the_authors_code():
    values = golden("official_b")
    model = convert_checkpoint(values.checkpoint, values.backbone, 40, (1, 3), **values.prompts)
    config = model.config
    assert (config.num_category_tokens, config.num_deep_prompt_tokens, config.feature_layers) == (3, 2, [1, 3])
    assert config.fusion_weight == 0.8 and config.text_config.hidden_act == "gelu"
    assert not model.training and not any(parameter.requires_grad for parameter in model.clip.parameters())
    processor = official_image_processor(config)
    assert (processor.score_mode, processor.smoothing_sigma, processor.resize_mode) == ("top_k", 8, "squash")
    assert official_image_processor(type(config)()).top_k_fraction == 2000 / 518**2


def test_every_problem_is_listed_at_once(content, tmp_path):
    del content["Zero_try"]["q_proj_pre.weight"], content["prompt_norm.bias"]
    content["surprise"] = torch.zeros(3)
    content["New_Lan_Embed"]["extra"] = torch.zeros(3)
    content["prompt_proj.weight"] = torch.zeros(5, 5)
    content["prompt_norm.weight"] = "words"
    content["trainable_linearlayer"]["fc.0.bias"] = torch.full((64,), torch.nan)
    with pytest.raises(ValueError) as error:
        convert(content, tmp_path)
    for words in (
        "missing: Zero_try.q_proj_pre.weight (64, 64, 1)",
        "missing: prompt_norm.bias (64,)",
        "unexpected: surprise",
        "unexpected: New_Lan_Embed.extra",
        "wrong shape: prompt_proj.weight (5, 5), expected (64, 64)",
        "not a tensor: prompt_norm.weight is a str",
        "not finite: trainable_linearlayer.fc.0.bias",
    ):
        assert words in str(error.value)
    assert "prompt_text_projection" not in str(error.value)


def test_entries_without_effect_may_be_missing(content, tmp_path):
    full = convert(content, tmp_path)
    del content["prompt_text_projection"], content["Zero_try"]["k_proj_pre_1.bias"]
    for name, value in convert(content, tmp_path).state_dict().items():
        assert torch.equal(value, full.state_dict()[name]), name


def test_feature_layers_must_be_as_many_as_the_file_has(content, tmp_path):
    with pytest.raises(ValueError, match=r"4 feature layers, but feature_layers=\(1, 2\) names 2"):
        convert(content, tmp_path, feature_layers=(1, 2))
    for index in (2, 3):
        for part in ("weight", "bias"):
            del content["trainable_linearlayer"][f"fc.{index}.{part}"]
    with pytest.raises(ValueError, match=r"Pass feature_layers, 2 of 1\.\.4"):
        convert(content, tmp_path)
    assert convert(content, tmp_path, feature_layers=(2, 4)).config.feature_layers == [2, 4]


def test_a_wrong_backbone_is_reported_by_its_shapes(content, tmp_path):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"prompt_proj\.weight \(64, 64\), expected \(32, 32\) for this backbone"):
        convert_checkpoint(tmp_path / "file.pth", tiny_clip(), 48, tokenizer=tiny_tokenizer())


def test_other_files_are_refused(tmp_path):
    backbone = golden("official_a").backbone
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        convert_checkpoint(tmp_path / "none.pth", backbone)
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match="could not be read as tensors"):
        convert_checkpoint(tmp_path / "text.pth", backbone)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list, expected the authors'"):
        convert_checkpoint(tmp_path / "list.pth", backbone)


class _Harmful:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_code_in_a_pickle_is_run(tmp_path):
    trace = tmp_path / "trace"
    torch.save({"prompt_norm.weight": _Harmful(trace)}, tmp_path / "harmful.pth")
    with pytest.raises(ValueError, match="refused"):
        convert_checkpoint(tmp_path / "harmful.pth", golden("official_a").backbone)
    assert not trace.exists()
    with open(tmp_path / "plain.pth", "wb") as file:
        pickle.dump({"x": _Harmful(trace)}, file)
    with pytest.raises(ValueError, match="refused"):
        convert_checkpoint(tmp_path / "plain.pth", golden("official_a").backbone)
    assert not trace.exists()


def run(*arguments):
    return run_program("-m", "vcp_clip_hf.convert_vcp_clip_to_hf", *arguments)


def test_the_command_writes_a_hub_ready_folder(tmp_path):
    """Uses the default prompts, so that the backbone needs OpenAI's vocabulary but no tokenizer."""
    values = golden("official_a")
    values.backbone.save_pretrained(tmp_path / "clip")
    output = tmp_path / "converted"
    options = ["--checkpoint", values.checkpoint, "--backbone", tmp_path / "clip", "--image_size", 64]
    done = run(*options, "--output", output)
    assert done.returncode == 0, done.stderr
    for words in ("learned parameters", "skipped prompt_text_projection", "no tokenizer"):
        assert words in done.stdout
    files = {"config.json", "model.safetensors", "preprocessor_config.json", "training.json", "README.md"}
    assert {path.name for path in output.iterdir()} == files
    assert "Converted from their file `checkpoint.pth`" in (output / "README.md").read_text()

    model = VCPCLIPModel.from_pretrained(output)
    processor = VCPCLIPImageProcessor.from_pretrained(output)
    with torch.no_grad():
        outputs = model(values.expected["pixel_values"])
    for result, expected in zip(
        processor.post_process_anomaly_segmentation(outputs), values.expected["map_smooth"], strict=True
    ):
        torch.testing.assert_close(result["anomaly_map"], expected, atol=1e-5, rtol=0)

    letters = tiny_tokenizer.__wrapped__()  # a new one, because it is changed
    letters.add_tokens([f"word{index}" for index in range(49408 - len(letters))])
    letters.save_pretrained(tmp_path / "clip")
    done = run(*options, "--output", tmp_path / "adapter", "--adapter_only")
    assert done.returncode == 0 and "learned part only" in done.stdout and "tokenizer included" in done.stdout
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter")("good").input_ids
    again = VCPCLIPModel.from_pretrained(tmp_path / "adapter")
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_the_command_ends_with_one_line_on_a_bad_file(tmp_path):
    done = run("--checkpoint", tmp_path / "none.pth", "--backbone", "x", "--output", tmp_path / "out")
    assert done.returncode == 1
    assert "none.pth" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
