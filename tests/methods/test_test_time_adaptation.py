"""AnoVL's adaptation of one image's tokens, beside the formulas of its loss and PyTorch's own layers."""

import torch
from torch.nn.functional import normalize

from vcp_clip_hf.methods.test_time_adaptation import AdaptationNumbers, TokenAdapter, adapt_tokens, draw_numbers


GRID, WIDTH, ROWS, STEPS = (2, 3), 8, 10, 3


def inputs(seed=0, images=1):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(images, *GRID, WIDTH, generator=generator)
    text, bank = (normalize(torch.randn(rows, WIDTH, generator=generator), dim=1) for rows in (2, ROWS))
    return tokens, text, bank


def numbers(seed):
    return draw_numbers(ROWS, WIDTH, GRID, STEPS, torch.Generator().manual_seed(seed))


def joined(*parts):
    return AdaptationNumbers(
        *(torch.cat([getattr(each, name) for each in parts]) for name in ("weight", "bias", "noise"))
    )


def test_the_steps_are_those_of_a_linear_layer_and_adamw():
    tokens, text, bank = inputs()
    given = numbers(0)
    layer = torch.nn.Linear(WIDTH, ROWS)
    layer.load_state_dict({"weight": given.weight[0], "bias": given.bias[0]})
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01)

    def adapted(each):
        return 0.5 * each + 0.5 * torch.tanh(layer(each / each.norm(dim=-1, keepdim=True))) @ bank

    losses = []
    for noise in given.noise[0]:
        clean, noisy = (
            (normalize(adapted(each), dim=-1) @ text.T).softmax(dim=-1) for each in (tokens[0], tokens[0] + noise)
        )
        entropy = -(clean * clean.log()).sum(dim=-1).mean()
        contrast = (-noisy[..., 1].log() - clean[..., 0].log()).mean()
        loss = entropy + 0.5 * contrast
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    result = adapt_tokens(tokens, text, TokenAdapter(1, bank, 0.01), given)
    torch.testing.assert_close(result.losses[0], torch.stack(losses), atol=1e-6, rtol=0)
    torch.testing.assert_close(result.weight[0], layer.weight, atol=1e-5, rtol=0)
    torch.testing.assert_close(result.bias[0], layer.bias, atol=1e-5, rtol=0)
    torch.testing.assert_close(result.tokens[0], adapted(tokens[0]).detach(), atol=1e-5, rtol=0)


def test_images_of_a_batch_do_not_see_each_other():
    tokens, text, bank = inputs(images=2)
    given = numbers(0), numbers(1)
    both = adapt_tokens(tokens, text, TokenAdapter(2, bank, 0.01), joined(*given))
    for index in range(2):
        alone = adapt_tokens(tokens[[index]], text, TokenAdapter(1, bank, 0.01), given[index])
        torch.testing.assert_close(both.tokens[index], alone.tokens[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(both.losses[index], alone.losses[0], atol=1e-6, rtol=0)


def test_an_adapter_that_is_used_again_keeps_its_optimizer_only():
    tokens, text, bank = inputs()
    kept, given = TokenAdapter(1, bank, 0.01), numbers(0)
    first = adapt_tokens(tokens, text, kept, given)
    again = adapt_tokens(tokens, text, kept, given)
    new = adapt_tokens(tokens, text, TokenAdapter(1, bank, 0.01), given)
    assert torch.equal(first.tokens, new.tokens)
    assert first.losses[0, 0] == again.losses[0, 0] and not torch.allclose(first.losses, again.losses)
    assert kept.optimizer.state[kept.weight]["step"] == 2 * STEPS


def test_numbers_are_drawn_as_by_a_linear_layer_and_with_the_published_noise():
    drawn = draw_numbers(200, 64, (10, 10), 4, torch.Generator().manual_seed(0))
    assert drawn.weight.shape == (1, 200, 64) and drawn.noise.shape == (1, 4, 10, 10, 64)
    for each in (drawn.weight, drawn.bias):
        assert each.abs().max() <= 1 / 8 and abs(each.mean()) < 0.01
        torch.testing.assert_close(each.std(), torch.tensor(2 / 8 / 12**0.5), atol=5e-3, rtol=0)
    torch.testing.assert_close(drawn.noise.std(), torch.tensor(0.055), atol=5e-4, rtol=0)
    same = draw_numbers(200, 64, (10, 10), 4, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.noise, same.noise)


def test_no_steps_give_the_initial_adapter():
    tokens, text, bank = inputs()
    given = draw_numbers(ROWS, WIDTH, GRID, 0, torch.Generator().manual_seed(0))
    result = adapt_tokens(tokens, text, TokenAdapter(1, bank, 0.01), given)
    assert result.losses.shape == (1, 0) and torch.equal(result.weight, given.weight)
