"""The options of a folder of the user's own images."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import AnomalyDatasetConfig


__all__ = ["AnomalyFolderConfig"]


@dataclass(eq=False)
class AnomalyFolderConfig(AnomalyDatasetConfig):
    """
    Options of [`AnomalyFolder`], in addition to those of [`AnomalyDatasetConfig`].

    Args:
        layout (`str`, *optional*): name of one of the layouts of [`AnomalyFolder`]; detected by default.
        metadata (`str`, *optional*):
            Name of a CSV or JSONL file inside the folder; by default `metadata.csv` or `metadata.jsonl`, if it exists.
        product (`str`, *optional*, defaults to the folder's name): product of images for which nothing names one.
        normal_names (`Sequence[str]`, *optional*): further names of folders and labels that mean normal.
        anomalous_names (`Sequence[str]`, *optional*): further names of folders and labels that mean anomalous.
        mask_above (`int`, *optional*):
            Mask values above it are abnormal. Without it, a mask must not have more than two values, 0 and another.
        masks_required (`bool`, *optional*, defaults to `False`): whether an anomalous image must have a mask.
        outside_files (`bool`, *optional*, defaults to `False`):
            Whether a table may name files outside of the folder. Only for tables that you trust.
    """

    metadata: str | None = None
    product: str | None = None
    normal_names: Sequence[str] = ()
    anomalous_names: Sequence[str] = ()
    mask_above: int | None = None
    masks_required: bool = False
    outside_files: bool = False

    def __post_init__(self):
        super().__post_init__()
        for name in ("normal_names", "anomalous_names"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{name}={getattr(self, name)!r} must be a list of names.")
