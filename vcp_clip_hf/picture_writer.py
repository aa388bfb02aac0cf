"""Write maps, masks and overlays of one image, and tell whether written files are still whole."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .input_images import InputImage, is_url
from .map_pictures import save_map_png
from .visualization import overlay_with_scale


__all__ = ["DISK_ERRORS", "PICTURE_FOLDERS", "PictureWriter", "is_whole", "picture_path", "write_in_order"]

# Key of the record -> folder
PICTURE_FOLDERS = {"map": "maps", "mask": "masks", "overlay": "overlays"}
# Threads that draw and write pictures, which takes longer than a GPU takes for the model
_WRITERS = max(2, min(8, (os.cpu_count() or 1) // 2))
# Last bytes of a complete file
_END_MARKERS = {".png": b"IEND\xaeB`\x82", ".jpg": b"\xff\xd9"}
# Errors of the disk, not of one file: they end the run
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


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
            result (`dict`):
                The pipeline's result for it; with `output_image=True` if overlays are written or images are URLs, and
                with maps if any picture is written.

        Returns:
            The image's record, as plain values. A file that cannot be written gives a record with `error`.

        Raises:
            OSError: the disk is full or cannot be written at all.
        """
        if "error" in result:
            return _error_record(image, result["error"])
        try:
            return self._write(image, result)
        except OSError as error:
            if error.errno in DISK_ERRORS:
                raise
            return _error_record(image, f"the results could not be written ({error})")

    def lacks(self, record: Mapping[str, Any]) -> bool:
        """Return whether a file that this writer writes is missing in a record, or gone or torn on the disk."""
        requested = {
            "map": self.save_maps is not None,
            "mask": self.save_masks and record.get("threshold") is not None,
            "overlay": self.save_overlays,
        }
        sizes = record.get("output_bytes", {})
        for kind in (kind for kind, is_requested in requested.items() if is_requested):
            name = record.get(kind)
            if name is None or (kind == "map" and not name.endswith(f".{self.save_maps}")):
                return True
            if not is_whole(self.output_dir / name, sizes.get(kind)):
                return True
        return False

    def _write(self, image: InputImage, result: dict[str, Any]) -> dict[str, Any]:
        anomaly_map = result.get("anomaly_map")
        height, width = result["size"] if anomaly_map is None else anomaly_map.shape
        record = {
            "image": image.path,
            "name": image.name,
            "score": round(result["score"], 6),
            "label": result["label"],
            "threshold": result["threshold"],
            "image_threshold": result["image_threshold"],
            "height": height,
            "width": width,
        }
        if is_url(image.path):
            record["pixels_sha256"] = hashlib.sha256(result["image"].tobytes()).hexdigest()
        if self.save_maps == "png":
            self._save(record, "map", ".png", partial(save_map_png, anomaly_map))
        elif self.save_maps == "npy":
            self._save(record, "map", ".npy", lambda path: np.save(path, anomaly_map))
        if self.save_masks and result["mask"] is not None:
            self._save(record, "mask", ".png", result["mask"].save)
        if self.save_overlays:
            picture = overlay_with_scale(result["image"], anomaly_map, result["mask"], result["threshold"])
            # Without subsampling, which would blur the thin colored outlines
            save = partial(picture.save, quality=90, subsampling=0)
            self._save(record, "overlay", ".jpg", save)
        for name in ("regions", "judged_with"):
            if name in result:
                record[name] = result[name]
        return record

    def _save(self, record: dict[str, Any], kind: str, extension: str, save: Callable[[Path], None]) -> None:
        """Call `save` with the file's path; add its path relative to the output folder and its size to the record."""
        relative = f"{PICTURE_FOLDERS[kind]}/{record['name']}{extension}"
        path = self.output_dir / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path)
        record[kind] = relative
        record.setdefault("output_bytes", {})[kind] = path.stat().st_size


def write_in_order(
    write: Callable[[Any, dict[str, Any]], dict[str, Any]], pairs: Iterable[tuple[Any, dict[str, Any]]], ahead: int
) -> Iterator[dict[str, Any]]:
    """
    Write results in threads while the model computes the next ones. After an interruption, results that are being
    written are still yielded.

    Args:
        write (`Callable`): [`PictureWriter`], or what takes an image and its result and returns the record.
        pairs (iterable of `tuple`): images and their results.
        ahead (`int`): largest number of results that are held.

    Yields:
        `dict`: records, in order.
    """
    pool, waiting = ThreadPoolExecutor(_WRITERS), []
    try:
        yield from _written(pool, write, pairs, ahead, waiting)
    except KeyboardInterrupt:
        begun = [future for future in waiting if not future.cancel()]
        yield from (future.result() for future in begun)
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _written(
    pool: ThreadPoolExecutor,
    write: Callable[[Any, dict[str, Any]], dict[str, Any]],
    pairs: Iterable[tuple[Any, dict[str, Any]]],
    ahead: int,
    waiting: list[Future],
) -> Iterator[dict[str, Any]]:
    for image, result in pairs:
        waiting.append(pool.submit(write, image, result))
        while waiting and (waiting[0].done() or len(waiting) >= ahead):
            yield waiting[0].result()
            waiting.pop(0)
    while waiting:
        yield waiting[0].result()
        waiting.pop(0)


def is_whole(path: Path, num_bytes: int | None) -> bool:
    """
    Return whether a written picture exists, has its size, and ends as its format requires.

    Args:
        path (`Path`): PNG, JPEG or NumPy file.
        num_bytes (`int`, *optional*): size that was recorded when the file was written.
    """
    marker = _END_MARKERS.get(path.suffix, b"")
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size != num_bytes:
                return False
            file.seek(size - len(marker))
            return file.read() == marker
    except (OSError, ValueError):
        return False


def picture_path(output_dir: Path, record: Mapping[str, Any], kind: str) -> Path | None:
    """
    Return the path of a picture that a record names, or `None` if it names none of this folder.

    Args:
        output_dir (`Path`): folder of the results.
        record (`Mapping`): record of an image; it may come from anywhere.
        kind (`"map"`, `"mask"` or `"overlay"`): kind of the picture.
    """
    file = str(record.get(kind, ""))
    own = file.startswith(f"{PICTURE_FOLDERS[kind]}/") and ".." not in Path(file).parts
    return output_dir / file if own else None


def _error_record(image: InputImage, message: str) -> dict[str, Any]:
    return {"image": image.path, "name": image.name, "error": message}
