"""The memory of normal pictures: distances, coreset, file and fused maps, against loops and published numbers."""

import hashlib
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tests.common import FIXTURES, pixels, tiny_model
from vcp_clip_hf import VCPCLIPImageProcessor, accelerate_inference, references
from vcp_clip_hf.references import (
    COPIES,
    REFERENCES_FILE,
    MemoryBuilder,
    MemorySettings,
    ReferencedModel,
    ReferenceMemory,
    averaged_over_neighbors,
    check_weight,
    greedy_k_center,
    nearest_distance,
    nearest_ratio,
    picture_digest,
    tower_weights,
    turned_copies,
)


GRID = (3, 4)
WIDTH = 8


def unit(*shape: int) -> torch.Tensor:
    return nn.functional.normalize(torch.randn(*shape), dim=-1)


def states_of(views: int = 1, layers: int = 3, grid: tuple[int, int] = GRID) -> list[torch.Tensor]:
    """Make a residual stream: of each layer a class token and the patches."""
    return [torch.randn(views, 1 + grid[0] * grid[1], WIDTH) for _ in range(layers)]


def small_picture(seed: int, size: tuple[int, int] = (9, 7)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def memory_of(pictures: int = 3, dtype: torch.dtype = torch.float32, **settings) -> ReferenceMemory:
    """Make a memory of layers 1 and 2 of random pictures."""
    builder = MemoryBuilder(MemorySettings(**{"layers": (1, 2), **settings}))
    for seed in range(pictures):
        states = [each.to(dtype) for each in states_of()]
        builder.add(picture_digest(small_picture(seed)), states, GRID)
    return builder.finish(weight=0.3, source="line 4", conditions={"size": [48, 48]}, tower={"a.weight": 0.25})


# --- distances ------------------------------------------------------------------------------------------------------


def test_the_distance_is_that_of_a_loop_over_all_pairs():
    tokens, bank = torch.randn(2, 5, WIDTH) * 7, unit(11, WIDTH)
    found = nearest_distance(tokens, bank)
    assert found.shape == (2, 5) and found.dtype == torch.float32
    for image, place in itertools.product(range(2), range(5)):
        token = tokens[image, place]
        cosines = [float(token @ row) / float(token.norm()) for row in bank]
        assert found[image, place].item() == pytest.approx(1 - max(cosines), abs=1e-6)


@pytest.mark.parametrize("block_values", [1, 7, 10, 30, 109, 10**9])
def test_blocks_change_nothing(block_values):
    tokens, bank = torch.randn(10, WIDTH), unit(11, WIDTH)
    torch.testing.assert_close(
        nearest_distance(tokens, bank, block_values=block_values), nearest_distance(tokens, bank), rtol=0, atol=1e-6
    )


def test_the_ends_of_the_scale():
    bank = torch.eye(3)[:1]
    tokens = torch.tensor([[5.0, 0, 0], [-2, 0, 0], [0, 1, 0], [0, 0, 0], [1e-30, 0, 0], [1e18, 0, 0]])
    assert nearest_distance(tokens, bank).tolist() == [0, 2, 1, 1, 0, 0]


def test_a_row_of_the_bank_has_no_distance_and_more_rows_only_bring_it_closer():
    tokens, bank = torch.randn(20, WIDTH), unit(11, WIDTH)
    assert nearest_distance(bank * 3, bank).max() < 1e-6
    fewer = [nearest_distance(tokens, bank[:rows]) for rows in (1, 4, 11)]
    assert (fewer[0] >= fewer[1] - 1e-6).all() and (fewer[1] >= fewer[2] - 1e-6).all()
    assert (fewer[0] > fewer[2] + 0.1).any()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-3), (torch.float16, 2e-4)])
def test_lower_precision(dtype, tolerance):
    """Tokens are rounded, their products are not: a cosine in bfloat16 has steps of 0.004. Also with mixed dtypes."""
    tokens, bank = torch.randn(30, 64) * 5, unit(40, 64)
    expected = nearest_distance(tokens, bank)
    found = nearest_distance(tokens.to(dtype), bank)
    assert found.dtype == torch.float32 and (found - expected).abs().max() < tolerance
    for tokens_dtype, bank_dtype in ((dtype, dtype), (torch.float32, dtype)):
        mixed = nearest_distance(tokens.to(tokens_dtype), bank.to(bank_dtype))
        assert 0 < (mixed - expected).abs().max() < tolerance


