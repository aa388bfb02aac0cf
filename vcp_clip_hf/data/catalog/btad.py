"""BTAD (BTech): three industrial products (Mishra et al., ISIE 2021)."""

from ..base import AnomalyDatasetBuilder
from ..mvtec_layout import MVTecFolders, standard_layout


__all__ = ["BTAD"]

_PRODUCTS = ("01", "02", "03")

_TREE = """
<product>/train/ok/0000.{bmp,png}
<product>/test/{ok,ko}/0000.{bmp,png}
<product>/ground_truth/ko/0000.{png,bmp}
"""


_FOLDERS = MVTecFolders(mask_suffixes=("",), above=128, normal_names=("ok",), defect_of=lambda kind, stem: "anomaly")


class BTAD(AnomalyDatasetBuilder):
    """
    BTAD. Splits `train` (normal only) and `test`. The file formats of images and masks differ between products, and in
    converted copies, so they pair by name alone. Masks are abnormal above 128.
    """

    TITLE = "BTAD"
    DESCRIPTION = "2540 images of three industrial products, 290 of them anomalous, with pixel-exact masks."
    PRODUCTS = _PRODUCTS
    LAYOUTS = (_FOLDERS.layout("official", _TREE, _PRODUCTS), standard_layout(above=128))
    SPLITS = "train, test (official)"
    HOMEPAGE = "https://github.com/pankajmishra000/VT-ADL"
    LICENSE = "CC BY-SA (the repository's README; others state CC BY-NC-SA 4.0)"
    IN_PAPER = True
    CITATION = """@inproceedings{mishra2021vt,
  title={VT-ADL: A Vision Transformer Network for Image Anomaly Detection and Localization},
  author={Mishra, Pankaj and Verk, Riccardo and Fornasier, Daniele and Piciarelli, Claudio and Foresti, Gian Luca},
  booktitle={IEEE International Symposium on Industrial Electronics (ISIE)},
  year={2021}
}"""
