"""KolektorSDD2: surfaces of production items (Bozic et al., Computers in Industry 2021)."""

import re

from ..base import AnomalyDatasetBuilder
from ..config import AnomalyDatasetConfig
from ..file_tree import FileTree, stem_of
from ..listing import Layout, Listing
from ..masks import MaskFiles
from ..mvtec_layout import standard_layout


__all__ = ["KolektorSDD2"]

_PRODUCT = "surface"

_TREE = """
{train,test}/<five digits>.png
{train,test}/<five digits>_GT.png
"""


def _is_official(tree: FileTree) -> bool:
    return any(stem_of(path).endswith("_GT") for split in ("train", "test") for path in tree.files(split))


def _collect(tree: FileTree, listing: Listing, config: AnomalyDatasetConfig) -> None:
    for split in ("train", "test"):
        if not tree.has_folder(split):
            listing.problem(split, "no such folder", _PRODUCT)
        images, masks = {}, {}
        for path in tree.files(split):
            name = re.fullmatch(r"(\d{5})(_GT)?", stem_of(path))
            if name is None:  # the download has "10301 (copy)" and its mask
                listing.gap(path, "a stray file: its name is not five digits", _PRODUCT)
            else:
                (masks if name[2] else images)[name[1]] = path
        for stem, image in images.items():
            if stem in masks:
                mask = MaskFiles((tree.path(masks[stem]),))
                listing.add(split, image, _PRODUCT, label=None, defect="anomaly", mask=mask)
            else:
                listing.problem(image, f"no mask {stem}_GT.png", _PRODUCT)
        for stem in masks.keys() - images.keys():
            listing.problem(masks[stem], "a mask without an image", _PRODUCT)


class KolektorSDD2(AnomalyDatasetBuilder):
    """
    KolektorSDD2. Splits `train` and `test`, both with anomalous images. Every image has a mask; an empty mask means
    that the image is normal. The weak-label splits of the archive are pickles, which are never opened.
    """

    TITLE = "KolektorSDD2"
    DESCRIPTION = "3335 images of one surface, 356 of them defective, with pixel-exact masks."
    PRODUCTS = (_PRODUCT,)
    LAYOUTS = (Layout("official", _TREE, _is_official, _collect), standard_layout(above=0))
    SPLITS = "train, test (official)"
    HOMEPAGE = "https://www.vicos.si/resources/kolektorsdd2/"
    LICENSE = "CC BY-NC-SA 4.0"
    IN_PAPER = True
    CITATION = """@article{Bozic2021COMIND,
  title={Mixed supervision for surface-defect detection: from weakly to fully supervised learning},
  author={Bo{\\v{z}}i{\\v{c}}, Jakob and Tabernik, Domen and Sko{\\v{c}}aj, Danijel},
  journal={Computers in Industry},
  year={2021}
}"""
