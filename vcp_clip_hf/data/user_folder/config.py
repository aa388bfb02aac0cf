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
            Whether a table or an annotation may name files outside of the folder. Only for files that you trust.
        annotations (`str`, *optional*):
            Format of the annotations: "coco", "labelme", "yolo" or "cvat"; detected by default.
        boxes_as_masks (`bool`, *optional*, defaults to `False`):
            Whether all pixels of a bounding box are abnormal, for lines of YOLO with four numbers, and annotations of
            COCO without segmentation. If `False`, they are an error.
        line_width (`float`, *optional*): width in pixels of annotated lines; without it, lines are an error.
        ignore_labels (`Sequence[str]`, *optional*): labels of annotated shapes that do not mark a defect.
        unannotated (`"unknown"`, `"normal"` or `"error"`, *optional*, defaults to `"unknown"`):
            Label of images without an annotation, if the name of their folder does not state it.
    """

    metadata: str | None = None
    product: str | None = None
    normal_names: Sequence[str] = ()
    anomalous_names: Sequence[str] = ()
    mask_above: int | None = None
    masks_required: bool = False
    outside_files: bool = False
    annotations: str | None = None
    boxes_as_masks: bool = False
    line_width: float | None = None
    ignore_labels: Sequence[str] = ()
    unannotated: str = "unknown"

    def __post_init__(self):
        super().__post_init__()
        for name in ("normal_names", "anomalous_names", "ignore_labels"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{name}={getattr(self, name)!r} must be a list of names.")
        if self.unannotated not in ("unknown", "normal", "error"):
            raise ValueError(f'unannotated={self.unannotated!r} must be "unknown", "normal" or "error".')
        if self.line_width is not None and not 0 < self.line_width < 1000:
            raise ValueError(f"line_width={self.line_width!r} must be a number of pixels between 0 and 1000.")
