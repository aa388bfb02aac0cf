"""labelme files: which shapes have an area, masks as images, and what is wrong in a file."""

import base64
import io
import math
import re

import numpy as np
import pytest
from PIL import Image

from vcp_clip_hf.data.annotations.labelme import is_labelme, read_labelme
from vcp_clip_hf.data.annotations.rasterize import rasterize


WIDTH, HEIGHT = 40, 28
ROWS, COLUMNS = np.indices((HEIGHT, WIDTH)) + 0.5
SQUARE = [[3, 4], [9, 4], [9, 11], [3, 11]]


def png(mask: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def shape(kind="polygon", points=SQUARE, **fields) -> dict:
    return {"label": "dent", "points": points, "shape_type": kind, "flags": {}, "group_id": None, **fields}


def labelme(*shapes, **fields) -> dict:
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": "a.png",
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
        **fields,
    }


def read(*shapes, **fields):
    found = read_labelme("a.json", labelme(*shapes, **fields))
    (image,) = found.images
    assert not found.problems
    return image


CROP = np.random.default_rng(0).random((7, 5)) > 0.4
INSIDE = {
    "polygon": (shape(), (COLUMNS > 3) & (COLUMNS < 9) & (ROWS > 4) & (ROWS < 11)),
    "a rectangle from right to left": (
        shape("rectangle", [[9, 11], [3, 4]]),
        (COLUMNS > 3) & (COLUMNS < 9) & (ROWS > 4) & (ROWS < 11),
    ),
    "oriented rectangle": (
        shape("oriented_rectangle", [[20, 4], [30.3, 14], [20, 24], [9.7, 14]]),
        abs(COLUMNS - 20) / 10.3 + abs(ROWS - 14) / 10 < 1,
    ),
    "circle": (shape("circle", [[20, 14], [20, 4]]), np.hypot(COLUMNS - 20, ROWS - 14) < 10),
    "no shape_type": ({"label": "dent", "points": SQUARE}, (COLUMNS > 3) & (COLUMNS < 9) & (ROWS > 4) & (ROWS < 11)),
    "mask": (shape("mask", [[8, 6], [12, 12]], mask=png(CROP)), np.pad(CROP, ((6, 15), (8, 27)))),
}


@pytest.mark.parametrize("kind", INSIDE)
def test_shapes_with_an_area(kind):
    drawn, expected = INSIDE[kind]
    image = read(drawn)
    assert not image.problems and image.shapes[0].label == "dent"
    mask = rasterize(image.shapes, WIDTH, HEIGHT)
    # pycocotools rounds to fifths of a pixel, which a slanted edge shows at some centers
    assert (mask ^ expected).sum() <= (8 if kind in ("circle", "oriented rectangle") else 0) and expected.any()


def test_the_first_pixel_of_a_mask_may_be_inside():
    image = read(shape("mask", [[0, 0], [1, 0]], mask=png(np.array([[True, False]]))))
    assert image.shapes[0].runs.counts == (0, 1, 1)


@pytest.mark.parametrize(
    "kind, expected", [("line", "line"), ("linestrip", "line"), ("point", "point"), ("points", "points")]
)
def test_shapes_without_an_area_keep_their_kind(kind, expected):
    (found,) = read(shape(kind, [[3, 4], [9, 4]])).shapes
    assert (found.kind, found.place) == ("line" if kind.startswith("line") else kind, "shape 1")


def test_a_file_without_shapes_is_an_annotated_image():
    image = read(flags={"good": True, "blurred": False})
    assert (image.shapes, image.labels, image.size, image.name) == ((), ("good",), (WIDTH, HEIGHT), "a.png")


def test_paths_of_windows_and_missing_sizes():
    assert read(imagePath="..\\photos\\a.png").name == "../photos/a.png"
    assert read(imageWidth=None).size is None


def test_the_embedded_image_is_not_looked_at():
    assert read(shape(), imageData="no image").shapes


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        (shape(points=[[1, 2], [3, 4]]), "shape 1: 2 points, expected at least 3"),
        (shape("rectangle", [[1, 2], [3, 4], [5, 6]]), "shape 1: 3 points, expected 2"),
        (shape("circle", [[1, 2], [1, 2]]), "shape 1: the radius 0 is not between"),
        (shape(points=[[1, 2], [3, math.nan], [5, 6]]), "shape 1: a coordinate is not a finite number"),
        (shape(points=None), "shape 1: "),
        ({"label": "dent"}, "shape 1: no field 'points'"),
        ({"points": SQUARE}, "shape 1: no field 'label'"),
        (7, "shape 1: "),
        (shape("mask", [[8, 6], [12, 12]]), "shape 1: no field 'mask'"),
        (shape("mask", [[8, 6], [12, 12]], mask=None), "shape 1: the mask is not an image in base64"),
        (shape("mask", [[8, 6], [12, 12]], mask="aGVsbG8="), "shape 1: cannot identify image file"),
        (shape("mask", [[8, 6], [13, 12]], mask=png(CROP)), r"shape 1: a mask of 5 x 7 pixels for corners \(8, 6\)"),
    ],
)
def test_shapes_that_cannot_be_read(drawn, message):
    (problem,) = read(drawn).problems
    assert re.match(message, problem)


def test_a_file_without_a_image():
    for name in ("", " ", None, 3):
        (problem,) = read_labelme("a.json", labelme(imagePath=name)).problems
        assert "imagePath is empty; write the image's path" in problem


def test_other_json_is_not_labelme():
    assert is_labelme(labelme())
    for other in ([], {}, {"shapes": {}, "imagePath": ""}, {"shapes": []}, None):
        assert not is_labelme(other)
