"""What people call things: normal and anomalous, masks, splits, columns."""

from collections.abc import Iterable

from .records import ANOMALOUS, NORMAL, UNKNOWN


__all__ = ["COLUMNS", "MASK_FOLDERS", "MASK_SUFFIXES", "SPLIT_NAMES", "Names", "fold"]

_NORMAL = (
    "good, ok, normal, nominal, intact, healthy, perfect, flawless, free, defect_free, defectfree, no_defect,"
    " nodefect, non_defective, negative, pass, passed"
)
_ANOMALOUS = (
    "bad, ko, ng, nok, not_ok, anomaly, anomalies, anomalous, abnormal, defect, defects, defective, damaged, faulty,"
    " fault, broken, reject, rejected, positive, fail, failed"
)
_UNKNOWN = ("", "none", "nan", "unknown", "unlabelled", "unlabeled")

MASK_FOLDERS = frozenset(
    ("ground_truth", "ground_truths", "groundtruth", "gt", "mask", "masks", "segmentation", "segmentations")
)
MASK_SUFFIXES = ("_ground_truth", "_segmentation", "_label", "_mask", "_seg", "_gt")
SPLIT_NAMES = frozenset(("train", "training", "validation", "valid", "val", "test", "testing"))

COLUMNS = {
    "image": ("image", "file_name", "filename", "image_path", "img_path", "path"),
    "mask": ("mask", "mask_file_name", "mask_path", "mask_file"),
    "label": ("label", "anomaly", "is_anomaly", "target"),
    "product": ("product", "category", "object", "cls_name"),
    "defect": ("defect", "defect_type", "anomaly_type", "specie_name"),
    "split": ("split", "subset"),
    "image_id": ("image_id", "id"),
}
"""Our columns, and the names under which they are found in tables, the first one there."""


def fold(name: str) -> str:
    """`Not-OK ` -> `not_ok`."""
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


class Names:
    """
    What the names of folders and the labels of tables mean.

    Args:
        normal (`Iterable[str]`), anomalous (`Iterable[str]`): the user's own names, which go before the usual ones.
    """

    def __init__(self, normal: Iterable[str] = (), anomalous: Iterable[str] = ()):
        own = {fold(name): NORMAL for name in normal} | {fold(name): ANOMALOUS for name in anomalous}
        usual = dict.fromkeys(_NORMAL.split(", "), NORMAL) | dict.fromkeys(_ANOMALOUS.split(", "), ANOMALOUS)
        self._meanings = usual | own

    def label(self, name: str) -> int | None:
        """0 or 1, or None where the name means neither."""
        return self._meanings.get(fold(name))

    def label_of_value(self, value) -> int | None:
        """The same for a table's cell, which may also be 0, 1, -1, a truth value or empty."""
        text = fold(str(value))
        try:
            number = float(str(value))
        except ValueError:
            truth = {"false": NORMAL, "true": ANOMALOUS, **dict.fromkeys(_UNKNOWN, UNKNOWN)}
            return truth.get(text, self.label(text))
        return {0.0: NORMAL, 1.0: ANOMALOUS, -1.0: UNKNOWN}.get(number, UNKNOWN if number != number else None)
