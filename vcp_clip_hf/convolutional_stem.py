"""
A frozen convolutional network before CLIP's image tower: the hybrid ViT (Dosovitskiy et al., ICLR 2021, section 3.1).

CLIP's own patch embedding is one convolution, and a small tower learns little with it. The stem gives the tower
features of a network that was trained on ImageNet: stages 1 to 6 of an EfficientNet-Lite (Tan and Le, ICML 2019;
"Lite" leaves out squeeze-and-excitation and uses ReLU6). `vision_config.stem` names it; without this field the tower
is CLIP's own.
"""

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import CLIPVisionConfig
from transformers import initialization as init


__all__ = [
    "CELLS_OF_PATCH",
    "DIFFERENCE_FACTOR",
    "STEMS",
    "STEM_CELLS",
    "STEM_LAYER",
    "EfficientNetLite",
    "StemOutputs",
    "VCPCLIPEfficientNetLiteStem",
    "VCPCLIPHybridPatchEmbedding",
    "VCPCLIPSamePadding",
    "VCPCLIPStemBlock",
    "check_stem_layer",
    "compared_features",
    "layer_width",
    "mean_around",
    "projects_stem",
    "stem_of",
    "without_stem_layer",
]

# Names of the stem's features, of patches and of their cells, among the layers of an image tower, whose blocks are
# numbers
STEM_LAYER, STEM_CELLS = "stem", "stem_cells"

# Kernel size, stride and expansion of the stages (EfficientNet paper, table 1, stages 2 to 6). The stride is that of
# the first block of a stage; the others have 1
_STAGES = ((3, 1, 1), (3, 2, 6), (5, 2, 6), (3, 2, 6), (5, 1, 6))
# Stages whose last outputs are the features, with their strides
_FEATURE_STAGES = {1: 4, 2: 8, 4: 16}
# Stages whose last outputs are the details inside a patch, and the features of its cells, with their strides
_DETAIL_STAGES = {0: 2, 1: 4}
# A cell has the larger of these strides as side, and a patch 2 x 2 cells
CELLS_OF_PATCH = 4
_FIRST_CHANNELS = 32
_SURROUNDINGS = 11  # side of the square of patches that a patch is compared with
# Differences between patches are small beside the features, which have unit length; details are large
_FEATURE_FACTOR, DIFFERENCE_FACTOR, _DETAIL_FACTOR = 8.0, 24.0, 0.15


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


