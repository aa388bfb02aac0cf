"""CVAT's XML: shapes, tags, what has no area, and files that would expand or read others."""

import re

import numpy as np
import pytest

from vcp_clip_hf.data.annotations.cvat import is_cvat, parse_xml, read_cvat
from vcp_clip_hf.data.annotations.rasterize import rasterize


WIDTH, HEIGHT = 40, 28
ROWS, COLUMNS = np.indices((HEIGHT, WIDTH)) + 0.5
SQUARE = (COLUMNS > 3) & (COLUMNS < 9) & (ROWS > 4) & (ROWS < 11)


def cvat(*shapes: str, image='name="a.png" width="40" height="28"') -> bytes:
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task/></meta>'
        f'<image id="0" {image}>{"".join(shapes)}</image></annotations>'
    ).encode()


def read(*shapes: str, **fields):
    found = read_cvat("annotations.xml", parse_xml(cvat(*shapes, **fields)))
    (image,) = found.images
    assert not found.problems
    return image


INSIDE = {
    '<polygon label="dent" occluded="0" points="3.00,4.00;9.00,4.00;9.00,11.00;3.00,11.00" z_order="0"/>': SQUARE,
    '<box label="dent" xtl="3" ytl="4" xbr="9" ybr="11"><attribute name="x">y</attribute></box>': SQUARE,
    '<box label="dent" xtl="2.5" ytl="4.5" xbr="9.5" ybr="10.5" rotation="90.0"/>': SQUARE,
    '<ellipse label="dent" cx="20" cy="14" rx="10" ry="5"/>': np.hypot((COLUMNS - 20) / 10, (ROWS - 14) / 5) < 1,
    '<ellipse label="dent" cx="20" cy="14" rx="5" ry="10" rotation="90"/>': np.hypot(
        (COLUMNS - 20) / 10, (ROWS - 14) / 5
    )
    < 1,
    '<mask label="dent" rle="2, 3, 4" left="5" top="6" width="3" height="3"/>': (ROWS == 6.5) & (COLUMNS == 7.5)
    | (ROWS == 7.5) & (COLUMNS < 7) & (COLUMNS > 5),
}


@pytest.mark.parametrize("text", INSIDE)
def test_shapes_with_an_area(text):
    image = read(text)
    assert not image.problems and image.shapes[0].label == "dent" and image.size == (WIDTH, HEIGHT)
    mask = rasterize(image.shapes, WIDTH, HEIGHT)
    assert (mask ^ INSIDE[text]).sum() <= 4 * ("ellipse" in text) and INSIDE[text].any()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('<polyline label="dent" points="3,4;9,4"/>', "line"),
        ('<points label="dent" points="3,4"/>', "points"),
        ('<cuboid label="dent" xtl1="1"/>', "cuboid"),
        ('<skeleton label="dent"><points label="a" points="3,4"/></skeleton>', "skeleton"),
    ],
)
def test_shapes_without_an_area_keep_their_kind(text, kind):
    (shape,) = read(text).shapes
    assert (shape.kind, shape.label) == (kind, "dent") and shape.place.endswith(" 1")


def test_tags_are_labels_of_the_image():
    image = read(
        '<tag label="good" source="manual"></tag>', image='name="b\\a.png" subset="Train" width="40" height="28"'
    )
    assert (image.labels, image.shapes, image.subset, image.name) == (("good",), (), "Train", "b/a.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<polygon label="dent" points="3,4;9,4"/>', "polygon 1: 2 points, expected at least 3"),
        ('<polygon label="dent" points="3,4;9;5,6"/>', "polygon 1: "),
        ('<polygon label="dent" points="3,4;9,nan;5,6"/>', "polygon 1: a coordinate is not a finite number"),
        ('<polygon label="dent"/>', "polygon 1: 0 points"),
        ('<box label="dent" xtl="3" ytl="4" xbr="9"/>', "box 1: no attribute ybr"),
        ('<ellipse label="dent" cx="3" cy="4" rx="0" ry="0"/>', "ellipse 1: the radius 0"),
        ('<mask label="dent" rle="2, 3" left="5" top="6" width="3" height="3"/>', "mask 1: .* describe 5 pixels"),
        ('<mask label="dent" rle="" left="5" top="6" width="3" height="3"/>', "mask 1: "),
        ('<mask label="dent" rle="9" left="inf" top="6" width="3" height="3"/>', "mask 1: "),
    ],
)
def test_shapes_that_cannot_be_read(text, message):
    (problem,) = read(text).problems
    assert re.match(message, problem)


def test_images_without_name_or_size_and_tracks():
    assert read(image='name="a.png" width="40"').problems == ("the image states no width and height",)
    found = read_cvat("a.xml", parse_xml(cvat(image="")))
    assert found.problems == ["image 1 has no name"] and not found.images
    video = parse_xml(b'<annotations><version>1.1</version><track id="0" label="dent"/></annotations>')
    assert is_cvat(video) and "export the task as" in read_cvat("a.xml", video).problems[0]


BILLION_LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY lol "lol">'
    + "".join(f'<!ENTITY lol{n} "{f"&lol{n - 1 or str()};" * 10}">' for n in range(1, 10))
    + "]><annotations><version>&lol9;</version></annotations>"
)


@pytest.mark.parametrize(
    "text",
    [
        BILLION_LAUGHS,
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotations><version>&x;</version></annotations>',
        '<!DOCTYPE a SYSTEM "http://127.0.0.1/a.dtd"><annotations><version>1.1</version></annotations>',
        '<!DOCTYPE a [<!ENTITY % x SYSTEM "http://127.0.0.1/a.dtd"> %x;]><annotations/>',
        "<!DOCTYPE annotations><annotations/>",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_document_types_are_refused(text, encoding):
    with pytest.raises(ValueError, match=r"a document type definition .* remove it"):
        parse_xml(text.encode(encoding))


def test_entities_that_no_file_defined_are_not_xml():
    with pytest.raises(ValueError, match=r"not XML .*undefined entity"):
        parse_xml(b"<annotations>&x;</annotations>")
    for text in (b"", b"<annotations>", b"\xff\xfe\x00", b"{}"):
        with pytest.raises(ValueError, match="not XML"):
            parse_xml(text)
    assert parse_xml("<a b='&lt;é'/>".encode("utf-16")).get("b") == "<é"


def test_deeply_nested_elements_do_not_end_the_process():
    root = parse_xml(b"<a>" * 20000 + b"</a>" * 20000)
    assert root.tag == "a" and not is_cvat(root)


def test_other_xml_is_not_cvat():
    assert is_cvat(parse_xml(cvat()))
    for text in (b"<annotation><object/></annotation>", b"<annotations/>", b"<annotations><object/></annotations>"):
        assert not is_cvat(parse_xml(text))
