"""CLIP's text tower with learned tokens in its sequences: sections 3.2 and 3.3 of the paper.

Shapes: B images, R = 2 * T prompts, n deep prompt tokens, L text blocks, d the text width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import CLIPTextModel
from transformers.masking_utils import create_causal_mask

from .clip_blocks import finish_block, project_block
from .prompts import PromptPlan


__all__ = ["TextPrefix", "encode_after_prefix", "encode_prefix", "encode_sequences"]


def _embed(text: CLIPTextModel, plan: PromptPlan, category: torch.Tensor, columns=slice(None)) -> torch.Tensor:
    """
    Words and category tokens with their positions; deep prompt tokens have none, and come later.

    Args:
        category (`(B, r, d)`): the category tokens.
        columns: which places of the sequences; all by default.

    Returns:
        `(B, R, places, d)`
    """
    words = text.embeddings.token_embedding(plan.token_ids[:, columns])
    tokens = category[:, plan.category_index[:, columns]].to(words.dtype)
    embeddings = torch.where(plan.is_category[:, columns], tokens, words)
    return embeddings + text.embeddings.position_embedding(plan.position_ids[:, columns])


def _put_deep(
    hidden_states: torch.Tensor, tokens: torch.Tensor, plan: PromptPlan, columns=slice(None)
) -> torch.Tensor:
    """
    Overwrite the deep prompt positions with a block's own tokens.

    Args:
        hidden_states (`(B, R, places, d)`): before the block.
        tokens (`(1 or B, 1 or R, n, d)`): that block's.
    """
    tokens = tokens.expand(-1, len(plan.rows), -1, -1)[:, plan.rows[:, None], plan.deep_index[:, columns]]
    return torch.where(plan.is_deep[:, columns], tokens, hidden_states)


def encode_sequences(
    text: CLIPTextModel,
    plan: PromptPlan,
    category: torch.Tensor,
    deep: torch.Tensor | None,
    checkpoint: Callable | None = None,
) -> torch.Tensor:
    """
    All blocks over the whole sequences.

    Args:
        text (`CLIPTextModel`): the frozen tower.
        plan ([`PromptPlan`]): where everything stands.
        category (`(1 or B, r, d)`): category tokens.
        deep (`(L, 1 or B, 1 or R, n, d)`, *optional*): deep prompt tokens of each block.
        checkpoint (callable, *optional*): recomputes a block in the backward pass.

    Returns:
        `(1 or B, R, d)`: hidden states at the end tokens, before any LayerNorm.
    """
    hidden_states = _embed(text, plan, category)
    shape = hidden_states.shape
    mask = create_causal_mask(
        config=text.config, inputs_embeds=hidden_states.flatten(0, 1), attention_mask=None, past_key_values=None
    )
    for index, layer in enumerate(text.encoder.layers):
        if deep is not None:
            hidden_states = _put_deep(hidden_states, deep[index], plan)
        block = partial(layer.__call__, is_causal=True)
        if checkpoint is None:
            hidden_states = block(hidden_states.flatten(0, 1), mask)
        else:
            hidden_states = checkpoint(block, hidden_states.flatten(0, 1), mask)
        hidden_states = hidden_states.view(shape)
    return hidden_states[:, plan.rows, plan.end]


@dataclass
class TextPrefix:
    """
    Keys and values of what stands before the first category token: the same for every image.

    Args:
        length (`int`): places before the first category token of any prompt.
        keys, values (`list` of L tensors `(R, heads, length, d / heads)`): of each block.
        deep (`(L, 1, 1, n, d)`, *optional*): deep prompt tokens, for those that stand behind the sentence.
    """

    length: int
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    deep: torch.Tensor | None


def encode_prefix(text: CLIPTextModel, plan: PromptPlan, deep: torch.Tensor | None) -> TextPrefix:
    """
    The blocks over the places that no image changes, as far as they are common to all prompts' sequences.

    Places are counted from the start, so that with prompts of different length the shortest prefix decides.
    """
    length = plan.prefix_length
    columns = slice(0, length)
    width = text.config.hidden_size
    no_category = text.embeddings.token_embedding.weight.new_zeros(1, plan.num_category, width)
    hidden_states = _embed(text, plan, no_category, columns)
    keys, values = [], []
    for index, layer in enumerate(text.encoder.layers):
        if deep is not None:
            hidden_states = _put_deep(hidden_states, deep[index], plan, columns)
        states = hidden_states[0]
        query, key, value = project_block(layer, states)
        keys.append(key)
        values.append(value)
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=layer.self_attn.scale
        )
        hidden_states = finish_block(layer, states, attended)[None]
    return TextPrefix(length, keys, values, deep)


def encode_after_prefix(
    text: CLIPTextModel, plan: PromptPlan, category: torch.Tensor, prefix: TextPrefix
) -> torch.Tensor:
    """
    The blocks over the category tokens and what follows, with the prefix's keys and values: the same hidden states at
    the end tokens as from `encode_sequences`, for a fraction of the work.

    Returns:
        `(1 or B, R, d)`
    """
    columns = slice(prefix.length, None)
    hidden_states = _embed(text, plan, category, columns)
    shape = hidden_states.shape
    batch_size, places = shape[0], shape[2]
    # every place sees the whole prefix, and of the rest what is not behind it
    mask = torch.ones(places, prefix.length + places, dtype=torch.bool, device=hidden_states.device)
    mask = mask.tril(prefix.length)
    for index, layer in enumerate(text.encoder.layers):
        if prefix.deep is not None:
            hidden_states = _put_deep(hidden_states, prefix.deep[index], plan, columns)
        states = hidden_states.flatten(0, 1)
        query, key, value = project_block(layer, states)
        key, value = (
            torch.cat([known.expand(batch_size, *known.shape).flatten(0, 1), new], dim=2)
            for known, new in ((prefix.keys[index], key), (prefix.values[index], value))
        )
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=layer.self_attn.scale
        )
        hidden_states = finish_block(layer, states, attended).view(shape)
    return hidden_states[:, plan.rows, plan.end - prefix.length]
