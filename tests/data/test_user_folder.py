"""Folders of the user's own images: layouts, masks, names, tables."""

import json
import shutil
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from vcp_clip_hf.data import AnomalyFolder, DatasetLayoutError

from . import trees
from .helpers import REAL, check_row, counts, needs_real_images, prepared, rows_of
from .trees import MARKED, SMALL, add_image, add_mask, save_image, save_mask


def folder(tmp_path, **options) -> AnomalyFolder:
    return AnomalyFolder(data_dir=tmp_path / "data", cache_dir=tmp_path / "cache", **options)


def labels(builder) -> dict:
    splits = prepared(builder)
    for split in splits.values():
        for row in split:
            if row["mask"] is not None or row["label"] != 1:
                check_row(row)
    return {name: counts(split) for name, split in splits.items()}


def write(root, *images, masks=()):
    for image in images:
        save_image(root / "data" / image)
    for mask in masks:
        save_mask(root / "data" / mask)


# Layouts


def test_products_with_splits(tmp_path):
    trees.product_folders(tmp_path / "data", ("gear", "seal"), splits=("train", "validation"))
    builder = folder(tmp_path)
    assert 'layout "products"' in builder.describe()
    assert labels(builder) == {"test": (2, 4, 0), "train": (2, 0, 0), "validation": (2, 0, 0)}
    rows = rows_of(builder.as_dataset("test"))
    assert {row["product"] for row in rows.values()} == {"gear", "seal"}
    assert all(row["mask"] is not None for row in rows.values() if row["label"] == 1)
    assert labels(folder(tmp_path, products=["seal"])) == {
        "test": (1, 2, 0),
        "train": (1, 0, 0),
        "validation": (1, 0, 0),
    }


def test_folders_are_found_in_any_case(tmp_path):
    write(tmp_path, "Train/Good/1.png", "TEST/good/2.png", "TEST/Dent/3.png", masks=["Ground Truth/dent/3.png"])
    builder = folder(tmp_path)
    assert labels(builder) == {"train": (1, 0, 0), "test": (1, 1, 0)}
    assert [row["defect"] for row in builder.as_dataset("test") if row["mask"]] == ["dent"]


def test_one_product_is_named_after_its_folder(tmp_path):
    trees.product_folders(tmp_path / "data", ("",))
    assert set(prepared(folder(tmp_path))["test"]["product"]) == {"data"}
    assert set(prepared(folder(tmp_path, product="gear"))["test"]["product"]) == {"gear"}


@pytest.mark.parametrize("normal, bad", [("good", "bad"), ("OK", "KO"), ("Normal", "Defect"), ("no defect", "NG")])
def test_good_and_bad_without_masks(tmp_path, normal, bad):
    write(tmp_path, f"{normal}/1.png", f"{normal}/2.png", f"{bad}/1.png")
    builder = folder(tmp_path)
    assert 'layout "kinds"' in builder.describe()
    assert labels(builder) == {"test": (2, 1, 0)}
    assert all(row["mask"] is None for row in builder.as_dataset("test"))


def test_kinds_of_several_products_with_defect_names(tmp_path):
    write(tmp_path, *(f"{product}/{kind}/1.png" for product in "ab" for kind in ("good", "scratch", "dent")))
    builder = folder(tmp_path)
    assert labels(builder) == {"test": (2, 4, 0)}
    assert set(builder.as_dataset("test")["defect"]) == {"good", "scratch", "dent"}


def test_flat_images_have_unknown_labels(tmp_path):
    write(tmp_path, "1.png", "2.jpg", "3.bmp")
    builder = folder(tmp_path)
    assert labels(builder) == {"test": (0, 0, 3)}
    assert set(builder.as_dataset("test")["defect"]) == {"unknown"}


def test_flat_images_with_masks_get_their_label_from_the_mask(tmp_path):
    write(tmp_path, "1.png", "2.png", "3.png", masks=["masks/1.png"])
    save_mask(tmp_path / "data" / "masks" / "2.png", marked=MARKED & False)
    assert labels(folder(tmp_path)) == {"test": (1, 1, 1)}


def test_the_flat_layout_reads_folders_at_any_depth(tmp_path):
    write(tmp_path, "monday/1.png", "tuesday/1.png")
    with pytest.raises(DatasetLayoutError, match="no layout fits: 0 images, and the folders monday, tuesday"):
        folder(tmp_path)
    assert labels(folder(tmp_path, layout="flat")) == {"test": (0, 0, 2)}


