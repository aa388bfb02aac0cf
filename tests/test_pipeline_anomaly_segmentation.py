"""Every kind of input, every option and every error of `pipeline("anomaly-segmentation")`."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from datasets import Image as ImageFeature
from PIL import Image
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

import vcp_clip_hf
from tests.common import tiny_model, tiny_model_with_head, tiny_tokenizer
from vcp_clip_hf import AnomalySegmentationPipeline, VCPCLIPImageProcessor
from vcp_clip_hf.accelerated_inference import AcceleratedVCPCLIPModel
from vcp_clip_hf.acceleration_settings import Acceleration
from vcp_clip_hf.anomaly_result import finish
from vcp_clip_hf.call_arguments import argument_names
from vcp_clip_hf.thresholds import _warn_once


SIZES = [(60, 80), (48, 48), (33, 120), (100, 40), (70, 70)]


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model = tiny_model()
    model.save_pretrained(folder)
    VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=2.0).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def inspect(checkpoint):
    return pipeline("anomaly-segmentation", model=str(checkpoint))


@pytest.fixture
def fresh(checkpoint):
    """Make a pipeline that the test may change."""
    return pipeline("anomaly-segmentation", model=str(checkpoint))


@pytest.fixture(scope="module")
def pictures():
    return [picture(*size, seed=index) for index, size in enumerate(SIZES)]


def assert_same(result, expected, atol=1e-5):
    assert result["score"] == pytest.approx(expected["score"], abs=atol)
    np.testing.assert_allclose(result["anomaly_map"], expected["anomaly_map"], atol=atol)
    assert result["label"] == expected["label"]


# --- the result -----------------------------------------------------------------------------------------------------


def test_the_result_is_that_of_model_and_image_processor(inspect, pictures):
    for image in pictures:
        result = inspect(image)
        assert list(result) == ["score", "label", "threshold", "image_threshold", "anomaly_map", "mask"]
        assert isinstance(inspect, AnomalySegmentationPipeline)
        anomaly_map = result["anomaly_map"]
        assert isinstance(anomaly_map, np.ndarray) and anomaly_map.dtype == np.float32
        assert anomaly_map.shape == (image.height, image.width)
        assert anomaly_map.min() >= 0 and anomaly_map.max() <= 1 and isinstance(result["score"], float)
        # no silent default of 0.5 without a threshold
        assert result["label"] is result["mask"] is result["threshold"] is result["image_threshold"] is None
        with torch.no_grad():
            outputs = inspect.model(**inspect.image_processor(image, return_tensors="pt"))
        (expected,) = inspect.image_processor.post_process_anomaly_segmentation(outputs, [(image.height, image.width)])
        np.testing.assert_allclose(anomaly_map, expected["anomaly_map"], atol=1e-6)


def test_threshold_gives_mask_and_label(inspect, pictures):
    score = inspect(pictures[0])["score"]
    low, high = (inspect(pictures[0], threshold=score + shift) for shift in (-0.01, 0.01))
    assert (low["label"], high["label"]) == ("anomalous", "normal")
    assert low["mask"].mode == "L" and low["mask"].size == pictures[0].size
    np.testing.assert_array_equal(
        np.asarray(low["mask"]), np.where(low["anomaly_map"] >= low["threshold"], 255, 0).astype(np.uint8)
    )
    assert low["threshold"] == low["image_threshold"] == score - 0.01
    apart = inspect(pictures[0], threshold=score - 0.01, image_threshold=0.999)
    assert apart["label"] == "normal" and np.asarray(apart["mask"]).any()


# --- inputs ---------------------------------------------------------------------------------------------------------


def test_every_kind_of_image(inspect, pictures, tmp_path):
    image = pictures[0]
    expected = inspect(image)
    image.save(tmp_path / "image.png")
    values = np.asarray(image)
    for source in (
        str(tmp_path / "image.png"),
        tmp_path / "image.png",
        (tmp_path / "image.png").read_bytes(),
        values,
        values.astype(np.float32) / 255,
        torch.from_numpy(values.transpose(2, 0, 1).copy()),
    ):
        assert_same(inspect(source), expected)
    assert inspect(np.asarray(image.convert("L")))["anomaly_map"].shape == values.shape[:2]
    batch = inspect(np.stack([values, values]))
    assert isinstance(batch, list) and len(batch) == 2
    assert_same(batch[1], expected)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_every_kind_of_collection_and_any_batch(inspect, pictures, batch_size, tmp_path):
    expected = [inspect(image) for image in pictures]
    for index, image in enumerate(pictures):
        image.save(tmp_path / f"{index}.png")
    paths = [str(tmp_path / f"{index}.png") for index in range(len(pictures))]

    class TorchDataset(torch.utils.data.Dataset):
        def __len__(self):
            return len(pictures)

        def __getitem__(self, index):
            return pictures[index]

    table = Dataset.from_dict({"image": paths, "mask": paths, "name": ["a"] * 5}).cast_column("image", ImageFeature())
    for collection in (
        list(pictures),
        tuple(pictures),
        paths,
        (image for image in pictures),
        TorchDataset(),
        KeyDataset(table, "image"),
        table,
        table.to_iterable_dataset(),
    ):
        results = inspect(collection, batch_size=batch_size)
        assert isinstance(results, list) == isinstance(collection, (list, tuple))
        count = 0
        for result, wanted in zip(results, expected, strict=True):
            assert_same(result, wanted)
            count += 1
        assert count == len(pictures)


def test_workers_read_ahead(inspect, pictures, tmp_path):
    paths = []
    for index, image in enumerate(pictures):
        image.save(tmp_path / f"{index}.png")
        paths.append(str(tmp_path / f"{index}.png"))
    for result, image in zip(inspect(paths, num_workers=2, batch_size=2), pictures, strict=True):
        assert_same(result, inspect(image))


def test_the_image_column_of_a_dataset(inspect, pictures):
    table = Dataset.from_dict({"photo": [pictures[1]], "extra": [pictures[1]]})
    with pytest.raises(ValueError, match="image_column"):
        inspect(table)
    (result,) = inspect(table, image_column="photo")
    assert_same(result, inspect(pictures[1]))
    with pytest.raises(ValueError, match="'foto' is not among the columns"):
        inspect(table, image_column="foto")
    (result,) = inspect(table.remove_columns("extra"))
    assert_same(result, inspect(pictures[1]))

    def rows():
        yield {"image": pictures[1]}

    (result,) = inspect(IterableDataset.from_generator(rows))
    assert_same(result, inspect(pictures[1]))


def test_ratio_keeping_modes(checkpoint, pictures):
    for mode in ("pad", "keep_ratio"):
        processor = VCPCLIPImageProcessor.from_pretrained(checkpoint, resize_mode=mode)
        padded = pipeline("anomaly-segmentation", model=str(checkpoint), image_processor=processor)
        for image in pictures:
            result = padded(image, output_branch_maps=True, output_layer_maps=True)
            for name in ("anomaly_map", "base_map", "vcp_map"):
                assert result[name].shape == (image.height, image.width)
            assert result["vcp_layer_maps"].shape == (4, image.height, image.width)


# --- options --------------------------------------------------------------------------------------------------------


def test_regions(inspect, pictures):
    image = pictures[0]
    threshold = float(np.quantile(inspect(image)["anomaly_map"], 0.8))
    result = inspect(image, threshold=threshold, regions=True)
    assert result["regions"], "the map must have regions for this test"
    assert sum(region["area"] for region in result["regions"]) == (np.asarray(result["mask"]) > 0).sum()
    assert result["regions"][0]["score"] == pytest.approx(result["anomaly_map"].max())
    smallest = min(region["area"] for region in result["regions"])
    fewer = inspect(image, threshold=threshold, regions=True, min_area=smallest + 1)
    assert len(fewer["regions"]) < len(result["regions"]) and fewer["label"] == "anomalous"
    none = inspect(image, threshold=threshold, regions=True, min_area=10**6)
    assert none["regions"] == [] and none["label"] == "normal" and not np.asarray(none["mask"]).any()
    filled = inspect(image, threshold=threshold, fill_holes=True)
    assert (np.asarray(filled["mask"]) >= np.asarray(result["mask"])).all()


def test_the_picture_that_the_model_got(inspect, pictures, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # rotated by 90 degrees
    pictures[0].convert("L").save(tmp_path / "turned.png", exif=turned)
    result = inspect(str(tmp_path / "turned.png"), output_image=True)
    assert result["image"].mode == "RGB" and result["image"].size == pictures[0].size[::-1]
    assert result["anomaly_map"].shape == result["image"].size[::-1]
    assert "image" not in inspect(pictures[0])


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_batches_for_a_gpu_come_from_pinned_memory(inspect, pictures, monkeypatch, device, pinned):
    monkeypatch.setattr(inspect, "device", torch.device(device))
    batches = inspect.get_iterator(pictures, 0, 2, {}, {}, {}).batches
    assert isinstance(batches, torch.utils.data.DataLoader) and batches.pin_memory is pinned


def test_heatmap(inspect, pictures):
    result = inspect(pictures[0], heatmap=True)
    assert result["heatmap"].mode == "RGB" and result["heatmap"].size == pictures[0].size


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


def test_prompts(inspect, pictures, checkpoint):
    image = pictures[0]
    plain = inspect(image)
    same = inspect(image, prompts={"normal": "good", "abnormal": "damaged"})
    assert_same(same, plain)
    words = inspect(image, prompts={"normal": "perfect", "abnormal": "flawed"})
    templates = inspect(image, prompts={"normal": ["a photo of a perfect {}"], "abnormal": ["a photo of a flawed {}"]})
    assert_same(words, templates)
    assert abs(words["anomaly_map"] - plain["anomaly_map"]).max() > 1e-4
    with pytest.raises(ValueError, match='keys "normal" and "abnormal"'):
        inspect(image, prompts={"good": "x"})
    with pytest.raises(ValueError, match="same number"):
        inspect(image, prompts={"normal": ["a", "b"], "abnormal": "c"})
    same = [("damaged", "damaged"), (["bad", "good"], ["good", "bad"]), ("fine", "a photo of a fine {}")]
    for normal, abnormal in same:
        with pytest.raises(ValueError, match=r"every pixel would get 0\.5"):
            inspect(image, prompts={"normal": normal, "abnormal": abnormal})
    for empty in ("", " ", [], ["good", ""], [3]):
        with pytest.raises(ValueError, match=r"normal prompts .* at least one and none of them empty"):
            inspect(image, prompts={"normal": empty, "abnormal": "bad"})
    bare = AnomalySegmentationPipeline(model=inspect.model, image_processor=inspect.image_processor)
    with pytest.raises(ValueError, match="tokenizer"):
        bare(image, prompts={"normal": "a", "abnormal": "b"})


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


def test_image_segmentation_format(inspect, pictures):
    image = pictures[0]
    score = inspect(image)["score"]
    (segment,) = inspect(image, threshold=score - 0.02, output_format="image-segmentation")
    assert set(segment) == {"score", "label", "mask"} and segment["mask"].size == image.size
    assert segment["score"] == pytest.approx(inspect(image)["anomaly_map"].max(), abs=1e-5)
    assert inspect(image, threshold=0.999, output_format="image-segmentation") == []
    lists = inspect(pictures[:3], threshold=score - 0.02, output_format="image-segmentation", batch_size=2)
    assert len(lists) == 3 and all(isinstance(each, list) for each in lists)


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


@pytest.fixture
def with_head():
    """Make a pipeline whose model has an image head."""
    model = tiny_model_with_head()
    processor = VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=2.0)
    return AnomalySegmentationPipeline(model=model, image_processor=processor, device="cpu")


def test_the_score_of_the_image_head(with_head, inspect, pictures):
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


def test_calibration_of_the_image_heads_score(with_head, tmp_path):
    normal = [picture(50, 60, seed=100 + index) for index in range(30)]
    calibration = with_head.calibrate(
        normal, false_alarm_rate=0.1, pixel_false_alarm_rate=0.2, score_mode="image_head", batch_size=4
    )
    scores = sorted(result["score"] for result in with_head(normal))
    assert scores[-3] < calibration.threshold <= scores[-2]
    with_head.save_pretrained(tmp_path)
    again = pipeline("anomaly-segmentation", model=str(tmp_path))
    processor = again.image_processor
    assert (processor.score_mode, processor.image_threshold) == ("image_head", calibration.threshold)
    assert 0 < processor.threshold != processor.image_threshold
    results = again(normal)
    assert sum(result["label"] == "anomalous" for result in results) == calibration.num_above == 2
    assert {result["mask"] is None for result in results} == {False}
    # without a pixel rate there is no threshold for masks: scores of the head are not values of a map
    with_head.calibrate(normal, false_alarm_rate=0.1, score_mode="image_head")
    assert with_head.image_processor.threshold is None and with_head(normal[0])["mask"] is None


def test_number_formats(checkpoint, pictures):
    exact = pipeline("anomaly-segmentation", model=str(checkpoint), device="cpu")(pictures[0])
    half = pipeline("anomaly-segmentation", model=str(checkpoint), dtype=torch.bfloat16, device=-1)
    assert half.model.dtype == torch.bfloat16
    result = half(pictures[0])
    assert result["anomaly_map"].dtype == np.float32
    assert abs(result["anomaly_map"] - exact["anomaly_map"]).mean() < 0.03


# --- calibration ------------------------------------------------------------------------------------------------


def test_calibration_on_normal_images(fresh, pictures, tmp_path):
    normal = [picture(50, 60, seed=100 + index) for index in range(30)]
    calibration = fresh.calibrate(normal, false_alarm_rate=0.1, batch_size=4)
    scores = [result["score"] for result in fresh(normal)]
    flagged = [result["label"] == "anomalous" for result in fresh(normal)]
    assert calibration.num_images == 30 and sum(flagged) == calibration.num_above == 2
    assert sorted(scores)[-3] < calibration.threshold <= sorted(scores)[-2]
    assert fresh(normal[0])["threshold"] == calibration.threshold

    fresh.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["calibration"]["image"]["method"] == "conformal" and saved["calibration"]["image"]["num_images"] == 30
    again = pipeline("anomaly-segmentation", model=str(tmp_path))
    assert [result["label"] == "anomalous" for result in again(normal)] == flagged
    assert again(normal[0], threshold=0.0)["label"] == "anomalous" or again.image_processor.image_threshold


def test_calibration_of_masks_and_from_labels(fresh, pictures):
    normal = [picture(50, 60, seed=100 + index) for index in range(40)]
    fresh.calibrate((image for image in normal), false_alarm_rate=0.2, pixel_false_alarm_rate=0.1)
    processor = fresh.image_processor
    rates = [(result["anomaly_map"] >= processor.threshold).mean() for result in fresh(normal)]
    assert 0.03 < np.mean(rates) <= 0.1 and processor.threshold != processor.image_threshold
    assert processor.calibration["pixel"]["method"] == "conformal_risk_control"
    labels = [0] * 20 + [1] * 20
    calibration = fresh.calibrate(normal, labels=labels)
    assert calibration.method == "f1_max" and calibration.f1 >= 2 / 3


@pytest.mark.parametrize("as_default", [False, True], ids=["argument of calibrate", "default of the pipeline"])
def test_thresholds_are_kept_with_the_settings_they_belong_to(checkpoint, as_default, tmp_path):
    """Compare the right scores in later calls: those of "top_k" and of "max" have different scales."""
    normal = [picture(50, 60, seed=100 + index) for index in range(9)]
    settings = {"score_mode": "top_k", "smoothing_sigma": 1.0, "top_k_fraction": 0.2}
    made = pipeline("anomaly-segmentation", model=str(checkpoint), **(settings if as_default else {}))
    calibration = made.calibrate(normal, false_alarm_rate=0.1, **({} if as_default else settings))
    assert {name: getattr(made.image_processor, name) for name in settings} == settings
    assert made.image_processor.threshold is None, "a threshold of this score does not serve for masks"
    made.save_pretrained(tmp_path)
    for pipe in (made, pipeline("anomaly-segmentation", model=str(tmp_path))):
        results = pipe(normal)
        assert max(result["score"] for result in results) == pytest.approx(calibration.threshold, abs=1e-4)
        assert all(result["label"] == "normal" and result["mask"] is None for result in results)


NORMAL = [picture(50, 60, seed=100 + index) for index in range(9)]
CONDITIONS = {
    "smoothing": {"smoothing_sigma": 1.25},
    "score": {"score_mode": "top_k"},
    "prompts": {"prompts": {"normal": "perfect", "abnormal": "flawed"}},
    "tiles": {"tile_size": 40},
    "overlap": {"tile_size": 40, "tile_overlap": 4},
    "weight of the whole image": {"tile_size": 40, "global_weight": 0.5},
    "region of interest": {"roi_mask": np.ones((50, 60), bool)},
    "range of values": {"input_range": (0, 4095)},
}


@pytest.mark.parametrize("options", CONDITIONS.values(), ids=CONDITIONS.keys())
def test_thresholds_apply_only_with_the_settings_of_their_calibration(checkpoint, options, tmp_path, caplog):
    """Check this in both directions, in the same pipeline, and after saving and loading."""
    own = {"smoothing_sigma": 2.0, "score_mode": "max"}
    for settings, others in (({}, options), (options, {})):
        made = pipeline("anomaly-segmentation", model=str(checkpoint))
        made.calibrate(NORMAL, false_alarm_rate=0.1, pixel_false_alarm_rate=0.2, **settings)
        made.save_pretrained(tmp_path)
        # scoring becomes that of the processor; a call needs to name the other settings only
        kept = {name: value for name, value in settings.items() if name not in own}
        other = others if kept or not settings else own
        for pipe in (made, pipeline("anomaly-segmentation", model=str(tmp_path))):
            same = pipe(NORMAL[0], **kept)
            assert same["label"] == "normal" and same["mask"] is not None
            _warn_once.cache_clear()
            caplog.clear()
            with caplog.at_level("WARNING", logger="vcp_clip_hf.thresholds"):
                result = pipe(NORMAL[0], **other)
            assert result["label"] is result["mask"] is result["threshold"] is result["image_threshold"] is None
            assert "were measured with other settings" in caplog.text
            explicit = pipe(NORMAL[0], threshold=0.0, image_threshold=0.0, **other)
            assert explicit["label"] == "anomalous" and np.asarray(explicit["mask"]).all()


def test_the_size_of_tiles_and_their_overlap_are_settings_and_their_batch_is_not(fresh):
    fresh.calibrate(NORMAL, false_alarm_rate=0.1, tile_size=40)
    assert fresh(NORMAL[0], tile_size=40, tile_overlap=10, tile_batch_size=1)["label"] == "normal", "the default"
    assert fresh(NORMAL[0], tile_size=40, tile_overlap=11)["label"] is None
    assert fresh(NORMAL[0], tile_size=41, tile_overlap=10)["label"] is None


def test_the_models_size_and_its_own_prompts_are_settings(fresh, tmp_path):
    fresh.calibrate(NORMAL, false_alarm_rate=0.1)
    assert fresh(NORMAL[0])["label"] == "normal"
    fresh.save_pretrained(tmp_path)
    processor = VCPCLIPImageProcessor.from_pretrained(tmp_path, size={"height": 64, "width": 48})
    changed = pipeline("anomaly-segmentation", model=str(tmp_path), image_processor=processor)
    assert changed(NORMAL[0])["label"] is None
    processor = VCPCLIPImageProcessor.from_pretrained(tmp_path, resize_mode="pad", threshold=0.0, image_threshold=0.0)
    by_hand = pipeline("anomaly-segmentation", model=str(tmp_path), image_processor=processor)
    assert by_hand(NORMAL[0])["label"] == "anomalous", "thresholds that were set by hand hold always"
    fresh.model.set_prompts(["a fine {}"], ["a bad {}"], tiny_tokenizer())
    assert fresh(NORMAL[0])["label"] is None


def test_a_calibration_replaces_all_former_thresholds(checkpoint):
    """Check also those among the pipeline's defaults, and the pixel threshold of a former calibration."""
    made = pipeline("anomaly-segmentation", model=str(checkpoint), threshold=0.0, image_threshold=0.0, regions=True)
    assert made(NORMAL[0])["label"] == "anomalous"
    made.calibrate(NORMAL, false_alarm_rate=0.1)
    result = made(NORMAL[0])
    assert result["label"] == "normal" and result["threshold"] == made.image_processor.threshold > 0
    made.calibrate(NORMAL, false_alarm_rate=0.1, score_mode="top_k")
    assert made.image_processor.threshold is None, "it was measured with another score"
    made.image_processor.threshold = 0.25
    made.calibrate(NORMAL, false_alarm_rate=0.1)
    assert made.image_processor.score_mode == "top_k" and made.image_processor.threshold == 0.25, "it was set by hand"


