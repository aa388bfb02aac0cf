"""AnoVL's test-time adaptation: a small adapter that is trained for a few steps on the patch tokens of one image.

Deng et al. 2023, arXiv 2308.15939; facts of the authors' code are marked (code). Shapes: B images, a grid of
g_h x g_w patches, E the joint width, R prompt embeddings in the bank, K steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


__all__ = ["AdaptationNumbers", "AdaptationResult", "TokenAdapter", "adapt_tokens", "draw_numbers"]

# Values of the authors' code: share of the input, standard deviation of the noise, weight of the loss's second term
_KEPT = 0.5
_NOISE_STD = 0.05 * 1.1
_NOISE_WEIGHT = 0.5


@dataclass
class AdaptationNumbers:
    """
    The random numbers of an adaptation.

    Args:
        weight (`torch.FloatTensor` of shape `(B, R, E)`): initial weights.
        bias (`torch.FloatTensor` of shape `(B, R)`): initial biases.
        noise (`torch.FloatTensor` of shape `(B, K, g_h, g_w, E)`): noise on the tokens, new in each step.

    With B = 1, all images of a batch get the same numbers.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    noise: torch.Tensor

    def of_image(self, index: int) -> "AdaptationNumbers":
        """Return the numbers of one image of the batch."""
        return AdaptationNumbers(self.weight[[index]], self.bias[[index]], self.noise[[index]])

    def to(self, device: torch.device) -> "AdaptationNumbers":
        """Return the numbers on another device."""
        return AdaptationNumbers(self.weight.to(device), self.bias.to(device), self.noise.to(device))


@dataclass
class AdaptationResult:
    """
    Result of an adaptation.

    Args:
        tokens (`torch.FloatTensor` of shape `(B, g_h, g_w, E)`): adapted tokens, not normalized.
        losses (`torch.FloatTensor` of shape `(B, K)`): loss of each image before each step.
        weight (`torch.FloatTensor` of shape `(B, R, E)`): weights after the last step.
        bias (`torch.FloatTensor` of shape `(B, R)`): biases after the last step.
    """

    tokens: torch.Tensor
    losses: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def joined(cls, results: Sequence["AdaptationResult"]) -> "AdaptationResult":
        """Return the results of several batches as one."""
        return cls(*(torch.cat(parts) for parts in zip(*(vars(each).values() for each in results), strict=True)))


def draw_numbers(
    num_rows: int, width: int, grid: tuple[int, int], steps: int, generator: torch.Generator
) -> AdaptationNumbers:
    """
    Draw the random numbers of one image: weights and biases as in `nn.Linear`, normal noise.

    Args:
        num_rows (`int`): prompt embeddings R in the bank.
        width (`int`): joint width E.
        grid (`tuple[int, int]`): patches in a column and in a row.
        steps (`int`): optimizer steps K.
        generator (`torch.Generator`): source of the numbers, on the CPU so that every device gets the same.

    Returns:
        [`AdaptationNumbers`] with B = 1.
    """
    bound = width**-0.5
    weight = (2 * torch.rand(1, num_rows, width, generator=generator) - 1) * bound
    bias = (2 * torch.rand(1, num_rows, generator=generator) - 1) * bound
    noise = torch.randn(1, steps, *grid, width, generator=generator) * _NOISE_STD
    return AdaptationNumbers(weight, bias, noise)


class TokenAdapter:
    """
    Adapters A(z) = z / 2 + tanh(W z / |z| + b) @ bank / 2 with their optimizer, one for each image of a batch.

    Args:
        batch_size (`int`): images that are adapted at the same time.
        bank (`torch.FloatTensor` of shape `(R, E)`): L2-normalized prompt embeddings, normal first.
        learning_rate (`float`): learning rate of AdamW, whose other settings are PyTorch's defaults: betas 0.9 and
            0.999, weight decay 0.01.
    """

    def __init__(self, batch_size: int, bank: torch.Tensor, learning_rate: float):
        self.bank = bank
        self.weight = nn.Parameter(torch.empty(batch_size, *bank.shape, device=bank.device))
        self.bias = nn.Parameter(torch.empty(batch_size, bank.shape[0], device=bank.device))
        self.optimizer = torch.optim.AdamW([self.weight, self.bias], lr=learning_rate)

    def reset(self, numbers: AdaptationNumbers) -> None:
        """Set the initial weights and biases; the optimizer keeps its moments and its step count."""
        with torch.no_grad():
            self.weight.copy_(numbers.weight)
            self.bias.copy_(numbers.bias)

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Adapt tokens of shape `(B, positions, E)`."""
        hidden = nn.functional.normalize(tokens, dim=-1) @ self.weight.transpose(1, 2) + self.bias[:, None]
        return _KEPT * tokens + (1 - _KEPT) * hidden.tanh() @ self.bank


def adapt_tokens(
    tokens: torch.Tensor, text_embeds: torch.Tensor, adapter: TokenAdapter, numbers: AdaptationNumbers
) -> AdaptationResult:
    """
    Train the adapters on their images' tokens, and adapt the tokens.

    No label is used. The loss is the entropy of the clean tokens plus half the cross-entropy with which clean tokens
    are normal and noisy tokens are abnormal, as a mean over positions.

    Args:
        tokens (`torch.FloatTensor` of shape `(B, g_h, g_w, E)`): projected patch tokens, not normalized.
        text_embeds (`torch.FloatTensor` of shape `(2, E)`): L2-normalized, normal first.
        adapter ([`TokenAdapter`]): adapters of B images.
        numbers ([`AdaptationNumbers`]): random numbers, which also determine the number of steps.

    Returns:
        [`AdaptationResult`]
    """
    adapter.reset(numbers)
    flat = tokens.flatten(1, 2)
    directions = text_embeds.T
    losses = []
    for noise in numbers.noise.unbind(dim=1):
        # Clean and noisy positions of an image share its adapter
        adapted = adapter(torch.cat([flat, flat + noise.flatten(1, 2)], dim=1))
        log_clean, log_noisy = (nn.functional.normalize(adapted, dim=-1) @ directions).log_softmax(-1).chunk(2, dim=1)
        entropy = -(log_clean.exp() * log_clean).sum(dim=-1)
        contrast = -log_noisy[..., 1] - log_clean[..., 0]
        loss = (entropy + _NOISE_WEIGHT * contrast).mean(dim=1)
        adapter.optimizer.zero_grad()
        loss.sum().backward()
        adapter.optimizer.step()
        losses.append(loss.detach())
    with torch.no_grad():
        adapted = adapter(flat).view_as(tokens)
    all_losses = torch.stack(losses, dim=1) if losses else flat.new_empty(len(flat), 0)
    return AdaptationResult(adapted, all_losses, adapter.weight.detach().clone(), adapter.bias.detach().clone())
