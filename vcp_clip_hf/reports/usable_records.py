"""Records of `predict` that a report can show: damaged or foreign lines are counted, and left out."""

import math
import os
from collections.abc import Mapping
from typing import Any

from ..prediction_records import read_predictions


__all__ = ["read_usable"]


def read_usable(folder: str | os.PathLike) -> tuple[list[dict[str, Any]], int]:
    """
    Read the records of a run, without those that have neither a failure nor a finite score.

    Args:
        folder (`str` or `os.PathLike`): output folder of `predict`.

    Returns:
        `tuple[list[dict], int]`: the records, and the number of records that were left out.
    """
    records = read_predictions(folder)
    usable = [record for record in records if _is_usable(record)]
    return usable, len(records) - len(usable)


def _is_usable(record: Mapping[str, Any]) -> bool:
    if not (isinstance(record["image"], str) and isinstance(record["name"], str)):
        return False
    if "error" in record:
        return isinstance(record["error"], str)
    score, files = record.get("score"), [record.get(kind, "") for kind in ("map", "mask", "overlay")]
    return (
        isinstance(score, (int, float))
        and math.isfinite(score)
        and "label" in record
        and isinstance(record.get("regions", []), list)
        and all(isinstance(file, str) for file in files)
    )
