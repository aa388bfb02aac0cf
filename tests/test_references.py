"""The memory of normal pictures: distances, file, hash and image tower, against loops and published numbers."""

import hashlib
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
from tests.memories import GRID, WIDTH, for_model, memory_of, small_picture, states_of
from vcp_clip_hf import accelerate_inference
from vcp_clip_hf.memory_builder import MemoryBuilder
from vcp_clip_hf.memory_settings import MemorySettings
from vcp_clip_hf.nearest_patches import nearest_distance
from vcp_clip_hf.patch_tokens import averaged_over_neighbors
from vcp_clip_hf.references import REFERENCES_FILE, ReferenceMemory, check_weight, picture_digest, tower_weights


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


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan"), True, "0.5", None])
def test_weights_out_of_range_are_refused(weight):
    with pytest.raises(ValueError, match=r"reference_weight=.* must lie in \[0, 1\]"):
        check_weight(weight)
    with pytest.raises(ValueError, match="reference_weight"):
        memory_of(1).with_weight(weight)


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
    monkeypatch.setattr("vcp_clip_hf.memory_settings.asdict", lambda settings: hashed.append(1) or {})
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


def test_a_tower_without_a_shared_weight_is_another_one():
    model = tiny_model()
    memory = for_model(model, pixels(1))
    bare = SimpleNamespace(clip=SimpleNamespace(vision_model=nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"all of .* compared weights differ"):
        memory.check_tower(bare)
    # a memory made by hand names no weights
    memory.tower = {}
    memory.check_tower(bare)
