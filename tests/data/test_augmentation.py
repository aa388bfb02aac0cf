"""Augmentation of image and mask: geometry, probabilities, seeds."""

import pickle
from dataclasses import fields, replace

import datasets
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from vcp_clip_hf.data.augmentation import (
    AugmentationConfig,
    AugmentedDataset,
    TrainingAugmentation,
    augmentation_rng,
    mosaic,
)


OFF = AugmentationConfig(
    rotate_prob=0, quarter_turn_prob=0, brightness_contrast_prob=0, noise_prob=0, blur_or_jitter_prob=0
)


def picture(seed: int = 0, width: int = 60, height: int = 40) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(40, 210, (height, width, 3), dtype=np.uint8))


def marks(width: int = 60, height: int = 40) -> Image.Image:
    """Return a mask whose shape has no symmetry."""
    mask = np.zeros((height, width), np.uint8)
    mask[5:30, 8:14] = 255
    mask[5:11, 8:40] = 255
    return Image.fromarray(mask)


def test_the_paper_s_probabilities_are_the_defaults():
    config = AugmentationConfig()
    assert {config.rotate_prob, config.quarter_turn_prob, config.noise_prob} == {0.5}
    assert {config.brightness_contrast_prob, config.blur_or_jitter_prob} == {0.5}
    assert config.rotate_limit == 30 and config.mosaic_prob == 0 and config.noise_variance == (10, 50)


def test_everything_off_changes_nothing():
    image, mask = TrainingAugmentation(OFF)(picture(), marks(), augmentation_rng(0, 0, 0))
    assert image.tobytes() == picture().tobytes() and mask.tobytes() == marks().tobytes()


@pytest.mark.parametrize("geometry", [{"rotate_prob": 1.0}, {"quarter_turn_prob": 1.0}, {}])
def test_image_and_mask_move_together(geometry):
    """With the mask as the image, the result must equal the mask, except for resampling at its border."""
    config = replace(OFF, **(geometry or {"rotate_prob": 1.0, "quarter_turn_prob": 1.0}))
    moved = 0
    for index in range(20):
        image, mask = TrainingAugmentation(config)(marks().convert("RGB"), marks(), augmentation_rng(1, 0, index))
        seen, marked = np.asarray(image)[..., 0], np.asarray(mask)
        assert mask.mode == "L" and set(np.unique(marked)) == {0, 255} and image.size == mask.size
        assert (np.abs(seen.astype(int) - marked) > 128).mean() < 0.002
        moved += marked.shape != (40, 60) or not np.array_equal(marked, np.asarray(marks()))
    assert moved >= 10


def test_rotation_keeps_the_size_and_mirrors_the_border():
    config = replace(OFF, rotate_prob=1.0)
    white = Image.new("RGB", (31, 17), (255, 255, 255))
    for index in range(20):
        image, mask = TrainingAugmentation(config)(white, None, augmentation_rng(2, 0, index))
        assert image.size == (31, 17) and mask is None
        assert np.asarray(image).min() == 255  # no black corner


def test_rotation_turns_by_the_angle_drawn():
    """A bright spot away from the center moves by the angle."""
    spot = np.zeros((81, 81, 3), np.uint8)
    spot[39:42, 64:67] = 255
    for index in range(5):
        rng = augmentation_rng(3, 0, index)
        image, _ = TrainingAugmentation(replace(OFF, rotate_prob=1.0))(Image.fromarray(spot), None, rng)
        rng = augmentation_rng(3, 0, index)
        rng.random()
        angle = np.deg2rad(rng.uniform(-30, 30))
        weight = np.asarray(image)[..., 0].astype(float)
        y, x = np.mgrid[:81, :81]
        found = (weight * x).sum() / weight.sum() - 40, (weight * y).sum() / weight.sum() - 40
        assert found == pytest.approx((25 * np.cos(angle), -25 * np.sin(angle)), abs=0.6)


