"""Find the annotation files in a folder, and their formats. Every file is read once."""

import json
from collections.abc import Sequence

from transformers.utils import logging

from ..did_you_mean import did_you_mean
from ..file_tree import FileTree
from .coco import is_coco, read_coco
from .cvat import is_cvat, parse_xml, read_cvat
from .labelme import is_labelme, read_labelme
from .shapes import AnnotationFile
from .yolo import read_yolo


__all__ = ["ANNOTATION_FORMATS", "find_annotations"]

logger = logging.get_logger(__name__)

ANNOTATION_FORMATS = ("coco", "labelme", "yolo", "cvat")


def find_annotations(tree: FileTree, only: str | None = None) -> dict[str, list[AnnotationFile]]:
    """
    Read all annotation files of a folder, at any depth.

    The content decides what a file is: a JSON file with the lists `images` and `annotations` is COCO's, one with
    `shapes` and `imagePath` labelme's; an XML file with the root `annotations` is CVAT's; text files are YOLO's by
    their place and content, see [`read_yolo`]. Other files are ignored. A file that cannot be read is a problem of the
    requested format, or of a format that other files in the folder have; otherwise, a warning names it.

    Args:
        tree (`FileTree`): the folder.
        only (`str`, *optional*): the only format to look for.

    Returns:
        `dict[str, list[AnnotationFile]]`: format -> files; formats that do not occur are left out.

    Raises:
        ValueError: `only` is not a known format.
    """
    if only is not None and only not in ANNOTATION_FORMATS:
        raise ValueError(f"There is no annotation format {only!r}; {did_you_mean(only, ANNOTATION_FORMATS)}")
    found: dict[str, list[AnnotationFile]] = {name: [] for name in ANNOTATION_FORMATS}
    if only in (None, "coco", "labelme"):
        _add_damaged(found, ("labelme", "coco"), _add_json(tree, found), only)
    if only in (None, "cvat"):
        _add_damaged(found, ("cvat",), _add_xml(tree, found), only)
    if only in (None, "yolo"):
        found["yolo"] = read_yolo(tree)
    return {name: files for name, files in found.items() if files and only in (None, name)}


def _add_json(tree: FileTree, found: dict[str, list[AnnotationFile]]) -> list[AnnotationFile]:
    """Add the JSON files; return those that cannot be read."""
    damaged = []
    for path in tree.walk(suffixes=(".json",)):
        try:
            content = json.loads(tree.text(path))
        except (OSError, ValueError, RecursionError) as error:
            damaged.append(AnnotationFile(path, problems=[f"not JSON ({error}); save or export it again"]))
            continue
        if is_labelme(content):
            found["labelme"].append(read_labelme(path, content))
        elif is_coco(content):
            found["coco"].append(read_coco(path, content))
    return damaged


def _add_xml(tree: FileTree, found: dict[str, list[AnnotationFile]]) -> list[AnnotationFile]:
    """Add the XML files; return those that cannot be read."""
    damaged = []
    for path in tree.walk(suffixes=(".xml",)):
        try:
            root = parse_xml(tree.content(path))
        except (OSError, ValueError) as error:
            damaged.append(AnnotationFile(path, problems=[f"{error}; export it again"]))
            continue
        if is_cvat(root):
            found["cvat"].append(read_cvat(path, root))
    return damaged


def _add_damaged(
    found: dict[str, list[AnnotationFile]], formats: Sequence[str], damaged: list[AnnotationFile], only: str | None
) -> None:
    """Add unreadable files to the format that the other files have; without other files, only log a warning."""
    home = only if only in formats else next((name for name in formats if found[name]), None)
    if home is not None:
        found[home] += damaged
    elif damaged:
        more = f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        logger.warning("Not read as annotations: %s: %s%s", damaged[0].path, damaged[0].problems[0], more)
