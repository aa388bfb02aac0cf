"""A model together with a memory of normal pictures.

The memory's map is upsampled like the model's maps. It is fused with the zero-shot map:
`(1 - weight) * zero_shot + weight * memory`, or the sigmoid of the same mean of logits
(`config.reference_fusion="logits"`). The paper of VCP-CLIP names few-shot segmentation as future work, so no published
numbers exist for this fusion.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from .map_fusion import BRANCH_MAPS, fused_by_logits
from .patch_tokens import states_of
from .references import ReferenceMemory


__all__ = ["ReferencedModel"]

# Maps that are fused by logits are kept this far from 0 and 1: the distance of equal patches is 0
_LOGIT_EPS = 1e-4


class ReferencedModel(nn.Module):
    """
    A model together with a memory: the same `forward`, whose maps and image scores include the memory's.

    Args:
        model ([`VCPCLIPModel`]): the model, plain or accelerated.
        memory ([`ReferenceMemory`]): the memory, of this model's image tower.
    """

    def __init__(self, model: nn.Module, memory: ReferenceMemory):
        super().__init__()
        self.model = model
        self.memory = memory

    @property
    def device(self) -> torch.device:
        """Return the model's device."""
        return self.model.device

    @property
    def config(self) -> Any:
        """Return the model's configuration."""
        return self.model.config

    def forward(
        self, pixel_values: torch.FloatTensor, output_hidden_states: Sequence[int] = (), **kwargs: Any
    ) -> ModelOutput:
        """
        Compute maps with the memory.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`): images.
            output_hidden_states (`Sequence[int]`, *optional*): blocks whose hidden states are returned too.
            kwargs: further arguments of the model's `forward`.

        Returns:
            `ModelOutput` of the model, in which `anomaly_map` and the maps of the branches are fused with the memory's
            map, and `image_scores`, if the model has them, with its maximum; and `reference_map` of shape
            `(batch_size, height, width)`, float32 in [0, 1], the memory's map alone. Layer maps are the model's.
        """
        layers = list(self.memory.settings.layers)
        further = [each for each in output_hidden_states if each not in layers]
        outputs = self.model(pixel_values, output_hidden_states=[*layers, *further], **kwargs)
        height, width = pixel_values.shape[-2:]
        patch_size = self.config.vision_config.patch_size
        grid = (height // patch_size, width // patch_size)
        distances = self.memory.distances(states_of(outputs, layers), grid)
        memory_map = nn.functional.interpolate(
            distances[:, None], size=(height, width), mode="bilinear", align_corners=True
        )[:, 0]
        weight = self.memory.weight
        # a weight of 0 or 1 gives one of the maps, which logits would limit
        by_logits = getattr(self.config, "reference_fusion", "mean") == "logits" and 0 < weight < 1
        memory_logits = torch.logit(memory_map, eps=_LOGIT_EPS) if by_logits else None
        for name in ("anomaly_map", *BRANCH_MAPS):
            zero_shot = outputs.get(name)
            if zero_shot is None:
                continue
            if by_logits:
                logits = memory_logits.to(zero_shot.device)
                outputs[name] = fused_by_logits(zero_shot.float(), logits, weight, _LOGIT_EPS)
            else:
                outputs[name] = torch.lerp(zero_shot.float(), memory_map.to(zero_shot.device), weight)
        if outputs.get("image_scores") is not None:
            highest = memory_map.flatten(1).amax(dim=1).to(outputs.image_scores.device)
            outputs["image_scores"] = torch.lerp(outputs.image_scores.float(), highest, weight)
        for name in ("stem_features", "stem_cells"):
            if outputs.get(name) is not None:
                outputs[name] = None
        if not output_hidden_states:
            outputs["hidden_states"] = None
        outputs["reference_map"] = memory_map
        return outputs
