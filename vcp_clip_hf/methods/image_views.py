"""The 22 views of an image whose scores AnoVL averages (`aug` in utils.py of hq-deng/AnoVL)."""

import math

import torch
from torch import nn


__all__ = ["augmented_views"]

_ANGLES = [step * math.pi / 16 for step in (-4, -3, -2, -1, 1, 2, 3, 4)]
# Shifts in halves of the image, in both directions
_SHIFTS = [(a * size, b * size) for size in (0.2, 0.1) for a, b in ((1, 1), (-1, 1), (-1, -1), (1, -1))]
# ITU-R BT.601
_LUMA = (0.299, 0.587, 0.114)


def augmented_views(pixel_values: torch.Tensor) -> torch.Tensor:
    """
    Return the views of each image: the image itself, 8 rotations of up to 45 degrees, 8 shifts, its mirror image, its
    gray version, and 3 rotations by right angles. Borders are continued by reflection.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(B, 3, S, S)`): normalized square images. Gray is the weighted mean
            of the normalized channels, as in the authors' code.

    Returns:
        `torch.FloatTensor` of shape `(B, 22, 3, S, S)`.

    Raises:
        ValueError: the images are not square, so that quarter turns have another size.
    """
    if pixel_values.shape[-1] != pixel_values.shape[-2]:
        raise ValueError(
            f"The image score averages over quarter turns of square images; got {tuple(pixel_values.shape)}. Use a"
            " square image_size."
        )
    luma = torch.tensor(_LUMA, device=pixel_values.device, dtype=pixel_values.dtype).view(1, 3, 1, 1)
    gray = (pixel_values * luma).sum(dim=1, keepdim=True).expand_as(pixel_values)
    turned = [_moved(pixel_values, angle=angle) for angle in _ANGLES]
    shifted = [_moved(pixel_values, x=x, y=y) for x, y in _SHIFTS]
    quarters = [torch.rot90(pixel_values, times, (2, 3)) for times in (1, 2, 3)]
    return torch.stack([pixel_values, *turned, *shifted, pixel_values.flip(-1), gray, *quarters], dim=1)


def _moved(pixel_values: torch.Tensor, angle: float = 0.0, x: float = 0.0, y: float = 0.0) -> torch.Tensor:
    """Sample an image at rotated and shifted places; the angle in radians, x and y in halves of its sides."""
    # In float32, as in the authors' code: rounding of the places moves the samples of a large image visibly, in half
    # precision by whole pixels
    turn = torch.tensor(angle)
    matrix = torch.tensor([[turn.cos(), -turn.sin(), x], [turn.sin(), turn.cos(), y]], device=pixel_values.device)
    matrix = matrix.expand(len(pixel_values), -1, -1)
    places = nn.functional.affine_grid(matrix, list(pixel_values.shape), align_corners=True)
    moved = nn.functional.grid_sample(
        pixel_values.float(), places, mode="bilinear", padding_mode="reflection", align_corners=True
    )
    return moved.to(pixel_values.dtype)