def test_unreadable_images_are_left_out_of_a_calibration(fresh, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    images = [*NORMAL[:4], str(tmp_path / "bad.png"), *NORMAL[4:]]
    with pytest.raises(ValueError, match=r"bad\.png"):
        fresh.calibrate(images)
    assert fresh.image_processor.threshold is None, "a calibration that fails changes nothing"
    expected = fresh.calibrate(NORMAL, false_alarm_rate=0.1)
    found = fresh.calibrate(images, false_alarm_rate=0.1, on_error="return", batch_size=2)
    assert found.num_images == 9 and found.threshold == pytest.approx(expected.threshold, abs=1e-5)
    labels = [0, 1, 0, 1, 1, 0, 0, 0, 0, 0]
    found = fresh.calibrate(images, labels=labels, on_error="return")
    expected = fresh.calibrate(NORMAL, labels=labels[:4] + labels[5:])
    assert (found.f1, found.num_images) == (expected.f1, 9)
    for some in (images, (image for image in images)):
        with pytest.raises(ValueError, match="one label for each of 10 images, got 3"):
            fresh.calibrate(some, labels=labels[:3], on_error="return")


def test_the_results_of_a_calibration_can_be_followed(fresh, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    images = [*NORMAL[:4], str(tmp_path / "bad.png"), *NORMAL[4:]]
    seen = {}
    found = fresh.calibrate(images, false_alarm_rate=0.5, on_error="return", batch_size=3, on_result=seen.__setitem__)
    assert list(seen) == list(range(10)) and "bad.png" in seen[4]["error"]
    scores = np.array([seen[position]["score"] for position in range(10) if position != 4])
    assert (scores >= found.threshold).sum() == found.num_above
    for position, image in enumerate(images):
        if position != 4:
            expected = fresh(image)
            assert seen[position]["score"] == pytest.approx(expected["score"], abs=1e-5)
            np.testing.assert_allclose(seen[position]["anomaly_map"], expected["anomaly_map"], atol=1e-5)


def test_calibration_shows_its_progress(fresh, capsys):
    fresh.calibrate(NORMAL)
    assert "calibrate" not in capsys.readouterr().err
    fresh.calibrate(NORMAL, progress=True)
    assert "9/9" in capsys.readouterr().err


def test_calibration_reads_the_column_of_a_dataset(fresh):
    table = Dataset.from_dict({"photo": NORMAL[:2], "extra": NORMAL[:2]})
    assert fresh.calibrate(table, image_column="photo").num_images == 2


def test_calibration_does_not_change_settings_that_it_was_not_given(fresh):
    before = fresh.image_processor.to_dict()
    fresh.calibrate([picture(50, 60, seed=100 + index) for index in range(9)], false_alarm_rate=0.1, min_area=3)
    after = fresh.image_processor.to_dict()
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"threshold", "image_threshold", "calibration"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [0, 1], "false_alarm_rate": 0.1}, r"Leave out the rate, .* or calibrate on normal images only"),
        ({"threshold": 0.5}, "threshold is a result of the calibration"),
        ({"image_threshold": 0.5}, "image_threshold is a result of the calibration"),
        ({"false_alarm_rate": 0}, "false_alarm_rate=0 must lie between 0 and 1"),
        ({"false_alarm_rate": float("nan")}, "false_alarm_rate=nan"),
        ({"pixel_false_alarm_rate": 1}, "pixel_false_alarm_rate=1 must lie"),
        ({"false_alarm_rate": "0.1"}, "false_alarm_rate='0.1'"),
    ],
)
def test_wrong_arguments_of_a_calibration_are_refused_before_any_image_is_read(fresh, arguments, message):
    with pytest.raises(ValueError, match=message):
        fresh.calibrate(["missing.png", "missing.png"], **arguments)