def test_autocast_does_not_change_distances():
    tokens, bank = torch.randn(30, 64), unit(40, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = nearest_distance(tokens, bank)
    assert torch.equal(found, nearest_distance(tokens, bank))


@pytest.mark.parametrize(
    ("bank", "message"),
    [
        (torch.zeros(4, 6), r"width 8 .* bank of shape \(4, 6\); expected \(rows, 8\)"),
        (torch.zeros(8), r"bank of shape \(8,\)"),
        (torch.zeros(1, 4, 8), r"bank of shape \(1, 4, 8\)"),
        (torch.zeros(0, 8), "no patch to compare with: it needs at least one other picture"),
    ],
)
def test_banks_that_do_not_fit_are_refused(bank, message):
    with pytest.raises(ValueError, match=message):
        nearest_distance(torch.randn(5, 8), bank)


def test_few_shot_april_gan_has_the_same_distances():
    """Their code's: 1 - maximum cosine over the tokens of two references, for each layer."""
    folder = FIXTURES / "rivals" / "april_gan_few_shot"
    expected = load_file(folder / "expected.safetensors")
    layers = json.loads((folder / "config.json").read_text())["memory_layers"]
    references = len(expected["reference_pixel_values"])
    grid = expected["few_shot.grid_3"].shape[1:]
    builder = MemoryBuilder(MemorySettings(layers=layers))
    for index in range(references):
        states = [None] * (max(layers) + 1)
        for layer in layers:
            tokens = expected[f"memory_{layer}"].unflatten(0, (references, -1))[index]
            states[layer] = torch.cat([torch.zeros_like(tokens[:1]), tokens])[None]
        builder.add(str(index), states, grid)
    memory = builder.finish()
    assert memory.exact and memory.num_patches == len(expected["memory_3"])
    states = [expected.get(f"patch_tokens_{layer}") for layer in range(max(layers) + 1)]
    for layer in layers:
        grid_of_layer = nearest_distance(states[layer][:, 1:], memory.banks[layer]).unflatten(1, grid)
        torch.testing.assert_close(grid_of_layer, expected[f"few_shot.grid_{layer}"], rtol=0, atol=1e-5)
    # the memory's map is the mean over layers of half of it
    mean = sum(expected[f"few_shot.grid_{layer}"] for layer in layers) / (2 * len(layers))
    torch.testing.assert_close(memory.distances(states, grid), mean, rtol=0, atol=1e-5)


# --- the coreset ----------------------------------------------------------------------------------------------------


def plain_k_center(vectors: torch.Tensor, count: int) -> list[int]:
    """Choose the row farthest from the mean, and then always the row farthest from all chosen ones."""
    points = [vector.double() for vector in vectors]
    mean = sum(points) / len(points)
    chosen = [max(range(len(points)), key=lambda row: float((points[row] - mean).norm()))]
    while len(chosen) < count:
        others = [row for row in range(len(points)) if row not in chosen]
        chosen.append(max(others, key=lambda row: min(float((points[row] - points[each]).norm()) for each in chosen)))
    return sorted(chosen)


def radius(vectors: torch.Tensor, chosen) -> float:
    """Return the largest distance of a row to its nearest chosen row."""
    centers = vectors[torch.as_tensor(chosen)].double()
    return torch.cdist(vectors.double(), centers).amin(dim=1).max().item()


@pytest.mark.parametrize("count", [1, 2, 5, 12, 29])
def test_the_coreset_is_that_of_a_plain_loop(count):
    vectors = unit(30, WIDTH)
    chosen = greedy_k_center(vectors, count)
    assert chosen.tolist() == plain_k_center(vectors, count)


def test_the_radius_is_at_most_twice_the_best_possible():
    for _ in range(10):
        vectors = unit(11, 3)
        for count in (1, 2, 3):
            best = min(radius(vectors, chosen) for chosen in itertools.combinations(range(11), count))
            assert best <= radius(vectors, greedy_k_center(vectors, count)) <= 2 * best + 1e-6


def test_every_cluster_is_kept():
    """Also of vectors so wide that they are compared through a projection."""
    centers = unit(20, 300)
    vectors = nn.functional.normalize(centers.repeat(50, 1) + 0.003 * torch.randn(1000, 300), dim=1)
    assert sorted((greedy_k_center(vectors, 20) % 20).tolist()) == list(range(20))


def test_the_projection_keeps_the_radius_small():
    """The coreset of projected vectors covers the vectors themselves far better than random rows."""
    # patches of a few dimensions, most of them alike, as in pictures
    amounts = torch.rand(600, 1) ** 8 * torch.randn(600, 4)
    vectors = nn.functional.normalize(unit(1, 300) * 3 + amounts @ unit(4, 300), dim=1)
    covered = radius(vectors, greedy_k_center(vectors, 60))
    exact = radius(vectors, plain_k_center_fast(vectors, 60))
    random = np.mean([radius(vectors, torch.randperm(600)[:60]) for _ in range(10)])
    assert covered < 1.5 * exact < random


def plain_k_center_fast(vectors: torch.Tensor, count: int) -> list[int]:
    """Choose as `plain_k_center` does, from a matrix of all distances."""
    distances = torch.cdist(vectors.double(), vectors.double())
    chosen = [int((vectors - vectors.mean(dim=0)).norm(dim=1).argmax())]
    while len(chosen) < count:
        chosen.append(int(distances[chosen].amin(dim=0).argmax()))
    return chosen


@pytest.mark.parametrize("width", [WIDTH, 300])
def test_the_coreset_does_not_depend_on_the_order_or_on_the_seed(width):
    vectors = unit(80, width)
    chosen = greedy_k_center(vectors, 15)
    assert torch.equal(chosen, chosen.sort().values) and len(set(chosen.tolist())) == 15
    torch.manual_seed(99)
    assert torch.equal(greedy_k_center(vectors, 15), chosen)
    order = torch.randperm(80)
    assert sorted(order[greedy_k_center(vectors[order], 15)].tolist()) == chosen.tolist()


def test_a_coreset_of_all_rows_is_all_rows():
    vectors = unit(6, WIDTH)
    for count in (6, 7, 1000):
        assert greedy_k_center(vectors, count).tolist() == [0, 1, 2, 3, 4, 5]


def test_rows_that_are_equal_are_chosen_last_and_once_each():
    vectors = unit(3, WIDTH).repeat(4, 1)
    assert sorted((greedy_k_center(vectors, 3) % 3).tolist()) == [0, 1, 2]
    assert len(set(greedy_k_center(vectors, 11).tolist())) == 11
    assert len(greedy_k_center(vectors.bfloat16(), 5)) == 5


# --- neighbors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 3, 5, 9])
def test_neighbors_are_averaged_and_those_beyond_the_border_are_not_counted(side):
    rows, columns = 4, 5
    tokens = torch.randn(2, rows * columns, 3)
    found = averaged_over_neighbors(tokens, (rows, columns), side)
    assert found.shape == tokens.shape
    planes = tokens.view(2, rows, columns, 3)
    for row, column in itertools.product(range(rows), range(columns)):
        reach = side // 2
        around = planes[:, max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1].flatten(
            1, 2
        )
        torch.testing.assert_close(found[:, row * columns + column], around.mean(dim=1), rtol=0, atol=1e-6)
    assert (side != 1) or found is tokens


# --- pictures and copies --------------------------------------------------------------------------------------------


def test_a_digest_is_that_of_pixels_and_shape():
    image = small_picture(0)
    assert picture_digest(image) == picture_digest(image.copy())
    others = [image.transpose(Image.Transpose.ROTATE_90), image.convert("L"), small_picture(1)]
    values = np.asarray(image).copy()
    values[3, 2, 1] ^= 1
    others.append(Image.fromarray(values))
    # the same bytes in another shape
    others.append(Image.frombytes("RGB", (7, 9), image.tobytes()))
    assert len({picture_digest(each) for each in [image, *others]}) == len(others) + 1


def test_copies():
    image = small_picture(0)
    counts = {copies: len(turned_copies(image, copies)) for copies in COPIES}
    assert counts == {"none": 1, "flips": 3, "rotations": 4, "all": 8}
    every = {picture_digest(each) for each in turned_copies(image, "all")}
    assert len(every) == 8, "the eight symmetries of a square, each once"
    for copies in COPIES:
        found = [picture_digest(each) for each in turned_copies(image, copies)]
        assert found[0] == picture_digest(image) and set(found) <= every


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ()}, "must be whole numbers, at least one"),
        ({"layers": (1, "stem")}, "before them may stand 'stem'"),
        ({"layers": ("stem", 2, 1)}, "must be ascending"),
        ({"layers": ("stem", -1)}, "0 or more"),
        ({"layers": ("stem", True)}, "must be whole numbers"),
        ({"layers": (1.0,)}, "whole numbers"),
        ({"layers": (True,)}, "whole numbers"),
        ({"layers": (1, "windows_2")}, "whole numbers"),
        ({"layers": (2, 1)}, "ascending, distinct"),
        ({"layers": (1, 1)}, "ascending, distinct"),
        ({"layers": (-1, 1)}, "0 or more"),
        ({"max_patches": 0}, "max_patches=0 must be a whole number, 1 or more"),
        ({"max_patches": 10.0}, "max_patches=10.0"),
        ({"max_patches": True}, "max_patches=True"),
        ({"neighborhood": 2}, "neighborhood=2 must be odd"),
        ({"neighborhood": -3}, "neighborhood=-3 must be a whole number"),
        ({"scale": 0}, "scale=0 must be a positive number"),
        ({"scale": float("nan")}, "scale=nan must be a positive number"),
        ({"copies": "mirror"}, "copies='mirror' must be one of 'none', 'flips', 'rotations', 'all'"),
        ({"copies": ["flips"]}, r"copies=\['flips'\] must be one of"),
        ({"distance": "absolute"}, "distance='absolute' must be one of 'scaled', 'relative'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MemorySettings(**{"layers": (1,), **settings})


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan"), True, "0.5", None])
def test_weights_out_of_range_are_refused(weight):
    with pytest.raises(ValueError, match=r"reference_weight=.* must lie in \[0, 1\]"):
        check_weight(weight)
    with pytest.raises(ValueError, match="reference_weight"):
        memory_of(1).with_weight(weight)


# --- the builder ----------------------------------------------------------------------------------------------------


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
        references,
        "_farthest_first",
        lambda points, count, plain=references._farthest_first: compared.append(len(points)) or plain(points, count),
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


# --- the memory -----------------------------------------------------------------------------------------------------


def test_distances_are_the_mean_over_layers_of_half_the_distance():
    memory, states = memory_of(neighborhood=3), states_of(views=2)
    found = memory.distances(states, GRID)
    expected = sum(
        nearest_distance(averaged_over_neighbors(states[layer][:, 1:], GRID, 3), memory.banks[layer]) / 4
        for layer in (1, 2)
    )
    torch.testing.assert_close(found, expected.view(2, *GRID), rtol=0, atol=1e-7)
    assert found.min() >= 0 and found.max() <= 1


def test_the_scale_multiplies_distances_up_to_one():
    states, others = states_of(), [states_of() for _ in range(2)]
    memories = []
    for scale in (1.0, 3.0, 1e6):
        builder = MemoryBuilder(MemorySettings(layers=(1, 2), scale=scale))
        for seed, each in enumerate(others):
            builder.add(picture_digest(small_picture(seed)), each, GRID)
        memories.append(builder.finish())
    plain, scaled, saturated = (memory.distances(states, GRID) for memory in memories)
    torch.testing.assert_close(scaled, (3 * plain).clamp(max=1))
    assert torch.equal(saturated, torch.ones_like(plain))
    assert len({memory.digest for memory in memories}) == 3


def test_references_themselves_have_no_distance_and_without_them_they_have():
    builder = MemoryBuilder(MemorySettings(layers=(1, 2), neighborhood=3))
    streams = [states_of() for _ in range(3)]
    for seed, states in enumerate(streams):
        builder.add(picture_digest(small_picture(seed)), states, GRID)
    memory = builder.finish()
    assert memory.distances(streams[1], GRID).max() < 1e-6
    others = MemoryBuilder(memory.settings)
    for seed in (0, 2):
        others.add(picture_digest(small_picture(seed)), streams[seed], GRID)
    for without in (memory.without(1), memory.for_new_picture(small_picture(1))):
        assert torch.equal(without.distances(streams[1], GRID), others.finish().distances(streams[1], GRID))
        assert without.distances(streams[1], GRID).min() > 1e-3
    assert memory.for_new_picture(small_picture(7)) is memory
    assert memory.distances(streams[1], GRID).max() < 1e-6, "the memory itself is unchanged"


def relative_memory(pictures: int = 3, **settings) -> ReferenceMemory:
    return memory_of(pictures, distance="relative", **settings)


def test_relative_distances_are_those_of_a_loop():
    builder = MemoryBuilder(MemorySettings(layers=(1, 2), distance="relative", scale=0.7))
    streams, states = [states_of(views=2) for _ in range(2)], states_of()
    for seed, each in enumerate(streams):
        builder.add(picture_digest(small_picture(seed)), each, GRID)
    found = builder.finish().distances(states, GRID)
    total = torch.zeros(12)
    for layer in (1, 2):
        # the spacing of a patch is that in its own view
        views = [nn.functional.normalize(view[1:], dim=-1) for stream in streams for view in stream[layer]]
        for place, token in enumerate(nn.functional.normalize(states[layer][0, 1:], dim=-1)):
            ratios = []
            for view in views:
                for index, row in enumerate(view):
                    others = [(1 - float(row @ view[other])) / 2 for other in range(len(view)) if other != index]
                    ratios.append((1 - float(token @ row)) / 2 / (sum(sorted(others)[:16]) / len(others)) ** 0.5)
            total[place] += min(ratios) / 2
    expected = (0.7 * total) ** 2 / (1 + (0.7 * total) ** 2)
    torch.testing.assert_close(found, expected.view(1, *GRID), rtol=0, atol=1e-5)


@pytest.mark.parametrize("block_values", [1, 50, 2**24])
def test_blocks_do_not_change_ratios(block_values):
    tokens, bank, spacing = torch.randn(2, 7, WIDTH), unit(23, WIDTH), torch.rand(23) + 0.01
    expected = nearest_ratio(tokens, bank, spacing)
    assert expected.shape == (2, 7)
    torch.testing.assert_close(nearest_ratio(tokens, bank, spacing, block_values), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="at least one other picture"):
        nearest_ratio(tokens, bank[:0], spacing[:0])


def test_one_more_picture_never_raises_a_relative_distance():
    """The guarantee of thresholds from references, each scored against the others, needs this."""
    memory, states = relative_memory(6), states_of(views=3)
    full = memory.distances(states, GRID)
    for picture in range(6):
        assert (memory.without(picture).distances(states, GRID) >= full).all()


def test_relative_references_themselves_have_no_distance_and_without_them_they_have():
    builder = MemoryBuilder(MemorySettings(layers=(1, 2), distance="relative"))
    streams = [states_of() for _ in range(3)]
    for seed, states in enumerate(streams):
        builder.add(picture_digest(small_picture(seed)), states, GRID)
    memory = builder.finish()
    others = MemoryBuilder(memory.settings)
    for seed in (0, 2):
        others.add(picture_digest(small_picture(seed)), streams[seed], GRID)
    assert memory.distances(streams[1], GRID).max() < 1e-6
    assert memory.value_at(0) == 0 and memory.without(1).value_at(0.01) > 0
    without = memory.without(1).distances(streams[1], GRID)
    assert torch.equal(without, others.finish().distances(streams[1], GRID)) and without.min() > 1e-3


@pytest.mark.parametrize("distance", ["scaled", "relative"])
def test_no_patch_is_above_the_value_at_its_distance(distance):
    memory, states = memory_of(distance=distance, scale=2.0, layers=(1,)), states_of()
    far = nearest_distance(states[1][:, 1:], memory.banks[1]).max().item() / 2
    assert memory.distances(states, GRID).max() <= memory.value_at(far) + 1e-6


def test_a_coreset_keeps_the_spacing_of_its_rows():
    torch.manual_seed(5)
    whole = relative_memory()
    torch.manual_seed(5)
    few = relative_memory(max_patches=10)
    spacing_of = {tuple(row.tolist()): value for row, value in zip(whole.banks[1], whole.spacing[1], strict=True)}
    assert len(few.banks[1]) == 10 and len(set(whole.spacing[1].tolist())) > 10
    assert [spacing_of[tuple(row.tolist())] for row in few.banks[1]] == list(few.spacing[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_relative_memory_is_saved_and_loaded_bit_equal(tmp_path, dtype):
    memory = relative_memory(dtype=dtype)
    loaded = ReferenceMemory.load(memory.save(tmp_path))
    assert loaded.settings == memory.settings and loaded.digest == memory.digest
    states = states_of()
    assert torch.equal(loaded.distances(states, GRID), memory.distances(states, GRID))
    assert "relative distances" in loaded.describe()
    damaged(tmp_path / "references.safetensors", lambda tensors, facts, metadata: tensors.pop("layer_2.spacing"))
    with pytest.raises(ValueError, match=r"layer_2.spacing.*set the references again"):
        ReferenceMemory.load(tmp_path / "references.safetensors")


def test_a_spacing_of_other_rows_is_refused():
    memory = relative_memory()
    spacing = {**memory.spacing, 2: memory.spacing[2][1:]}
    with pytest.raises(ValueError, match=r"layer 2: tokens of shape \(36, 8\) and spacing of shape \(35,\)"):
        ReferenceMemory(memory.banks, memory.rows_of, memory.settings, memory.pictures, 36, spacing=spacing)
    with pytest.raises(ValueError, match="layer 1: relative distances need the spacing of its patches"):
        ReferenceMemory(memory.banks, memory.rows_of, memory.settings, memory.pictures, 36)


def test_a_scaled_memory_has_the_file_and_the_hash_of_earlier_versions(tmp_path):
    memory = memory_of()
    with safe_open(memory.save(tmp_path), "pt") as file:
        names, facts = set(file.keys()), json.loads(file.metadata()["references"])
    assert names == {f"layer_{layer}.{part}" for layer in (1, 2) for part in ("tokens", "picture")}
    assert set(facts["settings"]) == {"layers", "max_patches", "neighborhood", "scale", "copies"}
    digest = hashlib.sha256(json.dumps([facts["settings"], memory.conditions], sort_keys=True).encode())
    for layer in (1, 2):
        digest.update(f"{layer} (36, {WIDTH}) torch.float32".encode() + memory.banks[layer].numpy().tobytes())
    assert memory.digest == digest.hexdigest()[:16]
    relative, changed = relative_memory(), relative_memory()
    changed.banks, changed.spacing = relative.banks, {layer: 2 * each for layer, each in relative.spacing.items()}
    assert len({memory.digest, relative.digest, changed.digest}) == 3


def test_without_the_only_picture_there_is_nothing_to_compare_with():
    with pytest.raises(ValueError, match="at least one other picture"):
        memory_of(1).without(0).distances(states_of(), GRID)


def test_the_description_has_numbers():
    text = memory_of(3).describe()
    assert text == (
        "References: 3 normal pictures from line 4; all of 36 patches in each of the layers 1, 2, 0.0 MB; weight 0.3."
    )
    memory = memory_of(1, max_patches=5, scale=19.0)
    assert memory.describe().endswith("weight 0.3, scale 19.")
    memory.source = ""
    assert memory.describe().startswith("References: 1 normal picture; a coreset of 5 of 12 patches in each")
    assert memory_of(3).num_bytes == 2 * 36 * WIDTH * 4
    assert memory_of(3, torch.bfloat16).num_bytes == 2 * 36 * WIDTH * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("max_patches", [20, 10_000])
def test_saved_and_loaded_is_bit_equal(tmp_path, dtype, max_patches):
    memory = memory_of(3, dtype, max_patches=max_patches, copies="flips", neighborhood=3)
    memory.conditions["tiling"] = {"tile_size": 24, "tile_overlap": 6, "global_weight": 0.1}
    path = memory.save(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == [REFERENCES_FILE] and path == tmp_path / REFERENCES_FILE
    loaded = ReferenceMemory.load(path)
    for layer in (1, 2):
        assert loaded.banks[layer].dtype == dtype and torch.equal(loaded.banks[layer], memory.banks[layer])
        assert torch.equal(loaded.rows_of[layer], memory.rows_of[layer])
    for name in ("settings", "pictures", "num_patches", "weight", "source", "conditions", "tower", "exact"):
        assert getattr(loaded, name) == getattr(memory, name), name
    assert loaded.digest == memory.digest and loaded.describe() == memory.describe()
    states = [each.to(dtype) for each in states_of()]
    assert torch.equal(loaded.distances(states, GRID), memory.distances(states, GRID))
    assert torch.equal(loaded.without(1).banks[2], memory.without(1).banks[2])
    # equal memories have equal files, so that a push uploads nothing
    content = path.read_bytes()
    for _ in range(5):
        assert loaded.save(tmp_path).read_bytes() == content
    # a file of the same name is replaced
    loaded.with_weight(0.9).save(tmp_path)
    assert ReferenceMemory.load(path).weight == 0.9


def damaged(path, change) -> None:
    """Write a memory's file anew with other tensors, facts or metadata."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors, facts = load_file(path), json.loads(metadata["references"])
    change(tensors, facts, metadata)
    if "references" in metadata and metadata["references"] != "[1":
        metadata["references"] = json.dumps(facts)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, facts, metadata: tensors.pop("layer_2.tokens"), "layer_2.tokens"),
        (lambda tensors, facts, metadata: tensors.pop("layer_1.picture"), "layer_1.picture"),
        (lambda tensors, facts, metadata: facts.pop("pictures"), "pictures"),
        (lambda tensors, facts, metadata: facts.pop("settings"), "settings"),
        (lambda tensors, facts, metadata: facts["settings"].update(shade=1), "shade"),
        (lambda tensors, facts, metadata: facts["settings"].update(copies="x"), "copies='x' must be one of"),
        (lambda tensors, facts, metadata: facts.update(settings=3), "mapping"),
        (lambda tensors, facts, metadata: facts.update(weight=7), r"reference_weight=7 must lie in \[0, 1\]"),
        (lambda tensors, facts, metadata: facts.update(format=2), "its format is 2, expected 1"),
        (lambda tensors, facts, metadata: facts.pop("format"), "'format'"),
        (lambda tensors, facts, metadata: metadata.pop("references"), "references"),
        (lambda tensors, facts, metadata: metadata.update(references="[1"), "cannot be read"),
        (
            lambda tensors, facts, metadata: tensors.update({"layer_1.tokens": torch.zeros(3)}),
            r"layer 1: tokens of shape \(3,\)",
        ),
        (
            lambda tensors, facts, metadata: tensors.update({"layer_1.picture": torch.zeros(4, dtype=torch.int32)}),
            r"layer 1: tokens of shape \(36, 8\) and pictures of shape \(4,\)",
        ),
        (
            lambda tensors, facts, metadata: tensors.update({"layer_1.tokens": torch.zeros(36, 8, dtype=torch.int32)}),
            "layer 1: tokens of shape",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_explained(tmp_path, change, message):
    path = memory_of().save(tmp_path)
    damaged(path, change)
    with pytest.raises(ValueError, match=message) as error:
        ReferenceMemory.load(path)
    assert str(path) in str(error.value) and "set the references again" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_a_damaged_file_is_explained(tmp_path, content):
    path = memory_of().save(tmp_path)
    path.write_bytes(path.read_bytes()[:-20] if content is None else content)
    with pytest.raises(ValueError, match=rf"'{path}' cannot be read as a memory of references .* Restore the file"):
        ReferenceMemory.load(path)


def test_the_digest_is_that_of_everything_results_depend_on():
    def made(**changes) -> ReferenceMemory:
        torch.manual_seed(1)
        return memory_of(2, **changes)

    digest = made().digest
    assert digest == made().digest
    others = [made(neighborhood=3), made(copies="flips"), made(max_patches=20), made(dtype=torch.bfloat16)]
    moved = made()
    moved.conditions["size"] = [56, 56]
    changed = made()
    changed.banks[2][3, 1] += 1e-3
    others += [moved, changed, made().without(0), memory_of(2)]
    digests = [each.digest for each in others]
    assert len({digest, *digests}) == len(others) + 1
    # also after the hash was computed once
    memory = made()
    assert memory.digest not in (memory.without(1).digest, memory.to("cpu", torch.float16).digest)
    # and not of the weight, the source or the device
    assert memory.with_weight(0.9).digest == memory.to("cpu").digest == digest
    memory = made()
    memory.source, memory.tower = "elsewhere", {}
    assert memory.digest == digest
    assert memory.identity() == {"memory": digest, "weight": 0.3}
    assert memory.with_weight(1).identity() == {"memory": digest, "weight": 1.0}


def test_the_hash_is_computed_once(monkeypatch):
    """A bank may have hundreds of megabytes, and every call names the hash."""
    memory, hashed = memory_of(), []
    monkeypatch.setattr("vcp_clip_hf.references.asdict", lambda settings: hashed.append(1) or {})
    for weight in (0.1, 0.2, 0.3):
        memory.with_weight(weight).identity()
    assert len(hashed) == 1


def test_memories_can_be_compared_as_objects():
    memory = memory_of()
    assert memory == memory and memory != memory_of()


def test_images_prepared_otherwise_are_refused():
    memory = memory_of()
    memory.check_conditions({"size": [48, 48], "resize_mode": "pad"})
    with pytest.raises(ValueError, match=r"other settings: size was \[48, 48\], is \[56, 56\]. Use those settings"):
        memory.check_conditions({"size": [56, 56]})


# --- the image tower ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(333)
    return tiny_model()


def for_model(model: nn.Module, pixel_values: torch.Tensor, **settings) -> ReferenceMemory:
    """Make the memory of a batch of pictures."""
    settings = MemorySettings(**{"layers": tuple(model.config.memory_layers), **settings})
    builder = MemoryBuilder(settings)
    grid = tuple(length // model.config.vision_config.patch_size for length in pixel_values.shape[-2:])
    with torch.no_grad():
        states = model(pixel_values, output_hidden_states=list(settings.layers)).hidden_states
    for index in range(len(pixel_values)):
        builder.add(str(index), [None if each is None else each[index : index + 1] for each in states], grid)
    return builder.finish(weight=0.5, tower=tower_weights(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_tower_is_recognized_in_every_dtype(dtype):
    model = tiny_model()
    memory = for_model(model, pixels(1))
    other = tiny_model()
    memory.check_tower(accelerate_inference(model))
    memory.check_tower(model.to(dtype))
    # and the other way round
    in_dtype = ReferenceMemory(**{**vars(memory), "tower": tower_weights(model)})
    in_dtype.check_tower(model.float())
    for each in (memory, in_dtype):
        with pytest.raises(ValueError, match=r"another image tower: \d+ of \d+ compared weights differ"):
            each.check_tower(other.to(dtype))


def test_a_tower_that_was_trained_further_is_another_one():
    model = tiny_model()
    memory = for_model(model, pixels(1))
    parameters = list(model.clip.vision_model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for _ in range(3):
        loss = model.clip.vision_model(pixels(1, 32, 32)).pooler_output.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with pytest.raises(ValueError, match="another image tower"):
        memory.check_tower(model)


def test_a_tower_without_a_shared_weight_is_another_one(model):
    memory = for_model(model, pixels(1))
    bare = SimpleNamespace(clip=SimpleNamespace(vision_model=nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"all of .* compared weights differ"):
        memory.check_tower(bare)
    # a memory made by hand names no weights
    memory.tower = {}
    memory.check_tower(bare)


# --- a model with a memory ------------------------------------------------------------------------------------------


@pytest.fixture(params=["plain", "accelerated"])
def network(request, model):
    return model if request.param == "plain" else accelerate_inference(model)


MAPS = ("anomaly_map", "base_map", "vcp_map")


@torch.no_grad()
def test_without_weight_the_maps_are_the_models(network):
    images = pixels(2)
    memory = for_model(network, pixels(2))
    expected, found = network(images), ReferencedModel(network, memory.with_weight(0))(images)
    for name in MAPS:
        assert torch.equal(found[name], expected[name]), name
    assert torch.equal(found.image_embeds, expected.image_embeds)


@torch.no_grad()
def test_with_full_weight_the_maps_are_the_memorys(network):
    images = pixels(2)
    memory = for_model(network, pixels(2), neighborhood=3)
    outputs = ReferencedModel(network, memory.with_weight(1))(images)
    states = network(images, output_hidden_states=True).hidden_states
    expected = nn.functional.interpolate(
        memory.distances(states, (6, 6))[:, None], size=(48, 48), mode="bilinear", align_corners=True
    )[:, 0]
    for name in (*MAPS, "reference_map"):
        torch.testing.assert_close(outputs[name], expected, rtol=0, atol=1e-7)
    assert outputs.reference_map.dtype == torch.float32 and outputs.hidden_states is None
    assert expected.min() > 0 and expected.max() < 1


@torch.no_grad()
@pytest.mark.parametrize("weight", [0.25, 0.7])
def test_maps_are_fused_by_the_weight(network, weight):
    images = pixels(2)
    memory = for_model(network, pixels(3)).with_weight(weight)
    zero_shot, found = network(images), ReferencedModel(network, memory)(images)
    for name in MAPS:
        expected = (1 - weight) * zero_shot[name] + weight * found.reference_map
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-6)
    # the fused map is that of the fused branches
    share = network.config.fusion_weight
    torch.testing.assert_close(
        found.anomaly_map, (1 - share) * found.base_map + share * found.vcp_map, rtol=0, atol=1e-6
    )


@torch.no_grad()
@pytest.mark.parametrize("weight", [0, 0.3, 1])
def test_maps_are_fused_by_their_logits_if_the_configuration_says_so(weight):
    network = tiny_model(reference_fusion="logits", feature_layers=[2, 4])
    images = pixels(2)
    memory = for_model(network, pixels(3)).with_weight(weight)
    zero_shot, found = network(images), ReferencedModel(network, memory)(images)
    logits = [torch.logit(each, eps=1e-4) for each in (zero_shot.vcp_map, found.reference_map)]
    expected = ((1 - weight) * logits[0] + weight * logits[1]).sigmoid()
    if weight in (0, 1):  # one of the maps, whatever its values
        expected = found.reference_map if weight else zero_shot.vcp_map
    torch.testing.assert_close(found.vcp_map, expected, rtol=0, atol=1e-6)
    # an image of the memory has distances of 0
    itself = ReferencedModel(network, for_model(network, images).with_weight(weight))(images)
    assert itself.anomaly_map.isfinite().all()
    assert "reference_fusion" not in tiny_model().config.to_dict()
    assert network.config.to_dict()["reference_fusion"] == "logits"


@torch.no_grad()
def test_relative_maps_of_a_batch_are_those_of_its_images_plain_and_accelerated():
    network = tiny_model(reference_fusion="logits")
    images = pixels(3)
    memory = for_model(network, pixels(2), distance="relative")
    plain, fast = (ReferencedModel(each, memory)(images) for each in (network, accelerate_inference(network)))
    for name in (*MAPS, "reference_map"):
        torch.testing.assert_close(fast[name], plain[name], rtol=0, atol=1e-5)
        for index, image in enumerate(images.split(1)):
            alone = ReferencedModel(network, memory)(image)
            torch.testing.assert_close(plain[name][index], alone[name][0], rtol=0, atol=1e-5)
    scaled = ReferencedModel(network, for_model(network, images))(images)
    assert (plain.reference_map - scaled.reference_map).abs().max() > 0.01


@torch.no_grad()
def test_plain_and_accelerated_agree(model):
    images, memory = pixels(2), for_model(model, pixels(3), neighborhood=3)
    plain, fast = (ReferencedModel(each, memory)(images) for each in (model, accelerate_inference(model)))
    for name in (*MAPS, "reference_map"):
        torch.testing.assert_close(fast[name], plain[name], rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_batch_is_its_images_one_by_one(network):
    images, referenced = pixels(4), ReferencedModel(network, for_model(network, pixels(3)))
    together = referenced(images)
    for index, image in enumerate(images.split(1)):
        for name in (*MAPS, "reference_map"):
            torch.testing.assert_close(together[name][index], referenced(image)[name][0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_reference_has_no_distance(network):
    images = pixels(2)
    memory = for_model(network, torch.cat([pixels(1), images]))
    assert ReferencedModel(network, memory)(images).reference_map.max() < 1e-6
    assert ReferencedModel(network, memory.without(1))(images).reference_map.amax(dim=(1, 2)).gt(1e-3).tolist() == [
        True,
        False,
    ]


@torch.no_grad()
def test_the_embedded_patches_can_be_a_layer(network):
    """Layer 0 depends on each patch alone: a changed patch has a distance, the others have none."""
    image = pixels(1)
    memory = for_model(network, image, layers=(0,)).with_weight(1)
    changed = image.clone()
    changed[:, :, 16:24, 8:16] = torch.randn(1, 3, 8, 8)
    # positions are part of the embedded patches
    states = network(changed, output_hidden_states=[0]).hidden_states
    distances = memory.distances(states, (6, 6))[0]
    assert distances[2, 1] > 1e-3
    distances[2, 1] = 0
    assert distances.max() < 1e-6
    outputs = ReferencedModel(network, memory)(changed)
    assert outputs.anomaly_map[0].argmax().item() // 48 in range(12, 28)


@torch.no_grad()
def test_images_that_are_not_square(network):
    references, image = pixels(2, 40, 64), pixels(1, 40, 64)
    memory = for_model(network, references)
    assert memory.num_patches == 2 * 5 * 8
    outputs = ReferencedModel(network, memory)(image)
    assert outputs.anomaly_map.shape == outputs.reference_map.shape == (1, 40, 64)
    assert ReferencedModel(network, memory)(references[:1]).reference_map.max() < 1e-6
    # the map has the rows of the image: a changed top gives distances there
    changed = references[:1].clone()
    changed[..., :8, :] += 3
    found = ReferencedModel(network, for_model(network, references, layers=(0,)))(changed).reference_map[0]
    assert found[:4].min() > 1e-4 and found[16:].max() < 1e-6


@torch.no_grad()
def test_scores_of_the_top_pixels_include_the_memory(model):
    processor = VCPCLIPImageProcessor.for_model(model.config, score_mode="top_k", top_k_fraction=0.1)
    image, memory = pixels(1), for_model(model, pixels(2)).with_weight(1)
    outputs = ReferencedModel(model, memory)(image)
    (result,) = processor.post_process_anomaly_segmentation(outputs, [(48, 48)])
    top = outputs.reference_map.flatten().sort(descending=True).values
    assert result["score"] == pytest.approx(2 * top[: round(0.1 * len(top))].mean().item(), abs=1e-4)


@torch.no_grad()
def test_autocast_keeps_the_search_in_the_precision_of_the_bank(model):
    images, memory = pixels(2), for_model(model, pixels(2))
    expected = ReferencedModel(model, memory)(images)
    with torch.autocast("cpu", torch.bfloat16):
        found = ReferencedModel(model, memory)(images)
    for name in (*MAPS, "reference_map"):
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0.03)


@torch.no_grad()
def test_a_model_in_bfloat16():
    model, images = tiny_model(), pixels(2)
    memory = for_model(model, pixels(2))
    expected = ReferencedModel(model, memory)(images)
    found = ReferencedModel(model.to(torch.bfloat16), memory)(images.bfloat16())
    for name in (*MAPS, "reference_map"):
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0.05)


@torch.no_grad()
def test_a_model_without_the_second_branch():
    model, images = tiny_model(use_post_vcp=False), pixels(2)
    memory = for_model(model, pixels(1)).with_weight(1)
    outputs = ReferencedModel(model, memory)(images)
    assert outputs.vcp_map is None and torch.equal(outputs.anomaly_map, outputs.reference_map)


@torch.no_grad()
def test_the_score_of_a_method_is_fused_with_the_highest_distance(model):
    """A stand-in for methods that have an image score of their own."""

    class WithScore(nn.Module):
        config, device = model.config, model.device

        def forward(self, pixel_values, **kwargs):
            outputs = model(pixel_values, **kwargs)
            outputs["image_scores"] = torch.tensor([0.2, 0.9])
            return outputs

    memory = for_model(model, pixels(1)).with_weight(0.25)
    outputs = ReferencedModel(WithScore(), memory)(pixels(2))
    highest = outputs.reference_map.flatten(1).amax(dim=1)
    torch.testing.assert_close(outputs.image_scores, 0.75 * torch.tensor([0.2, 0.9]) + 0.25 * highest)
