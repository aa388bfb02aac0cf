"""References in the pipeline: inputs, calls, thresholds, files, and what is refused."""

import pickle
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from transformers import pipeline
from transformers.image_utils import SizeDict
from transformers.pipelines.pt_utils import KeyDataset

from tests.common import (
    ROUNDING,
    tiny_clip,
    tiny_hybrid,
    tiny_model,
    tiny_model_with_head,
    tiny_tokenizer,
)
from tests.pipeline_run import picture
from vcp_clip_hf import (
    AnomalySegmentationPipeline,
    VCPCLIPImageProcessor,
    VCPCLIPModel,
    pipeline_calibration,
    pipeline_references,
    thresholds,
)
from vcp_clip_hf.references import REFERENCES_FILE, ReferenceMemory


NORMAL = [picture(60, 80, seed) for seed in range(4)]
NEW = [picture(60, 80, seed) for seed in range(10, 14)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(333)
    model = tiny_model()
    model.save_pretrained(folder)
    VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=1.0).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def pipe(checkpoint):
    """Make a pipeline that the test may change."""
    return pipeline("anomaly-segmentation", model=str(checkpoint))


@pytest.fixture
def warned(monkeypatch) -> list[str]:
    messages = []
    for module in (pipeline_references, pipeline_calibration):
        monkeypatch.setattr(module.logger, "warning", messages.append)
    return messages


@pytest.fixture
def of_thresholds(monkeypatch) -> list[str]:
    """Return the list that warnings about thresholds that do not apply are added to."""
    messages = []
    monkeypatch.setattr(thresholds, "_warn_once", messages.append)
    return messages


def assert_equal(result, expected):
    assert result["score"] == expected["score"] and result["label"] == expected["label"]
    assert np.array_equal(result["anomaly_map"], expected["anomaly_map"])


def assert_close(result, expected):
    """Compare results of one model and of its copy, whose weights are elsewhere in memory."""
    assert result["score"] == pytest.approx(expected["score"], abs=1e-6) and result["label"] == expected["label"]
    np.testing.assert_allclose(result["anomaly_map"], expected["anomaly_map"], **ROUNDING)


# --- set_references -------------------------------------------------------------------------------------------------


def test_maps_are_fused_with_the_memory(pipe):
    zero_shot = pipe(NEW[0], output_branch_maps=True)
    memory = pipe.set_references(NORMAL)
    assert isinstance(memory, ReferenceMemory) and pipe.references is memory and memory.weight == 0.5
    found = pipe(NEW[0], output_branch_maps=True)
    assert found["reference_map"].shape == (60, 80) and found["reference_map"].dtype == np.float32
    for name in ("base_map", "vcp_map"):
        np.testing.assert_allclose(found[name], (zero_shot[name] + found["reference_map"]) / 2, atol=1e-6)
    assert "reference_map" not in zero_shot and "reference_map" not in pipe(NEW[0])
    # a reference has no distance, another picture has
    assert pipe(NORMAL[1], reference_weight=1)["score"] < 1e-6 < 1e-3 < pipe(NEW[0], reference_weight=1)["score"]


def test_the_weight_of_a_call(pipe):
    zero_shot = pipe(NEW[0])
    pipe.set_references(NORMAL, weight=0.25)
    assert_equal(pipe(NEW[0], reference_weight=0), zero_shot)
    assert_equal(pipe(NEW[0], reference_weight=0.25), pipe(NEW[0]))
    alone = pipe(NEW[0], reference_weight=1)["anomaly_map"]
    np.testing.assert_allclose(pipe(NEW[0])["anomaly_map"], 0.75 * zero_shot["anomaly_map"] + 0.25 * alone, atol=1e-6)
    assert pipe.references.weight == 0.25
    for weight in (1.5, "0.5", True):
        with pytest.raises(ValueError, match=r"reference_weight=.* must lie in \[0, 1\]"):
            pipe(NEW[0], reference_weight=weight)


