"""Options, cache, processes and streams: what all builders have in common."""

import os
import pickle

import datasets
import pytest
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from vcp_clip_hf.data import FEATURES, DatasetLayoutError, load_anomaly_dataset
from vcp_clip_hf.data.catalog.gc10_det import GC10DET
from vcp_clip_hf.data.catalog.kolektor_sdd import KolektorSDD
from vcp_clip_hf.data.catalog.mpdd import MPDD
from vcp_clip_hf.data.catalog.mvtec_ad import MVTecAD
from vcp_clip_hf.data.catalog.mvtec_loco import MVTecLOCO

from . import trees
from .helpers import check_row, counts, prepared, rows_of


@pytest.fixture
def mpdd(tmp_path):
    """Write six products with 6 + 18 images."""
    trees.mpdd(tmp_path / "mpdd")
    return tmp_path / "mpdd"


def build(root, tmp_path, **options) -> MPDD:
    return MPDD(data_dir=root, cache_dir=tmp_path / "cache", **options)


# Products and options


def test_one_configuration_per_product_and_all():
    assert list(MPDD.builder_configs) == ["all", *MPDD.PRODUCTS]
    assert list(MVTecAD.builder_configs)[1:3] == ["bottle", "cable"]


def test_products_are_chosen_by_configuration_or_by_option(mpdd, tmp_path):
    by_config = prepared(build(mpdd, tmp_path, config_name="tubes"))
    by_products = prepared(build(mpdd, tmp_path, products=["tubes"]))
    for splits in (by_config, by_products):
        assert {name: counts(split) for name, split in splits.items()} == {"train": (1, 0, 0), "test": (1, 2, 0)}
        assert set(splits["test"]["product"]) == {"tubes"}
    two = prepared(build(mpdd, tmp_path, products=["tubes", "connector"]))
    assert set(two["test"]["product"]) == {"tubes", "connector"}


def test_products_that_are_not_requested_may_be_broken(mpdd, tmp_path):
    trees.remove("connector")(mpdd)
    trees.remove("tubes/ground_truth")(mpdd)
    assert len(prepared(build(mpdd, tmp_path, products=["metal_plate"]))["test"]) == 3
    with pytest.raises(DatasetLayoutError) as caught:
        build(mpdd, tmp_path)
    assert len(caught.value.problems) == 3  # one product and two folders of masks, in one error
    assert "connector: no such folder" in str(caught.value) and "tubes/ground_truth/hole" in str(caught.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"products": ["tube"]}, "no product 'tube'; did you mean 'tubes'?"),
        ({"config_name": "tube"}, "no product 'tube'; did you mean 'tubes'?"),
        ({"products": "tubes"}, "must be a list"),
        ({"on_eror": "skip"}, "no option 'on_eror'; did you mean 'on_error'?"),
        ({"on_error": "ignore"}, 'must be "raise" or "skip"'),
        ({"layout": "offical"}, "no layout 'offical'; did you mean 'official'?"),
    ],
)
def test_misspelled_options_are_refused(mpdd, tmp_path, options, message):
    with pytest.raises(ValueError, match="(?s)" + message.replace("?", r"\?")):
        build(mpdd, tmp_path, **options)


def test_a_builder_without_data_dir_only_knows_facts():
    builder = MPDD()
    assert builder.info.license == "CC BY-NC-SA 4.0" and "jezek" in builder.info.citation
    with pytest.raises(ValueError, match=r"not downloaded by this package.*data_dir"):
        builder.download_and_prepare()


def test_folders_that_do_not_hold_the_dataset(tmp_path):
    with pytest.raises(DatasetLayoutError, match="no such folder"):
        build(tmp_path / "nowhere", tmp_path)
    (tmp_path / "other" / "stuff").mkdir(parents=True)
    with pytest.raises(DatasetLayoutError, match="found stuff"):
        build(tmp_path / "other", tmp_path)
    trees.mpdd(tmp_path / "one")
    with pytest.raises(DatasetLayoutError, match="the folder of one product, 'tubes': pass the folder above it"):
        build(tmp_path / "one" / "tubes", tmp_path)
    for copy in ("a", "b"):
        trees.mpdd(tmp_path / "twice" / copy)
    with pytest.raises(DatasetLayoutError, match="Several folders look like it"):
        build(tmp_path / "twice", tmp_path)


def test_empty_masks_of_anomalous_images_are_errors(mpdd, tmp_path):
    trees.add_mask("tubes/ground_truth/hole/000_mask.png", marked=trees.MARKED & False)(mpdd)
    with pytest.raises(DatasetLayoutError, match="tubes/test/hole/000: an anomalous image, but its mask is empty"):
        prepared(build(mpdd, tmp_path))


