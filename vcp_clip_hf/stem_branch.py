"""The optional stem branch of VCP-CLIP: a third map, from the features of the convolutional stem. The paper has none.

A small image tower that learned from generated pictures describes real materials badly; the stem's ImageNet features
describe them well. A few convolutions turn these features into tokens of CLIP's joint space, which are compared with
the prompted text as the patches of the base branch are (equation 3). What they read is mostly relative: each patch
against the whole image, against the patches around it, and against the patches elsewhere in the image that are most
like it, in units of the variation within the image, because a defect is an unusual difference, whatever the product.
The third comparison excuses structure that is repeated, such as an edge.

Patches are coarse beside a thin crack or a small pit. Further convolutions therefore read the stem's early outputs in
cells of a quarter of a patch, together with what the patches found. The logits of a cell's token are added to those of
its patch.

The branch has several heads, trained side by side from different random weights. Which products a head finds hard
depends on these weights, so that the mean of their logits is better than most of them.

Of the other parts, only the image head reads the branch, and no gradient leaves the branch. The base map and the
Post-VCP map are therefore those of the same weights without it.

Shapes: B images, a grid of h x w patches, N = h * w, 2h x 2w cells, H heads, d the width of CLIP's joint space, d_s
that of the stem's features.
"""

import math

import torch
from torch import nn
from transformers import initialization as init

from .autocast import no_autocast
from .configuration_vcp_clip import VCPCLIPConfig
from .convolutional_stem import (
    CELLS_OF_PATCH,
    DIFFERENCE_FACTOR,
    STEM_CELLS,
    STEM_LAYER,
    STEMS,
    compared_features,
    layer_width,
    mean_around,
    stem_of,
)
from .visual_context_prompting import contrast_with_text, inverse_norm


__all__ = ["VCPCLIPStemBranch", "mean_of_similar", "upsampled_cells"]

# Channels of each head, for patches and for cells, in groups that are normalized over the image
_HEADS, _WIDTH, _CELL_WIDTH, _CHANNELS_OF_GROUP = 3, 64, 32, 8
# Added to the variation within an image, which is zero in an empty one, and about 0.5 for features in others
_LEAST_VARIATION, _LEAST_CELL_VARIATION = 0.3, 0.1
# Side of the square of patches whose mean a cell is compared with
_CELL_SURROUNDINGS = 5
# Similar patches are looked for at every second position in both directions, or so far apart that at most 1,024 are
# read, and farther away than 3 patches. Their weights are those of a softmax of the cosine, the mean over stages,
# divided by the temperature
_STEP, _MOST_CANDIDATES, _NEAR, _TEMPERATURE = 2, 1024, 3, 0.02
_OUT_OF_REACH = 300.0  # subtracted from the logits of patches that are too near
# Brings the distances from similar patches to the scale of the features; added to their mean over the image
_DISTANCE_FACTOR, _LEAST_DISTANCE = 6.0, 0.02


