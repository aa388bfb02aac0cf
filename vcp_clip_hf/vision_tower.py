"""The modules of CLIP's image tower that VCP-CLIP changes; their parameters and names are CLIP's."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.clip.modeling_clip import CLIPEncoder, CLIPVisionEmbeddings

from .convolutional_stem import VCPCLIPHybridPatchEmbedding, stem_of


__all__ = [
    "LayerStates",
    "RecordedImages",
    "VCPCLIPBackbone",
    "VCPCLIPVisionEmbeddings",
    "VCPCLIPVisionEncoder",
    "resize_position_table",
]


class LayerStates:
    """
    The residual stream after chosen blocks of the image tower, and the features of its stem.

    `CLIPVisionModel` does not return its encoder's output, and transformers' recording by hooks cannot be compiled or
    pickled. The encoder fills this object instead; it is not a dictionary, because offloading
    hooks copy those.

    Args:
        layers (`Iterable[int | str]`): the requested blocks, counted from 1; 0 is the input of the first, `"stem"` the
            convolutional stem, `"stem_cells"` the cells of its patches.

    Attributes:
        states (`dict[int | str, torch.Tensor]`): for each of them, once the tower has run: `(B, 1 + N, d_v)`, class
            token first; of the stem `(B, N, d_s)`, of its cells `(B, N, 224)`.
    """

    def __init__(self, layers: Iterable[int | str]):
        self.layers = frozenset(layers)
        self.states: dict[int | str, torch.Tensor] = {}

    def record(self, layer: int | str, hidden_states: torch.Tensor) -> None:
        """Keep the states of a layer if they were requested."""
        if layer in self.layers:
            self.states[layer] = hidden_states


class RecordedImages(NamedTuple):
    """
    Images with the receiver of their stem's features, as one argument: `CLIPVisionModel` passes no other to its
    embeddings.

    Args:
        pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): images.
        layer_states ([`LayerStates`]): the receiver.
    """

    pixel_values: torch.Tensor
    layer_states: LayerStates


class VCPCLIPVisionEncoder(CLIPEncoder):
    """Run CLIP's image encoder and also return the residual stream after chosen blocks."""

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        layer_states: LayerStates | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """
        Run all blocks.

        Args:
            inputs_embeds (`torch.Tensor` of shape `(B, 1 + N, d_v)`): embedded class token and patches.
            attention_mask (`torch.Tensor`, *optional*): mask as in `CLIPEncoder`.
            layer_states ([`LayerStates`], *optional*): receiver of the residual stream after the requested blocks.
            kwargs: arguments of the blocks.

        Returns:
            `BaseModelOutput` with `last_hidden_state` of shape `(B, 1 + N, d_v)`.
        """
        layer_states = LayerStates(()) if layer_states is None else layer_states
        hidden_states = inputs_embeds
        layer_states.record(0, hidden_states)
        for number, layer in enumerate(self.layers, start=1):
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
            layer_states.record(number, hidden_states)
        return BaseModelOutput(last_hidden_state=hidden_states)


class VCPCLIPVisionEmbeddings(CLIPVisionEmbeddings):
    """
    CLIP's image embeddings whose position table is resized with antialiasing, or in another way, and whose patch
    embedding may have a convolutional stem.

    Args:
        config (`CLIPVisionConfig`): configuration of the image tower; `stem` is one of `STEMS`, or absent.

    Attributes:
        position_interpolation (`str`): way to resize, as in [`resize_position_table`].
    """

    position_interpolation = "bicubic_antialias"

    def __init__(self, config: CLIPVisionConfig):
        super().__init__(config)
        if stem_of(config) is not None:
            self.patch_embedding = VCPCLIPHybridPatchEmbedding(config)

    def forward(
        self, pixel_values: torch.Tensor | RecordedImages, interpolate_pos_encoding: bool = False
    ) -> torch.Tensor:
        """
        Embed images.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`, or [`RecordedImages`]): images; with a receiver, of
                any size, and only if the tower has a stem.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): whether sizes other than that of the
                pretraining are accepted.

        Returns:
            `torch.Tensor` of shape `(B, 1 + N, d_v)`, class token first.
        """
        if not isinstance(pixel_values, RecordedImages):
            return super().forward(pixel_values, interpolate_pos_encoding)
        images, layer_states = pixel_values
        images = images.to(self.patch_embedding.weight.dtype)
        patches = self.patch_embedding(images, layer_states.record).flatten(2).transpose(1, 2)
        embeddings = torch.cat([self.class_embedding.expand(images.shape[0], 1, -1), patches], dim=1)
        return embeddings + self.interpolate_pos_encoding(embeddings, *images.shape[-2:])

    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """
        Return the position embeddings for images of another size.

        Args:
            embeddings (`torch.Tensor` of shape `(batch_size, 1 + num_patches, d_v)`): the embedded patches; unused.
            height, width (`int`): size of the image in pixels, multiples of the patch size.

        Returns:
            `torch.Tensor` of shape `(1, 1 + num_patches, d_v)`.
        """
        # Read through the module, so that hooks, adapters and offloaded weights work
        table = self.position_embedding(self.position_ids)
        grid = (height // self.patch_size, width // self.patch_size)
        return resize_position_table(table, grid, self.position_interpolation)


class VCPCLIPBackbone(CLIPModel):
    """
    CLIP with the embeddings above: it loads, runs and saves image towers with a convolutional stem too.

    Args:
        config (`CLIPConfig`): configuration of the backbone.
    """

    def __init__(self, config: CLIPConfig):
        super().__init__(config)
        self.vision_model.embeddings = VCPCLIPVisionEmbeddings(self.vision_model.config)
        self._is_hf_initialized = False  # set before these embeddings existed
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialize as CLIP, and last a stem's convolutions, for which CLIP's values are too small."""
        super()._init_weights(module)
        if isinstance(module, VCPCLIPBackbone):
            patch_embedding = module.vision_model.embeddings.patch_embedding
            if isinstance(patch_embedding, VCPCLIPHybridPatchEmbedding):
                patch_embedding.stem.initialize()


def resize_position_table(
    table: torch.Tensor, grid: tuple[int, int], interpolation: str = "bicubic_antialias"
) -> torch.Tensor:
    """
    Resize the patch positions of a table to another grid, with `align_corners=False`.

    transformers' own interpolation has no antialiasing and differs by 5 to 7 %. With antialiasing, upsampling uses
    another cubic kernel too, so the option matters in both directions.

    Args:
        table (`torch.Tensor` of shape `(1, 1 + side * side, d_v)`): the class token's position, then the patches'.
        grid (`tuple[int, int]`): patches in a column and in a row.
        interpolation (`str`, *optional*, defaults to `"bicubic_antialias"`):
            `"bicubic_antialias"` (VCP-CLIP), `"bicubic"` or `"bilinear"`, both without antialiasing.

    Returns:
        `torch.Tensor` of shape `(1, 1 + grid[0] * grid[1], d_v)`, same dtype; `table` itself if the grid is its own.
    """
    side = math.isqrt(table.shape[1] - 1)
    if tuple(grid) == (side, side):
        return table
    patches = table[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    if patches.dtype in (torch.float16, torch.bfloat16):
        patches = patches.float()
    mode, _, antialias = interpolation.partition("_")
    patches = nn.functional.interpolate(
        patches, size=grid, mode=mode, align_corners=False, antialias=antialias == "antialias"
    )
    return torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)
