"""From raw maps to smoothed maps and scores, in torch: shared by image processor, tiles, evaluation and export."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from .autocast import no_autocast
from .thresholds import HIGHEST_SCORES, Thresholds


__all__ = [
    "AUTHORS_SCORING",
    "TOP_K_MAPS",
    "AnomalyScoring",
    "gaussian_matrix",
    "gaussian_smooth",
    "resize_map",
]

# Fields of a model's outputs that the score "top_k" reads: the maps of the paper's branches
TOP_K_MAPS = ("base_map", "vcp_map")
# The authors' test code: sigma in pixels of a 518 x 518 map, score from its 2000 largest pixels
AUTHORS_SCORING = {"smoothing_sigma": 8.0, "score_mode": "top_k", "top_k_fraction": 2000 / 518**2}

_NO_IMAGE_SCORES = (
    "score_mode='image_head' reads the model's own score of whole images, and this model returns none"
    " (outputs.image_scores is None). Use score_mode='max' or 'top_k', or train an image head for it: `vcp-clip train"
    " --trainable image_head`."
)

# Kernel radius in sigmas: the default of scipy.ndimage.gaussian_filter, which the authors use
_TRUNCATE = 4.0


@dataclass
class AnomalyScoring:
    """
    Scores, labels and masks from maps. Whole and tiled images are both scored here, and nowhere else.

    Args:
        threshold, image_threshold, smoothing_sigma, score_mode, top_k_fraction: settings of the same names of
            [`VCPCLIPImageProcessor`].

    Raises:
        ValueError: a setting is out of range.
    """

    threshold: float | None
    image_threshold: float | None
    smoothing_sigma: float
    score_mode: str
    top_k_fraction: float

    def __post_init__(self):
        if self.score_mode not in HIGHEST_SCORES:
            raise ValueError(f"score_mode={self.score_mode!r} must be one of {', '.join(map(repr, HIGHEST_SCORES))}.")
        if not 0 < self.top_k_fraction <= 1:
            raise ValueError(f"top_k_fraction={self.top_k_fraction} must lie in (0, 1].")
        if not 0 <= self.smoothing_sigma < math.inf:
            raise ValueError(f"smoothing_sigma={self.smoothing_sigma} must be 0 (none) or more, in pixels.")
        Thresholds.of(self.threshold, self.image_threshold, self.score_mode)  # checks their ranges

    @property
    def thresholds(self) -> Thresholds:
        """Return the thresholds, the image threshold filled in where the score allows it."""
        return Thresholds.of(self.threshold, self.image_threshold, self.score_mode)

    def score_tensor(
        self,
        smooth: torch.Tensor | None,
        branches: list[torch.Tensor],
        image_scores: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Score a batch. Exported graphs end with this function.

        Args:
            smooth (`torch.FloatTensor` of shape `(batch_size, height, width)`):
                Smoothed fused maps at the size of their masks, read by "max": an image has a score at or above a
                threshold exactly if its map has a pixel there.
            branches (`list[torch.FloatTensor]` of shape `(batch_size, h, w)`): unsmoothed maps `TOP_K_MAPS` at the
                model's size, read by "top_k".
            image_scores (`torch.FloatTensor` of shape `(batch_size,)`, *optional*): the model's own scores of whole
                images, read by "image_head".

        Returns:
            `torch.FloatTensor` of shape `(batch_size,)`, on the device of the maps.

        Raises:
            ValueError: the score "image_head" of a model that returns no image scores.
        """
        if self.score_mode == "max":
            return smooth.flatten(1).amax(dim=1)
        if self.score_mode == "image_head":
            if image_scores is None:
                raise ValueError(_NO_IMAGE_SCORES)
            return image_scores.float()
        return sum(_top_mean(branch, self.top_k_fraction) for branch in branches)

    def check_region(self, has_region: bool) -> None:
        """
        Check that the score can be restricted to a region of interest.

        Args:
            has_region (`bool`): whether the call has a region of interest.

        Raises:
            ValueError: the score "image_head" with a region.
        """
        if has_region and self.score_mode == "image_head":
            raise ValueError(
                "score_mode='image_head' scores the whole image and cannot be restricted to a region of interest"
                " (roi_mask). Use score_mode='max' or 'top_k' with a region, or crop the images."
            )

    def result(self, anomaly_map: torch.Tensor, score: float, inside: torch.Tensor | None = None) -> dict:
        """
        Make one image's result, as `post_process_anomaly_segmentation` returns it.

        Args:
            anomaly_map (`torch.FloatTensor` of shape `(height, width)`): smoothed fused map.
            score (`float`): score of the image.
            inside (`torch.BoolTensor` of shape `(height, width)`, *optional*): region of interest.
        """
        thresholds = self.thresholds
        mask = thresholds.mask(anomaly_map)
        return {
            "score": score,
            "label": thresholds.label(score),
            "threshold": thresholds.pixel,
            "image_threshold": thresholds.image,
            "anomaly_map": anomaly_map,
            "mask": mask if mask is None or inside is None else mask & inside,
        }


def resize_map(anomaly_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize maps of shape (..., h, w) to (..., height, width), bilinear: the only resize of maps in torch."""
    if tuple(anomaly_map.shape[-2:]) == tuple(size):
        return anomaly_map
    flat = anomaly_map.reshape(1, -1, *anomaly_map.shape[-2:])
    flat = torch.nn.functional.interpolate(flat, size=tuple(size), mode="bilinear", align_corners=False)
    return flat.reshape(*anomaly_map.shape[:-2], *size)


def _top_mean(maps: torch.Tensor, fraction: float) -> torch.Tensor:
    """Return the mean of the largest values of each map: (B, H, W) -> (B,). At least one pixel counts."""
    values = maps.flatten(1)
    return values.topk(max(1, round(fraction * values.shape[1])), dim=1).values.mean(dim=1)


@lru_cache(maxsize=16)
def gaussian_matrix(length: int, sigma: float, device: torch.device) -> torch.Tensor:
    """
    Return the matrix that smooths a signal of `length` samples.

    Args:
        length (`int`): number of samples.
        sigma (`float`): standard deviation in samples.
        device (`torch.device`): device of the matrix.

    Returns:
        `torch.FloatTensor` of shape `(length, length)`: row i holds the weights of the samples that make output i,
        with the reflections at both ends folded in.
    """
    radius = int(_TRUNCATE * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    # half-sample reflection (d c b a | a b c d | d c b a), repeated if the kernel is longer than the signal
    source = (np.arange(length)[:, None] + offsets) % (2 * length)
    source = np.where(source < length, source, 2 * length - 1 - source)
    matrix = np.zeros((length, length))
    np.add.at(matrix, (np.arange(length)[:, None], source), weights)
    return torch.from_numpy(matrix).to(device=device, dtype=torch.float32)


def gaussian_smooth(maps: torch.Tensor, sigma: float) -> torch.Tensor:
    """
    Smooth maps, equal to `scipy.ndimage.gaussian_filter(map, sigma)` (reflecting edges, cut at 4 sigma).

    Args:
        maps (`torch.FloatTensor` of shape `(..., height, width)`): maps on any device.
        sigma (`float`): standard deviation in pixels; 0 returns the maps unchanged.

    Returns:
        `torch.FloatTensor` of the same shape.
    """
    if not sigma:
        return maps
    # Two small matrix products: exact at the edges, and as fast as a convolution at the sizes in use
    rows, columns = (gaussian_matrix(length, float(sigma), maps.device) for length in maps.shape[-2:])
    with no_autocast(maps.device):  # which would compute products in half precision
        return rows @ maps @ columns.T
