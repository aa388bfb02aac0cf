"""Every kind of input of the pipeline: images, collections, files that cannot be read, and files at a reduced size."""

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from datasets import Image as ImageFeature
from PIL import Image
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from tests.pipeline_run import SIZES, assert_same, picture, save_checkpoint


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


def test_the_picture_that_the_model_got(inspect, pictures, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # rotated by 90 degrees
    pictures[0].convert("L").save(tmp_path / "turned.png", exif=turned)
    result = inspect(str(tmp_path / "turned.png"), output_image=True)
    assert result["image"].mode == "RGB" and result["image"].size == pictures[0].size[::-1]
    assert result["anomaly_map"].shape == result["image"].size[::-1]
    assert "image" not in inspect(pictures[0])


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
