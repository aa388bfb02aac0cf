"""The torch-free runtime returns the results of the pipeline."""

import base64
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from tests.common import tiny_model_with_head
from tests.deep_files import write_png
from tests.export_run import SMALL, exported, exported_with_references, picture, pictures, small_processor
from vcp_clip_hf import AnomalySegmentationPipeline
from vcp_clip_hf.export import export_model
from vcp_clip_hf.exported_segmenter import ExportedSegmenter


@pytest.fixture(scope="module")
def inspect():
    return pipeline("anomaly-segmentation", model=str(exported().checkpoint))


@pytest.fixture(scope="module")
def segmenter():
    return ExportedSegmenter(exported().folder, num_threads=1)


@pytest.fixture(scope="module")
def inspect_with_references():
    """The pipeline of the checkpoint with a memory of normal pictures; tests must not calibrate it."""
    return pipeline("anomaly-segmentation", model=str(exported_with_references().checkpoint))


@pytest.fixture
def folder(tmp_path):
    """A copy of the export that the test may change."""
    return shutil.copytree(exported().folder, tmp_path / "exported")


def change(file, **values):
    content = json.loads(file.read_text())
    content.update(values)
    file.write_text(json.dumps(content))


def clear_threshold(anomaly_map: np.ndarray) -> float:
    """Return a threshold below about a fifth of the map, in the widest gap between values: rounding cannot matter."""
    values = np.sort(anomaly_map, axis=None)[int(0.75 * anomaly_map.size) : int(0.85 * anomaly_map.size)]
    widest = np.diff(values).argmax()
    return float((values[widest].astype(np.float64) + values[widest + 1]) / 2)


def assert_same(result, expected, atol=1e-5):
    assert list(result) == list(expected)
    for name in ("label", "threshold", "image_threshold"):
        assert result[name] == expected[name]
    assert isinstance(result["score"], float) and result["score"] == pytest.approx(expected["score"], abs=atol)
    assert result["anomaly_map"].dtype == np.float32
    np.testing.assert_allclose(result["anomaly_map"], expected["anomaly_map"], atol=atol)
    if expected["mask"] is None:
        assert result["mask"] is None
    else:
        assert result["mask"].mode == "L" and result["mask"].size == expected["mask"].size
        # rounding decides about pixels on the threshold
        near = np.abs(expected["anomaly_map"] - expected["threshold"]) < atol
        np.testing.assert_array_equal(np.asarray(result["mask"])[~near], np.asarray(expected["mask"])[~near])
    if "heatmap" in expected:
        difference = np.asarray(result["heatmap"]).astype(int) - np.asarray(expected["heatmap"])
        assert (np.abs(difference) > 1).mean() < 1e-3
    if "image" in expected:
        np.testing.assert_array_equal(np.asarray(result["image"]), np.asarray(expected["image"]))
    if "regions" in expected:
        assert len(result["regions"]) == len(expected["regions"])
        for ours, theirs in zip(result["regions"], expected["regions"], strict=True):
            assert ours["box"] == theirs["box"] and ours["polygon"] == theirs["polygon"]
            assert ours["area"] == theirs["area"] and ours["score"] == pytest.approx(theirs["score"], abs=atol)


def test_results_without_a_threshold(inspect, segmenter):
    for image in pictures():
        result = segmenter(image)
        assert_same(result, inspect(image))
        assert result["label"] is result["mask"] is result["threshold"] is None
        assert result["anomaly_map"].shape == (image.height, image.width)