def test_quarter_turns_are_all_four_and_equally_likely():
    config = replace(OFF, quarter_turn_prob=1.0)
    mask = np.asarray(marks(40, 40))
    counts = dict.fromkeys(range(4), 0)
    for index in range(400):
        _, turned = TrainingAugmentation(config)(picture(0, 40, 40), marks(40, 40), augmentation_rng(4, 0, index))
        counts[next(k for k in range(4) if np.array_equal(np.rot90(mask, k), np.asarray(turned)))] += 1
    assert min(counts.values()) > 65 and max(counts.values()) < 140


@pytest.mark.parametrize(
    "name", ["rotate_prob", "brightness_contrast_prob", "noise_prob", "blur_or_jitter_prob", "quarter_turn_prob"]
)
def test_each_step_has_its_probability(name):
    augment = TrainingAugmentation(replace(OFF, **{name: 0.5}))
    image = picture(0, 24, 24)
    changed = sum(augment(image, None, augmentation_rng(5, 0, i))[0].tobytes() != image.tobytes() for i in range(300))
    expected = 150 * (0.75 if name == "quarter_turn_prob" else 1.0)  # one of the four turns is by 0 degrees
    assert abs(changed - expected) < 40


def test_photometric_steps_leave_the_mask_alone():
    config = replace(OFF, brightness_contrast_prob=1.0, noise_prob=1.0, blur_or_jitter_prob=1.0)
    for index in range(10):
        image, mask = TrainingAugmentation(config)(picture(), marks(), augmentation_rng(6, 0, index))
        assert mask.tobytes() == marks().tobytes() and image.tobytes() != picture().tobytes()


def test_noise_has_its_variance():
    gray = Image.new("RGB", (128, 128), (128, 128, 128))
    config = replace(OFF, noise_prob=1.0, noise_variance=(30.0, 30.0))
    noisy = np.asarray(TrainingAugmentation(config)(gray, None, augmentation_rng(7, 0, 0))[0], np.float64)
    assert noisy.mean() == pytest.approx(128, abs=0.2)
    assert noisy.var() == pytest.approx(30 + 1 / 12, rel=0.05)  # plus the variance of rounding
    assert abs(np.corrcoef(noisy[..., 0].ravel(), noisy[..., 1].ravel())[0, 1]) < 0.03


def test_brightness_and_contrast_limits():
    levels = Image.fromarray(np.repeat(np.arange(40, 200, dtype=np.uint8)[None, :, None], 3, axis=2))
    seen = []
    for index in range(60):
        config = replace(OFF, brightness_contrast_prob=1.0)
        values = np.asarray(TrainingAugmentation(config)(levels, None, augmentation_rng(8, 0, index))[0])[0, :, 0]
        inside = (values > 0) & (values < 255)
        slope, offset = np.polyfit(np.arange(40, 200)[inside], values[inside], 1)
        seen.append((slope - 1, offset / 255))
    seen = np.array(seen)
    assert np.abs(seen).max() < 0.21 and np.abs(seen).max(axis=0).min() > 0.15


def test_jitter_leaves_gray_gray_and_blurs_smooth():
    gray = picture().convert("L").convert("RGB")
    config = replace(OFF, blur_or_jitter_prob=1.0)
    smoother, roughness = 0, np.abs(np.diff(np.asarray(gray, int)[..., 0])).mean()
    for index in range(30):
        values = np.asarray(TrainingAugmentation(config)(gray, None, augmentation_rng(9, 0, index))[0], int)
        assert np.abs(values - values.mean(axis=2, keepdims=True)).max() <= 1
        smoother += np.abs(np.diff(values[..., 0])).mean() < 0.7 * roughness
    assert 12 <= smoother <= 27  # two of three steps blur


def test_levels_saturate():
    """White never becomes black."""
    extreme = Image.fromarray(np.repeat(np.array([[0, 255] * 16] * 32, np.uint8)[..., None], 3, axis=2))
    config = replace(OFF, brightness_contrast_prob=1.0, noise_prob=1.0)
    for index in range(20):
        values = np.asarray(TrainingAugmentation(config)(extreme, None, augmentation_rng(10, 0, index))[0], int)
        assert (values[:, 1::2] - values[:, ::2]).min() > 60


