"""What the reports of several runs share: names of the runs, and the settings in which they differ."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .parts import Part, Table, Text


__all__ = ["MOST_PICTURES", "MOST_ROWS", "named_runs", "runs_and_settings"]

# Maximum numbers of rows of tables and of images; with more, the page would open slowly
MOST_ROWS, MOST_PICTURES = 500, 60


def named_runs(folders: Sequence[Path]) -> list[str]:
    """
    Return a name for each run: the shortest end of its path that no other run has.

    Args:
        folders (`Sequence[Path]`): folders of the runs.

    Raises:
        ValueError: a folder is given twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise ValueError(
            f"The run {max(map(str, folders), key=[str(each) for each in folders].count)} is given twice."
        )
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return ["/".join(each) for each in parts]


def runs_and_settings(
    names: Sequence[str], folders: Sequence[Path], settings: Sequence[Mapping[str, Any]]
) -> list[Part]:
    """
    Return the table of the settings that differ.

    Args:
        names (`Sequence[str]`): names of the runs.
        folders (`Sequence[Path]`): their folders.
        settings (`Sequence[Mapping]`): their settings.
    """
    flat = [_by_part(each) for each in settings]
    keys = list(dict.fromkeys(name for each in flat for name in each))
    shown = {key: [_shown(each.get(key)) for each in flat] for key in keys}
    rows = [[key, *values] for key, values in shown.items() if len(set(values)) > 1]
    folder_row = ["folder", *(str(folder) for folder in folders)]
    same = Text(
        f"The other {len(keys) - len(rows)} settings are equal." if len(keys) > len(rows) else "No setting is equal."
    )
    return [Table(["setting", *names], [folder_row, *rows], "Settings that differ"), same]


def _by_part(values: Mapping[str, Any]) -> dict[str, Any]:
    parts = {}
    for name, value in values.items():
        nested = _by_part(value) if isinstance(value, Mapping) else None
        parts.update({name: value} if nested is None else {f"{name}: {part}": each for part, each in nested.items()})
    return parts


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = "not set" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 200 else f"{text[:197]}..."
