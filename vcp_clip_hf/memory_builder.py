"""Collect the patch tokens of normal pictures as a memory."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .coreset import LayerRows
from .memory_settings import MemorySettings
from .patch_spacing import patch_spacing
from .patch_tokens import averaged_over_neighbors, patches_of
from .references import ReferenceMemory


__all__ = ["MemoryBuilder"]


class MemoryBuilder:
    """
    Collect patch tokens picture by picture, in bounded memory.

    When more than twice `max_patches` rows are held, a coreset of `max_patches` of them is kept. Let r be the largest
    distance of a row to this coreset. From then on, a new row within r of the coreset is left out, so that thousands
    of pictures need few coresets.

    Args:
        settings ([`MemorySettings`]): settings of the memory.
    """

    def __init__(self, settings: MemorySettings):
        self.settings = settings
        self.pictures: list[str] = []
        self.num_patches = 0
        self._rows = {layer: LayerRows(settings.max_patches) for layer in settings.layers}

    def add(
        self,
        picture: str,
        hidden_states: Sequence[torch.Tensor | None] | Mapping[int | str, torch.Tensor],
        grid: tuple[int, int],
    ) -> None:
        """
        Add the patches of one picture: those of the picture and its copies, or of their tiles.

        Args:
            picture (`str`): `picture_digest` of the picture.
            hidden_states (`Sequence[torch.Tensor]` or `Mapping[int | str, torch.Tensor]`): states of the views,
                indexed by layer, as `states_of` returns them.
            grid (`tuple[int, int]`): rows and columns of patches of a view.
        """
        self.add_tokens(
            picture,
            {
                layer: averaged_over_neighbors(patches_of(hidden_states, layer), grid, self.settings.neighborhood)
                for layer in self.settings.layers
            },
        )

    def add_tokens(self, picture: str, tokens: Mapping[int | str, torch.Tensor]) -> None:
        """
        Add tokens of one picture.

        Args:
            picture (`str`): `picture_digest` of the picture.
            tokens (`Mapping[int | str, torch.Tensor]`): layer or bank -> tokens `(..., width)`, not normalized; for
                relative distances `(..., num_patches, width)`, the patches of views.
        """
        if not self.pictures or self.pictures[-1] != picture:
            self.pictures.append(picture)
        index, added = len(self.pictures) - 1, 0
        for layer in self.settings.layers:
            rows = nn.functional.normalize(tokens[layer].flatten(0, -2).float(), dim=1).to(tokens[layer].dtype)
            spacing = patch_spacing(tokens[layer]).flatten() if self.settings.is_relative else None
            self._rows[layer].add(rows, index, spacing)
            added = max(added, len(rows))
        self.num_patches += added

    def finish(self, **facts: Any) -> ReferenceMemory:
        """
        Return the memory.

        Args:
            facts: further fields of [`ReferenceMemory`], such as `weight` and `source`.

        Raises:
            ValueError: no picture was added.
        """
        if not self.pictures:
            raise ValueError("References need at least one normal picture, and none was given.")
        found = {layer: rows.finish() for layer, rows in self._rows.items()}
        banks, rows_of, spacing = ({layer: each[place] for layer, each in found.items()} for place in range(3))
        facts |= {"spacing": spacing if self.settings.is_relative else {}}
        return ReferenceMemory(banks, rows_of, self.settings, self.pictures, self.num_patches, **facts)
