"""Distances from normal patches, in relation to the spacing of these.

Patches of a coarse texture are farther from each other than those of a smooth surface, and so is a new normal patch
from its nearest one. The distance from a normal patch is therefore divided by the square root of that patch's spacing,
its mean distance from the nearest patches of its own picture. The local outlier factor (Breunig et al., SIGMOD 2000)
and the image score of PatchCore (Roth et al., CVPR 2022, equation 7) weight distances by neighborhoods too. Here the
smallest ratio over all normal patches counts, so that one more normal picture never raises it.
"""

import torch
from torch import nn

from .autocast import no_autocast


__all__ = ["as_probability", "patch_spacing", "smallest_ratio"]

# Nearest patches of the same picture that a spacing is the mean over
_NEIGHBORS = 16
# Smallest spacing: that of equal patches is 0, and cosines in bfloat16 have steps of 0.004
_LEAST_SPACING = 1e-3


def patch_spacing(tokens: torch.Tensor, block_values: int = 2**24) -> torch.Tensor:
    """
    Compute the mean distance of each patch to the 16 nearest other patches of the same picture.

    Args:
        tokens (`torch.Tensor` of shape `(..., num_patches, width)`): patch tokens of pictures, not normalized.
        block_values (`int`, *optional*, defaults to 2**24): maximum number of cosines in memory at a time.

    Returns:
        `torch.FloatTensor` of shape `(..., num_patches)`: means of `(1 - cosine) / 2`, float32, at least 0.001.
    """
    pictures = nn.functional.normalize(tokens.detach().float(), dim=-1).reshape(-1, *tokens.shape[-2:])
    count = pictures.shape[1]
    rows = max(1, block_values // count)
    spacing = torch.empty(pictures.shape[:2], device=tokens.device)
    with no_autocast(tokens.device):
        for number, patches in enumerate(pictures):
            for start in range(0, count, rows):
                cosines = patches[start : start + rows] @ patches.T
                # the highest cosine is that of the patch with itself
                nearest = cosines.topk(min(_NEIGHBORS + 1, count), dim=1).values[:, 1:]
                sums = (1 - nearest).clamp(min=0).sum(dim=1)
                spacing[number, start : start + rows] = sums / (2 * max(1, nearest.shape[1]))
    return spacing.clamp(min=_LEAST_SPACING).view(tokens.shape[:-1])


def smallest_ratio(cosines: torch.Tensor, spacing: torch.Tensor) -> torch.Tensor:
    """
    Compute the smallest ratio over normal patches: the distance from one, `(1 - cosine) / 2`, divided by the square
    root of its spacing.

    Args:
        cosines (`torch.FloatTensor` of shape `(patches, rows)`): cosines of patches with normal ones, float32; they
            are overwritten.
        spacing (`torch.FloatTensor` of shape `(rows,)`): `patch_spacing` of the normal patches.

    Returns:
        `torch.FloatTensor` of shape `(patches,)`: at least 0.
    """
    ratios = cosines.sub_(1).mul_(-0.5 * spacing.rsqrt())
    return ratios.amin(dim=1).clamp(min=0)


def as_probability(ratio: torch.Tensor) -> torch.Tensor:
    """Convert ratios, at least 0, to probabilities: `r ** 2 / (1 + r ** 2)`, whose logit is `2 * log(r)`."""
    # not the formula itself, which is NaN for the square of a large ratio: infinity / infinity
    return 1 / (1 + ratio.square().reciprocal())