# Masks


@pytest.mark.parametrize(
    "mask",
    [
        "masks/bad/1.png",
        "masks/1.png",
        "ground_truth/bad/1_mask.bmp",
        "Ground_Truth/BAD/1-mask.png".replace("-", "_"),
        "gt/1_gt.tif",
        "bad/1_mask.png",
        "bad/1_label.bmp",
        "masks/bad/1/000.png",
    ],
)
def test_masks_are_found_in_all_usual_places(tmp_path, mask):
    write(tmp_path, "good/1.png", "good/2.png", "bad/1.jpg", masks=[mask])
    builder = folder(tmp_path)
    assert labels(builder) == {"test": (2, 1, 0)}
    (bad,) = (row for row in builder.as_dataset("test") if row["label"] == 1)
    assert np.array_equal(np.asarray(bad["mask"]) > 0, MARKED)


def test_several_masks_in_a_folder_named_like_the_image_are_united(tmp_path):
    write(tmp_path, "good/1.png", "bad/1.png", masks=["masks/bad/1/a.png"])
    save_mask(tmp_path / "data" / "masks" / "bad" / "1" / "b.png", marked=SMALL)
    (bad,) = (row for row in prepared(folder(tmp_path))["test"] if row["label"] == 1)
    assert np.array_equal(np.asarray(bad["mask"]) > 0, MARKED | SMALL)


def test_masks_may_be_required(tmp_path):
    write(tmp_path, "good/1.png", "bad/1.png")
    with pytest.raises(DatasetLayoutError, match=r"bad/1\.png: no mask"):
        folder(tmp_path, masks_required=True)


def test_masks_of_more_than_two_values_need_a_threshold(tmp_path):
    write(tmp_path, "good/1.png", "bad/1.png")
    save_mask(tmp_path / "data" / "masks" / "1.png", noise=90)
    with pytest.raises(DatasetLayoutError, match="expected 0 and one other; pass mask_above"):
        prepared(folder(tmp_path))
    (bad,) = (row for row in prepared(folder(tmp_path, mask_above=127))["test"] if row["label"] == 1)
    assert np.array_equal(np.asarray(bad["mask"]) > 0, MARKED)


# Ambiguous folders are errors


def test_the_detected_layout_is_logged(tmp_path, caplog):
    write(tmp_path, "good/1.png", "scratch/1.png", masks=["masks/scratch/1.png"])
    (tmp_path / "data" / "notes.csv").write_text("a,b\n1,2\n")
    folder(tmp_path)
    assert 'layout "kinds"' in caplog.text
    assert "2 images (1 normal, 1 anomalous), 1 with masks, defects: scratch" in caplog.text
    assert "not read: notes.csv" in caplog.text


def test_a_requested_layout_is_not_logged(tmp_path, caplog):
    write(tmp_path, "good/1.png", "bad/1.png")
    folder(tmp_path, layout="kinds")
    assert caplog.text == ""


def test_two_layouts_at_once_are_an_error_that_names_the_argument(tmp_path):
    write(tmp_path, "good/1.png", "bad/1.png", "gear/test/good/1.png", "gear/test/crack/1.png")
    with pytest.raises(DatasetLayoutError) as caught:
        folder(tmp_path)
    assert "layout='products' or layout='kinds'" in str(caught.value)
    with pytest.raises(DatasetLayoutError, match="do not fit the layout"):
        folder(tmp_path, layout="products")
    builder = folder(tmp_path, layout="products", on_error="skip")
    assert labels(builder) == {"test": (1, 1, 0)}
    assert {problem.path for problem in builder.left_out} == {"good", "bad"}


