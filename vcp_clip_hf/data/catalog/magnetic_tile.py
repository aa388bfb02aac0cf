"""Magnetic Tile Defects (Huang, Qiu and Yuan, The Visual Computer 2020)."""

from ..base import AnomalyDatasetBuilder
from ..config import AnomalyDatasetConfig
from ..file_tree import FileTree, stem_of
from ..listing import Layout, Listing
from ..masks import MaskFiles
from ..records import ANOMALOUS, GOOD, NORMAL


__all__ = ["MagneticTile"]

_PRODUCT = "magnetic_tile"
_KINDS = ("Blowhole", "Break", "Crack", "Fray", "Uneven", "Free")
# Images labeled uneven whose mask is empty
_EMPTY = {
    "MT_Uneven/Imgs/exp3_num_45042",
    "MT_Uneven/Imgs/exp4_num_124690",
    "MT_Uneven/Imgs/exp4_num_352527",
    "MT_Uneven/Imgs/exp4_num_45057",
}

_TREE = """
MT_{Blowhole,Break,Crack,Fray,Uneven,Free}/Imgs/<image>.jpg
MT_{Blowhole,Break,Crack,Fray,Uneven,Free}/Imgs/<image>.png (the mask)
"""


def _is_official(tree: FileTree) -> bool:
    return any(tree.has_folder(f"MT_{kind}/Imgs") for kind in _KINDS)


def _collect(tree: FileTree, listing: Listing, config: AnomalyDatasetConfig) -> None:
    for kind in _KINDS:
        folder = f"MT_{kind}/Imgs"
        images = tree.files(folder, (".jpg", ".jpeg"))
        masks = {stem_of(path): path for path in tree.files(folder, (".png",))}
        if not images:
            listing.problem(folder, "no images" if tree.has_folder(folder) else "no such folder", _PRODUCT)
        for image in images:
            mask = masks.pop(stem_of(image), None)
            if mask is None:
                listing.problem(image, "no mask", _PRODUCT)
                continue
            listing.add(
                "test",
                image,
                _PRODUCT,
                NORMAL if kind == "Free" else ANOMALOUS,
                GOOD if kind == "Free" else kind.lower(),
                MaskFiles((tree.path(mask),), above=127),  # noise around both values, as from JPEG
                empty_mask_known=image.rpartition(".")[0] in _EMPTY,
            )
        for mask in masks.values():
            listing.problem(mask, "a mask without an image", _PRODUCT)


class MagneticTile(AnomalyDatasetBuilder):
    """
    Magnetic Tile Defects. One split, `test`; no split is official. Masks are abnormal above 127. Four images that
    are labeled uneven have an empty mask and are left out.
    """

    TITLE = "Magnetic Tile Defects"
    DESCRIPTION = "1344 gray images of magnetic tiles: blowhole, break, crack, fray, uneven, and 952 free of defects."
    PRODUCTS = (_PRODUCT,)
    LAYOUTS = (Layout("official", _TREE, _is_official, _collect),)
    SPLITS = "test (no official split)"
    HOMEPAGE = "https://github.com/abin24/Magnetic-tile-defect-datasets."
    LICENSE = "none stated"
    CITATION = """@article{huang2020surface,
  title={Surface defect saliency of magnetic tile},
  author={Huang, Yibin and Qiu, Congying and Yuan, Kui},
  journal={The Visual Computer},
  volume={36},
  number={1},
  pages={85--96},
  year={2020}
}"""
