"""DAGM 2007: ten procedural textures (Wieler, Hahn and Hamprecht, 2007)."""

import re

from ..base import AnomalyDatasetBuilder
from ..config import AnomalyDatasetConfig
from ..file_tree import FileTree, stem_of
from ..listing import Layout, Listing
from ..mask_pairing import mask_index, report_unused_masks
from ..masks import MaskFiles
from ..mvtec_layout import standard_layout
from ..records import ANOMALOUS, GOOD, NORMAL


__all__ = ["DAGM"]

_PRODUCTS = tuple(f"Class{number}" for number in range(1, 11))
_SPLITS = {"train": "Train", "test": "Test"}
# Anomalous images whose mask has very few pixels or none
_NEARLY_EMPTY = {f"Class8/{number}" for number in ("0265", "1322", "1502", "1827", "1951")}

_TREE = """
Class<1 to 10>/{Train,Test}/<four digits>.PNG
Class<1 to 10>/{Train,Test}/Label/<four digits>_label.PNG (defective images only)
(or each class in a folder of the same name: Class1/Class1/...)
"""


def _folder(tree: FileTree, product: str) -> str:
    """Return the folder of a class; some archives unpack to Class1/Class1."""
    doubled = f"{product}/{product}"
    return doubled if tree.has_folder(doubled) else product


def _is_official(tree: FileTree) -> bool:
    folders = [f"{_folder(tree, product)}/{split}" for product in _PRODUCTS for split in _SPLITS.values()]
    standard = any(tree.has_folder(f"{product}/test/anomaly") for product in _PRODUCTS)
    return not standard and any(map(tree.has_folder, folders))


def _collect(tree: FileTree, listing: Listing, config: AnomalyDatasetConfig) -> None:
    for product in _PRODUCTS:
        if not listing.wants(product):
            continue
        if not tree.has_folder(product):
            listing.problem(product, "no such folder", product)
            continue
        for split, name in _SPLITS.items():
            _collect_part(tree, listing, product, split, f"{_folder(tree, product)}/{name}")


def _collect_part(tree: FileTree, listing: Listing, product: str, split: str, folder: str) -> None:
    images = tree.files(folder)
    if not images:
        listing.problem(folder, "no images" if tree.has_folder(folder) else "no such folder", product)
        return
    masks = mask_index(tree.files(f"{folder}/Label"), ("_label",))
    listed = tree.find(f"{folder}/Label/Labels.txt")
    # an image without a mask is normal, so only the authors' list shows that a mask is missing
    for stem in re.findall(r"(\w+)_label\.png", listing.text(listed), re.IGNORECASE) if listed else ():
        if stem not in masks:
            listing.problem(f"{folder}/Label/{stem}_label.PNG", "no such file, but Labels.txt lists it", product)
            masks[stem] = []
    for image in images:
        stem = stem_of(image)
        own = masks.pop(stem, None)
        if own is None:
            listing.add(split, image, product, NORMAL, GOOD, image_id=f"{product}/{stem}")
        elif len(own) > 1:
            listing.problem(image, f"several masks: {', '.join(own)}", product)
        elif own:
            mask = MaskFiles((tree.path(own[0]),))
            image_id = f"{product}/{stem}"
            listing.add(
                split,
                image,
                product,
                ANOMALOUS,
                "anomaly",
                mask,
                image_id=image_id,
                empty_mask_known=image_id in _NEARLY_EMPTY,
            )
    report_unused_masks(listing, product, masks)


class DAGM(AnomalyDatasetBuilder):
    """
    DAGM 2007. Splits `train` and `test`, both with anomalous images. Masks are coarse ellipses, abnormal above 0. The
    paper evaluates on a re-annotated and cropped version, in the standard layout.
    """

    TITLE = "DAGM 2007"
    DESCRIPTION = "16100 gray images of ten procedural textures, 2100 of them defective, marked by ellipses."
    PRODUCTS = _PRODUCTS
    LAYOUTS = (Layout("official", _TREE, _is_official, _collect), standard_layout(above=0))
    SPLITS = "train, test (official)"
    HOMEPAGE = "https://zenodo.org/records/8086136"
    LICENSE = "CC BY 4.0"
    IN_PAPER = True
    CITATION = """@misc{wieler2007weakly,
  title={Weakly Supervised Learning for Industrial Optical Inspection},
  author={Wieler, Matthias and Hahn, Tobias and Hamprecht, Fred A.},
  howpublished={DAGM Symposium 2007, https://doi.org/10.5281/zenodo.8086136},
  year={2007}
}"""
