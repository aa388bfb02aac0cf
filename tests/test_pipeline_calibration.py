"""Thresholds that the pipeline measures, and the settings that they hold for."""

import json

import numpy as np
import pytest
from datasets import Dataset
from transformers import pipeline

from tests.common import tiny_tokenizer
from tests.pipeline_run import SIZES, picture, pipeline_with_head, save_checkpoint
from vcp_clip_hf import VCPCLIPImageProcessor
from vcp_clip_hf.thresholds import _warn_once


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def fresh(checkpoint):
    """Make a pipeline that the test may change."""
    return pipeline("anomaly-segmentation", model=str(checkpoint))


@pytest.fixture(scope="module")
def pictures():
    return [picture(*size, seed=index) for index, size in enumerate(SIZES)]


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


def test_calibration_of_the_image_heads_score(tmp_path):
    with_head = pipeline_with_head()
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


def test_labels_and_a_pixel_rate_exclude_each_other(fresh):
    with pytest.raises(ValueError, match=r"Leave out the pixel rate, .* or calibrate on normal images only"):
        fresh.calibrate([picture(50, 60)] * 2, labels=[0, 1], pixel_false_alarm_rate=0.1)


def test_reference_images_calibrate_a_new_pipeline(checkpoint):
    normal = [picture(50, 60, seed=100 + index) for index in range(9)]
    made = pipeline("anomaly-segmentation", model=str(checkpoint), reference_images=normal, false_alarm_rate=0.1)
    results = made(normal)
    assert all(result["label"] == "normal" for result in results) and results[0]["threshold"] > results[0]["score"]


def test_a_reduced_size_is_a_setting_of_thresholds(fresh, tmp_path):
    images = [picture(60, 80, seed) for seed in range(20)]
    fresh.calibrate(images, false_alarm_rate=0.05, fast_decode=True)
    assert fresh.image_processor.calibration["settings"]["fast_decode"] is True
    assert fresh(images[0], fast_decode=True)["label"] and fresh(images[0])["label"] is None
    fresh.calibrate(images, false_alarm_rate=0.05)
    del fresh.image_processor.calibration["settings"]["fast_decode"]  # as earlier versions recorded it
    assert fresh(images[0])["label"] and fresh(images[0], fast_decode=True)["label"] is None
