"""Tiles cover the image, blend without seams, share one prompt, and do not depend on their batch."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from tests.common import tiny_model, tiny_model_with_head
from vcp_clip_hf import VCPCLIPImageProcessor
from vcp_clip_hf.tiling import Tiling, segment_tiles, tile_starts


@pytest.fixture(scope="module")
def parts():
    model = tiny_model()
    return model, VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=0.0)


def picture(height: int, width: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def test_a_tiling_is_made_from_the_arguments_of_a_call():
    assert Tiling.of(None, None) is None
    tiling = Tiling.of(40, None, 2, 0.5)
    assert tiling == Tiling(40, 10, 2, 0.5)
    assert tiling.settings() == {"tile_size": 40, "tile_overlap": 10, "global_weight": 0.5}
    with pytest.raises(ValueError, match="tile_overlap=8 needs tile_size"):
        Tiling.of(None, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (40, 40)}, r"tile_size=\(40, 40\) must be a whole number"),
        ({"size": 40.5}, r"tile_size=40\.5 must be a whole number"),
        ({"size": 40, "batch_size": "4"}, "tile_batch_size='4' must be a whole number"),
        ({"size": 40, "global_weight": float("nan")}, "global_weight=nan"),
    ],
)
def test_values_of_a_tiling_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tiling(**arguments)


@pytest.mark.parametrize(
    ("length", "tile", "overlap"),
    [(100, 30, 10), (100, 30, 0), (31, 30, 5), (30, 30, 5), (12, 30, 5), (12000, 518, 64)],
)
def test_tiles_cover_a_side_and_overlap_enough(length, tile, overlap):
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0 and (length <= tile or starts[-1] == length - tile)
    for before, after in itertools.pairwise(starts):
        assert before < after <= before + tile - overlap + 1
    assert len(starts) <= max(1, np.ceil((length - overlap) / (tile - overlap)))


def test_one_tile_is_the_whole_image(parts):
    model, processor = parts
    image = picture(48, 48)
    maps = segment_tiles(model, processor, image, Tiling(48, 8))
    with torch.no_grad():
        expected = model(**processor(image, return_tensors="pt")).anomaly_map[0]
    assert maps.num_tiles == 1
    np.testing.assert_allclose(maps.anomaly_map, expected, atol=1e-5)


def test_tiles_are_prompted_by_the_whole_image_and_blended_by_their_weights(parts):
    model, processor = parts
    image = picture(48, 84)
    maps = segment_tiles(model, processor, image, Tiling(48, 12), with_branches=True)
    assert maps.num_tiles == 2 and maps.anomaly_map.shape == (48, 84)
    with torch.no_grad():
        _, whole = model.encode_image(processor(image, return_tensors="pt").pixel_values)
        left, right = (
            model(**processor(image.crop((x, 0, x + 48, 48)), return_tensors="pt"), image_embeds=whole)
            for x in (0, 36)
        )
    np.testing.assert_allclose(maps.anomaly_map[:, :36], left.anomaly_map[0][:, :36], atol=1e-5)
    np.testing.assert_allclose(maps.anomaly_map[:, 48:], right.anomaly_map[0][:, 12:], atol=1e-5)
    np.testing.assert_allclose(maps.vcp_map[:, :36], left.vcp_map[0][:, :36], atol=1e-5)
    # in the overlap, the weights change from one tile to the other
    ramp = (np.arange(12) + 0.5) / 12
    expected = left.anomaly_map[0][:, 36:].numpy() * (1 - ramp) + right.anomaly_map[0][:, :12].numpy() * ramp
    np.testing.assert_allclose(maps.anomaly_map[:, 36:48], expected, atol=1e-5)


def test_the_batch_of_tiles_changes_nothing(parts):
    model, processor = parts
    image = picture(100, 130)
    one, many = (segment_tiles(model, processor, image, Tiling(48, 12, batch_size=size)) for size in (1, 7))
    assert one.num_tiles == many.num_tiles == 12
    np.testing.assert_allclose(one.anomaly_map, many.anomaly_map, atol=1e-5)
    assert one.base_map is None and one.vcp_map is None


def test_the_global_map_can_be_mixed_in(parts):
    model, processor = parts
    image = picture(60, 90)
    tiles, both, whole = (
        segment_tiles(model, processor, image, Tiling(48, 12, global_weight=weight)).anomaly_map
        for weight in (0, 0.25, 1)
    )
    np.testing.assert_allclose(both, 0.75 * tiles + 0.25 * whole, atol=1e-5)
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    (expected,) = processor.post_process_anomaly_segmentation(outputs, [(60, 90)])
    np.testing.assert_allclose(whole, expected["anomaly_map"], atol=1e-5)


def test_images_smaller_than_a_tile(parts):
    model, processor = parts
    maps = segment_tiles(model, processor, picture(20, 100), Tiling(48, 12))
    assert maps.anomaly_map.shape == (20, 100) and maps.num_tiles == 3
    assert maps.anomaly_map.min() >= 0 and maps.anomaly_map.max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 48, "overlap": 48}, "tile_overlap=48"),
        ({"size": 0}, "tile_size=0"),
        ({"size": 48, "batch_size": 0}, "tile_batch_size=0"),
        ({"size": 48, "global_weight": 2.0}, "global_weight=2.0"),
    ],
)
def test_wrong_values_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tiling(**arguments)


def test_tiles_overlap_by_a_quarter_by_default():
    assert Tiling(50).overlap == 12


@torch.no_grad()
def test_the_models_own_score_is_that_of_the_whole_image():
    model = tiny_model_with_head()
    processor, image = VCPCLIPImageProcessor.for_model(model.config), picture(90, 120)
    maps = segment_tiles(model, processor, image, Tiling(48))
    expected = model(**processor(image, return_tensors="pt")).image_scores
    torch.testing.assert_close(maps.image_scores, expected)
    assert segment_tiles(tiny_model(), processor, image, Tiling(48)).image_scores is None
