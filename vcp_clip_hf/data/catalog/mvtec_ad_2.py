"""MVTec AD 2: eight products under changing light (Heckler-Kram et al., 2025)."""

from ..base import AnomalyDatasetBuilder
from ..config import AnomalyDatasetConfig
from ..file_tree import FileTree
from ..listing import Layout, Listing
from ..mvtec_layout import MVTecFolders
from ..records import UNKNOWN


__all__ = ["MVTecAD2"]

_PRODUCTS = ("can", "fabric", "fruit_jelly", "rice", "sheet_metal", "vial", "wallplugs", "walnuts")
_PRIVATE = ("test_private", "test_private_mixed")

_TREE = """
<product>/{train,validation}/good/<image>.png
<product>/test_public/{good,bad}/<image>.png
<product>/test_public/ground_truth/bad/<image>_mask.png
<product>/{test_private,test_private_mixed}/<image>.png (optional)
"""


_FOLDERS = MVTecFolders(
    {"train": "train", "validation": "validation", "test": "test_public"},
    mask_folder="test_public/ground_truth",
    defect_of=lambda kind, stem: "anomaly",
)


def _is_official(tree: FileTree) -> bool:
    return any(tree.has_folder(f"{product}/test_public") for product in _PRODUCTS)


def _collect(tree: FileTree, listing: Listing, config: AnomalyDatasetConfig) -> None:
    _FOLDERS.collect(tree, listing, _PRODUCTS)
    for split in _PRIVATE:
        for product in _PRODUCTS:
            for image in tree.files(f"{product}/{split}"):
                listing.add(split, image, product, UNKNOWN)


class MVTecAD2(AnomalyDatasetBuilder):
    """
    MVTec AD 2. Splits `train`, `validation` (both normal only) and `test`, which is the public test set; masks are
    abnormal above 0. The ground truth of `test_private` and `test_private_mixed` is not published: their labels are -1
    and their masks None. These images are included for submissions to the benchmark's server.
    """

    TITLE = "MVTec AD 2"
    DESCRIPTION = "Eight products with transparent, overlapping and hidden parts under changing light."
    PRODUCTS = _PRODUCTS
    LAYOUTS = (Layout("official", _TREE, _is_official, _collect),)
    SPLITS = "train, validation, test (official test_public), test_private, test_private_mixed (no ground truth)"
    HOMEPAGE = "https://www.mvtec.com/company/research/datasets/mvtec-ad-2"
    LICENSE = "CC BY-NC-SA 4.0"
    CITATION = """@article{heckler2025mvtec,
  title={The MVTec AD 2 Dataset: Advanced Scenarios for Unsupervised Anomaly Detection},
  author={Heckler-Kram, Lars and Neudeck, Jan-Hendrik and Scheler, Ulla and K{\\"o}nig, Rebecca and Steger, Carsten},
  journal={arXiv preprint arXiv:2503.21622},
  year={2025}
}"""
