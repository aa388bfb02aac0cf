"""CLIP's text tower with learned tokens in its sequences: sections 3.2 and 3.3 of the paper.

Shapes: B images, R = 2 * T prompts, P positions of a sequence, n deep prompt tokens, L text blocks, d the text width.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.clip.modeling_clip import CLIPEncoder

from .prompts import PromptPlan


__all__ = [
    "LearnedTokens",
    "VCPCLIPTextEncoder",
    "insert_category_tokens",
    "insert_deep_prompts",
    "spread_deep_prompts",
]


@dataclass
class LearnedTokens:
    """
    What [`VCPCLIPTextEncoder`] puts into the sequences.

    Args:
        plan ([`PromptPlan`]): the position of every token.
        category (`torch.Tensor` of shape `(1 or B, R, P, d)`):
            Category tokens with their position embeddings added, at the positions where `plan.is_category` is true.
        deep (`torch.Tensor` of shape `(L, 1 or B, 1 or R, n, d)`, *optional*): the deep prompt tokens of each block.
        norm (`nn.Module`): the learned LayerNorm between the last block and CLIP's `final_layer_norm`.
    """

    plan: PromptPlan
    category: torch.Tensor
    deep: torch.Tensor | None
    norm: nn.Module


class VCPCLIPTextEncoder(CLIPEncoder):
    """
    CLIP's text encoder that inserts learned tokens before and between its blocks.

    Parameters and their names are those of `CLIPEncoder`, and without `learned_tokens` it is a `CLIPEncoder`.
    """

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        learned_tokens: LearnedTokens | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """
        Run all blocks over the whole sequences.

        Args:
            inputs_embeds (`torch.Tensor` of shape `(B * R, P, d)`): words with their positions, all prompts of the
                first image first.
            attention_mask (`torch.Tensor`, *optional*): mask from `CLIPTextModel`.
            learned_tokens ([`LearnedTokens`], *optional*): what to insert.
            kwargs: arguments of the blocks.

        Returns:
            `BaseModelOutput` with `last_hidden_state` of shape `(B * R, P, d)`, after the learned LayerNorm.
        """
        if learned_tokens is None:
            return super().forward(inputs_embeds, attention_mask, **kwargs)
        plan, deep = learned_tokens.plan, learned_tokens.deep
        num_prompts = len(plan.rows)
        shape = (inputs_embeds.shape[0] // num_prompts, num_prompts, *inputs_embeds.shape[1:])
        hidden_states = insert_category_tokens(inputs_embeds.view(shape), learned_tokens.category, plan)
        if deep is not None:
            is_deep = plan.is_deep.to(hidden_states.device)
            tokens = spread_deep_prompts(deep, plan).to(hidden_states).unbind()
        for index, layer in enumerate(self.layers):
            if deep is not None:
                hidden_states = torch.where(is_deep, tokens[index], hidden_states)
            hidden_states = self._run_block(layer, hidden_states.flatten(0, 1), attention_mask, **kwargs).view(shape)
        return BaseModelOutput(last_hidden_state=learned_tokens.norm(hidden_states).flatten(0, 1))

    def _run_block(self, layer: nn.Module, hidden_states: torch.Tensor, attention_mask, **kwargs) -> torch.Tensor:
        # A frozen tower stays in evaluation mode, where its blocks do not checkpoint themselves, but gradients of the
        # learned tokens pass through it
        if self.gradient_checkpointing and not layer.training and hidden_states.requires_grad:
            block = partial(layer.__call__, **kwargs)
            return self._gradient_checkpointing_func(block, hidden_states, attention_mask)
        return layer(hidden_states, attention_mask, **kwargs)


def insert_category_tokens(
    embeddings: torch.Tensor, category: torch.Tensor, plan: PromptPlan, columns: slice = slice(None)
) -> torch.Tensor:
    """
    Replace the category slots by the category tokens.

    Args:
        embeddings (`torch.Tensor` of shape `(B, R, positions, d)`): words with their positions.
        category (`torch.Tensor` of shape `(1 or B, R, positions, d)`): category tokens as in [`LearnedTokens`].
        plan ([`PromptPlan`]): the position of every token.
        columns (`slice`, *optional*, defaults to all): the positions of the sequences that are given.

    Returns:
        `torch.Tensor` of shape `(B, R, positions, d)`.
    """
    return torch.where(plan.is_category[:, columns].to(embeddings.device), category.to(embeddings), embeddings)


def insert_deep_prompts(
    hidden_states: torch.Tensor, tokens: torch.Tensor, plan: PromptPlan, columns: slice = slice(None)
) -> torch.Tensor:
    """
    Overwrite the deep prompt positions with the tokens of one block.

    Args:
        hidden_states (`torch.Tensor` of shape `(B, R, positions, d)`): the block's input.
        tokens (`torch.Tensor` of shape `(1 or B, 1 or R, n, d)`): the block's deep prompt tokens.
        plan ([`PromptPlan`]): the position of every token.
        columns (`slice`, *optional*, defaults to all): the positions of the sequences that are given.

    Returns:
        `torch.Tensor` of shape `(B, R, positions, d)`.
    """
    tokens = spread_deep_prompts(tokens, plan, columns)
    return torch.where(plan.is_deep[:, columns].to(hidden_states.device), tokens.to(hidden_states), hidden_states)


def spread_deep_prompts(tokens: torch.Tensor, plan: PromptPlan, columns: slice = slice(None)) -> torch.Tensor:
    """
    Bring deep prompt tokens to their positions; other positions hold any of the tokens.

    Args:
        tokens (`torch.Tensor` of shape `(..., 1 or R, n, d)`): deep prompt tokens, of one block or of all.
        plan ([`PromptPlan`]): the position of every token.
        columns (`slice`, *optional*, defaults to all): the positions of the sequences that are given.

    Returns:
        `torch.Tensor` of shape `(..., R, positions, d)`.
    """
    tokens = tokens.expand(*tokens.shape[:-3], len(plan.rows), -1, -1)
    return tokens[..., plan.rows[:, None], plan.deep_index[:, columns], :]