def test_same_seed_same_result_and_epochs_differ():
    augment = TrainingAugmentation()
    first = augment(picture(), marks(), augmentation_rng(333, 2, 5))
    second = augment(picture(), marks(), augmentation_rng(333, 2, 5))
    assert [part.tobytes() for part in first] == [part.tobytes() for part in second]
    others = {augment(picture(), marks(), augmentation_rng(333, epoch, 5))[0].tobytes() for epoch in range(6)}
    assert len(others) > 3


def test_bad_input_is_named():
    augment = TrainingAugmentation()
    with pytest.raises(ValueError, match=r"\(5, 6\).*\(60, 40\)"):
        augment(picture(), Image.new("L", (5, 6)), augmentation_rng(0, 0, 0))
    gradient = Image.fromarray(np.arange(2400, dtype=np.uint8).reshape(40, 60))
    with pytest.raises(ValueError, match="256 values"):
        augment(picture(), gradient, augmentation_rng(0, 0, 0))
    with pytest.raises(ValueError, match=r"noise_prob=1.5, rotate_limit=-1, .*box_blur_size=4"):
        AugmentationConfig(noise_prob=1.5, rotate_limit=-1, box_blur_size=4)
    with pytest.raises(ValueError, match="gaussian_blur_sizes"):
        AugmentationConfig(gaussian_blur_sizes=(4, 7))


def test_config_is_frozen_and_complete():
    config = AugmentationConfig()
    with pytest.raises(AttributeError):
        config.noise_prob = 1.0
    assert all(field.name in AugmentationConfig.__doc__ for field in fields(config))


def test_mosaic_puts_each_image_with_its_mask():
    images = [Image.new("RGB", (8, 6), (value, value, value)) for value in (10, 20, 30, 40)]
    masks = [None, Image.new("L", (8, 6), 255), None, Image.new("L", (8, 6), 0)]
    image, mask = mosaic(images, masks)
    assert image.size == mask.size == (16, 12)
    values, marked = np.asarray(image)[..., 0], np.asarray(mask)
    assert [int(values[y, x]) for y, x in ((0, 0), (0, 15), (11, 0), (11, 15))] == [10, 20, 30, 40]
    assert marked[:6, 8:].min() == 255 and marked.sum() == 255 * 48
    assert mosaic(images, [None] * 4)[1] is None


def test_mosaic_shrinks_to_its_limit_and_never_below_the_image():
    images, masks = [picture(seed, 60, 40) for seed in range(4)], [marks()] * 4
    assert mosaic(images, masks, limit=80)[0].size == (80, 54)
    image, mask = mosaic(images, masks, limit=10)
    assert image.size == (60, 40) and set(np.unique(np.asarray(mask))) == {0, 255}
    mixed = [picture(0, 60, 40), picture(1, 20, 90), picture(2), picture(3)]
    assert mosaic(mixed, [None, marks(20, 90), None, None])[0].size == (120, 80)
    with pytest.raises(ValueError, match="4 images"):
        mosaic(images[:3], masks)
    with pytest.raises(ValueError, match="Mask 1"):
        mosaic(mixed, [None, marks(), None, None])


def rows(count: int = 12) -> list[dict]:
    return [
        {
            "image": Image.new("RGB", (16, 16), (100 if index % 2 else 200, index, 0)),
            "mask": None if index % 4 else Image.fromarray(np.eye(16, dtype=np.uint8) * 255),
            "label": int(index % 4 == 0),
            "product": "odd" if index % 2 else "even",
            "defect": "good" if index % 4 else "line",
            "image_id": str(index),
        }
        for index in range(count)
    ]


