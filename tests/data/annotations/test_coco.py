"""COCO files: polygons, run lengths as pycocotools reads them, and what is wrong in a file."""

import json
import re

import numpy as np
import pytest
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from vcp_clip_hf.data.annotations.coco import is_coco, read_coco
from vcp_clip_hf.data.annotations.rasterize import rasterize
from vcp_clip_hf.data.annotations.selection import ShapeRules


WIDTH, HEIGHT = 31, 20
CATEGORIES = [{"id": 1, "name": "dent"}, {"id": 7, "name": "scratch"}]
SQUARE = [[2, 2, 8, 2, 8, 9, 2, 9]]


def coco(*annotations, images=({"id": 5, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},), **fields) -> dict:
    numbered = [{"id": number, "image_id": 5, "category_id": 1, **each} for number, each in enumerate(annotations, 1)]
    return {"images": list(images), "annotations": numbered, "categories": CATEGORIES, **fields}


def problems_of(content) -> str:
    found = read_coco("a.json", content)
    return "\n".join([*found.problems, *(problem for image in found.images for problem in image.problems)])


def test_polygons_and_run_lengths_equal_pycocotools(tmp_path):
    generator = np.random.default_rng(0)
    annotations = []
    for number in range(9):
        mask = np.asfortranarray(generator.random((HEIGHT, WIDTH)) > 0.1 * number, dtype=np.uint8)
        packed = coco_masks.encode(mask)
        packed["counts"] = packed["counts"].decode()
        flat = mask.ravel(order="F")
        counts = np.diff(np.r_[0, np.flatnonzero(np.diff(np.r_[0, flat])), flat.size]).tolist()
        polygons = [generator.uniform(0, [WIDTH, HEIGHT], (5, 2)).ravel().tolist() for _ in range(1 + number % 3)]
        for segmentation in (packed, {"size": [HEIGHT, WIDTH], "counts": counts}, polygons):
            annotations.append(
                {"segmentation": segmentation, "iscrowd": number % 2, "category_id": 1 + 6 * (number % 2)}
            )
    content = coco(*annotations)
    (tmp_path / "a.json").write_text(json.dumps(content))
    reference = COCO(str(tmp_path / "a.json"))
    found = read_coco("a.json", content)
    (image,) = found.images
    assert not found.problems and not image.problems and image.size == (WIDTH, HEIGHT)
    for shape, annotation in zip(image.shapes, reference.loadAnns(range(1, 28)), strict=True):
        expected = reference.annToMask(annotation).astype(bool)
        assert np.array_equal(rasterize([shape], WIDTH, HEIGHT), expected) and expected.any()
        assert shape.label == ("scratch" if annotation["iscrowd"] else "dent"), "a crowd is read like any other region"


def test_a_listed_image_without_annotations_has_no_shapes():
    (image,) = read_coco("a.json", coco()).images
    assert (image.name, image.shapes, image.problems) == ("a.png", (), ())


def test_names_may_have_backslashes_and_ids_may_be_words():
    content = coco(images=[{"id": "x", "file_name": "b\\a.png", "width": 4.0, "height": 5}])
    (image,) = read_coco("a.json", content).images
    assert (image.name, image.size) == ("b/a.png", (4, 5))


def test_an_annotation_without_segmentation_is_a_bounding_box():
    (image,) = read_coco("a.json", coco({"bbox": [2, 2, 6, 7], "segmentation": []})).images
    (shape,) = image.shapes
    assert shape.kind == "bounding box"
    ((shape,), _) = ShapeRules(boxes_as_masks=True).choose(image)
    expected = rasterize(read_coco("b.json", coco({"segmentation": SQUARE})).images[0].shapes, WIDTH, HEIGHT)
    assert np.array_equal(rasterize([shape], WIDTH, HEIGHT), expected)


def rle(counts, size=(HEIGHT, WIDTH)) -> dict:
    return {"segmentation": {"size": list(size), "counts": counts}}


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"segmentation": SQUARE, "image_id": 9}, "annotation 1 belongs to image 9, which the file does not list"),
        ({"segmentation": SQUARE, "image_id": [9]}, r"annotation 1 belongs to image \[9\]"),
        ({"segmentation": SQUARE, "category_id": 3}, "annotation 1 has the category 3, which the file does not list"),
        ({"segmentation": [[1, 2, 3, 4, 5]]}, "annotation 1: a polygon has an odd number of coordinates"),
        ({"segmentation": [[1, 2, 3, 4]]}, "annotation 1: 2 points, expected at least 3"),
        ({"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, "not a finite number"),
        ({"segmentation": [1, 2, 3, 4, 5, 6]}, "neither a list of polygons nor run lengths"),
        ({"segmentation": "abc"}, "neither a list of polygons nor run lengths"),
        ({"segmentation": [[1, 2, 3, 4, 5, None]]}, "annotation 1: "),
        ({}, "annotation 1: no segmentation and no bbox"),
        ({"bbox": [1, 2, 3]}, "annotation 1: not enough values"),
        (rle([5, 5]), "describe 10 pixels, and the mask has 31 x 20"),
        (rle([700, -80]), "a run length is negative"),
        (rle("23"), "describe 5 pixels"),  # where pycocotools returns what lies after its buffer
        (rle("~~"), "the compressed run lengths are damaged"),
        (rle("oooooooooooooo"), "the compressed run lengths are damaged"),
        (rle("o"), "the compressed run lengths are cut off"),
        (rle([620], (WIDTH, HEIGHT)), "run lengths of 20 x 31 pixels, and the image has 31 x 20"),
        (rle([10**30], (HEIGHT, WIDTH)), "describe 1000"),
        ({"segmentation": {"size": [HEIGHT, WIDTH]}}, "annotation 1: no field 'counts'"),
    ],
)
def test_annotations_that_cannot_be_read(annotation, message):
    assert re.search(message, problems_of(coco(annotation)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (coco(images=[{"id": 5, "file_name": "a.png"}]), "states no width and height"),
        (coco(images=[{"id": 5, "file_name": "a.png", "width": 0, "height": 3}]), "states no width and height"),
        (coco(images=[{"id": 5}]), "entry 1 of images has no file_name and no id"),
        (coco(images=["a.png"]), "entry 1 of images has no file_name and no id"),
        (
            coco(images=[{"id": 5, "file_name": name, "width": 3, "height": 3} for name in ("a.png", "b.png")]),
            "two images have the id 5: 'a.png' and 'b.png'; give each its own id",
        ),
        (coco(*[{"segmentation": SQUARE, "id": 4}] * 2), "2 annotations have the id 4; delete one or number them"),
        (
            coco(categories=[{"id": 1, "name": "dent"}, {"id": 1, "name": "hole"}]),
            "category 1 is 'dent' and 'hole'; give each its own id",
        ),
        (coco(categories=[{"name": "dent"}]), "a category without id or name"),
        (coco(annotations=[3]), "entry 1 of annotations is int, expected an object"),
    ],
)
def test_files_with_contradictions(content, message):
    assert message in problems_of(content)


def test_other_json_is_not_coco():
    assert is_coco(coco())
    for other in ([], {}, {"images": {}, "annotations": []}, {"shapes": []}, [coco()], None):
        assert not is_coco(other)
