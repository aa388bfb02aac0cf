"""Entries of authors' files. `test_convert_vcp_clip_to_hf` covers damaged and harmful files."""

import hashlib

import pytest
import torch

from vcp_clip_hf.official_checkpoint import (
    check_entries,
    check_feature_layers,
    describe_file,
    linear_layers,
    read_official,
)


@pytest.fixture
def file(tmp_path):
    content = {"trainable_linearlayer": {"fc.0.weight": torch.ones(2, 3), "fc.0.bias": torch.ones(2)}, "epoch": 3}
    torch.save(content, tmp_path / "some.pth")
    return tmp_path / "some.pth"


def test_nested_entries_have_dotted_names(file):
    tensors = read_official(file)
    names = ["trainable_linearlayer.fc.0.weight", "trainable_linearlayer.fc.0.bias", "epoch"]
    assert list(tensors) == names and linear_layers(tensors) == 1
    assert describe_file(file) == {"file": "some.pth", "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def test_every_entry_is_accounted_for(file):
    tensors = read_official(file)
    expected = {"trainable_linearlayer.fc.0.weight": (2, 3), "trainable_linearlayer.fc.0.bias": (2,)}
    check_entries(tensors, expected, file, "example", without_effect=["epoch"])
    with pytest.raises(ValueError, match=r"not an official example checkpoint .*\n  unexpected: epoch"):
        check_entries(tensors, expected, file, "example")


def test_each_feature_layer_has_a_linear_layer(file):
    check_feature_layers(2, None, [6, 12], 24, file)
    with pytest.raises(ValueError, match=r"Pass feature_layers, 2 of 1\.\.24"):
        check_feature_layers(2, None, [6, 12, 18, 24], 24, file)
    with pytest.raises(ValueError, match=r"2 feature layers, but feature_layers=\[24\] names 1"):
        check_feature_layers(2, [24], [24], 24, file)
