"""Pictures to train on, with and without defects: sources, exact shares, masks, and the same rows in any process."""

import datasets
import numpy as np
import pytest

from examples.research.defect_pictures import ATTEMPTS, SOURCES, _records, _window, defect_pictures
from vcp_clip_hf.data.painted_anomalies import ANOMALY_KINDS
from vcp_clip_hf.data.records import FEATURES
from vcp_clip_hf.generator import SEEN_DEFECTS
from vcp_clip_hf.generator.fields import Dice


SIZE = 48
PRODUCTS = ("gear", "washer", "carpet")


def contents(table: datasets.Dataset) -> list[tuple]:
    return [
        (
            row["image"].tobytes(),
            None if row["mask"] is None else row["mask"].tobytes(),
            *(row[name] for name in ("label", "product", "defect", "image_id")),
        )
        for row in table
    ]


def made_anew(folder, monkeypatch, *arguments, **options) -> list[tuple]:
    """Make a table in a cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return contents(defect_pictures(*arguments, **options))


def source_of(row: dict) -> str:
    return row["image_id"].split("/")[1]


def test_same_seed_same_rows_in_any_number_of_processes(tmp_path, monkeypatch):
    arguments = ("train", 8, SIZE, 5, PRODUCTS)
    first = made_anew(tmp_path / "a", monkeypatch, *arguments)
    assert made_anew(tmp_path / "b", monkeypatch, *arguments, num_proc=2) == first
    assert [row[5].split("/")[-1] for row in first] == [f"{index:06d}" for index in range(8)]
    # more rows, the same beginning
    assert made_anew(tmp_path / "b", monkeypatch, "train", 10, SIZE, 5, PRODUCTS)[:8] == first
    pictures = [{row[0] for row in first}]
    for split, seed in (("train", 6), ("test", 5)):
        table = made_anew(tmp_path / "a", monkeypatch, split, 8, SIZE, seed, PRODUCTS)
        pictures.append({row[0] for row in table})
    assert all(len(each) == 8 for each in pictures) and len(set.union(*pictures)) == 24


def test_the_cache_has_a_table_for_each_set_of_arguments():
    """The number of processes is not one of them."""
    tables = [
        defect_pictures("test", 2, SIZE, 0, PRODUCTS),
        defect_pictures("test", 2, SIZE, 0, list(PRODUCTS), num_proc=2),
        defect_pictures("train", 2, SIZE, 0, PRODUCTS),
        defect_pictures("test", 3, SIZE, 0, PRODUCTS),
        defect_pictures("test", 2, SIZE + 8, 0, PRODUCTS),
        defect_pictures("test", 2, SIZE, 1, PRODUCTS),
        defect_pictures("test", 2, SIZE, 0, PRODUCTS[:2]),
        defect_pictures("test", 2, SIZE, 0, PRODUCTS, 0.5),
    ]
    files = [table.cache_files[0]["filename"] for table in tables]
    assert files[0] == files[1] and len(set(files)) == len(tables) - 1


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.25, 5), (0.5, 10), (0.7, 14), (1.0, 20)])
def test_the_share_of_anomalous_pictures_is_exact(fraction, count):
    table = defect_pictures("test", 20, SIZE, 1, PRODUCTS, fraction)
    assert len(table) == 20 and sum(table["label"]) == count
    assert abs(sum(table["label"][:10]) - count / 2) <= 1, "evenly spread over the rows"
    for label, rows in ((1, count), (0, 20 - count)):
        sources = [row["image_id"].split("/")[1] for row in table if row["label"] == label]
        for source in set(SOURCES):
            expected = rows * SOURCES.count(source) / len(SOURCES)
            assert abs(sources.count(source) - expected) <= 1, "evenly spread over the sources"


def test_masks_lie_where_the_damage_is():
    """Row by row, a table of whole pictures and one of damaged pictures show the same scenes in the same light."""
    count = 24
    whole, damaged = (defect_pictures("test", count, 64, 4, PRODUCTS, fraction) for fraction in (0.0, 1.0))
    alike = dict.fromkeys(SOURCES, 0)
    for before, after in zip(whole, damaged, strict=True):
        assert before["image_id"] == after["image_id"]
        changed = np.abs(np.asarray(after["image"], int) - np.asarray(before["image"], int)).max(axis=2)
        mask = np.asarray(after["mask"]) > 0
        # blur and compression carry a little of the damage over its border
        alike[source_of(before)] += changed[mask].mean() > 4 * changed[~mask].mean()
    # a crop without damage is left out, and a scene without visible damage is drawn again: few rows differ
    assert sum(alike.values()) >= 0.85 * count, alike
    assert all(alike[source] >= 0.75 * count * SOURCES.count(source) / len(SOURCES) for source in SOURCES), alike


def test_rows_are_records_of_this_package_from_every_source():
    table = defect_pictures("train", 24, SIZE, 2, PRODUCTS, 0.5)
    assert table.features == FEATURES
    assert len(set(table["image_id"])) == 24
    assert {source_of(row) for row in table} == set(SOURCES)
    for row in table:
        assert row["image"].size == (SIZE, SIZE) and row["image"].mode == "RGB"
        source = source_of(row)
        assert row["product"].startswith("material ") if source == "material" else row["product"] in PRODUCTS
        if row["label"] == 0:
            assert row["mask"] is None and row["defect"] == "good"
        else:
            assert row["mask"].size == (SIZE, SIZE) and row["mask"].mode == "L"
            levels = set(np.unique(np.asarray(row["mask"])))
            assert levels <= {0, 255} and 255 in levels
            assert row["defect"] in (SEEN_DEFECTS if source == "rendered" else ANOMALY_KINDS)
    assert {row["product"] for row in table if source_of(row) != "material"} == set(PRODUCTS)


def test_some_pictures_are_crops():
    sides = []
    for seed in range(300):
        rows, columns = _window(Dice(seed), SIZE)
        assert rows.stop - rows.start == columns.stop - columns.start
        assert min(rows.start, columns.start) >= 0 and max(rows.stop, columns.stop) <= SIZE
        sides.append(rows.stop - rows.start)
    crops = [side for side in sides if side < SIZE]
    assert 0.3 < len(crops) / len(sides) < 0.5
    assert SIZE / 2 <= min(crops) < 0.55 * SIZE and max(crops) > 0.9 * SIZE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("all", 2, SIZE, 0, PRODUCTS), "split='all' must be one of train, test"),
        (("test", 0, SIZE, 0, PRODUCTS), "count=0 must be at least 1"),
        (("test", 2, 31, 0, PRODUCTS), "size=31 at least 32"),
        (("test", 2, SIZE, -1, PRODUCTS), "seed=-1 must not be negative"),
        (("test", 2, SIZE, 0, ("gear", "gears")), r"Unknown product families \['gears'\]"),
        (("test", 2, SIZE, 0, ()), "expected 'seen', 'unseen', 'all' or some of"),
        (("test", 2, SIZE, 0, PRODUCTS, 1.5), r"anomaly_fraction=1\.5 must lie in 0\.\.1"),
        (("test", 2, SIZE, 0, PRODUCTS, float("nan")), "anomaly_fraction=nan must lie in"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        defect_pictures(*arguments)


def test_a_row_that_never_succeeds_is_an_error():
    """Instead of an endless search; the error of the last attempt is its cause."""
    with pytest.raises(RuntimeError, match=rf"Row 7 \(painted\) has no picture after {ATTEMPTS} attempts") as caught:
        list(_records([(7, "painted", True)], "test", SIZE, 0, ("gears",)))
    assert "Unknown product family 'gears'" in str(caught.value.__cause__)