class VCPCLIPStemBranch(nn.Module):
    """
    Compare the features of the stem with the text: the optional stem branch of [`VCPCLIPModel`].

    Args:
        config ([`VCPCLIPConfig`]): architecture of the model, whose image tower has a stem.
    """

    def __init__(self, config: VCPCLIPConfig):
        super().__init__()
        num_features = layer_width(STEM_LAYER, config.vision_config)
        self.feature_channels = STEMS[stem_of(config.vision_config)].feature_channels
        num_cell_features = layer_width(STEM_CELLS, config.vision_config) // CELLS_OF_PATCH
        # all heads in one convolution each: as a group of channels that reads its own group only
        width, cell_width = _HEADS * _WIDTH, _HEADS * _CELL_WIDTH
        self.entry = nn.Conv2d(4 * num_features + 2 * len(self.feature_channels), width, 1)
        self.norms = nn.ModuleList(nn.GroupNorm(width // _CHANNELS_OF_GROUP, width) for _ in range(2))
        self.neighbors = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=_HEADS) for _ in range(2))
        self.cell_entry = nn.Conv2d(2 * num_cell_features, cell_width, 1)
        self.to_cells = nn.Conv2d(width, cell_width, 1, groups=_HEADS)
        self.cell_norms = nn.ModuleList(nn.GroupNorm(cell_width // _CHANNELS_OF_GROUP, cell_width) for _ in range(2))
        self.cell_neighbors = nn.ModuleList(
            nn.Conv2d(cell_width, cell_width, 3, padding=1, groups=_HEADS) for _ in range(2)
        )
        self.projections, self.cell_projections = (
            nn.ModuleList(nn.Linear(each, config.projection_dim) for _ in range(_HEADS))
            for each in (_WIDTH, _CELL_WIDTH)
        )
        self.logit_scale = nn.Parameter(torch.empty(_HEADS))

    @torch.no_grad()
    def initialize(self) -> None:
        """Set the temperature of the paper's branches in all heads; the convolutions keep PyTorch's default."""
        init.constant_(self.logit_scale, math.log(1 / 0.07))

    def forward(
        self, features: torch.Tensor, cell_features: torch.Tensor, grid: tuple[int, int], text_embeds: torch.Tensor
    ) -> torch.Tensor:
        """
        Compute the logits of cells by every head; the branch's are their mean. The features are used without their
        gradients, as the text is.

        Args:
            features (`torch.Tensor` of shape `(B, N, d_s)`): features of the stem.
            cell_features (`torch.Tensor` of shape `(B, N, 224)`): features of the cells of each patch.
            grid (`tuple[int, int]`): patches in a column and in a row.
            text_embeds (`torch.Tensor` of shape `(B, 2, d)`): normal, abnormal; L2-normalized.

        Returns:
            `torch.FloatTensor` of shape `(B, H, 2h, 2w)`, float32: positive for abnormal cells.
        """
        # sums and products over the image are faster with its positions next to each other in memory, convolutions
        # with its channels next to each other
        features, cells = (
            each.detach().transpose(1, 2).unflatten(2, grid).contiguous() for each in (features, cell_features)
        )
        maps = self.entry(_read(features, self.feature_channels))
        for norm, convolution in zip(self.norms, self.neighbors, strict=True):
            maps = convolution(norm(nn.functional.gelu(maps)))
        maps = nn.functional.gelu(maps)
        contrast = _in_cells(_contrast(maps, self.projections, text_embeds.detach()))
        maps = _in_cells(self.to_cells(maps)) + self.cell_entry(_read_cells(cells))
        for norm, convolution in zip(self.cell_norms, self.cell_neighbors, strict=True):
            maps = convolution(norm(nn.functional.gelu(maps)))
        contrast = contrast + _contrast(nn.functional.gelu(maps), self.cell_projections, text_embeds.detach())
        return self.logit_scale.float().exp()[:, None, None] * contrast


def upsampled_cells(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Upsample logits of cells (B, H, 2h, 2w) to the size of the image, (B, H, height, width)."""
    # the middle of a cell stays where it is; `align_corners` would move those at the border to the border
    return nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def _in_cells(maps: torch.Tensor) -> torch.Tensor:
    """Interpolate maps of patches (B, C, h, w) at the middles of their cells, (B, C, 2h, 2w)."""
    return nn.functional.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)


def _contrast(maps: torch.Tensor, projections: nn.ModuleList, text_embeds: torch.Tensor) -> torch.Tensor:
    """Compare the tokens of every head with the text, (B, H * C, h, w) -> (B, H, h, w), float32."""
    of_heads = maps.unflatten(1, (_HEADS, -1)).flatten(3).transpose(2, 3).unbind(1)
    tokens = [projection(of_head) for projection, of_head in zip(projections, of_heads, strict=True)]
    contrasts = [contrast_with_text(each, text_embeds, inverse_norm(each)) for each in tokens]
    return torch.stack(contrasts, dim=1).unflatten(2, maps.shape[2:])


def _read(features: torch.Tensor, channels: tuple[int, ...]) -> torch.Tensor:
    """
    Return what patches read, (B, C, h, w) -> (B, 4 * C + 2 * S, h, w), for features of S stages with these channels. A
    texture varies more than a plain surface.
    """
    own, to_mean, to_surroundings = compared_features(features)
    variation = _LEAST_VARIATION + _deviation(to_surroundings)[:, :, None, None]
    difference = features - mean_of_similar(features, len(channels))
    distances = torch.cat([each.norm(dim=1, keepdim=True) for each in difference.split(channels, dim=1)], dim=1)
    relative = distances / (_LEAST_DISTANCE + distances.mean(dim=(2, 3), keepdim=True))
    compared = (to_mean, to_surroundings, DIFFERENCE_FACTOR * difference)
    read = torch.cat((own, *(each / variation for each in compared), _DISTANCE_FACTOR * distances, relative), dim=1)
    return read.contiguous(memory_format=torch.channels_last)


def mean_of_similar(features: torch.Tensor, num_stages: int) -> torch.Tensor:
    """
    Return for each patch the mean of the patches elsewhere in the image that are most like it: attention without
    learned weights.

    Candidates are the patches at every second row and column; in a large image, so far apart that they are at most
    1,024. Those less than four patches away count only if there are no others.

    Args:
        features (`torch.Tensor` of shape `(B, C, h, w)`): features of a stem, whose stages have unit length each.
        num_stages (`int`): number of these stages.

    Returns:
        `torch.Tensor` of shape `(B, C, h, w)`, same dtype; computed in float32.
    """
    height, width = features.shape[2:]
    step = _STEP
    while -(-height // step) * -(-width // step) > _MOST_CANDIDATES:
        step += 1
    near_rows, near_columns = (_near(length, step, features.device) for length in (height, width))
    near = (near_rows[:, None, :, None] & near_columns[None, :, None]).flatten(2).flatten(0, 1)
    # not minus infinity, because a small image has near patches only; others differ by 2 / _TEMPERATURE at most
    mask = torch.zeros(near.shape, device=near.device).masked_fill(near, -_OUT_OF_REACH)
    # with heads and contiguous: other shapes cannot be exported to ONNX, and keep all scores in memory at a time
    tokens, similar = (
        each.float().flatten(2).mT[:, None].contiguous() for each in (features, features[..., ::step, ::step])
    )
    with no_autocast(features.device):
        mean = nn.functional.scaled_dot_product_attention(
            tokens, similar, similar, attn_mask=mask, scale=1 / (num_stages * _TEMPERATURE)
        )
    return mean[:, 0].mT.unflatten(2, (height, width)).to(features.dtype)


def _near(length: int, step: int, device: torch.device) -> torch.Tensor:
    """Return which positions along a side are near which candidates, (length, candidates)."""
    positions = torch.arange(length, device=device)
    return (positions[:, None] - positions[::step]).abs() <= _NEAR


def _read_cells(features: torch.Tensor) -> torch.Tensor:
    """Return what cells read, features of the four cells of each patch (B, 4 * C, h, w) -> (B, 2 * C, 2h, 2w)."""
    cells = features.unflatten(1, (-1, CELLS_OF_PATCH))
    patches = cells.mean(dim=2)
    to_mean = cells - patches.mean(dim=(2, 3), keepdim=True)[:, :, None]
    to_surroundings = cells - mean_around(patches, _CELL_SURROUNDINGS)[:, :, None]
    variation = _LEAST_CELL_VARIATION + _deviation(to_surroundings)[:, :, None, None, None]
    read = torch.cat((to_mean / variation, to_surroundings / variation), dim=1)
    return nn.functional.pixel_shuffle(read.flatten(1, 2), 2).contiguous(memory_format=torch.channels_last)


def _deviation(maps: torch.Tensor) -> torch.Tensor:
    """Return standard deviations over the image, (B, C, ...) -> (B, C); `torch.std` takes twice as long on a CPU."""
    maps = maps.flatten(2)
    return (maps - maps.mean(dim=2, keepdim=True)).square().mean(dim=2).sqrt()