def test_dataset_makes_mosaics_of_one_product_only():
    config = replace(OFF, mosaic_prob=1.0)
    data = rows()
    dataset = AugmentedDataset(data, config, products=[row["product"] for row in data])
    own, partners = 0, set()
    for epoch in range(5):
        dataset.set_epoch(epoch)
        for index in range(12):
            item = dataset[index]
            values = np.asarray(item["image"])
            assert values.shape == (32, 32, 3) and item["image_id"] == str(index)
            tiles = [tuple(values[y, x].tolist()) for y in (0, 31) for x in (0, 31)]
            assert {tile[0] for tile in tiles} == {100 if index % 2 else 200}
            assert index in {tile[1] for tile in tiles}
            own += tiles[0][1] == index
            partners |= {tile[1] for tile in tiles}
            anomalous = any(tile[1] % 4 == 0 for tile in tiles)
            assert item["label"] == int(anomalous)
            assert (item["mask"] is not None) == anomalous
    assert partners == set(range(12)) and 5 < own < 40


@pytest.mark.parametrize("mosaic_prob", [0.0, 1.0])
def test_a_normal_image_with_a_marked_mask_is_an_error(mosaic_prob):
    data = rows(4)
    dataset = AugmentedDataset(data, replace(OFF, mosaic_prob=mosaic_prob), products=["a"] * 4)
    data[1]["mask"] = Image.new("L", (16, 16))
    assert dataset[1]["label"] in (0, 1)  # an empty mask fits
    data[1]["mask"] = data[0]["mask"]
    with pytest.raises(ValueError, match=r"Image '1' has the label 0 \(normal\), but its mask marks 16 pixels"):
        for epoch in range(10):
            dataset.set_epoch(epoch)
            dataset[1 if mosaic_prob == 0 else 2]


def test_dataset_mosaic_probability():
    dataset = AugmentedDataset(
        rows(), replace(OFF, mosaic_prob=0.2), products=[row["product"] for row in rows()], seed=1
    )
    made = 0
    for epoch in range(30):
        dataset.set_epoch(epoch)
        made += sum(dataset[index]["image"].size == (32, 32) for index in range(12))
    assert 45 < made < 105  # of 360


def test_dataset_reads_products_from_the_column():
    table = datasets.Dataset.from_list(
        [{key: row[key] for key in ("label", "product", "image_id")} for row in rows(4)]
    ).add_column("image", [np.asarray(row["image"]).tolist() for row in rows(4)])
    table = table.with_transform(_to_pictures)
    item = AugmentedDataset(table, replace(OFF, mosaic_prob=1.0))[1]
    assert item["image"].size == (32, 32) and item["product"] == "odd"
    with pytest.raises(ValueError, match='a column "product"'):
        AugmentedDataset(rows(), AugmentationConfig(mosaic_prob=0.2))
    with pytest.raises(ValueError, match="3 names, the dataset 12 rows"):
        AugmentedDataset(rows(), AugmentationConfig(mosaic_prob=0.2), products=["a"] * 3)


def _to_pictures(batch):
    if "image" in batch:
        batch["image"] = [Image.fromarray(np.array(image, np.uint8)) for image in batch["image"]]
        batch["mask"] = [None] * len(batch["image"])
    return batch


def keep_bytes(item):
    return item["image"].tobytes(), None if item["mask"] is None else item["mask"].tobytes()


def test_dataset_does_not_depend_on_workers_and_changes_with_the_epoch():
    data = rows()
    dataset = AugmentedDataset(
        data, AugmentationConfig(mosaic_prob=0.3), products=[row["product"] for row in data], transform=keep_bytes
    )
    direct = [dataset[index] for index in reversed(range(12))][::-1]
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    epochs = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        epochs.append(list(map(tuple, loader)))
    assert epochs[0] == epochs[2] == direct and epochs[1] != direct
    dataset.set_epoch(0)
    assert dataset[-1] == direct[11]
    with pytest.raises(IndexError):
        dataset[12]
    assert len(pickle.loads(pickle.dumps(dataset))) == 12


def test_dataset_passes_the_epoch_to_the_dataset_below():
    class Below(list):
        epoch = None

        def set_epoch(self, epoch):
            self.epoch = epoch

    below = Below(rows())
    AugmentedDataset(below, OFF).set_epoch(7)
    assert below.epoch == 7
