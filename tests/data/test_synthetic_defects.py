"""The table of synthetic pictures."""

import pytest

from vcp_clip_hf.data import load_anomaly_dataset
from vcp_clip_hf.data.synthetic_defects import (
    SEEN_DEFECTS,
    SEEN_PRODUCTS,
    UNSEEN_PRODUCTS,
    SyntheticDefects,
    render_sample,
)


OPTIONS = {"num_images": 70, "num_test_images": 24, "size": 40, "seed": 4}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return load_anomaly_dataset("synthetic", cache_dir=str(tmp_path_factory.mktemp("cache")), **OPTIONS)


def test_table_has_its_splits(table):
    assert {name: len(split) for name, split in table.items()} == {"train": 70, "validation": 24, "test": 24}
    for split, products in (("train", SEEN_PRODUCTS), ("validation", SEEN_PRODUCTS), ("test", UNSEEN_PRODUCTS)):
        assert set(table[split]["product"]) <= set(products)
        assert sum(table[split]["label"]) == len(table[split]) // 2
    assert set(table["train"]["product"]) == set(SEEN_PRODUCTS)
    assert set(table["train"]["defect"]) <= {"good", *SEEN_DEFECTS}
    ids = [identity for split in table.values() for identity in split["image_id"]]
    assert len(set(ids)) == len(ids)


def test_table_holds_what_was_rendered(table):
    for row in table["test"].select(range(6)):
        family, seed, index, size, defect = row["image_id"].rsplit("-", 4)
        sample = render_sample(family, int(seed), int(index), int(size), None if defect == "good" else "auto")
        assert row["image"].tobytes() == sample.image.tobytes()
        assert (row["product"], row["defect"], row["label"]) == (family, sample.defect, sample.label)
        if defect == "good":
            assert row["mask"] is None
        else:
            assert row["mask"].mode == "L" and row["mask"].tobytes() == sample.mask.tobytes()


def test_both_labels_for_every_product_in_the_long_run():
    builder = SyntheticDefects(num_images=4 * len(SEEN_PRODUCTS), num_test_images=0)
    plan = builder._plan("train", list(SEEN_PRODUCTS), 4 * len(SEEN_PRODUCTS))
    for product in SEEN_PRODUCTS:
        assert sum(item["defect"] is not None for item in plan if item["family"] == product) == 2


def test_streaming_and_processes_give_the_same(table, tmp_path):
    stream = load_anomaly_dataset("synthetic", split="test", streaming=True, **OPTIONS)
    parallel = load_anomaly_dataset("synthetic", split="test", num_proc=2, cache_dir=str(tmp_path), **OPTIONS)
    rows = {row["image_id"]: row for row in parallel}
    for expected, row in zip(table["test"], stream, strict=True):
        for other in (row, rows[expected["image_id"]]):
            assert other["image"].tobytes() == expected["image"].tobytes()
            assert other["label"] == expected["label"] and other["defect"] == expected["defect"]


def test_one_product_and_options(tmp_path):
    gears = load_anomaly_dataset(
        "synthetic", products="gear", cache_dir=str(tmp_path), num_images=6, size=32, anomaly_fraction=1.0
    )
    assert set(gears) == {"train", "validation"} and set(gears["train"]["label"]) == {1}
    bottles = SyntheticDefects(config_name="bottle_top", num_test_images=3, size=32)
    assert "1 products at 32 x 32" in bottles.describe()
    assert [row["product"] for row in bottles.as_streaming_dataset("test")] == ["bottle_top"] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"products": ["gera"]}, "did you mean 'gear'"),
        ({"config_name": "gera"}, "did you mean 'gear'"),
        ({"num_image": 3}, "did you mean 'num_images'"),
        ({"size": 8}, "size=8"),
        ({"anomaly_fraction": 2.0}, "anomaly_fraction=2"),
        ({"num_images": 0, "num_test_images": 0}, "not both 0"),
        ({"data_dir": "somewhere"}, "take no data_dir"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SyntheticDefects(**options)
