"""From normal pictures to a memory: copies, tiles, sizes, duplicates, unreadable files, and the checkpoint's file."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests.common import tiny_hybrid, tiny_model
from tests.pipeline_run import picture
from vcp_clip_hf import VCPCLIPImageProcessor, accelerate_inference, reference_pictures
from vcp_clip_hf.memory_settings import COPIES
from vcp_clip_hf.patch_tokens import averaged_over_neighbors, states_of
from vcp_clip_hf.reference_pictures import (
    build_memory,
    find_references,
    image_conditions,
    picture_digests,
    save_references,
)
from vcp_clip_hf.referenced_model import ReferencedModel
from vcp_clip_hf.references import REFERENCES_FILE, ReferenceMemory, picture_digest
from vcp_clip_hf.tiling import Tiling, segment_tiles, tiles_of


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(333)
    return tiny_model()


@pytest.fixture(scope="module")
def processor(model):
    return VCPCLIPImageProcessor.for_model(model.config)


@pytest.fixture
def warned(monkeypatch) -> list[str]:
    messages = []
    monkeypatch.setattr(reference_pictures.logger, "warning", messages.append)
    return messages


@torch.no_grad()
def distances(model, processor, memory, image: Image.Image) -> torch.Tensor:
    """Return the memory's map of a picture, at the model's size."""
    inputs = processor(image, return_tensors="pt").pixel_values
    return ReferencedModel(model, memory)(inputs).reference_map[0]


# --- pictures -------------------------------------------------------------------------------------------------------


def test_a_memory_of_pictures(model, processor):
    pictures = [picture(48, 48, seed) for seed in range(3)]
    memory = build_memory(model, processor, pictures, weight=0.2, source="line 4")
    assert memory.pictures == [picture_digest(each) for each in pictures] and memory.exact
    assert memory.num_patches == 3 * 36 and memory.weight == 0.2 and memory.source == "line 4"
    assert memory.settings.layers == tuple(model.config.feature_layers) and memory.settings.neighborhood == 1
    assert memory.conditions == {"input_range": None, "size": [48, 48], "resize_mode": "squash", "tiling": None}
    assert memory.conditions == json.loads(json.dumps(memory.conditions))
    for each in pictures:
        assert distances(model, processor, memory, each).max() < 1e-6
    assert distances(model, processor, memory, picture(48, 48, 9)).min() > 1e-3


def test_the_configuration_has_the_defaults():
    model = tiny_model(reference_layers=[0, 2], reference_neighborhood=3, reference_weight=0.7)
    processor = VCPCLIPImageProcessor.for_model(model.config)
    memory = build_memory(model, processor, [picture(48, 48)])
    assert memory.settings.layers == (0, 2) and memory.settings.neighborhood == 3 and memory.weight == 0.7
    others = build_memory(model, processor, [picture(48, 48)], layers=[1], neighborhood=1, weight=0)
    assert others.settings.layers == (1,) and others.settings.neighborhood == 1 and others.weight == 0
    assert not others.settings.is_relative and not others.spacing
    model.config.reference_distance = "relative"
    relative = build_memory(model, processor, [picture(48, 48)])
    assert relative.settings.is_relative and relative.spacing.keys() == {0, 2}
    assert not build_memory(model, processor, [picture(48, 48)], distance="scaled").settings.is_relative


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_batch_size_changes_nothing(model, processor, batch_size):
    pictures = [picture(60, 80, seed) for seed in range(4)]
    settings = {"copies": "flips", "distance": "relative"}
    expected = build_memory(model, processor, pictures, batch_size=5, **settings)
    memory = build_memory(model, processor, iter(pictures), batch_size=batch_size, **settings)
    for layer, bank in expected.banks.items():
        torch.testing.assert_close(memory.banks[layer], bank, rtol=0, atol=1e-5)
        torch.testing.assert_close(memory.spacing[layer], expected.spacing[layer], rtol=0, atol=1e-5)
        assert torch.equal(memory.rows_of[layer], expected.rows_of[layer])
    assert memory.pictures == expected.pictures and memory.num_patches == 4 * 3 * 36


def test_the_accelerated_copy_makes_the_same_memory(model, processor):
    pictures = [picture(48, 48, seed) for seed in range(2)]
    plain, fast = (build_memory(each, processor, pictures) for each in (model, accelerate_inference(model)))
    for layer, bank in plain.banks.items():
        torch.testing.assert_close(fast.banks[layer], bank, rtol=0, atol=1e-6)
    fast.check_tower(model)
    plain.check_tower(accelerate_inference(model))


@pytest.mark.parametrize("copies", COPIES)
def test_copies_find_a_turned_picture(model, processor, copies):
    image = picture(48, 48)
    memory = build_memory(model, processor, [image], copies=copies)
    assert memory.num_patches == 36 * (1 + len(COPIES[copies])) and len(memory.pictures) == 1
    for turn in Image.Transpose:
        found = distances(model, processor, memory, image.transpose(turn)).max().item()
        assert (found < 1e-5) == (turn in COPIES[copies]), turn
    # a copy is a part of its picture: without the picture, nothing of it is left
    assert all(len(bank) == 0 for bank in memory.without(0).banks.values())


def test_the_same_picture_counts_once(model, processor, warned, tmp_path):
    image = picture(48, 48)
    image.save(tmp_path / "a.png")
    memory = build_memory(model, processor, [image, picture(48, 48, 1), tmp_path / "a.png", np.asarray(image)])
    assert len(memory.pictures) == 2 and memory.num_patches == 72
    assert warned == ["References that are copies of others, pixel by pixel, and are left out: 2"]


def test_references_that_cannot_be_read(model, processor, warned, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    images = [picture(48, 48), tmp_path / "bad.png", picture(48, 48, 1), tmp_path / "missing.png"]
    with pytest.raises(ValueError, match=r"bad\.png"):
        build_memory(model, processor, images)
    memory = build_memory(model, processor, images, on_error="return")
    assert len(memory.pictures) == 2 and "could not be read and are left out: 2: " in warned[0]
    assert "bad.png" in warned[0] and "missing.png" in warned[0]
    assert [path for path, _ in memory.unreadable] == [str(images[1]), str(images[3])]
    assert not ReferenceMemory.load(memory.save(tmp_path)).unreadable
    with pytest.raises(ValueError, match=r"None of the references could be read: .*bad\.png"):
        build_memory(model, processor, images[1:2], on_error="return")
    with pytest.raises(ValueError, match=r"on_error='skip' must be \"raise\" or \"return\""):
        build_memory(model, processor, images, on_error="skip")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": [5]}, r"layers=\(5,\) must lie in 0..4: the image tower has 4 blocks"),
        ({"layers": []}, "at least one"),
        ({"weight": 2}, "reference_weight=2"),
        ({"distance": "far"}, "distance='far' must be one of"),
        ({"neighborhood": 0}, "neighborhood=0"),
        ({"copies": "turned"}, "copies='turned'"),
        ({"max_patches": -1}, "max_patches=-1"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number, 1 or more"),
        ({"tile_overlap": 3}, "needs tile_size"),
    ],
)
def test_wrong_arguments_are_refused(model, processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_memory(model, processor, [picture(48, 48)], **arguments)


def test_no_pictures_are_refused(model, processor):
    with pytest.raises(ValueError, match="at least one normal picture"):
        build_memory(model, processor, [])


def test_data_of_16_bits_are_read_by_their_range(model):
    values = np.random.default_rng(0).integers(0, 4096, (48, 48), dtype=np.uint16)
    processor = VCPCLIPImageProcessor.for_model(model.config, input_range=[0, 4095])
    memory = build_memory(model, processor, [values])
    assert (
        memory.pictures
        == build_memory(model, VCPCLIPImageProcessor.for_model(model.config), [values], input_range=(0, 4095)).pictures
    )
    assert picture_digests([values], processor) == memory.pictures
    for other in (
        picture_digests([values // 2], processor),
        picture_digests([values], processor, input_range=(0, 9999)),
    ):
        assert other != memory.pictures


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resize_mode", ["squash", "pad", "keep_ratio"])
def test_pictures_of_any_shape(model, resize_mode):
    processor = VCPCLIPImageProcessor.for_model(model.config, resize_mode=resize_mode)
    pictures = [picture(60, 80), picture(100, 40, 1), picture(48, 48, 2)]
    memory = build_memory(model, processor, pictures, copies="rotations", batch_size=3)
    assert memory.conditions["resize_mode"] == resize_mode and memory.pictures == [*map(picture_digest, pictures)]
    for each in pictures:
        inputs = processor(each, return_tensors="pt").pixel_values
        with torch.no_grad():
            found = ReferencedModel(model, memory)(inputs).reference_map
        assert found.shape[-2:] == inputs.shape[-2:] and found.max() < 1e-5
    if resize_mode == "keep_ratio":
        sizes = [processor(each, return_tensors="pt").pixel_values.shape[-2:] for each in pictures]
        assert len(set(sizes)) > 1
        assert memory.num_patches == 4 * sum(height // 8 * (width // 8) for height, width in sizes)


# --- tiles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("global_weight", [0.0, 0.3])
def test_a_tiled_reference_has_no_distance_in_tiles(model, processor, global_weight):
    image = picture(90, 120)
    tiling = Tiling(60, 20, global_weight=global_weight)
    memory = build_memory(
        model, processor, [image], weight=1, tile_size=60, tile_overlap=20, global_weight=global_weight
    )
    views = len(list(tiles_of(image, tiling))) + bool(global_weight)
    assert memory.num_patches == 36 * views and len(memory.pictures) == 1
    assert memory.conditions["tiling"] == tiling.settings()
    maps = segment_tiles(ReferencedModel(model, memory), processor, image, tiling)
    assert maps.anomaly_map.shape == (90, 120) and maps.anomaly_map.max() < 1e-5
    other = segment_tiles(ReferencedModel(model, memory), processor, picture(90, 120, 3), tiling)
    assert other.anomaly_map.min() > 1e-3


def test_tiles_are_squashed_like_those_of_images(model):
    processor = VCPCLIPImageProcessor.for_model(model.config, resize_mode="pad")
    image = picture(50, 120)
    memory = build_memory(model, processor, [image], weight=1, tile_size=60)
    maps = segment_tiles(ReferencedModel(model, memory), processor, image, Tiling(60))
    assert maps.anomaly_map.max() < 1e-5


# --- recognition ----------------------------------------------------------------------------------------------------


def test_references_are_recognized_by_their_pixels(processor, tmp_path):
    images = [picture(48, 48, 0), picture(48, 48, 1)]
    images[1].save(tmp_path / "one.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    turned = images[0].transpose(Image.Transpose.ROTATE_90)
    found = picture_digests([*images, tmp_path / "one.png", turned, tmp_path / "bad.png"], processor)
    assert found[:2] == [picture_digest(each) for each in images]
    assert found[2] == found[1] and found[3] not in found[:3] and found[4] is None


# --- the checkpoint's file ------------------------------------------------------------------------------------------


def test_the_file_is_found_by_the_model_that_it_lies_beside(model, processor, tmp_path):
    memory = build_memory(model, processor, [picture(48, 48)])
    assert find_references(model) is None, "a model that was never saved"
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert find_references(loaded) is None
    save_references(memory, tmp_path)
    found = find_references(loaded)
    assert found.digest == memory.digest and found.weight == memory.weight
    save_references(None, tmp_path)
    assert not (tmp_path / REFERENCES_FILE).exists() and find_references(loaded) is None
    save_references(None, tmp_path)


def test_a_model_whose_folder_is_gone_has_no_references(model, tmp_path):
    folder = tmp_path / "runs" / "7" / "last"
    model.save_pretrained(folder)
    loaded = type(model).from_pretrained(folder)
    shutil.rmtree(tmp_path / "runs")
    assert find_references(loaded) is None


@pytest.mark.parametrize("source", ["alice/never_pushed", "train.pth", "somewhere else"])
def test_a_name_that_is_no_folder_has_no_references(model, source):
    loaded = tiny_model()
    loaded.name_or_path = source
    assert find_references(loaded) is None


def test_the_file_of_another_tower_is_refused(model, processor, tmp_path):
    memory = build_memory(model, processor, [picture(48, 48)])
    torch.manual_seed(5)
    other = tiny_model()
    other.save_pretrained(tmp_path)
    memory.save(tmp_path)
    with pytest.raises(ValueError, match=rf"another image tower.*delete {REFERENCES_FILE} from the checkpoint"):
        find_references(type(other).from_pretrained(tmp_path))
    (tmp_path / REFERENCES_FILE).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cannot be read as a memory of references"):
        find_references(type(other).from_pretrained(tmp_path))


def test_conditions_are_those_of_the_image_processor(model):
    processor = VCPCLIPImageProcessor.for_model(model.config, resize_mode="pad", size={"height": 56, "width": 64})
    assert image_conditions(processor, Tiling(30), (0, 4095)) == {
        "input_range": [0.0, 4095.0],
        "size": [56, 64],
        "resize_mode": "pad",
        "tiling": {"tile_size": 30, "tile_overlap": 7, "global_weight": 0.0},
    }


def test_a_saved_memory_is_bit_equal(model, processor, tmp_path):
    memory = build_memory(model, processor, [picture(48, 48), picture(60, 80, 1)], tile_size=40, copies="flips")
    loaded = ReferenceMemory.load(memory.save(tmp_path))
    assert loaded.digest == memory.digest and loaded.tower == memory.tower and loaded.conditions == memory.conditions
    loaded.check_tower(model)


# --- the features of a convolutional stem ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hybrid():
    torch.manual_seed(333)
    return tiny_hybrid(reference_layers=["stem", 4])


def stem_tokens(model, processor, image: Image.Image) -> torch.Tensor:
    """Return the stem's features of a picture, (patches, 176)."""
    stem = model.clip.vision_model.embeddings.patch_embedding.stem
    features = stem(processor(image, return_tensors="pt").pixel_values).features
    return features[0].flatten(1).T


