"""Convert the checkpoints of APRIL-GAN's authors (`visa_pretrained.pth`, `mvtec_pretrained.pth`).

    vcp-clip convert --method april_gan --checkpoint visa_pretrained.pth --output april-gan-visa

Such a file has the single entry `trainable_linearlayer`, with one linear map for each feature layer. It is named after
the training set.
"""

import os
from collections.abc import Sequence

from transformers import CLIPModel

from .methods import AprilGANModel
from .official_checkpoint import (
    check_entries,
    check_feature_layers,
    fill_learned_part,
    linear_layers,
    read_official,
)


__all__ = ["convert_april_gan"]

_PREFIX = "trainable_linearlayer."
# The only input size at which the authors' code runs OpenAI's weights with their own activation
_QUICK_GELU_SIZE = 336


def convert_april_gan(
    checkpoint: str | os.PathLike,
    backbone: str | os.PathLike | CLIPModel,
    image_size: int = 518,
    feature_layers: Sequence[int] | None = None,
    **kwargs,
) -> AprilGANModel:
    """
    Convert a checkpoint of the authors to a model on its CLIP backbone.

    Args:
        checkpoint (`str` or `os.PathLike`): path of the `.pth` file.
        backbone (`str`, `os.PathLike` or `CLIPModel`):
            CLIP as a Hub repository, a folder or a loaded model; `openai/clip-vit-large-patch14-336` for the published
            files.
        image_size (`int`, *optional*, defaults to 518): side in pixels of the input that it was trained with.
        feature_layers (`Sequence[int]`, *optional*, defaults to evenly spaced blocks that include the last one):
            1-based image blocks, as many as the file has linear layers; 6, 12, 18, 24 for the published files.
        kwargs: arguments of [`AprilGANModel.from_clip`], such as `tokenizer` or `hidden_act`. The latter is `"gelu"`
            in both towers, as in the authors' code, and `"quick_gelu"` at 336 pixels.

    Returns:
        [`AprilGANModel`] in evaluation mode.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not such a checkpoint, or does not fit the backbone; the message lists all missing and
            unexpected entries and all wrong shapes.
    """
    tensors = read_official(checkpoint)
    model = AprilGANModel.from_clip(
        backbone,
        image_size=image_size,
        feature_layers=None if feature_layers is None else list(feature_layers),
        **{"hidden_act": "quick_gelu" if image_size == _QUICK_GELU_SIZE else "gelu", **kwargs},
    )
    config = model.config
    num_blocks = config.vision_config.num_hidden_layers
    check_feature_layers(linear_layers(tensors), feature_layers, config.feature_layers, num_blocks, checkpoint)
    width, joint = config.vision_config.hidden_size, config.projection_dim
    expected = {}
    for index in range(len(config.feature_layers)):
        expected |= {f"{_PREFIX}fc.{index}.weight": (joint, width), f"{_PREFIX}fc.{index}.bias": (joint,)}
    check_entries(tensors, expected, checkpoint, "APRIL-GAN")
    state_dict = {f"adapters.{name.removeprefix(_PREFIX)}": tensor for name, tensor in tensors.items()}
    fill_learned_part(model, state_dict, checkpoint)
    return model
