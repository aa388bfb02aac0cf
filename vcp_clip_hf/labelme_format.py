"""The regions of results as labelme files, one per image (https://github.com/wkentaro/labelme)."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .linked_pictures import ToolFolder
from .region_polygons import POLYGON_TOLERANCE, region_label, region_polygon, regions_of


__all__ = ["write_labelme"]

# Version of labelme that reads these fields; later ones do as well
_VERSION = "5.4.0"


def write_labelme(
    records: Sequence[Mapping[str, Any]], folder: str | os.PathLike, tolerance: float = POLYGON_TOLERANCE
) -> ToolFolder:
    """
    Write a folder for labelme: each image as a link, and beside it a JSON file with a polygon per region.

    The file has no `imageData`, and its `imagePath` is the link beside it. The score of a region is in the
    description of its shape. An image without regions gets a file without shapes, which says that it is normal. Files
    that exist are kept.

    Args:
        records (sequence of `Mapping`): records with `image`, `name`, `height`, `width` and `regions`.
        folder (`str` or `os.PathLike`): folder to write.
        tolerance (`float`, *optional*, defaults to 1.0): tolerance of the polygons in pixels, see `region_polygon`.

    Returns:
        [`ToolFolder`]: counts, and images that could not be written.

    Raises:
        ValueError: the regions of a record were written by an earlier version.
    """
    result = ToolFolder(Path(folder))
    for record, link in result.pictures(records):
        content = {
            "version": _VERSION,
            "flags": {},
            "shapes": [_shape(region, tolerance) for region in regions_of(record)],
            "imagePath": link.name,
            "imageData": None,
            "imageHeight": record["height"],
            "imageWidth": record["width"],
        }
        result.write(result.folder / f"{record['name']}.json", json.dumps(content, indent=2))
    return result


def _shape(region: Mapping[str, Any], tolerance: float) -> dict[str, Any]:
    return {
        "label": region_label(region),
        "points": region_polygon(region, tolerance),
        "group_id": None,
        "description": f"score {region['score']:.3f}",
        "shape_type": "polygon",
        "flags": {},
        "mask": None,
    }