def test_many_problems_are_counted_and_the_first_are_shown(mpdd, tmp_path):
    for product in MPDD.PRODUCTS:
        for defect in ("crack", "hole"):
            (mpdd / product / "test" / defect / "000.png").write_bytes(b"no image")
    with pytest.raises(DatasetLayoutError) as caught:
        prepared(build(mpdd, tmp_path))
    assert len(caught.value.problems) == 12
    assert "12 problems, the first 8:" in str(caught.value)
    assert str(caught.value).count("not an image file") == 8
    assert len(pickle.loads(pickle.dumps(caught.value)).problems) == 12


# Cache


def test_unchanged_files_are_not_read_again(mpdd, tmp_path, monkeypatch):
    first = build(mpdd, tmp_path)
    prepared(first)
    again = build(mpdd, tmp_path)
    assert again.cache_dir == first.cache_dir
    monkeypatch.setattr(MPDD, "_generate_examples", None)  # would fail if called
    assert len(prepared(again)["test"]) == 18


def test_changed_added_and_removed_files_are_noticed(mpdd, tmp_path):
    def test_rows():
        return rows_of(prepared(build(mpdd, tmp_path))["test"])

    rows = test_rows()
    trees.add_image("tubes/test/good/001.png")(mpdd)
    added = test_rows()
    assert added.keys() - rows.keys() == {"tubes/test/good/001"}

    mask = mpdd / "tubes/ground_truth/hole/000_mask.png"
    trees.save_mask(mask, marked=trees.SMALL)
    changed = test_rows()
    different = {key for key in added if added[key] != changed[key]}
    assert different == {"tubes/test/hole/000"}

    status = os.stat(mask)
    trees.save_mask(mask, marked=trees.MARKED)
    os.utime(mask, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert test_rows() == added

    (mpdd / "tubes/test/good/001.png").unlink()
    assert test_rows() == rows


def test_what_was_left_out_is_stored_in_the_cache(mpdd, tmp_path):
    (mpdd / "tubes/test/hole/000.png").write_bytes(b"no image")
    trees.remove("connector/ground_truth/crack/000_mask.png")(mpdd)
    first = build(mpdd, tmp_path, on_error="skip")
    prepared(first)
    again = build(mpdd, tmp_path, on_error="skip")
    prepared(again)
    assert again.left_out == first.left_out
    assert {problem.path for problem in again.left_out} == {
        "tubes/test/hole/000",
        "connector/ground_truth/crack",
    }
    with pytest.raises(DatasetLayoutError):  # despite the prepared table
        prepared(build(mpdd, tmp_path))


def test_datasets_writes_parquet_files_with_the_images_inside(mpdd, tmp_path):
    builder = build(mpdd, tmp_path)
    builder.download_and_prepare(output_dir=str(tmp_path / "out"), file_format="parquet")
    trees.remove("mpdd")(tmp_path)
    files = {"test": str(tmp_path / "out" / "*test*.parquet")}
    back = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "read"))["test"]
    assert counts(back) == (6, 12, 0) and back.features == FEATURES
    check_row(back[0])


def test_two_datasets_do_not_share_a_cache(tmp_path):
    """Products and folders may have the same names; the modules of the builders differ."""
    trees.product_folders(tmp_path / "a", MPDD.PRODUCTS)
    mpdd = prepared(build(tmp_path / "a", tmp_path))
    for product in MVTecAD.PRODUCTS:
        trees.product_folders(tmp_path / "b", [product], defects=("cut",))
    mvtec = prepared(MVTecAD(data_dir=tmp_path / "b", cache_dir=tmp_path / "cache"))
    assert set(mpdd["test"]["defect"]) == {"good", "crack", "hole"}
    assert set(mvtec["test"]["defect"]) == {"good", "cut"}


def test_a_relative_data_dir_survives_a_change_of_folder(mpdd, tmp_path, monkeypatch):
    monkeypatch.chdir(mpdd.parent)
    split = prepared(build("mpdd", tmp_path))["test"]
    monkeypatch.chdir("/")
    assert split[0]["image"].size == (trees.WIDTH, trees.HEIGHT)


# Processes, streams, nodes


def test_two_processes_prepare_the_same(mpdd, tmp_path):
    one = prepared(build(mpdd, tmp_path))
    builder = MPDD(data_dir=mpdd, cache_dir=tmp_path / "other")
    builder.download_and_prepare(num_proc=2)
    two = builder.as_dataset()
    for name in one:
        assert list(one[name]["image_id"]) == list(two[name]["image_id"])
        assert rows_of(one[name]) == rows_of(two[name])


def test_problems_of_all_processes_and_splits_are_one_error(mpdd, tmp_path):
    for image in ("bracket_black/test/crack/000", "tubes/test/hole/000", "tubes/train/good/000"):
        (mpdd / f"{image}.png").write_bytes(b"no image")
    builder = build(mpdd, tmp_path)
    with pytest.raises(DatasetLayoutError) as caught:
        builder.download_and_prepare(num_proc=2)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("world", [2, 3])
