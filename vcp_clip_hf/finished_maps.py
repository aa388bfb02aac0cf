"""Maps of a batch, smoothed and at the sizes of their images, with scores: one computation for each size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .anomaly_scoring import AnomalyScoring, gaussian_smooth, resize_map
from .host_copy import to_device
from .region_of_interest import region_at_size


__all__ = ["FinishedMaps", "ScoredBatch", "groups_of_one_size", "of_group", "regions_at_size"]


@dataclass
class FinishedMaps:
    """
    Maps and scores of a batch on the device that computed them. Nothing has waited for the device yet.

    Args:
        scoring ([`AnomalyScoring`]): settings of scores and masks.
        groups (`list[list[int]]`): positions in the batch of the images of each group, which have one size.
        maps (`list[torch.FloatTensor]`): maps of each group, of shape `(images, height, width)`, in [0, 1].
        scores (`list[torch.FloatTensor]`): scores of each group, of shape `(images,)`.
        insides (`list[torch.BoolTensor | None]`): regions of interest of each group, of the shape of its maps.
    """

    scoring: AnomalyScoring
    groups: list[list[int]] = field(default_factory=list)
    maps: list[torch.Tensor] = field(default_factory=list)
    scores: list[torch.Tensor] = field(default_factory=list)
    insides: list[torch.Tensor | None] = field(default_factory=list)

    def add(
        self, group: list[int], maps: torch.Tensor, scores: torch.Tensor, inside: torch.Tensor | None = None
    ) -> None:
        """Add a group: positions in the batch, maps, scores, and regions of interest, as in the fields."""
        self.groups.append(group)
        self.maps.append(maps)
        self.scores.append(scores)
        self.insides.append(inside)

    def extend(self, positions: list[int], other: "FinishedMaps") -> None:
        """Add images with these positions in the batch, which are a batch of their own in `other`."""
        for group, maps, scores, inside in zip(other.groups, other.maps, other.scores, other.insides, strict=True):
            self.add([positions[index] for index in group], maps, scores, inside)

    def results(self) -> list[dict[str, Any]]:
        """Return the result of each image, as `post_process_anomaly_segmentation` documents it."""
        order = [position for group in self.groups for position in group]
        results: list[dict[str, Any]] = [{} for _ in order]
        scores = iter(torch.cat(self.scores).tolist() if self.scores else [])
        for group, maps, inside in zip(self.groups, self.maps, self.insides, strict=True):
            regions = [None] * len(group) if inside is None else inside
            for position, anomaly_map, region in zip(group, maps, regions, strict=True):
                results[position] = self.scoring.result(anomaly_map, next(scores), region)
        return results


@dataclass
class ScoredBatch:
    """
    Raw maps of a batch, with what their scores need.

    Args:
        scoring ([`AnomalyScoring`]): settings of smoothing, scores and masks.
        maps (`torch.FloatTensor` of shape `(batch_size, h, w)`): fused maps at the model's size, not smoothed.
        branches, image_scores: further arguments of [`~AnomalyScoring.score_tensor`].
        roi_masks (sequence of `np.ndarray`, *optional*): region of interest of each image, or `None`.
    """

    scoring: AnomalyScoring
    maps: torch.Tensor
    branches: list[torch.Tensor]
    image_scores: torch.Tensor | None
    roi_masks: Sequence[np.ndarray | None] | None

    def of_group(self, group: list[int], cut: Callable[[torch.Tensor], torch.Tensor]) -> "ScoredBatch":
        """Return some images as a batch of their own, whose maps are cut by a function."""
        return ScoredBatch(
            self.scoring,
            cut(of_group(self.maps, group)),
            [cut(of_group(branch, group)) for branch in self.branches],
            None if self.image_scores is None else of_group(self.image_scores, group),
            None if self.roi_masks is None else [self.roi_masks[index] for index in group],
        )

    def finished(self, sizes: Sequence[tuple[int, int]], groups: Sequence[list[int]]) -> FinishedMaps:
        """
        Smooth maps at the model's size, resize them to the original sizes, and score them.

        Args:
            sizes (`Sequence[tuple[int, int]]`): original size of each image.
            groups (`Sequence[list[int]]`): positions of the images of each group, which have one size.
        """
        smooth = gaussian_smooth(self.maps, self.scoring.smoothing_sigma)
        of_highest = self.scoring.score_mode == "max"
        scores = None if of_highest else self._scores_at_model_size()
        finished = FinishedMaps(self.scoring)
        for group in groups:
            size, inside = tuple(sizes[group[0]]), None
            maps = resize_map(of_group(smooth, group), size)
            if self.roi_masks is not None:
                inside = regions_at_size([self.roi_masks[index] for index in group], size, maps.device)
                maps = maps * inside
            # the score "max" reads the maps that the masks are read from
            own = self.scoring.score_tensor(maps, []) if of_highest else of_group(scores, group)
            finished.add(group, maps, own, inside)
        return finished

    def _scores_at_model_size(self) -> torch.Tensor:
        branches = self.branches
        if self.roi_masks is not None and branches:
            inside = regions_at_size(self.roi_masks, tuple(self.maps.shape[-2:]), self.maps.device)
            branches = [branch * inside for branch in branches]
        return self.scoring.score_tensor(None, branches, self.image_scores)


def groups_of_one_size(sizes: Sequence[tuple[int, int]], device: torch.device) -> list[list[int]]:
    """
    Group the images of a batch: those of one size are computed and copied to the host together.

    Args:
        sizes (`Sequence[tuple[int, int]]`): size of each image.
        device (`torch.device`):
            Device that computes. On a CPU each image is a group, because a common stack would save no launches, and
            would stay in memory as long as one of its maps.

    Returns:
        `list[list[int]]`: positions of the images of each group.
    """
    if device.type == "cpu":
        return [[position] for position in range(len(sizes))]
    groups: dict[tuple[int, int], list[int]] = {}
    for position, size in enumerate(sizes):
        groups.setdefault(tuple(size), []).append(position)
    return list(groups.values())


def of_group(batch: torch.Tensor, group: list[int]) -> torch.Tensor:
    """
    Return the rows of a batch that belong to a group.

    Args:
        batch (`torch.Tensor` of shape `(batch_size, ...)`): one row for each image.
        group (`list[int]`): positions of the images, in ascending order.

    Returns:
        `torch.Tensor` of shape `(len(group), ...)`: a view if the positions have no gap.
    """
    first, last = group[0], group[-1]
    if last - first + 1 == len(group):
        return batch[first : last + 1]
    # an index tensor would be copied to the device, which waits for it
    return torch.stack([batch[position] for position in group])


def regions_at_size(
    roi_masks: Sequence[np.ndarray | None], size: tuple[int, int], device: torch.device
) -> torch.Tensor:
    """
    Return regions of interest as one tensor.

    Args:
        roi_masks (sequence of `np.ndarray`, or `None`): non-zero in the inspected area; `None`: everywhere.
        size (`tuple[int, int]`): height and width.
        device (`torch.device`): device of the result.

    Returns:
        `torch.BoolTensor` of shape `(len(roi_masks), height, width)`: true in the inspected area.
    """
    found = np.ones((len(roi_masks), *size), dtype=bool)
    for region, roi_mask in zip(found, roi_masks, strict=True):
        if roi_mask is not None:
            region[:] = region_at_size(np.asarray(roi_mask) != 0, size)
    return to_device(torch.from_numpy(found), device)
