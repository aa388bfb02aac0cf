"""The regions of results as a COCO file, as pycocotools reads it."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .atomic_write import atomic_file
from .region_polygons import region_label, regions_of


__all__ = ["coco_content", "compressed_counts", "run_lengths", "write_coco"]


def coco_content(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """
    Return the regions of results as COCO annotations. The categories are the names of the regions, or "anomaly".

    Ids of images and annotations begin at 1, since COCOeval takes 0 for "not matched". An annotation has

    - `segmentation`: the region's pixels without its holes, as compressed run lengths (RLE) of the whole image;
    - `bbox`: [x, y, width, height] in pixels;
    - `area`: the number of pixels of the region;
    - `score`, and `iscrowd`, which is 0;
    - `polygons` and `holes`, beyond COCO's own fields: lists of [x1, y1, x2, y2, ...] along pixel edges. The polygons
      enclose the region with its holes.

    Args:
        records (sequence of `dict`):
            Records with `image`, `height`, `width` and `regions` from `find_regions`; errors are left out.

    Returns:
        `dict` with `images`, `annotations` and `categories`, ready for JSON.

    Raises:
        ValueError: the regions of a record were written by an earlier version, without their holes.
    """
    usable = [record for record in records if "error" not in record]
    images = [
        {"id": number, "file_name": record["image"], "height": record["height"], "width": record["width"]}
        for number, record in enumerate(usable, start=1)
    ]
    labels = {region_label(region) for record in usable for region in regions_of(record)} or {region_label({})}
    categories = {label: number for number, label in enumerate(sorted(labels), start=1)}
    annotations = [
        {"id": number, **annotation} for number, annotation in enumerate(_annotations(usable, categories), start=1)
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": label} for label, number in categories.items()],
    }


def write_coco(records: Sequence[dict[str, Any]], path: str | os.PathLike) -> None:
    """
    Write the regions of results as a COCO file.

    Args:
        records (sequence of `dict`): see `coco_content`.
        path (`str` or `os.PathLike`): file to write.

    Raises:
        ValueError: see `coco_content`.
    """
    content = coco_content(records)
    with atomic_file(path) as unfinished:
        unfinished.write_text(json.dumps(content), encoding="utf-8")


def _annotations(records: Sequence[dict[str, Any]], categories: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """Yield the annotations of all images, without their own ids."""
    for number, record in enumerate(records, start=1):
        for region in regions_of(record):
            box, outlines = region["box"], [region["polygon"], *region["holes"]]
            counts = run_lengths(outlines, record["height"], record["width"])
            yield {
                "image_id": number,
                "category_id": categories[region_label(region)],
                "bbox": [box["xmin"], box["ymin"], box["xmax"] - box["xmin"], box["ymax"] - box["ymin"]],
                "area": region["area"],
                "segmentation": {"size": [record["height"], record["width"]], "counts": compressed_counts(counts)},
                "score": region["score"],
                "iscrowd": 0,
                "polygons": [_flat(region["polygon"])],
                "holes": [_flat(hole) for hole in region["holes"]],
            }


def _flat(corners: Sequence[Sequence[int]]) -> list[int]:
    return [value for corner in corners for value in corner]


def run_lengths(outlines: Sequence[Sequence[Sequence[int]]], height: int, width: int) -> list[int]:
    """
    Return the run lengths of the pixels inside an odd number of outlines.

    Args:
        outlines (`Sequence`): closed outlines as lists of corners [x, y] along pixel edges.
        height (`int`), width (`int`): size of the image.

    Returns:
        `list[int]`: lengths of the runs outside, inside, outside, ... of the image read column by column; their sum is
        `height * width`.
    """
    changes = []
    for outline in outlines:
        corners = np.asarray(outline, np.int64)
        before, after = corners, np.roll(corners, -1, axis=0)
        # Going down a column, inside and outside alternate at the horizontal parts of the outlines
        level = before[:, 1] == after[:, 1]
        lefts = np.minimum(before[level, 0], after[level, 0])
        lengths = np.abs(before[level, 0] - after[level, 0])
        columns = np.arange(lengths.sum()) + np.repeat(lefts - np.cumsum(lengths) + lengths, lengths)
        changes.append(columns * height + np.repeat(before[level, 1], lengths))
    # At the foot of a column, a run can continue at the head of the next one: two changes that cancel each other
    places, times = np.unique(np.concatenate(changes), return_counts=True)
    places = places[(times % 2 == 1) & (places < height * width)]
    return np.diff(places, prepend=0, append=height * width).tolist()


def compressed_counts(counts: Sequence[int]) -> str:
    """
    Return run lengths in COCO's compressed form.

    From the fourth on, the difference to the last but one is stored. A number is written 5 bits at a time, the lowest
    first; a sixth bit says that more follow, and the characters begin at "0".

    Args:
        counts (`Sequence[int]`): run lengths from `run_lengths`.
    """
    characters = []
    for index, count in enumerate(counts):
        value, more = count - counts[index - 2] if index > 2 else count, True
        while more:
            bits, value = value & 31, value >> 5
            # The sign is the highest of the 5 bits that come last
            more = value != (-1 if bits & 16 else 0)
            characters.append(chr(bits + 32 * more + 48))
    return "".join(characters)
