"""Linear maps of the patch tokens, one for each feature layer (introduced by APRIL-GAN), and comparisons with text.

Shapes: K feature layers; `projection_dim` is the width of the joint space.
"""

from collections.abc import Sequence

import torch
from torch import nn

from ..autocast import no_autocast


__all__ = ["PatchAdapters", "abnormal_probability", "image_logits", "patch_logits", "text_cosines", "upsample"]


class PatchAdapters(nn.Module):
    """
    One linear layer for each feature layer, from the image width to the joint space.

    The names of the parameters are those of the official checkpoints: `fc.<i>.weight`, `fc.<i>.bias`.

    Args:
        num_layers (`int`): number of feature layers.
        vision_width (`int`): width of the patch tokens.
        projection_dim (`int`): width of the joint space.
    """

    def __init__(self, num_layers: int, vision_width: int, projection_dim: int):
        super().__init__()
        self.fc = nn.ModuleList(nn.Linear(vision_width, projection_dim) for _ in range(num_layers))

    def forward(self, patch_tokens: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """
        Map the patch tokens of each feature layer.

        Args:
            patch_tokens (`Sequence[torch.Tensor]`): one tensor `(batch_size, num_patches, vision_width)` for each
                feature layer.

        Returns:
            `list[torch.Tensor]`: one tensor `(batch_size, num_patches, projection_dim)` for each, not normalized.
        """
        return [layer(tokens) for layer, tokens in zip(self.fc, patch_tokens, strict=True)]


def patch_logits(
    features: Sequence[torch.Tensor], text_embeds: torch.Tensor, scale: torch.Tensor | float
) -> torch.Tensor:
    """
    Return the abnormal minus the normal logit of every patch. Its sigmoid is the softmax over both states.

    Args:
        features (`Sequence[torch.Tensor]`): K tensors `(batch_size, num_patches, projection_dim)`, not normalized.
        text_embeds (`torch.Tensor` of shape `(batch_size, 2, projection_dim)`): L2-normalized, normal first.
        scale (`torch.Tensor` or `float`): factor of the cosines.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, K, num_patches)`.
    """
    difference = (text_embeds[:, 1] - text_embeds[:, 0]).unsqueeze(-1)
    cosines = [(nn.functional.normalize(each, dim=-1) @ difference.to(each)).squeeze(-1).float() for each in features]
    return scale * torch.stack(cosines, dim=1)


def image_logits(image_embeds: torch.Tensor, text_embeds: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    """
    Compare the global feature of each image with both states.

    Args:
        image_embeds (`torch.Tensor` of shape `(batch_size, projection_dim)`): global features, not normalized.
        text_embeds (`torch.Tensor` of shape `(batch_size, 2, projection_dim)`): L2-normalized, normal first.
        scale (`torch.Tensor` or `float`): factor of the cosines.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, 2)`: logits, normal first.
    """
    cosines = nn.functional.normalize(image_embeds, dim=-1).unsqueeze(1) @ text_embeds.to(image_embeds).mT
    return scale * cosines.squeeze(1).float()


def text_cosines(embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
    """
    Compare embeddings with both states, in float32 also inside autocast: differences of cosines are small.

    Args:
        embeds (`torch.Tensor` of shape `(..., positions, projection_dim)`): embeddings, not normalized.
        text_embeds (`torch.Tensor` of shape `(..., 2, projection_dim)`): L2-normalized, normal first.

    Returns:
        `torch.FloatTensor` of shape `(..., positions, 2)`: normal first, in [-1, 1].
    """
    with no_autocast(embeds.device):
        return nn.functional.normalize(embeds.float(), dim=-1) @ text_embeds.float().mT


def abnormal_probability(embeds: torch.Tensor, text_embeds: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """
    Return the probability of the abnormal state at each position: the softmax of both cosines, in float32.

    Args:
        embeds (`torch.Tensor` of shape `(batch_size, positions, projection_dim)`): embeddings, not normalized.
        text_embeds (`torch.Tensor` of shape `(batch_size, 2, projection_dim)`): L2-normalized, normal first.
        temperature (`float`, *optional*, defaults to 1): divisor of the cosines.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, positions)`, in [0, 1].
    """
    return (text_cosines(embeds, text_embeds) / temperature).softmax(dim=-1)[..., 1]


def upsample(values: torch.Tensor, grid: tuple[int, int], size: tuple[int, int], align_corners: bool) -> torch.Tensor:
    """
    Upsample values of patches to pixels by bilinear interpolation.

    Args:
        values (`torch.Tensor` of shape `(batch_size, channels, num_patches)`): patches row by row.
        grid (`tuple[int, int]`): patches in a column and in a row.
        size (`tuple[int, int]`): height and width in pixels.
        align_corners (`bool`): as in `torch.nn.functional.interpolate`.

    Returns:
        `torch.Tensor` of shape `(batch_size, channels, *size)`.
    """
    return nn.functional.interpolate(
        values.unflatten(-1, grid), size=size, mode="bilinear", align_corners=align_corners
    )
