"""Folders and files are written atomically: a killed process leaves no partial one under its final name."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


__all__ = ["atomic_file", "atomic_folder"]


@contextmanager
def atomic_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """
    Write a folder under a temporary name and rename it at the end. An existing folder of that name is replaced as a
    whole, after the new one is complete. If the body raises, the new folder is removed and the old one stays.

    ```python
    with atomic_folder("runs/last") as path:
        model.save_pretrained(path)
    ```

    Args:
        folder (`str` or `os.PathLike`): final name; missing parents are created.

    Yields:
        `Path`: the empty temporary folder, beside the final one.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished, outdated = (folder.with_name(f".{folder.name}.{state}") for state in ("unfinished", "outdated"))
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir()
    try:
        yield unfinished
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if not folder.exists():
        os.replace(unfinished, folder)
        return
    if outdated.exists():
        shutil.rmtree(outdated)
    os.replace(folder, outdated)
    os.replace(unfinished, folder)
    shutil.rmtree(outdated)


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """
    Write a file under a temporary name and rename it at the end; an existing file is replaced. If the body raises, the
    new file is removed and the old one stays.

    Args:
        path (`str` or `os.PathLike`): final name; the folder must exist.

    Yields:
        `Path`: the temporary file, beside the final one; the body creates it.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        yield unfinished
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    os.replace(unfinished, path)
