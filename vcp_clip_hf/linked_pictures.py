"""Folders for annotation tools: images as links, and annotations that are never overwritten."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .atomic_write import atomic_file
from .input_images import is_url


__all__ = ["TOOL_FOLDERS", "ToolFolder"]

TOOL_FOLDERS = ("coco", "labelme", "yolo")
"""Folders in the output folder of predictions, named like the formats."""


@dataclass
class ToolFolder:
    """
    A folder that an annotation tool opens.

    Args:
        folder (`Path`): folder to open.
        written (`int`): annotations that were written.
        kept (`int`): annotations that existed already, and may have been corrected.
        problems (`list[tuple[str, str]]`): image and the reason why it is not in the folder.
    """

    folder: Path
    written: int = 0
    kept: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)

    def describe(self) -> str:
        """Return the counts in one line."""
        text = f"{self.written} annotation{'' if self.written == 1 else 's'} written to {self.folder}"
        if self.kept:
            text += f", {self.kept} kept unchanged (delete them to get the new predictions)"
        return text

    def pictures(
        self, records: Sequence[Mapping[str, Any]], subfolder: str = ""
    ) -> Iterator[tuple[Mapping[str, Any], Path]]:
        """
        Link the image of each record into the folder, or copy it where links are not possible.

        Args:
            records (sequence of `Mapping`): records of images with `image` and `name`; errors are left out.
            subfolder (`str`, *optional*): folder for the links.

        Yields:
            The record and the path of its link. Images that are not files are problems.
        """
        for record in records:
            if "error" in record:
                continue
            image = record["image"]
            if is_url(image):
                self.problems.append((image, "annotation tools need a file; download the image and run on the file"))
            elif not os.path.isfile(image):
                self.problems.append((image, "the image file does not exist any more, so no tool can show it"))
            else:
                link = self.folder / subfolder / (record["name"] + Path(image).suffix)
                _link(image, link)
                yield record, link

    def write(self, path: Path, text: str) -> None:
        """Write an annotation, unless the file exists: it may have been corrected."""
        if path.exists():
            self.kept += 1
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
        self.written += 1


def _link(image: str, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(os.path.realpath(image), os.path.realpath(link.parent))
    if link.is_symlink():
        if os.readlink(link) == target:
            return
        link.unlink()
    elif link.exists():
        link.unlink()  # an earlier copy; the image may have changed since
    try:
        link.symlink_to(target)
    except OSError:  # Windows without the right to create links, or a file system without links
        shutil.copy2(image, link)
