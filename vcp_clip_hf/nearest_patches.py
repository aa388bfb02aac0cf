"""Distances of patch tokens from the nearest row of a memory bank."""

import torch

from .autocast import no_autocast
from .patch_spacing import smallest_ratio


__all__ = ["nearest_distance", "nearest_ratio"]

# Values of one block of cosines: 64 MiB in float32
_BLOCK_VALUES = 2**24


def nearest_distance(tokens: torch.Tensor, bank: torch.Tensor, block_values: int = _BLOCK_VALUES) -> torch.Tensor:
    """
    Compute the cosine distance of tokens to the nearest row of a bank.

    The search is one matrix product, in blocks of rows of the bank, in the dtype of the tokens; on a CPU in float32,
    because a cosine that is rounded to bfloat16 has steps of 0.004.

    Args:
        tokens (`torch.Tensor` of shape `(..., width)`): tokens, not normalized.
        bank (`torch.Tensor` of shape `(rows, width)`): unit vectors, at least one.
        block_values (`int`, *optional*, defaults to 2**24): maximum number of cosines in memory at a time.

    Returns:
        `torch.FloatTensor` of shape `(...)`: `1 - maximum cosine`, float32, in [0, 2].

    Raises:
        ValueError: the widths differ, or the bank has no row to compare with.
    """
    flat, blocks = _blocks(tokens, bank, block_values)
    with no_autocast(flat.device):
        parts = [(flat @ rows.T).amax(dim=1) for rows in blocks]
        nearest = parts[0] if len(parts) == 1 else torch.stack(parts).amax(dim=0)
        cosine = nearest.float() / _lengths(flat)
    return (1 - cosine).clamp(0, 2).view(tokens.shape[:-1])


def nearest_ratio(
    tokens: torch.Tensor, bank: torch.Tensor, spacing: torch.Tensor, block_values: int = _BLOCK_VALUES
) -> torch.Tensor:
    """
    Compute the smallest ratio over the rows of a bank: the distance of a token from a row, `(1 - cosine) / 2`, divided
    by the square root of the row's spacing.

    Args:
        tokens, bank, block_values: as in `nearest_distance`.
        spacing (`torch.FloatTensor` of shape `(rows,)`): `patch_spacing` of the rows of the bank.

    Returns:
        `torch.FloatTensor` of shape `(...)`: ratios, float32, at least 0.

    Raises:
        ValueError: as in `nearest_distance`.
    """
    flat, blocks = _blocks(tokens, bank, block_values)
    with no_autocast(flat.device):
        lengths = _lengths(flat)[:, None]
        units = spacing.to(flat.device).split(len(blocks[0]))
        parts = [
            smallest_ratio((flat @ rows.T).float() / lengths, unit) for rows, unit in zip(blocks, units, strict=True)
        ]
        nearest = parts[0] if len(parts) == 1 else torch.stack(parts).amin(dim=0)
    return nearest.view(tokens.shape[:-1])


def _blocks(
    tokens: torch.Tensor, bank: torch.Tensor, block_values: int
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Return tokens as `(tokens, width)` and blocks of rows of the bank, in the dtype that they are compared in."""
    if bank.ndim != 2 or bank.shape[-1] != tokens.shape[-1]:
        raise ValueError(
            f"Tokens of width {tokens.shape[-1]} cannot be compared with a bank of shape {tuple(bank.shape)}; expected"
            f" (rows, {tokens.shape[-1]})."
        )
    if not bank.shape[0]:
        raise ValueError("The memory has no patch to compare with: it needs at least one other picture.")
    flat = tokens.flatten(0, -2)
    flat = flat.float() if flat.device.type == "cpu" else flat
    # a traced graph accepts any number of images, so the size of its blocks is that for one image
    count = tokens.shape[-2] if torch.compiler.is_compiling() else flat.shape[0]
    return flat, bank.to(flat.device, flat.dtype).split(max(1, block_values // max(1, count)))


def _lengths(flat: torch.Tensor) -> torch.Tensor:
    return flat.float().norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