BROKEN = {
    "a mask without an image": (add_mask("masks/bad/9.png"), "masks/bad/9.png: a mask without an image"),
    "two masks": (add_mask("gt/bad/1.png"), "bad/1.png: several masks"),
    "a mask that fits two images": (add_mask("masks/2.png"), "masks/2.png: fits several images"),
    "images in an unexpected folder": (
        add_image("other/deep/1.png"),
        "other/deep: 1 images that do not fit the layout",
    ),
    "images beside the folders": (add_image("1.png"), '1 images that do not fit the layout "kinds"'),
    "sizes": (add_mask("masks/bad/1.png", marked=np.ones((5, 6), bool)), "the mask has 6 x 5 pixels"),
    "empty mask": (add_mask("masks/bad/1.png", marked=MARKED & False), "bad/1: an anomalous image, but its mask"),
    "unreadable": (lambda root: (root / "bad/1.png").write_text("hello"), "bad/1: not an image file"),
    "same name twice": (add_image("good/1.jpg"), "two images of this name"),
    "a marked normal": (add_mask("masks/good/1.png"), "good/1: a normal image, but its mask marks"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_files_that_do_not_fit_are_reported_and_can_be_skipped(tmp_path, kind):
    write(tmp_path, "good/1.png", "good/2.png", "bad/1.png", "bad/2.png", "dent/2.png", masks=["masks/bad/1.png"])
    how, message = BROKEN[kind]
    how(tmp_path / "data")
    with pytest.raises(DatasetLayoutError) as caught:
        prepared(folder(tmp_path))
    assert message in str(caught.value)
    builder = folder(tmp_path, on_error="skip")
    assert 4 <= len(prepared(builder)["test"]) <= 5
    assert len(builder.left_out) >= 1


def test_the_error_for_unknown_names_shows_the_argument_to_pass(tmp_path):
    trees.product_folders(tmp_path / "data", ("gear",))
    save_image(tmp_path / "data" / "gear" / "train" / "shift_a" / "1.png")
    with pytest.raises(DatasetLayoutError, match=r"gear/train/shift_a: 1 images, normal or a defect\?"):
        folder(tmp_path)
    assert labels(folder(tmp_path, normal_names=["Shift A"]))["train"] == (2, 0, 0)
    assert labels(folder(tmp_path, anomalous_names=["shift_a"]))["train"] == (1, 1, 0)


def test_own_names_are_enough_to_detect_the_layout(tmp_path):
    write(tmp_path, "gut/1.png", "kratzer/1.png")
    with pytest.raises(DatasetLayoutError, match="no layout fits"):
        folder(tmp_path)
    assert labels(folder(tmp_path, normal_names=["gut"])) == {"test": (1, 1, 0)}
    with pytest.raises(DatasetLayoutError, match=r"gut: 1 images, normal or a defect\? Pass normal_names=\['gut'\]"):
        folder(tmp_path, anomalous_names=["kratzer"])
    with pytest.raises(ValueError, match="must be a list"):
        folder(tmp_path, normal_names="gut")


def test_the_own_meaning_of_a_name_goes_before_the_usual_one(tmp_path):
    write(tmp_path, "negative/1.png", "positive/1.png")
    assert set(prepared(folder(tmp_path))["test"]["image_id"]) == {"negative/1", "positive/1"}
    swapped = prepared(folder(tmp_path, normal_names=["positive"], anomalous_names=["negative"]))["test"]
    assert dict(zip(swapped["image_id"], swapped["label"], strict=True)) == {"negative/1": 1, "positive/1": 0}


def test_empty_and_missing_folders_and_an_unknown_layout(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(DatasetLayoutError, match="no layout fits: 0 images, and the folders none"):
        folder(tmp_path)
    with pytest.raises(DatasetLayoutError, match="no such folder"):
        AnomalyFolder(data_dir=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="AnomalyFolder needs data_dir, the folder of the images"):
        AnomalyFolder(cache_dir=tmp_path / "cache").download_and_prepare()
    with pytest.raises(ValueError, match="no layout 'kind'; did you mean 'kinds'"):
        folder(tmp_path, layout="kind")


# Tables


TABLE = """file_name,mask,label,product,defect,split
a/1.png,,normal,gear,,train
a/2.png,m/2.png,1,gear,dent,test
a/3.png,,0,seal,good,test
a/4.png,,,seal,,test
"""


def write_table(tmp_path, text=TABLE, name="metadata.csv"):
    write(tmp_path, *(f"a/{number}.png" for number in range(1, 5)), masks=["m/2.png"])
    (tmp_path / "data" / name).write_text(text)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_describes_the_images(tmp_path, delimiter):
    write_table(tmp_path, "\ufeff" + TABLE.replace(",", delimiter))
    builder = folder(tmp_path)
    assert 'layout "metadata"' in builder.describe()
    assert labels(builder) == {"train": (1, 0, 0), "test": (1, 1, 1)}
    rows = rows_of(builder.as_dataset("test"))
    assert (rows["a/2"]["product"], rows["a/2"]["defect"], rows["a/4"]["defect"]) == ("gear", "dent", "unknown")


def test_json_lines(tmp_path):
    lines = [
        {"image": "a/1.png", "label": False},
        {"image": "a/2.png", "mask": ["m/2.png"], "label": True, "image_id": "two"},
        {"image": "a/3.png", "mask": "m/2.png"},  # the mask decides
        {"image": str(tmp_path / "data" / "a" / "4.png")},
    ]
    write_table(tmp_path, "\n\n".join(map(json.dumps, lines)), "metadata.jsonl")
    builder = folder(tmp_path)
    assert labels(builder) == {"test": (1, 2, 1)}
    assert "two" in builder.as_dataset("test")["image_id"]


def test_a_table_of_another_name_is_read_on_request(tmp_path):
    write_table(tmp_path, name="index.csv")
    with pytest.raises(DatasetLayoutError, match="no layout fits"):
        folder(tmp_path)
    assert labels(folder(tmp_path, metadata="index.csv"))["test"] == (1, 1, 1)
    builder = AnomalyFolder(data_dir=tmp_path / "data" / "index.csv", cache_dir=tmp_path / "cache")
    assert labels(builder)["test"] == (1, 1, 1)


def test_a_changed_table_is_noticed(tmp_path):
    write_table(tmp_path)
    labels(folder(tmp_path))
    (tmp_path / "data" / "metadata.csv").write_text(TABLE.replace("a/3.png,,0", "a/3.png,,-1").replace("good", ""))
    assert labels(folder(tmp_path))["test"] == (0, 1, 2)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("a/3.png", "a/9.png", "a/9.png: no such file inside the folder (metadata.csv, row 3)"),
        ("m/2.png", "m/9.png", "m/9.png: no such file inside the folder (metadata.csv, row 2)"),
        (",0,", ",fine,", "label 'fine' means neither normal nor anomalous"),
        (",0,", ",7,", "label '7' means neither"),
        ("file_name", "picture", "no column for the image: found picture, mask"),
        ("a/3.png", "", "row 3: names no image"),
        ("good,test", "good,all", "split 'all' must be one word, and not all"),
        ("good,test", "good,my split", "split 'my split' must be one word"),
        ("a/3.png", "a/2.png", "two images of this name"),
    ],
)
def test_rows_that_do_not_fit_are_reported(tmp_path, old, new, message):
    write_table(tmp_path, TABLE.replace(old, new))
    with pytest.raises(DatasetLayoutError) as caught:
        folder(tmp_path)
    assert message in str(caught.value)


@pytest.fixture
def set_path(tmp_path) -> Callable:
    """A folder with a table, beside a file other.png; the function puts a path into the table."""
    write_table(tmp_path)
    shutil.copyfile(tmp_path / "data" / "a" / "3.png", tmp_path / "other.png")

    def replace(path: str, column: str = "a/3.png") -> str:
        path = path.format(root=tmp_path)
        (tmp_path / "data" / "metadata.csv").write_text(TABLE.replace(column, path))
        return path

    return replace


OUTSIDE = ["../other.png", "a/../../other.png", "{root}/other.png", "{root}/data/../other.png", "..\\other.png"]


@pytest.mark.parametrize("path", [*OUTSIDE, "missing.png", "../missing.png", "/missing.png", "C:\\x.png", "file:///x"])
@pytest.mark.parametrize(("column", "row"), [("a/3.png", 3), ("m/2.png", 2)])
def test_paths_outside_and_missing_paths_have_one_message(set_path, path, column, row, tmp_path):
    path = set_path(path, column)
    with pytest.raises(DatasetLayoutError) as caught:
        folder(tmp_path)
    assert f"{path}: no such file inside the folder (metadata.csv, row {row})" in str(caught.value)


@pytest.mark.parametrize("path", OUTSIDE)
def test_paths_outside_are_read_on_request(set_path, path, tmp_path):
    set_path(path)
    assert labels(folder(tmp_path, outside_files=True))["test"] == (1, 1, 1)
    set_path("../missing.png")
    with pytest.raises(DatasetLayoutError) as caught:
        folder(tmp_path, outside_files=True)
    assert "../missing.png: no such file (metadata.csv, row 3)" in str(caught.value)


INSIDE = ["{root}/data/a/3.png", "./a/3.png", "m/../a/3.png", "a\\3.png", "../data/a/3.png", "A/3.PNG"]


@pytest.mark.parametrize("path", INSIDE)
def test_paths_inside_may_be_written_in_any_way(set_path, path, tmp_path):
    set_path(path)
    assert labels(folder(tmp_path))["test"] == (1, 1, 1)


def test_absolute_paths_may_lead_through_a_link(set_path, tmp_path):
    set_path("{root}/data/a/3.png")
    (tmp_path / "link").symlink_to(tmp_path / "data", target_is_directory=True)
    builder = AnomalyFolder(data_dir=tmp_path / "link", cache_dir=tmp_path / "cache")
    assert labels(builder)["test"] == (1, 1, 1)


def test_paths_in_a_table_begin_at_the_table_or_at_the_folder(tmp_path):
    write_table(tmp_path)
    (tmp_path / "data" / "a" / "index.csv").write_text(TABLE.replace("a/3.png", "3.png").replace("m/2", "../m/2"))
    assert labels(folder(tmp_path, metadata="a/index.csv"))["test"] == (1, 1, 1)


def test_broken_json_lines(tmp_path):
    for text, message in (("{", "line 1 is not JSON"), ("[1]", "line 1 is list"), ("", "no rows")):
        write_table(tmp_path, text, "metadata.jsonl")
        with pytest.raises(DatasetLayoutError, match=message):
            folder(tmp_path)


# Real images


@needs_real_images(REAL / "real")
@pytest.mark.parametrize(
    "name, expected",
    [
        ("bsd", {"test": (50, 70, 0)}),
        ("magnetic_tile", {"test": (30, 90, 0)}),
        ("ksdd", {"test": (70, 50, 0)}),
        ("neu_seg", {"test": (0, 120, 0)}),
        ("mvtec_mini", {"train": (100, 0, 0), "test": (4, 16, 0)}),
        ("dagm_mini", {"test": (6, 9, 0)}),
    ],
)
def test_real_folders_as_tree_and_as_table(tmp_path, name, expected):
    root = REAL / "real" / name
    by_name = AnomalyFolder(data_dir=root, cache_dir=tmp_path)
    by_table = AnomalyFolder(data_dir=root, cache_dir=tmp_path, metadata="index.csv")
    tree, table = prepared(by_name), prepared(by_table)
    assert {split: counts(rows) for split, rows in tree.items()} == expected
    columns = ["image_id", "label", "product", "defect"]
    for split in tree:
        one, other = (
            sorted(map(tuple, (row.values() for row in part[split].select_columns(columns)))) for part in (tree, table)
        )
        assert one == other
        for row in tree[split].select(range(0, len(tree[split]), 9)):
            check_row(row)


def test_pictures_of_every_kind(tmp_path):
    (tmp_path / "data" / "good").mkdir(parents=True)
    noise = Image.effect_noise((40, 28), 60)
    for name, picture in {
        "gray.png": noise,
        "alpha.png": noise.convert("RGBA"),
        "palette.png": noise.convert("P"),
        "print.tif": noise.convert("CMYK"),
        "deep.png": Image.fromarray(np.asarray(noise).astype(np.uint16) * 257),
    }.items():
        picture.save(tmp_path / "data" / "good" / name)
    save_image(tmp_path / "data" / "bad" / "1.png")
    rows = rows_of(prepared(folder(tmp_path))["test"])
    assert rows["good/deep"]["image"] == rows["good/gray"]["image"] == rows["good/alpha"]["image"]
    assert len(rows) == 6


def test_files_of_more_than_8_bits_take_the_input_range(tmp_path):
    values = np.linspace(0, 4095, 20 * 30).astype(np.uint16).reshape(20, 30)
    write(tmp_path, "part/good/b.png")
    Image.fromarray(values).save(tmp_path / "data" / "part" / "good" / "a.png")
    (rows,) = prepared(folder(tmp_path, input_range=(0, 4095))).values()
    assert rows[0]["image_id"].endswith("a")
    np.testing.assert_array_equal(np.asarray(rows[0]["image"])[..., 0], np.rint(values * (255 / 4095)))
