"""Which shapes mark a defect, and sentences about the others."""

import pytest

from vcp_clip_hf.data.annotations.selection import ShapeRules
from vcp_clip_hf.data.annotations.shapes import AREAS, AnnotatedImage, Shape


def image(*kinds: str, label="dent", **fields) -> AnnotatedImage:
    return AnnotatedImage(
        "a.png",
        tuple(Shape(label, kind, ((1, 1, 3, 1, 3, 3),), place=f"shape {n}") for n, kind in enumerate(kinds, 1)),
        **fields,
    )


@pytest.mark.parametrize("kind", sorted(AREAS))
def test_areas_are_chosen(kind):
    chosen, reasons = ShapeRules().choose(image(kind))
    assert [shape.kind for shape in chosen] == [kind] and not reasons


@pytest.mark.parametrize(
    ("kinds", "reason"),
    [
        (
            ["polygon", "line", "line"],
            "2 lines, the first is shape 2 ('dent'): a line has no area; pass line_width=5 to draw lines 5 pixels"
            " wide, or pass ignore_labels=['dent'] to leave it out",
        ),
        (["bounding box", "bounding box"], "2 bounding boxes, the first is shape 1 ('dent'): a box is not a segm"),
        (["point"], "1 point, the first is shape 1 ('dent'): a point has no area; draw a polygon, or pass ignore"),
        (["cuboid"], "1 cuboid, the first is shape 1 ('dent'): a cuboid has no area"),
    ],
)
def test_shapes_without_an_area_are_reasons(kinds, reason):
    (found,) = ShapeRules().choose(image(*kinds))[1]
    assert found.startswith(reason)


def test_lines_and_boxes_get_an_area_on_request():
    chosen, reasons = ShapeRules(boxes_as_masks=True, line_width=3).choose(image("line", "bounding box", "point"))
    assert [(shape.kind, shape.stroke_width) for shape in chosen] == [("line", 3), ("box", 0)]
    assert len(reasons) == 1 and "1 point" in reasons[0]


def test_a_shape_that_a_tool_calls_like_one_of_ours_has_no_area():
    chosen, reasons = ShapeRules(True, 3).choose(
        AnnotatedImage("a.png", (Shape("dent", "ellipse"), Shape("a", "line")))
    )
    assert not chosen and len(reasons) == 2


def test_ignored_labels_are_left_out():
    rules = ShapeRules(ignored=frozenset(["part"]))
    assert rules.choose(image("polygon", "point", label="part")) == ([], [])
    assert len(rules.choose(image("polygon", label="Part"))[0]) == 1
