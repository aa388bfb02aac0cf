"""Segment many image files: maps, masks and overlays on disk, one record per image; resumable.

A record is appended to `predictions.jsonl` after the files that it names have been written, with the size and the
modification time of the image. `run.json` stores the model's fingerprint and all settings that change results. A later
run with the same settings segments exactly the images that are new, changed, failed before, or lack an output file; a
run with other settings is refused, so that one folder never mixes two. A file that cannot be read is recorded as an
error and does not affect the others.

Results of images that are judged together depend on all of them: the list of files, with their sizes and times, is one
of the settings, and files that could not be read are not read again.
"""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from tqdm.auto import tqdm
from transformers.utils import logging

from .image_files import LeftOut
from .input_images import FoundImages, InputImage, find_inputs, image_key, is_url, list_inputs
from .interruption import stop_on_signal
from .json_lines import end_last_line
from .linked_pictures import TOOL_FOLDERS
from .mutual_scoring import MutualScoring
from .picture_writer import PICTURE_FOLDERS, PictureWriter, picture_path, write_in_order
from .pipeline_anomaly_segmentation import AnomalySegmentationPipeline
from .prediction_records import (
    RECORDS,
    file_state,
    read_predictions,
    record_files,
    recorded_state,
    write_csv,
    write_records,
)
from .run_settings import RUN_FILE, RunSettings


__all__ = [
    "COCO_FILE",
    "InputImage",
    "PictureWriter",
    "PredictionSummary",
    "list_inputs",
    "predict_files",
    "process_state",
    "read_predictions",
    "refuse_other_settings",
    "remove_results",
    "write_csv",
]

logger = logging.get_logger(__name__)

CSV_FILE, COCO_FILE = "predictions.csv", "predictions.coco.json"
# Numbers of processes that read images, if they are chosen
_FEWEST_READERS, _MOST_READERS = 2, 8
_INTERRUPTED = "Interrupted. The finished images are recorded: run the same command again to segment the rest."


@dataclass
class PredictionSummary:
    """
    Outcome of a run of [`predict_files`].

    Args:
        predicted (`int`): images segmented by this run.
        skipped (`int`): images kept from earlier runs.
        reasons (`Counter[str]`):
            Number of images that this run had to segment by reason: `"new"`, `"changed"`, `"failed before"`,
            `"with missing outputs"`.
        removed (`int`): records of earlier runs left out of the tables, because their image is gone or has changed.
        errors (`list[tuple[str, str]]`):
            Path and message of each image that could not be segmented, now or in the run that judged it together with
            the others, and of each source that could not be read.
        left_out (`list[tuple[str, LeftOut]]`): folder and what was left out of it.
        seconds (`float`): duration in this process.
        records (`Path`): `predictions.jsonl`.
    """

    predicted: int = 0
    skipped: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    removed: int = 0
    errors: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[tuple[str, LeftOut]] = field(default_factory=list)
    seconds: float = 0.0
    records: Path | None = None

    @property
    def images_per_second(self) -> float:
        """Return the throughput of this run."""
        return self.predicted / self.seconds if self.seconds else 0.0

    def describe(self) -> str:
        """Return the counts in one line."""
        parts = [
            f"{self.predicted} image{'' if self.predicted == 1 else 's'} segmented"
            f" ({self.images_per_second:.2f} images/s per process)",
            f"{self.skipped} done before",
            f"{len(self.errors)} failed",
        ]
        text = ", ".join(parts)
        if self.skipped or set(self.reasons) - {"new"}:
            text += f"; to do: {_counts(self.reasons) or 'nothing'}"
        if self.removed:
            text += f"; left out of the tables: {self.removed} earlier record{'' if self.removed == 1 else 's'}"
        return f"{text}; records in {self.records}"


def _counts(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))


