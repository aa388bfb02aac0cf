"""Configurations of methods: defaults, what fits another CLIP, what contradicts itself."""

import pytest

from tests.common import tiny_clip
from tests.methods.common import tiny_method
from vcp_clip_hf.methods import METHODS, AnomalyCLIPConfig, AprilGANConfig, WinCLIPConfig
from vcp_clip_hf.methods.prompt_ensemble import read_prompts


CONFIGS = {name: model.config_class for name, model in METHODS.items()}
ON_CLIP = [name for name, model in METHODS.items() if model.works_on_any_clip]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_method_names_itself_and_its_source(name):
    config = CONFIGS[name]
    assert config.model_type == name and config.title and "arxiv.org" in config.source


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_configuration_comes_back_equal(name, tmp_path):
    config = CONFIGS[name]()
    config.save_pretrained(tmp_path)
    ours, theirs = config.to_dict(), CONFIGS[name].from_pretrained(tmp_path).to_dict()
    changed = {field for field in ours if ours[field] != theirs[field]}
    assert changed <= {"_name_or_path", "transformers_version"}


@pytest.mark.parametrize("name", ON_CLIP)
def test_every_method_can_be_fitted_to_another_clip(name):
    fields = CONFIGS[name].fitted_fields(tiny_clip().config)
    assert fields["image_size"] % 8 == 0 and abs(fields["image_size"] - CONFIGS[name].image_size) < 8
    if name == "anomaly_clip":
        assert fields["deep_prompt_depth"] == 3


def test_prompts_come_from_the_methods_file():
    assert WinCLIPConfig().templates == read_prompts("winclip")["templates"]
    assert AprilGANConfig().templates != WinCLIPConfig().templates
    assert AprilGANConfig(templates=("a {}.",)).templates == ["a {}."]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image_size": 50}, "not a multiple of patch_size=8"),
        ({"feature_layers": [0, 1]}, "must lie in 1..4"),
        ({"feature_layers": [3, 1]}, "ascending"),
        ({"templates": ["no slot"]}, "exactly one '{}'"),
        ({"normal_states": []}, "at least one phrase in 'normal'"),
    ],
)
def test_wrong_fields_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        tiny_method(**fields)


def test_misspelled_fields_are_refused():
    with pytest.raises(ValueError, match="AprilGANConfig has no field 'feature_layer'; did you mean 'feature_layers'"):
        AprilGANConfig(feature_layer=[1])


def test_each_method_has_its_own_image_processing():
    assert AnomalyCLIPConfig.image_processing["smoothing_sigma"] == 4.0
    assert AprilGANConfig.image_processing["smoothing_sigma"] == 0.0
