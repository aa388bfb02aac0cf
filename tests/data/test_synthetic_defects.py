"""The table, the stream and the captions of synthetic pictures."""

import itertools
import pickle

import numpy as np
import pytest
from torch.utils.data import DataLoader

from vcp_clip_hf.data import load_anomaly_dataset
from vcp_clip_hf.data.synthetic_defects import (
    ABNORMAL_STATES,
    DEFECTS,
    FAULTS,
    NORMAL_STATES,
    PRODUCTS,
    SEEN_DEFECTS,
    SEEN_PRODUCTS,
    UNSEEN_PRODUCTS,
    SyntheticDefects,
    SyntheticDefectsStream,
    caption,
    caption_words,
    captions,
    possible_defects,
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


def keep_bytes(item):
    return item["image_id"], item["caption"], item["image"].tobytes(), item["label"]


def test_stream_does_not_depend_on_workers_and_changes_with_the_epoch():
    stream = SyntheticDefectsStream(length=6, size=32, seed=2, transform=keep_bytes)
    direct = [stream[index] for index in (5, 0, 3, 1, 4, 2)]
    direct = [direct[position] for position in (1, 3, 5, 2, 4, 0)]
    loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True)
    epochs = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        epochs.append(list(map(tuple, loader)))
    assert epochs[0] == epochs[2] == direct
    assert not {item[0] for item in epochs[0]} & {item[0] for item in epochs[1]}
    assert stream[-1] == stream[5]
    with pytest.raises(IndexError):
        stream[6]


def test_stream_selects_and_pairs():
    stream = SyntheticDefectsStream("unseen", length=12, size=32, anomaly_fraction=1.0, defects=None, pair=True)
    items = [stream[index] for index in range(12)]
    assert {item["product"] for item in items} <= set(UNSEEN_PRODUCTS) and all(item["label"] for item in items)
    assert all(item["normal"].tobytes() != item["image"].tobytes() for item in items)
    normal = SyntheticDefectsStream("gear", length=2, size=32, anomaly_fraction=0.0, pair=True)[0]
    assert normal["mask"] is None and normal["normal"].tobytes() == normal["image"].tobytes()
    assert len(pickle.loads(pickle.dumps(stream))) == 12
    with pytest.raises(ValueError, match="geer"):
        SyntheticDefectsStream(["geer"])


def test_captions_say_what_is_there():
    rng = np.random.default_rng(0)
    words = set(caption_words())
    for family in PRODUCTS:
        for defect in ("good", *possible_defects(family)[::3]):
            for _ in range(4):
                text = caption({"product": family, "defect": defect}, rng)
                assert any(name in text for name in PRODUCTS[family].products), text
                assert set(text.split()) <= words and "  " not in text and "{" not in text
                assert not set(text.split()) & set(ABNORMAL_STATES) or defect != "good", text


def test_captions_tell_good_from_bad():
    for family, defect in (("gear", "missing_part"), ("ceramic_tile", "crack"), ("capsule", "print_error")):
        good, bad = set(captions(family)), set(captions(family, defect))
        assert len(good) > 100 and len(bad) > 100 and not good & bad
    assert "a photo of a cracked ceramic tile" in set(captions("ceramic_tile", "crack"))
    assert "a photo of a good gear" in set(captions("gear"))
    assert any("a missing tooth" in text for text in captions("gear", "missing_part"))
    assert not any("a leather" in text.replace("a leather hide", "") for text in captions("leather"))
    assert len(set(itertools.chain(NORMAL_STATES, ABNORMAL_STATES))) == len(NORMAL_STATES) + len(ABNORMAL_STATES)


def test_captions_take_samples_and_refuse_strangers():
    sample = render_sample("gear", 0, 0, 32)
    assert any(name in caption(sample, np.random.default_rng(1)) for name in PRODUCTS["gear"].products)
    with pytest.raises(ValueError, match="Unknown product"):
        caption({"product": "car", "defect": "good"}, np.random.default_rng(1))
    with pytest.raises(ValueError, match="Unknown defect"):
        caption({"product": "gear", "defect": "sadness"}, np.random.default_rng(1))


def test_every_defect_has_words():
    for family in DEFECTS.values():
        assert family.words and family.adjectives
    assert all(FAULTS.values())
