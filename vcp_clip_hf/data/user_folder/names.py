"""The usual names of folders, labels and columns: normal and anomalous, masks, splits."""

from collections.abc import Iterable

from ..records import ANOMALOUS, NORMAL, UNKNOWN


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
"""Our columns, and the names that they may have in tables; the first name that a table has is used."""


def fold(name: str) -> str:
    """Return a name for comparisons: `Not-OK ` -> `not_ok`."""
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


class Names:
    """
    Meaning of folder names and of labels in tables.

    Args:
        normal (`Iterable[str]`), anomalous (`Iterable[str]`):
            The user's own names. Where they contradict the usual names, they win.
    """

    def __init__(self, normal: Iterable[str] = (), anomalous: Iterable[str] = ()):
        own = {fold(name): NORMAL for name in normal} | {fold(name): ANOMALOUS for name in anomalous}
        usual = dict.fromkeys(_NORMAL.split(", "), NORMAL) | dict.fromkeys(_ANOMALOUS.split(", "), ANOMALOUS)
        self._meanings = usual | own

    def label(self, name: str) -> int | None:
        """Return 0 (normal) or 1 (anomalous), or None if the name means neither."""
        return self._meanings.get(fold(name))

    def label_of_value(self, value: object) -> int | None:
        """Return the label of a table's cell: a name, or 0, 1, -1, a truth value or empty; None for anything else."""
        text = fold(str(value))
        try:
            number = float(str(value))
        except ValueError:
            truth = {"false": NORMAL, "true": ANOMALOUS, **dict.fromkeys(_UNKNOWN, UNKNOWN)}
            return truth.get(text, self.label(text))
        return {0.0: NORMAL, 1.0: ANOMALOUS, -1.0: UNKNOWN}.get(number, UNKNOWN if number != number else None)
