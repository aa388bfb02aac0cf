"""Checkpoints that version 0.1.0 saved load bit-equal and give the maps that version 0.1.0 computed."""

import pytest
import torch
from safetensors.torch import load_file

from tests.common import FIXTURES
from vcp_clip_hf import EMBEDDED_CHECKPOINT, VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.backbone_loading import BACKBONE_PREFIX


FOLDER = FIXTURES / "version_0_1_0"


@pytest.fixture(scope="module")
def expected():
    return load_file(FOLDER / "expected.safetensors")


@torch.no_grad()
def test_an_adapter_only_checkpoint(expected):
    model = VCPCLIPModel.from_pretrained(FOLDER / "adapter_only")
    saved = load_file(FOLDER / "adapter_only" / "model.safetensors")
    clip = load_file(FOLDER / "clip" / "model.safetensors")
    saved.update({BACKBONE_PREFIX + name: value for name, value in clip.items()})
    loaded = model.state_dict()
    assert loaded.keys() == saved.keys()
    for name, value in saved.items():
        assert torch.equal(loaded[name], value), name
    maps = model(expected["pixel_values"]).anomaly_map
    torch.testing.assert_close(maps, expected["anomaly_map"], atol=1e-6, rtol=0)
    assert VCPCLIPImageProcessor.from_pretrained(FOLDER / "adapter_only").threshold == 0.25


@torch.no_grad()
def test_the_embedded_checkpoint(expected):
    """Its stem branch is newer; the other parts are still those of version 0.1.0."""
    model = VCPCLIPModel.from_pretrained(EMBEDDED_CHECKPOINT, dtype=torch.float32, use_stem_branch=False)
    loaded = model.state_dict()
    saved = load_file(f"{EMBEDDED_CHECKPOINT}/model.safetensors")
    saved = {name: value for name, value in saved.items() if not name.startswith("stem_branch.")}
    assert loaded.keys() == saved.keys()
    for name, value in saved.items():
        assert torch.equal(loaded[name], value.float()), name
    ramp = torch.linspace(-2, 2, 224).expand(1, 3, 224, 224) * torch.linspace(-1, 1, 224)[:, None]
    maps = model(ramp).anomaly_map[:, ::8, ::8]
    torch.testing.assert_close(maps, expected["embedded_anomaly_map"], atol=1e-5, rtol=0)
