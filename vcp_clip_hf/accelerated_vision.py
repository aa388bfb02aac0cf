"""The image tower of an accelerated copy: fewer and larger kernels on a GPU, other kernels on a CPU.

Every class here is a subclass of the module whose place it takes, with the same parameters. What is faster on a GPU
only is chosen by the device of the input.
"""

import torch
from torch import nn
from transformers import CLIPVisionModel
from transformers.activations import GELUActivation, QuickGELUActivation
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import CLIPAttention, eager_attention_forward

from .acceleration_settings import Acceleration
from .computed_constants import ComputedConstants
from .cpu_kernels import CPU_ATTENTION, use_convolutions
from .float8_linear import (
    Float8Linear,
    Float8Matrix,
    Float8Rows,
    QuantizedActivation,
    add_normalize_and_quantize,
    check_float8,
)
from .fused_pointwise import add_and_normalize, quick_gelu, quick_gelu_of_rows
from .vision_tower import LayerStates, VCPCLIPVisionEmbeddings, VCPCLIPVisionEncoder


__all__ = [
    "FastAttention",
    "FastPatchEmbedding",
    "FastVisionEmbeddings",
    "accelerate_image_tower",
    "copied_parts",
    "linear_layers",
]


def accelerate_image_tower(vision_model: CLIPVisionModel, settings: Acceleration) -> None:
    """
    Make the modules of an image tower fast ones, in place, for inference only.

    Attention uses the implementation that the tower was loaded with, any that transformers knows, as in
    `from_pretrained(..., attn_implementation={"vision_config": "flash_attention_3"})`.

    Args:
        vision_model (`CLIPVisionModel`): image tower of a copy.
        settings ([`Acceleration`]): `float8` and `compile_pointwise` are read. The first includes the second, because
            separate conversions to float8 are estimated to take longer than float8 saves.

    Raises:
        ValueError: `float8` is set, and the tower is not in bfloat16 on a GPU that computes in float8.
    """
    blocks = vision_model.encoder.layers
    for layer in linear_layers(vision_model) if settings.float8 else []:
        check_float8(layer.weight)

    embeddings = vision_model.embeddings
    embeddings.__class__ = FastVisionEmbeddings
    embeddings.tables = ComputedConstants()
    if type(embeddings.patch_embedding) is nn.Conv2d:
        embeddings.patch_embedding.__class__ = FastPatchEmbedding
    for block in blocks:
        block.self_attn.__class__ = FastAttention
        block.self_attn.joined = ComputedConstants()
        block.self_attn.float8 = settings.float8
        if settings.float8:
            for layer in (block.self_attn.out_proj, block.mlp.fc1, block.mlp.fc2):
                Float8Linear.take_over(layer)
    use_convolutions(vision_model)
    if vision_model.config._attn_implementation == "sdpa":
        vision_model.config._attn_implementation = CPU_ATTENTION
    if settings.float8 or settings.compile_pointwise:
        _fuse_pointwise(vision_model, settings.float8)


def copied_parts(vision_model: CLIPVisionModel, settings: Acceleration) -> list[nn.Module]:
    """
    Return the modules whose weights a fast copy keeps in another form, so that it becomes outdated if they change.

    Args:
        vision_model (`CLIPVisionModel`): image tower of the model that the copy was made from.
        settings ([`Acceleration`]): settings of the copy.
    """
    parts: list[nn.Module] = [vision_model.embeddings]
    if settings.float8:
        parts += linear_layers(vision_model)
    elif vision_model.device.type == "cuda":
        parts += [layer for block in vision_model.encoder.layers for layer in _joined_layers(block.self_attn)]
    return parts


def _joined_layers(attention: CLIPAttention) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    return attention.q_proj, attention.k_proj, attention.v_proj


def linear_layers(vision_model: CLIPVisionModel) -> list[nn.Linear]:
    """Return all linear layers of the blocks."""
    return [
        layer
        for block in vision_model.encoder.layers
        for layer in (*_joined_layers(block.self_attn), block.self_attn.out_proj, block.mlp.fc1, block.mlp.fc2)
    ]


def _fuse_pointwise(vision_model: CLIPVisionModel, float8: bool) -> None:
    encoder = vision_model.encoder
    encoder.__class__ = _FusedVisionEncoder
    encoder.add_and_normalize = add_normalize_and_quantize if float8 else add_and_normalize
    for block in encoder.layers:
        kind = type(block.mlp.activation_fn)
        if float8 and kind in _ACTIVATIONS:
            block.mlp.activation_fn = QuantizedActivation(_ACTIVATIONS[kind])
        elif kind is QuickGELUActivation:  # the others are single kernels
            block.mlp.activation_fn.__class__ = _FusedQuickGELU


