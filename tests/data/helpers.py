"""What the tests of the datasets share."""

from pathlib import Path

import numpy as np

from vcp_clip_hf.data import FEATURES


# real images, where a checkout has them beside it
REAL = Path(__file__).parents[2].parent / "shared" / "data"


def prepared(builder) -> dict:
    """All splits of a builder."""
    builder.download_and_prepare()
    return builder.as_dataset()


def rows_of(dataset) -> dict[str, dict]:
    """Rows by id, with arrays instead of pictures."""
    rows = {}
    for row in dataset:
        assert row["image_id"] not in rows
        rows[row["image_id"]] = {name: comparable(value) for name, value in row.items()}
    return rows


def comparable(value):
    return (value.mode, np.asarray(value).tobytes(), value.size) if hasattr(value, "mode") else value


def check_row(row: dict) -> None:
    """What holds for every row of every dataset."""
    assert list(row) == list(FEATURES)
    assert row["image"].mode == "RGB"
    assert row["label"] in (0, 1, -1)
    assert (row["defect"] == "good") == (row["label"] == 0)
    assert row["product"] and row["image_id"]
    if row["label"] == 1:
        assert row["mask"].mode == "L"
        assert row["mask"].size == row["image"].size
        assert set(np.unique(np.asarray(row["mask"]))) == {0, 255} or np.asarray(row["mask"]).min() == 255
    else:
        assert row["mask"] is None


def counts(dataset) -> tuple[int, int, int]:
    """Normal, anomalous and unknown rows."""
    labels = list(dataset["label"])
    return labels.count(0), labels.count(1), labels.count(-1)
