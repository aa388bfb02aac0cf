"""MVTec AD: 15 objects and textures (Bergmann et al., CVPR 2019)."""

from ..base import AnomalyDatasetBuilder
from ..mvtec_layout import MVTecFolders, standard_layout


__all__ = ["MVTecAD"]

_PRODUCTS = (
    "bottle",
    "cable",
    "capsule",
    "carpet",
    "grid",
    "hazelnut",
    "leather",
    "metal_nut",
    "pill",
    "screw",
    "tile",
    "toothbrush",
    "transistor",
    "wood",
    "zipper",
)

_TREE = """
<product>/train/good/000.png
<product>/test/{good,<defect>}/000.png
<product>/ground_truth/<defect>/000_mask.png
"""


def _defect_of(kind: str, stem: str) -> str:
    """Return the kind from the name mvtec_<kind>_<number>: the authors of VCP-CLIP merged the folders of all kinds."""
    parts = stem.split("_")
    return "_".join(parts[1:-1]) if parts[0] == "mvtec" and len(parts) > 2 else kind


class MVTecAD(AnomalyDatasetBuilder):
    """MVTec AD. Splits `train` (normal only) and `test`. Masks are abnormal above 127."""

    TITLE = "MVTec AD"
    DESCRIPTION = "5354 images of 15 objects and textures, with pixel-exact masks of 73 kinds of defects."
    PRODUCTS = _PRODUCTS
    LAYOUTS = (
        MVTecFolders(above=127).layout("official", _TREE, _PRODUCTS),
        standard_layout(above=127, defect_of=_defect_of),
    )
    SPLITS = "train, test (official)"
    HOMEPAGE = "https://www.mvtec.com/company/research/datasets/mvtec-ad"
    LICENSE = "CC BY-NC-SA 4.0"
    IN_PAPER = True
    CITATION = """@inproceedings{bergmann2019mvtec,
  title={MVTec AD -- A Comprehensive Real-World Dataset for Unsupervised Anomaly Detection},
  author={Bergmann, Paul and Fauser, Michael and Sattlegger, David and Steger, Carsten},
  booktitle={CVPR},
  year={2019}
}
@article{bergmann2021mvtec,
  title={The MVTec Anomaly Detection Dataset: A Comprehensive Real-World Dataset for Unsupervised Anomaly Detection},
  author={Bergmann, Paul and Batzner, Kilian and Fauser, Michael and Sattlegger, David and Steger, Carsten},
  journal={International Journal of Computer Vision},
  volume={129},
  pages={1038--1059},
  year={2021}
}"""
