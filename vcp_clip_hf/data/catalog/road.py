"""CrackForest: cracks in urban roads (Shi et al., IEEE T-ITS 2016)."""

from ..base import AnomalyDatasetBuilder
from ..config import AnomalyDatasetConfig
from ..file_tree import FileTree, stem_of
from ..listing import Layout, Listing
from ..masks import MatlabSegmentationMask, SegmentationTableMask
from ..mvtec_layout import standard_layout
from ..records import ANOMALOUS


__all__ = ["CrackForest"]

_PRODUCT = "road"
# Labels of cracks and of further pieces of cracks, in .seg tables and in .mat files. The label between them (2 and 3)
# is intact asphalt that cracks enclose.
_TABLE_LABELS, _MAT_LABELS = (1, 3), (2, 4)
_ANNOTATED = range(1, 119)
_WRONG_MASK = "042"
# Most images without ground truth show cracks; these were checked one by one and show none
_NO_CRACKS = ("201", "204", "205", "207", "208")

_TREE = """
image/<three digits>.jpg
seg/<three digits>.seg
groundTruth/<three digits>.mat
"""


def _is_official(tree: FileTree) -> bool:
    return tree.has_folder("image") and (tree.has_folder("groundTruth") or tree.has_folder("seg"))


def _collect(tree: FileTree, listing: Listing, config: AnomalyDatasetConfig) -> None:
    tables = {stem_of(path): path for path in tree.files("seg", (".seg",))}
    matrices = {stem_of(path): path for path in tree.files("groundTruth", (".mat",))}
    images = tree.files("image")
    for image in images:
        stem = stem_of(image)
        if stem == _WRONG_MASK:
            listing.gap(image, "its mask belongs to another image", _PRODUCT)
        elif stem in tables:
            mask = SegmentationTableMask(tree.path(tables[stem]), _TABLE_LABELS)
            listing.add("test", image, _PRODUCT, ANOMALOUS, "crack", mask, image_id=stem)
        elif stem in matrices:
            mask = MatlabSegmentationMask(tree.path(matrices[stem]), _MAT_LABELS)
            listing.add("test", image, _PRODUCT, ANOMALOUS, "crack", mask, image_id=stem)
        elif stem in _NO_CRACKS:
            listing.add("normal", image, _PRODUCT, image_id=stem)
        elif stem.isdigit() and int(stem) in _ANNOTATED:
            listing.problem(image, f"neither seg/{stem}.seg nor groundTruth/{stem}.mat", _PRODUCT)
        else:
            listing.gap(image, "no ground truth, and not free of cracks", _PRODUCT)
    for stem in sorted((tables.keys() | matrices.keys()) - {stem_of(image) for image in images}):
        listing.problem(tables.get(stem) or matrices[stem], "ground truth without an image", _PRODUCT)


class CrackForest(AnomalyDatasetBuilder):
    """
    CrackForest, called Road in the paper. There is no official split: `test` has the annotated images, which all show
    cracks; `normal` has the five images without annotation that are free of cracks. Image 042 has the mask of another
    image and is left out.
    """

    TITLE = "CrackForest"
    DESCRIPTION = "118 annotated photographs of cracked asphalt in Beijing, 480 x 320."
    PRODUCTS = (_PRODUCT,)
    LAYOUTS = (Layout("official", _TREE, _is_official, _collect), standard_layout(above=127))
    SPLITS = "test (no official split); normal (five images free of cracks)"
    HOMEPAGE = "https://github.com/cuilimeng/CrackForest-dataset"
    LICENSE = "non-commercial research only"
    IN_PAPER = True
    CITATION = """@article{shi2016automatic,
  title={Automatic road crack detection using random structured forests},
  author={Shi, Yong and Cui, Limeng and Qi, Zhiquan and Meng, Fan and Chen, Zhensong},
  journal={IEEE Transactions on Intelligent Transportation Systems},
  volume={17},
  number={12},
  pages={3434--3445},
  year={2016}
}
@inproceedings{cui2015pavement,
  title={Pavement Distress Detection Using Random Decision Forests},
  author={Cui, Limeng and Qi, Zhiquan and Chen, Zhensong and Meng, Fan and Shi, Yong},
  booktitle={International Conference on Data Science},
  pages={95--102},
  year={2015}
}"""
