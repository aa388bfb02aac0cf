"""Records of segmented images: one line of JSON per image, a table for spreadsheets, and what still holds of them."""

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .atomic_write import atomic_file
from .input_images import is_url
from .safe_csv import safe_cell


__all__ = [
    "RECORDS",
    "file_state",
    "iterate_records",
    "read_predictions",
    "record_files",
    "recorded_state",
    "write_csv",
    "write_records",
]

RECORDS = "predictions.jsonl"
_COLUMNS = ["image", "score", "label", "threshold", "image_threshold", "height", "width", "map", "mask", "overlay"]
# In tables of videos, after the image
_VIDEO_COLUMNS = ["segment", "frame", "time_seconds", "time", "dropped"]


def record_files(output_dir: Path) -> list[Path]:
    """Return the files of records: one, and while several processes run, or after a kill, one of each process."""
    return sorted(output_dir.glob("predictions*.jsonl")) if output_dir.is_dir() else []


def read_predictions(output_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """
    Return the newest record of each image in the output folder of [`predict_files`], from all processes.

    Incomplete lines, as a killed process leaves, are skipped.

    Args:
        output_dir (`str` or `os.PathLike`): folder to read.
    """
    records: dict[str, dict] = {}
    for file in record_files(Path(output_dir)):
        for _, record in iterate_records(file):
            records[record["image"]] = record
    return list(records.values())


def iterate_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """
    Read the records of one file, in order; incomplete lines are skipped.

    Args:
        path (`Path`): file of lines of JSON.

    Yields:
        `tuple[int, dict]`: position of the record's line in the file, in bytes, and the record.
    """
    position = 0
    with open(path, "rb") as lines:
        for line in lines:
            try:
                record = json.loads(line.decode("utf-8", "replace"))
            except json.JSONDecodeError:
                record = None
            if isinstance(record, dict) and "image" in record and "name" in record:
                yield position, record
            position += len(line)


def file_state(path: str) -> dict[str, int]:
    """
    Return size and modification time of an input file, by which a later run notices that it was replaced.

    Args:
        path (`str`): path or URL.

    Returns:
        `dict` with `bytes` and `mtime_ns`; empty for a URL, which is not requested again, and for a missing file.
    """
    if is_url(path):
        return {}
    try:
        state = os.stat(path)
    except OSError:
        return {}
    return {"bytes": state.st_size, "mtime_ns": state.st_mtime_ns}


def recorded_state(record: Mapping[str, Any]) -> dict[str, int]:
    """Return the [`file_state`] that a record holds."""
    return {name: record[name] for name in ("bytes", "mtime_ns") if name in record}


def write_records(records: Sequence[dict[str, Any]], path: Path) -> None:
    """
    Write records as lines of JSON; the file is complete or unchanged.

    Args:
        records (sequence of `dict`): records as [`read_predictions`] returns them.
        path (`Path`): file to write.
    """
    with atomic_file(path) as unfinished:
        unfinished.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_csv(records: Sequence[dict[str, Any]], path: Path) -> None:
    """
    Write a table with one line per image, without regions; the file is complete or unchanged. Frames of videos have
    their time and number, too.

    A cell that a spreadsheet would take for a formula gets an apostrophe before it, as OWASP recommends. Bytes of file
    names that are not UTF-8 are written as `\\udc..`, carriage returns as `\\r`. The records have all names unchanged.

    Args:
        records (sequence of `dict`): records as [`read_predictions`] returns them.
        path (`Path`): file to write.
    """
    of_video = [name for name in _VIDEO_COLUMNS if any(name in record for record in records)]
    columns = [_COLUMNS[0], *of_video, *_COLUMNS[1:], "error"]
    with (
        atomic_file(path) as unfinished,
        open(unfinished, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: safe_cell(value) for name, value in record.items()} for record in records)
