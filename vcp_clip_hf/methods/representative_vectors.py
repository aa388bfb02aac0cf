"""One vector that represents the prompts of a state, as CLIP-AD chooses it (Chen et al., IJCAI 2024 workshop,
arXiv 2311.00453, section on representative vector selection).

Shapes: n prompts, E the joint width. Rows are L2-normalized prompt embeddings, float32.
"""

import torch
from torch import nn


__all__ = ["REPRESENTATIVES", "dbscan_labels", "representative_vector"]

# Ways to choose the vector, in the authors' names
REPRESENTATIVES = ("dbscan", "mean", "pca", "kde", "mean_shift")

# The value of the authors' code
_KDE_BANDWIDTH = 0.3

_NOISE = -1


def representative_vector(embeds: torch.Tensor, kind: str, eps: float = 0.5, min_samples: int = 15) -> torch.Tensor:
    """
    Choose one vector for the prompts of a state.

    Args:
        embeds (`torch.FloatTensor` of shape `(n, E)`): L2-normalized embeddings.
        kind (`str`): a name in `REPRESENTATIVES`:
            `"dbscan"`: mean of the largest cluster (the first of equally large ones); of all prompts without clusters.
            `"mean"`: mean of all.
            `"pca"`: first principal component of the `(E, n)` matrix, centered for each prompt, with the sign that
            points to the mean.
            `"kde"`: mean weighted by a Gaussian kernel density of bandwidth 0.3.
            `"mean_shift"`: mode of a flat kernel of bandwidth 2. Unit vectors are at most 2 apart, so it is the mean
            of all.
        eps (`float`, *optional*, defaults to 0.5): radius of `"dbscan"`.
        min_samples (`int`, *optional*, defaults to 15): neighbors of a core point of `"dbscan"`, itself included.

    Returns:
        `torch.FloatTensor` of shape `(E,)`: L2-normalized.

    Raises:
        ValueError: an unknown kind.
    """
    # On the CPU: a few hundred vectors, and not every device has float64
    device, embeds = embeds.device, embeds.cpu()
    mean = embeds.mean(dim=0)
    if kind in ("mean", "mean_shift"):
        vector = mean
    elif kind == "dbscan":
        labels = dbscan_labels(embeds, eps, min_samples)
        clustered = labels[labels >= 0]
        vector = embeds[labels == clustered.bincount().argmax()].mean(dim=0) if len(clustered) else mean
    elif kind == "pca":
        centered = embeds.double() - embeds.double().mean(dim=1, keepdim=True)
        vector = torch.linalg.svd(centered.T, full_matrices=False).U[:, 0].to(embeds.dtype)
        vector = vector * torch.where(vector @ mean > 0, 1.0, -1.0)
    elif kind == "kde":
        kernels = torch.exp(-_squared_distances(embeds) / (2 * _KDE_BANDWIDTH**2))
        densities = kernels.mean(dim=1)
        vector = (densities / densities.sum()).to(embeds.dtype) @ embeds
    else:
        raise ValueError(f"{kind!r} must be one of {', '.join(map(repr, REPRESENTATIVES))}.")
    return nn.functional.normalize(vector, dim=0).to(device)


def dbscan_labels(embeds: torch.Tensor, eps: float, min_samples: int) -> torch.Tensor:
    """
    Cluster points by density (DBSCAN, Ester et al. 1996), with the labels of scikit-learn's implementation.

    Args:
        embeds (`torch.FloatTensor` of shape `(n, E)`): points.
        eps (`float`): Euclidean distance up to which two points are neighbors.
        min_samples (`int`): neighbors that make a point the core of a cluster, itself included.

    Returns:
        `torch.LongTensor` of shape `(n,)`: clusters in the order of their first core point, -1 for noise. A point
        between two clusters belongs to the first.
    """
    neighbors = _squared_distances(embeds) <= eps**2
    is_core = neighbors.sum(dim=1) >= min_samples
    labels = torch.full((len(embeds),), _NOISE)
    cluster = 0
    for first in is_core.nonzero()[:, 0].tolist():
        if labels[first] != _NOISE:
            continue
        # Grow by all neighbors of core points at once until nothing is added
        reached = torch.zeros(len(embeds), dtype=torch.bool)
        reached[first] = True
        while True:
            frontier = reached | (neighbors[reached & is_core].any(dim=0) & (labels == _NOISE))
            if frontier.equal(reached):
                break
            reached = frontier
        labels[reached] = cluster
        cluster += 1
    return labels.to(embeds.device)


def _squared_distances(embeds: torch.Tensor) -> torch.Tensor:
    """Return the squared Euclidean distances of all pairs, in float64 against cancellation."""
    points = embeds.cpu().double()
    squares = points.square().sum(dim=1)
    return (squares[:, None] + squares - 2 * points @ points.T).clamp(min=0)
