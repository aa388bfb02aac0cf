"""The learned modules against their equations, written out."""

import pytest
import torch
from torch.nn.functional import normalize

from tests.common import tiny_config, tiny_model
from tests.reference_forward import post_vcp
from vcp_clip_hf.visual_context_prompting import as_products_read


def test_the_folded_post_vcp_equals_the_plain_one():
    model = tiny_model(post_vcp_num_heads=4)
    text, tokens = normalize(torch.randn(3, 2, 32), dim=-1), 5 * torch.randn(3, 36, 64)
    module = model.post_vcp
    (_, updated), (_, attention) = module(
        text, (tokens + 1, tokens), (1 / (tokens + 1).norm(dim=-1), 1 / tokens.norm(dim=-1))
    )
    for index in range(3):
        plain = post_vcp(model, text[index], normalize(tokens[index], dim=-1))
        torch.testing.assert_close(updated[index], plain, atol=1e-6, rtol=0)
    assert attention.shape == (3, 4, 2, 36)
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(3, 4, 2))
    torch.testing.assert_close(updated.norm(dim=-1), torch.ones(3, 2))


def test_products_share_one_copy_of_the_patch_tokens_in_training():
    tokens = torch.randn(2, 5, 8)[:, 1:]
    with torch.no_grad():
        assert as_products_read(tokens) is tokens
    assert as_products_read(tokens).is_contiguous() and torch.equal(as_products_read(tokens), tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(as_products_read(tokens), tokens.bfloat16())
        assert as_products_read(tokens.double()).dtype == torch.float64
    assert as_products_read(torch.empty(1, 2, 3, device="meta")).is_meta


def test_category_tokens_are_vectors_plus_a_convolution():
    """Equation 4: the image feature is read as a signal of one channel, kernel 3, zero padding."""
    module = tiny_model(num_category_tokens=3).pre_vcp
    image_embeds = torch.randn(2, 32)
    tokens = module(image_embeds)
    assert tokens.shape == (2, 3, 32)
    padded = torch.nn.functional.pad(image_embeds, (1, 1))
    for r in range(3):
        weight, bias = module.mini_net.weight[r, 0], module.mini_net.bias[r]
        signal = sum(weight[k] * padded[:, k : k + 32] for k in range(3)) + bias
        torch.testing.assert_close(tokens[:, r], module.category_embeddings[r] + signal, atol=1e-6, rtol=0)


def test_without_pre_vcp_the_tokens_do_not_depend_on_the_image():
    module = tiny_model(use_pre_vcp=False).pre_vcp
    assert module.mini_net is None
    assert torch.equal(module(torch.randn(5, 32)), module.category_embeddings[None])


def test_deep_prompts_drop_out_in_training_only_and_for_each_sequence_anew():
    module = tiny_model(deep_prompt_dropout=0.5, num_deep_prompt_tokens=2).deep_prompts
    assert torch.equal(module(4), module(4)) and module(4).shape == (3, 1, 2, 32)
    module.train()
    tokens = module(4)
    assert tokens.shape == (3, 4, 2, 32)
    assert not torch.equal(tokens[:, 0], tokens[:, 1])
    kept = tokens[tokens != 0].numel() / tokens.numel()
    assert kept == pytest.approx(0.5, abs=0.1)


def test_the_initialization_is_the_authors():
    from vcp_clip_hf import VCPCLIPModel

    config = tiny_config(num_category_tokens=2, num_deep_prompt_tokens=8)
    config.text_config.hidden_size = config.projection_dim = 256
    model = VCPCLIPModel(config)
    assert model.pre_vcp.category_embeddings.std().item() == pytest.approx(1, abs=0.15)
    deep = model.deep_prompts
    assert deep.embeddings.min() >= -1 and deep.embeddings.max() <= 1
    assert deep.embeddings.std().item() == pytest.approx(3**-0.5, abs=0.02)
    assert deep.projection.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.05)
    assert deep.projection.bias.abs().max() <= 256**-0.5
    assert model.base_logit_scale.item() == model.vcp_logit_scale.item() == pytest.approx(2.6593, abs=1e-4)
    linear = model.feature_projections[0].weight
    assert linear.abs().max() <= 64**-0.5 and linear.std().item() == pytest.approx((3 * 64) ** -0.5, rel=0.05)
