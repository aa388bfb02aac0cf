"""MSD: mobile phone screens (Zhang et al., ICASSP 2022)."""

from collections.abc import Sequence

from ..base import AnomalyDatasetBuilder
from ..config import AnomalyDatasetConfig
from ..file_tree import FileTree, stem_of
from ..listing import Layout, Listing
from ..mask_pairing import mask_index, report_unused_masks
from ..masks import MaskFiles
from ..mvtec_layout import standard_layout
from ..records import ANOMALOUS


__all__ = ["MSD"]

_PRODUCT = "phone_screen"
_DEFECTS = {"oil": "oil", "scr": "scratch", "sta": "stain"}  # by the first letters of the file name
_VOC_MASKS = ("SegmentationClass", "SegmentationClassPNG")

_TREE = """
{oil,scratch,stain}/{Oil,Scr,Sta}_<number>.jpg
good/<number>.jpg
ground_truth_2/Oil_<number>.png
ground_truth_1/{Scr,Sta}_<number>.png
"""
_VOC_TREE = """
JPEGImages/{Oil,Scr,Sta}_<number>.jpg
SegmentationClass/{Oil,Scr,Sta}_<number>.png
good/<number>.jpg (from good.zip, optional)
"""


def _is_official(tree: FileTree) -> bool:
    return tree.has_folder("ground_truth_1") and tree.has_folder("ground_truth_2")


def _collect(tree: FileTree, listing: Listing, config: AnomalyDatasetConfig) -> None:
    _collect_folders(tree, listing, ("oil", "scratch", "stain"), ("ground_truth_1", "ground_truth_2"))
    if not tree.files("good"):
        listing.problem("good", "no images" if tree.has_folder("good") else "no such folder", _PRODUCT)


def _is_voc(tree: FileTree) -> bool:
    return tree.has_folder("JPEGImages") and any(tree.has_folder(name) for name in _VOC_MASKS)


def _collect_voc(tree: FileTree, listing: Listing, config: AnomalyDatasetConfig) -> None:
    masks = [name for name in _VOC_MASKS if tree.files(name)]
    _collect_folders(tree, listing, ("JPEGImages",), masks[-1:])


def _collect_folders(
    tree: FileTree, listing: Listing, image_folders: Sequence[str], mask_folders: Sequence[str]
) -> None:
    masks = mask_index((mask for folder in mask_folders for mask in tree.files(folder, (".png",))), ("",))
    for folder in image_folders:
        images = tree.files(folder)
        if not images:
            listing.problem(folder, "no images" if tree.has_folder(folder) else "no such folder", _PRODUCT)
        for image in images:
            stem = stem_of(image)
            defect, own = _DEFECTS.get(stem[:3].lower()), masks.pop(stem, [])
            if defect is None:
                listing.problem(image, "its name does not begin with Oil, Scr or Sta", _PRODUCT)
            elif len(own) != 1:
                listing.problem(image, f"several masks: {', '.join(own)}" if own else "no mask", _PRODUCT)
            else:
                mask = MaskFiles((tree.path(own[0]),))
                listing.add("test", image, _PRODUCT, ANOMALOUS, defect, mask, image_id=stem)
    report_unused_masks(listing, _PRODUCT, masks)
    for image in tree.files("good"):
        listing.add("test", image, _PRODUCT)


class MSD(AnomalyDatasetBuilder):
    """
    MSD. One split, `test`; the authors only say that they split 6:2:2 at random. Masks have the colors of PASCAL VOC,
    or their palette indices: abnormal where not black. Stains in images of oil or scratches are marked too.
    """

    TITLE = "MSD"
    DESCRIPTION = "1200 images of phone screens with oil, scratches or stains, and 20 good ones, with pixel masks."
    PRODUCTS = (_PRODUCT,)
    LAYOUTS = (
        Layout("official", _TREE, _is_official, _collect),
        Layout("voc", _VOC_TREE, _is_voc, _collect_voc),
        standard_layout(above=0),
    )
    SPLITS = "test (no official split)"
    HOMEPAGE = "https://github.com/jianzhang96/MSD"
    LICENSE = "GPL-3.0"
    IN_PAPER = True
    CITATION = """@inproceedings{zhang2022fdsnet,
  title={FDSNeT: An Accurate Real-Time Surface Defect Segmentation Network},
  author={Zhang, Jian and Ding, Runwei and Ban, Miaoju and Guo, Tianyu},
  booktitle={ICASSP},
  year={2022}
}"""
