"""A method bound to a product's name and to references: called like VCP-CLIP, with its outputs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..modeling_vcp_clip import VCPCLIPOutput


__all__ = ["NamedProductModel"]


class NamedProductModel(nn.Module):
    """
    A method whose `forward` has the arguments and the outputs of [`VCPCLIPModel`], as pipeline, tiles and evaluation
    call it. Prompts and the global features of another image have a meaning for VCP-CLIP only: prompts are refused,
    and global features are ignored, so that each tile is segmented without the whole image.

    Args:
        model ([`AnomalyMethod`]): the method.
        product_name (`str`, *optional*, defaults to `"object"`): name of the product in all images.
        references (`Mapping[str, torch.Tensor]`, *optional*): banks of normal images, as in the method's `forward`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        product_name: str | None = None,
        references: Mapping[str, torch.Tensor] | None = None,
    ):
        super().__init__()
        self.model, self.product_name, self.references = model, product_name, references

    @property
    def device(self) -> torch.device:
        """Return the model's device."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Return the model's dtype."""
        return self.model.dtype

    @property
    def config(self) -> Any:
        """Return the model's configuration."""
        return self.model.config

    def forward(
        self,
        pixel_values: torch.FloatTensor,
        product_names: Sequence[str] | None = None,
        prompt_input_ids: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> VCPCLIPOutput:
        """
        Compute maps and scores.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`): images.
            product_names (`Sequence[str]`, *optional*): one name for each image, instead of the bound one.
            prompt_input_ids (`torch.Tensor`, *optional*): must be absent.
            image_embeds (`torch.Tensor`, *optional*): ignored.
            kwargs: further arguments of the method's `forward`.

        Returns:
            [`VCPCLIPOutput`] with the map as `anomaly_map` and `base_map`, layer maps as `base_layer_maps`, and
            further entries `text_scores` and, with references, `reference_map`.

        Raises:
            ValueError: prompts are given.
        """
        if prompt_input_ids is not None:
            raise ValueError(f"{type(self.model).__name__} has prompts of its own, so `prompts` cannot replace them.")
        names = self.product_name if product_names is None else product_names
        found = self.model(pixel_values, names, references=self.references, **kwargs)
        outputs = VCPCLIPOutput(
            anomaly_map=found.anomaly_map,
            base_map=found.anomaly_map,
            base_layer_maps=found.layer_maps,
            text_embeds=found.text_embeds,
            image_embeds=found.image_embeds,
            hidden_states=found.hidden_states,
            stem_features=found.stem_features,
            image_scores=found.image_scores,
        )
        for name in ("text_scores", "reference_map"):
            if getattr(found, name) is not None:
                outputs[name] = getattr(found, name)
        return outputs
