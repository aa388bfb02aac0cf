"""Windows of k x k patches over the grid of an image, as WinCLIP uses them: every position, row by row.

Shapes: B images, a grid of g_h x g_w patches, W = (g_h - k + 1) * (g_w - k + 1) windows, D the image width.
"""

import torch
from torch import nn


__all__ = ["mean_over_windows", "window_index", "window_sequences"]


def window_index(grid: tuple[int, int], side: int) -> torch.Tensor:
    """
    Return the patches of each window.

    Args:
        grid (`tuple[int, int]`): patches in a column and in a row.
        side (`int`): side k of a window in patches.

    Returns:
        `torch.LongTensor` of shape `(k * k, W)`: index of each patch of each window; patches and windows row by row.

    Raises:
        ValueError: the window is larger than the grid.
    """
    if side < 1 or side > min(grid):
        raise ValueError(
            f"A window of {side} x {side} patches does not fit into a grid of {grid[0]} x {grid[1]}. Use larger images"
            " or smaller scales."
        )
    patches = torch.arange(grid[0] * grid[1]).view(grid)
    return patches.unfold(0, side, 1).unfold(1, side, 1).reshape(-1, side * side).T


def window_sequences(embedded: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """
    Gather the tokens of windows: the class token, then the window's patches with the positions of the full image.

    Args:
        embedded (`torch.Tensor` of shape `(B, 1 + g_h * g_w, D)`): input of the first block, or the embeddings before
            `pre_layrnorm`, which treats every token by itself.
        index (`torch.LongTensor` of shape `(k * k, W)`): `window_index`, or columns of it.

    Returns:
        `torch.Tensor` of shape `(B * W, 1 + k * k, D)`: all windows of the first image first.
    """
    patches = embedded[:, 1:][:, index.T.to(embedded.device)]
    class_tokens = embedded[:, None, :1].expand(-1, patches.shape[1], -1, -1)
    return torch.cat([class_tokens, patches], dim=2).flatten(0, 1)


def mean_over_windows(scores: torch.Tensor, grid: tuple[int, int], side: int, harmonic: bool = True) -> torch.Tensor:
    """
    Average, for each patch, the scores of the windows that cover it.

    Args:
        scores (`torch.FloatTensor` of shape `(B, W)`): score of each window, 0 or more.
        grid (`tuple[int, int]`): patches in a column and in a row.
        side (`int`): side k of a window in patches.
        harmonic (`bool`, *optional*, defaults to `True`): whether to take the harmonic mean, n / sum(1 / score),
            which is 0 if a score is 0, or the arithmetic mean.

    Returns:
        `torch.FloatTensor` of shape `(B, g_h, g_w)`.
    """
    values = (1 / scores if harmonic else scores).view(-1, 1, grid[0] - side + 1, grid[1] - side + 1)
    counts = torch.ones_like(values[:1])

    def covering_sum(each: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(each, [side - 1] * 4)
        return nn.functional.avg_pool2d(padded, side, stride=1, divisor_override=1)[:, 0]

    total, number = covering_sum(values), covering_sum(counts)
    return number / total if harmonic else total / number