def test_without_references(pipe):
    zero_shot = pipe(NEW[0])
    assert pipe.references is None
    with pytest.raises(ValueError, match=r"reference_weight=0.5 needs references: call `set_references`"):
        pipe(NEW[0], reference_weight=0.5)
    assert_equal(pipe(NEW[0], reference_weight=0), zero_shot)
    pipe.set_references(NORMAL)
    assert pipe.set_references(None) is None and pipe.references is None
    assert_equal(pipe(NEW[0]), zero_shot)


@pytest.mark.parametrize("accelerate", [True, False])
def test_a_batch_is_its_images_one_by_one(checkpoint, accelerate):
    pipe = pipeline("anomaly-segmentation", model=str(checkpoint), accelerate=accelerate)
    pipe.set_references(NORMAL)
    single = [pipe(image) for image in NEW]
    for batch_size in (2, 4):
        for result, expected in zip(pipe(NEW, batch_size=batch_size), single, strict=True):
            np.testing.assert_allclose(result["anomaly_map"], expected["anomaly_map"], atol=1e-5)
            assert result["score"] == pytest.approx(expected["score"], abs=1e-5)


class Pictures(torch.utils.data.Dataset):
    """A dataset that notes what is read, and never ends by itself."""

    def __init__(self):
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(NORMAL)

    def __getitem__(self, index: int) -> Image.Image:
        self.read.append(index)
        return NORMAL[index % len(NORMAL)]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(NORMAL)


def test_every_kind_of_input(pipe, tmp_path):
    expected = pipe.set_references(NORMAL)
    for index, image in enumerate(NORMAL):
        image.save(tmp_path / f"{index}.png")
    paths = [tmp_path / f"{index}.png" for index in range(len(NORMAL))]
    column = Dataset.from_dict({"photo": list(map(str, paths))}).cast_column("photo", ImageFeature())
    two = column.add_column("preview", [str(path) for path in reversed(paths)]).cast_column("preview", ImageFeature())
    for images, options in (
        (tuple(NORMAL), {}),
        (iter(NORMAL), {}),
        (paths, {}),
        (np.stack([np.asarray(image) for image in NORMAL]), {}),
        (Pictures(), {}),
        (Stream(), {}),
        (column, {}),
        (KeyDataset(column, "photo"), {}),
        (two, {"image_column": "photo"}),
    ):
        memory = pipe.set_references(images, **options)
        assert memory.digest == expected.digest and memory.pictures == expected.pictures, type(images)
    with pytest.raises(ValueError, match="Which column"):
        pipe.set_references(two)
    one = pipe.set_references(NORMAL[0])
    assert one.pictures == expected.pictures[:1]
    for image in (np.asarray(NORMAL[0]), str(paths[0]), paths[0]):
        assert pipe.set_references(image).digest == one.digest


def test_a_dataset_is_read_image_by_image(pipe):
    """Thousands of references need not lie in memory as pictures."""
    dataset = Pictures()
    pipe.set_references(dataset, batch_size=1)
    assert dataset.read == [0, 1, 2, 3]
    pipe.calibrate(dataset, false_alarm_rate=0.3)
    assert dataset.read == [0, 1, 2, 3] * 3, "once to recognize the references, once to score them"


def test_copies_and_settings_are_passed_on(pipe):
    memory = pipe.set_references(
        NORMAL[:1], weight=1, layers=[0, 3], neighborhood=3, copies="rotations", max_patches=20, source="line 4"
    )
    assert memory.settings.layers == (0, 3) and memory.settings.neighborhood == 3 and not memory.exact
    assert memory.num_patches == 4 * 36 and memory.source == "line 4"
    assert pipe.set_references(NORMAL[:1], weight=1, copies="rotations").exact
    for turn in (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180):
        assert pipe(NORMAL[0].transpose(turn))["score"] < 1e-5
    assert pipe(NORMAL[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT))["score"] > 1e-3


def test_the_former_references_stay_after_an_error(pipe, tmp_path):
    memory = pipe.set_references(NORMAL)
    for images, options, error in (
        ([], {}, ValueError),
        ([NORMAL[0], tmp_path / "missing.png"], {}, FileNotFoundError),
        (NORMAL, {"weight": 3}, ValueError),
        (NORMAL, {"layers": [99]}, ValueError),
        (NORMAL, {"roi_mask": NORMAL[0]}, TypeError),
        (NORMAL, {"regions": True}, TypeError),
        (NORMAL, {"on_error": "skip"}, ValueError),
        (memory, {"layers": [1]}, TypeError),
        (memory, {"copies": "flips"}, TypeError),
        (memory, {"tile_size": 30}, TypeError),
        (None, {"weight": 0.5}, TypeError),
    ):
        with pytest.raises(error):
            pipe.set_references(images, **options)
        assert pipe.references is memory


