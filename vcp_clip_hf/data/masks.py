"""Sources of masks: image files, polygons, boxes, segmentation tables. All give boolean arrays.

A source is small and picklable: it holds paths and a rule, and reads the files later. No threshold fits all datasets:
`above=127` empties masks of class ids or palette indices, `above=0` doubles the area of masks with JPEG noise.
Therefore each dataset states its own.
"""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from ..deep_pixels import is_deep_color, read_deep_color
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


_ORIENTATION = 0x0112  # the EXIF tag


class MaskSource:
    """Base class of all sources. Subclasses are frozen dataclasses."""

    @property
    def files(self) -> tuple[str, ...]:
        """Return the files that the mask is read from."""
        raise NotImplementedError

    def has_orientation(self) -> bool:
        """Return whether the mask has an EXIF orientation of its own, by which `read` has turned it upright."""
        return False

    def read(self, image: str | Image.Image, size: tuple[int, int]) -> np.ndarray:
        """
        Read the mask.

        Args:
            image (`str` or `PIL.Image.Image`): image that the mask belongs to; most sources ignore it.
            size (`tuple[int, int]`): width and height of the image as stored.

        Returns:
            `np.ndarray` of shape `(height, width)`, bool: True where abnormal. A mask file of another size gives an
            array of its own size; the caller compares the sizes.

        Raises:
            ValueError: the mask cannot be read.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class MaskFiles(MaskSource):
    """
    The union of one or several mask pictures.

    Args:
        paths (`tuple[str, ...]`): absolute paths.
        above (`int` or `None`, *optional*, defaults to 0):
            Values above it are abnormal. Values are gray levels, palette indices or class ids as stored; for colors,
            the largest channel. With None, a mask may hold 0 and one other value, which is abnormal; more values are
            an error.
    """

    paths: tuple[str, ...]
    above: int | None = 0

    @property
    def files(self) -> tuple[str, ...]:
        """Return the mask pictures."""
        return self.paths

    def has_orientation(self) -> bool:
        """Return whether a picture has an EXIF orientation, see `MaskSource.has_orientation`."""
        return any(_orientation(path) in range(2, 9) for path in self.paths)

    def read(self, image: str | Image.Image, size: tuple[int, int]) -> np.ndarray:
        """Read the mask, see `MaskSource.read`."""
        marked = None
        for path in self.paths:
            values = read_labels(path)
            distinct = np.unique(values) if self.above is None else ()
            if len(distinct) > 2 or (len(distinct) == 2 and distinct[0] != 0):
                raise ValueError(
                    f"mask {path} holds {len(distinct)} values from {distinct[0]} to {distinct[-1]}, expected 0 and"
                    " one other; pass mask_above=0 if they are class numbers, mask_above=127 if they are gray levels"
                )
            part = values > (self.above or 0)
            if marked is not None and part.shape != marked.shape:
                raise ValueError(f"its {len(self.paths)} masks differ in size: {marked.shape} and {part.shape}")
            marked = part if marked is None else marked | part
        return marked


def read_labels(path: str) -> np.ndarray:
    """
    Read the values of a mask picture, upright: palette indices, not their colors.

    Returns:
        `np.ndarray` of shape `(height, width)`: for color pictures the largest channel without alpha, for one-bit
        pictures 0 and 255.

    Raises:
        ValueError: Pillow cannot read the file.
    """
    try:
        with Image.open(path) as picture:
            if is_deep_color(picture):
                colors = read_deep_color(picture, path)
                return colors.max(axis=-1) if colors.ndim == 3 else colors
            picture = ImageOps.exif_transpose(picture)
    except Exception as error:  # plugins raise errors of many types for damaged files
        raise ValueError(f"mask {path}: not an image file that Pillow can read ({error})") from error
    if picture.mode == "1":
        picture = picture.convert("L")
    elif picture.mode in ("LA", "RGBA", "PA"):
        picture = picture.convert({"LA": "L", "RGBA": "RGB", "PA": "P"}[picture.mode])
    values = np.asarray(picture)
    return values.max(axis=-1) if values.ndim == 3 else values


def _orientation(path: str) -> int:
    with Image.open(path) as picture:
        return picture.getexif().get(_ORIENTATION, 1)


@dataclass(frozen=True)
class LabelmeMask(MaskSource):
    """
    The filled polygons of a labelme JSON file, with their outlines. The picture in the file is ignored.

    Args:
        path (`str`): absolute path of the JSON file.
    """

    path: str

    @property
    def files(self) -> tuple[str, ...]:
        """Return the JSON file."""
        return (self.path,)

    def read(self, image: str | Image.Image, size: tuple[int, int]) -> np.ndarray:
        """Read the mask, see `MaskSource.read`."""
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
        labels (`tuple[int, ...]`): labels that are abnormal, numbered as in the file (from 0).
    """

    path: str
    labels: tuple[int, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Return the table."""
        return (self.path,)

    def read(self, image: str | Image.Image, size: tuple[int, int]) -> np.ndarray:
        """Read the mask, see `MaskSource.read`."""
        try:
            with open(self.path, encoding="latin-1") as file:
                header, data, table = file.read().partition("\ndata")
            if not data:
                raise ValueError('no line "data"')
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
        labels (`tuple[int, ...]`): labels that are abnormal, numbered as in the file (from 1).
    """

    path: str
    labels: tuple[int, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Return the MATLAB file."""
        return (self.path,)

    def read(self, image: str | Image.Image, size: tuple[int, int]) -> np.ndarray:
        """Read the mask, see `MaskSource.read`."""
        try:
            from scipy.io import loadmat
        except ImportError as error:
            raise ImportError(
                f"{self.path} can only be read with SciPy: pip install vcp-clip-hf[matlab]. (If the .seg files of"
                " the dataset are present, the .mat files are not needed.)"
            ) from error
        try:
            segmentation = loadmat(self.path)["groundTruth"]["Segmentation"][0, 0]
        except Exception as error:  # SciPy raises errors of many types
            raise ValueError(f"{self.path}: not a segmentation ({type(error).__name__}: {error})") from error
        return np.isin(segmentation, self.labels)


@dataclass(frozen=True)
class Box:
    """A box with its class name. Corners are in pixels, and both belong to the box."""

    name: str
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class BoxMask(MaskSource):
    """
    Boxes instead of pixel-exact ground truth: everything inside a box is abnormal, unless `mask_fn` makes a better
    mask.

    Args:
        path (`str`): file that the boxes came from.
        boxes (`tuple[Box, ...]`): one or more boxes.
        mask_fn (`Callable[[PIL.Image.Image, tuple[Box, ...]], PIL.Image.Image | np.ndarray]`, *optional*):
            Function from the RGB image and its boxes to a mask of the image's size, abnormal where not 0; for example
            a promptable segmentation model. Its module must be importable in worker processes.
    """

    path: str
    boxes: tuple[Box, ...]
    mask_fn: Callable[[Image.Image, tuple[Box, ...]], Image.Image | np.ndarray] | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Return the annotation file."""
        return (self.path,)

    def read(self, image: str | Image.Image, size: tuple[int, int]) -> np.ndarray:
        """Read the mask, see `MaskSource.read`."""
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
    """
    Read the boxes of a PASCAL VOC annotation file (`.xml`).

    Raises:
        ValueError: the file is not one.
    """
    try:
        root = ElementTree.parse(path).getroot()
        return tuple(
            Box(
                (element.findtext("name") or "").strip(),
                *(float(element.findtext(f"bndbox/{corner}")) for corner in ("xmin", "ymin", "xmax", "ymax")),
            )
            for element in root.iter("object")
        )
    except (OSError, ElementTree.ParseError, TypeError, ValueError) as error:
        raise ValueError(f"not a PASCAL VOC file ({type(error).__name__}: {error})") from error
