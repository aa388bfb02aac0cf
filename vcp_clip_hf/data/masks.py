"""Where masks come from: image files, polygons, boxes, segmentation tables. All become boolean arrays.

A source is small and picklable; it holds paths and a rule, and reads when asked. One threshold does not fit all
datasets: `above=127` empties class ids and palette indices, `above=0` doubles masks with JPEG noise. So each
dataset states its own.
"""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ..image_loading import load_image


__all__ = [
    "Box",
    "BoxMask",
    "LabelmeMask",
    "MaskFiles",
    "MaskSource",
    "MatlabSegmentationMask",
    "SegmentationTableMask",
    "read_labels",
    "read_voc_boxes",
]


class MaskSource:
    """Base of all sources. Subclasses are frozen dataclasses."""

    @property
    def files(self) -> tuple[str, ...]:
        """The files this mask is read from."""
        raise NotImplementedError

    def read(self, image: "str | Image.Image", size: tuple[int, int]) -> np.ndarray:
        """
        Args:
            image (`str` or `PIL.Image.Image`): the image the mask belongs to; most sources do not look at it.
            size (`tuple[int, int]`): its (width, height) as stored.

        Returns:
            `np.ndarray` of shape `(height, width)`, bool: True where abnormal. Files of another size give an array of
            their own size; the caller compares.

        Raises:
            ValueError: unreadable, with the reason.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class MaskFiles(MaskSource):
    """
    The union of one or several mask pictures.

    Args:
        paths (`tuple[str, ...]`): absolute paths.
        above (`int` or `None`, *optional*, defaults to 0):
            Values above it are abnormal. Values are grey levels, palette indices or class ids as stored; of colours,
            the largest channel. None: a mask may hold 0 and one other value, which is abnormal; more are an error.
    """

    paths: tuple[str, ...]
    above: int | None = 0

    @property
    def files(self) -> tuple[str, ...]:
        """The mask pictures."""
        return self.paths

    def read(self, image: "str | Image.Image", size: tuple[int, int]) -> np.ndarray:
        """See `MaskSource.read`."""
        marked = None
        for path in self.paths:
            values = read_labels(path)
            distinct = np.unique(values) if self.above is None else ()
            if len(distinct) > 2 or (len(distinct) == 2 and distinct[0] != 0):
                raise ValueError(
                    f"mask {path} holds {len(distinct)} values from {distinct[0]} to {distinct[-1]}, expected 0 and"
                    " one other; pass mask_above=0 if they are numbers of classes, mask_above=127 if they are shades"
                )
            part = values > (self.above or 0)
            if marked is not None and part.shape != marked.shape:
                raise ValueError(f"its {len(self.paths)} masks differ in size: {marked.shape} and {part.shape}")
            marked = part if marked is None else marked | part
        return marked


def read_labels(path: str) -> np.ndarray:
    """
    The values of a mask picture as stored: palette indices, not their colours.

    Returns:
        `np.ndarray` of shape `(height, width)`; of colour pictures the largest channel, without alpha; of one-bit
        pictures 0 and 255.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"mask {path}: not an image file that Pillow can read ({error})") from error
    if picture.mode == "1":
        picture = picture.convert("L")
    elif picture.mode in ("LA", "RGBA", "PA"):
        picture = picture.convert({"LA": "L", "RGBA": "RGB", "PA": "P"}[picture.mode])
    values = np.asarray(picture)
    return values.max(axis=-1) if values.ndim == 3 else values


@dataclass(frozen=True)
class LabelmeMask(MaskSource):
    """
    Polygons of a labelme JSON file, filled; outlines included. The picture embedded in the file is not looked at.

    Args:
        path (`str`): absolute path of the JSON file.
    """

    path: str

    @property
    def files(self) -> tuple[str, ...]:
        """The JSON file."""
        return (self.path,)

    def read(self, image: "str | Image.Image", size: tuple[int, int]) -> np.ndarray:
        """See `MaskSource.read`."""
        try:
            with open(self.path, encoding="utf-8") as file:
                annotation = json.load(file)
            stated = int(annotation["imageWidth"]), int(annotation["imageHeight"])
            shapes = [
                (shape.get("shape_type", "polygon"), [tuple(point) for point in shape["points"]])
                for shape in annotation["shapes"]
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path}: not a labelme file ({type(error).__name__}: {error})") from error
        mask = Image.new("1", stated)
        draw = ImageDraw.Draw(mask)
        for kind, points in shapes:
            if kind == "polygon" and len(points) > 2:
                draw.polygon(points, fill=1, outline=1)
            elif kind == "rectangle" and len(points) == 2:
                (x0, y0), (x1, y1) = points
                draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), fill=1)
            else:
                raise ValueError(f"{self.path}: cannot fill a {kind} of {len(points)} points")
        return np.asarray(mask)


