"""VisA: 12 objects (Zou et al., ECCV 2022)."""

import csv
import io
from dataclasses import dataclass

from ..base import AnomalyDatasetBuilder
from ..config import AnomalyDatasetConfig
from ..did_you_mean import did_you_mean
from ..file_tree import FileTree
from ..listing import Layout, Listing
from ..masks import MaskFiles
from ..mvtec_layout import MVTecFolders, standard_layout
from ..records import ANOMALOUS, GOOD, NORMAL


__all__ = ["VisA", "VisAConfig"]

_PRODUCTS = (
    "candle",
    "capsules",
    "cashew",
    "chewinggum",
    "fryum",
    "macaroni1",
    "macaroni2",
    "pcb1",
    "pcb2",
    "pcb3",
    "pcb4",
    "pipe_fryum",
)
_COLUMNS = ("object", "split", "label", "image", "mask")
_SCHEMES = ("1cls", "2cls_highshot", "2cls_fewshot")

_TREE = """
split_csv/{1cls,2cls_highshot,2cls_fewshot}.csv
<product>/image_anno.csv
<product>/Data/Images/{Normal,Anomaly}/<image>.JPG
<product>/Data/Masks/Anomaly/<image>.png
"""
_PREPARED_TREE = """
<product>/train/good/<image>.JPG
<product>/test/{good,bad}/<image>.JPG
<product>/ground_truth/bad/<image>.png
"""


@dataclass(eq=False)
class VisAConfig(AnomalyDatasetConfig):
    """
    Options of [`VisA`].

    Args:
        split_csv (`str`, *optional*, defaults to `"1cls"`):
            Name of the official split: "1cls" (all anomalies in `test`), "2cls_highshot" or "2cls_fewshot" (anomalies
            in `train` too).
    """

    split_csv: str = "1cls"

    def __post_init__(self):
        super().__post_init__()
        if self.split_csv not in _SCHEMES:
            raise ValueError(f"VisA has no split {self.split_csv!r}; {did_you_mean(self.split_csv, _SCHEMES)}")


def _is_official(tree: FileTree) -> bool:
    return any(tree.has_folder(f"{product}/Data/Images") for product in _PRODUCTS)


def _collect(tree: FileTree, listing: Listing, config: VisAConfig) -> None:
    table = tree.find(f"split_csv/{config.split_csv}.csv")
    if table is None:
        listing.problem(f"split_csv/{config.split_csv}.csv", "no such file")
        return
    lines = csv.DictReader(io.StringIO(listing.text(table)))
    missing = [name for name in _COLUMNS if name not in (lines.fieldnames or ())]
    if missing:
        listing.problem(table, f"lacks the columns {', '.join(missing)}")
        return
    rows: dict[str, list[dict]] = {product: [] for product in _PRODUCTS}
    for row in lines:
        rows.setdefault(row["object"], []).append(row)
    for product, listed in rows.items():
        if not listing.wants(product):
            continue
        if not tree.has_folder(product):
            listing.problem(product, "no such folder", product)
        elif not listed:
            listing.problem(table, f"lists no image of {product}", product)
        else:
            _collect_product(tree, listing, product, listed, table)


def _collect_product(tree: FileTree, listing: Listing, product: str, rows: list[dict], table: str) -> None:
    defects = _defect_names(tree, listing, product)
    for row in rows:
        image, mask = tree.find(row["image"]), tree.find(row["mask"]) if row["mask"] else None
        anomalous = row["label"] != "normal"
        if image is None:
            listing.problem(row["image"], f"no such file, but {table} lists it", product)
        elif anomalous and mask is None:
            listing.problem(row["mask"] or row["image"], f"no such mask, but {table} lists its image", product)
        else:
            listing.add(
                row["split"],
                image,
                product,
                ANOMALOUS if anomalous else NORMAL,
                defects.get(row["image"], "anomaly") if anomalous else GOOD,
                MaskFiles((tree.path(mask),)) if anomalous else None,
            )


def _defect_names(tree: FileTree, listing: Listing, product: str) -> dict[str, str]:
    """Return the names of the defects by image; several are joined by commas."""
    table = tree.find(f"{product}/image_anno.csv")
    if table is None:
        return {}
    rows = csv.DictReader(io.StringIO(listing.text(table)))
    return {
        row["image"]: ", ".join(name.strip() for name in row["label"].split(","))
        for row in rows
        if row.get("image") and row.get("label")
    }


def _is_prepared(tree: FileTree) -> bool:
    return any(tree.has_folder(f"{product}/test/bad") for product in _PRODUCTS)


_PREPARED = MVTecFolders(mask_suffixes=("_mask", ""), defect_of=lambda kind, stem: "anomaly")


class VisA(AnomalyDatasetBuilder):
    """
    VisA. Splits `train` and `test` as in `split_csv`. Mask values are the numbers of the defects, abnormal above 0.
    The layout "prepared" is the one that the authors' own script makes of the download.
    """

    TITLE = "VisA"
    DESCRIPTION = "10821 images of 12 objects, 1200 of them anomalous, with pixel-exact masks."
    BUILDER_CONFIG_CLASS = VisAConfig
    PRODUCTS = _PRODUCTS
    LAYOUTS = (
        Layout("official", _TREE, _is_official, _collect),
        _PREPARED.layout("prepared", _PREPARED_TREE, _PRODUCTS, _is_prepared),
        standard_layout(above=0),
    )
    SPLITS = "train, test (official, three schemes: option split_csv)"
    HOMEPAGE = "https://github.com/amazon-science/spot-diff"
    LICENSE = "CC BY 4.0"
    IN_PAPER = True
    CITATION = """@inproceedings{zou2022spot,
  title={SPot-the-Difference Self-Supervised Pre-training for Anomaly Detection and Segmentation},
  author={Zou, Yang and Jeong, Jongheon and Pemula, Latha and Zhang, Dongqing and Dabeer, Onkar},
  booktitle={ECCV},
  year={2022}
}"""
