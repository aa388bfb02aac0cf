"""The regions of results as a COCO folder that CVAT and other tools import (COCO 1.0)."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .coco_format import coco_content
from .linked_pictures import ToolFolder


__all__ = ["write_coco_folder"]


def write_coco_folder(records: Sequence[Mapping[str, Any]], folder: str | os.PathLike) -> ToolFolder:
    """
    Write a folder with `images/` (links) and `annotations/instances_default.json`.

    The annotations are those of `write_coco`; names of images begin at `images/`. A listed image without
    annotations is normal. A file that exists is kept.

    Args:
        records (sequence of `Mapping`): records with `image`, `name`, `height`, `width` and `regions`.
        folder (`str` or `os.PathLike`): folder to write.

    Returns:
        [`ToolFolder`]: counts, and images that could not be written.

    Raises:
        ValueError: the regions of a record were written by an earlier version.
    """
    result = ToolFolder(Path(folder))
    images = result.folder / "images"
    renamed = [
        {**record, "image": link.relative_to(images).as_posix()} for record, link in result.pictures(records, "images")
    ]
    result.write(result.folder / "annotations" / "instances_default.json", json.dumps(coco_content(renamed)))
    return result
