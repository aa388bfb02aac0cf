"""Prompt templates as token ids, and where words and learned tokens stand in CLIP's text sequences."""

from collections.abc import Sequence

import torch

from .configuration_vcp_clip import CATEGORY_SLOT, VCPCLIPConfig


__all__ = ["PromptPlan", "check_tokenizer", "tokenize_prompts"]


def check_tokenizer(tokenizer, vocab_size: int) -> None:
    """
    Raises:
        ValueError: a tokenizer of another vocabulary than the text tower's, whose ids would mean other words.
            (Folders without tokenizer files give transformers' empty one.)
    """
    if len(tokenizer) != vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} entries, the text tower vocab_size={vocab_size}: take the backbone's"
            " own tokenizer."
        )


def tokenize_prompts(prompts: Sequence[str], tokenizer, category_token_id: int) -> list[list[int]]:
    """
    Token ids of prompt templates, the category slot in place of `{}`.

    Args:
        prompts (`Sequence[str]`): templates, each with exactly one `{}`.
        tokenizer: the tokenizer of the CLIP backbone.
        category_token_id (`int`): id to put into the slot.

    Returns:
        `list[list[int]]`: start token, words, slot, words, end token; not padded, so their lengths differ.

    Raises:
        ValueError: no or several slots, or a word outside the vocabulary.
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


class PromptPlan:
    """
    Where everything stands in the text sequences: which positions hold words, category tokens or deep prompt tokens.

    The sequences end at the last end token: what follows it is invisible to it behind the causal mask. Rows are the
    T normal prompts, then the T abnormal ones; their length is that of the longest, shorter ones are padded behind
    their end token.

    Attributes (tensors of shape `(2 * T, length)` where nothing else is said):
        token_ids: words; 0 where a learned token will stand.
        position_ids: rows of CLIP's text position table; deep prompt tokens have none (0 stands in).
        is_category, category_index: where the category tokens go, and which of the r.
        is_deep, deep_index: where the deep prompt tokens go, and which of the n.
        end (`(2 * T,)`): position of the end token, where the embedding is read.
        rows (`(2 * T,)`): 0, 1, 2, ...
        num_category (`int`): r.
        prefix_length (`int`): places before the first category token of any row; the same for every image.
    """

    def __init__(self, prompt_ids: list[list[int]], config: VCPCLIPConfig, device: torch.device):
        num_category, num_deep = config.num_category_tokens, config.num_deep_prompt_tokens
        columns = {name: [] for name in ("token", "position", "is_category", "category", "is_deep", "deep")}
        ends = []
        for ids in prompt_ids:
            # (token id, position, index of the category token or None, index of the deep prompt token or None)
            sequence, position = [], 0
            for token in ids:
                if token == config.category_token_id:
                    for index in range(num_category):
                        sequence.append((0, position + index, index, None))
                    position += num_category
                else:
                    sequence.append((token, position, None, None))
                    position += 1
            deep = [(0, 0, None, index) for index in range(num_deep)]
            where = 1 if config.deep_prompt_position == "start" else len(sequence) - 1
            sequence[where:where] = deep
            ends.append(len(sequence) - 1)
            columns["token"].append([entry[0] for entry in sequence])
            columns["position"].append([entry[1] for entry in sequence])
            columns["is_category"].append([entry[2] is not None for entry in sequence])
            columns["category"].append([entry[2] or 0 for entry in sequence])
            columns["is_deep"].append([entry[3] is not None for entry in sequence])
            columns["deep"].append([entry[3] or 0 for entry in sequence])

        length = max(ends) + 1
        self.num_category = num_category

        def table(name: str, dtype: torch.dtype) -> torch.Tensor:
            return torch.tensor([row + [0] * (length - len(row)) for row in columns[name]], dtype=dtype, device=device)

        self.token_ids = table("token", torch.long)
        self.position_ids = table("position", torch.long)
        self.is_category = table("is_category", torch.bool).unsqueeze(-1)
        self.category_index = table("category", torch.long)
        self.is_deep = table("is_deep", torch.bool).unsqueeze(-1)
        self.deep_index = table("deep", torch.long)
        self.end = torch.tensor(ends, dtype=torch.long, device=device)
        self.rows = torch.arange(len(prompt_ids), device=device)
        self.prefix_length = min(row.index(True) for row in columns["is_category"])
