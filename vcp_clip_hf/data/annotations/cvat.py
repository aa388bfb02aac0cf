"""CVAT's XML "for images", version 1.1 (https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/)."""

from collections.abc import Callable
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from .shapes import AnnotatedImage, AnnotationFile, Runs, Shape, box, ellipse, outline


__all__ = ["is_cvat", "parse_xml", "read_cvat"]


def parse_xml(content: bytes) -> Element:
    """
    Parse XML that is not trusted.

    A document type definition is refused at its first character. Without one, a file cannot define entities, so it can
    neither expand ("billion laughs") nor refer to another file or an address.

    Args:
        content (`bytes`): content of the file.

    Returns:
        `Element`: the root.

    Raises:
        ValueError: the content is not XML, or it has a document type definition.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise ValueError(f"not XML ({error})") from error
    return builder.close()


def _refuse(*_: Any) -> None:
    raise ValueError("a document type definition (<!DOCTYPE ...>), which no annotation needs; remove it")


def is_cvat(root: Element) -> bool:
    """Return whether an XML file is from CVAT."""
    return root.tag == "annotations" and any(root.find(tag) is not None for tag in ("version", "meta", "image"))


def read_cvat(path: str, root: Element) -> AnnotationFile:
    """
    Read the images of a CVAT file with their shapes.

    Polygons, boxes (also rotated ones), ellipses and masks have an area; polylines are lines; points, cuboids and
    skeletons have no area. An image without shapes shows no defect. Tags are labels of the image.

    Args:
        path (`str`): path of the file, for messages.
        root (`Element`): root of the file.

    Returns:
        [`AnnotationFile`]: images in the order of the file; errors in it.
    """
    found = AnnotationFile(path)
    if root.find("track") is not None:
        found.problems.append('tracks of "CVAT for video"; export the task as "CVAT for images 1.1"')
    for number, element in enumerate(root.iter("image"), start=1):
        name = element.get("name")
        if name:
            found.images.append(_image(name, element))
        else:
            found.problems.append(f"image {number} has no name")
    return found


def _image(name: str, element: Element) -> AnnotatedImage:
    shapes, labels, problems = [], [], []
    for number, child in enumerate(element, start=1):
        label, place = child.get("label", ""), f"{child.tag} {number}"
        if child.tag == "tag":
            labels.append(label)
            continue
        try:
            shapes.append(_READERS.get(child.tag, _without_area)(child, label, place))
        except (ValueError, TypeError, OverflowError) as error:
            problems.append(f"{place}: {error}")
    size = None
    try:
        size = int(element.get("width", "")), int(element.get("height", ""))
    except ValueError:
        problems.append("the image states no width and height")
    return AnnotatedImage(
        name.replace("\\", "/"),
        tuple(shapes),
        size,
        labels=tuple(labels),
        subset=element.get("subset", ""),
        problems=tuple(problems),
    )


def _numbers(element: Element, *names: str) -> list[float]:
    values = []
    for name in names:
        text = element.get(name)
        if text is None:
            raise ValueError(f"no attribute {name}")
        values.append(float(text))
    return values


def _points(element: Element, at_least: int) -> tuple[float, ...]:
    pairs = [pair.split(",") for pair in element.get("points", "").split(";") if pair.strip()]
    return outline(pairs, at_least)


def _turn(element: Element) -> float:
    return float(element.get("rotation") or 0)


def _polygon(element: Element, label: str, place: str) -> Shape:
    return Shape(label, "polygon", (_points(element, 3),), place=place)


def _polyline(element: Element, label: str, place: str) -> Shape:
    return Shape(label, "line", (_points(element, 2),), place=place)


def _box(element: Element, label: str, place: str) -> Shape:
    corners = box(*_numbers(element, "xtl", "ytl", "xbr", "ybr"), _turn(element))
    return Shape(label, "turned box" if _turn(element) else "box", (corners,), place=place)


def _ellipse(element: Element, label: str, place: str) -> Shape:
    return Shape(label, "ellipse", (ellipse(*_numbers(element, "cx", "cy", "rx", "ry"), _turn(element)),), place=place)


def _mask(element: Element, label: str, place: str) -> Shape:
    left, top, width, height = map(int, _numbers(element, "left", "top", "width", "height"))
    counts = tuple(int(count) for count in element.get("rle", "").split(","))
    return Shape(label, "mask", runs=Runs(left, top, width, height, counts, by_columns=False), place=place)


def _without_area(element: Element, label: str, place: str) -> Shape:
    return Shape(label, element.tag, place=place)


_READERS: dict[str, Callable[[Element, str, str], Shape]] = {
    "polygon": _polygon,
    "polyline": _polyline,
    "box": _box,
    "ellipse": _ellipse,
    "mask": _mask,
}
