"""Comparison of the ways to bring images to the input of a model."""

import numpy as np

from examples.research.compare_resize_modes import LEAST_PIXELS, RATIOS, SIDE, main, strips
from vcp_clip_hf.pixel_preprocessing import RESIZE_MODES


def test_strips():
    records = strips(12)
    for index, record in enumerate(records):
        width, height = record["image"].size
        assert max(width, height) == SIDE and (height == SIDE) == (index % 2 == 1)
        assert RATIOS[0] - 0.01 <= SIDE / min(width, height) <= RATIOS[1] + 0.02
        assert record["label"] == (index % 3 != 0) == (record["mask"] is not None)
        if record["mask"] is not None:
            assert record["mask"].size == record["image"].size
            assert (np.asarray(record["mask"]) > 0).sum() >= LEAST_PIXELS
    again = strips(3)
    assert all(a["image"].tobytes() == b["image"].tobytes() for a, b in zip(again, records[:3], strict=True))


def test_the_table_has_every_way(capsys):
    table = main(["--num_images", "6"])
    assert list(table) == ["strips"] and tuple(table["strips"]) == RESIZE_MODES
    values = [tuple(each.values()) for each in table["strips"].values()]
    assert all(0 <= value <= 1 for each in values for value in each) and len(set(values)) == 3
    assert "| strips |" in capsys.readouterr().out
