"""The configuration: defaults of the paper, contradictions, round trips."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, CLIPTextConfig

from tests.common import HYBRID_VISION, TINY_VISION, tiny_config
from vcp_clip_hf import VCPCLIPConfig


def test_the_defaults_are_the_papers():
    config = VCPCLIPConfig()
    assert (config.image_size, config.input_size) == (518, (518, 518))
    assert config.feature_layers == [6, 12, 18, 24]
    assert (config.num_category_tokens, config.num_deep_prompt_tokens, config.post_vcp_num_heads) == (2, 1, 8)
    assert config.fusion_weight == 0.75
    assert config.vision_config.image_size == 336 and config.vision_config.hidden_size == 1024
    assert config.text_config.hidden_size == config.projection_dim == 768
    assert config.text_config.hidden_act == config.vision_config.hidden_act == "gelu"
    assert config.normal_prompts == ["a photo of a good {}"]
    assert config.category_token_id == config.text_config.vocab_size == 49408
    assert config.prompt_eos_token_id == 49407


def test_a_partial_tower_is_read_over_clips_own_defaults():
    """As in every transformers configuration; a saved configuration is such a partial one."""
    config = VCPCLIPConfig(text_config={"hidden_size": 768, "num_attention_heads": 12})
    assert config.text_config.intermediate_size == CLIPTextConfig().intermediate_size


@pytest.mark.parametrize(
    ("depth", "layers"), [(24, [6, 12, 18, 24]), (12, [3, 6, 9, 12]), (4, [1, 2, 3, 4]), (3, [1, 2, 3]), (1, [1])]
)
def test_feature_layers_are_evenly_spaced_by_default(depth, layers):
    config = tiny_config(vision_config={**tiny_config().vision_config.to_dict(), "num_hidden_layers": depth})
    assert config.feature_layers == layers


ABLATIONS = {
    "no deep prompts (table 3)": {"num_deep_prompt_tokens": 0},
    "no Pre-VCP (table 3)": {"use_pre_vcp": False},
    "no Post-VCP (table 3)": {"use_post_vcp": False},
    "baseline (table 3)": {"use_pre_vcp": False, "use_post_vcp": False},
    "one layer": {"feature_layers": [2]},
    "state words": {
        "normal": ("this is a perfect photo of {}",),
        "abnormal": ("this is a flawed photo of {}",),
    },
    "templates": {"normal": ("good {}", "a {} without damage"), "abnormal": ("bad {}", "a {} with damage")},
    "resolution": {"image_size": 32},
    "r (figure 9a)": {"num_category_tokens": 4},
    "n (figure 9b)": {"num_deep_prompt_tokens": 3},
    "fusion weight (figure 9c)": {"fusion_weight": 0.25},
    "heads (figure 9d)": {"post_vcp_num_heads": 4},
    "deep prompts at the end (appendix B.2)": {"deep_prompt_position": "end"},
}


@pytest.mark.parametrize("fields", ABLATIONS.values(), ids=ABLATIONS.keys())
def test_every_ablation_is_a_configuration_that_survives_a_round_trip(fields, tmp_path):
    config = tiny_config(**fields)
    config.save_pretrained(tmp_path)
    again = VCPCLIPConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    automatic = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(automatic, VCPCLIPConfig)
    assert automatic.to_diff_dict() == config.to_diff_dict()


def test_the_saved_file_says_what_was_asked_in_words(tmp_path):
    tiny_config(fusion_weight=0.5).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "vcp_clip" and saved["fusion_weight"] == 0.5
    assert saved["abnormal_prompts"] == ["a photo of a damaged {}"]


def test_loading_with_overrides_keeps_the_rest_of_a_tower(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    config = VCPCLIPConfig.from_pretrained(tmp_path, fusion_weight=0.1, vision_config={"hidden_act": "gelu"})
    assert config.fusion_weight == 0.1
    assert config.vision_config.hidden_act == "gelu" and config.vision_config.hidden_size == 64


def test_saved_configurations_name_the_way_to_use_references_only_if_it_is_not_the_published_one(tmp_path):
    ways = ("reference_distance", "reference_fusion")
    assert not {*ways} & tiny_config().to_dict().keys()
    other = {"reference_distance": "relative", "reference_fusion": "logits"}
    tiny_config(**other).save_pretrained(tmp_path)
    loaded = VCPCLIPConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in ways} == other
    with pytest.raises(Exception, match="reference_distance"):
        tiny_config(reference_distance="absolute")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"image_size": 50}, ["image_size=50", "patch_size=8", "48", "56"]),
        ({"image_size": [48, 50]}, ["[48, 50]", "patch_size=8"]),
        ({"image_size": [48, 48, 48]}, ["[48, 48, 48]"]),
        ({"feature_layers": [1, 9]}, ["[1, 9]", "num_hidden_layers=4"]),
        ({"feature_layers": [0, 1]}, ["[0, 1]", "1..4"]),
        ({"feature_layers": [2, 1]}, ["[2, 1]", "ascending"]),
        ({"feature_layers": []}, ["[]"]),
        ({"post_vcp_num_heads": 7}, ["post_vcp_num_heads=7", "hidden_size=64"]),
        ({"projection_dim": 16}, ["projection_dim=16", "hidden_size=32"]),
        ({"num_category_tokens": 0}, ["num_category_tokens=0"]),
        ({"num_deep_prompt_tokens": -1}, ["num_deep_prompt_tokens=-1"]),
        ({"deep_prompt_dropout": 1.0}, ["deep_prompt_dropout=1.0"]),
        ({"fusion_weight": 1.5}, ["fusion_weight=1.5"]),
        ({"category_token_id": 7}, ["category_token_id=7", "vocab_size=514"]),
        ({"normal_prompt_input_ids": [[512, 5, 513]]}, ["[512, 5, 513]", "category_token_id=514"]),
        ({"normal_prompt_input_ids": [[512, 9999, 514, 513]]}, ["9999", "vocab_size=514"]),
        ({"normal_prompt_input_ids": [[1, 5, 514, 513]]}, ["start token", "(1, 513)"]),
        ({"normal_prompt_input_ids": [[512, *[5] * 80, 514, 513]]}, ["85", "max_position_embeddings=77"]),
        ({"normal_prompts": ["good {}", "fine {}"]}, ["'normal_prompts': 2", "'abnormal_prompts': 1"]),
        ({"normal_prompts": ["no slot"]}, ["'no slot'", "{}"]),
        ({"vision_config": {**TINY_VISION, "stem": "resnet"}}, ["stem='resnet'", "efficientnet_lite0", "CLIP's own"]),
        (
            {"vision_config": {**HYBRID_VISION, "patch_size": 16}},
            ["efficientnet_lite0", "needs patch_size=8", "patch_size=16"],
        ),
        ({"vision_config": {**HYBRID_VISION, "num_channels": 1}}, ["num_channels=3", "num_channels=1"]),
        ({"reference_layers": ["stem", 1]}, ["'stem'", "this tower has none"]),
        ({"reference_layers": [2, 1]}, ["[2, 1]", "ascending", "0..4", "'stem'"]),
        ({"reference_layers": [1, 5]}, ["[1, 5]", "0..4"]),
        ({"reference_layers": [-1]}, ["[-1]", "0..4"]),
        ({"reference_layers": [1, "stem"]}, ["[1, 'stem']", "before them may stand 'stem'"]),
        ({"reference_layers": ["stem", "stem"]}, ["['stem', 'stem']"]),
        ({"reference_layers": []}, ["reference_layers=[]"]),
    ],
)
def test_contradictions_name_both_sides(fields, named):
    with pytest.raises(ValueError) as error:
        tiny_config(**fields)
    for words in named:
        assert words in str(error.value)


def test_prompts_without_ids_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match="set_prompts"):
        VCPCLIPConfig(normal_prompts=["a perfect {}"])
    with pytest.raises(ValueError, match="strings"):
        VCPCLIPConfig(normal_prompt_input_ids=[[49406, 886, 49408, 49407]])


def test_a_misspelled_field_is_an_error_and_other_names_pass():
    with pytest.raises(ValueError, match="feature_layers"):
        VCPCLIPConfig(feature_layer=[6, 12])
    assert VCPCLIPConfig(auto_map={"AutoModel": "x.y"}).auto_map == {"AutoModel": "x.y"}


def test_types_are_checked():
    with pytest.raises(StrictDataclassFieldValidationError, match="deep_prompt_position"):
        VCPCLIPConfig(deep_prompt_position="middle")

    config = tiny_config()
    with pytest.raises(StrictDataclassFieldValidationError, match="fusion_weight"):
        config.fusion_weight = "much"


def test_a_contradiction_made_later_is_found_when_saving(tmp_path):
    config = tiny_config()
    config.image_size = 50
    with pytest.raises(Exception, match="patch_size=8"):
        config.save_pretrained(tmp_path)


@pytest.mark.parametrize("layers", [["stem"], ["stem", 0, 4], None])
def test_a_stem_survives_a_round_trip(layers, tmp_path):
    config = tiny_config(vision_config=dict(HYBRID_VISION), reference_layers=layers)
    config.save_pretrained(tmp_path)
    for again in (VCPCLIPConfig.from_pretrained(tmp_path), VCPCLIPConfig.from_dict(config.to_dict())):
        assert again.vision_config.stem == "efficientnet_lite0" and again.reference_layers == layers
        assert again.memory_layers == (layers or again.feature_layers)
        assert again.to_clip_config().vision_config.stem == "efficientnet_lite0"
    assert "stem" not in tiny_config().to_dict()["vision_config"]
