"""CLIP's image encoder with a value-value stream beside its ordinary one (DPAM in AnomalyCLIP).

Both streams run in one pass and share the value projection of each block: the value-value stream adds an attention and
an output projection to a block, and the ordinary stream of the last block is computed for the class token only.

Shapes: B images, N patches, D the image width.
"""

import torch
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import CLIPAttention, eager_attention_forward

from ..vision_tower import LayerStates, VCPCLIPVisionEncoder
from .vv_attention import ValueStream, attend_to_values


__all__ = ["SharedValueAttention", "ValueStreamEncoder"]


class ValueStreamEncoder(VCPCLIPVisionEncoder):
    """CLIP's image encoder with a value-value stream beside it; without the stream, a `VCPCLIPVisionEncoder`."""

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        layer_states: LayerStates | None = None,
        value_stream: ValueStream | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """
        Run all blocks.

        Args:
            inputs_embeds (`torch.Tensor` of shape `(B, 1 + N, D)`): embedded class token and patches.
            attention_mask (`torch.Tensor`, *optional*): mask as in `CLIPEncoder`.
            layer_states ([`LayerStates`], *optional*): receiver of the ordinary stream after the requested blocks.
            value_stream ([`ValueStream`], *optional*): receiver of the value-value stream, and of the class token.
            kwargs: arguments of the blocks.

        Returns:
            `BaseModelOutput` with `last_hidden_state`, the ordinary stream after the last block. Beside a value-value
            stream it has the shape `(B, 1, D)`, the class token only, unless a receiver requests all tokens.
        """
        if value_stream is None:
            return super().forward(inputs_embeds, attention_mask, layer_states, **kwargs)
        layer_states = LayerStates(()) if layer_states is None else layer_states
        hidden_states, depth = inputs_embeds, len(self.layers)
        all_tokens = depth in layer_states.layers or (
            depth in value_stream.layers and depth < value_stream.first_block
        )
        layer_states.record(0, hidden_states)
        for number, layer in enumerate(self.layers, start=1):
            if number == value_stream.first_block:
                value_stream.start(hidden_states)
            arguments = {**kwargs, "value_stream": value_stream} if value_stream.runs_in(number) else dict(kwargs)
            if number == depth and not all_tokens:
                arguments["key_value_states"] = layer.layer_norm1(hidden_states)
                hidden_states = hidden_states[:, :1]
            hidden_states = layer(hidden_states, attention_mask, **arguments)
            layer_states.record(number, hidden_states)
            value_stream.record(number, hidden_states)
        value_stream.class_token = hidden_states[:, 0]
        return BaseModelOutput(last_hidden_state=hidden_states)


class SharedValueAttention(CLIPAttention):
    """
    CLIP's attention that also adds the value-value attention of the same values to a stream, and that can compute a
    part of the queries only. Without `key_value_states` and `value_stream`, it is a `CLIPAttention`.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        key_value_states: torch.Tensor | None = None,
        value_stream: ValueStream | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Compute the attention.

        Args:
            hidden_states (`torch.Tensor` of shape `(B, queries, D)`): normalized input of the queries.
            attention_mask (`torch.Tensor`, *optional*): mask as in `CLIPAttention`.
            key_value_states (`torch.Tensor` of shape `(B, 1 + N, D)`, *optional*, defaults to `hidden_states`):
                Normalized input of keys and values.
            value_stream ([`ValueStream`], *optional*): stream that the value-value attention is added to.
            kwargs: arguments of transformers' attention functions.

        Returns:
            `tuple`: output of shape `(B, queries, D)`, and the attention weights or `None`.
        """
        if key_value_states is None and value_stream is None:
            return super().forward(hidden_states, attention_mask, **kwargs)
        source = hidden_states if key_value_states is None else key_value_states
        queries = self._split_heads(self.q_proj(hidden_states))
        keys = self._split_heads(self.k_proj(source))
        values = self._split_heads(self.v_proj(source))
        if value_stream is not None:
            value_stream.add(attend_to_values(self, values))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attended, weights = attend(
            self,
            queries,
            keys,
            values,
            attention_mask,
            scaling=self.scale,
            dropout=self.dropout if self.training else 0.0,
            **kwargs,
        )
        return self.out_proj(attended.reshape(hidden_states.shape).contiguous()), weights

    def _split_heads(self, projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
