"""Memories that are built picture by picture, in bounded memory."""

import pytest
import torch
from torch import nn

from tests.memories import GRID, WIDTH, memory_of, plain_k_center_fast, radius, states_of, unit
from vcp_clip_hf import coreset
from vcp_clip_hf.memory_builder import MemoryBuilder
from vcp_clip_hf.memory_settings import MemorySettings
from vcp_clip_hf.nearest_patches import nearest_distance


def test_the_memory_is_exact_up_to_its_size():
    patches = GRID[0] * GRID[1]
    for max_patches, exact in ((3 * patches, True), (3 * patches - 1, False), (3 * patches + 5, True)):
        memory = memory_of(3, max_patches=max_patches)
        assert memory.exact == exact and memory.num_patches == 3 * patches
        assert all(len(bank) == min(max_patches, 3 * patches) for bank in memory.banks.values())


def test_an_exact_memory_has_every_patch_as_a_unit_vector_and_the_picture_it_is_from():
    builder = MemoryBuilder(MemorySettings(layers=(0, 2)))
    streams = [states_of(views=2), states_of(views=1)]
    builder.add("first", streams[0], GRID)
    builder.add("second", streams[1], GRID)
    memory = builder.finish()
    assert memory.pictures == ["first", "second"] and list(memory.banks) == [0, 2]
    for layer in (0, 2):
        rows = torch.cat([each[layer][:, 1:].flatten(0, 1) for each in streams])
        torch.testing.assert_close(memory.banks[layer], nn.functional.normalize(rows, dim=1))
        assert memory.rows_of[layer].tolist() == [0] * 24 + [1] * 12


def test_views_of_one_picture_belong_together():
    """Copies and tiles come in separate calls, with the same digest one after the other."""
    builder = MemoryBuilder(MemorySettings(layers=(1,)))
    for name in ("a", "a", "b", "a"):
        builder.add(name, states_of(), GRID)
    memory = builder.finish()
    assert memory.pictures == ["a", "b", "a"] and memory.rows_of[1].bincount().tolist() == [24, 12, 12]


def test_thousands_of_rows_stream_through_bounded_memory(monkeypatch):
    max_patches, pictures = 50, 200
    builder = MemoryBuilder(MemorySettings(layers=(1, 2), max_patches=max_patches))
    compared = []
    monkeypatch.setattr(
        coreset,
        "_farthest_first",
        lambda points, count, plain=coreset._farthest_first: compared.append(len(points)) or plain(points, count),
    )
    centers, held = unit(30, WIDTH), []
    for index in range(pictures):
        tokens = centers[torch.randint(30, (1, 12))] + 0.05 * torch.randn(1, 12, WIDTH)
        builder.add(str(index), [torch.cat([torch.randn(1, 1, WIDTH), tokens], dim=1)] * 3, GRID)
        held += [len(rows) for rows in builder._rows.values()]
        assert all(sum(map(len, rows.rows_of)) == len(rows) for rows in builder._rows.values())
    assert 2 * max_patches - 12 < max(held) <= 2 * max_patches and max(compared) <= 2 * max_patches + 12
    assert len(compared) < 2 * pictures * 12 / max_patches / 4, "most rows are near to kept ones and need no coreset"
    memory = builder.finish()
    assert memory.num_patches == pictures * 12 and not memory.exact and len(memory.pictures) == pictures
    assert {len(bank) for bank in memory.banks.values()} == {max_patches}
    # the coreset of coresets keeps every cluster of patches
    assert nearest_distance(centers, memory.banks[1]).max() < 0.02


def test_a_stream_is_covered_nearly_as_well_as_by_a_coreset_of_all_rows():
    """Rows that come late, and are new, are kept too."""
    rows = nn.functional.normalize(torch.cat([unit(900, WIDTH) * 0.2 + unit(1, WIDTH), unit(60, WIDTH)]), dim=1)
    builder = MemoryBuilder(MemorySettings(layers=(0,), max_patches=60))
    for index, part in enumerate(rows.split(12)):
        builder.add(str(index), [torch.cat([part[:1], part])[None]], GRID)
    memory = builder.finish()
    covered = torch.cdist(rows, memory.banks[0]).amin(dim=1).max().item()
    assert covered < 1.5 * radius(rows, plain_k_center_fast(rows, 60))
    # each row is that of the picture that it is named after
    for row, picture in zip(memory.banks[0], memory.rows_of[0].tolist(), strict=True):
        assert (rows.split(12)[picture] - row).norm(dim=1).min() < 1e-5


def test_a_memory_needs_a_picture():
    with pytest.raises(ValueError, match="at least one normal picture"):
        MemoryBuilder(MemorySettings(layers=(1,))).finish()


def test_a_coreset_keeps_the_spacing_of_its_rows():
    torch.manual_seed(5)
    whole = memory_of(distance="relative")
    torch.manual_seed(5)
    few = memory_of(distance="relative", max_patches=10)
    spacing_of = {tuple(row.tolist()): value for row, value in zip(whole.banks[1], whole.spacing[1], strict=True)}
    assert len(few.banks[1]) == 10 and len(set(whole.spacing[1].tolist())) > 10
    assert [spacing_of[tuple(row.tolist())] for row in few.banks[1]] == list(few.spacing[1])