OPTIONS = {
    "threshold": {},
    "image threshold": {"image_threshold": 0.99},
    "pictures": {"heatmap": True, "regions": True},
    "cleaned": {"regions": True, "min_area": 400, "fill_holes": True},
    "all dropped": {"regions": True, "min_area": 10**6},
    "input range": {"input_range": (0, 200)},
    "the picture itself": {"output_image": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_option_has_the_effect_that_it_has_in_the_pipeline(inspect, segmenter, options):
    for image in pictures():
        if "input_range" in options:
            image = np.asarray(image.convert("L")).astype(np.uint16)
        threshold = clear_threshold(inspect(image, input_range=options.get("input_range"))["anomaly_map"])
        assert_same(segmenter(image, threshold=threshold, **options), inspect(image, threshold=threshold, **options))


def test_region_of_interest(inspect, segmenter):
    for image in pictures():
        roi = np.zeros((image.height, image.width), bool)
        roi[image.height // 5 : image.height // 2, image.width // 4 :] = True
        result = segmenter(image, roi_mask=roi, threshold=0.4)
        assert_same(result, inspect(image, roi_mask=roi, threshold=0.4))
        assert result["anomaly_map"][roi].max() > 0 and not result["anomaly_map"][~roi].any()
    with pytest.raises(ValueError, match="roi_mask is"):
        segmenter(image, roi_mask=roi[1:])


def test_intake_is_that_of_the_pipeline(inspect, segmenter, tmp_path):
    """16-bit color, limits, data URIs and regions of interest; errors have the same words."""
    picture = pictures()[0]
    picture.save(tmp_path / "8.png")
    write_png(tmp_path / "16.png", np.asarray(picture).astype(np.uint16) * 16)
    empty = Image.new("1", picture.size)
    uri = "data:image/png;base64," + base64.b64encode((tmp_path / "8.png").read_bytes()).decode()
    expected = segmenter(picture)
    for segment in (inspect, segmenter):
        assert_same(segment(uri), expected)
        assert_same(segment(str(tmp_path / "16.png"), input_range=(0, 4080)), expected)
        for source, options, error in (
            (str(tmp_path / "8.png"), {"max_pixels": 10}, "8.png: 80 x 60 pixels exceed max_pixels=10"),
            (uri[:200], {}, "damaged"),
            (picture, {"roi_mask": empty}, "roi_mask (the image) leaves nothing to inspect"),
        ):
            (result,) = segment([source], on_error="return", **options)
            assert list(result) == ["error"] and error in result["error"] and uri[30:200] not in result["error"]


def test_every_kind_of_input(segmenter, tmp_path):
    image = pictures()[0]
    expected = segmenter(image)
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
        assert_same(segmenter(source), expected)
    assert len(segmenter(np.stack([values, values]))) == 2
    assert len(segmenter([image])) == 1


@pytest.mark.parametrize("batch_size", [2, 5])
def test_batches_change_nothing(segmenter, batch_size):
    images = pictures()
    for result, image in zip(segmenter(images, batch_size=batch_size), images, strict=True):
        assert_same(result, segmenter(image))


# --- with references ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_results_with_references(inspect_with_references, inspect, format):
    segmenter, images = ExportedSegmenter(exported_with_references(format).folder, num_threads=1), pictures()
    expected = [inspect_with_references(image, threshold=0.4, regions=True) for image in images]
    for batch_size in (1, 2, 5):
        results = segmenter(images, threshold=0.4, regions=True, batch_size=batch_size)
        for result, each in zip(results, expected, strict=True):
            assert_same(result, each)
    zero_shot = [inspect_with_references(image, reference_weight=0)["anomaly_map"] for image in images]
    for ours, theirs, image in zip(expected, zero_shot, images, strict=True):
        assert np.abs(ours["anomaly_map"] - theirs).max() > 0.01, "the references matter"
        np.testing.assert_allclose(theirs, inspect(image)["anomaly_map"], atol=1e-5)
    with pytest.raises(TypeError, match="reference_weight is built into the exported graph"):
        segmenter(images[0], reference_weight=0)


NORMAL = [picture(50, 60, seed) for seed in range(90, 99)]


@pytest.mark.parametrize(
    ("calibrated_with", "exported_from", "applies"),
    [
        ({}, exported_with_references, True),
        ({}, exported, False),
        ({"reference_weight": 0.3}, exported_with_references, False),
        ({"reference_weight": 0}, exported_with_references, False),
        ({"reference_weight": 0}, exported, True),
    ],
    ids=["same", "without references", "other weight", "zero-shot", "both zero-shot"],
)
def test_calibrated_thresholds_apply_only_with_their_references(calibrated_with, exported_from, applies, tmp_path):
    pipe = pipeline("anomaly-segmentation", model=str(exported_with_references().checkpoint))
    pipe.calibrate(NORMAL, false_alarm_rate=0.2, **calibrated_with)
    folder = shutil.copytree(exported_from().folder, tmp_path / "exported")
    pipe.image_processor.save_pretrained(folder)
    segmenter = ExportedSegmenter(folder, num_threads=1)
    for image in pictures():
        result, expected = segmenter(image), pipe(image, **calibrated_with)
        assert expected["label"] is not None
        if applies:
            assert_same(result, expected)
        else:
            assert result["label"] is result["threshold"] is result["image_threshold"] is None


def test_other_references_are_other_conditions(folder):
    """An export of an earlier version, which names no references, has none."""
    pipe = pipeline("anomaly-segmentation", model=str(exported().checkpoint))
    pipe.calibrate(pictures(), false_alarm_rate=0.3)
    pipe.image_processor.save_pretrained(folder)
    image = pictures()[0]
    other = {"identity": {"memory": "0123456789abcdef", "weight": 0.5}, "pictures": 3, "description": "References"}
    facts = json.loads((folder / "export.json").read_text())
    for references, labeled in ((None, True), (other, False)):
        change(folder / "export.json", references=references)
        assert (ExportedSegmenter(folder, num_threads=1)(image)["label"] is not None) == labeled
    del facts["references"]
    (folder / "export.json").write_text(json.dumps(facts))
    assert ExportedSegmenter(folder, num_threads=1)(image)["label"] is not None


def test_unreadable_images_can_be_returned_as_errors(segmenter):
    image = pictures()[0]
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        segmenter([image, "missing.png"])
    first, second, third = segmenter([image, "missing.png", image], on_error="return", batch_size=2)
    assert "missing.png" in second["error"] and list(second) == ["error"]
    assert_same(first, segmenter(image))
    assert_same(third, first)
    assert list(segmenter("missing.png", on_error="return")) == ["error"]


def test_thresholds_come_from_the_settings(folder):
    image = pictures()[0]
    change(folder / "preprocessor_config.json", threshold=0.01, image_threshold=0.999)
    segmenter = ExportedSegmenter(folder, num_threads=1)
    result = segmenter(image)
    assert (result["threshold"], result["image_threshold"], result["label"]) == (0.01, 0.999, "normal")
    assert np.asarray(result["mask"]).all()
    assert segmenter(image, threshold=0.99)["threshold"] == 0.99


SETTINGS = {
    "score_mode": "max",
    "smoothing_sigma": 2.0,
    "size": [48, 48],
    "resize_mode": "squash",
    "tiling": None,
    "region_of_interest": False,
    "input_range": None,
}


@pytest.mark.parametrize(
    ("recorded", "options"),
    [
        ({"smoothing_sigma": 3.0}, {}),
        ({"size": [64, 64]}, {}),
        ({"tiling": {"tile_size": 40, "tile_overlap": 10, "global_weight": 0.0}}, {}),
        ({"prompts": {"normal": [[512, 1, 513]], "abnormal": [[512, 2, 513]]}}, {}),
        ({"region_of_interest": True}, {}),
        ({"branch_weights": {"fusion_weight": 0.5, "stem_branch_weight": None}}, {}),
        ({}, {"roi_mask": np.ones((60, 80), bool)}),
        ({}, {"input_range": (0, 200)}),
    ],
)
def test_calibrated_thresholds_apply_only_with_their_settings(folder, recorded, options, caplog):
    """The runtime cannot compute tiles or other prompts, so that such a calibration never applies."""
    image = np.asarray(pictures()[0].convert("L")).astype(np.uint16)
    facts = {"threshold": 0.0, "image_threshold": 0.125}
    for settings, call, applies in ((SETTINGS, {}, True), ({**SETTINGS, **recorded}, options, False)):
        calibration = {"image": {"threshold": 0.125}, "pixel": {"threshold": 0.0}, "settings": settings}
        change(folder / "preprocessor_config.json", calibration=calibration, **facts)
        result = ExportedSegmenter(folder, num_threads=1)(image, **call)
        assert (result["threshold"], result["image_threshold"]) == ((0.0, 0.125) if applies else (None, None))
        assert (result["label"] is None) == (result["mask"] is None) == (not applies)
    result = ExportedSegmenter(folder, num_threads=1)(image, threshold=0.0, **options)
    assert np.asarray(result["mask"]).all() and result["label"] == "anomalous"


def test_a_calibration_of_the_exported_checkpoint_applies(folder):
    """The settings that the pipeline records are those that the runtime compares."""
    pipe = pipeline("anomaly-segmentation", model=str(exported().checkpoint))
    pipe.calibrate(pictures(), false_alarm_rate=0.3)
    pipe.image_processor.save_pretrained(folder)
    segmenter = ExportedSegmenter(folder, num_threads=1)
    for image in pictures():
        expected = pipe(image)
        assert segmenter(image)["label"] == expected["label"] is not None
    facts = json.loads((folder / "export.json").read_text())
    recorded = pipe.image_processor.calibration["settings"]
    assert facts["prompt_input_ids"] == recorded["prompts"]
    assert facts["fusion"] == {name: recorded[name] for name in ("branch_weights", "reference_fusion")}


@pytest.mark.parametrize("options", [{}, {"roi_mask": True}, {"min_area": 30}], ids=["whole", "region", "cleaned"])
def test_an_image_is_anomalous_exactly_if_its_mask_has_a_pixel(segmenter, options):
    for image in pictures():
        called = dict(options)
        if "roi_mask" in options:
            called["roi_mask"] = np.zeros((image.height, image.width), bool)
            called["roi_mask"][20:23, 30:32] = True
        score = segmenter(image, **called)["score"]
        for threshold in (0.0, score - 1e-5, score, score + 1e-5, 1.0):
            result = segmenter([image] * 3, threshold=threshold, image_threshold=threshold, batch_size=3, **called)[2]
            found = bool(np.asarray(result["mask"]).any())
            assert found == (result["label"] == "anomalous")
            if "min_area" not in options:
                assert found == (threshold <= score)


# --- without torch, transformers and this package -------------------------------------------------------------------

ALONE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "vcp_clip_hf", "huggingface_hub"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
sys.path.insert(0, sys.argv[1])
import json
import numpy as np
import exported_segmenter

segmenter = exported_segmenter.open_segmenter(sys.argv[1], num_threads=1)
result = segmenter(sys.argv[2], threshold=float(sys.argv[3]), heatmap=True, regions=True)
np.save(sys.argv[4], result["anomaly_map"])
print(json.dumps({"score": result["score"], "label": result["label"], "regions": result["regions"]}))
if len(sys.argv) > 5:
    exported_segmenter.main([sys.argv[2], "missing.png", "--model", sys.argv[1], "--heatmaps", sys.argv[5]])
"""


@pytest.mark.parametrize("source", ["inspect", "inspect_with_references"])
def test_the_folder_runs_alone_without_torch(source, request, tmp_path):
    inspect = request.getfixturevalue(source)
    original = exported() if source == "inspect" else exported_with_references()
    folder = shutil.copytree(original.folder, tmp_path / "exported")
    image = pictures()[0]
    image.save(tmp_path / "part.png")
    threshold = clear_threshold(inspect(image)["anomaly_map"])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    (tmp_path / "elsewhere").mkdir()
    arguments = (folder, tmp_path / "part.png", threshold, tmp_path / "map.npy", tmp_path / "heatmaps")
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *map(str, arguments)],
        cwd=tmp_path / "elsewhere",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answer, record, failed = map(json.loads, done.stdout.splitlines())
    expected = inspect(image, threshold=threshold, regions=True)
    assert answer["score"] == pytest.approx(expected["score"], abs=1e-5) and answer["label"] == "anomalous"
    assert [each["box"] for each in answer["regions"]] == [each["box"] for each in expected["regions"]]
    np.testing.assert_allclose(np.load(tmp_path / "map.npy"), expected["anomaly_map"], atol=1e-5)
    assert record["score"] == pytest.approx(answer["score"]) and record["label"] is None
    assert os.path.isfile(record["heatmap"]) and "missing.png" in failed["error"]


# --- errors ---------------------------------------------------------------------------------------------------------


def test_wrong_arguments_are_explained(segmenter):
    image = pictures()[0]
    with pytest.raises(TypeError, match="smoothing_sigma is built into the exported graph"):
        segmenter(image, smoothing_sigma=1)
    with pytest.raises(TypeError, match="prompts is built into the exported graph"):
        segmenter(image, prompts={"normal": "good", "abnormal": "bad"})
    with pytest.raises(TypeError, match=r"no argument 'tile_size'; known are threshold, .*min_area"):
        segmenter(image, tile_size=40)
    with pytest.raises(TypeError, match="no argument 'treshold'; did you mean 'threshold'"):
        segmenter(image, treshold=0.5)
    with pytest.raises(ValueError, match="Regions need a threshold"):
        segmenter(image, regions=True)
    with pytest.raises(ValueError, match="batch_size=0"):
        segmenter(image, batch_size=0)
    with pytest.raises(ValueError, match="on_error"):
        segmenter(image, on_error="ignore")
    for name, value in (("threshold", 50), ("image_threshold", -1), ("threshold", float("nan"))):
        with pytest.raises(ValueError, match=rf"{name}={value} must be a number in \[0, 1\]"):
            segmenter(image, **{name: value})
    with pytest.raises(ValueError, match="min_area=-1"):
        segmenter(image, min_area=-1)


def test_incomplete_or_mixed_folders_are_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="not written by `vcp-clip export`"):
        ExportedSegmenter(tmp_path)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    change(folder / "preprocessor_config.json", smoothing_sigma=4.0)
    with pytest.raises(ValueError, match=r"smoothing_sigma=4\.0.*made for 2\.0.*export again"):
        ExportedSegmenter(folder)
    change(folder / "preprocessor_config.json", **{**settings, "image_threshold": 7})
    with pytest.raises(ValueError, match=r"image_threshold=7 must be a number in \[0, 1\]"):
        ExportedSegmenter(folder)
    change(
        folder / "preprocessor_config.json",
        **{**settings, "image_threshold": None, "size": {"height": 64, "width": 64}},
    )
    with pytest.raises(ValueError, match="different exports"):
        ExportedSegmenter(folder)
    (folder / "model.onnx").unlink()
    with pytest.raises(FileNotFoundError, match="Copy the whole folder"):
        ExportedSegmenter(folder)


def test_a_region_of_interest_needs_a_score_of_the_map(folder):
    change(folder / "preprocessor_config.json", score_mode="top_k")
    facts = json.loads((folder / "export.json").read_text())
    change(folder / "export.json", settings={**facts["settings"], "score_mode": "top_k"})
    image = pictures()[1]
    segmenter = ExportedSegmenter(folder, num_threads=1)
    assert segmenter(image, threshold=0.4)["label"] is None, "the two thresholds are on different scales"
    with pytest.raises(ValueError, match="score_mode='max'"):
        segmenter(image, roi_mask=np.ones((48, 48)))


def test_the_score_of_the_image_head_is_built_in(tmp_path):
    torch.manual_seed(1)
    model = tiny_model_with_head(**SMALL)
    processor = small_processor(model, score_mode="image_head", image_threshold=0.5)
    report = export_model(model, processor, tmp_path / "exported", "onnx", images=pictures())
    assert report.score_deviation < 1e-5
    inspect = AnomalySegmentationPipeline(model=model, image_processor=processor, device="cpu")
    segmenter = ExportedSegmenter(tmp_path / "exported", num_threads=1)
    for result, expected in zip(segmenter(pictures()), inspect(pictures()), strict=True):
        assert_same(result, expected)
    assert len({round(result["score"], 4) for result in segmenter(pictures())}) > 1, "equal scores prove nothing"
    with pytest.raises(ValueError, match=r"'image_head' built in.*Way out: set score_mode='max' in the checkpoint"):
        segmenter(pictures()[1], roi_mask=np.ones((48, 48)))


def test_a_missing_runtime_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r'pip install "vcp-clip-hf\[onnx\]"'):
        ExportedSegmenter(exported().folder)