@pytest.mark.parametrize("layers", [["stem"], ["stem", 4]])
@torch.no_grad()
def test_a_memory_of_a_stems_features(hybrid, processor, layers, tmp_path):
    pictures = [picture(48, 48, seed) for seed in range(3)]
    memory = build_memory(hybrid, processor, pictures, layers=layers, neighborhood=3, scale=2.0)
    assert memory.settings.layers == tuple(layers) and memory.exact and memory.num_patches == 3 * 36
    assert [memory.banks[layer].shape[1] for layer in layers] == [176, 64][: len(layers)]

    # a plain reading: the mean over neighbors, the nearest of all patches of all pictures, the mean over layers
    new = picture(48, 48, 9)
    tokens = [stem_tokens(hybrid, processor, each) for each in (*pictures, new)]
    averaged = torch.stack([averaged_over_neighbors(each[None], (6, 6), 3)[0] for each in tokens])
    units = torch.nn.functional.normalize(averaged, dim=-1)
    expected = (1 - (units[3] @ units[:3].flatten(0, 1).T).amax(dim=1)) / 2
    if len(layers) == 2:
        others = build_memory(hybrid, processor, pictures, layers=[4], neighborhood=3)
        inputs = processor(new, return_tensors="pt").pixel_values
        states = hybrid(inputs, output_hidden_states=[4]).hidden_states
        expected = (expected + others.distances(states, (6, 6)).flatten()) / 2
    outputs = hybrid(processor(new, return_tensors="pt").pixel_values, output_hidden_states=layers)
    found = memory.distances(states_of(outputs, layers), (6, 6))
    torch.testing.assert_close(found.flatten(), 2 * expected, atol=1e-5, rtol=0)
    assert found.max() > 0.01

    memory.save(tmp_path)
    loaded = ReferenceMemory.load(tmp_path / REFERENCES_FILE)
    assert loaded.settings == memory.settings and loaded.digest == memory.digest
    assert all(torch.equal(loaded.banks[layer], memory.banks[layer]) for layer in layers)
    loaded.check_tower(hybrid)
    for each in pictures:
        assert distances(hybrid, processor, loaded, each).max() < 1e-5
        # left out, a picture is like a new one
        assert distances(hybrid, processor, loaded.for_new_picture(each), each).max() > 1e-3
    loaded.banks["stem"][0, 0] += 1
    del loaded.digest
    assert loaded.digest != memory.digest


