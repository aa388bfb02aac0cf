"""Real-IAD: 30 products from five views (Wang et al., CVPR 2024)."""

import json
from dataclasses import dataclass

from ..base import AnomalyDatasetBuilder
from ..config import AnomalyDatasetConfig
from ..file_tree import FileTree
from ..listing import Layout, Listing
from ..masks import MaskFiles
from ..records import ANOMALOUS, GOOD, NORMAL


__all__ = ["RealIAD", "RealIADConfig"]

_PRODUCTS = (
    "audiojack",
    "bottle_cap",
    "button_battery",
    "end_cap",
    "eraser",
    "fire_hood",
    "mint",
    "mounts",
    "pcb",
    "phone_battery",
    "plastic_nut",
    "plastic_plug",
    "porcelain_doll",
    "regulator",
    "rolled_strip_base",
    "sim_card_set",
    "switch",
    "tape",
    "terminalblock",
    "toothbrush",
    "toy",
    "toy_brick",
    "transistor1",
    "u_block",
    "usb",
    "usb_adaptor",
    "vcpill",
    "wooden_beads",
    "woodstick",
    "zipper",
)
_RESOLUTIONS = ("realiad_256", "realiad_512", "realiad_1024", "realiad_raw")
# Names of the two-letter codes in file names and annotations
_DEFECTS = {
    "AK": "pit",
    "BX": "deformation",
    "CH": "abrasion",
    "HS": "scratch",
    "PS": "damage",
    "QS": "missing_parts",
    "YW": "foreign_objects",
    "ZW": "contamination",
}

_TREE = """
realiad_jsons/<product>.json (or realiad_jsons/realiad_jsons/<product>.json)
realiad_{256,512,1024,raw}/<product>/{OK,NG/<type>}/S<number>/<image>.jpg
realiad_{256,512,1024,raw}/<product>/NG/<type>/S<number>/<image>.png (the mask)
"""


@dataclass(eq=False)
class RealIADConfig(AnomalyDatasetConfig):
    """
    Options of [`RealIAD`].

    Args:
        resolution (`str`, *optional*): "256", "512", "1024" or "raw"; required only if several were unpacked.
        json_folder (`str`, *optional*, defaults to `"realiad_jsons"`):
            Folder of the split: "realiad_jsons" (all views), "realiad_jsons_sv" (single view),
            "realiad_jsons_fuiad_0.1" (noisy training sets) and so on.
    """

    resolution: str | None = None
    json_folder: str = "realiad_jsons"

    def __post_init__(self):
        super().__post_init__()
        if self.resolution is not None and f"realiad_{self.resolution}" not in _RESOLUTIONS:
            raise ValueError(f'resolution={self.resolution!r} must be "256", "512", "1024" or "raw".')


def _is_official(tree: FileTree) -> bool:
    return any(tree.has_folder(name) for name in _RESOLUTIONS) and tree.has_folder("realiad_jsons")


def _collect(tree: FileTree, listing: Listing, config: RealIADConfig) -> None:
    folders = [name for name in _RESOLUTIONS if tree.has_folder(name)]
    if config.resolution is not None:
        folders = [f"realiad_{config.resolution}"]
    if len(folders) > 1:
        listing.problem(", ".join(folders), "several resolutions: pass resolution=...")
        return
    for product in _PRODUCTS:
        if not listing.wants(product):
            continue
        names = (f"realiad_jsons/{config.json_folder}/{product}.json", f"{config.json_folder}/{product}.json")
        table = next(filter(None, map(tree.find, names)), None)
        if table is None:
            listing.problem(names[1], "no such file", product)
        elif not tree.has_folder(f"{folders[0]}/{product}"):
            listing.problem(f"{folders[0]}/{product}", "no such folder", product)
        else:
            _collect_product(tree, listing, product, f"{folders[0]}/{product}", table)


def _collect_product(tree: FileTree, listing: Listing, product: str, folder: str, table: str) -> None:
    try:
        entries = json.loads(listing.text(table))
        normal_class = entries.get("meta", {}).get("normal_class", "OK")
        rows = [
            (split, entry["image_path"], entry.get("mask_path"), entry["anomaly_class"])
            for split in ("train", "test")
            for entry in entries[split]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        listing.problem(table, f"not a Real-IAD split ({type(error).__name__}: {error})", product)
        return
    for split, image_path, mask_path, kind in rows:
        image = tree.find(f"{folder}/{image_path}")
        mask = tree.find(f"{folder}/{mask_path}") if mask_path else None
        anomalous = kind != normal_class  # a view of a defective item that does not show the defect is normal
        if image is None:
            listing.problem(f"{folder}/{image_path}", f"no such file, but {table} lists it", product)
        elif anomalous and mask is None:
            listing.problem(f"{folder}/{mask_path or image_path}", f"no such mask, but {table} needs it", product)
        else:
            listing.add(
                split,
                image,
                product,
                ANOMALOUS if anomalous else NORMAL,
                _DEFECTS.get(kind, kind) if anomalous else GOOD,
                MaskFiles((tree.path(mask),)) if anomalous else None,
                image_id=f"{product}/{image_path.rpartition('.')[0]}",
            )


class RealIAD(AnomalyDatasetBuilder):
    """Real-IAD. Splits `train` and `test` of the chosen JSON folder. Masks are abnormal above 0."""

    TITLE = "Real-IAD"
    DESCRIPTION = "About 150000 images of 30 products, each item from five views, with pixel-exact masks."
    BUILDER_CONFIG_CLASS = RealIADConfig
    PRODUCTS = _PRODUCTS
    LAYOUTS = (Layout("official", _TREE, _is_official, _collect),)
    SPLITS = "train, test (official, several schemes: option json_folder)"
    HOMEPAGE = "https://realiad4ad.github.io/Real-IAD/"
    LICENSE = "CC BY-NC-SA 4.0"
    CITATION = """@inproceedings{wang2024real,
  title={Real-IAD: A Real-World Multi-View Dataset for Benchmarking Versatile Industrial Anomaly Detection},
  author={Wang, Chengjie and Zhu, Wenbing and Gao, Bin-Bin and Gan, Zhenye and Zhang, Jiangning and Gu, Zhihao and
    Qian, Shuguang and Chen, Mingang and Ma, Lizhuang},
  booktitle={CVPR},
  year={2024}
}"""