# One function for the activations of all blocks, so that it is compiled once
_ACTIVATIONS = {QuickGELUActivation: quick_gelu_of_rows, GELUActivation: nn.functional.gelu}


# --- embeddings -----------------------------------------------------------------------------------------------------


class FastVisionEmbeddings(VCPCLIPVisionEmbeddings):
    """
    Keep the resized position table of each image size.

    Attributes:
        tables ([`ComputedConstants`]): height and width in pixels -> position table.
    """

    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Return the position embeddings as [`VCPCLIPVisionEmbeddings`] does, computed once for each size."""
        resize = super().interpolate_pos_encoding
        return self.tables.get((height, width), lambda: resize(embeddings, height, width))


class FastPatchEmbedding(nn.Conv2d):
    """Compute CLIP's patch embedding on a GPU as a matrix product: no pixel belongs to two patches."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Embed images (B, C, H, W) -> (B, d_v, H / patch size, W / patch size)."""
        return self.product(input) if input.device.type == "cuda" else super().forward(input)

    def product(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Embed images as `forward` does, on any device. The tokens of the result have no gaps in memory."""
        height, width = self.kernel_size
        patches = pixel_values.unfold(2, height, height).unfold(3, width, width)  # (B, C, rows, columns, h, w)
        grid = patches.shape[2:4]
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        tokens = nn.functional.linear(patches, self.weight.flatten(1), self.bias)
        return tokens.transpose(1, 2).unflatten(2, grid)


# --- attention ------------------------------------------------------------------------------------------------------


class FastAttention(CLIPAttention):
    """
    Compute queries, keys and values as one product on a GPU.

    Their weights are kept as one, from the first pass until the module is moved to another device or dtype, beside
    those that the model shares: for ViT-L/14 in bfloat16, 151 MB more. In float8, all weights of the blocks are kept
    in float8 instead, 303 MB more.

    Attributes:
        joined ([`ComputedConstants`]): weight and bias of the product.
        float8 (`bool`): whether the product is computed in float8, see [`Float8Matrix`].
    """

    def forward(
        self, hidden_states: torch.Tensor | Float8Rows, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute the attention (B, N, d_v) -> (B, N, d_v) as `CLIPAttention` does."""
        # A traced graph cannot keep weights, and would join them in every call
        if self.float8 or (hidden_states.device.type == "cuda" and not torch.compiler.is_compiling()):
            return self.attend_joined(hidden_states, attention_mask, **kwargs)
        return super().forward(hidden_states, attention_mask, **kwargs)

    def attend_joined(
        self, hidden_states: torch.Tensor | Float8Rows, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute the attention as `forward` does, with one product on any device."""
        weight, bias = self.joined.get("weight and bias", self._join)
        if self.float8:
            joined = weight.product(hidden_states, bias)
        else:
            joined = nn.functional.linear(hidden_states, weight, bias)
        # Views: attention functions accept tokens with gaps between them
        heads = joined.unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(dim=2)
        queries, keys, values = (each.transpose(1, 2) for each in heads)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attended, weights = attend(
            self, queries, keys, values, attention_mask, scaling=self.scale, dropout=0.0, **kwargs
        )
        return self.out_proj(attended.flatten(2)), weights

    def _join(self) -> tuple[torch.Tensor | Float8Matrix, torch.Tensor]:
        layers = _joined_layers(self)
        weight = torch.cat([each.weight for each in layers])
        bias = torch.cat([each.bias for each in layers])
        if not self.float8:
            return weight, bias
        check_float8(weight)
        return Float8Matrix.of(weight), bias


# --- elementwise operations -----------------------------------------------------------------------------------------


class _FusedVisionEncoder(VCPCLIPVisionEncoder):
    """
    Compute each residual addition and the LayerNorm after it as one kernel, also from one block to the next.

    Attributes:
        add_and_normalize (`Callable`): [`add_and_normalize`] or [`add_normalize_and_quantize`].
    """

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        layer_states: LayerStates | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """Run all blocks as [`VCPCLIPVisionEncoder`] does, on the modules inside them."""
        layer_states = LayerStates(()) if layer_states is None else layer_states
        states, last = inputs_embeds, len(self.layers)
        layer_states.record(0, states)
        normalized = self.layers[0].layer_norm1(states)
        for number, layer in enumerate(self.layers, start=1):
            update, _ = layer.self_attn(normalized, attention_mask, **kwargs)
            states, normalized = self.add_and_normalize(states, update, layer.layer_norm2)
            update = layer.mlp(normalized)
            if number < last:
                states, normalized = self.add_and_normalize(states, update, self.layers[number].layer_norm1)
            else:
                states = states + update
            layer_states.record(number, states)
        return BaseModelOutput(last_hidden_state=states)


class _FusedQuickGELU(QuickGELUActivation):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return quick_gelu(input)
