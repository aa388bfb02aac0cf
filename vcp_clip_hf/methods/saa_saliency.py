"""Saliency of SAA+: how much a position differs from the rest of the image, or from the other objects in it."""

import torch
from torch import nn


__all__ = ["dense_features", "make_saliency_network", "object_saliency", "self_saliency"]

# Number of positions that are compared at once
_BLOCK = 1024


def make_saliency_network(name: str, pretrained: bool = False) -> nn.Module:
    """
    Make the convolutional network that positions are compared with, from timm.

    Args:
        name (`str`): name in timm, such as "wide_resnet50_2".
        pretrained (`bool`, *optional*, defaults to `False`): whether to download its ImageNet weights.

    Returns:
        `nn.Module`: images `(B, 3, H, W)` -> feature maps of its levels 1, 2 and 3, at 1/4, 1/8 and 1/16 of the size.

    Raises:
        ImportError: timm is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            "SAA+ compares positions of an image with a network of timm: pip install 'vcp-clip-hf[saa]'. SAA itself"
            " needs none (plus=False)."
        ) from error
    return timm.create_model(name, pretrained=pretrained, features_only=True, out_indices=(1, 2, 3))


def dense_features(levels: list[torch.Tensor]) -> torch.Tensor:
    """
    Join the levels of a network, those of a lower resolution repeated to that of the first one.

    Args:
        levels (`list[torch.Tensor]` of shape `(1, width, height, width)`): feature maps, the largest one first.

    Returns:
        `torch.FloatTensor` of shape `(height, width, D)`: unit vectors.
    """
    size = levels[0].shape[-2:]
    joined = torch.cat([nn.functional.interpolate(each.float(), size=size, mode="nearest") for each in levels], dim=1)
    return nn.functional.normalize(joined[0].permute(1, 2, 0), dim=-1)


def self_saliency(features: torch.Tensor, num_largest: int = 400) -> torch.Tensor:
    """
    Return for each position the mean of its largest distances from all positions of the image, each
    `0.5 * (1 - cosine)`.

    Args:
        features (`torch.Tensor` of shape `(height, width, D)`): unit vectors.
        num_largest (`int`, *optional*, defaults to 400): number of distances in the mean; all of them in small images.

    Returns:
        `torch.FloatTensor` of shape `(height, width)`, in [0, 1].
    """
    vectors = features.flatten(0, 1).float()
    count = min(num_largest, len(vectors))
    # The largest distances are those of the smallest cosines
    means = [(rows @ vectors.T).topk(count, dim=1, largest=False).values.mean(dim=1) for rows in vectors.split(_BLOCK)]
    return _distance(torch.cat(means)).view(features.shape[:2])


def object_saliency(features: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """
    Return for each position of an object its distance to the most similar position of the other objects.

    The authors' code sets the object's own positions to zero vectors and keeps them as candidates: therefore the
    highest cosine is at least 0.

    Args:
        features (`torch.Tensor` of shape `(height, width, D)`): unit vectors.
        masks (`torch.BoolTensor` of shape `(num_objects, height, width)`): positions of each object.

    Returns:
        `torch.FloatTensor` of shape `(height, width)`, in [0, 0.5]: the maximum over objects, 0 outside of them.
    """
    vectors, masks = features.flatten(0, 1).float(), masks.flatten(1)
    saliency = vectors.new_zeros(len(vectors))
    everything = masks.any(dim=0)
    for own in masks:
        others = vectors[everything & ~own]
        found = [
            _distance((rows @ others.T).amax(dim=1).clamp(min=0) if len(others) else rows.new_zeros(len(rows)))
            for rows in vectors[own].split(_BLOCK)
        ]
        if found:
            saliency[own] = torch.maximum(saliency[own], torch.cat(found))
    return saliency.view(features.shape[:2])


def _distance(cosines: torch.Tensor) -> torch.Tensor:
    return (0.5 * (1 - cosines)).clamp(0, 1)
