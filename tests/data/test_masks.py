"""Masks from pictures, polygons, tables and boxes."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.deep_files import write_png
from vcp_clip_hf.data.masks import (
    Box,
    BoxMask,
    LabelmeMask,
    MaskFiles,
    MatlabSegmentationMask,
    SegmentationTableMask,
    read_labels,
    read_voc_boxes,
)

from . import trees
from .trees import HEIGHT, MARKED, SMALL, WIDTH, save_mask


SIZE = (WIDTH, HEIGHT)


def read(path, **options) -> np.ndarray:
    return MaskFiles((str(path),), **options).read("", SIZE)


def test_dark_colors_of_16_bits(tmp_path):
    write_png(tmp_path / "deep.png", MARKED[..., None] * np.array([0, 3, 0], np.uint16))
    assert np.array_equal(read(tmp_path / "deep.png"), MARKED)


def test_class_ids_palette_indices_and_colors(tmp_path):
    for name, options in {
        "ids": {"value": 3},
        "palette": {"value": 1, "mode": "P"},
        "colors": {"value": 3, "mode": "RGB"},
    }.items():
        save_mask(tmp_path / f"{name}.png", **options)
        assert np.array_equal(read(tmp_path / f"{name}.png"), MARKED)


def test_palette_values_are_indices_not_colors(tmp_path):
    save_mask(tmp_path / "m.bmp", value=2, mode="P")
    assert set(np.unique(read_labels(str(tmp_path / "m.bmp")))) == {0, 2}


def test_no_threshold_fits_all_masks(tmp_path):
    save_mask(tmp_path / "ids.png", value=4)
    assert not read(tmp_path / "ids.png", above=127).any()
    save_mask(tmp_path / "noisy.png", noise=90)
    assert np.array_equal(read(tmp_path / "noisy.png", above=127), MARKED)
    assert read(tmp_path / "noisy.png", above=0).mean() > 0.9


def test_one_bit_masks_and_masks_with_alpha(tmp_path):
    Image.fromarray(MARKED).save(tmp_path / "one.png")
    assert np.array_equal(read(tmp_path / "one.png", above=127), MARKED)
    rgba = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    rgba[..., 3] = 255  # opaque is not abnormal
    rgba[MARKED, 0] = 255
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    assert np.array_equal(read(tmp_path / "alpha.png"), MARKED)


def test_several_masks_are_united(tmp_path):
    save_mask(tmp_path / "a.png", value=255)
    save_mask(tmp_path / "b.png", value=7, marked=SMALL)
    both = MaskFiles((str(tmp_path / "a.png"), str(tmp_path / "b.png"))).read("", SIZE)
    assert np.array_equal(both, MARKED | SMALL)


def test_without_a_threshold_only_two_values_are_allowed(tmp_path):
    save_mask(tmp_path / "a.png", value=1)
    assert np.array_equal(read(tmp_path / "a.png", above=None), MARKED)
    save_mask(tmp_path / "b.png", noise=90)
    with pytest.raises(ValueError, match=r"mask .*b.png holds \d+ values from 0 to 254.*mask_above=127"):
        read(tmp_path / "b.png", above=None)
    save_mask(tmp_path / "c.png", value=255, marked=MARKED | True)
    assert read(tmp_path / "c.png", above=None).all()


def test_labelme_shapes_are_filled_and_outlined(tmp_path):
    path = tmp_path / "a.json"
    trees.save_labelme(path, "a.jpg")
    assert np.array_equal(LabelmeMask(str(path)).read("", SIZE), MARKED)

    content = json.loads(path.read_text())
    left, top, right, bottom = trees.BOX
    content["shapes"] = [{"shape_type": "rectangle", "points": [[right, bottom], [left, top]]}]
    path.write_text(json.dumps(content))
    assert np.array_equal(LabelmeMask(str(path)).read("", SIZE), MARKED)

    content["shapes"] = [{"shape_type": "circle", "points": [[1, 1], [5, 5]]}]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="cannot fill a circle"):
        LabelmeMask(str(path)).read("", SIZE)


def test_a_triangle_covers_half_of_the_square(tmp_path):
    content = {"imageWidth": 40, "imageHeight": 40, "shapes": [{"points": [[0, 0], [39, 0], [0, 39]]}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    mask = LabelmeMask(str(tmp_path / "a.json")).read("", (40, 40))
    rows, columns = np.indices(mask.shape)
    assert np.array_equal(mask, rows + columns <= 39)


def test_segmentation_tables_and_matrices_agree(tmp_path):
    trees.save_seg(tmp_path / "a.seg")
    table = SegmentationTableMask(str(tmp_path / "a.seg"), (1, 3)).read("", SIZE)
    assert np.array_equal(table, MARKED)
    trees.road_matlab(tmp_path)
    matrix = MatlabSegmentationMask(str(tmp_path / "groundTruth" / "001.mat"), (2, 4)).read("", SIZE)
    assert np.array_equal(matrix, MARKED)


@pytest.mark.parametrize("row", ["1 99 0 3", "1 0 5 99", "1 0 7 5", "1 0 5", "x 0 5 6"])
def test_invalid_rows_of_a_segmentation_table_are_errors(tmp_path, row):
    (tmp_path / "a.seg").write_text(f"width 40\nheight 28\ndata\n{row}\n")
    with pytest.raises(ValueError, match="not a segmentation table"):
        SegmentationTableMask(str(tmp_path / "a.seg"), (1,)).read("", SIZE)


def test_the_error_without_scipy_names_the_extra(tmp_path, monkeypatch):
    import builtins

    real_import = builtins.__import__

    def refuse(name, *arguments, **options):
        if name.startswith("scipy"):
            raise ImportError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install vcp-clip-hf\[matlab\]"):
        MatlabSegmentationMask(str(tmp_path / "a.mat"), (2,)).read("", SIZE)


def test_boxes_are_filled(tmp_path):
    trees.save_voc(tmp_path / "a.xml", ["1_chongkong"])
    boxes = read_voc_boxes(str(tmp_path / "a.xml"))
    assert boxes == (Box("1_chongkong", *map(float, trees.BOX)),)
    assert np.array_equal(BoxMask("", boxes).read("", SIZE), MARKED)
    outside = Box("", -5, -5, 500, 500)
    assert BoxMask("", (outside,)).read("", SIZE).all()


def test_a_mask_function_gets_image_and_boxes():
    image = Image.new("L", SIZE, 7)

    def function(image, boxes):
        assert image.mode == "RGB" and image.getpixel((0, 0)) == (7, 7, 7)
        return Image.fromarray(SMALL)

    boxes = (Box("x", *trees.BOX),)
    assert np.array_equal(BoxMask("", boxes, function).read(image, SIZE), SMALL)
    with pytest.raises(ValueError, match=r"mask_fn returned shape \(2, 2, 3\)"):
        BoxMask("", boxes, lambda image, boxes: np.zeros((2, 2, 3))).read(image, SIZE)
