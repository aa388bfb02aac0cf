"""The record that all datasets share: an image, its mask, its label and its names."""

import io
import os
from dataclasses import dataclass

import datasets
import numpy as np
from PIL import Image, ImageOps

from ..deep_pixels import is_deep_color
from ..image_loading import load_image
from .masks import MaskSource


__all__ = [
    "ANOMALOUS",
    "FEATURES",
    "GOOD",
    "LABEL_NAMES",
    "NORMAL",
    "UNKNOWN",
    "AnomalyRecord",
    "KnownGap",
    "encode_record",
]

LABEL_NAMES = ("normal", "anomalous")
NORMAL, ANOMALOUS, UNKNOWN = 0, 1, -1
GOOD = "good"

FEATURES = datasets.Features(
    {
        "image": datasets.Image(mode="RGB"),
        "mask": datasets.Image(mode="L"),
        "label": datasets.ClassLabel(names=list(LABEL_NAMES)),
        "product": datasets.Value("string"),
        "defect": datasets.Value("string"),
        "image_id": datasets.Value("string"),
    }
)
"""
The columns of every dataset of this package:

- `image`: PIL image, mode RGB, upright (EXIF orientation applied).
- `mask`: PIL image, mode L, 0 normal and 255 abnormal, with the size of the upright image. A mask with an EXIF
  orientation of its own is turned by it. If EXIF turns the image and the mask was drawn before that, the mask is
  turned too; if its size does not show which is the case, that is an error. None for normal images, and for anomalous
  and unknown images without an annotation of the pixels.
- `label`: 0 normal, 1 anomalous, -1 unknown.
- `product`, `defect`: names; `defect` is "good" for normal images and "unknown" for unknown ones.
- `image_id`: a name that is stable and unique within the dataset: the path inside it, without the extension.
"""


@dataclass(frozen=True)
class AnomalyRecord:
    """
    One image, before it is read.

    Args:
        image (`str` or `PIL.Image.Image`): absolute path, or a picture in memory.
        product (`str`), image_id (`str`): see `FEATURES`.
        label (`int`, *optional*, defaults to 0):
            0 (normal), 1 (anomalous) or -1 (unknown); None if the mask decides (an empty mask means normal).
        defect (`str`, *optional*, defaults to `"good"`): name of the defect, used if the image is anomalous.
        mask (`MaskSource` or `PIL.Image.Image`, *optional*):
            Source of the mask (see [`vcp_clip_hf.data.masks`]), or the mask itself. The mask of a normal image must be
            empty.
        empty_mask_known (`bool`, *optional*, defaults to `False`):
            Whether this anomalous image is known to have an empty mask in the published dataset. Then it is left out
            without an error.
    """

    image: str | Image.Image
    product: str
    image_id: str
    label: int | None = NORMAL
    defect: str = GOOD
    mask: MaskSource | Image.Image | None = None
    empty_mask_known: bool = False


class KnownGap(ValueError):
    """Raised for a record whose ground truth is known to be missing from the published dataset."""


def encode_record(record: AnomalyRecord, input_range: tuple[float, float] | None = None) -> dict:
    """
    Read a record as far as necessary, and check it.

    Image files are not decoded, and the table holds their path; only files with more than 8 bits per channel, which
    PIL would clip or reduce, are converted here. Masks are always stored as PNG files with one bit per pixel.

    Args:
        record ([`AnomalyRecord`]): the record.
        input_range (`tuple[float, float]`, *optional*):
            Values that become black and white in files of more than 8 bits, see [`load_image`].

    Returns:
        `dict` with the columns of `FEATURES`, ready for their `encode_example`.

    Raises:
        KnownGap: the image is anomalous, and its mask is known to be empty.
        ValueError: image or mask is unreadable or truncated, their sizes differ, or the mask contradicts the label.
    """
    if isinstance(record.image, str):
        image, stored_size, orientation = _check_image_file(record.image, input_range)
    else:
        image, stored_size, orientation = _encode_picture(record.image), record.image.size, 1

    mask = record.mask
    label, marked = record.label, None
    if mask is not None:
        if isinstance(mask, Image.Image):
            marked = np.asarray(mask.convert("L")) > 127
        else:
            marked = mask.read(record.image, stored_size)
        # masks of files are asked for their own orientation only if it matters
        is_upright = orientation != 1 and isinstance(mask, MaskSource) and mask.has_orientation()
        marked = _fit_mask(marked, stored_size, orientation, is_upright)
        if label is None:
            label = ANOMALOUS if marked.any() else NORMAL
    elif label is None:
        raise ValueError("neither a label nor a mask: unknown whether the image is normal")

    if label == NORMAL and marked is not None and marked.any():
        raise ValueError(f"a normal image, but its mask marks {int(marked.sum())} pixels")
    if label == ANOMALOUS and marked is not None and not marked.any():
        if record.empty_mask_known:
            raise KnownGap("anomalous, but its mask is empty (known of this dataset)")
        raise ValueError("an anomalous image, but its mask is empty")
    return {
        "image": _storable_image(image),
        "mask": encode_mask(marked) if label == ANOMALOUS and marked is not None else None,
        "label": label,
        "product": _storable_name(record.product),
        "defect": GOOD if label == NORMAL else _storable_name(record.defect),
        "image_id": _storable_name(record.image_id),
    }


