"""Maps of a batch, smoothed and at the sizes of their images, with scores: one computation for each size."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .anomaly_scoring import AnomalyScoring
from .host_copy import to_device
from .region_of_interest import region_at_size


__all__ = ["FinishedMaps", "groups_of_one_size", "of_group", "regions_at_size"]


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
        self,
        group: list[int],
        maps: torch.Tensor,
        inside: torch.Tensor | None,
        branches: list[torch.Tensor],
        image_scores: torch.Tensor | None,
    ) -> None:
        """
        Score a group of images, and add it.

        Args:
            group (`list[int]`): positions of the images in the batch.
            maps (`torch.FloatTensor` of shape `(images, height, width)`): smoothed fused maps at the images' size.
            inside (`torch.BoolTensor` of that shape, *optional*): regions of interest; the maps become 0 elsewhere.
            branches, image_scores: further arguments of [`~AnomalyScoring.score_tensor`], of these images.
        """
        if inside is not None:
            maps = maps * inside
        self.groups.append(group)
        self.maps.append(maps)
        self.insides.append(inside)
        # the maps that the masks are read from
        self.scores.append(self.scoring.score_tensor(maps, branches, image_scores))

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
