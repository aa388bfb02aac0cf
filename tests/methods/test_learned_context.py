"""The text tower with a learned context, against the plain reading."""

import pytest
import torch

from tests.common import tiny_clip, tiny_tokenizer
from tests.methods.plain_reading import encode_text
from vcp_clip_hf.methods.learned_context import ContextTextEncoder, encode_with_context
from vcp_clip_hf.modeling_frozen_clip import with_blocks_of


ROWS = [[512, 3, 513], [512, 4, 5, 6, 513]]


@pytest.fixture
def clip():
    clip = tiny_clip()
    clip.text_model.encoder = with_blocks_of(clip.text_model.encoder, ContextTextEncoder)
    return clip


def plain(clip, ids, context, deep=()):
    return encode_text(clip, [ids[0], *[0] * len(context), *ids[1:]], context, list(deep))


@pytest.mark.parametrize("num_deep", [0, 1, 2])
@torch.no_grad()
def test_each_prompt_has_its_context_and_deep_prompts(clip, num_deep):
    context, deep = torch.randn(1, 2, 3, 32), torch.randn(num_deep, 2, 2, 32).half().float()
    embeds = encode_with_context(clip, [ROWS], context, deep)
    for row, ids in enumerate(ROWS):
        expected = plain(clip, ids, context[0, row], deep[:, row])
        torch.testing.assert_close(embeds[0, row], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_each_image_has_its_context_and_words(clip):
    context = torch.randn(3, 1, 2, 32)
    prompts = [ROWS, [ROWS[1], ROWS[0]], [[512, 9, 9, 513], [512, 8, 513]]]
    embeds = encode_with_context(clip, prompts, context)
    assert embeds.shape == (3, 2, 32)
    for image, rows in enumerate(prompts):
        for row, ids in enumerate(rows):
            torch.testing.assert_close(embeds[image, row], plain(clip, ids, context[image, 0]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_embeddings_of_the_words_themselves_give_clips_own(clip):
    ids = tiny_tokenizer()("a good nut").input_ids
    words = clip.text_model.embeddings.token_embedding(torch.tensor(ids[1:4]))
    embeds = encode_with_context(clip, [[[ids[0], *ids[4:]]]], words[None, None])[0, 0]
    features = clip.get_text_features(torch.tensor([ids])).pooler_output[0]
    torch.testing.assert_close(embeds, torch.nn.functional.normalize(features, dim=-1), atol=1e-5, rtol=0)


def test_sequences_that_are_too_long_are_refused(clip):
    with pytest.raises(ValueError, match="A prompt has 79 tokens with its 74 context vectors"):
        encode_with_context(clip, [ROWS], torch.zeros(1, 1, 74, 32))
