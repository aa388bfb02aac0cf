"""MPDD: painted metal parts (Jezek et al., ICUMT 2021)."""

from ..base import AnomalyDatasetBuilder
from ..mvtec_layout import MVTecFolders


__all__ = ["MPDD"]

_PRODUCTS = ("bracket_black", "bracket_brown", "bracket_white", "connector", "metal_plate", "tubes")

_TREE = """
<product>/train/good/000.png
<product>/test/{good,<defect>}/000.png
<product>/ground_truth/<defect>/000_mask.png
"""


class MPDD(AnomalyDatasetBuilder):
    """MPDD. Splits `train` (normal only) and `test`. Masks are abnormal above 0."""

    TITLE = "MPDD"
    DESCRIPTION = "Six kinds of painted metal parts under varying pose and light, with pixel-exact masks."
    PRODUCTS = _PRODUCTS
    LAYOUTS = (MVTecFolders().layout("official", _TREE, _PRODUCTS),)
    SPLITS = "train, test (official)"
    HOMEPAGE = "https://github.com/stepanje/MPDD"
    LICENSE = "CC BY-NC-SA 4.0"
    CITATION = """@inproceedings{jezek2021deep,
  title={Deep learning-based defect detection of metal parts: evaluating current methods in complex conditions},
  author={Jezek, Stepan and Jonak, Martin and Burget, Radim and Dvorak, Pavel and Skotak, Milos},
  booktitle={International Congress on Ultra Modern Telecommunications and Control Systems (ICUMT)},
  year={2021}
}"""
