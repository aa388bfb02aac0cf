"""Segment many image files: maps, masks and overlays on disk, one record per image; resumable.

A record is appended to `predictions.jsonl` after the files that it names have been written. When an interrupted run is
started again, images with a record are skipped. A file that cannot be read is recorded as an error, and the next run
tries it again; the other images are not affected.
"""

import csv
import glob
import itertools
import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from PIL import Image
from tqdm.auto import tqdm
from transformers.utils import logging

from .atomic_write import atomic_file
from .image_files import IMAGE_SUFFIXES, find_images, lies_in
from .pipeline_anomaly_segmentation import AnomalySegmentationPipeline
from .visualization import overlay_with_scale


__all__ = [
    "InputImage",
    "PictureWriter",
    "PredictionSummary",
    "list_inputs",
    "predict_files",
    "process_state",
    "read_predictions",
    "write_csv",
]

logger = logging.get_logger(__name__)

_RECORDS = "predictions.jsonl"
_PICTURE_FOLDERS = ("maps", "masks", "overlays")
# Threads that draw and write pictures, which takes longer than a GPU takes for the model
_WRITERS = max(2, min(8, (os.cpu_count() or 1) // 2))


@dataclass(frozen=True)
class InputImage:
    """An image to segment: its path or URL, and its file name in the output folders, without extension."""

    path: str
    name: str


@dataclass
class PredictionSummary:
    """
    Outcome of a run of [`predict_files`].

    Args:
        predicted (`int`): images segmented by this run.
        skipped (`int`): images segmented by earlier runs.
        errors (`list[tuple[str, str]]`): path and message of each image that could not be segmented.
        seconds (`float`): duration in this process.
        records (`Path`): `predictions.jsonl`.
    """

    predicted: int = 0
    skipped: int = 0
    errors: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    records: Path | None = None

    @property
    def images_per_second(self) -> float:
        """Throughput of this run."""
        return self.predicted / self.seconds if self.seconds else 0.0


def list_inputs(
    sources: Iterable[str | os.PathLike],
    known_names: Mapping[str, str] | None = None,
    exclude: Iterable[str | os.PathLike] = (),
) -> list[InputImage]:
    """
    List the images in files, folders, glob patterns and URLs, in a fixed order.

    Which files of a folder are images, and what happens to hidden and linked ones, is the rule of
    [`vcp_clip_hf.image_files`]. What is left out is logged for each folder, as a warning if pictures are among it.

    Args:
        sources (iterable of `str` or `os.PathLike`):
            Files, folders (read with all folders inside), glob patterns or URLs. A file is listed whatever its ending.
        known_names (`Mapping[str, str]`, *optional*): Name by path, for images that were named by an earlier run.
        exclude (iterable of `str` or `os.PathLike`, *optional*):
            Folders that are not read inside a source, such as the folder for results. A source that is such a folder,
            or lies in one, is read.

    Raises:
        FileNotFoundError: a source does not exist, or a folder or pattern has no image.
    """
    known_names, exclude = dict(known_names or {}), list(exclude)
    taken, found = set(known_names.values()), {}
    for source in map(os.fspath, sources):
        for path, relative in _expand(source, exclude):
            if path in found:
                continue
            name = known_names.get(path)
            if name is None:
                # a.png and a.jpg, or one name in two folders, must not overwrite each other
                stem = os.path.splitext(relative)[0].replace("..", "_").lstrip("/")
                name = next(each for each in itertools.chain([stem], _numbered(stem)) if each not in taken)
                taken.add(name)
            found[path] = InputImage(path, name)
    return list(found.values())


def _numbered(stem: str) -> Iterator[str]:
    return (f"{stem}-{number}" for number in itertools.count(2))


def _expand(source: str, exclude: Sequence[str | os.PathLike]) -> list[tuple[str, str]]:
    """Return (path, path below the source) of each image in a source."""
    if source.startswith(("http://", "https://")):
        return [(source, source.split("?")[0].rstrip("/").rsplit("/", 1)[-1])]
    if os.path.isfile(source):
        return [(source, os.path.basename(source))]
    if os.path.isdir(source):
        images, left_out = find_images(source, exclude)
        told = f" ({left_out})" if left_out else ""
        if images and left_out:
            logger.log(logging.WARNING if left_out.has_pictures else logging.INFO, "%s: %s.", source, left_out)
        pairs = [(str(Path(source, image)), str(Path(image))) for image in images]
        problem = f"has no image{told}"
    else:
        base = os.path.dirname(re.split(r"[*?\[]", source)[0]) or "."
        matches = sorted(path for path in glob.glob(source, recursive=True) if os.path.isfile(path))
        pairs = [(path, os.path.relpath(path, base)) for path in matches if not lies_in(path, exclude, base)]
        problem = "is neither a file, a folder, nor a pattern that matches an image"
    if not pairs:
        raise FileNotFoundError(f"{source!r} {problem}. Images end in {', '.join(IMAGE_SUFFIXES)}.")
    return pairs


def predict_files(
    pipe: AnomalySegmentationPipeline,
    sources: Iterable[str | os.PathLike],
    output_dir: str | os.PathLike,
    save_maps: str | None = "png",
    save_masks: bool = True,
    save_overlays: bool = True,
    batch_size: int = 8,
    num_workers: int = 0,
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> PredictionSummary:
    """
    Segment image files, divided among the processes that `accelerate launch` has started.

    Args:
        pipe ([`AnomalySegmentationPipeline`]): the pipeline to run.
        sources (iterable of `str`): files, folders, glob patterns or URLs, see [`list_inputs`].
        output_dir (`str`):
            Folder to write: `predictions.jsonl`, `predictions.csv`, `maps/`, `masks/` and `overlays/`.
        save_maps (`"png"`, `"npy"` or `None`): 16-bit PNG (value times 65535) or float32 NumPy arrays.
        save_masks (`bool`): whether to write masks, 8-bit PNG, 0 and 255; needs a threshold.
        save_overlays (`bool`): whether to write the images with their maps drawn over them, JPEG, on a fixed scale.
        batch_size, num_workers (`int`): arguments of the pipeline's call.
        overwrite (`bool`): whether to segment recorded images again.
        progress (`bool`): whether to show a progress bar.
        options: further arguments of the pipeline's call; `output_image` is set by `save_overlays`.

    Returns:
        [`PredictionSummary`] over all processes.

    Raises:
        ValueError: `save_maps` is none of its values.
        FileNotFoundError: a source does not exist, or has no image.
    """
    if save_maps not in ("png", "npy", None):
        raise ValueError(f"save_maps={save_maps!r} must be 'png', 'npy' or None.")
    output_dir = Path(output_dir)
    state = process_state()
    if overwrite and state.is_main_process:
        for file in _record_files(output_dir):
            file.unlink()
    state.wait_for_everyone()
    records = read_predictions(output_dir)
    names = {record["image"]: record["name"] for record in records}
    # The subfolders too, since the output folder may be the input folder
    inputs = list_inputs(sources, names, exclude=[output_dir, *(output_dir / kind for kind in _PICTURE_FOLDERS)])
    done = {record["image"] for record in records if "error" not in record}
    todo = [image for image in inputs if image.path not in done]
    mine = todo[state.process_index :: state.num_processes]
    state.wait_for_everyone()

    output_dir.mkdir(parents=True, exist_ok=True)
    name = _RECORDS if state.num_processes == 1 else f"predictions-{state.process_index:03d}.jsonl"
    _end_last_line(output_dir / name)
    writer = PictureWriter(output_dir, save_maps, save_masks, save_overlays)
    results = _results(pipe, mine, batch_size, num_workers, {**options, "output_image": save_overlays})
    started, summary = time.perf_counter(), PredictionSummary(skipped=len(inputs) - len(todo))
    with (
        open(output_dir / name, "a", encoding="utf-8") as file,
        ThreadPoolExecutor(_WRITERS) as pool,
        tqdm(
            total=len(mine), desc="predict", disable=not (progress and state.is_local_main_process), unit="image"
        ) as bar,
    ):
        for record in _in_order(pool, writer, mine, results, ahead=4 * batch_size):
            file.write(json.dumps(record) + "\n")
            file.flush()
            if "error" in record:
                summary.errors.append((record["image"], record["error"]))
            else:
                summary.predicted += 1
            bar.update()
    summary.seconds = time.perf_counter() - started
    state.wait_for_everyone()
    _merge_records(summary, output_dir, inputs, state)
    return summary


def _results(
    pipe: AnomalySegmentationPipeline,
    images: Sequence[InputImage],
    batch_size: int,
    num_workers: int,
    options: dict[str, Any],
) -> Iterable[dict[str, Any]]:
    """Run the pipeline lazily; an image that fails gives a result with `error`."""
    if not images:
        return ()
    # not `iter(pipe(...))`: iterating over that again would start the workers twice, and request each URL twice
    return pipe(_Paths(images), batch_size=batch_size, num_workers=num_workers, on_error="return", **options)


class _Paths(torch.utils.data.Dataset):
    """Paths of images, for the pipeline's DataLoader."""

    def __init__(self, images: Sequence[InputImage]):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> str:
        return self.images[index].path


@dataclass
class PictureWriter:
    """
    Writes the pictures of one result and returns its record.

    Args:
        output_dir, save_maps, save_masks, save_overlays: see [`predict_files`].
    """

    output_dir: Path
    save_maps: str | None
    save_masks: bool
    save_overlays: bool

    def __call__(self, image: InputImage, result: dict[str, Any]) -> dict[str, Any]:
        """
        Write the pictures of an image.

        Args:
            image ([`InputImage`]): the image.
            result (`dict`): the pipeline's result for it, with `output_image=True` if overlays are written.

        Returns:
            The image's record, as plain values.
        """
        if "error" in result:
            return {"image": image.path, "name": image.name, "error": result["error"]}
        anomaly_map = result["anomaly_map"]
        record = {
            "image": image.path,
            "name": image.name,
            "score": round(result["score"], 6),
            "label": result["label"],
            "threshold": result["threshold"],
            "image_threshold": result["image_threshold"],
            "height": anomaly_map.shape[0],
            "width": anomaly_map.shape[1],
        }
        if self.save_maps == "png":
            levels = np.rint(anomaly_map.clip(0, 1) * 65535).astype(np.uint16)
            # Run lengths only: for maps, five times faster than zlib's default and 5 % larger
            save = partial(Image.fromarray(levels).save, compress_type=zlib.Z_RLE)
            record["map"] = self._save("maps", image, ".png", save)
        elif self.save_maps == "npy":
            record["map"] = self._save("maps", image, ".npy", lambda path: np.save(path, anomaly_map))
        if self.save_masks and result["mask"] is not None:
            record["mask"] = self._save("masks", image, ".png", result["mask"].save)
        if self.save_overlays:
            picture = overlay_with_scale(result["image"], anomaly_map, result["mask"], result["threshold"])
            # Without subsampling, which would blur the thin colored outlines
            save = partial(picture.save, quality=90, subsampling=0)
            record["overlay"] = self._save("overlays", image, ".jpg", save)
        if "regions" in result:
            record["regions"] = result["regions"]
        return record

    def _save(self, kind: str, image: InputImage, extension: str, save: Callable[[Path], None]) -> str:
        """Call `save` with the file's path; return the path relative to the output folder."""
        relative = Path(kind) / (image.name + extension)
        path = self.output_dir / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path)
        return str(relative)


def _in_order(
    pool: ThreadPoolExecutor, writer: PictureWriter, images: Sequence[InputImage], results: Iterable[dict], ahead: int
) -> Iterator[dict]:
    """Write in threads while the model runs; yield records in order, holding at most `ahead` results."""
    waiting: list[Future] = []
    for image, result in zip(images, results, strict=True):
        waiting.append(pool.submit(writer, image, result))
        while waiting and (waiting[0].done() or len(waiting) >= ahead):
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


def process_state() -> PartialState:
    """Return the state of this process among those launched, also on CPUs, which `PartialState` alone overlooks."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def _end_last_line(path: Path) -> None:
    """End an incomplete last record, as a killed process leaves, so that the next record starts on its own line."""
    if path.is_file() and path.stat().st_size:
        with open(path, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _record_files(output_dir: Path) -> list[Path]:
    """Return the files of records: one, and while several processes run, or after a kill, one of each process."""
    return sorted(output_dir.glob("predictions*.jsonl")) if output_dir.is_dir() else []


def read_predictions(output_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """
    Return the newest record of each image in the output folder of [`predict_files`], from all processes.

    Incomplete lines, as a killed process leaves, are skipped.
    """
    records: dict[str, dict] = {}
    for file in _record_files(Path(output_dir)):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            records[record["image"]] = record
    return list(records.values())


def _merge_records(
    summary: PredictionSummary, output_dir: Path, inputs: list[InputImage], state: PartialState
) -> None:
    """Write one file of the records of all processes, in the order of the inputs, and the table; fill the summary."""
    records = {record["image"]: record for record in read_predictions(output_dir)}
    state.wait_for_everyone()
    if state.is_main_process:
        known = [image.path for image in inputs if image.path in records]
        ordered = [records[path] for path in [*known, *sorted(records.keys() - set(known))]]
        with atomic_file(output_dir / _RECORDS) as path:
            path.write_text("".join(json.dumps(record) + "\n" for record in ordered), encoding="utf-8")
        for file in _record_files(output_dir):
            if file.name != _RECORDS:
                file.unlink()
        write_csv(ordered, output_dir / "predictions.csv")
    state.wait_for_everyone()
    summary.records = output_dir / _RECORDS
    if state.num_processes > 1:
        mine = {image.path for image in inputs}
        summary.errors = [
            (path, record["error"]) for path, record in records.items() if "error" in record and path in mine
        ]
        summary.predicted = len(inputs) - summary.skipped - len(summary.errors)


def write_csv(records: Sequence[dict[str, Any]], path: Path) -> None:
    """
    Write a table with one line per image, without regions.

    Args:
        records (sequence of `dict`): records as [`read_predictions`] returns them.
        path (`Path`): file to write.
    """
    columns = ["image", "score", "label", "threshold", "image_threshold", "height", "width", "map", "mask", "overlay"]
    with atomic_file(path) as unfinished, open(unfinished, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*columns, "error"], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