class EfficientNetLite(NamedTuple):
    """
    A stem's architecture: stages 1 to 6 of one of the EfficientNet-Lite networks.

    Args:
        channels (`tuple[int, ...]`): output channels of the five stages of blocks, stages 2 to 6.
        depths (`tuple[int, ...]`): numbers of their blocks.
    """

    channels: tuple[int, ...]
    depths: tuple[int, ...]

    patch_size = 8  # pixels

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Return the numbers of features of a patch that come from each stage; those of a stage have unit length."""
        return tuple(self.channels[stage] for stage in _FEATURE_STAGES)

    @property
    def num_features(self) -> int:
        """Return the number of features of a patch, d_s."""
        return sum(self.feature_channels)

    @property
    def num_cell_features(self) -> int:
        """Return the number of features of a cell."""
        return 2 * self.channels[0] + self.channels[1]

    @property
    def num_details(self) -> int:
        """Return the number of details inside a patch."""
        return sum(self.channels[stage] * (self.patch_size // at) ** 2 for stage, at in _DETAIL_STAGES.items())


# Widths and depths: Lite0 is the network of the paper's table 1, Lite2 scales its widths by 1.1 and its depths by 1.2
STEMS = {
    "efficientnet_lite0": EfficientNetLite(channels=(16, 24, 40, 80, 112), depths=(1, 2, 2, 3, 3)),
    "efficientnet_lite2": EfficientNetLite(channels=(16, 24, 48, 88, 120), depths=(1, 3, 3, 4, 4)),
}


class StemOutputs(NamedTuple):
    """
    What a stem computes of images (B, 3, H, W), on a grid of H / 8 x W / 8 patches; the numbers of channels are those
    of its [`EfficientNetLite`].

    Args:
        features (`torch.Tensor` of shape `(B, num_features, H / 8, W / 8)`): features of patches, 176 for Lite0 and
            192 for Lite2.
        cells (`torch.Tensor` of shape `(B, 4 * num_cell_features, H / 8, W / 8)`, *optional*): features of the 2 x 2
            cells of each patch, 56 channels for a cell of 4 x 4 pixels; the cells of a channel follow each other.
        details (`torch.Tensor` of shape `(B, num_details, H / 8, W / 8)`, *optional*): details inside each patch, 352.
    """

    features: torch.Tensor
    cells: torch.Tensor | None
    details: torch.Tensor | None


class VCPCLIPEfficientNetLiteStem(nn.Module):
    """
    Stages 1 to 6 of an EfficientNet-Lite, as features of 8 x 8 patches. Lite0 has 0.7 million parameters, Lite2 1.1.

    Args:
        architecture ([`EfficientNetLite`]): one of `STEMS`.
    """

    def __init__(self, architecture: EfficientNetLite):
        super().__init__()
        self.patch_size = architecture.patch_size
        self.padding = VCPCLIPSamePadding(3)
        self.first = nn.Conv2d(3, _FIRST_CHANNELS, 3, 2)
        self.blocks = nn.ModuleList()
        self._last_blocks: dict[int, int] = {}  # block -> the stage that it ends
        channels = _FIRST_CHANNELS
        for stage, (of_stage, depth) in enumerate(zip(architecture.channels, architecture.depths, strict=True)):
            kernel_size, stride, expansion = _STAGES[stage]
            for number in range(depth):
                self.blocks.append(
                    VCPCLIPStemBlock(channels, of_stage, kernel_size, 1 if number else stride, expansion)
                )
                channels = of_stage
            self._last_blocks[len(self.blocks) - 1] = stage

    def initialize(self) -> None:
        """Set random weights that keep the size of the signal through the blocks (He et al., ICCV 2015)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init.kaiming_normal_(module.weight, nonlinearity="relu")
                init.zeros_(module.bias)

    def forward(self, pixel_values: torch.Tensor, with_cells: bool = True, with_details: bool = True) -> StemOutputs:
        """
        Compute the features of patches and of their cells, and the details inside patches.

        Features of patches: the last outputs at strides 4, 8 and 16 are averaged over 3 x 3 positions, brought to the
        grid of patches, and divided by their length. Features of cells: the highest and the lowest output at stride 2
        in the cell, and the output at stride 4; thin lines would vanish in an average. Details: the outputs at strides
        2 and 4 as they are, all positions of a patch after each other.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): normalized with CLIP's mean and standard deviation;
                sides are multiples of 8.
            with_cells, with_details (`bool`, *optional*, default to `True`): whether to compute them.

        Returns:
            [`StemOutputs`], in the dtype of `pixel_values`.
        """
        grid = (pixel_values.shape[-2] // self.patch_size, pixel_values.shape[-1] // self.patch_size)
        if pixel_values.device.type == "cpu":  # its convolutions of batches are faster this way
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        x = _relu6(self.first(self.padding(pixel_values)))
        features, fine = [], []
        for number, block in enumerate(self.blocks):
            x = block(x)
            stage = self._last_blocks.get(number)
            if stage in _DETAIL_STAGES:
                fine.append(x)
            if stage in _FEATURE_STAGES:
                level = nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
                stride = _FEATURE_STAGES[stage]
                if stride < self.patch_size:
                    level = nn.functional.avg_pool2d(level, self.patch_size // stride)
                elif stride > self.patch_size:
                    level = nn.functional.interpolate(level, size=grid, mode="bilinear", align_corners=False)
                features.append(nn.functional.normalize(level, dim=1))
        return StemOutputs(
            torch.cat(features, dim=1),
            _cells(*fine) if with_cells else None,
            self._details(fine) if with_details else None,
        )

    def _details(self, fine: list[torch.Tensor]) -> torch.Tensor:
        strides = _DETAIL_STAGES.values()
        parts = [nn.functional.pixel_unshuffle(x, self.patch_size // s) for x, s in zip(fine, strides, strict=True)]
        return torch.cat(parts, dim=1)


def _cells(at_2: torch.Tensor, at_4: torch.Tensor) -> torch.Tensor:
    """Return the features of cells, from outputs at strides 2 (B, 16, H / 2, W / 2) and 4 (B, 24, H / 4, W / 4)."""
    # slices, because a pooling of windows of 2 x 2 is slow on a CPU
    corners = [at_2[..., row::2, column::2] for row in (0, 1) for column in (0, 1)]
    highest, lowest = (reduce(extremum, corners) for extremum in (torch.maximum, torch.minimum))
    return nn.functional.pixel_unshuffle(torch.cat((highest, lowest, at_4), dim=1), 2)


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
    """Return the width of the patch tokens of a layer: a block, `"stem"`, or `"stem_cells"`."""
    if layer not in (STEM_LAYER, STEM_CELLS):
        return vision_config.hidden_size
    architecture = STEMS[stem_of(vision_config)]
    return architecture.num_features if layer == STEM_LAYER else CELLS_OF_PATCH * architecture.num_cell_features


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
        architecture = STEMS[stem_of(config)]
        self.stem = VCPCLIPEfficientNetLiteStem(architecture)
        width = 3 * architecture.num_features + architecture.num_details
        self.stem_projection = nn.Linear(width, config.hidden_size) if projects_stem(config) else None

    def forward(
        self, pixel_values: torch.Tensor, record: Callable[[str, torch.Tensor], None] | None = None
    ) -> torch.Tensor:
        """
        Embed patches.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): normalized images; sides are multiples of 8.
            record (`Callable`, *optional*): receiver of `"stem"` and the stem's features of patches, `(B, N,
                num_features)`, and of `"stem_cells"` and those of their cells, `(B, N, 4 * num_cell_features)`.

        Returns:
            `torch.Tensor` of shape `(B, d_v, H / 8, W / 8)`.
        """
        patches = super().forward(pixel_values)
        if self.stem_projection is None and record is None:
            return patches
        has_projection, is_recorded = self.stem_projection is not None, record is not None
        features, cells, details = self.stem(pixel_values, with_cells=is_recorded, with_details=has_projection)
        if is_recorded:
            record(STEM_LAYER, features.flatten(2).transpose(1, 2))
            record(STEM_CELLS, cells.flatten(2).transpose(1, 2))
        return patches + self.project(features, details) if has_projection else patches

    def project(self, features: torch.Tensor, details: torch.Tensor) -> torch.Tensor:
        """Map the stem's features (B, C, h, w) and details (B, D, h, w) to embedded patches (B, d_v, h, w)."""
        rows = torch.cat((*compared_features(features), _DETAIL_FACTOR * details), dim=1).flatten(2).transpose(1, 2)
        return self.stem_projection(rows).transpose(1, 2).unflatten(2, features.shape[2:])


def _relu6(x: torch.Tensor) -> torch.Tensor:
    """
    Apply ReLU6, in place where no gradient is needed: on a CPU, new memory would take a quarter of the stem's time. A
    tensor that a forward hook keeps from the preceding convolution is then rectified too.
    """
    return nn.functional.relu6(x, inplace=not (torch.is_grad_enabled() and x.requires_grad))


def compared_features(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Return features as they are, relative to the mean of the image, and relative to the 11 x 11 patches around, all at
    about the same scale.

    Args:
        features (`torch.Tensor` of shape `(B, C, h, w)`): features of a stem.

    Returns:
        `tuple` of three `torch.Tensor` of the same shape.
    """
    mean = features.mean(dim=(2, 3), keepdim=True)
    return (
        _FEATURE_FACTOR * features,
        DIFFERENCE_FACTOR * (features - mean),
        DIFFERENCE_FACTOR * (features - mean_around(features, _SURROUNDINGS)),
    )


def mean_around(features: torch.Tensor, side: int) -> torch.Tensor:
    """
    Return the mean over the square of patches around each patch; at the border, over those that exist.

    Args:
        features (`torch.Tensor` of shape `(B, C, h, w)`): features of patches.
        side (`int`): side of the square in patches, odd.

    Returns:
        `torch.Tensor` of the same shape.
    """
    # products with small matrices: a pooling of large windows takes ten times as long on a CPU
    rows, columns = (_averaging(length, side, features) for length in features.shape[2:])
    return rows @ features @ columns.mT


def _averaging(length: int, side: int, like: torch.Tensor) -> torch.Tensor:
    """Return the matrix (length, length) that averages `side` neighbors, or those that exist, of each position."""
    positions = torch.arange(length, device=like.device)
    near = (positions[:, None] - positions).abs() <= side // 2
    return (near / near.sum(dim=1, keepdim=True)).to(like.dtype)