def test_a_memory_is_shared_by_pipelines_of_one_tower(pipe, checkpoint):
    memory = pipe.set_references(NORMAL)
    expected = pipe(NEW[0])
    other = pipeline("anomaly-segmentation", model=str(checkpoint), accelerate=False)
    given = other.set_references(memory, weight=1)
    assert given.weight == 1 and memory.weight == 0.5
    np.testing.assert_allclose(other(NEW[0], reference_weight=0.5)["anomaly_map"], expected["anomaly_map"], atol=1e-6)
    torch.manual_seed(5)
    stranger = pipeline(
        "anomaly-segmentation", model=tiny_model(), image_processor=VCPCLIPImageProcessor.from_pretrained(checkpoint)
    )
    with pytest.raises(ValueError, match="another image tower"):
        stranger.set_references(memory)
    assert stranger.references is None


# --- preparation of images ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("global_weight", [0.0, 0.4])
def test_tiles(pipe, global_weight):
    tiles = {"tile_size": 40, "tile_overlap": 10, "global_weight": global_weight}
    large = [picture(90, 110, seed) for seed in range(3)]
    memory = pipe.set_references(large, weight=1, **tiles)
    assert len(memory.pictures) == 3 and memory.num_patches == 3 * 36 * (12 + bool(global_weight))
    assert pipe(large[1], **tiles)["score"] < 1e-5 < 1e-3 < pipe(picture(90, 110, 9), **tiles)["score"]
    for options in ({}, {**tiles, "tile_size": 50}, {**tiles, "tile_overlap": 11}, {**tiles, "global_weight": 0.7}):
        with pytest.raises(ValueError, match="references were set with other settings: tiling was"):
            pipe(large[0], **options)
    assert pipe(large[0], reference_weight=0)["score"] > 0, "zero-shot is not refused"
    assert_equal(pipe(large[0], **tiles, tile_batch_size=4), pipe(large[0], **tiles, tile_batch_size=4))
    found = pipe(picture(90, 110, 9), **tiles, output_branch_maps=True)
    np.testing.assert_allclose(found["base_map"], found["reference_map"], atol=1e-6)
    pipe.set_references(large)
    with pytest.raises(ValueError, match="tiling was None"):
        pipe(large[0], **tiles)


def test_tiles_can_be_defaults_of_the_pipeline(checkpoint):
    pipe = pipeline("anomaly-segmentation", model=str(checkpoint), tile_size=40)
    memory = pipe.set_references(NORMAL, weight=1)
    assert memory.conditions["tiling"]["tile_size"] == 40 and pipe(NORMAL[0])["score"] < 1e-5


def test_the_image_head_needs_references_of_whole_pictures():
    torch.manual_seed(0)
    model = tiny_model_with_head()
    pipe = AnomalySegmentationPipeline(model=model, image_processor=VCPCLIPImageProcessor.for_model(model.config))
    pipe.set_references(NORMAL, tile_size=40)
    assert pipe(NEW[0], tile_size=40)["score"] > 0
    with pytest.raises(ValueError, match="these references have patches of tiles only"):
        pipe(NEW[0], tile_size=40, score_mode="image_head")
    pipe.set_references(NORMAL, weight=1, tile_size=40, global_weight=0.5)
    with_whole = {"tile_size": 40, "global_weight": 0.5, "score_mode": "image_head"}
    assert pipe(NORMAL[0], **with_whole)["score"] < 1e-5 < pipe(NEW[0], **with_whole)["score"]


