"""DTD-Synthetic: synthetic defects on textures (Aota et al., WACV 2023)."""

from ..base import AnomalyDatasetBuilder
from ..mvtec_layout import MVTecFolders


__all__ = ["DTDSynthetic"]

_PRODUCTS = (
    "Blotchy_099",
    "Fibrous_183",
    "Marbled_078",
    "Matted_069",
    "Mesh_114",
    "Perforated_037",
    "Stratified_154",
    "Woven_001",
    "Woven_068",
    "Woven_104",
    "Woven_125",
    "Woven_127",
)

_TREE = """
<product>/train/good/<image>.png
<product>/test/{good,bad}/<image>.png
<product>/ground_truth/bad/<image>_mask.png
"""


_FOLDERS = MVTecFolders(above=128, defect_of=lambda kind, stem: "anomaly")


class DTDSynthetic(AnomalyDatasetBuilder):
    """DTD-Synthetic. Splits `train` (normal only) and `test`. Masks are abnormal above 128."""

    TITLE = "DTD-Synthetic"
    DESCRIPTION = "Twelve textures of the Describable Textures Dataset with synthetic defects and exact masks."
    PRODUCTS = _PRODUCTS
    LAYOUTS = (_FOLDERS.layout("official", _TREE, _PRODUCTS),)
    SPLITS = "train, test (official)"
    HOMEPAGE = "https://github.com/ToshimichiAota/ZSAS"
    LICENSE = "none stated"
    CITATION = """@inproceedings{aota2023zero,
  title={Zero-Shot versus Many-Shot: Unsupervised Texture Anomaly Detection},
  author={Aota, Toshimichi and Tong, Lloyd Teh Tzer and Okatani, Takayuki},
  booktitle={WACV},
  year={2023}
}"""