def predict_files(
    pipe: AnomalySegmentationPipeline,
    sources: Iterable[str | os.PathLike],
    output_dir: str | os.PathLike,
    save_maps: str | None = "png",
    save_masks: bool = True,
    save_overlays: bool = True,
    batch_size: int = 8,
    num_workers: int | None = 0,
    overwrite: bool = False,
    progress: bool = True,
    together: MutualScoring | None = None,
    **options: Any,
) -> PredictionSummary:
    """
    Segment image files, divided among the processes that `accelerate launch` has started.

    Args:
        pipe ([`AnomalySegmentationPipeline`]): the pipeline to run.
        sources (iterable of `str`): files, folders, glob patterns or URLs, see [`list_inputs`].
        output_dir (`str`):
            Folder to write: `predictions.jsonl`, `predictions.csv`, `run.json`, `maps/`, `masks/` and `overlays/`.
        save_maps (`"png"`, `"npy"` or `None`): 16-bit PNG (value times 65535) or float32 NumPy arrays.
        save_masks (`bool`): whether to write masks, 8-bit PNG, 0 and 255; needs a threshold.
        save_overlays (`bool`): whether to write the images with their maps drawn over them, JPEG, on a fixed scale.
        batch_size (`int`): argument of the pipeline's call.
        num_workers (`int`, *optional*, defaults to 0):
            Processes that read and resize images ahead of the model. `None` chooses: 2 for a CPU; for an accelerator,
            up to 8, at most this process's share of the cores.
        overwrite (`bool`): whether to start anew: the records and files of earlier runs are removed first.
        progress (`bool`): whether to show a progress bar.
        together ([`MutualScoring`], *optional*):
            Judge all images together with these settings, see [`~AnomalySegmentationPipeline.segment_together`], in
            one process. Default: each image by itself.
        options: further arguments of the pipeline's call; `output_image` is set by `save_overlays`.

    Returns:
        [`PredictionSummary`] over all processes.

    Raises:
        ValueError: `save_maps` is none of its values; or the folder has results of another model or other settings,
            or of other images that were judged together; or an argument of the call is refused. Nothing is written.
        FileNotFoundError: the sources have no image at all. One source without images is an error of the summary.
        KeyboardInterrupt: the run was interrupted; the finished images are recorded.
    """
    if save_maps not in ("png", "npy", None):
        raise ValueError(f"save_maps={save_maps!r} must be 'png', 'npy' or None.")
    output_dir, state = Path(output_dir), process_state()
    if together is not None and state.num_processes > 1:
        raise ValueError(
            f"Images are judged together in one process, not in {state.num_processes}. Start `vcp-clip predict`"
            " without `accelerate launch`."
        )
    writer = PictureWriter(output_dir, save_maps, save_masks, save_overlays)
    earlier = read_predictions(output_dir)
    records = {} if overwrite else {image_key(record["image"]): record for record in earlier}
    found = _find(sources, records, output_dir)
    settings = RunSettings.of(pipe, options)
    if together is None:
        pipe.check_call(**options)
    else:
        settings = settings.judged_together(together, [image.path for image in found.images])
    if not overwrite:
        refuse_other_settings(settings, output_dir, earlier)
    run = _Run(output_dir, writer, found.images, records, bool(options.get("regions")), together is not None, state)
    state.wait_for_everyone()
    if state.is_main_process:
        if overwrite:
            remove_results(output_dir, earlier)
        run.prepare_folder(settings)
    state.wait_for_everyone()

    mine = run.todo[state.process_index :: state.num_processes]
    with_image = save_overlays or any(is_url(image.path) for image in mine)
    summary = PredictionSummary(
        skipped=len(run.images) - len(run.todo) - len(run.errors_before),
        reasons=run.reasons,
        removed=len(run.outdated),
        left_out=found.left_out,
    )
    bar = tqdm(
        total=len(mine),
        desc="predict",
        disable=not (progress and state.is_local_main_process),
        unit="image",
        postfix={"kept": summary.skipped, **run.reasons},
    )
    started = time.perf_counter()
    with bar, stop_on_signal(_INTERRUPTED if state.is_main_process else None, raise_at_once=True) as signals:
        with_maps = bool(save_maps or save_masks or save_overlays)
        options |= {"output_image": with_image, "output_maps": with_maps}
        options |= {"batch_size": batch_size}
        options["num_workers"] = _chosen_workers(pipe.device) if num_workers is None else num_workers
        if together is None:
            results = _results(pipe, mine, options)
        else:
            results = _results_together(pipe, run, together, {**options, "progress": progress})
        for record in run.write_results(mine, results, ahead=4 * batch_size):
            if "error" in record:
                summary.errors.append((record["image"], record["error"]))
            else:
                summary.predicted += 1
            bar.update()
            if signals:  # the exception was swallowed, as in a destructor
                raise KeyboardInterrupt(_INTERRUPTED)
    summary.seconds = time.perf_counter() - started
    state.wait_for_everyone()
    summary.errors += run.errors_before
    run.merge_records(summary)
    summary.errors += found.problems
    return summary


