"""MVTec LOCO AD: logical and structural anomalies (Bergmann et al., IJCV 2022)."""

from ..base import AnomalyDatasetBuilder
from ..file_tree import FileTree
from ..mvtec_layout import MVTecFolders


__all__ = ["MVTecLOCO"]

_PRODUCTS = ("breakfast_box", "juice_bottle", "pushpins", "screw_bag", "splicing_connectors")

_TREE = """
<product>/{train,validation}/good/000.png
<product>/test/{good,logical_anomalies,structural_anomalies}/000.png
<product>/ground_truth/{logical_anomalies,structural_anomalies}/000/000.png (one or several)
"""


def _is_official(tree: FileTree) -> bool:
    return any(tree.has_folder(f"{product}/test/logical_anomalies") for product in _PRODUCTS)


# Every image has a folder of masks. The value of a mask is the number of its defect, so all values above 0 count.
_FOLDERS = MVTecFolders({"train": "train", "validation": "validation", "test": "test"}, mask_suffixes=())


class MVTecLOCO(AnomalyDatasetBuilder):
    """
    MVTec LOCO AD. Splits `train`, `validation` (both normal only) and `test`. The mask of an image is the union of its
    ground-truth pictures, abnormal above 0; the saturation thresholds of the benchmark's metric are not used.
    """

    TITLE = "MVTec LOCO AD"
    DESCRIPTION = "3644 images of five products with logical and structural anomalies and pixel-exact masks."
    PRODUCTS = _PRODUCTS
    LAYOUTS = (_FOLDERS.layout("official", _TREE, _PRODUCTS, _is_official),)
    SPLITS = "train, validation, test (official)"
    HOMEPAGE = "https://www.mvtec.com/company/research/datasets/mvtec-loco"
    LICENSE = "CC BY-NC-SA 4.0"
    CITATION = """@article{bergmann2022beyond,
  title={Beyond Dents and Scratches: Logical Constraints in Unsupervised Anomaly Detection and Localization},
  author={Bergmann, Paul and Batzner, Kilian and Fauser, Michael and Sattlegger, David and Steger, Carsten},
  journal={International Journal of Computer Vision},
  volume={130},
  pages={947--969},
  year={2022}
}"""
