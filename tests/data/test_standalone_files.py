"""Exported datasets: read back without this package."""

import csv

import datasets
import numpy as np
import pytest
from PIL import Image

from vcp_clip_hf.data import FEATURES, AnomalyFolder, export_dataset, load_anomaly_dataset

from . import trees
from .helpers import rows_of


FORMATS = ("parquet", "imagefolder")


@pytest.fixture
def source(tmp_path):
    """Normal, anomalous and unknown images of two products; some splits have no mask."""
    trees.mvtec_ad_2(tmp_path / "ad2")
    return load_anomaly_dataset(
        "mvtec_ad_2", tmp_path / "ad2", products=["rice", "vial"], cache_dir=tmp_path / "cache"
    )


def load(folder, tmp_path, *arguments):
    return datasets.load_dataset(str(folder), *arguments, cache_dir=str(tmp_path / "read"))


def same(one, other) -> None:
    assert set(one) == set(other)
    for split in one:
        assert rows_of(one[split]) == rows_of(other[split])


@pytest.mark.parametrize("format", FORMATS)
def test_plain_load_dataset_reads_everything_back(source, tmp_path, format):
    folder = export_dataset(source, tmp_path / "out", format)
    trees.remove("ad2")(tmp_path)  # the export needs no other files
    back = load(folder, tmp_path)
    assert all(split.features == FEATURES for split in back.values())
    trees.mvtec_ad_2(tmp_path / "ad2")  # the same pictures again, to compare
    same(source, back)


@pytest.mark.parametrize("format", FORMATS)
def test_one_configuration_per_product(source, tmp_path, format):
    folder = export_dataset(source, tmp_path / "out", format)
    assert set(datasets.get_dataset_config_names(folder)) == {"all", "rice", "vial"}
    rice = load(folder, tmp_path, "rice")
    assert set(rice["test"]["product"]) == {"rice"} and len(rice["test"]) == 2
    same({"test": source["test"].filter(lambda row: row["product"] == "rice")}, {"test": rice["test"]})


@pytest.mark.parametrize("format", FORMATS)
def test_streams_and_single_splits_are_exported_too(source, tmp_path, format):
    stream = load_anomaly_dataset(
        "mvtec_ad_2", tmp_path / "ad2", products=["rice", "vial"], streaming=True, split="test"
    )
    same({"test": source["test"]}, load(export_dataset(stream, tmp_path / "a", format), tmp_path))
    same({"test": source["test"]}, load(export_dataset(source["test"], tmp_path / "b", format), tmp_path))
    some = source["test"].shuffle(seed=1).select([0, 2])
    same({"test": some}, load(export_dataset(some, tmp_path / "c", format), tmp_path))


def test_images_keep_their_bytes_and_masks_are_8_bit_pictures(source, tmp_path):
    folder = export_dataset(source, tmp_path / "out", "imagefolder")
    (image,) = (tmp_path / "out" / "rice" / "test" / "images").glob("*bad*")
    original = tmp_path / "ad2" / "rice" / "test_public" / "bad" / "001_overexposed.png"
    assert image.read_bytes() == original.read_bytes()
    (mask,) = (tmp_path / "out" / "rice" / "test" / "masks").iterdir()
    with Image.open(mask) as picture:  # as any other program reads it
        assert picture.mode == "L"
        assert np.array_equal(np.asarray(picture), trees.MARKED * np.uint8(255))
    with open(tmp_path / "out" / "index.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(map(len, source.values()))
    assert all((tmp_path / "out" / row["image"]).is_file() for row in rows)
    assert {row["label"] for row in rows} == {"normal", "anomalous", "unknown"}
    again = AnomalyFolder(data_dir=tmp_path / "out" / "index.csv", cache_dir=tmp_path / "cache")
    assert len(again.left_out) == 0 and folder == str(tmp_path / "out")


def test_parquet_masks_are_eight_bits(source, tmp_path):
    import pyarrow.parquet as pq

    export_dataset(source, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "data" / "rice" / "test-00000.parquet").to_pylist()
    (mask,) = (row["mask"]["bytes"] for row in table if row["mask"])
    (tmp_path / "m.png").write_bytes(mask)
    assert Image.open(tmp_path / "m.png").mode == "L"
    assert all("/" not in (row["image"]["path"] or "") for row in table)  # no path of this machine


def test_large_splits_become_several_files(source, tmp_path):
    folder = export_dataset(source, tmp_path / "out", max_shard_size=3000)
    shards = sorted(path.name for path in (tmp_path / "out" / "data" / "rice").glob("test-*"))
    assert shards == ["test-00000.parquet", "test-00001.parquet"]
    same(source, load(folder, tmp_path))


def test_the_readme_states_license_source_and_counts(source, tmp_path):
    export_dataset(source, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "license: cc-by-nc-sa-4.0" in text and "mvtec.com" in text and "heckler2025mvtec" in text
    assert "| rice | test | 2 | 1 | 1 |" in text and "| vial | test_private | 1 | 0 | 0 |" in text


def test_nothing_is_overwritten_and_no_unfinished_folder_stays(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="not empty; export into a new folder"):
        export_dataset(source, tmp_path / "out")
    trees.remove("ad2/rice/test_public/bad/001_overexposed.png")(tmp_path)
    with pytest.raises(ValueError, match="rice/test_public/bad/001_overexposed: cannot read"):
        export_dataset(source, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ad2", "cache", "out"]


def test_an_unknown_format_and_missing_columns_are_refused(source, tmp_path):
    with pytest.raises(ValueError, match="format='csv' must be one of parquet, imagefolder"):
        export_dataset(source, tmp_path / "out", "csv")
    with pytest.raises(ValueError, match="'test' lacks the columns mask, label"):
        export_dataset(source["test"].remove_columns(["mask", "label"]), tmp_path / "out")


def test_product_names_that_are_not_valid_in_paths(tmp_path):
    root = tmp_path / "data"
    for product in ("M6: bolt*", "Mutter ü"):
        trees.product_folders(root, (product,))
    source = load_anomaly_dataset("folder", root, cache_dir=tmp_path / "cache")
    for format in FORMATS:
        same(source, load(export_dataset(source, tmp_path / format, format), tmp_path))
    trees.product_folders(root, ("M6 bolt?",))
    clash = load_anomaly_dataset("folder", root, cache_dir=tmp_path / "cache")
    with pytest.raises(ValueError, match="would share a folder"):
        export_dataset(clash, tmp_path / "clash")
