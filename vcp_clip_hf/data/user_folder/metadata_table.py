"""A table that describes the images of a folder: CSV, or one JSON object per line."""

import csv
import io
import json
import re
from dataclasses import dataclass

from ...image_files import suffix_of
from ..file_tree import FileTree
from ..listing import Listing
from ..masks import MaskFiles
from ..records import ANOMALOUS, GOOD, NORMAL, UNKNOWN
from .config import AnomalyFolderConfig
from .names import COLUMNS, Names


__all__ = ["collect_table", "metadata_file", "read_table"]

_NAMES = ("metadata.csv", "metadata.jsonl")


def metadata_file(tree: FileTree) -> str | None:
    """Return the table of a folder, if it has one with the usual name."""
    return next(filter(None, map(tree.find, _NAMES)), None)


def read_table(name: str, text: str) -> list[dict]:
    """
    Read the rows of a table.

    Args:
        name (`str`): file name; `.jsonl`, or any other extension for CSV.
        text (`str`): content of the file.

    Returns:
        `list[dict]`: rows with the columns of `COLUMNS`; columns that the table does not have are None.

    Raises:
        ValueError: the text is not such a table, or none of its columns names an image.
    """
    rows = _read_json_lines(text) if suffix_of(name) == ".jsonl" else _read_csv(text)
    if not rows:
        raise ValueError("the table has no rows")
    given = {str(name).strip().casefold(): name for row in rows for name in row if name is not None}
    columns = {ours: next((given[name] for name in names if name in given), None) for ours, names in COLUMNS.items()}
    if columns["image"] is None:
        expected = " or ".join(COLUMNS["image"])
        raise ValueError(f"no column for the image: found {', '.join(given)}; expected {expected}")
    return [{ours: row.get(name) if name else None for ours, name in columns.items()} for row in rows]


def _read_csv(text: str) -> list[dict]:
    header = text.partition("\n")[0]
    return list(csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=header.count)))


def _read_json_lines(text: str) -> list[dict]:
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is {type(row).__name__}, expected an object")
        rows.append(row)
    return rows


def collect_table(tree: FileTree, listing: Listing, config: AnomalyFolderConfig) -> None:
    """
    Add the records of a table to the listing.

    Paths in it are relative to the table's folder or to the dataset's folder, or absolute. They must lie inside the
    dataset's folder, unless the option `outside_files` is set. Links inside the folder are followed.
    """
    name = tree.find(config.metadata, outside=True) if config.metadata else metadata_file(tree)
    if name is None:
        listing.problem(config.metadata or " or ".join(_NAMES), "no such file")
        return
    try:
        rows = read_table(name, listing.text(name))
    except ValueError as error:
        listing.problem(name, str(error))
        return
    reader = _RowReader(tree, config, Names(config.normal_names, config.anomalous_names), name.rpartition("/")[0])
    for number, row in enumerate(rows, start=1):
        product = reader.product_of(row)
        try:
            record = reader.record_of(row, f"{name}, row {number}")
        except _UnusableRow as unusable:
            listing.problem(unusable.path, unusable.reason, product)
        else:
            listing.add(product=product, **record)


class _UnusableRow(ValueError):
    """A row without a record: a path (or the row's place in the table) and a reason."""

    def __init__(self, path: str, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


@dataclass
class _RowReader:
    """Turns rows into records; `folder` is the table's folder, relative to the tree."""

    tree: FileTree
    config: AnomalyFolderConfig
    names: Names
    folder: str

    def product_of(self, row: dict) -> str:
        folder_name = self.tree.root.replace("\\", "/").rpartition("/")[2]
        return str(row["product"] or "") or self.config.product or folder_name

    def record_of(self, row: dict, where: str) -> dict:
        """Return the arguments of [`Listing.add`], without the product."""
        image, masks = self._files_of(row, where)
        split = str(row["split"] or "test").strip()
        if not re.fullmatch(r"\w+", split) or split.casefold() == "all":
            raise _UnusableRow(where, f"split {split!r} must be one word, and not all")
        label = self._label_of(row, where)
        if label == UNKNOWN and masks:
            label = None  # the mask decides
        if self.config.masks_required and label == ANOMALOUS and not masks:
            raise _UnusableRow(str(row["image"]), f"no mask ({where})")
        return {
            "split": split,
            "image": image,
            "label": label,
            "defect": str(row["defect"] or "") or (GOOD if label in (NORMAL, UNKNOWN) else "anomaly"),
            "mask": MaskFiles(tuple(map(self.tree.path, masks)), self.config.mask_above) if masks else None,
            "image_id": str(row["image_id"]) if row["image_id"] else None,
        }

    def _files_of(self, row: dict, where: str) -> tuple[str, list[str]]:
        if not row["image"]:
            raise _UnusableRow(where, "names no image")
        given = row["mask"] if isinstance(row["mask"], list) else [row["mask"]] if row["mask"] else []
        found = []
        for path in (row["image"], *given):
            found.append(self._find(str(path)))
            if found[-1] is None:
                place = "" if self.config.outside_files else " inside the folder"
                raise _UnusableRow(str(path), f"no such file{place} ({where})")
        return found[0], found[1:]

    def _find(self, path: str) -> str | None:
        """Return the path of a file relative to the tree, or absolute if it lies outside and that is allowed."""
        for folder in dict.fromkeys((self.folder, "")):
            found = self.tree.find(path, folder, self.config.outside_files)
            if found is not None:
                return found
        return None

    def _label_of(self, row: dict, where: str) -> int:
        if row["label"] not in (None, ""):
            label = self.names.label_of_value(row["label"])
            if label is None:
                raise _UnusableRow(
                    where,
                    f"label {row['label']!r} means neither normal nor anomalous; use 0 and 1, or pass normal_names or"
                    " anomalous_names",
                )
            return label
        if row["defect"]:
            label = self.names.label_of_value(row["defect"])
            return ANOMALOUS if label is None else label
        return UNKNOWN
