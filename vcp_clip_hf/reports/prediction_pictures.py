"""The gallery of a run of `predict`: thumbnails of its images, overlays, maps and masks."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..input_images import is_url
from ..visualization import overlay
from .page import link_to
from .parts import Picture, View
from .thumbnails import (
    UnreadableError,
    map_thumbnail,
    mask_thumbnail,
    placeholder,
    read_map,
    read_mask,
    read_picture,
    shrunk,
    shrunk_map,
    shrunk_mask,
    thumbnail,
)


__all__ = ["draw_overlay", "failure_sentence", "gallery_pictures"]

# Bytes of all thumbnails of a page, as base64
_BUDGET = 48_000_000
# Longer sides to choose from, in pixels, and the number of images that the choice is measured on
_SIDES = (640, 480, 360, 288, 224, 176)
_TRIED = 12
_THREADS = min(8, os.cpu_count() or 1)


def gallery_pictures(
    records: Sequence[Mapping[str, Any]],
    run: Path,
    page: Path,
    started_in: str | None = None,
    always_normal: frozenset[str] = frozenset(),
    progress: bool = False,
) -> list[Picture]:
    """
    Make the pictures of a gallery, as large as the size of the page allows.

    Args:
        records (`Sequence[Mapping]`): records of `predict`, in the order to show.
        run (`Path`): output folder, which the files in the records are relative to.
        page (`Path`): HTML file that the pictures are for.
        started_in (`str`, *optional*): folder that relative paths of images start from; default: the current one.
        always_normal (`frozenset[str]`, *optional*): images that no movable threshold makes anomalous.
        progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar.
    """
    maker = _Maker(run, page, started_in, always_normal)
    maker.longer_side = _affordable_side(maker, records)
    with ThreadPoolExecutor(_THREADS) as pool:
        made = pool.map(maker, records)
        return list(tqdm(made, "report", len(records), disable=not progress, unit="image"))


def _affordable_side(maker: "_Maker", records: Sequence[Mapping[str, Any]]) -> int:
    """Return the longer side with which the thumbnails of all records stay within the budget."""
    tried = records[:: max(1, len(records) // _TRIED)]
    for side in _SIDES[:-1]:
        maker.longer_side = side
        size = sum(len(view.thumbnail) for record in tried for view in maker(record).views)
        if size * len(records) <= _BUDGET * len(tried):
            return side
    return _SIDES[-1]


class _Maker:
    """Makes the picture of a record; see [`gallery_pictures`] for the arguments."""

    def __init__(self, run: Path, page: Path, started_in: str | None, always_normal: frozenset[str]):
        self.run, self.page, self.started_in, self.always_normal = run, page, started_in, always_normal
        self.longer_side = _SIDES[0]

    def __call__(self, record: Mapping[str, Any]) -> Picture:
        return Picture(
            title=record["image"].rpartition("/")[2] or record["name"],
            views=() if "error" in record else tuple(self._views(record)),
            score=record.get("score"),
            label=record.get("label"),
            product=os.path.dirname(record["name"]),
            failure=failure_sentence(record) if "error" in record else "",
            facts=_facts(record),
            always_normal=record["image"] in self.always_normal,
        )

    def _views(self, record: Mapping[str, Any]) -> Iterator[View]:
        """Yield the views that exist; the overlay is drawn from the map, without the color bar of its file."""
        side, links = self.longer_side, {kind: self._link(record, kind) for kind in ("overlay", "map", "mask")}
        picture = self._picture(record)
        anomaly_map = self._read(record, "map", read_map)
        mask = self._read(record, "mask", read_mask)
        if picture is not None:
            picture = shrunk(picture, side) if isinstance(picture, Image.Image) else picture
            yield View("Image", _shown(thumbnail, picture, side), self._link_to_image(record))
        if isinstance(picture, Image.Image) and isinstance(anomaly_map, np.ndarray):
            yield View("Overlay", thumbnail(draw_overlay(picture, anomaly_map, mask), side), links["overlay"])
        elif "overlay" in record:
            yield View(
                "Overlay", _shown(thumbnail, self._read(record, "overlay", read_picture), side), links["overlay"]
            )
        if anomaly_map is not None:
            yield View("Map", _shown(map_thumbnail, anomaly_map, side), links["map"])
        if mask is not None:
            yield View("Mask", _shown(mask_thumbnail, mask, side), links["mask"])

    def _picture(self, record: Mapping[str, Any]) -> Image.Image | str | None:
        """Return the image, the reason why it cannot be shown, or `None` for a video frame, which has no file."""
        if "video" in record:
            return None
        file = self._image_file(record)
        try:
            if not is_url(record["image"]) and os.stat(file).st_size != record.get("bytes", os.stat(file).st_size):
                return "file has changed since"
            return read_picture(file)
        except FileNotFoundError:
            return "file not found"
        except (UnreadableError, OSError, ValueError) as error:
            return str(error) if isinstance(error, UnreadableError) else "file cannot be read"

    def _read(
        self, record: Mapping[str, Any], kind: str, read: Callable[[Path], np.ndarray | Image.Image]
    ) -> np.ndarray | Image.Image | str | None:
        """Return an output file as an array or a picture, why it cannot be shown, or `None` if the run wrote none."""
        if kind not in record:
            return None
        try:
            return read(self._file(record, kind))
        except UnreadableError as error:
            return str(error)

    def _file(self, record: Mapping[str, Any], kind: str) -> Path:
        """Return an output file; a record of another origin must not lead out of the run's folder."""
        file = self.run / record[kind]
        if not file.resolve().is_relative_to(self.run.resolve()):
            raise UnreadableError("outside of the run's folder")
        return file

    def _image_file(self, record: Mapping[str, Any]) -> str:
        image = record["image"]
        return image if is_url(image) or self.started_in is None else os.path.join(self.started_in, image)

    def _link_to_image(self, record: Mapping[str, Any]) -> str:
        return link_to(self._image_file(record), self.page)

    def _link(self, record: Mapping[str, Any], kind: str) -> str:
        return link_to(self.run / record[kind], self.page) if kind in record else ""


