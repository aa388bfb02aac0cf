"""RSDDs: rail surfaces (Gan et al., IEEE Sensors Journal 2017)."""

from .base import AnomalyDatasetBuilder
from .file_tree import stem_of
from .layouts import Layout, mask_index, standard_layout
from .masks import MaskFiles
from .records import ANOMALOUS


__all__ = ["RSDDs"]

_FOLDERS = {"type_1": "Type-I RSDDs dataset", "type_2": "Type-II RSDDs dataset"}

_TREE = """
{Type-I RSDDs dataset,Type-II RSDDs dataset}/Rail surface images/rail_<number>.jpg
{Type-I RSDDs dataset,Type-II RSDDs dataset}/GroundTruth/rail_<number>.jpg
"""


def _is_official(tree) -> bool:
    return any(tree.has_folder(f"{folder}/GroundTruth") for folder in _FOLDERS.values())


def _collect(tree, listing, config) -> None:
    for product, folder in _FOLDERS.items():
        images = tree.files(f"{folder}/Rail surface images")
        if not images:
            listing.problem(f"{folder}/Rail surface images", "no images", product)
        masks = mask_index(tree.files(f"{folder}/GroundTruth"), ("",))
        for image in images:
            own = masks.pop(stem_of(image), [])
            if len(own) != 1:
                listing.problem(image, f"several masks: {', '.join(own)}" if own else "no mask", product)
            else:
                mask = MaskFiles((tree.path(own[0]),), above=127)  # JPEG, so with noise around both values
                listing.add("test", image, product, ANOMALOUS, "surface_defect", mask)
        for unused in masks.values():
            for mask in unused:
                listing.problem(mask, "a mask without an image", product)


class RSDDs(AnomalyDatasetBuilder):
    """
    RSDDs. One split, `test`: there is no official one. `type_1` are express rails, `type_2` heavy haul rails; every
    image has a defect. Masks are JPEG files: abnormal above 127.
    """

    TITLE = "RSDDs"
    DESCRIPTION = "195 line-camera images of rails, 67 of type I and 128 of type II, all with defects."
    PRODUCTS = tuple(_FOLDERS)
    LAYOUTS = (Layout("official", _TREE, _is_official, _collect), standard_layout(above=0))
    SPLITS = "test (no official split, no normal images)"
    HOMEPAGE = "http://icn.bjtu.edu.cn/Visint/resources/RSDDs.aspx"
    LICENSE = "none stated"
    IN_PAPER = True
    CITATION = """@article{gan2017hierarchical,
  title={A Hierarchical Extractor-Based Visual Rail Surface Inspection System},
  author={Gan, Jinrui and Li, Qingyong and Wang, Jianzhu and Yu, Haomin},
  journal={IEEE Sensors Journal},
  volume={17},
  number={23},
  pages={7935--7944},
  year={2017}
}"""
