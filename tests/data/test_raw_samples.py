"""Original files of some downloads, with their quirks. They are not part of the repository: see `helpers.REAL`."""

import csv
import gzip
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from vcp_clip_hf.data.catalog.bsd import BSData
from vcp_clip_hf.data.catalog.kolektor_sdd import KolektorSDD
from vcp_clip_hf.data.catalog.magnetic_tile import MagneticTile
from vcp_clip_hf.data.catalog.road import CrackForest
from vcp_clip_hf.data.catalog.visa import VisA
from vcp_clip_hf.data.masks import LabelmeMask, MaskFiles, MatlabSegmentationMask, SegmentationTableMask, read_labels

from . import trees
from .helpers import REAL, check_row, counts, needs_real_images, prepared, rows_of


RAW = REAL / "raw_samples"
pytestmark = needs_real_images(RAW)


def load(builder_class, name, tmp_path, **options):
    builder = builder_class(data_dir=RAW / name, cache_dir=tmp_path, **options)
    splits = prepared(builder)
    for split in splits.values():
        for row in split:
            check_row(row)
    return builder, splits


def area(row) -> float:
    """Return the area of the mask, in percent of the image."""
    return 100 * float(np.mean(np.asarray(row["mask"]) > 0))


# BSData


def test_bsd(tmp_path):
    builder, splits = load(BSData, "BSData", tmp_path)
    assert {name: counts(split) for name, split in splits.items()} == {
        "train": (0, 6, 0),
        "test": (0, 3, 0),
        "normal": (3, 0, 0),
    }
    assert builder.mask_source == "polygons"
    areas = [area(row) for name in ("train", "test") for row in splits[name]]
    assert min(areas) > 0.015 and max(areas) < 0.5  # percent
    sizes = {row["image"].size for row in splits["test"]}
    assert sizes == {(1130, 460), (2701, 908), (2724, 850)}


def test_bsd_leaves_out_the_stray_copy_and_the_frames_at_the_onset(tmp_path):
    builder, splits = load(BSData, "BSData", tmp_path)
    assert (RAW / "BSData/data/BSD/test/01_200907032844_277500_315_crop_2.jpg").is_file()
    ids = [image_id for split in splits.values() for image_id in split["image_id"]]
    assert ids.count("01_200907032844_277500_315_crop_2") == 1 and not any("BSD" in i for i in ids)
    assert [problem.path[8:20] for problem in builder.left_out] == ["200904132159", "200904201120", "200905001119"]
    assert [i[3:15] for i in splits["normal"]["image_id"]] == ["200904065011", "200904082040", "200904120531"]
    _, wider = load(BSData, "BSData", tmp_path, normal_margin=0)
    assert len(wider["normal"]) == 6
    assert "normal" not in load(BSData, "BSData", tmp_path, normal_margin=6)[1]


def test_bsd_polygons_equal_a_point_in_polygon_test():
    path = RAW / "BSData/label/01_200907182917_430000_180_crop_1.json"
    content = json.loads(path.read_text())
    mask = LabelmeMask(str(path)).read("", (content["imageWidth"], content["imageHeight"]))
    ys, xs = np.indices(mask.shape) + 0.5  # centers: labelme counts from the corner of a pixel
    inside = np.zeros_like(mask)
    for shape in content["shapes"]:
        points = np.array(shape["points"])
        odd = np.zeros_like(mask)
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
            if y0 != y1:
                beside = xs < x0 + (ys - y0) * (x1 - x0) / (y1 - y0)
                odd ^= (ys >= min(y0, y1)) & (ys < max(y0, y1)) & beside
        inside |= odd
    # the outline is drawn too, so the mask may be larger, but by at most one pixel
    assert (inside & ~mask).sum() < 0.005 * inside.sum()
    grown = np.any([np.roll(inside, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)], axis=0)
    assert (mask & ~grown).sum() < 0.005 * inside.sum()


# CrackForest


def test_road(tmp_path):
    builder, splits = load(CrackForest, "CrackForest", tmp_path)
    assert list(splits["test"]["image_id"]) == ["001", "022", "084", "101"]
    assert list(splits["normal"]["image_id"]) == ["201", "204"]
    reasons = {problem.path: problem.reason for problem in builder.left_out}
    assert reasons == {
        "image/042.jpg": "its mask belongs to another image",
        "image/301.jpg": "no ground truth, and not free of cracks",
    }
    areas = {row["image_id"]: area(row) for row in splits["test"]}
    assert areas["101"] == pytest.approx(5.77, abs=0.01)  # 35 percent if enclosed asphalt counted


def test_road_tables_equal_the_matrices():
    for name in ("001", "022", "042", "084", "101"):
        table = SegmentationTableMask(str(RAW / f"CrackForest/seg/{name}.seg"), (1, 3)).read("", (480, 320))
        matrix = MatlabSegmentationMask(str(RAW / f"CrackForest/groundTruth/{name}.mat"), (2, 4)).read("", (480, 320))
        assert np.array_equal(table, matrix)
        assert table.shape == (320, 480) and table.any()


def test_road_labels_3_and_4():
    """Image 084 has further pieces of cracks (label 4), 101 has asphalt enclosed by cracks (label 3)."""
    whole, first = (
        SegmentationTableMask(str(RAW / "CrackForest/seg/084.seg"), labels).read("", (480, 320))
        for labels in ((1, 3), (1,))
    )
    assert first.sum() < whole.sum()
    cracks, enclosed = (
        SegmentationTableMask(str(RAW / "CrackForest/seg/101.seg"), labels).read("", (480, 320))
        for labels in ((1, 3), (2,))
    )
    assert enclosed.sum() > 5 * cracks.sum() and not (enclosed & cracks).any()


