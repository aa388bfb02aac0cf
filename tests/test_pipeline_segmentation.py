"""What the pipeline computes of an image, as a whole and in tiles: maps, scores and number formats."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from tests.pipeline_run import SIZES, picture, pipeline_with_head, save_checkpoint
from vcp_clip_hf import VCPCLIPImageProcessor


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def inspect(checkpoint):
    return pipeline("anomaly-segmentation", model=str(checkpoint))


@pytest.fixture(scope="module")
def pictures():
    return [picture(*size, seed=index) for index, size in enumerate(SIZES)]


def test_ratio_keeping_modes(checkpoint, pictures):
    for mode in ("pad", "keep_ratio"):
        processor = VCPCLIPImageProcessor.from_pretrained(checkpoint, resize_mode=mode)
        padded = pipeline("anomaly-segmentation", model=str(checkpoint), image_processor=processor)
        for image in pictures:
            result = padded(image, output_branch_maps=True, output_layer_maps=True)
            for name in ("anomaly_map", "base_map", "vcp_map"):
                assert result[name].shape == (image.height, image.width)
            assert result["vcp_layer_maps"].shape == (4, image.height, image.width)


def test_score_modes_and_smoothing(inspect, pictures):
    image = pictures[0]
    rough = inspect(image, smoothing_sigma=0.0)
    assert rough["anomaly_map"].std() > inspect(image, smoothing_sigma=4.0)["anomaly_map"].std()
    top = inspect(image, score_mode="top_k", top_k_fraction=1.0, output_branch_maps=True, threshold=0.5)
    with torch.no_grad():
        outputs = inspect.model(**inspect.image_processor(image, return_tensors="pt"))
    assert top["score"] == pytest.approx((outputs.base_map.mean() + outputs.vcp_map.mean()).item(), abs=1e-5)
    assert top["label"] is None and top["mask"] is not None


def test_layer_and_branch_maps_and_uncertainty(inspect, pictures):
    image = pictures[1]  # it has the model's own size, so that no map is resized
    result = inspect(
        image, output_branch_maps=True, output_layer_maps=True, output_uncertainty=True, smoothing_sigma=0.0
    )
    assert result["base_layer_maps"].shape == result["vcp_layer_maps"].shape == (4, 48, 48)
    np.testing.assert_allclose(result["base_layer_maps"].mean(axis=0), result["base_map"], atol=1e-6)
    a = inspect.model.config.fusion_weight
    np.testing.assert_allclose((1 - a) * result["base_map"] + a * result["vcp_map"], result["anomaly_map"], atol=1e-6)
    spread = np.concatenate([result["base_layer_maps"], result["vcp_layer_maps"]]).std(axis=0)
    np.testing.assert_allclose(result["uncertainty_map"], spread, atol=1e-6)
    assert result["uncertainty"] == pytest.approx(spread.flatten()[result["anomaly_map"].argmax()], abs=1e-6)


def test_region_of_interest(inspect, pictures, tmp_path):
    image = pictures[0]
    whole = inspect(image)["anomaly_map"]
    roi = np.zeros((image.height, image.width), bool)
    roi[:, :30] = True
    Image.fromarray(roi).save(tmp_path / "roi.png")
    for mask in (roi, Image.fromarray(roi), str(tmp_path / "roi.png")):
        result = inspect(image, roi_mask=mask)
        assert not result["anomaly_map"][:, 31:].any()
        np.testing.assert_allclose(result["anomaly_map"][:, :28], whole[:, :28], atol=1e-5)
        assert result["score"] == pytest.approx(whole[:, :30].max(), abs=1e-6)
    with pytest.raises(ValueError, match=r"roi_mask is \(10, 10\)"):
        inspect(image, roi_mask=np.ones((10, 10)))


def test_tiles(inspect, pictures):
    image = picture(130, 200, seed=9)
    result = inspect(
        image, tile_size=48, tile_overlap=16, tile_batch_size=3, threshold=0.5, regions=True, heatmap=True
    )
    assert result["anomaly_map"].shape == (130, 200) and result["heatmap"].size == (200, 130)
    assert result["score"] == pytest.approx(result["anomaly_map"].max())
    top = inspect(image, tile_size=48, score_mode="top_k", top_k_fraction=0.01, output_branch_maps=True)
    expected = sum(np.sort(top[name].ravel())[-260:].mean() for name in ("base_map", "vcp_map"))
    assert top["score"] == pytest.approx(expected, abs=1e-5)
    mixed = inspect([image, pictures[0]], tile_size=48, batch_size=2)
    np.testing.assert_allclose(mixed[0]["anomaly_map"], inspect(image, tile_size=48)["anomaly_map"], atol=1e-5)
    roi = np.zeros((130, 200), bool)
    roi[:50] = True
    inside = inspect(image, tile_size=48, roi_mask=roi)
    assert not inside["anomaly_map"][50:].any() and inside["score"] == pytest.approx(inside["anomaly_map"].max())
    with pytest.raises(ValueError, match="tile_size out"):
        inspect(image, tile_size=48, output_uncertainty=True)


def test_the_score_of_the_image_head(inspect, pictures):
    with_head = pipeline_with_head()
    with torch.no_grad():
        inputs = with_head.image_processor(pictures, return_tensors="pt")
        expected = with_head.model(**inputs).image_scores.tolist()
    results = with_head(pictures, score_mode="image_head", batch_size=2)
    assert [result["score"] for result in results] == pytest.approx(expected, abs=1e-6)
    for result, by_map in zip(results, with_head(pictures), strict=True):
        np.testing.assert_allclose(result["anomaly_map"], by_map["anomaly_map"], atol=1e-6)
    # tiles change the map, and the score is that of the whole image
    image = picture(130, 200, seed=9)
    tiled, whole = (with_head(image, score_mode="image_head", **tiles) for tiles in ({"tile_size": 48}, {}))
    assert tiled["score"] == pytest.approx(whole["score"], abs=1e-6)
    assert np.abs(tiled["anomaly_map"] - whole["anomaly_map"]).max() > 1e-3
    for tiles in ({}, {"tile_size": 48}):
        with pytest.raises(ValueError, match="scores the whole image"):
            with_head(image, score_mode="image_head", roi_mask=np.ones((130, 200), bool), **tiles)
        with pytest.raises(ValueError, match=r"outputs\.image_scores is None.*--trainable image_head"):
            inspect(image, score_mode="image_head", **tiles)


def test_number_formats(checkpoint, pictures):
    exact = pipeline("anomaly-segmentation", model=str(checkpoint), device="cpu")(pictures[0])
    half = pipeline("anomaly-segmentation", model=str(checkpoint), dtype=torch.bfloat16, device=-1)
    assert half.model.dtype == torch.bfloat16
    result = half(pictures[0])
    assert result["anomaly_map"].dtype == np.float32
    assert abs(result["anomaly_map"] - exact["anomaly_map"]).mean() < 0.03


def test_a_small_region_of_interest_is_inspected(inspect):
    """Check this also for a pixel that no pixel of the model's map falls on."""
    image, inside = picture(300, 310, seed=3), np.zeros((300, 310), bool)
    inside[101, 77] = True
    result = inspect(image, roi_mask=inside, threshold=0.0)
    assert result["score"] == pytest.approx(inspect(image)["anomaly_map"][101, 77], abs=1e-6) and result["score"] > 0
    np.testing.assert_array_equal(np.asarray(result["mask"]) > 0, inside)
    # The score of the branches is read at the size of the model's map, from the pixel that contains the region
    branches = inspect(image, roi_mask=inside, score_mode="top_k", top_k_fraction=1e-9, output_branch_maps=True)
    assert 0 < branches["score"] <= 2


@pytest.mark.parametrize("accelerate", [True, False])
def test_results_under_autocast_are_float32(checkpoint, accelerate):
    pipe = pipeline("anomaly-segmentation", model=str(checkpoint), accelerate=accelerate)
    image = picture(60, 80)
    expected = pipe(image)["anomaly_map"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for options in ({}, {"tile_size": 64}):
            anomaly_map = pipe(image, **options)["anomaly_map"]
            assert anomaly_map.dtype == np.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_allclose(pipe(image)["anomaly_map"], expected, atol=0.05)
