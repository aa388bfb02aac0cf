"""RSDDs: rail surfaces (Gan et al., IEEE Sensors Journal 2017)."""

from ..base import AnomalyDatasetBuilder
from ..config import AnomalyDatasetConfig
from ..file_tree import FileTree
from ..listing import Layout, Listing
from ..mask_pairing import mask_index, pair_masks
from ..masks import MaskFiles
from ..mvtec_layout import standard_layout
from ..records import ANOMALOUS


__all__ = ["RSDDs"]

_FOLDERS = {"type_1": "Type-I RSDDs dataset", "type_2": "Type-II RSDDs dataset"}

_TREE = """
{Type-I RSDDs dataset,Type-II RSDDs dataset}/Rail surface images/rail_<number>.jpg
{Type-I RSDDs dataset,Type-II RSDDs dataset}/GroundTruth/rail_<number>.jpg
"""


def _is_official(tree: FileTree) -> bool:
    return any(tree.has_folder(f"{folder}/GroundTruth") for folder in _FOLDERS.values())


def _collect(tree: FileTree, listing: Listing, config: AnomalyDatasetConfig) -> None:
    for product, folder in _FOLDERS.items():
        images = tree.files(f"{folder}/Rail surface images")
        if not images:
            listing.problem(f"{folder}/Rail surface images", "no images", product)
        masks = mask_index(tree.files(f"{folder}/GroundTruth"), ("",))
        for image, own in pair_masks(listing, product, images, masks):
            mask = MaskFiles((tree.path(own[0]),), above=127)  # JPEG: noise around both values
            listing.add("test", image, product, ANOMALOUS, "surface_defect", mask)


class RSDDs(AnomalyDatasetBuilder):
    """
    RSDDs. One split, `test`; no split is official. `type_1` are express rails, `type_2` heavy haul rails; every
    image has a defect. Masks are JPEG files, abnormal above 127.
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