def test_a_rate_without_reference_images_is_refused(checkpoint):
    with pytest.raises(ValueError, match=r"false_alarm_rate=0\.1 needs reference_images"):
        pipeline("anomaly-segmentation", model=str(checkpoint), false_alarm_rate=0.1)


# --- one threshold: label and mask agree ----------------------------------------------------------------------------

VARIANTS = {
    "whole": {},
    "batch": {"batch_size": 2},
    "tiles": {"tile_size": 30, "tile_overlap": 7},
    "region of interest": {"roi_mask": True},
    "tiles in a region": {"tile_size": 30, "roi_mask": True},
    "small regions dropped": {"min_area": 40},
    "holes filled": {"fill_holes": True, "min_area": 3},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("resize_mode", ["squash", "pad", "keep_ratio"])
def test_an_image_is_anomalous_exactly_if_its_mask_has_a_pixel(checkpoint, resize_mode, options):
    """Check this at any size, at thresholds equal to the score and around it."""
    processor = VCPCLIPImageProcessor.from_pretrained(checkpoint, resize_mode=resize_mode)
    pipe = pipeline("anomaly-segmentation", model=str(checkpoint), image_processor=processor)
    sizes = [(60, 80), (33, 71), (9, 11)] if "tile_size" in options else [*SIZES, (9, 11), (17, 300), (230, 41)]
    for index, size in enumerate(sizes):
        image, called = picture(*size, seed=index), dict(options)
        if "roi_mask" in options:
            called["roi_mask"] = np.zeros(size, bool)
            called["roi_mask"][size[0] // 3 : size[0] // 3 + 3, size[1] // 2 : size[1] // 2 + 2] = True
        score = pipe(image, **called)["score"]
        seen = set()
        for threshold in (0.0, score - 0.02, score - 1e-5, score, score + 1e-5, 1.0):
            result = pipe([image] * 2, threshold=threshold, image_threshold=threshold, **called)[1]
            found = bool(np.asarray(result["mask"]).any())
            assert found == (result["label"] == "anomalous"), (size, threshold)
            if "min_area" not in options:
                assert found == (threshold <= score), (size, threshold)
            assert result["score"] == result["anomaly_map"].max()
            seen.add(result["label"])
        assert seen == {"anomalous", "normal"}


@pytest.mark.parametrize("score_mode", ["max", "top_k"])
def test_a_threshold_equal_to_a_score_gives_one_verdict_in_every_batch(inspect, pictures, score_mode):
    for image in pictures:
        score = inspect(image, score_mode=score_mode)["score"]
        options = {"score_mode": score_mode, "threshold": 0.5, "image_threshold": score}
        for batch_size in (1, 2, 4, 5):
            result, *_ = inspect([image, *pictures[:4]], batch_size=batch_size, **options)
            assert result["label"] == "anomalous"


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


def test_labels_and_a_pixel_rate_exclude_each_other(fresh):
    with pytest.raises(ValueError, match=r"Leave out the pixel rate, .* or calibrate on normal images only"):
        fresh.calibrate([picture(50, 60)] * 2, labels=[0, 1], pixel_false_alarm_rate=0.1)


def test_reference_images_calibrate_a_new_pipeline(checkpoint):
    normal = [picture(50, 60, seed=100 + index) for index in range(9)]
    made = pipeline("anomaly-segmentation", model=str(checkpoint), reference_images=normal, false_alarm_rate=0.1)
    results = made(normal)
    assert all(result["label"] == "normal" for result in results) and results[0]["threshold"] > results[0]["score"]


# --- errors ---------------------------------------------------------------------------------------------------------


def test_misspelled_arguments_are_refused(inspect, pictures):
    with pytest.raises(TypeError, match=r"no argument 'treshold'; did you mean 'threshold'"):
        inspect(pictures[0], treshold=0.5)
    with pytest.raises(TypeError, match="known are"):
        inspect(pictures[0], zzz=1)
    with pytest.raises(TypeError, match="no argument 'prompt_input_ids'"):
        inspect(pictures[0], prompt_input_ids=[[1]])


def test_every_argument_of_the_signatures_is_documented():
    documented = AnomalySegmentationPipeline.__call__.__doc__
    steps = (AnomalySegmentationPipeline.preprocess, AnomalySegmentationPipeline._begin, finish)
    names = {name for step in steps for name in argument_names(step)} - {"prompt_input_ids"}
    assert names and not [name for name in names if name not in documented]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"regions": True}, "threshold"),
        ({"output_format": "image-segmentation"}, "calibrate"),
        ({"output_format": "coco", "threshold": 0.5}, "output_format='coco'"),
        ({"score_mode": "median"}, "score_mode='median'"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"tile_size": 48, "tile_overlap": 50}, "tile_overlap=50"),
        ({"tile_overlap": 5}, "tile_overlap=5 needs tile_size"),
        ({"global_weight": 0.5}, r"global_weight=0\.5 needs tile_size"),
        ({"tile_size": (48, 48)}, r"tile_size=\(48, 48\) must be a whole number"),
        ({"tile_size": 48, "tile_batch_size": 0}, "tile_batch_size=0"),
        ({"threshold": 50}, r"threshold=50 must be a number in \[0, 1\]"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"image_threshold": -1}, "image_threshold=-1"),
        ({"image_threshold": 1.5}, r"image_threshold=1\.5 .* \[0, 1\], the scale of the score 'max'"),
        ({"image_threshold": 2.5, "score_mode": "top_k"}, r"image_threshold=2\.5 .* \[0, 2\]"),
        ({"min_area": -3}, "min_area=-3"),
        ({"smoothing_sigma": float("nan")}, "smoothing_sigma=nan"),
        ({"score_mode": "top_k", "top_k_fraction": float("nan")}, "top_k_fraction=nan"),
    ],
)
def test_wrong_arguments_are_explained(inspect, pictures, arguments, message):
    with pytest.raises(ValueError, match=message):
        inspect(pictures[0], **arguments)


