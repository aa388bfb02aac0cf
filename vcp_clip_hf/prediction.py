"""Segment many image files: maps, masks and overlays on disk, one record for each image, nothing done twice.

Records are appended to `predictions.jsonl` as soon as the files they name are written. A run that is interrupted and
started again skips what is recorded there; a file that cannot be read is recorded as an error, tried again by the next
run, and holds up nothing else.
"""

import csv
import glob
import itertools
import json
import os
import re
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

from .image_files import IMAGE_SUFFIXES, find_images, lies_in
from .pipeline_anomaly_segmentation import AnomalySegmentationPipeline
from .visualization import overlay


__all__ = [
    "InputImage",
    "PictureWriter",
    "PredictionSummary",
    "list_inputs",
    "predict_files",
    "process_state",
    "read_predictions",
    "write_coco",
    "write_csv",
]

logger = logging.get_logger(__name__)

_RECORDS = "predictions.jsonl"
_PICTURE_FOLDERS = ("maps", "masks", "overlays")
# Threads that draw and write pictures, which takes longer than the model on a GPU
_WRITERS = max(2, min(8, (os.cpu_count() or 1) // 2))


@dataclass(frozen=True)
class InputImage:
    """An image to segment: where it is, and its name below the output folders, without extension."""

    path: str
    name: str


@dataclass
class PredictionSummary:
    """
    What a run of [`predict_files`] came to.

    Args:
        predicted, skipped (`int`): images segmented now, and already before.
        errors (`list[tuple[str, str]]`): path and message of each image that could not be segmented.
        seconds (`float`), images_per_second (`float`): of this process.
        records (`Path`): `predictions.jsonl`.
    """

    predicted: int = 0
    skipped: int = 0
    errors: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    records: Path | None = None

    @property
    def images_per_second(self) -> float:
        """Segmented now, by the time it took."""
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
    Segment image files, on as many processes as `accelerate launch` has started.

    Args:
        pipe ([`AnomalySegmentationPipeline`]): does it.
        sources (iterable of `str`): files, folders, glob patterns or URLs, see [`list_inputs`].
        output_dir (`str`): written to: `predictions.jsonl`, `maps/`, `masks/`, `overlays/`.
        save_maps (`"png"`, `"npy"` or `None`): 16-bit PNG (value times 65535) or float32 NumPy arrays.
        save_masks (`bool`): 8-bit PNG, 0 and 255; only where a threshold is known.
        save_overlays (`bool`): the image under its map on the fixed scale, JPEG.
        batch_size, num_workers (`int`): of the pipeline.
        overwrite (`bool`): segment again what is recorded already.
        progress (`bool`): show a bar.
        options: arguments of the pipeline's call; `output_image` is set by `save_overlays`.

    Returns:
        [`PredictionSummary`], over all processes.
    """
    if save_maps not in ("png", "npy", None):
        raise ValueError(f"save_maps={save_maps!r} must be 'png', 'npy' or None.")
    output_dir = Path(output_dir)
    state = process_state()
    if overwrite and state.is_main_process:
        for part in _parts(output_dir):
            part.unlink()
    state.wait_for_everyone()
    records = read_predictions(output_dir)
    names = {record["image"]: record["name"] for record in records}
    # the subfolders too: the output folder may be the input folder
    inputs = list_inputs(sources, names, exclude=[output_dir, *(output_dir / kind for kind in _PICTURE_FOLDERS)])
    done = {record["image"] for record in records if "error" not in record}
    todo = [image for image in inputs if image.path not in done]
    mine = todo[state.process_index :: state.num_processes]
    state.wait_for_everyone()

    output_dir.mkdir(parents=True, exist_ok=True)
    part = _RECORDS if state.num_processes == 1 else f"predictions-{state.process_index:03d}.jsonl"
    _end_last_line(output_dir / part)
    writer = PictureWriter(output_dir, save_maps, save_masks, save_overlays)
    started, summary = time.perf_counter(), PredictionSummary(skipped=len(inputs) - len(todo))
    bar = tqdm(total=len(mine), desc="predict", disable=not (progress and state.is_local_main_process), unit="image")
    results = iter(
        pipe(
            _Paths(mine),
            batch_size=batch_size,
            num_workers=num_workers,
            on_error="return",
            **{**options, "output_image": save_overlays},
        )
        if mine
        else ()
    )
    with open(output_dir / part, "a", encoding="utf-8") as file, ThreadPoolExecutor(_WRITERS) as pool:
        for record in _in_order(pool, writer, mine, results, ahead=4 * batch_size):
            file.write(json.dumps(record) + "\n")
            file.flush()
            if "error" in record:
                summary.errors.append((record["image"], record["error"]))
            else:
                summary.predicted += 1
            bar.update()
    bar.close()
    summary.seconds = time.perf_counter() - started
    state.wait_for_everyone()
    _collect(summary, output_dir, inputs, state)
    return summary


class _Paths(torch.utils.data.Dataset):
    def __init__(self, images: Sequence[InputImage]):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> str:
        return self.images[index].path


@dataclass
class PictureWriter:
    """Writes one result's pictures; returns its record. Arguments as of [`predict_files`]."""

    output_dir: Path
    save_maps: str | None
    save_masks: bool
    save_overlays: bool

    def __call__(self, image: InputImage, result: dict[str, Any]) -> dict[str, Any]:
        """An image and what the pipeline gave for it, with `output_image` for overlays -> its record."""
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
            # run lengths only: five times faster for maps than zlib's default, and a twentieth larger
            save = partial(Image.fromarray(levels).save, compress_type=zlib.Z_RLE)
            record["map"] = self._path("maps", image, ".png", save)
        elif self.save_maps == "npy":
            record["map"] = self._path("maps", image, ".npy", lambda path: np.save(path, anomaly_map))
        if self.save_masks and result["mask"] is not None:
            record["mask"] = self._path("masks", image, ".png", result["mask"].save)
        if self.save_overlays:
            picture = overlay(result["image"], anomaly_map, result["mask"])
            record["overlay"] = self._path("overlays", image, ".jpg", partial(picture.save, quality=90))
        if "regions" in result:
            record["regions"] = result["regions"]
        return record

    def _path(self, kind: str, image: InputImage, extension: str, save) -> str:
        relative = Path(kind) / (image.name + extension)
        path = self.output_dir / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path)
        return str(relative)


def _in_order(
    pool: ThreadPoolExecutor, writer: PictureWriter, images: Sequence[InputImage], results: Iterator[dict], ahead: int
) -> Iterator[dict]:
    """Write in threads while the model goes on; records come out in order, and at most `ahead` results are held."""
    waiting: list[Future] = []
    for image, result in zip(images, results, strict=True):
        waiting.append(pool.submit(writer, image, result))
        while waiting and (waiting[0].done() or len(waiting) >= ahead):
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


def process_state() -> PartialState:
    """Which of how many processes this is. (Left to itself, `PartialState` overlooks processes on the CPU.)"""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def _end_last_line(path: Path) -> None:
    """After a kill the last record may be torn; the next one must not be glued to it."""
    if path.is_file() and path.stat().st_size:
        with open(path, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _parts(output_dir: Path) -> list[Path]:
    return sorted(output_dir.glob("predictions*.jsonl")) if output_dir.is_dir() else []


def read_predictions(output_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a folder, of all its processes; the newest of each image, half-written lines left out."""
    records: dict[str, dict] = {}
    for part in _parts(Path(output_dir)):
        for line in part.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the process was killed while writing it
            records[record["image"]] = record
    return list(records.values())


def _collect(summary: PredictionSummary, output_dir: Path, inputs: list[InputImage], state: PartialState) -> None:
    """One file of records from all processes', in the order of the inputs, and the table beside it."""
    records = {record["image"]: record for record in read_predictions(output_dir)}
    state.wait_for_everyone()
    if state.is_main_process:
        known = [image.path for image in inputs if image.path in records]
        known += sorted(records.keys() - set(known))
        unfinished = output_dir / f".{_RECORDS}.unfinished"
        unfinished.write_text("".join(json.dumps(records[path]) + "\n" for path in known), encoding="utf-8")
        os.replace(unfinished, output_dir / _RECORDS)
        for part in _parts(output_dir):
            if part.name != _RECORDS:
                part.unlink()
        write_csv([records[path] for path in known], output_dir / "predictions.csv")
    state.wait_for_everyone()
    summary.records = output_dir / _RECORDS
    if state.num_processes > 1:
        mine = {image.path for image in inputs}
        summary.errors = [
            (path, record["error"]) for path, record in records.items() if "error" in record and path in mine
        ]
        summary.predicted = len(inputs) - summary.skipped - len(summary.errors)


def write_csv(records: Sequence[dict[str, Any]], path: Path) -> None:
    """One line for each image, without regions."""
    columns = ["image", "score", "label", "threshold", "image_threshold", "height", "width", "map", "mask", "overlay"]
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*columns, "error"], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def write_coco(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Regions as COCO annotations: `bbox` [x, y, width, height], `segmentation` polygons, `score`."""
    images, annotations = [], []
    for number, record in enumerate(record for record in records if "error" not in record):
        images.append(
            {"id": number, "file_name": record["image"], "height": record["height"], "width": record["width"]}
        )
        for region in record.get("regions", ()):
            box = region["box"]
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [box["xmin"], box["ymin"], box["xmax"] - box["xmin"], box["ymax"] - box["ymin"]],
                    "area": region["area"],
                    "segmentation": [[value for corner in region["polygon"] for value in corner]],
                    "score": region["score"],
                    "iscrowd": 0,
                }
            )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "anomaly"}]}
    path.write_text(json.dumps(content), encoding="utf-8")