def _storable_name(name: str) -> str:
    """Return a name as valid UTF-8, which tables need: other bytes of file names become `\\udc..`."""
    return name.encode("utf-8", "backslashreplace").decode()


def _storable_image(image: dict) -> dict:
    """Return an encoded image with the file's content instead of a path that is not valid UTF-8."""
    path = image["path"]
    if path is None or _storable_name(path) == path:
        return image
    with open(path, "rb") as file:
        return {"bytes": file.read(), "path": None}


def encode_mask(marked: np.ndarray) -> dict:
    """Return a boolean array (H, W) as a one-bit PNG, which `datasets.Image(mode="L")` decodes to 0 and 255."""
    buffer = io.BytesIO()
    # one bit takes a third of the size and time of eight bits
    Image.fromarray(marked.astype(bool)).save(buffer, format="PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def _encode_picture(image: Image.Image) -> dict:
    buffer = io.BytesIO()
    load_image(image).save(buffer, format="PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def _check_image_file(path: str, input_range: tuple[float, float] | None) -> tuple[dict, tuple[int, int], int]:
    """Check header and last bytes of a file. Return the encoded image, its size as stored and its EXIF orientation."""
    try:
        with Image.open(path) as image:
            size, mode, file_format, is_deep = image.size, image.mode, image.format, is_deep_color(image)
            # asking a PNG for EXIF data decodes it, because they may follow the pixels
            exif = image.getexif() if file_format != "PNG" or "exif" in image.info else {}
            orientation = exif.get(0x0112, 1)
    except Exception as error:  # plugins raise errors of many types for damaged files
        raise ValueError(f"not an image file that Pillow can read ({_reason(error, path)})") from error
    if not _looks_complete(path, file_format):
        try:
            with Image.open(path) as image:
                image.load()
        except Exception as error:
            raise ValueError(f"damaged or truncated image ({_reason(error, path)})") from error
    if is_deep or mode in ("I", "F") or mode.startswith("I;16"):
        return (
            _encode_picture(load_image(path, input_range)),
            size,
            1 if orientation not in range(2, 9) else orientation,
        )
    return {"path": path, "bytes": None}, size, orientation if orientation in range(1, 9) else 1


def _looks_complete(path: str, file_format: str | None) -> bool:
    """Return whether the file ends as its format requires. A JPEG that other data follow gives False too."""
    end = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}.get(file_format)
    with open(path, "rb") as file:
        if end is not None:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 64))
            return end in file.read()
        if file_format == "BMP":
            stated = int.from_bytes(file.read(6)[2:], "little")
            return file.seek(0, os.SEEK_END) >= stated
    return False


def _fit_mask(
    marked: np.ndarray, stored_size: tuple[int, int], orientation: int, is_upright: bool = False
) -> np.ndarray:
    """
    Return the mask for the upright image. If an EXIF tag turns the image by 90 degrees, the mask's size tells whether
    it was drawn on the upright picture (then it is kept) or on the stored one (then it is turned as well). A mask that
    its own tag has turned (`is_upright`) is kept, and must have the size of the upright picture.
    """
    turned = orientation in (5, 6, 7, 8)
    upright_size = stored_size[::-1] if turned else stored_size
    mask_size = marked.shape[1], marked.shape[0]
    if is_upright and mask_size != upright_size == mask_size[::-1]:
        raise ValueError(
            f"the mask, turned by its own EXIF orientation, has {mask_size[0]} x {mask_size[1]} pixels, the upright"
            f" image {upright_size[0]} x {upright_size[1]}; save both upright, without the tag"
        )
    if orientation != 1 and not is_upright and marked.any() and upright_size == stored_size == mask_size:
        raise ValueError(
            f"the image has EXIF orientation {orientation}, and its mask would fit both the stored and the upright"
            " picture; save the image upright, without the tag"
        )
    if mask_size == upright_size:
        return marked
    if mask_size == stored_size:
        picture = Image.fromarray(marked.astype(np.uint8))
        picture.getexif()[0x0112] = orientation
        return np.asarray(ImageOps.exif_transpose(picture)) > 0
    raise ValueError(
        f"the mask has {mask_size[0]} x {mask_size[1]} pixels, the image {upright_size[0]} x {upright_size[1]}"
    )


def _reason(error: Exception, path: str) -> str:
    return str(error).replace(repr(path), "the file") or type(error).__name__