def refuse_other_settings(settings: RunSettings, output_dir: Path, earlier: Sequence[Mapping[str, Any]]) -> None:
    """
    Raise a `ValueError` if a folder has results that were computed with other settings.

    Args:
        settings ([`RunSettings`]): settings of the new run.
        output_dir (`Path`): folder of the results.
        earlier (sequence of `dict`): records of earlier runs in it.
    """
    if earlier:
        settings.check_folder(output_dir, "Use another output folder, or --overwrite (overwrite=True) to start anew.")


def _find(
    sources: Iterable[str | os.PathLike], records: Mapping[str, Mapping[str, Any]], output_dir: Path
) -> FoundImages:
    """Find the images, at least one; warn of pictures that are left out."""
    names = {key: record["name"] for key, record in records.items()}
    # The subfolders too, since the output folder may be the input folder
    folders = (*PICTURE_FOLDERS.values(), *TOOL_FOLDERS)
    exclude = [output_dir, *(output_dir / folder for folder in folders)]
    found = find_inputs(sources, names, exclude)
    if not found.images:
        raise FileNotFoundError(found.describe_problems() or "No image was given.")
    for folder, left_out in found.left_out:
        if left_out.has_pictures:
            logger.warning("%s: %s.", folder, left_out)
    return found


def remove_results(output_dir: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """
    Remove the records of earlier runs, and the files that they name, so that no old result remains.

    Args:
        output_dir (`Path`): folder of the results.
        records (sequence of `dict`): records as [`read_predictions`] returns them.
    """
    for record in records:
        for kind in PICTURE_FOLDERS:
            path = picture_path(output_dir, record, kind)
            if path is not None:
                path.unlink(missing_ok=True)
    for file in [*record_files(output_dir), output_dir / RUN_FILE]:
        file.unlink(missing_ok=True)


class _Run:
    """
    A run: the images to segment, and why; the records before and after.

    Args:
        output_dir (`Path`), writer ([`PictureWriter`]): folder of the results, and what writes them.
        images (`list[InputImage]`): images of the sources.
        state (`PartialState`): this process among those launched.
        records (`dict`): record of earlier runs by [`image_key`].
        regions (`bool`): whether records need regions.
        together (`bool`): whether images are judged together, so that an image that could not be read stays left out.
    """

    def __init__(
        self,
        output_dir: Path,
        writer: PictureWriter,
        images: list[InputImage],
        records: dict[str, dict[str, Any]],
        regions: bool,
        together: bool,
        state: PartialState,
    ):
        self.output_dir, self.writer, self.images, self.state = output_dir, writer, images, state
        self.regions, self.together = regions, together
        # Before the images are read: a file that changes during the run is changed for the next one
        self.states = {image.path: file_state(image.path) for image in images}
        self.todo: list[InputImage] = []
        self.reasons: Counter[str] = Counter()
        self.errors_before: list[tuple[str, str]] = []
        for image in images:
            record = records.get(image_key(image.path))
            reason = self.reason(image, record)
            if reason is None and "error" in record:
                self.errors_before.append((image.path, record["error"]))
            elif reason is not None:
                self.todo.append(image)
                self.reasons[reason] += 1
        listed = {image_key(image.path) for image in images}
        self.outdated = {key for key, record in records.items() if key not in listed and not _still_holds(record)}

    def reason(self, image: InputImage, record: Mapping[str, Any] | None) -> str | None:
        """Return why an image has to be segmented, or `None` if its record still holds."""
        if record is None:
            return "new"
        if "error" in record:
            return None if self.together else "failed before"
        if recorded_state(record) != self.states[image.path]:
            return "changed"
        if self.writer.lacks(record) or (self.regions and "regions" not in record):
            return "with missing outputs"
        return None

    def prepare_folder(self, settings: RunSettings) -> None:
        """Store the settings; remove tables that will be out of date, so that they are complete or absent."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        settings.write(self.output_dir)
        if self.todo or self.outdated:
            for name in (CSV_FILE, COCO_FILE):
                (self.output_dir / name).unlink(missing_ok=True)

    def write_results(
        self, images: Sequence[InputImage], results: Iterable[Callable[[], dict[str, Any]]], ahead: int
    ) -> Iterator[dict[str, Any]]:
        """Finish results and write pictures, in threads, and records; yield each record after it is in the file."""
        single = self.state.num_processes == 1
        path = self.output_dir / (RECORDS if single else f"predictions-{self.state.process_index:03d}.jsonl")
        end_last_line(path)
        with open(path, "a", encoding="utf-8") as file:
            for record in write_in_order(self._write, zip(images, results, strict=True), ahead):
                record.update(self.states[record["image"]])
                file.write(json.dumps(record) + "\n")
                file.flush()
                yield record

    def _write(self, image: InputImage, result: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        return self.writer(image, result())

    def merge_records(self, summary: PredictionSummary) -> None:
        """Write one file of the records of all processes, in the order of the inputs, and the table."""
        records = {image_key(record["image"]): record for record in read_predictions(self.output_dir)}
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            known = [key for image in self.images if (key := image_key(image.path)) in records]
            ordered = [records[key] for key in [*known, *sorted(records.keys() - set(known) - self.outdated)]]
            write_records(ordered, self.output_dir / RECORDS)
            for file in record_files(self.output_dir):
                if file.name != RECORDS:
                    file.unlink()
            write_csv(ordered, self.output_dir / CSV_FILE)
        self.state.wait_for_everyone()
        summary.records = self.output_dir / RECORDS
        if self.state.num_processes > 1:
            mine = [records[image_key(image.path)] for image in self.images]
            summary.errors = [(record["image"], record["error"]) for record in mine if "error" in record]
            summary.predicted = len(self.images) - summary.skipped - len(summary.errors)


def _still_holds(record: Mapping[str, Any]) -> bool:
    """Return whether the image of a record is unchanged, for images that are not among the sources of this run."""
    if is_url(record["image"]):
        return True
    state = file_state(record["image"])
    return bool(state) and state == recorded_state(record)


def _results(
    pipe: AnomalySegmentationPipeline, images: Sequence[InputImage], options: dict[str, Any]
) -> Iterable[Callable[[], dict[str, Any]]]:
    """Run the pipeline lazily; an image that fails gives a result with `error`."""
    return pipe.unfinished(_Paths(images), on_error="return", **options) if images else ()


def _results_together(
    pipe: AnomalySegmentationPipeline, run: _Run, together: MutualScoring, options: dict[str, Any]
) -> Iterable[Callable[[], dict[str, Any]]]:
    """Judge all images of a run, and yield the results of those to do."""
    if not run.todo:
        return
    todo = {image.path for image in run.todo}
    results = pipe.segment_together(_Paths(run.images), on_error="return", **asdict(together), **options)
    for image, result in zip(run.images, results, strict=True):
        if image.path in todo:
            yield partial(dict, result)


def _chosen_workers(device: torch.device) -> int:
    """Return a number of processes that read images, for a machine that does nothing else."""
    if device.type == "cpu":
        return _FEWEST_READERS
    # `accelerate launch` and torchrun state the number of processes on this machine
    share = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(_FEWEST_READERS, min(_MOST_READERS, share))


class _Paths(torch.utils.data.Dataset):
    """Paths of images, for the pipeline's DataLoader."""

    def __init__(self, images: Sequence[InputImage]):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> str:
        if torch.utils.data.get_worker_info() is not None:
            sys.excepthook = _ignore_broken_connections
        return self.images[index].path


def _ignore_broken_connections(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Stand in for `sys.excepthook` in workers: when a run is interrupted, their connections break."""
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, traceback)


def process_state() -> PartialState:
    """Return the state of this process among those launched, also on CPUs, which `PartialState` alone overlooks."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
