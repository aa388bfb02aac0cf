"""GC10-DET: steel sheets with boxes around ten kinds of defects (Lv et al., Sensors 2020)."""

from collections.abc import Callable
from dataclasses import dataclass

from ..base import AnomalyDatasetBuilder
from ..config import AnomalyDatasetConfig
from ..file_tree import FileTree, stem_of
from ..listing import Layout, Listing
from ..masks import BoxMask, read_voc_boxes
from ..mvtec_layout import standard_layout
from ..records import ANOMALOUS


__all__ = ["GC10DET", "GC10DETConfig"]

_PRODUCT = "steel_sheet"
_DEFECTS = {
    "1": "punching_hole",
    "2": "welding_line",
    "3": "crescent_gap",
    "4": "water_spot",
    "5": "oil_spot",
    "6": "silk_spot",
    "7": "inclusion",
    "8": "rolled_pit",
    "9": "crease",
    "10": "waist_folding",
}
# The download lacks the annotations of six images; many more mean that this copy is incomplete
_UNPAIRED_IN_DOWNLOAD = 10

_TREE = """
{1,...,10}/<image>.jpg
lable/<image>.xml
"""


@dataclass(eq=False)
class GC10DETConfig(AnomalyDatasetConfig):
    """
    Options of [`GC10DET`].

    Args:
        mask_fn (`Callable[[PIL.Image.Image, tuple[Box, ...]], PIL.Image.Image | np.ndarray]`, *optional*):
            Function from the RGB image and its boxes to a mask, used instead of filling the boxes; the paper used
            MobileSAM. See [`vcp_clip_hf.data.masks.BoxMask`].
    """

    mask_fn: Callable | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.mask_fn is not None and not callable(self.mask_fn):
            raise ValueError(f"mask_fn={self.mask_fn!r} must be a function of an image and its boxes.")


def _is_official(tree: FileTree) -> bool:
    return tree.has_folder("lable") and any(tree.has_folder(number) for number in _DEFECTS)


def _collect(tree: FileTree, listing: Listing, config: GC10DETConfig) -> None:
    annotations = {stem_of(path): path for path in tree.files("lable", (".xml",))}
    images: dict[str, str] = {}
    for number in _DEFECTS:  # the folder is the dominant class; an image may be in several
        if not tree.has_folder(number):
            listing.problem(number, "no such folder", _PRODUCT)
        for image in tree.files(number):
            first = images.setdefault(stem_of(image), image)
            if first != image:
                listing.gap(image, "a copy: the image is in several folders", _PRODUCT)

    unpaired = [(image, "no annotation") for stem, image in images.items() if stem not in annotations]
    unpaired += [(path, "an annotation without an image") for stem, path in annotations.items() if stem not in images]
    report = listing.gap if len(unpaired) <= _UNPAIRED_IN_DOWNLOAD else listing.problem
    for path, reason in unpaired:
        report(path, reason, _PRODUCT)

    for stem, image in images.items():
        if stem not in annotations:
            continue
        path = tree.path(annotations[stem])
        listing.read_files.add(path)
        try:
            boxes = read_voc_boxes(path)
        except ValueError as error:
            listing.problem(annotations[stem], str(error), _PRODUCT)
            continue
        if not boxes:
            listing.gap(image, "annotated without any box", _PRODUCT)
            continue
        # class names are number_pinyin, some misspelled: only the number is used
        defects = sorted({_DEFECTS.get(box.name.partition("_")[0], "unknown_defect") for box in boxes})
        mask = BoxMask(path, boxes, config.mask_fn)
        listing.add("test", image, _PRODUCT, ANOMALOUS, ", ".join(defects), mask, image_id=stem)


class GC10DET(AnomalyDatasetBuilder):
    """
    GC10-DET. One split, `test`; there is neither an official split nor a normal image. **Boxes only**: masks are
    filled boxes (`mask_source == "boxes"`), which are not a ground truth for segmentation; pass `mask_fn` for better
    masks.
    """

    TITLE = "GC10-DET"
    DESCRIPTION = "2300 gray images of steel sheets with boxes around ten kinds of defects."
    BUILDER_CONFIG_CLASS = GC10DETConfig
    PRODUCTS = (_PRODUCT,)
    LAYOUTS = (Layout("official", _TREE, _is_official, _collect), standard_layout(above=127))
    SPLITS = "test (no official split, no normal images)"
    HOMEPAGE = "https://github.com/lvxiaoming2019/GC10-DET-Metallic-Surface-Defect-Datasets"
    LICENSE = "none stated by the repository; the article is CC BY 4.0"
    IN_PAPER = True
    MASK_SOURCE = "boxes"
    CITATION = """@article{lv2020deep,
  title={Deep Metallic Surface Defect Detection: The New Benchmark and Detection Network},
  author={Lv, Xiaoming and Duan, Fajie and Jiang, Jia-jia and Fu, Xiao and Gan, Lin},
  journal={Sensors},
  volume={20},
  number={6},
  pages={1562},
  year={2020}
}"""

    @property
    def mask_source(self) -> str:
        """Return "boxes", "mask_fn" if one was given, or "pixels" in the standard layout."""
        if self.layout == "standard":
            return "pixels"
        return "boxes" if self.config.mask_fn is None else "mask_fn"
