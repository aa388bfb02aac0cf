"""The annotated videos of an output folder, made from its records and overlays: one for a file, or one per segment."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from .annotate import AnnotatedVideo, annotated_video


__all__ = ["AnnotatedSegments", "annotated_path", "remove_annotated", "write_missing"]


def annotated_path(output_dir: Path, segment: int | None) -> Path:
    """
    Return the annotated video of a file or of a segment.

    Args:
        output_dir (`Path`): folder of the results.
        segment (`int`, *optional*): number of the segment of a live source; `None` for a file.
    """
    return output_dir / ("annotated.mp4" if segment is None else f"annotated-{segment:04d}.mp4")


def remove_annotated(output_dir: Path) -> None:
    """Remove all annotated videos of a folder."""
    for path in [annotated_path(output_dir, None), *output_dir.glob("annotated-[0-9]*.mp4")]:
        path.unlink(missing_ok=True)


class AnnotatedSegments:
    """
    Writes annotated videos while a live source is read. At the end of the context, the last video is completed; if the
    body raises, this video is removed.

    Args:
        output_dir (`Path`): folder of the results.
        seconds (`float`): duration of a segment.

    Attributes:
        written (`list[Path]`): videos that are complete.
    """

    def __init__(self, output_dir: Path, seconds: float):
        self.output_dir, self.seconds = output_dir, seconds
        self.written: list[Path] = []
        self._stack = contextlib.ExitStack()
        self._video: AnnotatedVideo | None = None
        self._segment: int | None = None

    def __enter__(self) -> "AnnotatedSegments":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)
        if kind is None:
            self._complete()

    def add(self, record: Mapping[str, Any]) -> None:
        """
        Append the frame of a record; the first frame of a segment completes the previous video.

        Args:
            record (`Mapping`): record with an overlay.
        """
        if record["segment"] != self._segment:
            self._stack.close()
            self._complete()
            self._segment = record["segment"]
            path = annotated_path(self.output_dir, self._segment)
            self._video = self._stack.enter_context(annotated_video(path, self.seconds))
        _add(self._video, self.output_dir, record)

    def _complete(self) -> None:
        if self._segment is not None:
            self.written.append(annotated_path(self.output_dir, self._segment))


def write_missing(output_dir: Path, records: Iterable[Mapping[str, Any]], progress: bool = True) -> list[Path]:
    """
    Write the annotated videos that do not exist.

    Args:
        output_dir (`Path`): folder of the results.
        records (iterable of `Mapping`): records of one video, in order; those without an overlay are left out.
        progress (`bool`): whether to show a progress bar.

    Returns:
        `list[Path]`: videos that were written.
    """
    written = []
    usable = [record for record in records if "overlay" in record]
    for segment, group in groupby(usable, key=lambda record: record.get("segment")):
        path = annotated_path(output_dir, segment)
        if not path.exists():
            _write(path, list(group), progress)
            written.append(path)
    return written


def _write(path: Path, records: Sequence[Mapping[str, Any]], progress: bool) -> None:
    seconds = records[-1]["time_seconds"] - records[0]["time_seconds"]
    fps = (len(records) - 1) / seconds if seconds > 0 else 25.0
    with annotated_video(path, seconds, fps) as video:
        for record in tqdm(records, desc=path.name, disable=not progress, unit="frame"):
            _add(video, path.parent, record)


def _add(video: AnnotatedVideo, output_dir: Path, record: Mapping[str, Any]) -> None:
    with Image.open(output_dir / record["overlay"]) as overlay:
        video.add(overlay.convert("RGB"), record)
