"""The optional stem branch of VCP-CLIP: a third map, from the features of the convolutional stem. The paper has none.

A small image tower that learned from generated pictures describes real materials badly; the stem's ImageNet features
describe them well. A few convolutions turn these features into tokens of CLIP's joint space, which are compared with
the prompted text as the patches of the base branch are (equation 3). What they read is mostly relative: each patch
against the whole image and against the patches around it, in units of the variation within the image, because a defect
is an unusual difference, whatever the product.

The branch has several heads, trained side by side from different random weights. Which products a head finds hard
depends on these weights, so that the mean of their logits is better than most of them.

Of the other parts, only the image head reads the branch, and no gradient leaves the branch. The base map and the
Post-VCP map are therefore those of the same weights without it.

Shapes: B images, a grid of h x w patches, N = h * w, H heads, d the width of CLIP's joint space.
"""

import math

import torch
from torch import nn
from transformers import initialization as init

from .configuration_vcp_clip import VCPCLIPConfig
from .convolutional_stem import STEM_LAYER, compared_features, layer_width
from .visual_context_prompting import contrast_with_text, inverse_norm


__all__ = ["VCPCLIPStemBranch"]

# Channels of each head, in groups that are normalized over the image: 0.12 million parameters a head
_HEADS, _WIDTH, _GROUPS = 3, 64, 8
# Added to the variation within an image, which is zero in an empty one and about 0.5 in others
_LEAST_VARIATION = 0.3


class VCPCLIPStemBranch(nn.Module):
    """
    Compare the features of the stem with the text: the optional stem branch of [`VCPCLIPModel`].

    Args:
        config ([`VCPCLIPConfig`]): architecture of the model, whose image tower has a stem.
    """

    def __init__(self, config: VCPCLIPConfig):
        super().__init__()
        num_features = layer_width(STEM_LAYER, config.vision_config)
        # all heads in one convolution each: as a group of channels that reads its own group only
        width = _HEADS * _WIDTH
        self.entry = nn.Conv2d(3 * num_features, width, 1)
        self.norms = nn.ModuleList(nn.GroupNorm(_HEADS * _GROUPS, width) for _ in range(2))
        self.neighbors = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=_HEADS) for _ in range(2))
        self.projection = nn.Conv2d(width, _HEADS * config.projection_dim, 1, groups=_HEADS)
        self.logit_scale = nn.Parameter(torch.empty(_HEADS))

    @torch.no_grad()
    def initialize(self) -> None:
        """Set the temperature of the paper's branches in all heads; the convolutions keep PyTorch's default."""
        init.constant_(self.logit_scale, math.log(1 / 0.07))

    def forward(self, features: torch.Tensor, grid: tuple[int, int], text_embeds: torch.Tensor) -> torch.Tensor:
        """
        Compute the logits of patches by every head; the branch's are their mean. The features are used without their
        gradients, as the text is.

        Args:
            features (`torch.Tensor` of shape `(B, N, 176)`): features of the stem.
            grid (`tuple[int, int]`): patches in a column and in a row.
            text_embeds (`torch.Tensor` of shape `(B, 2, d)`): normal, abnormal; L2-normalized.

        Returns:
            `torch.FloatTensor` of shape `(B, H, N)`, float32: positive for abnormal patches.
        """
        maps = self.entry(_read(features.detach().transpose(1, 2).unflatten(2, grid)))
        for norm, convolution in zip(self.norms, self.neighbors, strict=True):
            maps = convolution(norm(nn.functional.gelu(maps)))
        tokens = self.projection(nn.functional.gelu(maps)).unflatten(1, (_HEADS, -1)).flatten(3).transpose(2, 3)
        # the tokens of all heads as one row of patches
        flat = tokens.flatten(1, 2)
        contrast = contrast_with_text(flat, text_embeds.detach(), inverse_norm(flat)).unflatten(1, (_HEADS, -1))
        return self.logit_scale.float().exp()[:, None] * contrast


def _read(features: torch.Tensor) -> torch.Tensor:
    """Return what the branch reads, (B, C, h, w) -> (B, 3 * C, h, w); a texture varies more than a plain surface."""
    own, to_mean, to_surroundings = compared_features(features).chunk(3, dim=1)
    variation = _LEAST_VARIATION + to_surroundings.std(dim=(2, 3), correction=0, keepdim=True)
    return torch.cat((own, to_mean / variation, to_surroundings / variation), dim=1)