@pytest.mark.parametrize("tiles", [{}, {"tile_size": 40}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("distance", ["scaled", "relative"])
def test_references_among_the_images_are_reported(pipe, warned, tiles, dtype, distance):
    pipe.model.to(dtype)
    pipe.set_references(NORMAL, scale=20, distance=distance, **tiles)
    pipeline_references.logger.warning_once.cache_clear()
    pipe(NEW, batch_size=2, **tiles)
    pipe.calibrate(NORMAL, false_alarm_rate=0.2, **tiles)
    assert not warned
    pipe([NEW[0], NORMAL[2]], batch_size=2, **tiles)
    assert len(warned) == 1 and "Some of these images are references" in warned[0]


def test_references_judged_as_new_images_in_tiles(pipe):
    """The tiles of a reference are left out together."""
    pipe.set_references(NORMAL, weight=1, tile_size=40)
    calibration = pipe.calibrate(NORMAL, false_alarm_rate=0.2, tile_size=40)
    expected = []
    for index in range(4):
        pipe.set_references([*NORMAL[:index], *NORMAL[index + 1 :]], weight=1, tile_size=40)
        expected.append(pipe(NORMAL[index], tile_size=40)["score"])
    assert calibration.leave_one_out and calibration.num_images == 4
    assert calibration.threshold == pytest.approx(max(expected) + 1e-5, abs=2e-6)


def test_a_region_of_interest(pipe):
    pipe.set_references(NORMAL)
    inside = np.zeros((60, 80), np.uint8)
    inside[20:40, 10:50] = 255
    whole, found = pipe(NEW[0]), pipe(NEW[0], roi_mask=Image.fromarray(inside))
    np.testing.assert_allclose(found["anomaly_map"][inside > 0], whole["anomaly_map"][inside > 0], atol=1e-6)
    assert not found["anomaly_map"][inside == 0].any()
    calibration = pipe.calibrate(NORMAL, false_alarm_rate=0.2, roi_mask=Image.fromarray(inside))
    assert calibration.leave_one_out and calibration.threshold > 0


@pytest.mark.parametrize("resize_mode", ["pad", "keep_ratio"])
def test_other_ways_to_resize(checkpoint, resize_mode):
    processor = VCPCLIPImageProcessor.from_pretrained(checkpoint, resize_mode=resize_mode)
    pipe = pipeline("anomaly-segmentation", model=str(checkpoint), image_processor=processor)
    shapes = [picture(60, 80), picture(100, 40, 1)]
    pipe.set_references(shapes, weight=1)
    for image in shapes:
        result = pipe(image)
        assert result["score"] < 1e-5 and result["anomaly_map"].shape == (image.height, image.width)
    assert pipe(picture(100, 40, 5))["score"] > 1e-3
    pipe.image_processor.resize_mode = "squash"
    with pytest.raises(ValueError, match=f"resize_mode was '{resize_mode}', is 'squash'"):
        pipe(shapes[0])
    pipe.image_processor.resize_mode, pipe.image_processor.size = resize_mode, SizeDict(56, 56)
    with pytest.raises(ValueError, match=r"size was \[48, 48\], is \[56, 56\]"):
        pipe(shapes[0])


def test_data_of_16_bits(pipe):
    values = [np.random.default_rng(seed).integers(0, 4096, (50, 60), dtype=np.uint16) for seed in range(3)]
    pipe.set_references(values, weight=1, input_range=(0, 4095))
    with pytest.raises(ValueError, match=r"input_range was \[0.0, 4095.0\], is \[0.0, 1023.0\]"):
        pipe(values[0], input_range=(0, 1023))
    assert pipe(values[0], input_range=(0, 4095))["score"] < 1e-6
    calibration = pipe.calibrate(values, false_alarm_rate=0.3, input_range=(0, 4095))
    assert calibration.leave_one_out and calibration.num_images == 3


# --- the constructor ------------------------------------------------------------------------------------------------


def test_references_of_the_constructor_set_thresholds(checkpoint):
    pipe = pipeline("anomaly-segmentation", model=str(checkpoint), reference_images=NORMAL, false_alarm_rate=0.2)
    assert len(pipe.references.pictures) == 4
    image = pipe.image_processor.calibration["image"]
    assert image["leave_one_out"] and image["false_alarm_bound"] == 0.2 and image["num_images"] == 4
    expected = []
    other = pipeline("anomaly-segmentation", model=str(checkpoint))
    for index in range(4):
        other.set_references([*NORMAL[:index], *NORMAL[index + 1 :]])
        expected.append(other(NORMAL[index])["score"])
    assert pipe.image_processor.image_threshold == pytest.approx(max(expected) + 1e-5, abs=2e-6)
    assert pipe(NEW[0])["label"] in ("normal", "anomalous") and pipe(NORMAL[0])["label"] == "normal"


def test_a_single_reference_sets_no_threshold(checkpoint):
    pipe = pipeline("anomaly-segmentation", model=str(checkpoint), reference_images=NORMAL[0])
    assert len(pipe.references.pictures) == 1 and pipe(NEW[0])["label"] is None
    with pytest.raises(ValueError, match=r"false_alarm_rate=0.2 needs two reference_images or more"):
        pipeline("anomaly-segmentation", model=str(checkpoint), reference_images=NORMAL[:1], false_alarm_rate=0.2)
    with pytest.raises(ValueError, match=r"false_alarm_rate=0.2 needs reference_images"):
        pipeline("anomaly-segmentation", model=str(checkpoint), false_alarm_rate=0.2)
    with pytest.raises(ValueError, match="at least one normal picture"):
        pipeline("anomaly-segmentation", model=str(checkpoint), reference_images=[])


@pytest.mark.parametrize("kind", ["list", "dataset"])
def test_more_references_than_the_memory_holds_are_split(checkpoint, monkeypatch, warned, kind):
    """A memory that is a coreset cannot score its own pictures; half of them set the thresholds instead."""
    monkeypatch.setattr(
        AnomalySegmentationPipeline,
        "set_references",
        lambda self, images, plain=AnomalySegmentationPipeline.set_references: plain(self, images, max_patches=100),
    )
    images = NORMAL if kind == "list" else Pictures()
    pipe = pipeline("anomaly-segmentation", model=str(checkpoint), reference_images=images, false_alarm_rate=0.4)
    assert len(pipe.references.pictures) == 2 and pipe.references.exact
    assert any("set_references(images, max_patches=144), then calibrate(images)" in each for each in warned)
    image = pipe.image_processor.calibration["image"]
    assert image["num_images"] == 2 and "leave_one_out" not in image and image["false_alarm_bound"] == 1 / 3
    assert pipe(NORMAL[0], reference_weight=1)["score"] < 1e-6 < pipe(NORMAL[1], reference_weight=1)["score"]


def test_unreadable_references_of_the_constructor(checkpoint, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    images = [*NORMAL, tmp_path / "bad.png"]
    pipe = pipeline("anomaly-segmentation", model=str(checkpoint), reference_images=images, on_error="return")
    assert len(pipe.references.pictures) == 4
    image = pipe.image_processor.calibration["image"]
    assert image["leave_one_out"] and image["num_images"] == 4
    with pytest.raises(ValueError, match=r"bad\.png"):
        pipeline("anomaly-segmentation", model=str(checkpoint), reference_images=images)


# --- thresholds -----------------------------------------------------------------------------------------------------


def test_references_are_scored_as_new_images(pipe):
    pipe.set_references(NORMAL)
    found = pipe.calibrate(NORMAL, false_alarm_rate=0.2, pixel_false_alarm_rate=0.2, batch_size=3)
    pixel = pipe.image_processor.calibration["pixel"]
    assert found.leave_one_out and pixel["leave_one_out"] and "num_left_out" not in pixel
    scores, fractions = [], []
    for index in range(4):
        pipe.set_references([*NORMAL[:index], *NORMAL[index + 1 :]])
        result = pipe(NORMAL[index], threshold=pixel["threshold"], reference_weight=None)
        scores.append(result["score"])
        fractions.append((np.asarray(result["mask"]) > 0).mean())
    assert found.threshold == pytest.approx(max(scores) + 1e-5, abs=2e-6) and found.num_above == 0
    assert (sum(fractions) + 1) / 5 <= pixel["false_alarm_bound"] + 1e-9
    assert "each scored against the other references" in found.describe()
    # some of the references: each against all others
    pipe.set_references(NORMAL)
    some = pipe.calibrate(NORMAL[1:3], false_alarm_rate=0.4)
    assert some.leave_one_out and some.num_images == 2
    assert some.threshold == pytest.approx(max(scores[1:3]) + 1e-5, abs=2e-6)


def test_a_reference_that_is_given_twice_counts_once(pipe):
    """The guarantee needs different images: five copies of two pictures are two."""
    pipe.set_references([NORMAL[0], NORMAL[0], NORMAL[1], NORMAL[0]])
    assert len(pipe.references.pictures) == 2
    seen = {}
    calibration = pipe.calibrate(
        [NORMAL[0], NORMAL[0], NORMAL[1], NORMAL[0]], false_alarm_rate=0.4, on_result=seen.__setitem__
    )
    assert seen[1] == seen[3] == {"left_out": "copy of another image"} and "score" in seen[0] and "score" in seen[2]
    assert calibration.num_images == 2 and calibration.false_alarm_bound == 1 / 3 and calibration.leave_one_out
    assert calibration.num_left_out == 2


def test_references_among_other_images_are_left_out(pipe, warned):
    pipe.set_references(NORMAL)
    expected = pipe.calibrate(NEW, false_alarm_rate=0.2)
    assert expected.leave_one_out is None and expected.num_left_out is None and not warned
    seen = {}
    found = pipe.calibrate([NORMAL[0], *NEW, NORMAL[2]], false_alarm_rate=0.2, on_result=seen.__setitem__)
    assert found.threshold == expected.threshold and found.num_images == 4 and found.num_left_out == 2
    assert {position for position, result in seen.items() if "score" in result} == {1, 2, 3, 4}
    assert seen[0] == seen[5] == {"left_out": "one of the references"}
    assert warned == ["2 of 6 images are references, and are left out of the calibration."]
    labels = [0, 0, 1, 0, 1, 0]
    by_f1 = pipe.calibrate([NORMAL[0], *NEW, NORMAL[2]], labels=labels)
    assert by_f1.threshold == pipe.calibrate(NEW, labels=labels[1:5]).threshold and by_f1.num_images == 4
    with pytest.raises(ValueError, match="Without the references, all of these images have the same label"):
        pipe.calibrate([*NORMAL, *NEW], labels=[0] * 4 + [1] * 4)
    with pytest.raises(ValueError, match="Expected one label for each of 6 images, got 5"):
        pipe.calibrate([NORMAL[0], *NEW, NORMAL[2]], labels=labels[1:])


def test_references_cannot_be_calibrated_on_if_they_cannot_be_scored_without_themselves(pipe):
    memory = pipe.set_references(NORMAL, max_patches=100)
    assert not memory.exact
    with pytest.raises(
        ValueError, match=r"All of these images are references.*coreset.*max_patches \(144 keeps all\)"
    ):
        pipe.calibrate(NORMAL)
    assert pipe.calibrate(NEW, false_alarm_rate=0.2).num_images == 4
    pipe.set_references(NORMAL[0])
    with pytest.raises(ValueError, match=r"All of these images are references.*single reference"):
        pipe.calibrate(NORMAL[:1])
    pipe.set_references(NORMAL)
    with pytest.raises(ValueError, match=r"All of these images are references.*with labels"):
        pipe.calibrate(NORMAL, labels=[0, 1, 0, 1])
    # without weight, they have no part in the scores, and are images as others
    zero_shot = pipe.calibrate(NORMAL, false_alarm_rate=0.2, reference_weight=0)
    assert zero_shot.leave_one_out is None and zero_shot.num_images == 4


def test_unreadable_images_among_references(pipe, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    pipe.set_references(NORMAL)
    expected = pipe.calibrate(NORMAL, false_alarm_rate=0.2)
    found = pipe.calibrate([tmp_path / "bad.png", *NORMAL], false_alarm_rate=0.2, on_error="return")
    assert found.threshold == expected.threshold and found.leave_one_out and found.num_images == 4
    with pytest.raises(ValueError, match=r"bad\.png"):
        pipe.calibrate([tmp_path / "bad.png", *NORMAL])


def test_thresholds_belong_to_the_references(pipe, of_thresholds):
    """A calibration with references has no verdict without them, without has none with them, and others have none."""
    pipe.calibrate(NORMAL, false_alarm_rate=0.2)
    assert pipe(NEW[0])["label"] is not None
    pipe.set_references(NORMAL)
    assert pipe(NEW[0])["label"] is pipe(NEW[0])["mask"] is None and "without references" in of_thresholds[-1]
    assert pipe(NEW[0], reference_weight=0)["label"] is not None
    pipe.calibrate(NORMAL, false_alarm_rate=0.2)
    assert pipe(NEW[0])["label"] is not None and pipe(NEW[0], reference_weight=0.5)["label"] is not None
    count = len(of_thresholds)
    for options in ({"reference_weight": 0}, {"reference_weight": 0.4}):
        assert pipe(NEW[0], **options)["label"] is None
    assert "with references" in of_thresholds[count]
    assert "reference_weight was 0.5, is 0.4" in of_thresholds[-1] and "other references" not in of_thresholds[-1]
    pipe.set_references(NORMAL[:3])
    assert pipe(NEW[0])["label"] is None and "other references" in of_thresholds[-1]
    pipe.set_references(None)
    assert pipe(NEW[0])["label"] is None and "with references" in of_thresholds[-1]
    pipe.set_references(NORMAL)
    assert pipe(NEW[0])["label"] is not None, "the same references again"
    assert pipe(NEW[0], threshold=0.5, reference_weight=0.1)["label"] is not None


# --- the model ------------------------------------------------------------------------------------------------------


def test_a_model_that_is_changed_after_the_references_were_set(pipe):
    pipe.set_references(NORMAL)
    expected = pipe(NEW[0])
    pipe.model.to(torch.bfloat16)
    found = pipe(NEW[0])
    np.testing.assert_allclose(found["anomaly_map"], expected["anomaly_map"], atol=0.05)
    pipe.model.to(torch.float32)
    np.testing.assert_allclose(pipe(NEW[0])["anomaly_map"], expected["anomaly_map"], atol=0.05)
    torch.manual_seed(5)
    pipe.model = tiny_model()
    with pytest.raises(ValueError, match="another image tower"):
        pipe(NEW[0])
    assert pipe(NEW[0], reference_weight=0)["score"] > 0
    assert len(pipe.set_references(NORMAL).pictures) == 4 and pipe(NORMAL[0], reference_weight=1)["score"] < 1e-5


@pytest.mark.parametrize("accelerate", [True, False])
def test_a_tower_that_is_changed_in_place(checkpoint, accelerate, tmp_path):
    pipe = pipeline("anomaly-segmentation", model=str(checkpoint), accelerate=accelerate)
    pipe.set_references(NORMAL)
    pipe(NEW[0])
    with torch.no_grad():
        for parameter in pipe.model.clip.vision_model.parameters():
            parameter.add_(0.01)
    with pytest.raises(ValueError, match="another image tower"):
        pipe(NEW[0])
    with pytest.raises(ValueError, match="another image tower"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_pipeline_can_be_pickled(pipe):
    pipe.set_references(NORMAL)
    pipe.calibrate(NORMAL, false_alarm_rate=0.2)
    expected = pipe(NEW[0])
    again = pickle.loads(pickle.dumps(pipe))
    assert again.references.digest == pipe.references.digest and again.references is not pipe.references
    assert_close(again(NEW[0]), expected)
    assert expected["label"] is not None


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_reloaded_gives_the_same_results(checkpoint, tmp_path, dtype):
    pipe = pipeline("anomaly-segmentation", model=str(checkpoint), dtype=dtype)
    pipe.set_references(NORMAL, weight=0.4, neighborhood=3, copies="flips", source="line 4")
    pipe.calibrate(NORMAL, false_alarm_rate=0.2, pixel_false_alarm_rate=0.2)
    pipe.save_pretrained(tmp_path)
    again = pipeline("anomaly-segmentation", model=str(tmp_path), dtype=dtype)
    assert again.references.digest == pipe.references.digest
    assert again.references.describe() == pipe.references.describe()
    for image in (*NEW, NORMAL[0]):
        result, expected = again(image), pipe(image)
        assert_close(result, expected)
        assert result["label"] is not None and result["image_threshold"] == expected["image_threshold"]
        assert np.array_equal(np.asarray(result["mask"]), np.asarray(expected["mask"]))
    # references can be scored without themselves after a reload too
    assert again.calibrate(NORMAL, false_alarm_rate=0.2).threshold == pytest.approx(
        pipe.image_processor.calibration["image"]["threshold"], abs=1e-6
    )


def test_a_checkpoint_without_references_has_no_file_of_them(pipe, tmp_path):
    pipe.set_references(NORMAL)
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / REFERENCES_FILE).is_file()
    again = pipeline("anomaly-segmentation", model=str(tmp_path))
    again.set_references(None)
    again.save_pretrained(tmp_path)
    assert not (tmp_path / REFERENCES_FILE).exists()
    assert pipeline("anomaly-segmentation", model=str(tmp_path)).references is None


def test_an_adapter_has_references_too(checkpoint, tmp_path):
    clip = tmp_path / "clip"
    torch.manual_seed(4)
    backbone = tiny_clip()
    backbone.save_pretrained(clip)
    model = tiny_model(backbone_name_or_path=str(clip))
    model.clip.load_state_dict(backbone.state_dict())
    processor = VCPCLIPImageProcessor.from_pretrained(checkpoint)
    pipe = pipeline("anomaly-segmentation", model=model, image_processor=processor)
    pipe.set_references(NORMAL)
    folder = tmp_path / "adapter"
    pipe.save_pretrained(folder, adapter_only=True)
    again = pipeline("anomaly-segmentation", model=str(folder))
    assert again.references.digest == pipe.references.digest
    assert_close(again(NEW[0]), pipe(NEW[0]))
    # with another backbone, the references mean nothing
    torch.manual_seed(5)
    shutil.rmtree(clip)
    tiny_clip().save_pretrained(clip)
    with pytest.raises(ValueError, match=f"another image tower.*delete {REFERENCES_FILE}"):
        pipeline("anomaly-segmentation", model=str(folder))


def test_a_damaged_file_is_named(pipe, tmp_path):
    pipe.set_references(NORMAL)
    pipe.save_pretrained(tmp_path)
    (tmp_path / REFERENCES_FILE).write_bytes(b"\0" * 50)
    with pytest.raises(ValueError, match=rf"{tmp_path / REFERENCES_FILE}.*delete it and set the references again"):
        pipeline("anomaly-segmentation", model=str(tmp_path))


def test_a_model_in_memory_has_the_references_of_its_folder(pipe, tmp_path):
    pipe.set_references(NORMAL)
    pipe.save_pretrained(tmp_path)
    model = VCPCLIPModel.from_pretrained(tmp_path)
    processor = VCPCLIPImageProcessor.from_pretrained(tmp_path)
    again = pipeline("anomaly-segmentation", model=model, image_processor=processor)
    assert again.references.digest == pipe.references.digest


# --- a convolutional stem -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hybrid_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hybrid")
    torch.manual_seed(333)
    model = tiny_hybrid(reference_layers=["stem"], reference_scale=3.0)
    model.save_pretrained(folder)
    VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=1.0).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("layers", [None, ["stem", 4]])
def test_references_by_the_features_of_a_stem(hybrid_checkpoint, layers, tmp_path):
    pipe = pipeline("anomaly-segmentation", model=str(hybrid_checkpoint))
    memory = pipe.set_references(NORMAL, layers=layers)
    assert memory.settings.layers == tuple(layers or ["stem"]) and memory.settings.scale == 3.0
    assert pipe(NORMAL[1], reference_weight=1)["score"] < 1e-4 < 1e-3 < pipe(NEW[0], reference_weight=1)["score"]
    pipe.calibrate(NORMAL, false_alarm_rate=0.25)
    expected = pipe(NEW[0])
    assert expected["label"] is not None
    pipe.save_pretrained(tmp_path)
    again = pipeline("anomaly-segmentation", model=str(tmp_path))
    assert again.references.digest == memory.digest
    assert_close(again(NEW[0]), expected)
    tiles = {"tile_size": 40, "global_weight": 0.2}
    of_tiles = again.set_references(NORMAL, layers=layers, **tiles)
    assert of_tiles.num_patches > memory.num_patches
    assert again(NORMAL[0], reference_weight=1, **tiles)["score"] < 1e-4
