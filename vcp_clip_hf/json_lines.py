"""Files with one JSON object per line, which a killed process may leave with an incomplete last line."""

import json
import os
from pathlib import Path
from typing import Any


__all__ = ["append_json_line", "end_last_line", "read_json_lines"]


def append_json_line(path: Path, record: dict[str, Any]) -> None:
    """Append a record on a line of its own; the file is created if it does not exist."""
    end_last_line(path)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def end_last_line(path: Path) -> None:
    """Add a line end after an incomplete last record of a killed process, so that the next record has its own line."""
    if path.is_file() and path.stat().st_size:
        with open(path, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """
    Read a file with one JSON object per line.

    Returns:
        The objects in their order, and the number of lines that are not a JSON object, such as an incomplete last one.

    Raises:
        OSError: the file cannot be read.
    """
    records, damaged = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            damaged += 1
    return records, damaged
