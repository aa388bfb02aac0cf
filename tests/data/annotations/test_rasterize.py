"""Masks of shapes equal those of pycocotools; holes, borders, and what lies outside."""

import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from vcp_clip_hf.data.annotations.rasterize import ShapesMask, rasterize
from vcp_clip_hf.data.annotations.shapes import Runs, Shape, box, ellipse


def polygon(*parts, kind="polygon", label="dent", **fields) -> Shape:
    return Shape(label, kind, tuple(tuple(map(float, part)) for part in parts), place="shape 1", **fields)


@pytest.mark.parametrize("seed", range(20))
def test_polygons_are_filled_as_by_pycocotools(seed):
    generator = np.random.default_rng(seed)
    height, width = generator.integers(8, 60, 2)
    parts = [generator.uniform(-0.9, [width + 0.9, height + 0.9], (generator.integers(3, 9), 2)) for _ in range(2)]
    flat = [part.ravel().tolist() for part in parts]
    expected = coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects(flat, height, width))).astype(bool)
    assert np.array_equal(rasterize([polygon(*flat)], width, height), expected)


def test_a_pixel_is_inside_if_its_center_is():
    assert np.argwhere(rasterize([polygon((1, 1, 4, 1, 4, 3, 1, 3))], 6, 5)).tolist() == [
        [row, column] for row in (1, 2) for column in (1, 2, 3)
    ]
    # y = x + 0.3 passes below the centers of the diagonal, and above those under it
    rows, columns = np.indices((5, 5))
    triangle = rasterize([polygon((0, 0.3, 4.7, 5, 0, 5))], 5, 5)
    assert np.array_equal(triangle, rows > columns)


def test_holes_are_left_by_an_outline_that_follows_a_seam():
    ring = (1, 1, 7, 1, 7, 7, 1, 7, 1, 1, 3, 3, 3, 5, 5, 5, 5, 3, 3, 3)
    expected = np.zeros((8, 8), bool)
    expected[1:7, 1:7] = True
    expected[3:5, 3:5] = False
    assert np.array_equal(rasterize([polygon(ring)], 8, 8), expected)


def test_shapes_and_parts_are_united():
    square, other = (0, 0, 4, 0, 4, 4, 0, 4), (2, 2, 6, 2, 6, 6, 2, 6)
    united = rasterize([polygon(square), polygon(other)], 8, 8)
    assert united.sum() == 16 + 16 - 4
    assert np.array_equal(rasterize([polygon(square, other)], 8, 8), united)


@pytest.mark.parametrize("by_columns", [True, False])
def test_run_lengths_are_exact(by_columns):
    inside = np.random.default_rng(1).random((7, 5)) > 0.5
    flat = (inside.T if by_columns else inside).ravel()
    changes = np.flatnonzero(np.diff(np.r_[False, flat, not flat[-1]]))
    counts = np.diff(np.r_[0, changes]).tolist()
    mask = rasterize([Shape("dent", "mask", runs=Runs(2, 3, 5, 7, tuple(counts), by_columns))], 10, 12)
    assert np.array_equal(mask[3:10, 2:7], inside) and mask.sum() == inside.sum()


def test_a_line_is_drawn_with_its_width():
    mask = rasterize([polygon((2, 5, 18, 5), kind="line", stroke_width=4)], 20, 10)
    assert mask[3:7, 2:18].all() and not mask[:3].any() and not mask[7:].any()
    assert mask[4, 0] and not mask[3, 0], "round ends"
    # at the border, the stroke is cut
    assert rasterize([polygon((0, 0, 20, 0), kind="line", stroke_width=4)], 20, 10).sum() == 40


def test_an_ellipse_may_be_cut_by_the_border():
    rows, columns = np.indices((20, 30)) + 0.5
    circle = rasterize([polygon(ellipse(0, 10, 8, 8), kind="ellipse")], 30, 20)
    expected = np.hypot(columns, rows - 10) < 8
    assert (circle ^ expected).sum() <= 2 and circle.any()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            polygon((1, 1, 22, 1, 4, 4)),
            r"shape 1 \(polygon 'dent'\) has the point \(22, 1\), which lies outside",
        ),
        (polygon((1, 1, -1.5, 1, 4, 4)), r"the point \(-1.5, 1\)"),
        (polygon((1, 1, 4, 4, 4, 1e12)), r"the point \(4, 1e\+12\)"),
        (polygon((2, 5, 40, 5), kind="line", stroke_width=2), r"\(line 'dent'\) has the point \(40, 5\)"),
        (polygon(ellipse(0, 0, 900, 900), kind="ellipse"), "lies outside the image"),
        (polygon((1.1, 1.1, 1.2, 1.1, 1.2, 1.2)), "covers no pixel; delete it"),
        (Shape("dent", "mask", runs=Runs(18, 0, 3, 1, (0, 3), False)), "covers x 18 to 21 and y 0 to 1"),
        (Shape("dent", "mask", runs=Runs(-1, 0, 3, 1, (0, 3), False)), "covers x -1 to 2"),
        (Shape("dent", "mask", runs=Runs(0, 0, 3, 1, (3,), False)), "covers no pixel"),
    ],
)
def test_shapes_outside_and_empty_shapes_are_errors(shape, message):
    with pytest.raises(ValueError, match=message):
        rasterize([shape], 20, 10)


def test_coordinates_that_a_tool_rounded_over_the_border_are_accepted():
    assert rasterize([polygon((-0.9, -0.9, 20.9, -0.9, 20.9, 10.9, -0.9, 10.9))], 20, 10).all()


def test_the_error_without_pycocotools_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ImportError, match=r'pip install "vcp-clip-hf\[annotations\]"'):
        rasterize([polygon(box(1, 1, 3, 3))], 20, 10)
    assert rasterize([Shape("dent", "mask", runs=Runs(0, 0, 2, 1, (0, 2), False))], 20, 10).sum() == 2


def test_another_size_than_the_stated_one_is_an_error(tmp_path):
    mask = ShapesMask(("a.json",), (polygon(box(1, 1, 3, 3)),), stated=(20, 10))
    assert mask.read("a.png", (20, 10)).sum() == 4 and mask.files == ("a.json",)
    assert mask.read("a.png", (10, 20)).shape == (10, 20), "an EXIF rotation is the caller's matter"
    with pytest.raises(ValueError, match=r"a\.json states 20 x 10 pixels, and the image has 40 x 20; annotate"):
        mask.read("a.png", (40, 20))


def test_fractions_are_those_of_the_upright_image(tmp_path):
    mask = ShapesMask(("a.txt",), (polygon((0, 0, 0.5, 0, 0.5, 0.25, 0, 0.25)),), in_fractions=True)
    picture = Image.new("RGB", (20, 8))
    picture.save(tmp_path / "a.jpg")
    assert np.argwhere(mask.read(str(tmp_path / "a.jpg"), (20, 8))).max(axis=0).tolist() == [1, 9]
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif)
    upright = mask.read(str(tmp_path / "a.jpg"), (20, 8))
    assert upright.shape == (20, 8) and np.argwhere(upright).max(axis=0).tolist() == [4, 3]
    with pytest.raises(ValueError, match=r"a\.txt: shape 1 .* has the point \(30, 0\)"):
        far = ShapesMask(("a.txt",), (polygon((0, 0, 1.5, 0, 0.5, 0.25)),), in_fractions=True)
        far.read(Image.new("RGB", (20, 8)), (20, 8))