def _shown(make: Callable[[Any, int], str], found: Any, longer_side: int) -> str:
    """Return the thumbnail of an image or array, or a placeholder with the reason why there is none."""
    return placeholder(found, longer_side) if isinstance(found, str) else make(found, longer_side)


def draw_overlay(picture: Image.Image, anomaly_map: np.ndarray, mask: np.ndarray | str | None) -> Image.Image:
    """
    Draw an overlay at the size of a thumbnail.

    Args:
        picture (`PIL.Image.Image`): thumbnail of the image.
        anomaly_map (`np.ndarray` of shape `(height, width)`): map of any size, in [0, 1].
        mask (`np.ndarray`, *optional*): mask of any size, drawn as an outline; a `str` stands for an unreadable one.
    """
    side = max(picture.size)
    small = _fitted(shrunk_map(anomaly_map, side), picture)
    outline = _fitted(shrunk_mask(mask, side), picture) if isinstance(mask, np.ndarray) else None
    return overlay(picture, small, outline)


def _fitted(values: np.ndarray, picture: Image.Image) -> np.ndarray:
    """Return values at exactly the size of a picture."""
    if values.shape == (picture.height, picture.width):
        return values
    resized = Image.fromarray(values.astype(np.float32)).resize(picture.size, Image.Resampling.NEAREST)
    return np.asarray(resized).astype(values.dtype)


def failure_sentence(record: Mapping[str, Any]) -> str:
    """Return why a record has no result, without the name of the exception's class."""
    return re.sub(r"^\w+(Error|Exception): ", "", record["error"])


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the viewer shows about an image in addition to verdict and score."""
    facts = [("File", record["image"])]
    if "time_seconds" in record:
        facts.append(("Time in the video", f"{record['time_seconds']:.2f} s"))
    if "width" in record:
        facts.append(("Size", f"{record['width']} x {record['height']} pixels"))
    if "regions" in record:
        areas = [f"{region['area']}" for region in record["regions"]]
        shown = ", ".join(areas[:5]) + (", ..." if len(areas) > 5 else "")
        facts.append(("Regions", f"{len(areas)}" + (f" ({shown} pixels)" if areas else "")))
    if "judged_with" in record:
        facts.append(("Judged with", f"{record['judged_with'].get('subset')} images of this run"))
    return facts
