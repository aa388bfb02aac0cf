"""Decide which shapes of an image mark a defect, and name it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .shapes import AREAS, AnnotatedImage, Shape


__all__ = ["ShapeRules"]


@dataclass(frozen=True)
class ShapeRules:
    """
    Rules that decide which shapes mark a defect.

    Args:
        boxes_as_masks (`bool`): whether a bounding box of a detector is a shape.
        line_width (`float`, *optional*): width of drawn lines in pixels; without it, lines cannot be used.
        ignored (`frozenset[str]`): labels of shapes that do not mark a defect, such as the outline of the product.
    """

    boxes_as_masks: bool = False
    line_width: float | None = None
    ignored: frozenset[str] = frozenset()

    def choose(self, image: AnnotatedImage) -> tuple[list[Shape], list[str]]:
        """
        Return the shapes that mark defects, and reasons why the others cannot be used.

        Args:
            image ([`AnnotatedImage`]): image with all its shapes.
        """
        chosen: list[Shape] = []
        left: dict[str, list[Shape]] = {}
        for shape in image.shapes:
            if shape.label in self.ignored:
                continue
            is_drawn = bool(shape.parts or shape.runs)
            if is_drawn and shape.kind in AREAS:
                chosen.append(shape)
            elif is_drawn and shape.kind == "line" and self.line_width and not image.in_fractions:
                chosen.append(replace(shape, stroke_width=self.line_width))
            elif is_drawn and shape.kind == "bounding box" and self.boxes_as_masks:
                chosen.append(replace(shape, kind="box"))
            else:
                left.setdefault(shape.kind, []).append(shape)
        return chosen, [_reason(kind, shapes) for kind, shapes in left.items()]


def _reason(kind: str, shapes: Sequence[Shape]) -> str:
    first, count = shapes[0], len(shapes)
    text = f"{count} {kind}{'' if count == 1 else 'es' if kind.endswith('x') else 's'}, the first is {first.place}"
    if kind == "line":
        fix = "a line has no area; pass line_width=5 to draw lines 5 pixels wide"
    elif kind == "bounding box":
        fix = "a box is not a segmentation; pass boxes_as_masks=True to take all of its pixels"
    else:
        fix = f"a {kind} has no area; draw a polygon"
    return f"{text} ({first.label!r}): {fix}, or pass ignore_labels=[{first.label!r}] to leave it out"
