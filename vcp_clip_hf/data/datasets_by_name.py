"""Find, describe and load datasets by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from .base import AnomalyDatasetBuilder
from .catalog.bsd import BSData
from .catalog.btad import BTAD
from .catalog.dagm import DAGM
from .catalog.dtd_synthetic import DTDSynthetic
from .catalog.gc10_det import GC10DET
from .catalog.kolektor_sdd import KolektorSDD
from .catalog.ksdd2 import KolektorSDD2
from .catalog.magnetic_tile import MagneticTile
from .catalog.mpdd import MPDD
from .catalog.msd import MSD
from .catalog.mvtec_ad import MVTecAD
from .catalog.mvtec_ad_2 import MVTecAD2
from .catalog.mvtec_loco import MVTecLOCO
from .catalog.real_iad import RealIAD
from .catalog.road import CrackForest
from .catalog.rsdd import RSDDs
from .catalog.visa import VisA
from .did_you_mean import did_you_mean
from .synthetic_defects import SyntheticDefects
from .user_folder.folder import AnomalyFolder


__all__ = ["DatasetSummary", "dataset_builder", "list_datasets", "load_anomaly_dataset"]

# the paper's ten first
_DATASETS: dict[str, type[AnomalyDatasetBuilder]] = {
    "mvtec_ad": MVTecAD,
    "visa": VisA,
    "bsd": BSData,
    "gc10_det": GC10DET,
    "ksdd2": KolektorSDD2,
    "msd": MSD,
    "road": CrackForest,
    "rsdd": RSDDs,
    "btad": BTAD,
    "dagm": DAGM,
    "mpdd": MPDD,
    "kolektor_sdd": KolektorSDD,
    "magnetic_tile": MagneticTile,
    "mvtec_loco": MVTecLOCO,
    "mvtec_ad_2": MVTecAD2,
    "dtd_synthetic": DTDSynthetic,
    "real_iad": RealIAD,
    "synthetic": SyntheticDefects,
    "folder": AnomalyFolder,
}
_ALIASES = {
    "mvtec": "mvtec_ad",
    "bsdata": "bsd",
    "gc": "gc10_det",
    "gc10": "gc10_det",
    "kolektor_sdd2": "ksdd2",
    "kolektorsdd2": "ksdd2",
    "ksdd": "kolektor_sdd",
    "kolektorsdd": "kolektor_sdd",
    "crackforest": "road",
    "cfd": "road",
    "rsdds": "rsdd",
    "btech": "btad",
    "dagm2007": "dagm",
    "magnetic_tile_defects": "magnetic_tile",
    "loco": "mvtec_loco",
    "mvtec_loco_ad": "mvtec_loco",
    "realiad": "real_iad",
}


@dataclass(frozen=True)
class DatasetSummary:
    """
    Facts about a dataset that are known without its files.

    Args:
        name (`str`): name for [`load_anomaly_dataset`].
        title, description, license, homepage, citation (`str`): texts as the authors state them.
        products (`tuple[str, ...]`): names of the products; empty if they are known from the files only.
        splits (`str`): names of the splits, and whether they are official.
        mask_source (`str`): "pixels", "polygons" or "boxes".
        in_paper (`bool`): whether it is one of the ten datasets of VCP-CLIP (ECCV 2024).
        layouts (`dict[str, str]`): layouts that can be read, as small trees.
    """

    name: str
    title: str
    description: str
    products: tuple[str, ...]
    splits: str
    license: str
    homepage: str
    mask_source: str
    in_paper: bool
    layouts: dict[str, str]
    citation: str


def _builder_class(name: str) -> type[AnomalyDatasetBuilder]:
    key = name.strip().casefold().replace("-", "_").replace(" ", "_")
    key = _ALIASES.get(key, key)
    if key not in _DATASETS:
        raise ValueError(f"There is no dataset {name!r}; {did_you_mean(name, list(_DATASETS))}")
    return _DATASETS[key]


def list_datasets() -> list[DatasetSummary]:
    """List all datasets of this package, the paper's ten first."""
    summaries = []
    for name, builder in _DATASETS.items():
        summaries.append(
            DatasetSummary(
                name=name,
                title=builder.TITLE,
                description=builder.DESCRIPTION,
                products=tuple(builder.PRODUCTS),
                splits=builder.SPLITS,
                license=builder.LICENSE,
                homepage=builder.HOMEPAGE,
                mask_source=builder.MASK_SOURCE,
                in_paper=builder.IN_PAPER,
                layouts={layout.name: layout.expected.strip("\n") for layout in builder.LAYOUTS},
                citation=builder.CITATION,
            )
        )
    return summaries


def dataset_builder(
    name: str,
    data_dir: str | None = None,
    products: str | Sequence[str] | None = None,
    cache_dir: str | None = None,
    on_error: str = "raise",
    **options: Any,
) -> AnomalyDatasetBuilder:
    """
    Return the builder of a dataset, to inspect it before loading: `describe()`, `left_out`, `mask_source`. The
    arguments are those of [`load_anomaly_dataset`].
    """
    products = [products] if isinstance(products, str) else products
    builder = _builder_class(name)
    return builder(data_dir=data_dir, cache_dir=cache_dir, products=products, on_error=on_error, **options)


def load_anomaly_dataset(
    name: str,
    data_dir: str | None = None,
    split: str | None = None,
    products: str | Sequence[str] | None = None,
    streaming: bool = False,
    num_proc: int | None = None,
    cache_dir: str | None = None,
    on_error: str = "raise",
    **options: Any,
) -> datasets.Dataset | datasets.IterableDataset | datasets.DatasetDict | datasets.IterableDatasetDict:
    """
    Load a dataset from its unpacked download.

    Args:
        name (`str`):
            Name of the dataset, see [`list_datasets`]; "folder" for the user's own images, "synthetic" for generated
            ones.
        data_dir (`str`, *optional*): folder of the unpacked download.
        split (`str`, *optional*): "train", "test", "train+test", "test[:10%]", ...; by default a dict of all splits.
        products (`str` or `Sequence[str]`, *optional*): products to load; by default all.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to stream the rows, without preparing and caching a table; every image is one shard for workers
            and nodes.
        num_proc (`int`, *optional*): number of processes that prepare the table.
        cache_dir (`str`, *optional*): folder for the prepared table; changed files lead to a new table.
        on_error (`"raise"` or `"skip"`, *optional*, defaults to `"raise"`):
            Whether files that do not fit raise one error that lists them all, or are left out and reported.
        options: fields of the dataset's configuration, such as `split_csv` of VisA, or `layout`.

    Returns:
        `Dataset` or `IterableDataset` (or a dict of them by split) with the columns `image` (RGB), `mask` (L, 0 or
        255, or None), `label` (0 normal, 1 anomalous, -1 unknown), `product`, `defect` and `image_id`; see
        [`vcp_clip_hf.data.records`].

    Raises:
        DatasetLayoutError: the folder does not hold the dataset, or only a part of it.
        ValueError: a name, product, split or option is unknown.

    ```python
    >>> from vcp_clip_hf.data import load_anomaly_dataset

    >>> test = load_anomaly_dataset("mvtec_ad", "datasets/mvtec", split="test", products=["bottle", "cable"])
    ```
    """
    builder = dataset_builder(name, data_dir, products, cache_dir, on_error, **options)
    if streaming:
        return builder.as_streaming_dataset(split)
    builder.download_and_prepare(num_proc=num_proc)
    return builder.as_dataset(split)
