"""The results, errors and saved files of `pipeline("anomaly-segmentation")`."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import pipeline

import vcp_clip_hf
from tests.common import tiny_tokenizer
from tests.pipeline_run import SIZES, assert_same, picture, save_checkpoint
from vcp_clip_hf import AnomalySegmentationPipeline, VCPCLIPImageProcessor
from vcp_clip_hf.accelerated_inference import AcceleratedVCPCLIPModel
from vcp_clip_hf.acceleration_settings import Acceleration
from vcp_clip_hf.anomaly_result import finish
from vcp_clip_hf.call_arguments import argument_names


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


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


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_batches_for_a_gpu_come_from_pinned_memory(inspect, pictures, monkeypatch, device, pinned):
    monkeypatch.setattr(inspect, "device", torch.device(device))
    batches = inspect.get_iterator(pictures, 0, 2, {}, {}, {}).batches
    assert isinstance(batches, torch.utils.data.DataLoader) and batches.pin_memory is pinned


def test_heatmap(inspect, pictures):
    result = inspect(pictures[0], heatmap=True)
    assert result["heatmap"].mode == "RGB" and result["heatmap"].size == pictures[0].size


def test_image_segmentation_format(inspect, pictures):
    image = pictures[0]
    score = inspect(image)["score"]
    (segment,) = inspect(image, threshold=score - 0.02, output_format="image-segmentation")
    assert set(segment) == {"score", "label", "mask"} and segment["mask"].size == image.size
    assert segment["score"] == pytest.approx(inspect(image)["anomaly_map"].max(), abs=1e-5)
    assert inspect(image, threshold=0.999, output_format="image-segmentation") == []
    lists = inspect(pictures[:3], threshold=score - 0.02, output_format="image-segmentation", batch_size=2)
    assert len(lists) == 3 and all(isinstance(each, list) for each in lists)


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


# --- saving -------------------------------------------------------------------------------------------------------


def test_square_tiles_do_not_go_into_an_input_of_another_shape(fresh, pictures):
    fresh.image_processor = fresh.image_processor.with_resize_mode("squash").at_size((48, 96))
    fresh(pictures[0])
    message = "square tiles, and the model's input is 48 pixels high and 96 wide"
    with pytest.raises(ValueError, match=message):
        fresh(pictures[0], tile_size=48)
    with pytest.raises(ValueError, match=message):
        fresh.set_references(pictures[:2], tile_size=48)


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


def test_a_pickled_pipeline_has_its_weights_once(fresh):
    unused = len(pickle.dumps(fresh))
    expected = fresh(picture(60, 80))
    data = pickle.dumps(fresh)
    assert len(data) < 1.1 * unused
    assert_same(pickle.loads(data)(picture(60, 80)), expected)