@dataclass(frozen=True)
class SegmentationTableMask(MaskSource):
    """
    A segmentation in the text format of the Berkeley Segmentation Dataset (`.seg`): a header (`width`, `height`,
    `data`) and rows `label row first_column last_column`.

    Args:
        path (`str`): absolute path.
        labels (`tuple[int, ...]`): the labels that are abnormal, as the file numbers them (from 0).
    """

    path: str
    labels: tuple[int, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """The table."""
        return (self.path,)

    def read(self, image: "str | Image.Image", size: tuple[int, int]) -> np.ndarray:
        """See `MaskSource.read`."""
        try:
            with open(self.path, encoding="latin-1") as file:
                header, data, table = file.read().partition("\ndata")
            if not data:
                raise ValueError("no line says data")
            fields = dict(line.split(maxsplit=1) for line in header.splitlines() if len(line.split()) > 1)
            marked = np.zeros((int(fields["height"]), int(fields["width"])), dtype=bool)
            for label, row, first, last in (map(int, line.split()) for line in table.splitlines() if line.strip()):
                if not (0 <= row < marked.shape[0] and 0 <= first <= last < marked.shape[1]):
                    raise ValueError(f"row {row}, columns {first} to {last} lie outside the picture")
                marked[row, first : last + 1] |= label in self.labels
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{self.path}: not a segmentation table ({type(error).__name__}: {error})") from error
        return marked


@dataclass(frozen=True)
class MatlabSegmentationMask(MaskSource):
    """
    A segmentation in a MATLAB file (`.mat`, version 5) with a struct `groundTruth` that has a field `Segmentation`.

    Args:
        path (`str`): absolute path.
        labels (`tuple[int, ...]`): the labels that are abnormal, as the file numbers them (from 1).
    """

    path: str
    labels: tuple[int, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """The MATLAB file."""
        return (self.path,)

    def read(self, image: "str | Image.Image", size: tuple[int, int]) -> np.ndarray:
        """See `MaskSource.read`."""
        try:
            from scipy.io import loadmat
        except ImportError as error:
            raise ImportError(
                f"{self.path} can only be read with SciPy: pip install vcp-clip-hf[matlab]. (With the dataset's .seg"
                " files in place, the .mat files are not needed.)"
            ) from error
        try:
            segmentation = loadmat(self.path)["groundTruth"]["Segmentation"][0, 0]
        except Exception as error:  # SciPy raises whatever it stumbles over
            raise ValueError(f"{self.path}: not a segmentation ({type(error).__name__}: {error})") from error
        return np.isin(segmentation, self.labels)


@dataclass(frozen=True)
class Box:
    """A box in pixels, both corners included, and its class name."""

    name: str
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class BoxMask(MaskSource):
    """
    Boxes instead of pixel-exact truth: everything inside a box counts as abnormal, unless `mask_fn` knows better.

    Args:
        path (`str`): the file the boxes came from.
        boxes (`tuple[Box, ...]`): at least one.
        mask_fn (`Callable[[PIL.Image.Image, tuple[Box, ...]], PIL.Image.Image | np.ndarray]`, *optional*):
            Gets the RGB image and its boxes and returns a mask of the image's size, abnormal where not 0: from a
            promptable segmentation model, say. Its module must be importable in worker processes.
    """

    path: str
    boxes: tuple[Box, ...]
    mask_fn: Callable | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """The annotation file."""
        return (self.path,)

    def read(self, image: "str | Image.Image", size: tuple[int, int]) -> np.ndarray:
        """See `MaskSource.read`."""
        if self.mask_fn is None:
            mask = Image.new("1", size)
            draw = ImageDraw.Draw(mask)
            for box in self.boxes:
                draw.rectangle((box.left, box.top, box.right, box.bottom), fill=1)
            return np.asarray(mask)
        mask = np.asarray(self.mask_fn(load_image(image), self.boxes))
        if mask.ndim != 2:
            raise ValueError(f"mask_fn returned shape {mask.shape}, expected (height, width)")
        return mask > 0


def read_voc_boxes(path: str) -> tuple[Box, ...]:
    """The boxes of a PASCAL VOC annotation file (`.xml`)."""
    try:
        root = ElementTree.parse(path).getroot()
        return tuple(
            Box(
                (thing.findtext("name") or "").strip(),
                *(float(thing.findtext(f"bndbox/{corner}")) for corner in ("xmin", "ymin", "xmax", "ymax")),
            )
            for thing in root.iter("object")
        )
    except (OSError, ElementTree.ParseError, TypeError, ValueError) as error:
        raise ValueError(f"not a PASCAL VOC file ({type(error).__name__}: {error})") from error
