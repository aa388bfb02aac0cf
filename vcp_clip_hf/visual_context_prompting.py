"""The learned modules of VCP-CLIP: Pre-VCP, deep text prompts and Post-VCP (sections 3.2 and 3.3 of the paper).

Shapes: B images, N patches, r category tokens, n deep prompt tokens, L text blocks, d the text width, d_v the image
width. The two states are always ordered normal, abnormal.
"""

from collections.abc import Sequence

import torch
from torch import nn

from .autocast import autocast_dtype
from .configuration_vcp_clip import VCPCLIPConfig


__all__ = [
    "VCPCLIPDeepPrompts",
    "VCPCLIPPostVCP",
    "VCPCLIPPreVCP",
    "as_products_read",
    "contrast",
    "contrast_with_text",
    "inverse_norm",
]


class VCPCLIPPreVCP(nn.Module):
    """Pre-VCP: category tokens from learned vectors and the global image feature (equation 4)."""

    def __init__(self, config: VCPCLIPConfig):
        super().__init__()
        self.category_embeddings = nn.Parameter(
            torch.empty(config.num_category_tokens, config.text_config.hidden_size)
        )
        self.mini_net = (
            nn.Conv1d(1, config.num_category_tokens, kernel_size=3, padding="same") if config.use_pre_vcp else None
        )

    def forward(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """
        Make the category tokens.

        Args:
            image_embeds (`torch.Tensor` of shape `(B, d)`): global image features, not normalized.

        Returns:
            `torch.Tensor` of shape `(B, r, d)`; without the Mini-Net `(1, r, d)`, the same for every image.
        """
        if self.mini_net is None:
            return self.category_embeddings.unsqueeze(0)
        return self.category_embeddings + self.mini_net(image_embeds.unsqueeze(1))


class VCPCLIPDeepPrompts(nn.Module):
    """Deep text prompting: n learned tokens for each text block, through one shared projection (equation 1)."""

    def __init__(self, config: VCPCLIPConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.embeddings = nn.Parameter(
            torch.empty(config.text_config.num_hidden_layers, config.num_deep_prompt_tokens, width)
        )
        self.projection = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.deep_prompt_dropout)

    def forward(self, num_sequences: int) -> torch.Tensor:
        """
        Make the tokens of all blocks.

        Args:
            num_sequences (`int`): number of text sequences; in training, each has its own dropout.

        Returns:
            `torch.Tensor` of shape `(L, num_sequences, n, d)` in training, `(L, 1, n, d)` in evaluation.
        """
        tokens = self.projection(self.embeddings).unsqueeze(1)
        if self.training:
            tokens = self.dropout(tokens.expand(-1, num_sequences, -1, -1))
        return tokens


class VCPCLIPPostVCP(nn.Module):
    """
    Post-VCP: text embeddings updated by attention over the patch tokens of one layer (equations 5 to 8).

    Keys and values of the patches are never formed. For a head with query q, the score q . (W_k x + b_k) equals
    (W_k^T q) . x up to a constant that the softmax over patches cancels, so this module has no b_k. The weighted mean
    of W_v x + b_v is W_v times the weighted mean of x, plus b_v.
    """

    def __init__(self, config: VCPCLIPConfig):
        super().__init__()
        width = config.vision_config.hidden_size
        self.num_heads = config.post_vcp_num_heads
        self.query_projection = nn.Linear(config.projection_dim, width)
        self.key_projection = nn.Linear(width, width, bias=False)
        self.value_projection = nn.Linear(width, width)
        self.output_projection = nn.Linear(width, width)

    def forward(
        self,
        text_embeds: torch.Tensor,
        patch_tokens: Sequence[torch.Tensor],
        inverse_norms: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """
        Update the text embeddings with the patch tokens of each feature layer.

        Args:
            text_embeds (`torch.Tensor` of shape `(B, 2, projection_dim)`): normal, abnormal; L2-normalized.
            patch_tokens (`Sequence[torch.Tensor]`): `(B, N, d_v)` for each layer, not normalized.
            inverse_norms (`Sequence[torch.FloatTensor]`): 1 / L2 norm of each patch token, `(B, N)` for each layer.

        Returns:
            `tuple`: the text embeddings updated with each of K layers, `(K, B, 2, d_v)`, L2-normalized; for each layer
            the attention `(B, heads, 2, N)`, float32.
        """
        folded_queries = self._fold_queries(text_embeds)
        contexts, attentions = zip(
            *(
                self._attend(folded_queries, tokens, norms)
                for tokens, norms in zip(patch_tokens, inverse_norms, strict=True)
            ),
            strict=True,
        )
        # All layers at once: these tensors are so small that a GPU would mostly wait for the calls
        updated = self._update(torch.stack(contexts))
        return updated, tuple(attention.unflatten(1, (self.num_heads, 2)) for attention in attentions)

    def _key_matrix(self, like: torch.Tensor) -> torch.Tensor:
        """
        Return W_k as the key projection applies it, `(d_v, d_v)`, input features first, in the dtype of `like`.

        The projection is called on the unit vectors instead of reading its weight, so that an adapter on it, a hook,
        or an offloaded weight has its effect.
        """
        return self.key_projection(torch.eye(self.key_projection.in_features, dtype=like.dtype, device=like.device))

    def _fold_queries(self, text_embeds: torch.Tensor) -> torch.Tensor:
        """Multiply the queries of all heads by the key projection: (B, 2, projection_dim) -> (B, heads * 2, d_v)."""
        queries = self.query_projection(text_embeds).unflatten(-1, (self.num_heads, -1))
        key_matrix = self._key_matrix(text_embeds).unflatten(-1, (self.num_heads, -1)).to(queries)
        return torch.einsum("bshe,vhe->bhsv", queries, key_matrix).flatten(1, 2)

    def _attend(
        self, folded_queries: torch.Tensor, patch_tokens: torch.Tensor, inverse_norms: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Attend to the patch tokens of one layer.

        Args:
            folded_queries (`torch.Tensor` of shape `(B, heads * 2, d_v)`): result of `_fold_queries`.
            patch_tokens (`torch.Tensor` of shape `(B, N, d_v)`): not normalized.
            inverse_norms (`torch.FloatTensor` of shape `(B, N)`): 1 / L2 norm of each patch token.

        Returns:
            `tuple`: the weighted means of the unit patch tokens, `(B, heads * 2, d_v)`, and the attention
            `(B, heads * 2, N)`, float32.
        """
        inverse_norms = inverse_norms.unsqueeze(1)
        folded_queries = folded_queries.to(patch_tokens)
        # The authors do not scale by 1 / sqrt(head width). The transposed product is five times slower in bfloat16 on
        # a CPU
        scores = (patch_tokens @ folded_queries.transpose(1, 2)).transpose(1, 2).float() * inverse_norms
        attention = scores.softmax(dim=-1)
        context = (attention * inverse_norms).to(patch_tokens.dtype) @ patch_tokens
        return context, attention

    def _update(self, contexts: torch.Tensor) -> torch.Tensor:
        """Make text embeddings of the contexts of K layers: (K, B, heads * 2, d_v) to unit (K, B, 2, d_v)."""
        heads = self.num_heads
        # The projection computes the values of all heads from each head's context; each head keeps its own. OpenVINO
        # does not know the diagonal of a tensor
        values = self.value_projection(contexts).unflatten(2, (heads, 2)).unflatten(-1, (heads, -1))
        own = torch.eye(heads, dtype=values.dtype, device=values.device)[:, None, :, None]
        return nn.functional.normalize(self.output_projection((values * own).sum(dim=2).flatten(-2)), dim=-1)


def inverse_norm(tokens: torch.Tensor) -> torch.Tensor:
    """Return 1 / L2 norm over the last axis, float32; half precision is summed in float32."""
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    return torch.linalg.vector_norm(tokens, dim=-1, dtype=dtype).clamp_min(1e-12).reciprocal().float()


def as_products_read(tokens: torch.Tensor) -> torch.Tensor:
    """
    Return tokens in the layout and dtype in which matrix products read them, if gradients are recorded.

    Each product would otherwise make a copy of its own, and keep it for the backward pass. Values and results stay the
    same.

    Args:
        tokens (`torch.Tensor` of shape `(B, N, d)`): tokens that several products read.
    """
    if not torch.is_grad_enabled():
        return tokens
    dtype = autocast_dtype(tokens.device)
    if dtype is not None and tokens.dtype == torch.float32:
        tokens = tokens.to(dtype)
    return tokens.contiguous()


def contrast_with_text(tokens: torch.Tensor, text_embeds: torch.Tensor, inverse_norms: torch.Tensor) -> torch.Tensor:
    """
    Compare tokens with the difference of abnormal and normal text, (B, N, d) and (B, 2, d) -> (B, N), float32.

    Args:
        tokens (`torch.Tensor` of shape `(B, N, d)`): tokens, not normalized.
        text_embeds (`torch.Tensor` of shape `(B, 2, d)`): normal, abnormal.
        inverse_norms (`torch.FloatTensor` of shape `(B, N)`): result of `inverse_norm` for the tokens.
    """
    return contrast(tokens, text_embeds[:, 1] - text_embeds[:, 0], inverse_norms)


def contrast(tokens: torch.Tensor, difference: torch.Tensor, inverse_norms: torch.Tensor) -> torch.Tensor:
    """
    Compare tokens with a difference of text embeddings, (B, N, d) and (B, d) -> (B, N), float32.

    The product of the unnormalized tokens is divided by their norms, so that no normalized copy is written.

    Args:
        tokens (`torch.Tensor` of shape `(B, N, d)`): tokens, not normalized.
        difference (`torch.Tensor` of shape `(B, d)`): abnormal minus normal text embedding.
        inverse_norms (`torch.FloatTensor` of shape `(B, N)`): result of `inverse_norm` for the tokens.
    """
    return (tokens @ difference.unsqueeze(-1).to(tokens)).squeeze(-1).float() * inverse_norms
