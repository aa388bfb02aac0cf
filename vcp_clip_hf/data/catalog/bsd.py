"""BSData: pitting on ball screw drives (Schlagenhauf and Landwehr, 2021)."""

import json
from dataclasses import dataclass

from ..base import AnomalyDatasetBuilder
from ..config import AnomalyDatasetConfig
from ..file_tree import FileTree, stem_of
from ..listing import Layout, Listing
from ..masks import LabelmeMask
from ..mvtec_layout import standard_layout
from ..records import ANOMALOUS


__all__ = ["BSData", "BSDataConfig"]

_PRODUCT = "ball_screw"

_TREE = """
image_data.json
data/<image>.jpg
label/<image>.json
"""


@dataclass(eq=False)
class BSDataConfig(AnomalyDatasetConfig):
    """
    Options of [`BSData`].

    Args:
        normal_margin (`int`, *optional*, defaults to 3):
            Number of frames before the first annotated frame of a wear sequence that are not taken as normal. A frame
            without annotation is normal only if it is earlier than these in every wear sequence that it belongs to.
    """

    normal_margin: int = 3

    def __post_init__(self):
        super().__post_init__()
        if self.normal_margin < 0:
            raise ValueError(f"normal_margin={self.normal_margin} must be 0 or more.")


def _is_official(tree: FileTree) -> bool:
    return tree.find("image_data.json") is not None and tree.has_folder("data") and tree.has_folder("label")


def _collect(tree: FileTree, listing: Listing, config: BSDataConfig) -> None:
    try:
        entries = [
            {key: entry[key] for key in ("filename", "train_test_split", "wear_dev", "annotations")}
            for entry in json.loads(listing.text("image_data.json"))["images"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        listing.problem("image_data.json", f"not the authors' list of images ({type(error).__name__}: {error})")
        return
    normal = _frames_before_wear(entries, config.normal_margin)
    # by the names in the list, not by search: the download has a stray copy in data/BSD/test
    for entry in sorted(entries, key=lambda entry: entry["filename"]):
        name, annotation = entry["filename"], entry["annotations"]
        image = tree.find(f"data/{name}")
        if image is None:
            listing.problem(f"data/{name}", "no such file, but image_data.json lists it", _PRODUCT)
        elif annotation is not None:
            polygons = tree.find(f"label/{annotation}")
            if entry["train_test_split"] not in ("train", "test"):
                listing.problem("image_data.json", f"{name} is annotated, but belongs to no split", _PRODUCT)
                continue
            if polygons is None:
                listing.problem(f"label/{annotation}", "no such file, but image_data.json lists it", _PRODUCT)
                continue
            mask = LabelmeMask(tree.path(polygons))
            listing.add(entry["train_test_split"], image, _PRODUCT, ANOMALOUS, "pitting", mask, stem_of(image))
        elif name in normal:
            listing.add("normal", image, _PRODUCT, image_id=stem_of(image))
        else:
            listing.gap(image, "not annotated, but too close to the onset of wear to be normal", _PRODUCT)


def _frames_before_wear(entries: list[dict], margin: int) -> set[str]:
    """Return the frames that lie before the first pitting, by more than the margin, in every wear sequence."""
    sequences: dict[str, list[dict]] = {}
    for entry in sorted(entries, key=lambda entry: entry["filename"]):  # names begin with the time
        for sequence in entry["wear_dev"]:
            sequences.setdefault(sequence, []).append(entry)
    normal = {entry["filename"] for entry in entries if entry["annotations"] is None and entry["wear_dev"]}
    for frames in sequences.values():
        # without an annotated frame, the onset of wear is unknown
        onset = next((place for place, frame in enumerate(frames) if frame["annotations"] is not None), 0)
        normal -= {frame["filename"] for place, frame in enumerate(frames) if onset - place <= margin}
    return normal


class BSData(AnomalyDatasetBuilder):
    """
    BSData. `train` and `test` are the authors' split of the 394 annotated images, which are all anomalous; the paper
    evaluates on both together. The other 710 images belong to no split: those well before the onset of wear are
    `normal`, the others are left out. Masks are filled polygons.
    """

    TITLE = "BSData"
    DESCRIPTION = "1104 images of ball screw drives, 394 with pitting, outlined by polygons; 27 wear sequences."
    BUILDER_CONFIG_CLASS = BSDataConfig
    PRODUCTS = (_PRODUCT,)
    LAYOUTS = (Layout("official", _TREE, _is_official, _collect), standard_layout(above=127))
    SPLITS = "train, test (official, anomalous only); normal (frames before the onset of wear)"
    HOMEPAGE = "https://github.com/2Obe/BSData"
    LICENSE = "CC BY-SA 4.0"
    IN_PAPER = True
    MASK_SOURCE = "polygons"
    CITATION = """@article{schlagenhauf2021industrial,
  title={Industrial Machine Tool Element Surface Defect Dataset},
  author={Schlagenhauf, Tobias and Landwehr, Magnus},
  journal={Data in Brief},
  volume={39},
  pages={107643},
  year={2021},
  note={arXiv:2103.13003}
}"""
