"""A table that says what the images of a folder are: CSV, or one JSON object per line."""

import csv
import io
import json
import re

from .file_tree import FileTree, suffix_of
from .folder_names import COLUMNS, Names
from .layouts import Listing
from .masks import MaskFiles
from .records import ANOMALOUS, GOOD, UNKNOWN


__all__ = ["collect_table", "metadata_file", "read_table"]

_NAMES = ("metadata.csv", "metadata.jsonl")


def metadata_file(tree: FileTree) -> str | None:
    """The table of a folder, if it has one by the usual name."""
    return next(filter(None, map(tree.find, _NAMES)), None)


def read_table(name: str, text: str) -> list[dict]:
    """
    Args:
        name (`str`): of the file; `.jsonl` or anything else for CSV.
        text (`str`): its content.

    Returns:
        `list[dict]`: rows by the columns of `COLUMNS`; what a table does not have is None.

    Raises:
        ValueError: not such a table, or none of its columns names an image.
    """
    if suffix_of(name) == ".jsonl":
        rows = []
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"line {number} is not JSON ({error})") from error
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} is {type(row).__name__}, expected an object")
                rows.append(row)
    else:
        header = text.partition("\n")[0]
        rows = list(csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=header.count)))
    if not rows:
        raise ValueError("the table has no rows")
    there = {str(name).strip().casefold(): name for row in rows for name in row if name is not None}
    columns = {ours: next((there[name] for name in names if name in there), None) for ours, names in COLUMNS.items()}
    if columns["image"] is None:
        expected = " or ".join(COLUMNS["image"])
        raise ValueError(f"no column for the image: found {', '.join(there)}; expected {expected}")
    return [{ours: row.get(name) if name else None for ours, name in columns.items()} for row in rows]


def collect_table(tree: FileTree, listing: Listing, config) -> None:
    """The records of a table. Paths in it are relative to the folder, or absolute."""
    name = tree.find(config.metadata) if config.metadata else metadata_file(tree)
    if name is None:
        listing.problem(config.metadata or " or ".join(_NAMES), "no such file")
        return
    try:
        rows = read_table(name, listing.text(name))
    except ValueError as error:
        listing.problem(name, str(error))
        return
    names = Names(config.normal_names, config.anomalous_names)
    folder = name.rpartition("/")[0]
    for number, row in enumerate(rows, start=1):
        _add_row(tree, listing, config, names, folder, row, f"{name}, row {number}")


def _find(tree: FileTree, folder: str, path: str) -> str | None:
    found = tree.find(f"{folder}/{path}") if folder else tree.find(path)
    return found or tree.find(path)


def _add_row(tree: FileTree, listing: Listing, config, names: Names, folder: str, row: dict, where: str) -> None:
    product = str(row["product"] or "") or config.product or tree.root.replace("\\", "/").rpartition("/")[2]
    if not row["image"]:
        listing.problem(where, "names no image", product)
        return
    image = _find(tree, folder, str(row["image"]))
    given = row["mask"] if isinstance(row["mask"], list) else [row["mask"]] if row["mask"] else []
    masks = [_find(tree, folder, str(mask)) for mask in given]
    if image is None or None in masks:
        missing = row["image"] if image is None else given[masks.index(None)]
        listing.problem(str(missing), f"no such file ({where})", product)
        return

    split = str(row["split"] or "test").strip()
    if not re.fullmatch(r"\w+", split) or split.casefold() == "all":
        listing.problem(where, f"split {split!r} must be one word, and not all", product)
        return
    defect = str(row["defect"] or "")
    if row["label"] not in (None, ""):
        label = names.label_of_value(row["label"])
        if label is None:
            listing.problem(
                where,
                f"label {row['label']!r} means neither normal nor anomalous; use 0 and 1, or pass normal_names or"
                " anomalous_names",
                product,
            )
            return
    elif defect:
        label = names.label_of_value(defect)
        label = ANOMALOUS if label is None else label
    else:
        label = UNKNOWN
    if label == UNKNOWN and masks:
        label = None  # the mask tells
    if config.masks_required and label == ANOMALOUS and not masks:
        listing.problem(str(row["image"]), f"no mask ({where})", product)
        return
    listing.add(
        split,
        image,
        product,
        label,
        defect or (GOOD if label in (0, UNKNOWN) else "anomaly"),
        MaskFiles(tuple(map(tree.path, masks)), config.mask_above) if masks else None,
        image_id=str(row["image_id"]) if row["image_id"] else None,
    )
