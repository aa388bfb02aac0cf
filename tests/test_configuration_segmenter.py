"""Fields that every model of the package has."""

import pytest
from huggingface_hub.dataclasses import strict

from vcp_clip_hf.configuration_segmenter import SegmenterConfig


@strict
class OtherConfig(SegmenterConfig):
    model_type = "other"
    strength: float = 1.0
    detector_config: dict | None = None


def test_sizes():
    assert OtherConfig().input_size == (518, 518) and OtherConfig(image_size=(20, 30)).input_size == (20, 30)
    assert OtherConfig(image_size=(20, 30)).image_size == [20, 30]
    with pytest.raises(ValueError, match="one side or"):
        _ = OtherConfig(image_size=[1, 2, 3]).input_size


def test_fields_of_its_own_are_those_without_configurations_of_parts():
    assert sorted(OtherConfig.own_fields()) == ["image_size", "strength"]


def test_misspelled_fields(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'strength'"):
        OtherConfig(strenght=2.0)
    config = OtherConfig(strength=2.0)
    config.save_pretrained(tmp_path)
    assert OtherConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    with pytest.raises(ValueError, match="did you mean 'strength'"):
        OtherConfig.from_pretrained(tmp_path, strenght=3.0)
    # A file may come from a newer version
    assert OtherConfig.from_dict({"strenght": 3.0}).strength == 1.0
