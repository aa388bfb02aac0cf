"""Greedy k-center coresets: the rows of a memory bank that are kept when it is full, also while rows are added."""

import numpy as np
import torch

from .autocast import no_autocast


__all__ = ["LayerRows", "greedy_k_center"]

# Width at which the coreset compares patches; wider ones are projected (Johnson-Lindenstrauss), as PatchCore does
_CORESET_WIDTH = 128
# Number of candidates that are compared with each other at a time, for the next steps of the coreset
_CANDIDATES = 512


def greedy_k_center(vectors: torch.Tensor, count: int) -> torch.Tensor:
    """
    Choose rows so that every row is near a chosen one: each step takes the row farthest from those chosen so far
    (Gonzalez 1985). The largest distance to a chosen row is at most twice the smallest possible one.

    Args:
        vectors (`torch.FloatTensor` of shape `(rows, width)`): unit vectors. Those wider than 128 are compared through
            a fixed random projection to 128.
        count (`int`): number of rows to choose.

    Returns:
        `torch.LongTensor` of shape `(min(count, rows),)`: ascending indices.
    """
    if count >= len(vectors):
        return torch.arange(len(vectors), device=vectors.device)
    chosen, _ = _farthest_first(_compared(vectors), count)
    return chosen.sort().values


class LayerRows:
    """
    The rows of one layer that a [`MemoryBuilder`] holds, the pictures that they are from, and their spacing.

    Args:
        max_rows (`int`): maximum number of rows that `finish` returns; at most twice as many are held.
    """

    def __init__(self, max_rows: int):
        self.max_rows = max_rows
        self.tokens: list[torch.Tensor] = []
        self.rows_of: list[torch.Tensor] = []
        self.spacing: list[torch.Tensor] = []
        # the last coreset, and the largest squared distance to it of the rows that it was chosen from
        self.centers: torch.Tensor | None = None
        self.reach = 0.0

    def __len__(self) -> int:
        return sum(map(len, self.tokens))

    def add(self, rows: torch.Tensor, picture: int, spacing: torch.Tensor | None = None) -> None:
        """
        Add rows of one picture; those within reach of the last coreset are left out.

        Args:
            rows (`torch.Tensor` of shape `(rows, width)`): unit vectors.
            picture (`int`): index of the picture.
            spacing (`torch.FloatTensor` of shape `(rows,)`, *optional*): `patch_spacing` of the rows; 0 by default.
        """
        spacing = rows.new_zeros(len(rows), dtype=torch.float32) if spacing is None else spacing
        if self.centers is not None:
            far = _squared_distances(_compared(rows), self.centers).amin(dim=1) > self.reach
            rows, spacing = rows[far], spacing[far]
        self.tokens.append(rows)
        self.rows_of.append(torch.full((len(rows),), picture, dtype=torch.int32, device=rows.device))
        self.spacing.append(spacing)
        if len(self) > 2 * self.max_rows:
            self._thin()

    def _thin(self) -> None:
        points = _compared(torch.cat(self.tokens))
        chosen, self.reach = _farthest_first(points, self.max_rows)
        kept = chosen.sort().values
        for parts in (self.tokens, self.rows_of, self.spacing):
            parts[:] = [torch.cat(parts)[kept]]
        self.centers = points[kept]

    def finish(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return at most `max_rows` rows, the index of the picture of each, and its spacing."""
        if len(self) > self.max_rows:
            self._thin()
        return torch.cat(self.tokens), torch.cat(self.rows_of), torch.cat(self.spacing)


def _compared(vectors: torch.Tensor) -> torch.Tensor:
    """Return vectors as the coreset compares them: float32, wide ones projected."""
    points = vectors.float()
    if points.shape[1] <= _CORESET_WIDTH:
        return points
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(points.shape[1], _CORESET_WIDTH, generator=generator) / _CORESET_WIDTH**0.5
    with no_autocast(points.device):
        return points @ projection.to(points.device)


def _squared_distances(points: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """Return the squared distance of each point to each center, `(points, centers)`; rounding can make it negative."""
    with no_autocast(points.device):
        products = points @ centers.T
    return products.mul_(-2).add_(points.square().sum(dim=1)[:, None]).add_(centers.square().sum(dim=1))


def _farthest_first(points: torch.Tensor, count: int) -> tuple[torch.Tensor, float]:
    """
    Choose points one after the other, each the farthest from those chosen before.

    The distance of a point to the chosen ones never grows. Therefore the points that are farthest now are the only
    candidates of the next steps, as long as one of them is at least as far as any other point was. These steps read
    the distances among the candidates only, and one matrix product updates all points afterwards.

    Returns:
        `tuple`: indices in the order of choice, and the largest squared distance of a point to a chosen one.
    """
    # the first row is the one farthest from the mean: the choice does not depend on the order of the pictures
    chosen = [(points - points.mean(dim=0)).square().sum(dim=1).argmax()[None]]
    nearest = _squared_distances(points, points[chosen[0]])[:, 0]
    nearest[chosen[0]] = -torch.inf
    missing = count - 1
    while missing:
        distances, candidates = nearest.topk(min(_CANDIDATES + 1, len(points)))
        rest = distances[-1].item() if len(distances) > _CANDIDATES else -torch.inf
        distances, candidates = distances[:_CANDIDATES], candidates[:_CANDIDATES]
        steps = _steps_among(distances, _squared_distances(points[candidates], points[candidates]), rest, missing)
        latest = candidates[steps.to(candidates.device)]
        nearest = torch.minimum(nearest, _squared_distances(points, points[latest]).amin(dim=1))
        nearest[latest] = -torch.inf
        chosen.append(latest)
        missing -= len(latest)
    return torch.cat(chosen), max(0.0, nearest.max().item())


def _steps_among(distances: torch.Tensor, mutual: torch.Tensor, rest: float, count: int) -> torch.Tensor:
    """Choose up to `count` candidates, while the farthest of them is at least as far as `rest`; always one."""
    values, mutual = distances.cpu().numpy().copy(), mutual.cpu().numpy()
    steps = [int(values.argmax())]
    while len(steps) < count:
        np.minimum(values, mutual[steps[-1]], out=values)
        values[steps[-1]] = -np.inf
        farthest = int(values.argmax())
        if values[farthest] < rest or values[farthest] == -np.inf:
            break
        steps.append(farthest)
    return torch.tensor(steps)