def test_road_without_tables_reads_the_matrices(tmp_path):
    shutil.copytree(RAW / "CrackForest", tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "seg")
    by_matrix = prepared(CrackForest(data_dir=tmp_path / "copy", cache_dir=tmp_path / "cache"))
    by_table = load(CrackForest, "CrackForest", tmp_path / "cache")[1]
    assert rows_of(by_matrix["test"]) == rows_of(by_table["test"])


# Magnetic Tile


def test_magnetic_tile(tmp_path):
    builder, splits = load(MagneticTile, "MagneticTile", tmp_path)
    assert counts(splits["test"]) == (3, 15, 0)
    assert set(splits["test"]["defect"]) == {"blowhole", "break", "crack", "fray", "uneven", "good"}
    assert [problem.path for problem in builder.left_out] == ["MT_Uneven/Imgs/exp3_num_45042"]


def test_magnetic_tile_masks_are_noisy():
    path = str(RAW / "MagneticTile/MT_Crack/Imgs/exp1_num_265613.png")
    assert len(np.unique(read_labels(path))) > 20
    right, grown = (MaskFiles((path,), above=value).read("", (0, 0)).sum() for value in (127, 0))
    assert grown > 1.2 * right


# KolektorSDD


def test_kolektor_sdd(tmp_path):
    _, splits = load(KolektorSDD, "KolektorSDD", tmp_path)
    found = dict(zip(splits["test"]["image_id"], splits["test"]["label"], strict=True))
    assert found == {"kos01/Part0": 0, "kos01/Part5": 1, "kos02/Part0": 0, "kos20/Part3": 0, "kos20/Part4": 1}
    areas = {row["image_id"]: area(row) for row in splits["test"] if row["mask"] is not None}
    assert areas == pytest.approx({"kos01/Part5": 0.18, "kos20/Part4": 0.583}, abs=0.01)


def test_kolektor_sdd_labels_are_palette_indices():
    usual, odd = (str(RAW / f"KolektorSDD/{name}_label.bmp") for name in ("kos01/Part5", "kos20/Part4"))
    assert Image.open(usual).mode == Image.open(odd).mode == "P"
    assert set(np.unique(read_labels(usual))) == {0, 1}
    assert set(np.unique(read_labels(odd))) == {0, 1, 2}
    assert Image.open(RAW / "KolektorSDD/kos01/Part0_label.bmp").mode == "L"


# VisA: real tables, generated images


# Numbers of normal images in train and test
VISA_1CLS = {"cashew": (450, 50), "chewinggum": (453, 50), "pcb3": (905, 101)}


def visa_with_real_tables(root, tables=("1cls",), products=VisA.PRODUCTS) -> None:
    """Write the real tables and empty image files: listing does not open images."""
    (root / "split_csv").mkdir(parents=True)
    for table in tables:
        plain, packed = RAW / f"VisA/split_csv/{table}.csv", RAW / f"VisA/split_csv/{table}.csv.gz"
        if plain.is_file():
            shutil.copy(plain, root / "split_csv")
        else:
            (root / "split_csv" / f"{table}.csv").write_bytes(gzip.decompress(packed.read_bytes()))
    with open(RAW / "VisA/split_csv/1cls.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10821
    for row in rows:
        if row["object"] not in products:
            continue
        for name in filter(None, (row["image"], row["mask"])):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def test_visa_splits(tmp_path):
    visa_with_real_tables(tmp_path / "visa", ("1cls", "2cls_fewshot", "2cls_highshot"), VISA_1CLS)
    options = {"data_dir": tmp_path / "visa", "cache_dir": tmp_path / "cache", "products": list(VISA_1CLS)}
    builder = VisA(**options)
    found = {product: [0, 0, 0, 0] for product in VISA_1CLS}
    for split, records in builder._listing.splits.items():
        for record in records:
            found[record.product][2 * (split == "test") + record.label] += 1
    assert found == {product: [train, 0, test, 100] for product, (train, test) in VISA_1CLS.items()}
    with pytest.raises(ValueError, match="9 problems"):  # the other products
        VisA(**options | {"products": None})

    for scheme in ("2cls_fewshot", "2cls_highshot"):
        other = VisA(**options, split_csv=scheme)
        assert any(record.label == 1 for record in other._listing.splits["train"])

    (tmp_path / "visa/pcb3/Data/Masks/Anomaly/007.png").unlink()
    with pytest.raises(ValueError, match=r"pcb3/Data/Masks/Anomaly/007\.png: no such mask"):
        VisA(**options)
    with pytest.raises(ValueError, match="no split '3cls'; did you mean '1cls'"):
        VisA(data_dir=tmp_path / "visa", split_csv="3cls")


def test_visa_reads_one_product_through_the_real_table(tmp_path):
    visa_with_real_tables(tmp_path / "visa", products=("pcb1",))
    for folder in ("Images/Normal", "Images/Anomaly", "Masks/Anomaly"):
        for path in sorted((tmp_path / "visa/pcb1/Data" / folder).iterdir())[::40]:
            (trees.save_mask if "Masks" in folder else trees.save_image)(path)
    builder = VisA(data_dir=tmp_path / "visa", cache_dir=tmp_path / "cache", config_name="pcb1", on_error="skip")
    splits = prepared(builder)
    assert sum(map(len, splits.values())) == 26 + 3 and counts(splits["test"])[1] == 3
    assert len(builder.left_out) == 904 + 100 + 100 - 29