def test_an_unreadable_image_does_not_lose_the_others(inspect, pictures, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    images = [pictures[0], str(tmp_path / "bad.png"), pictures[1], str(tmp_path / "gone.png")]
    with pytest.raises(ValueError, match=r"bad\.png"):
        inspect(images)
    for batch_size in (1, 3):
        results = inspect(images, on_error="return", batch_size=batch_size)
        assert_same(results[0], inspect(pictures[0]))
        assert_same(results[2], inspect(pictures[1]))
        assert list(results[1]) == ["error"] and "bad.png" in results[1]["error"]
        assert "FileNotFoundError" in results[3]["error"]


@pytest.mark.parametrize("resize_mode", ["squash", "pad", "keep_ratio"])
def test_large_jpeg_files_can_be_decoded_at_a_reduced_size(checkpoint, tmp_path, resize_mode):
    inspect = pipeline("anomaly-segmentation", model=str(checkpoint))
    inspect.image_processor.resize_mode = resize_mode
    inspect.image_processor.size_divisor = 8
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(304, 800).save(tmp_path / "large.jpg", quality=95, exif=turned)
    large, options = str(tmp_path / "large.jpg"), {"threshold": 0.5, "regions": True}
    whole, fast = inspect(large, **options), inspect(large, fast_decode=True, **options)
    assert fast["anomaly_map"].shape == whole["anomaly_map"].shape == (800, 304)
    difference = np.abs(fast["anomaly_map"] - whole["anomaly_map"])
    assert 0 < difference.mean() < 0.02
    # pictures that are requested too are whole, and change nothing else
    for batch_size in (1, 2):
        shown = inspect([large] * 2, fast_decode=True, output_image=True, batch_size=batch_size, **options)[1]
        assert shown["image"].size == (304, 800)
        np.testing.assert_allclose(shown["anomaly_map"], fast["anomaly_map"], atol=1e-6)
    region = np.zeros((800, 304))
    region[:400] = 1
    assert inspect(large, fast_decode=True, roi_mask=region)["anomaly_map"][400:].max() == 0


def test_a_reduced_size_is_a_setting_of_thresholds(fresh, tmp_path):
    images = [picture(60, 80, seed) for seed in range(20)]
    fresh.calibrate(images, false_alarm_rate=0.05, fast_decode=True)
    assert fresh.image_processor.calibration["settings"]["fast_decode"] is True
    assert fresh(images[0], fast_decode=True)["label"] and fresh(images[0])["label"] is None
    fresh.calibrate(images, false_alarm_rate=0.05)
    del fresh.image_processor.calibration["settings"]["fast_decode"]  # as earlier versions recorded it
    assert fresh(images[0])["label"] and fresh(images[0], fast_decode=True)["label"] is None


def test_a_reduced_size_is_refused_where_all_pixels_count(fresh, pictures):
    with pytest.raises(ValueError, match="fast_decode=True is not possible here: tiles"):
        fresh(pictures[0], fast_decode=True, tile_size=40)
    with pytest.raises(ValueError, match="fast_decode=True is not supported for images that are judged together"):
        fresh.segment_together([picture(60, 80, seed) for seed in range(5)], fast_decode=True)
    fresh.set_references(pictures[:2])
    with pytest.raises(ValueError, match="fast_decode=True is not possible here: references"):
        fresh(pictures[3], fast_decode=True)
    with pytest.raises(TypeError, match="fast_decode"):
        fresh.set_references(pictures[:2], fast_decode=True)


# --- saving -------------------------------------------------------------------------------------------------------


def run(program: str, **environment) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=300,
        cwd="/",
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_saved_with_its_code_it_works_without_the_package(fresh, inspect, pictures, tmp_path):
    image, zero_shot = pictures[0], inspect(pictures[0])
    image.save(tmp_path / "image.png")
    inspect = fresh
    memory = inspect.set_references([picture(60, 80, seed) for seed in (5, 6)], neighborhood=3)
    expected = inspect(image)
    assert np.abs(expected["anomaly_map"] - zero_shot["anomaly_map"]).max() > 0.01
    folder = tmp_path / "with_code"
    inspect.save_pretrained(folder, include_code=True)
    config = json.loads((folder / "config.json").read_text())
    assert config["custom_pipelines"]["anomaly-segmentation"]["impl"].endswith("AnomalySegmentationPipeline")
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel"}
    assert (folder / "modeling_vcp_clip.py").is_file() and (folder / "tiling.py").is_file()
    assert (folder / "references.py").is_file() and (folder / "reference_pictures.py").is_file()

    # without the package, which is hidden from the other process
    program = f"""
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "vcp_clip_hf":
            raise ImportError("hidden")
sys.meta_path.insert(0, Hide())
import numpy as np
from transformers import AutoProcessor, pipeline
pipe = pipeline("anomaly-segmentation", model={str(folder)!r}, trust_remote_code=True)
processor = AutoProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True)
assert processor.to_dict() == pipe.image_processor.to_dict(), processor
result = pipe({str(tmp_path / "image.png")!r}, threshold=0.5, regions=True, heatmap=True)
np.save({str(tmp_path / "map.npy")!r}, result["anomaly_map"])
zero_shot = pipe({str(tmp_path / "image.png")!r}, reference_weight=0)
np.save({str(tmp_path / "zero_shot.npy")!r}, zero_shot["anomaly_map"])
assert pipe.references.digest == {memory.digest!r}
assert type(pipe._network).__name__ == "AcceleratedVCPCLIPModel"
# The code is saved again with the checkpoint
pipe.save_pretrained({str(tmp_path / "again")!r})
again = pipeline("anomaly-segmentation", model={str(tmp_path / "again")!r}, trust_remote_code=True)
assert np.array_equal(again({str(tmp_path / "image.png")!r})["anomaly_map"], result["anomaly_map"])
assert again.references.digest == pipe.references.digest
# References are set, and dropped, without the package too
again.set_references([{str(tmp_path / "image.png")!r}])
assert again.references.pictures != pipe.references.pictures
again.set_references(None)
again.save_pretrained({str(tmp_path / "again")!r})
again = pipeline("anomaly-segmentation", model={str(tmp_path / "again")!r}, trust_remote_code=True)
assert again.references is None
assert np.array_equal(again({str(tmp_path / "image.png")!r})["anomaly_map"], zero_shot["anomaly_map"])
assert "vcp_clip_hf" not in sys.modules
print(type(pipe.model).__module__)
"""
    assert run(program, HF_MODULES_CACHE=str(tmp_path / "modules")).strip().startswith("transformers_modules.")
    np.testing.assert_allclose(np.load(tmp_path / "map.npy"), expected["anomaly_map"], atol=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "zero_shot.npy"), zero_shot["anomaly_map"], atol=1e-5)

    # with the package, no code of the folder runs, and none needs to be trusted
    again = pipeline("anomaly-segmentation", model=str(folder))
    assert type(again.model) is vcp_clip_hf.VCPCLIPModel
    assert_same(again(image), expected)


