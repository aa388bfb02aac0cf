"""Reports of what was left out while a dataset was prepared.

Each process writes its share; the builder joins the shares and stores the report beside the prepared table, so that it
is still known when the table is loaded from the cache.
"""

import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from .layout_errors import LayoutProblem


__all__ = ["join_shares", "read_report", "shared_folder", "write_report", "write_share"]

_REPORT = "left_out.json"
_KINDS = ("problems", "known_gaps")


@contextmanager
def shared_folder() -> Iterator[str]:
    """Yield a temporary folder for the shares of all processes of this machine."""
    with tempfile.TemporaryDirectory(prefix="left_out_") as folder:
        yield folder


def write_share(folder: str, problems: Sequence[LayoutProblem], gaps: Sequence[LayoutProblem]) -> None:
    """Write the share of one process: problems, and known gaps of the dataset."""
    if problems or gaps:
        _write(os.path.join(folder, f"{uuid.uuid4().hex}.json"), problems, gaps)


def join_shares(folder: str) -> tuple[list[LayoutProblem], list[LayoutProblem]]:
    """Return the problems and the known gaps of all shares, each sorted by product and path."""
    found: tuple[list, list] = [], []
    for name in sorted(os.listdir(folder)):
        for whole, part in zip(found, _read(os.path.join(folder, name)), strict=True):
            whole += part
    for whole in found:
        whole.sort(key=lambda problem: (problem.product, problem.path))
    return found


def write_report(folder: str, problems: Sequence[LayoutProblem], gaps: Sequence[LayoutProblem]) -> None:
    """Store a report beside a prepared table, if the table is a folder on this machine."""
    if os.path.isdir(folder):
        _write(os.path.join(folder, _REPORT), problems, gaps)


def read_report(folder: str) -> tuple[list[LayoutProblem], list[LayoutProblem]]:
    """Return the stored problems and known gaps; both are empty if there is no report."""
    path = os.path.join(folder, _REPORT)
    return _read(path) if os.path.isfile(path) else ([], [])


def _write(path: str, problems: Sequence[LayoutProblem], gaps: Sequence[LayoutProblem]) -> None:
    content = {kind: list(map(asdict, some)) for kind, some in zip(_KINDS, (problems, gaps), strict=True)}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)


def _read(path: str) -> tuple[list[LayoutProblem], list[LayoutProblem]]:
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    problems, gaps = ([LayoutProblem(**entry) for entry in content[kind]] for kind in _KINDS)
    return problems, gaps
