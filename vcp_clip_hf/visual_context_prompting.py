"""The learned modules of VCP-CLIP: Pre-VCP, deep text prompts and Post-VCP (sections 3.2 and 3.3 of the paper).

Shapes: B images, N patches, r category tokens, n deep prompt tokens, L text blocks, d the text width, d_v the image
width. The two states are always ordered normal, abnormal.
"""

import torch
from torch import nn

from .configuration_vcp_clip import VCPCLIPConfig


__all__ = ["VCPCLIPDeepPrompts", "VCPCLIPPostVCP", "VCPCLIPPreVCP"]


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
        """(B, d) -> (B, r, d); without the Mini-Net the tokens are the same for every image: (1, r, d)."""
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
        """-> (L, number of sequences or 1, n, d); each sequence has its own dropout."""
        tokens = self.projection(self.embeddings).unsqueeze(1)
        if self.training:
            tokens = self.dropout(tokens.expand(-1, num_sequences, -1, -1))
        return tokens


class VCPCLIPPostVCP(nn.Module):
    """
    Post-VCP: text embeddings updated by attention over the patch tokens of one layer (equations 5 to 8).

    Keys and values are never formed for the patches. For a head with query q, the scores q . (W_k x + b_k) equal
    (W_k^T q) . x up to a constant that the softmax over patches cancels (so b_k does not exist here), and the
    weighted mean of W_v x + b_v is W_v times the weighted mean of x, plus b_v.
    """

    def __init__(self, config: VCPCLIPConfig):
        super().__init__()
        width = config.vision_config.hidden_size
        self.num_heads = config.post_vcp_num_heads
        self.query_projection = nn.Linear(config.projection_dim, width)
        self.key_projection = nn.Linear(width, width, bias=False)
        self.value_projection = nn.Linear(width, width)
        self.output_projection = nn.Linear(width, width)

    def fold_queries(self, text_embeds: torch.Tensor) -> torch.Tensor:
        """(B, 2, projection_dim) -> (B, heads * 2, d_v): queries taken through the key projection, one per head."""
        batch_size, width = text_embeds.shape[0], self.key_projection.in_features
        queries = self.query_projection(text_embeds).view(batch_size, 2, self.num_heads, -1)
        key_weight = self.key_projection.weight.view(self.num_heads, -1, width)
        return torch.einsum("bshe,hev->bhsv", queries, key_weight).reshape(batch_size, self.num_heads * 2, width)

    def forward(
        self, folded_queries: torch.Tensor, patch_tokens: torch.Tensor, inverse_norms: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            folded_queries (`(B, heads * 2, d_v)`): from `fold_queries`; the same for every layer.
            patch_tokens (`(B, N, d_v)`): not normalised.
            inverse_norms (`(B, 1, N)`, float32): 1 / L2 norm of each patch token.

        Returns:
            `(B, 2, d_v)`: updated text embeddings, L2-normalised, and `(B, heads, 2, N)`: the attention, float32.
        """
        batch_size, _, width = folded_queries.shape
        # No 1 / sqrt(head width): the authors have none
        # In this order: the transposed product takes five times as long in bfloat16 on a CPU
        scores = (patch_tokens @ folded_queries.transpose(1, 2)).transpose(1, 2).float() * inverse_norms
        attention = scores.softmax(dim=-1)
        context = (attention * inverse_norms).to(patch_tokens.dtype) @ patch_tokens
        context = context.view(batch_size, self.num_heads, 2, width)
        value_weight = self.value_projection.weight.view(self.num_heads, -1, width)
        values = torch.einsum("bhsv,hev->bshe", context, value_weight).reshape(batch_size, 2, width)
        updated = self.output_projection(values + self.value_projection.bias)
        return nn.functional.normalize(updated, dim=-1), attention.view(batch_size, self.num_heads, 2, -1)
