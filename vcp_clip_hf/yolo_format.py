"""The regions of results as labels of YOLO segmentation (https://docs.ultralytics.com/datasets/segment/)."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .atomic_write import atomic_file
from .linked_pictures import ToolFolder
from .region_polygons import POLYGON_TOLERANCE, region_label, region_polygon, regions_of


__all__ = ["write_yolo"]

_CLASSES = "classes.txt"


def write_yolo(
    records: Sequence[Mapping[str, Any]], folder: str | os.PathLike, tolerance: float = POLYGON_TOLERANCE
) -> ToolFolder:
    """
    Write a folder with `images/` (links), `labels/` (one text file per image), `data.yaml` and `classes.txt`.

    A line of a label file is a class and the corners of a region, as fractions of width and height with 8 decimals.
    The format has no scores. An image without regions gets an empty file, which says that it is normal. Label files
    that exist are kept, and so are the numbers of the classes.

    Args:
        records, folder, tolerance: see `write_labelme`.

    Returns:
        [`ToolFolder`]: counts, and images that could not be written.

    Raises:
        ValueError: the regions of a record were written by an earlier version.
    """
    result = ToolFolder(Path(folder))
    usable = list(result.pictures(records, "images"))
    names = _update_classes(result.folder, [region_label(each) for record, _ in usable for each in regions_of(record)])
    for record, _ in usable:
        lines = [_line(names, region, record, tolerance) for region in regions_of(record)]
        result.write(result.folder / "labels" / f"{record['name']}.txt", "".join(lines))
    return result


def _update_classes(folder: Path, labels: Sequence[str]) -> list[str]:
    """Write and return the list of classes: those that it has already, then the new ones."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _CLASSES
    names = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    new = sorted(set(labels) - set(names))
    if not new and (folder / "data.yaml").is_file():
        return names
    names += new or ([] if names else [region_label({})])
    listed = "".join(f"  {number}: {json.dumps(name)}\n" for number, name in enumerate(names))
    # Without `path`, the folders begin where this file lies
    settings = f"train: images\nval: images\nnames:\n{listed}"
    for name, text in ((_CLASSES, "".join(f"{name}\n" for name in names)), ("data.yaml", settings)):
        with atomic_file(folder / name) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    return names


def _line(names: Sequence[str], region: Mapping[str, Any], record: Mapping[str, Any], tolerance: float) -> str:
    corners = region_polygon(region, tolerance)
    values = [f"{x / record['width']:.8f} {y / record['height']:.8f}" for x, y in corners]
    return f"{names.index(region_label(region))} {' '.join(values)}\n"
