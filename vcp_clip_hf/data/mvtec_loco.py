"""MVTec LOCO AD: logical and structural anomalies (Bergmann et al., IJCV 2022)."""

from .base import AnomalyDatasetBuilder
from .layouts import Layout, collect_product_folders


__all__ = ["MVTecLOCO"]

_PRODUCTS = ("breakfast_box", "juice_bottle", "pushpins", "screw_bag", "splicing_connectors")

_TREE = """
<product>/{train,validation}/good/000.png
<product>/test/{good,logical_anomalies,structural_anomalies}/000.png
<product>/ground_truth/{logical_anomalies,structural_anomalies}/000/000.png (one or several)
"""


def _is_official(tree) -> bool:
    return any(tree.has_folder(f"{product}/test/logical_anomalies") for product in _PRODUCTS)


def _collect(tree, listing, config) -> None:
    splits = {"train": "train", "validation": "validation", "test": "test"}
    # a folder of masks per image; each mask has the value of its defect, so that 0 is the one safe threshold
    collect_product_folders(tree, listing, _PRODUCTS, splits, mask_suffixes=(), required_splits=tuple(splits))


class MVTecLOCO(AnomalyDatasetBuilder):
    """
    MVTec LOCO AD. Splits `train`, `validation` (both normal only) and `test`. The mask of an image is the union of its
    ground-truth pictures, abnormal above 0; the saturation thresholds of the benchmark's own metric are not used.
    """

    TITLE = "MVTec LOCO AD"
    DESCRIPTION = "3644 images of five products with logical and structural anomalies and pixel-exact masks."
    PRODUCTS = _PRODUCTS
    LAYOUTS = (Layout("official", _TREE, _is_official, _collect),)
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
