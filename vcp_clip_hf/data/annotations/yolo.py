"""YOLO segmentation (https://docs.ultralytics.com/datasets/segment/).

Each image has a text file with a line `class x1 y1 x2 y2 ...` per shape, in fractions of width and height.
`data.yaml` or `classes.txt` names the classes.
"""

import re
from collections.abc import Mapping, Sequence

import yaml

from ...image_files import suffix_of
from ..file_tree import FileTree, stem_of
from .shapes import AnnotatedImage, AnnotationFile, Shape, box, outline


__all__ = ["read_yolo"]

_CLASS_LISTS = ("classes.txt", "obj.names")
_LABELS, _IMAGES = "labels", "images"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_LINE = re.compile(rf"\d+(?:\s+{_NUMBER}){{4,}}")


def read_yolo(tree: FileTree) -> list[AnnotationFile]:
    """
    Read all label files of a folder.

    A label file lies in a folder `labels`, for an image at the same place in `images`, beside `labels` or in it; or
    beside its image. Other text files are ignored. An empty label file says that the image shows no defect. A
    line with a class and four numbers is a "bounding box".

    Args:
        tree (`FileTree`): the folder.

    Returns:
        `list[AnnotationFile]`: one per label file; empty if there is none.
    """
    texts = {path: lines for path in tree.walk(suffixes=(".txt",)) if (lines := _label_lines(tree, path)) is not None}
    if not texts:
        return []
    found: list[AnnotationFile] = []
    lists = _class_lists(tree, found)
    distinct = {tuple(sorted(names.items())) for names in lists.values()}
    if len(distinct) > 1:
        problem = f"{' and '.join(lists)} name different classes; keep the one that belongs to the labels"
        found.append(AnnotationFile(next(iter(lists)), problems=[problem]))
    names = dict(next(iter(distinct))) if len(distinct) == 1 else {}
    for path, lines in texts.items():
        found.append(AnnotationFile(path, [_image(path, lines, names)], also_read=tuple(lists)))
    return found


def _label_lines(tree: FileTree, path: str) -> list[str] | None:
    """Return the lines of a label file, or None if it is another text file."""
    folders, name = path.split("/")[:-1], path.rpartition("/")[2]
    if name.casefold() in _CLASS_LISTS:
        return None
    is_labels_folder = _LABELS in map(str.casefold, folders)
    try:
        lines = [line.strip() for line in tree.text(path).splitlines()]
    except (OSError, ValueError) as error:
        return [f"unreadable: {error}"] if is_labels_folder else None
    lines = [line for line in lines if line]
    if is_labels_folder:
        return lines
    beside = any(stem_of(picture) == stem_of(path) for picture in tree.files("/".join(folders))) if not lines else True
    return lines if beside and all(map(_LINE.fullmatch, lines)) else None


def _class_lists(tree: FileTree, unreadable: list[AnnotationFile]) -> dict[str, dict[int, str]]:
    """Return file -> number -> name of all lists of classes; add unreadable files to `unreadable`."""
    lists = {}
    for path in tree.walk(suffixes=(".txt", ".names", ".yaml", ".yml")):
        is_yaml = suffix_of(path) in (".yaml", ".yml")
        if not is_yaml and path.rpartition("/")[2].casefold() not in _CLASS_LISTS:
            continue
        try:
            text = tree.text(path)
        except (OSError, ValueError) as error:
            unreadable.append(AnnotationFile(path, problems=[f"not a text in UTF-8 ({error})"]))
            continue
        names = _names_of(text) if is_yaml else dict(enumerate(map(str.strip, text.splitlines())))
        if names:
            lists[path] = {number: name for number, name in names.items() if name}
    return lists


def _names_of(text: str) -> dict[int, str]:
    """Return the classes in a YAML file; empty if it has no `names`."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    names = content.get("names") if isinstance(content, Mapping) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict):
        return {}
    return {int(number): str(name) for number, name in names.items() if str(number).isdigit()}


def _image(path: str, lines: Sequence[str], names: Mapping[int, str]) -> AnnotatedImage:
    shapes, problems = [], []
    for number, line in enumerate(lines, start=1):
        try:
            shapes.append(_shape(line, names, f"line {number}"))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    stem = path.rpartition(".")[0]
    return AnnotatedImage(
        stem, tuple(shapes), in_fractions=True, stems=tuple(_picture_stems(stem)), problems=tuple(problems)
    )


def _picture_stems(stem: str) -> list[str]:
    """Return the possible paths of a label file's image: in `images`, beside `labels`, or beside the label file."""
    parts = stem.split("/")
    places = [index for index, part in enumerate(parts[:-1]) if part.casefold() == _LABELS]
    if not places:
        return [stem]
    before, after = parts[: places[-1]], parts[places[-1] + 1 :]
    return ["/".join([*before, _IMAGES, *after]), "/".join([*before, *after]), stem]


def _shape(line: str, names: Mapping[int, str], place: str) -> Shape:
    if not _LINE.fullmatch(line):
        raise ValueError(f"{line[:40]!r} is not a class and its coordinates")
    number, *values = line.split()
    coordinates = list(map(float, values))
    if int(number) not in names:
        raise ValueError(
            f"class {number} has no name; list the classes in data.yaml (names: [...]) or classes.txt, one per line"
        )
    label = names[int(number)]
    if len(coordinates) == 4:
        x, y, width, height = coordinates
        corners = box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        return Shape(label, "bounding box", (corners,), place=place)
    if len(coordinates) % 2 or len(coordinates) < 6:
        raise ValueError(f"{len(coordinates)} coordinates, expected x and y of at least three points")
    return Shape(label, "polygon", (outline(zip(coordinates[::2], coordinates[1::2], strict=True)),), place=place)
