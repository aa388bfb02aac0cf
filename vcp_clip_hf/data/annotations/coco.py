"""COCO's instance annotations: polygons, and run lengths, plain or compressed (https://cocodataset.org/#format-data)."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .shapes import AnnotatedImage, AnnotationFile, Runs, Shape, box, outline


__all__ = ["is_coco", "read_coco"]


def is_coco(content: Any) -> bool:
    """Return whether the content of a JSON file has the lists of a COCO file."""
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("images", "annotations"))


def read_coco(path: str, content: Mapping[str, Any]) -> AnnotationFile:
    """
    Read the images of a COCO file with their shapes, in one pass over its lists.

    A listed image without annotations shows no defect. Annotations with `iscrowd` are read like the others. An
    annotation without a segmentation is a "bounding box".

    Args:
        path (`str`): path of the file, for messages.
        content (`Mapping`): content of the file.

    Returns:
        [`AnnotationFile`]: images in the order of the file; errors in it.
    """
    found = AnnotationFile(path)
    names = _category_names(content, found.problems)
    pictures: dict[Any, _Picture] = {}
    for number, image in enumerate(content["images"], start=1):
        picture = _picture(image)
        if picture is None:
            found.problems.append(f"entry {number} of images has no file_name and no id")
        elif picture.id in pictures:
            found.problems.append(
                f"two images have the id {picture.id!r}: {pictures[picture.id].name!r} and {picture.name!r};"
                " give each its own id"
            )
        else:
            pictures[picture.id] = picture
    ids: Counter[Any] = Counter()
    for number, annotation in enumerate(content["annotations"], start=1):
        if not isinstance(annotation, dict):
            found.problems.append(f"entry {number} of annotations is {type(annotation).__name__}, expected an object")
            continue
        place = f"annotation {annotation.get('id', f'number {number}')}"
        if _is_id(annotation.get("id")):
            ids[annotation["id"]] += 1
        owner = annotation.get("image_id")
        if not _is_id(owner) or owner not in pictures:
            found.problems.append(f"{place} belongs to image {owner!r}, which the file does not list under images")
        else:
            pictures[owner].add(annotation, place, names)
    for repeated, count in ids.items():
        if count > 1:
            found.problems.append(f"{count} annotations have the id {repeated!r}; delete one or number them")
    found.images.extend(picture.finished() for picture in pictures.values())
    return found


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _category_names(content: Mapping[str, Any], problems: list[str]) -> dict[Any, str]:
    names: dict[Any, str] = {}
    categories = content.get("categories")
    for category in categories if isinstance(categories, list) else []:
        if not isinstance(category, dict) or not _is_id(category.get("id")) or "name" not in category:
            problems.append(f"a category without id or name: {category!r:.60}")
        elif category["id"] in names and names[category["id"]] != category["name"]:
            problems.append(
                f"category {category['id']} is {names[category['id']]!r} and {category['name']!r};"
                " give each its own id"
            )
        else:
            names[category["id"]] = str(category["name"])
    return names


@dataclass
class _Picture:
    """An image while its annotations are collected."""

    id: Any
    name: str
    size: tuple[int, int] | None
    shapes: list[Shape] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, annotation: Mapping[str, Any], place: str, names: Mapping[Any, str]) -> None:
        """Add the shape of an annotation, or the reason why it cannot be read."""
        category = annotation.get("category_id")
        if not _is_id(category) or category not in names:
            self.problems.append(f"{place} has the category {category!r}, which the file does not list")
            return
        try:
            self.shapes.append(_shape(annotation, names[category], place, self.size))
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            self.problems.append(f"{place}: {f'no field {error}' if isinstance(error, KeyError) else error}")

    def finished(self) -> AnnotatedImage:
        problems = list(self.problems)
        if self.size is None:
            problems.append("the entry under images states no width and height")
        return AnnotatedImage(self.name, tuple(self.shapes), self.size, problems=tuple(problems))


def _picture(image: Any) -> _Picture | None:
    if not isinstance(image, dict) or not _is_id(image.get("id")) or not isinstance(image.get("file_name"), str):
        return None
    size = image.get("width"), image.get("height")
    usable = all(isinstance(side, (int, float)) and side >= 1 and side == int(side) for side in size)
    name = image["file_name"].replace("\\", "/")
    return _Picture(image["id"], name, (int(size[0]), int(size[1])) if usable else None)


def _shape(annotation: Mapping[str, Any], label: str, place: str, size: tuple[int, int] | None) -> Shape:
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        return Shape(label, "mask", runs=_runs(segmentation, size), place=place)
    if segmentation:
        if not isinstance(segmentation, list) or not all(isinstance(part, list) for part in segmentation):
            raise ValueError("the segmentation is neither a list of polygons nor run lengths")
        if any(len(part) % 2 for part in segmentation):
            raise ValueError("a polygon has an odd number of coordinates")
        parts = [outline(zip(part[::2], part[1::2], strict=True)) for part in segmentation]
        return Shape(label, "polygon", tuple(parts), place=place)
    if annotation.get("bbox"):
        left, top, width, height = map(float, annotation["bbox"])
        return Shape(label, "bounding box", (box(left, top, left + width, top + height),), place=place)
    raise ValueError("no segmentation and no bbox")


def _runs(segmentation: Mapping[str, Any], size: tuple[int, int] | None) -> Runs:
    """Return run lengths of the whole image."""
    height, width = (int(side) for side in segmentation["size"])
    if size is not None and (width, height) != size:
        raise ValueError(f"run lengths of {width} x {height} pixels, and the image has {size[0]} x {size[1]}")
    counts = segmentation["counts"]
    counts = _decompressed(counts) if isinstance(counts, str) else tuple(int(count) for count in counts)
    return Runs(0, 0, width, height, counts, by_columns=True)


def _decompressed(text: str) -> tuple[int, ...]:
    """
    Return the run lengths of COCO's compressed form, see `compressed_counts` of [`vcp_clip_hf.coco_format`].

    pycocotools reads past its buffer if the text describes too few pixels, and annotation files are not trusted.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 30:
            raise ValueError("the compressed run lengths are damaged")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise ValueError("the compressed run lengths are cut off")
    return tuple(counts)
