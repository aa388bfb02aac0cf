"""
A frozen convolutional network before CLIP's image tower: the hybrid ViT (Dosovitskiy et al., ICLR 2021, section 3.1).

CLIP's own patch embedding is one convolution, and a small tower learns little with it. The stem gives the tower
features of a network that was trained on ImageNet: the first eleven blocks of EfficientNet-Lite0 (Tan and Le, ICML
2019; "Lite" leaves out squeeze-and-excitation and uses ReLU6). `vision_config.stem` names it; without this field
the tower is CLIP's own.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig
from transformers import initialization as init


__all__ = [
    "STEMS",
    "STEM_LAYER",
    "EfficientNetLite0Stem",
    "VCPCLIPHybridPatchEmbedding",
    "VCPCLIPSamePadding",
    "VCPCLIPStemBlock",
    "check_stem_layer",
    "compared_features",
    "layer_width",
    "projects_stem",
    "stem_of",
    "without_stem_layer",
]

# Name of the stem's features among the layers of an image tower, whose blocks are numbers
STEM_LAYER = "stem"

# Output channels, kernel size, stride and expansion of each block (EfficientNet paper, table 1, stages 2 to 6)
_BLOCKS = (
    (16, 3, 1, 1),
    (24, 3, 2, 6),
    (24, 3, 1, 6),
    (40, 5, 2, 6),
    (40, 5, 1, 6),
    (80, 3, 2, 6),
    (80, 3, 1, 6),
    (80, 3, 1, 6),
    (112, 5, 1, 6),
    (112, 5, 1, 6),
    (112, 5, 1, 6),
)
# Blocks whose outputs are the features, with their strides
_FEATURE_BLOCKS = {2: 4, 4: 8, 10: 16}
# Blocks whose outputs are the details inside a patch, with their strides
_DETAIL_BLOCKS = {0: 2, 2: 4}
_FIRST_CHANNELS = 32
_SURROUNDINGS = 11  # side of the square of patches that a patch is compared with
# Differences between patches are small beside the features, which have unit length; details are large
_FEATURE_FACTOR, _DIFFERENCE_FACTOR, _DETAIL_FACTOR = 8.0, 24.0, 0.15


class VCPCLIPSamePadding(nn.Module):
    """
    Pad as TensorFlow does for a convolution with stride 2: it gives half the side, rounded up; the odd zero is last.

    Args:
        kernel_size (`int`): side of the kernel.
    """

    def __init__(self, kernel_size: int):
        super().__init__()
        self.kernel_size = kernel_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pad images (B, C, H, W) with zeros."""
        padding: list[int] = []
        for side in (x.shape[-1], x.shape[-2]):
            # not one formula for both: a compiler would carry it through all following sizes
            total = self.kernel_size - 2 if side % 2 == 0 else self.kernel_size - 1
            padding += [total // 2, total - total // 2]
        return nn.functional.pad(x, padding)


class VCPCLIPStemBlock(nn.Module):
    """
    An inverted residual block; the scales of its batch normalization are part of the convolutions.

    Args:
        in_channels, out_channels (`int`): numbers of channels.
        kernel_size, stride (`int`): of the depthwise convolution; stride 1 or 2.
        expansion (`int`): factor of the channels between; 1: no expansion.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, expansion: int):
        super().__init__()
        inner = in_channels * expansion
        self.expand = nn.Conv2d(in_channels, inner, 1) if expansion > 1 else None
        self.padding = VCPCLIPSamePadding(kernel_size) if stride == 2 else None
        padding = 0 if stride == 2 else kernel_size // 2
        self.depthwise = nn.Conv2d(inner, inner, kernel_size, stride, padding, groups=inner)
        self.project = nn.Conv2d(inner, out_channels, 1)
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convert (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        y = x if self.expand is None else _relu6(self.expand(x))
        y = y if self.padding is None else self.padding(y)
        y = self.project(_relu6(self.depthwise(y)))
        return x + y if self.is_residual else y


class EfficientNetLite0Stem(nn.Module):
    """The first eleven blocks of EfficientNet-Lite0, 0.7 million parameters, as features of 8 x 8 patches."""

    patch_size = 8
    num_features = sum(_BLOCKS[block][0] for block in _FEATURE_BLOCKS)
    num_details = sum(_BLOCKS[block][0] * (8 // stride) ** 2 for block, stride in _DETAIL_BLOCKS.items())

    def __init__(self):
        super().__init__()
        self.padding = VCPCLIPSamePadding(3)
        self.first = nn.Conv2d(3, _FIRST_CHANNELS, 3, 2)
        channels = (_FIRST_CHANNELS, *(block[0] for block in _BLOCKS))
        self.blocks = nn.ModuleList(
            VCPCLIPStemBlock(before, *block) for before, block in zip(channels, _BLOCKS, strict=False)
        )

    def initialize(self) -> None:
        """Set random weights that keep the size of the signal through the blocks (He et al., ICCV 2015)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init.kaiming_normal_(module.weight, nonlinearity="relu")
                init.zeros_(module.bias)

    def forward(
        self, pixel_values: torch.Tensor, with_details: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Compute the features of patches, and the details inside them.

        Features: the last outputs at strides 4, 8 and 16 are averaged over 3 x 3 positions, brought to the grid of
        patches, and divided by their length. Details: the outputs at strides 2 and 4 as they are, all positions of a
        patch after each other; thin lines would vanish in an average.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): normalized with CLIP's mean and standard deviation;
                sides are multiples of 8.
            with_details (`bool`, *optional*, defaults to `True`): whether to compute the details.

        Returns:
            `tuple` of two `torch.Tensor`, same dtype: features `(B, 176, H / 8, W / 8)` and details
            `(B, 352, H / 8, W / 8)`, or `None` for the latter.
        """
        grid = (pixel_values.shape[-2] // self.patch_size, pixel_values.shape[-1] // self.patch_size)
        if pixel_values.device.type == "cpu":  # its convolutions of batches are faster this way
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        x = _relu6(self.first(self.padding(pixel_values)))
        features, details = [], []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if with_details and number in _DETAIL_BLOCKS:
                details.append(nn.functional.pixel_unshuffle(x, self.patch_size // _DETAIL_BLOCKS[number]))
            if number in _FEATURE_BLOCKS:
                level = nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
                stride = _FEATURE_BLOCKS[number]
                if stride < self.patch_size:
                    level = nn.functional.avg_pool2d(level, self.patch_size // stride)
                elif stride > self.patch_size:
                    level = nn.functional.interpolate(level, size=grid, mode="bilinear", align_corners=False)
                features.append(nn.functional.normalize(level, dim=1))
        return torch.cat(features, dim=1), torch.cat(details, dim=1) if with_details else None


STEMS = {"efficientnet_lite0": EfficientNetLite0Stem}


def stem_of(vision_config: CLIPVisionConfig) -> str | None:
    """Return the name of the stem of an image tower, or `None` for CLIP's own patch embedding alone."""
    return getattr(vision_config, "stem", None)


def projects_stem(vision_config: CLIPVisionConfig) -> bool:
    """Return whether the tower reads its stem; otherwise only references and the stem branch use it."""
    return getattr(vision_config, "stem_projection", True)


def check_stem_layer(layers: Iterable[int | str], vision_config: CLIPVisionConfig) -> None:
    """
    Check that the features of a stem are requested only from an image tower that has one.

    Args:
        layers (`Iterable[int | str]`): requested layers.
        vision_config (`CLIPVisionConfig`): configuration of the image tower.

    Raises:
        ValueError: `"stem"` is among the layers, and the tower has no stem.
    """
    if STEM_LAYER in layers and stem_of(vision_config) is None:
        raise ValueError(
            f"The layer {STEM_LAYER!r} is the convolutional stem of an image tower, and this tower has none"
            " (vision_config.stem). Choose numbers of blocks."
        )


def without_stem_layer(layers: Iterable[Any]) -> list[Any]:
    """Return layers without a leading `"stem"`: the numbers of blocks."""
    layers = list(layers)
    return layers[1:] if layers[:1] == [STEM_LAYER] else layers


def layer_width(layer: int | str, vision_config: CLIPVisionConfig) -> int:
    """Return the width of the patch tokens of a layer: a block, or `"stem"`."""
    return STEMS[stem_of(vision_config)].num_features if layer == STEM_LAYER else vision_config.hidden_size


class VCPCLIPHybridPatchEmbedding(nn.Conv2d):
    """
    CLIP's patch embedding, plus a linear map of a stem's features: as they are, relative to the mean of the image, and
    relative to the 11 x 11 patches around; and of the details inside each patch. With `stem_projection=False` in the
    configuration, the embedding is CLIP's, and the stem runs only for a receiver of its features.

    Args:
        config (`CLIPVisionConfig`): configuration of the image tower, whose `stem` is one of `STEMS`.
    """

    def __init__(self, config: CLIPVisionConfig):
        patch_size = config.patch_size
        super().__init__(config.num_channels, config.hidden_size, patch_size, patch_size, bias=False)
        self.stem = STEMS[stem_of(config)]()
        width = 3 * self.stem.num_features + self.stem.num_details
        self.stem_projection = nn.Linear(width, config.hidden_size) if projects_stem(config) else None

    def forward(
        self, pixel_values: torch.Tensor, record: Callable[[str, torch.Tensor], None] | None = None
    ) -> torch.Tensor:
        """
        Embed patches.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): normalized images; sides are multiples of 8.
            record (`Callable`, *optional*): receiver of `"stem"` and the stem's features, `(B, N, 176)`.

        Returns:
            `torch.Tensor` of shape `(B, d_v, H / 8, W / 8)`.
        """
        patches = super().forward(pixel_values)
        if self.stem_projection is None and record is None:
            return patches
        features, details = self.stem(pixel_values, with_details=self.stem_projection is not None)
        if record is not None:
            record(STEM_LAYER, features.flatten(2).transpose(1, 2))
        return patches if self.stem_projection is None else patches + self.project(features, details)

    def project(self, features: torch.Tensor, details: torch.Tensor) -> torch.Tensor:
        """Map the stem's features (B, 176, h, w) and details (B, 352, h, w) to embedded patches (B, d_v, h, w)."""
        rows = torch.cat((compared_features(features), _DETAIL_FACTOR * details), dim=1).flatten(2).transpose(1, 2)
        return self.stem_projection(rows).transpose(1, 2).unflatten(2, features.shape[2:])


def _relu6(x: torch.Tensor) -> torch.Tensor:
    """
    Apply ReLU6, in place where no gradient is needed: on a CPU, new memory would take a quarter of the stem's time. A
    tensor that a forward hook keeps from the preceding convolution is then rectified too.
    """
    return nn.functional.relu6(x, inplace=not (torch.is_grad_enabled() and x.requires_grad))


def compared_features(features: torch.Tensor) -> torch.Tensor:
    """
    Return features as they are, relative to the mean of the image, and relative to the 11 x 11 patches around, all at
    about the same scale.

    Args:
        features (`torch.Tensor` of shape `(B, C, h, w)`): features of a stem.

    Returns:
        `torch.Tensor` of shape `(B, 3 * C, h, w)`.
    """
    mean = features.mean(dim=(2, 3), keepdim=True)
    parts = (
        _FEATURE_FACTOR * features,
        _DIFFERENCE_FACTOR * (features - mean),
        _DIFFERENCE_FACTOR * (features - _surroundings(features)),
    )
    return torch.cat(parts, dim=1)


def _surroundings(features: torch.Tensor) -> torch.Tensor:
    """Return the mean over the square of patches around each, (B, C, h, w); at the border, over those that exist."""
    side, margin = _SURROUNDINGS, _SURROUNDINGS // 2
    rows = nn.functional.avg_pool2d(features, (side, 1), 1, (margin, 0), count_include_pad=False)
    return nn.functional.avg_pool2d(rows, (1, side), 1, (0, margin), count_include_pad=False)
