"""A pipeline that computes the next batch while the results of a batch are used, as with a GPU."""

import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from tests.common import tiny_model, tiny_tokenizer
from tests.pipeline_run import picture
from vcp_clip_hf import (
    AnomalySegmentationPipeline,
    VCPCLIPImageProcessor,
    launched_batch,
    pipeline_references,
    pipeline_segmentation,
)
from vcp_clip_hf.pipeline_batches import BatchResults, image_batches
from vcp_clip_hf.pipeline_inputs import ListedImages


SIZES = [(60, 80), (48, 48), (60, 80), (33, 120), (60, 80), (48, 48), (60, 80)]


@pytest.fixture(scope="module")
def pictures():
    return [picture(*size, seed=index) for index, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def inspect():
    torch.manual_seed(0)
    model = tiny_model()
    processor = VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=2.0)
    return AnomalySegmentationPipeline(
        model=model, image_processor=processor, tokenizer=tiny_tokenizer(), device="cpu"
    )


@pytest.fixture
def overlapping(monkeypatch):
    """Overlap on the CPU as on a GPU."""
    monkeypatch.setattr(AnomalySegmentationPipeline, "_overlaps", True)


class Counted(Dataset):
    """Images that count how many of them were read."""

    def __init__(self, images):
        self.images, self.read = images, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.read += 1
        return self.images[index]


def assert_same(result, expected):
    assert list(result) == list(expected)
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(result[name], value, rtol=0, atol=1e-5, err_msg=name)
        elif isinstance(value, float):
            assert result[name] == pytest.approx(value, abs=1e-5), name
        elif isinstance(value, Image.Image):
            differs = np.asarray(value) != np.asarray(result[name])  # rounding changes a color by one
            assert value.size == result[name].size and differs.mean() < 1e-3, (name, differs.mean())


