"""The record of a calibration for its report, in a folder next to the checkpoint and not in it.

A checkpoint may be published. The record has the names of the calibration images and maps of some of them, so it must
not be published with the checkpoint.

- `calibration.json`: `calibration` as in `preprocessor_config.json`, `checkpoint` (folder), `images` (numbers of
  normal images and of those with defects), `problems` (sources that could not be read) and `version`;
- `scores.jsonl`: one line per image with `image` (path), `name`, `label` (0 normal, 1 anomalous), `bytes`, and
  `score`, `error` or `left_out` (a reason); of the images that a report shows, also `map`;
- `maps/`: maps of the normal images with the highest scores and of the anomalous ones with the lowest, reduced, as
  16-bit PNG (value times 65535).
"""

import heapq
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .atomic_write import atomic_folder
from .input_images import InputImage, image_key
from .json_lines import read_json_lines
from .prediction_records import file_state, write_records
from .version import __version__


__all__ = ["CALIBRATION_FILE", "CalibrationRecord", "read_calibration", "record_folder"]

CALIBRATION_FILE, _SCORES, _MAPS = "calibration.json", "scores.jsonl", "maps"
# Images of each label whose maps are kept, and the longer side of a kept map in pixels
_KEPT_MAPS = 24
_LONGER_SIDE = 640


def record_folder(checkpoint: Path) -> Path:
    """
    Return the folder for the record of a checkpoint's calibration: next to the checkpoint, with `-report` in its name.

    Raises:
        FileExistsError: the folder exists and is not such a record.
    """
    folder = _beside(checkpoint)
    if folder.exists() and not (folder / CALIBRATION_FILE).is_file():
        raise FileExistsError(
            f"{folder} exists and is not the record of a calibration, so the report does not replace it. Move it, or"
            " save the checkpoint under another name."
        )
    return folder


def _beside(checkpoint: Path) -> Path:
    checkpoint = Path(os.path.abspath(checkpoint))  # also for ".", which has no name
    return checkpoint.with_name(f"{checkpoint.name}-report")


@dataclass
class CalibrationRecord:
    """
    Collects the results of a calibration; `on_result` of the pipeline's `calibrate` is an instance.

    Args:
        images (`Sequence[InputImage]`): images in the order of the calibration.
        labels (`Sequence[int]`): 0 normal, 1 anomalous, for each image.
    """

    images: Sequence[InputImage]
    labels: Sequence[int]
    records: dict[int, dict[str, Any]] = field(default_factory=dict)
    # label -> heap of (rank, position, reduced map): the lowest rank is removed first
    shown: dict[int, list[tuple[float, int, np.ndarray]]] = field(default_factory=lambda: {0: [], 1: []})

    def __call__(self, position: int, result: dict[str, Any]) -> None:
        """Keep the result of an image."""
        image, label = self.images[position], self.labels[position]
        record = {"image": image_key(image.path), "name": image.name, "label": label, **file_state(image.path)}
        record.update({name: result[name] for name in ("score", "error", "left_out") if name in result})
        self.records[position] = record
        if "score" not in result:
            return
        record["score"] = float(result["score"])
        record["height"], record["width"] = np.shape(result["anomaly_map"])
        rank = -record["score"] if label else record["score"]
        heap = self.shown[label]
        if len(heap) < _KEPT_MAPS or rank > heap[0][0]:
            # positions differ, so that maps are never compared
            heapq.heappush(heap, (rank, position, _reduced(result["anomaly_map"])))
            if len(heap) > _KEPT_MAPS:
                heapq.heappop(heap)

    def write(
        self, folder: Path, calibration: dict[str, Any], checkpoint: Path, problems: Sequence[tuple[str, str]] = ()
    ) -> None:
        """
        Write the record; an earlier one is replaced as a whole.

        Args:
            folder (`Path`): folder of [`record_folder`].
            calibration (`dict`): `calibration` of the image processor.
            checkpoint (`Path`): folder of the calibrated checkpoint.
            problems (`Sequence[tuple[str, str]]`, *optional*): source that could not be read, and why.
        """
        facts = {
            "calibration": calibration,
            "checkpoint": str(checkpoint.absolute()),
            "images": {"normal": self.labels.count(0), "anomalous": self.labels.count(1)},
            "problems": [list(each) for each in problems],
            "version": __version__,
        }
        with atomic_folder(folder) as path:
            (path / _MAPS).mkdir()
            for _, position, values in (*self.shown[0], *self.shown[1]):
                name = f"{_MAPS}/{position:06d}.png"
                Image.fromarray((values * 65535).round().astype(np.uint16)).save(path / name)
                self.records[position]["map"] = name
            write_records([self.records[position] for position in sorted(self.records)], path / _SCORES)
            (path / CALIBRATION_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _reduced(anomaly_map: np.ndarray) -> np.ndarray:
    """Return a map no larger than a report needs, (height, width) in [0, 1]."""
    height, width = anomaly_map.shape
    scale = min(1.0, _LONGER_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    values = Image.fromarray(np.ascontiguousarray(anomaly_map, dtype=np.float32))
    return np.asarray(values.resize(size, Image.Resampling.BOX)).clip(0, 1)


def read_calibration(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """
    Read the record of a calibration.

    Args:
        folder (`Path`): folder of the record, or of the calibrated checkpoint that it lies beside.

    Returns:
        The content of `calibration.json`, with `folder`; and one record per image.

    Raises:
        FileNotFoundError: there is no record.
        ValueError: it cannot be read.
    """
    found = next((each for each in (folder, _beside(folder)) if (each / CALIBRATION_FILE).is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"{folder} has thresholds, but the scores that they come from were not kept. Run `vcp-clip calibrate`"
            " again with --report."
        )
    try:
        facts = json.loads((found / CALIBRATION_FILE).read_text(encoding="utf-8"))
        records, _ = read_json_lines(found / _SCORES)
        facts["calibration"]["image"]["threshold"] + 0.0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{found} is damaged ({error}). Run `vcp-clip calibrate` again with --report.") from error
    return {**facts, "folder": found}, [each for each in records if "image" in each and "label" in each]
