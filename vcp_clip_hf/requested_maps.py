"""Maps that a call requests in addition to the fused map of whole images."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

from .anomaly_scoring import resize_map
from .defect_names import DefectNames
from .finished_maps import of_group
from .image_processing_vcp_clip import VCPCLIPImageProcessor
from .map_fusion import BRANCH_MAPS


__all__ = ["RequestedMaps"]


@dataclass(frozen=True)
class RequestedMaps:
    """
    Maps of whole images that a call requests.

    Args:
        maps (`bool`): whether the fused map itself is needed on the host.
        branch_maps, layer_maps, uncertainty (`bool`): `output_branch_maps`, `output_layer_maps` and
            `output_uncertainty` of the call.
        defect_names ([`DefectNames`], *optional*): names for regions.
    """

    maps: bool
    branch_maps: bool
    layer_maps: bool
    uncertainty: bool
    defect_names: DefectNames | None

    def stacks(
        self, image_processor: VCPCLIPImageProcessor, outputs: ModelOutput, group: list[int], size: tuple[int, int]
    ) -> dict[str, torch.Tensor]:
        """
        Return the requested maps of a group of images, other than the fused ones.

        Args:
            image_processor ([`VCPCLIPImageProcessor`]): what removes padding.
            outputs ([`VCPCLIPOutput`]): outputs of the model for a batch.
            group (`list[int]`): positions in the batch of images of one size.
            size (`tuple[int, int]`): their height and width.

        Returns:
            `dict[str, torch.Tensor]`: field of the results -> tensor of shape `(images, ...)`, on the outputs' device.
        """

        def at_size(maps: torch.Tensor) -> torch.Tensor:
            return resize_map(image_processor.without_padding(maps, size), size)

        found = {}
        if self.branch_maps:
            for name in (*BRANCH_MAPS, "reference_map"):
                if outputs.get(name) is not None:
                    found[name] = at_size(of_group(outputs[name], group))
        layers = {
            name: of_group(outputs[name], group)
            for name in ("base_layer_maps", "vcp_layer_maps")
            if (self.layer_maps or self.uncertainty) and outputs.get(name) is not None
        }
        if self.layer_maps:
            found.update({name: at_size(maps) for name, maps in layers.items()})
        if self.uncertainty:
            maps = list(layers.values())
            if outputs.get("stem_map") is not None:
                maps.append(of_group(outputs.stem_map, group)[:, None])
            spread = torch.cat(maps, dim=1).std(dim=1, correction=0)
            highest = of_group(outputs.anomaly_map, group).flatten(1).argmax(dim=1, keepdim=True)
            found["uncertainty_map"] = at_size(spread)
            found["uncertainty"] = spread.flatten(1).gather(1, highest)[:, 0]
        return found