def test_saved_without_code_nothing_needs_to_be_trusted(inspect, pictures, tmp_path):
    inspect.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "custom_pipelines" not in config and "auto_map" not in config
    assert not list(tmp_path.glob("*.py"))
    assert_same(pipeline("anomaly-segmentation", model=str(tmp_path))(pictures[0]), inspect(pictures[0]))


# --- the accelerated copy -------------------------------------------------------------------------------------------


def test_the_pipeline_computes_with_a_fast_copy_of_the_model_as_it_is_now(fresh, checkpoint):
    pipe, plain = fresh, pipeline("anomaly-segmentation", model=str(checkpoint), accelerate=False)
    image = picture(60, 80)

    def check() -> AcceleratedVCPCLIPModel:
        fast, expected = pipe(image)["anomaly_map"], plain(image)["anomaly_map"]
        np.testing.assert_allclose(fast, expected, atol=1e-5)
        assert plain._network is plain.model
        return pipe._network

    first = check()
    assert isinstance(first, AcceleratedVCPCLIPModel) and check() is first
    for each in (pipe, plain):
        each.model.set_prompts(["a fine {} here"], ["bad {}"], tiny_tokenizer())
    assert check() is not first
    # tiles
    tiled = [each(image, tile_size=24)["anomaly_map"] for each in (pipe, plain)]
    np.testing.assert_allclose(*tiled, atol=1e-5)
    # a hook that comes later fires, in the plain model
    calls = []
    pipe.model.clip.vision_model.encoder.layers[0].register_forward_hook(lambda *_: calls.append(1))
    assert check() is pipe.model and calls


def test_the_settings_of_the_copy_can_be_given(checkpoint):
    settings = Acceleration(cuda_graphs=False)
    pipe = pipeline("anomaly-segmentation", model=str(checkpoint), accelerate=settings)
    image = picture(60, 80)
    expected = pipe(image)["anomaly_map"]
    assert pipe._network.settings == settings
    pipe.accelerate = True
    first = pipe._inference_model()
    assert first.settings == Acceleration() and pipe._inference_model() is first
    np.testing.assert_array_equal(pipe(image)["anomaly_map"], expected)
    with pytest.raises(TypeError, match=r"accelerate='yes' must be True, False or Acceleration"):
        pipeline("anomaly-segmentation", model=str(checkpoint), accelerate="yes")


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


def test_a_pickled_pipeline_has_its_weights_once(fresh):
    unused = len(pickle.dumps(fresh))
    expected = fresh(picture(60, 80))
    data = pickle.dumps(fresh)
    assert len(data) < 1.1 * unused
    assert_same(pickle.loads(data)(picture(60, 80)), expected)