OPTIONS = {
    "scores": {},
    "masks and pictures": {"threshold": 0.5, "heatmap": True, "output_image": True, "regions": True},
    "further maps": {"output_branch_maps": True, "output_layer_maps": True, "output_uncertainty": True},
    "top_k": {"score_mode": "top_k"},
    "names": {"threshold": 0.4, "regions": True, "defect_names": ["scratch", "hole"]},
    "tiles": {"tile_size": 40},
    "a region": {"roi_mask": np.arange(80)[None].repeat(60, 0) > 20},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_results_are_those_of_each_image_alone(inspect, pictures, monkeypatch, options, num_workers):
    images = [each for each in pictures if "roi_mask" not in options or each.size == (80, 60)]
    expected = [inspect(image, **options) for image in images]
    monkeypatch.setattr(AnomalySegmentationPipeline, "_overlaps", True)
    results = inspect(images, batch_size=3, num_workers=num_workers, **options)
    for result, wanted in zip(results, expected, strict=True):
        assert_same(result, wanted)


def test_sizes_of_pinned_batches_are_tuples(inspect, pictures):
    (batch,) = inspect.get_iterator(pictures[:1], 0, 1, {}, {}, {}).batches
    batch["size"] = [list(size) for size in batch["size"]]  # as some versions of PyTorch pin them
    (result,) = inspect.launch(batch, output_maps=False)()
    assert result["size"] == SIZES[0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_references_are_used_and_recognized(inspect, pictures, overlapping, num_workers, caplog, monkeypatch):
    monkeypatch.setattr(pipeline_references.logger, "warning_once", pipeline_references.logger.warning)
    pictured = [picture(60, 80, seed) for seed in (20, 21)]
    inspect.set_references(pictured)
    try:
        expected = [inspect(image) for image in pictures]
        for result, wanted in zip(inspect(pictures, batch_size=3, num_workers=num_workers), expected, strict=True):
            assert_same(result, wanted)
        assert "are references" not in caplog.text
        inspect([pictures[0], pictured[1]], batch_size=2, num_workers=num_workers)
        assert "are references" in caplog.text
    finally:
        inspect.set_references(None)


def test_one_batch_is_computed_ahead_and_no_more(inspect, pictures, overlapping):
    images = Counted(pictures)
    for position, _ in enumerate(inspect(images, batch_size=2)):
        assert images.read == min(len(pictures), 2 * (position // 2 + 2))


def test_nothing_is_computed_ahead_on_a_cpu_from_a_generator_or_in_tiles(inspect, pictures, monkeypatch):
    images = Counted(pictures)
    for position, _ in enumerate(inspect(images, batch_size=2)):
        assert images.read == min(len(pictures), 2 * (position // 2 + 1))
    monkeypatch.setattr(AnomalySegmentationPipeline, "_overlaps", True)
    images = Counted(pictures)
    for position, _ in enumerate(inspect((images[index] for index in range(len(images))), batch_size=2)):
        assert images.read == min(len(pictures), 2 * (position // 2 + 1))
    images = Counted(pictures)
    next(iter(inspect(images, tile_size=40)))
    assert images.read == 1


def test_a_generator_may_wait_for_the_last_result(inspect, pictures, overlapping):
    """Feed images one by one, each after the result of the one before."""
    fed, got = queue.Queue(), queue.Queue()

    def run():
        for result in inspect(each for each in iter(fed.get, None)):
            got.put(result["score"])

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    for image in pictures[:3]:
        fed.put(image)
        assert got.get(timeout=60) == pytest.approx(inspect(image)["score"], abs=1e-6)
    fed.put(None)
    thread.join(60)
    assert not thread.is_alive()


def test_an_unreadable_image_keeps_its_place_or_ends_the_call_after_the_results_before_it(
    inspect, pictures, overlapping, tmp_path
):
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    images = [*pictures[:4], str(bad), pictures[5]]
    results = inspect(images, batch_size=2, on_error="return")
    assert ["error" in result for result in results] == [False] * 4 + [True, False] and "bad.png" in results[4][
        "error"
    ]
    seen = []
    with pytest.raises(ValueError, match=r"bad\.png"):
        for result in inspect(ListedImages(images), batch_size=2):
            seen.append(result)
    assert len(seen) == 4


def test_an_interruption_comes_at_once():
    def batches():
        yield {"number": 0}
        raise KeyboardInterrupt

    results = iter(BatchResults(batches(), lambda inputs: lambda: [inputs], lambda found: found, 1))
    with pytest.raises(KeyboardInterrupt):
        next(results)


def test_the_last_step_can_be_taken_in_other_threads(inspect, pictures, overlapping):
    options = {"threshold": 0.5, "regions": True, "batch_size": 3}
    unfinished = list(inspect.unfinished(ListedImages(pictures), **options))
    with ThreadPoolExecutor(3) as pool:
        results = [pool.submit(each) for each in unfinished]
    for result, image in zip(results, pictures, strict=True):
        assert_same(result.result(), inspect(image, threshold=0.5, regions=True))


@pytest.mark.parametrize("overlaps", [False, True])
def test_pictures_stay_in_the_workers_unless_something_needs_them(inspect, pictures, monkeypatch, overlaps):
    monkeypatch.setattr(AnomalySegmentationPipeline, "_overlaps", overlaps)

    def first_batch(**options):
        preprocess, forward, postprocess = inspect._merged_parameters(**options)
        return next(iter(inspect.get_iterator(pictures, 1, 3, preprocess, forward, postprocess).batches))

    batch = first_batch(threshold=0.5, regions=True)
    assert batch["image"] == [None] * 3 and batch["size"] == SIZES[:3]
    assert batch["pixel_values"].dtype == (torch.uint8 if overlaps else torch.float32)
    assert batch["pixel_values"].is_shared()
    for options in ({"heatmap": True}, {"output_image": True}, {"tile_size": 40}):
        assert [image.size for image in first_batch(**options)["image"]] == [size[::-1] for size in SIZES[:3]]


def test_a_pipeline_with_its_own_preprocess_prepares_all_images(inspect, pictures, overlapping):
    class Darker(AnomalySegmentationPipeline):
        def preprocess(self, image, **arguments):
            return super().preprocess(Image.eval(image, lambda value: value // 2), **arguments)

    darker = Darker(model=inspect.model, image_processor=inspect.image_processor, device="cpu")
    for result, image in zip(darker(pictures, batch_size=3), pictures, strict=True):
        assert result["score"] == pytest.approx(
            inspect(Image.eval(image, lambda value: value // 2))["score"], abs=1e-6
        )


class WithSteps(AnomalySegmentationPipeline):
    """A pipeline as users of transformers write them."""

    def preprocess(self, image, **arguments):
        inputs = super().preprocess(image, **arguments)
        return {name: inputs[name] for name in ("image", "pixel_values", "roi_mask", "error")}

    def _forward(self, inputs, output_pixels=False, **arguments):
        found = super()._forward(inputs, **arguments)
        assert inputs["pixel_values"].is_floating_point()
        for result in found["results"]:
            result["score"] /= 2
        return found

    def postprocess(self, model_outputs, **arguments):
        found = model_outputs["results"]
        size = (found[0] if isinstance(found, list) else found)["image"].size
        return {**super().postprocess(model_outputs, **arguments), "pixels": size[0] * size[1]}


@pytest.mark.parametrize("overlaps", [False, True])
def test_a_subclass_may_replace_every_step(inspect, pictures, monkeypatch, overlaps):
    monkeypatch.setattr(AnomalySegmentationPipeline, "_overlaps", overlaps)
    ours = WithSteps(model=inspect.model, image_processor=inspect.image_processor, device="cpu")
    expected = [inspect(image) for image in pictures]
    for results in (ours(pictures, batch_size=3, output_pixels=True), map(ours, pictures)):
        for result, wanted in zip(results, expected, strict=True):
            assert result["score"] == pytest.approx(wanted["score"] / 2, abs=1e-6)
            assert result["pixels"] == wanted["anomaly_map"].size


def test_the_steps_can_be_called_by_hand(inspect, pictures):
    expected = inspect(pictures[0])
    inputs = inspect.preprocess(pictures[0])
    assert_same(inspect.postprocess(inspect.forward(inputs)), expected)
    with torch.no_grad():
        assert_same(inspect.postprocess(inspect._forward(inputs)), expected)


def test_maps_can_be_left_out(inspect, pictures, monkeypatch):
    copied = []
    launched = pipeline_segmentation.LaunchedBatch
    monkeypatch.setattr(
        pipeline_segmentation,
        "LaunchedBatch",
        lambda groups, stacks, fields: copied.append([*stacks]) or launched(groups, stacks, fields),
    )
    full = inspect(pictures, threshold=0.5, min_area=30, regions=True)
    for options, fields in (
        ({"threshold": 0.5}, ["score"]),
        ({"threshold": 0.5, "min_area": 30, "regions": True}, ["score", "anomaly_map"]),
    ):
        copied.clear()
        results = inspect(pictures, output_maps=False, batch_size=4, **options)
        assert copied == [fields] * 2
        for result, whole, image in zip(results, full, pictures, strict=True):
            assert "anomaly_map" not in result and "mask" not in result
            assert result["size"] == (image.height, image.width)
            assert result["score"] == pytest.approx(whole["score"], abs=1e-6)
            if "regions" in options:
                assert result["label"] == whole["label"] and len(result["regions"]) == len(whole["regions"])
    segments = inspect(pictures[0], threshold=0.5, output_maps=False, output_format="image-segmentation")
    assert segments and segments[0]["mask"].size == pictures[0].size


@pytest.mark.parametrize("kind", sorted(OPTIONS.keys() - {"tiles"}))
def test_nothing_waits_for_the_device_before_the_copies(kind, pictures, monkeypatch):
    model, options = tiny_model(), OPTIONS[kind]
    processor = VCPCLIPImageProcessor.for_model(model.config)
    pipe = AnomalySegmentationPipeline(
        model=model, image_processor=processor, tokenizer=tiny_tokenizer(), device="cpu"
    )
    pipe.set_references([picture(60, 80, seed) for seed in (20, 21)])
    images = [each for each in pictures if "roi_mask" not in options or each.size == (80, 60)]
    preprocess, forward, postprocess = pipe._merged_parameters(**options)
    monkeypatch.setattr(AnomalySegmentationPipeline, "_overlaps", True)
    (batch,) = pipe.get_iterator(images, 0, 9, preprocess, forward, postprocess).batches
    # tensors without values, which cannot be read
    pipe.model.to("meta")
    pipe.device = torch.device("meta")
    digest = pipe.references.digest
    pipe._references = pipe.references.to("meta")
    pipe.references.digest, pipe.references.tower = digest, {}  # read once for all calls
    copied = []
    monkeypatch.setattr(launched_batch, "HostCopy", copied.extend)
    pipe.launch(batch, **forward)
    assert len(copied) >= 2 and {each.device.type for each in copied} == {"meta"}


def test_images_without_a_length_have_one_worker(caplog):
    batches = image_batches(iter([1, 2, 3]), lambda image: {"image": image}, {}, 2, batch_size=2)
    assert batches.num_workers == 1 and "num_workers=2" in caplog.text
    assert [batch["image"] for batch in batches] == [[1, 2], [3]]


@pytest.mark.parametrize("name", ["scores", "masks and pictures", "further maps", "top_k", "names"])
def test_inputs_of_several_shapes_in_a_batch_give_the_results_of_single_images(pictures, name, overlapping):
    torch.manual_seed(0)
    model = tiny_model()
    processor = VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=2.0, resize_mode="keep_ratio")
    inspect = AnomalySegmentationPipeline(
        model=model, image_processor=processor, tokenizer=tiny_tokenizer(), device="cpu"
    )
    inspect.set_references(pictures[:2])
    assert len({processor(image, return_tensors="pt").pixel_values.shape for image in pictures}) == 3
    expected = [inspect(image, **OPTIONS[name]) for image in pictures]
    for batch_size in (4, 7):
        for result, wanted in zip(inspect(pictures, batch_size=batch_size, **OPTIONS[name]), expected, strict=True):
            assert_same(result, wanted)