def test_nodes_share_a_stream_without_duplicates(mpdd, tmp_path, world):
    stream = build(mpdd, tmp_path).as_streaming_dataset("test")
    assert stream.num_shards == 18
    shares = [[row["image_id"] for row in split_dataset_by_node(stream, rank, world)] for rank in range(world)]
    together = [image_id for share in shares for image_id in share]
    assert len(together) == len(set(together)) == 18
    assert max(map(len, shares)) == 18 // world


def test_workers_share_a_stream_without_duplicates(mpdd, tmp_path):
    stream = build(mpdd, tmp_path).as_streaming_dataset("test").select_columns(["image_id", "label"])
    stream = pickle.loads(pickle.dumps(stream))  # as workers receive it that are not forked
    loader = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="fork")
    ids = [row["image_id"] for row in loader]
    assert len(ids) == len(set(ids)) == 18


def test_a_stream_shuffles_images(mpdd, tmp_path):
    stream = build(mpdd, tmp_path).as_streaming_dataset("test")
    ids = [row["image_id"] for row in stream]
    shuffled = [row["image_id"] for row in stream.shuffle(seed=1, buffer_size=1)]
    assert ids != shuffled and sorted(ids) == sorted(shuffled)


def test_a_stream_raises_on_a_broken_file_or_skips_it(mpdd, tmp_path, caplog):
    (mpdd / "tubes/test/hole/000.png").write_bytes(b"no image")
    with pytest.raises(DatasetLayoutError, match="tubes/test/hole/000"):
        list(build(mpdd, tmp_path).as_streaming_dataset("test"))
    rows = list(build(mpdd, tmp_path, on_error="skip").as_streaming_dataset("test"))
    assert len(rows) == 17
    assert "tubes/test/hole/000" in caplog.text


def test_a_split_without_readable_images_is_left_out(tmp_path):
    trees.mvtec_loco(tmp_path / "loco")
    for product in MVTecLOCO.PRODUCTS:
        (tmp_path / "loco" / product / "validation" / "good" / "000.png").write_bytes(b"no image")
    builder = MVTecLOCO(data_dir=tmp_path / "loco", cache_dir=tmp_path / "cache", on_error="skip")
    assert list(prepared(builder)) == ["train", "test"]
    assert len(builder.left_out) == 5


# Options of single datasets


def half_of_the_box(image, boxes):
    assert image.mode == "RGB" and boxes[0].name.startswith(("1", "d"))
    mask = trees.MARKED.copy()
    mask[:, : trees.BOX[0] + 4] = False
    return mask


def test_a_function_may_make_better_masks_from_boxes(tmp_path):
    trees.gc10_det(tmp_path / "gc")
    plain = GC10DET(data_dir=tmp_path / "gc", cache_dir=tmp_path / "cache")
    assert plain.mask_source == "boxes"
    rows = rows_of(prepared(plain)["test"])
    assert rows["img_01_1_00"]["defect"] == "punching_hole, unknown_defect"
    assert rows["img_01_10_00"]["defect"] == "waist_folding"  # the authors misspelled 10_yaozhed

    for number in range(2, 10):  # only images of the classes 1 and 10 remain
        (tmp_path / "gc" / "lable" / f"img_01_{number}_00.xml").unlink()
    better = GC10DET(data_dir=tmp_path / "gc", cache_dir=tmp_path / "cache", mask_fn=half_of_the_box)
    assert better.mask_source == "mask_fn"
    better.download_and_prepare(num_proc=2)
    for row in better.as_dataset("test"):
        assert (trees.MARKED.sum() / 2) < (sum(row["mask"].histogram()[255:])) < trees.MARKED.sum()


def test_the_copies_in_kolektor_sdd_may_be_dropped(tmp_path):
    trees.kolektor_sdd(tmp_path / "ksdd")
    builder = KolektorSDD(data_dir=tmp_path / "ksdd", cache_dir=tmp_path / "cache", drop_copies=True)
    assert counts(prepared(builder)["test"]) == (1, 1, 0)
    assert all("shows the images of kos01" in problem.reason for problem in builder.left_out)


def test_load_anomaly_dataset(mpdd, tmp_path):
    options = {"data_dir": mpdd, "cache_dir": tmp_path / "cache"}
    assert set(load_anomaly_dataset("MPDD", **options)) == {"train", "test"}
    assert len(load_anomaly_dataset("mpdd", split="test", products="tubes", **options)) == 3
    assert len(load_anomaly_dataset("mpdd", split="test[:50%]", **options)) == 9
    assert len(load_anomaly_dataset("mpdd", split="train+test", num_proc=2, **options)) == 24
    stream = load_anomaly_dataset("mpdd", split="test", streaming=True, products=["tubes"], **options)
    assert len(list(stream)) == 3
    with pytest.raises(ValueError, match="tset"):
        load_anomaly_dataset("mpdd", split="tset", **options)