@torch.no_grad()
def test_a_memory_of_a_stem_needs_no_second_run_and_the_accelerated_copy_has_it_too(hybrid, processor):
    pictures = [picture(48, 48, seed) for seed in range(2)]
    memory = build_memory(hybrid, processor, pictures)
    assert memory.settings.layers == ("stem", 4)
    fast = accelerate_inference(hybrid)
    for layer, bank in build_memory(fast, processor, pictures).banks.items():
        torch.testing.assert_close(bank, memory.banks[layer], atol=1e-6, rtol=0)
    inputs, calls = processor(picture(48, 48, 5), return_tensors="pt").pixel_values, []
    for model in (hybrid, fast):
        stem = model.clip.vision_model.embeddings.patch_embedding.stem
        handle = stem.register_forward_hook(lambda *_: calls.append(1))
        outputs = ReferencedModel(model, memory)(inputs)
        handle.remove()
        assert outputs.stem_features is None and outputs.hidden_states is None
    assert len(calls) == 2


def test_a_memory_of_another_stem_is_refused(hybrid, processor):
    memory = build_memory(hybrid, processor, [picture(48, 48)])
    other = copy.deepcopy(hybrid)
    with torch.no_grad():
        other.clip.vision_model.embeddings.patch_embedding.stem.blocks[3].project.weight.mul_(1.1)
    with pytest.raises(ValueError, match=r"1 of \d+ compared weights differ"):
        memory.check_tower(other)


def test_a_memory_of_a_stem_that_is_not_there(model, processor):
    with pytest.raises(ValueError, match="this tower has none"):
        build_memory(model, processor, [picture(48, 48)], layers=["stem"])
    with pytest.raises(ValueError, match=r"layers=\('stem', 5\) must lie in 0..4"):
        build_memory(tiny_hybrid(), processor, [picture(48, 48)], layers=["stem", 5])
    with pytest.raises(ValueError, match=r"layers=\('root',\) must lie in 0..4"):
        build_memory(model, processor, [picture(48, 48)], layers=["root"])
