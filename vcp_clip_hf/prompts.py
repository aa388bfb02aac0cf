"""Prompt templates as token ids, and the positions of words and learned tokens in CLIP's text sequences."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from .configuration_vcp_clip import CATEGORY_SLOT, VCPCLIPConfig
from .host_copy import to_device


__all__ = ["PromptPlan", "check_states_differ", "check_tokenizer", "prompt_rows", "tokenize_prompts"]


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """
    Check that a tokenizer has the vocabulary of the text tower. With another vocabulary, its ids mean other words; a
    folder without tokenizer files gives a tokenizer with an empty vocabulary.

    Raises:
        ValueError: the sizes differ.
    """
    if len(tokenizer) != vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} entries, the text tower has vocab_size={vocab_size}. Use the"
            " tokenizer of the CLIP backbone."
        )


def tokenize_prompts(
    prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, category_token_id: int
) -> list[list[int]]:
    """
    Tokenize prompt templates, with the category slot in place of `{}`.

    Args:
        prompts (`Sequence[str]`): templates, each with exactly one `{}`.
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer of the CLIP backbone.
        category_token_id (`int`): id that marks the slot.

    Returns:
        `list[list[int]]`: start token, words, slot, words, end token of each prompt, without padding.

    Raises:
        ValueError: a template has no slot or several, or a word outside the vocabulary.
    """
    rows = []
    for prompt in prompts:
        if prompt.count(CATEGORY_SLOT) != 1:
            raise ValueError(f"The prompt {prompt!r} must have exactly one {CATEGORY_SLOT!r}, the category slot.")
        parts = (part.strip() for part in prompt.split(CATEGORY_SLOT))
        before, after = (tokenizer(part, add_special_tokens=False).input_ids for part in parts)
        if {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id} & {*before, *after}:
            raise ValueError(f"The prompt {prompt!r} has a word that the tokenizer's vocabulary cannot spell.")
        rows.append([tokenizer.bos_token_id, *before, category_token_id, *after, tokenizer.eos_token_id])
    return rows


def check_states_differ(normal: list[list[int]], abnormal: list[list[int]]) -> None:
    """
    Check that two states have different prompts.

    Args:
        normal, abnormal (`list[list[int]]`): ids of each state's prompts.

    Raises:
        ValueError: both states have the same prompts, in any order.
    """
    if sorted(normal) == sorted(abnormal):
        raise ValueError(
            "The normal and the abnormal prompts are the same, so that every pixel would get 0.5. Give words that"
            " tell the two states apart, such as 'flawless' and 'scratched'."
        )


def prompt_rows(config: VCPCLIPConfig, prompt_input_ids: torch.LongTensor | None = None) -> dict[str, list[list[int]]]:
    """
    Return the ids of the prompts in use, without padding, in an order that does not depend on that of the prompts.

    Args:
        config ([`VCPCLIPConfig`]): holds the model's own prompts.
        prompt_input_ids (`torch.LongTensor` of shape `(2, templates, length)`, *optional*):
            Prompts of a call, padded with their end token.

    Returns:
        `dict[str, list[list[int]]]`: rows of ids of `"normal"` and `"abnormal"`.
    """
    if prompt_input_ids is None:
        normal, abnormal = config.normal_prompt_input_ids, config.abnormal_prompt_input_ids
    else:
        normal, abnormal = ([row[: row.index(row[-1]) + 1] for row in rows] for rows in prompt_input_ids.tolist())
    return {"normal": sorted(map(list, normal)), "abnormal": sorted(map(list, abnormal))}


class PromptPlan:
    """
    The position of every word, category token and deep prompt token in the text sequences.

    The sequences end at the last end token: the causal mask hides everything after it. The rows are the T normal
    prompts, then the T abnormal ones; shorter prompts are padded after their end token.

    Args:
        prompt_ids (`list[list[int]]`): ids of each prompt, with the category slot, without padding.
        config ([`VCPCLIPConfig`]): the numbers of learned tokens and their positions.
        device (`torch.device`): device of the tables.

    Attributes (tensors of shape `(2 * T, length)` unless stated):
        token_ids: ids of the words; 0 where a learned token will be inserted.
        position_ids: rows of CLIP's text position table; deep prompt tokens have none and are given 0.
        is_category, category_index: where the category tokens go (`(2 * T, length, 1)`), and which of the r.
        is_deep, deep_index: where the deep prompt tokens go (`(2 * T, length, 1)`), and which of the n.
        end (`(2 * T,)`): position of the end token, where the embedding is read.
        rows (`(2 * T,)`): 0, 1, 2, ...
        prefix_length (`int`): number of positions before the first category token of any row. They do not depend on
            the image.
    """

    def __init__(self, prompt_ids: list[list[int]], config: VCPCLIPConfig, device: torch.device):
        sequences = [_sequence(ids, config) for ids in prompt_ids]
        length = max(map(len, sequences))
        padded = [sequence + [(0, 0, -1, -1)] * (length - len(sequence)) for sequence in sequences]
        # Not with `torch.tensor(..., device=...)`, which waits until a GPU has finished its work
        table = to_device(torch.tensor(padded, dtype=torch.long), device)
        self.token_ids, self.position_ids, category, deep = table.unbind(-1)
        self.is_category, self.category_index = (category >= 0).unsqueeze(-1), category.clamp_min(0)
        self.is_deep, self.deep_index = (deep >= 0).unsqueeze(-1), deep.clamp_min(0)
        self.end = to_device(torch.tensor([len(sequence) - 1 for sequence in sequences], dtype=torch.long), device)
        self.rows = torch.arange(len(sequences), device=device)
        self.prefix_length = min(
            next(position for position, entry in enumerate(sequence) if entry[2] >= 0) for sequence in sequences
        )


def _sequence(ids: list[int], config: VCPCLIPConfig) -> list[tuple[int, int, int, int]]:
    """Return token id, position, and indices of category and deep prompt token (-1 for none), for each place."""
    sequence, position = [], 0
    for token in ids:
        if token == config.category_token_id:
            for index in range(config.num_category_tokens):
                sequence.append((0, position + index, index, -1))
            position += config.num_category_tokens
        else:
            sequence.append((token, position, -1, -1))
            position += 1
    first = 1 if config.deep_prompt_position == "start" else len(sequence) - 1
    sequence[first:first] = [(0, 0, -1, index) for index in range(config.num_deep_prompt_tokens)]
    return sequence
