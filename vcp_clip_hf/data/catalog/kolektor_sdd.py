"""KolektorSDD: electrical commutators (Tabernik et al., Journal of Intelligent Manufacturing 2020)."""

from dataclasses import dataclass

from ..base import AnomalyDatasetBuilder
from ..config import AnomalyDatasetConfig
from ..file_tree import FileTree, stem_of
from ..listing import Layout, Listing
from ..masks import MaskFiles


__all__ = ["KolektorSDD", "KolektorSDDConfig"]

_PRODUCT = "commutator"
_COPIES = {"kos26": "kos01", "kos34": "kos27"}

_TREE = """
kos<01 to 50>/Part<0 to 7>.jpg
kos<01 to 50>/Part<0 to 7>_label.bmp
"""


@dataclass(eq=False)
class KolektorSDDConfig(AnomalyDatasetConfig):
    """
    Options of [`KolektorSDD`].

    Args:
        drop_copies (`bool`, *optional*, defaults to `False`):
            Whether to leave out kos26 and kos34, which show the same images as kos01 and kos27 with new labels. They
            are kept by default because published results count them; drop them for training.
    """

    drop_copies: bool = False


def _items(tree: FileTree) -> list[str]:
    return [name for name in tree.folders() if name.lower().startswith("kos") and name[3:].isdigit()]


def _collect(tree: FileTree, listing: Listing, config: KolektorSDDConfig) -> None:
    for item in _items(tree):
        images = tree.files(item, (".jpg", ".jpeg"))
        labels = {stem_of(path): path for path in tree.files(item, (".bmp",))}
        if not images:
            listing.problem(item, "no images", _PRODUCT)
        for image in images:
            label = labels.pop(f"{stem_of(image)}_label", None)
            if label is None:
                listing.problem(image, f"no mask {stem_of(image)}_label.bmp", _PRODUCT)
            elif config.drop_copies and item.lower() in _COPIES:
                listing.gap(image, f"a copy: {item} shows the images of {_COPIES[item.lower()]}", _PRODUCT)
            else:
                mask = MaskFiles((tree.path(label),))
                listing.add("test", image, _PRODUCT, label=None, defect="crack", mask=mask)
        for label in labels.values():
            listing.problem(label, "a mask without an image", _PRODUCT)


class KolektorSDD(AnomalyDatasetBuilder):
    """
    KolektorSDD. One split, `test`; the official folds are pickles, which are never opened. Every image has a mask of
    palette indices, abnormal above 0; an empty mask means that the image is normal. kos26 and kos34 repeat the images
    of kos01 and kos27 with other masks: keep them on the same side of any split.
    """

    TITLE = "KolektorSDD"
    DESCRIPTION = "399 images of 50 commutators, 52 of them cracked, with pixel masks."
    BUILDER_CONFIG_CLASS = KolektorSDDConfig
    PRODUCTS = (_PRODUCT,)
    LAYOUTS = (Layout("official", _TREE, lambda tree: bool(_items(tree)), _collect),)
    SPLITS = "test (official folds not read)"
    HOMEPAGE = "https://www.vicos.si/resources/kolektorsdd/"
    LICENSE = "CC BY-NC-SA 4.0"
    CITATION = """@article{tabernik2020segmentation,
  title={Segmentation-based deep-learning approach for surface-defect detection},
  author={Tabernik, Domen and {\\v{S}}ela, Samo and Skvar{\\v{c}}, Jure and Sko{\\v{c}}aj, Danijel},
  journal={Journal of Intelligent Manufacturing},
  volume={31},
  number={3},
  pages={759--776},
  year={2020}
}"""
