"""Token ids of prompts, and the positions of words and learned tokens."""

import pytest
import torch
from transformers import CLIPTokenizer

from tests.common import golden, tiny_config, tiny_tokenizer
from vcp_clip_hf import VCPCLIPConfig
from vcp_clip_hf.prompts import PromptPlan, tokenize_prompts


def test_words_slot_and_ends():
    tokenizer = tiny_tokenizer()
    (ids,) = tokenize_prompts(["a good {} here"], tokenizer, 514)
    before, after = tokenizer("a good", add_special_tokens=False), tokenizer("here", add_special_tokens=False)
    assert ids == [512, *before.input_ids, 514, *after.input_ids, 513]


@pytest.mark.parametrize("prompt", ["no slot", "{} and {}"])
def test_exactly_one_slot(prompt):
    with pytest.raises(ValueError, match="exactly one"):
        tokenize_prompts([prompt], tiny_tokenizer(), 514)


def test_a_word_outside_the_vocabulary_is_refused():
    small = CLIPTokenizer(vocab={"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}, merges=[])
    assert tokenize_prompts(["a {}"], small, 3) == [[1, 0, 3, 2]]
    with pytest.raises(ValueError, match=r"'a dog \{\}'"):
        tokenize_prompts(["a dog {}"], small, 3)


def plan_of(ids, **fields):
    return PromptPlan(ids, tiny_config(**fields), torch.device("cpu"))


def test_deep_prompts_after_the_start_token():
    plan = plan_of([[512, 7, 514, 513]], num_category_tokens=2, num_deep_prompt_tokens=2)
    assert plan.token_ids.tolist() == [[512, 0, 0, 7, 0, 0, 513]]
    assert plan.position_ids.tolist() == [[0, 0, 0, 1, 2, 3, 4]]
    assert plan.is_deep.squeeze(-1).int().tolist() == [[0, 1, 1, 0, 0, 0, 0]]
    assert plan.deep_index.tolist() == [[0, 0, 1, 0, 0, 0, 0]]
    assert plan.is_category.squeeze(-1).int().tolist() == [[0, 0, 0, 0, 1, 1, 0]]
    assert plan.category_index.tolist() == [[0, 0, 0, 0, 0, 1, 0]]
    assert plan.end.tolist() == [6]


def test_deep_prompts_after_the_sentence():
    plan = plan_of([[512, 514, 7, 513]], num_category_tokens=1, num_deep_prompt_tokens=2, deep_prompt_position="end")
    assert plan.token_ids.tolist() == [[512, 0, 7, 0, 0, 513]]
    assert plan.position_ids.tolist() == [[0, 1, 2, 0, 0, 3]]
    assert plan.is_deep.squeeze(-1).int().tolist() == [[0, 0, 0, 1, 1, 0]]


def test_prompts_of_different_length_share_one_table():
    plan = plan_of([[512, 5, 6, 514, 513], [512, 514, 513]], num_category_tokens=1)
    assert plan.token_ids.shape == (2, 6)
    assert plan.end.tolist() == [5, 3]
    assert not plan.is_deep[1, 4:].any() and not plan.is_category[1, 4:].any()


@pytest.mark.parametrize("name", ["official_a", "official_b"])
def test_the_sequences_stop_at_the_end_token(name):
    """The authors embed 77 tokens; a dozen are needed."""
    rows = golden(name).prompts
    ids = rows["normal_prompt_input_ids"] + rows["abnormal_prompt_input_ids"]
    config = VCPCLIPConfig(num_category_tokens=2, num_deep_prompt_tokens=1)
    assert PromptPlan(ids, config, torch.device("cpu")).token_ids.shape[1] == max(map(len, ids)) + 2
