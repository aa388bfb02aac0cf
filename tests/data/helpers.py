"""Helpers shared by the tests of datasets."""

from pathlib import Path

import numpy as np
import pytest

from vcp_clip_hf.data import FEATURES


# Real images are not part of the repository; tests that need them are skipped unless this folder exists
REAL = Path(__file__).parents[2].parent / "shared" / "data"


def needs_real_images(folder: Path) -> pytest.MarkDecorator:
    """Return a mark that skips a test unless this folder of real images exists."""
    return pytest.mark.skipif(
        not folder.is_dir(), reason=f"needs real images, which are not part of the repository, in {folder}"
    )


def prepared(builder) -> dict:
    """Prepare and return all splits of a builder."""
    builder.download_and_prepare()
    return builder.as_dataset()


def rows_of(dataset) -> dict[str, dict]:
    """Return the rows by id, with comparable values instead of pictures."""
    rows = {}
    for row in dataset:
        assert row["image_id"] not in rows
        rows[row["image_id"]] = {name: comparable(value) for name, value in row.items()}
    return rows


def comparable(value):
    return (value.mode, np.asarray(value).tobytes(), value.size) if hasattr(value, "mode") else value


def check_row(row: dict) -> None:
    """Check what holds for every row of every dataset."""
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
    """Return the numbers of normal, anomalous and unknown rows."""
    labels = list(dataset["label"])
    return labels.count(0), labels.count(1), labels.count(-1)
