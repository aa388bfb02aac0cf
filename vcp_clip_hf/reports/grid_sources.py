"""Pictures of finished runs for a qualitative grid: image, ground truth where it is known, and the run's overlay."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ..evaluation_details import DETAILS
from ..prediction_records import read_predictions
from ..run_settings import RunSettings
from .evaluation_files import read_evaluation
from .prediction_pictures import draw_overlay
from .read_run import Run
from .thumbnails import UnreadableError, read_map, read_mask, read_picture, shrunk


__all__ = ["GridSource", "GridViews", "find_rows", "grid_source"]


@dataclass(frozen=True)
class GridViews:
    """
    Pictures of one image in one run.

    Args:
        image (`PIL.Image.Image`): the image, RGB.
        overlay (`PIL.Image.Image`): the image with the run's map, and the outline of its mask if there is a threshold.
        truth (`PIL.Image.Image`, *optional*): the image with the outline of the annotated defect.
        kind (`str`): "normal", or the kind of defect, if that is known.
        score (`float`, *optional*): score of the image.
    """

    image: Image.Image
    overlay: Image.Image
    truth: Image.Image | None = None
    kind: str = ""
    score: float | None = None


class GridSource(Protocol):
    """A run whose images can be rows of a grid."""

    names: Sequence[str]

    def views(self, name: str, longer_side: int) -> GridViews:
        """Return the pictures of an image, no larger than `longer_side` pixels."""


def grid_source(run: Run) -> GridSource:
    """
    Return the pictures of a run.

    Args:
        run ([`Run`]): run of `predict` or `evaluate`.

    Raises:
        ValueError: another kind of run, or a run without images; the message says how to get them.
    """
    if run.kind == "predict":
        return _Prediction.read(run.folder)
    if run.kind == "evaluate":
        return _Evaluation.read(run.folder)
    raise ValueError(f"{run.folder} is the folder of a run of {run.kind}, whose images cannot be rows of a grid.")


@dataclass(frozen=True)
class _Prediction:
    """Images of a run of `predict` that have a map."""

    folder: Path
    started_in: str
    records: Mapping[str, Mapping[str, Any]] = field(repr=False)

    @classmethod
    def read(cls, folder: Path) -> "_Prediction":
        settings = RunSettings.read(folder)
        started_in = None if settings is None else settings.context.get("folder")
        records = {each["name"]: each for each in read_predictions(folder) if "map" in each}
        if not records:
            raise ValueError(f"{folder} has no maps. Run `vcp-clip predict` with --maps png.")
        return cls(folder, started_in if isinstance(started_in, str) else "", records)

    @property
    def names(self) -> list[str]:
        return list(self.records)

    def views(self, name: str, longer_side: int) -> GridViews:
        record = self.records[name]
        image = shrunk(read_picture(_joined(self.started_in, record["image"])), longer_side)
        mask = read_mask(self._file(record, "mask")) if "mask" in record else None
        overlay = draw_overlay(image, read_map(self._file(record, "map")), mask)
        return GridViews(image, overlay, score=record.get("score"))

    def _file(self, record: Mapping[str, Any], kind: str) -> Path:
        file = self.folder / record[kind]
        if not file.resolve().is_relative_to(self.folder.resolve()):
            raise UnreadableError("outside of the run's folder")
        return file


def _joined(folder: str, path: str) -> str:
    return path if path.startswith(("http://", "https://")) else os.path.join(folder, path)


@dataclass(frozen=True)
class _Evaluation:
    """Images of a run of `evaluate --report` that have pictures: the worst ones of each product."""

    folder: Path
    images: Mapping[str, Mapping[str, Any]] = field(repr=False)

    @classmethod
    def read(cls, folder: Path) -> "_Evaluation":
        read = read_evaluation(folder)
        several = len(read.datasets) > 1
        images = {
            "/".join([*([each["dataset"]] if several else []), each["product"], each["image_id"]]): each
            for each in read.images
            if "pictures" in each
        }
        if not images:
            raise ValueError(read.missing or f"{folder} has no images. Evaluate again with --report.")
        return cls(folder, images)

    @property
    def names(self) -> list[str]:
        return list(self.images)

    def views(self, name: str, longer_side: int) -> GridViews:
        facts = self.images[name]
        pictures = {kind: shrunk(self._open(file), longer_side) for kind, file in facts["pictures"].items()}
        kind = (facts.get("defect") or "anomalous") if facts["label"] else "normal"
        return GridViews(pictures["image"], pictures["overlay"], pictures.get("truth"), kind, facts["score"])

    def _open(self, file: str) -> Image.Image:
        # a name from a file must not lead out of the folder
        path = self.folder / DETAILS / "pictures" / Path(file).name
        try:
            with Image.open(path, formats=("WEBP",)) as picture:
                return picture.convert("RGB")
        except (OSError, SyntaxError) as error:
            raise UnreadableError(f"{path.name}: {error}") from error


def find_rows(sources: Sequence[GridSource], requested: Sequence[str], most: int) -> list[str]:
    """
    Return the names of the images that become rows.

    Args:
        sources (`Sequence[GridSource]`): runs; a row needs its image in each of them.
        requested (`Sequence[str]`): names, or ends of names after a slash, with or without file extension; none takes
            the first ones.
        most (`int`): number of rows to take if none is requested.

    Raises:
        ValueError: the runs have no image in common, or a requested one is unknown or ambiguous.
    """
    common = [name for name in sources[0].names if all(name in source.names for source in sources[1:])]
    if not common:
        raise ValueError("The runs have no stored image in common, so there is no grid.")
    return [_found(each, common) for each in requested] or common[:most]


def _found(requested: str, names: Sequence[str]) -> str:
    if requested in names:
        return requested
    ends = [name for name in names if requested in (*_ends(name), *_ends(os.path.splitext(name)[0]))]
    # names of `predict` have no file extension
    ends = ends or [name for name in names if os.path.splitext(requested)[0] in _ends(name)]
    if len(ends) == 1:
        return ends[0]
    listed = ", ".join(ends or names[:8]) + (", ..." if len(ends or names) > 8 else "")
    what = "is not one image" if ends else "is not among the images that all runs have stored"
    raise ValueError(f"--rows {requested!r} {what}: {listed}.")


def _ends(name: str) -> list[str]:
    """Return the name and its ends after each slash."""
    parts = name.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]
