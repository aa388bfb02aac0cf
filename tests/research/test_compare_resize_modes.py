"""Comparison of the ways to bring images to the input of a model."""

import numpy as np
import pytest

from examples.research.compare_resize_modes import LEAST_PIXELS, RATIOS, SIDE, STRIPS_OF_PHOTOGRAPH, main, strips
from vcp_clip_hf.pixel_preprocessing import RESIZE_MODES


def test_strips():
    records = strips(2)
    assert len(records) == 2 * STRIPS_OF_PHOTOGRAPH and len({record["product"] for record in records}) == 2
    for index, record in enumerate(records):
        width, height = record["image"].size
        assert max(width, height) == SIDE and (height == SIDE) == (index >= STRIPS_OF_PHOTOGRAPH)
        assert RATIOS[0] - 0.01 <= SIDE / min(width, height) <= RATIOS[1] + 0.02
        assert record["label"] == index % 2 == (record["mask"] is not None)
        if record["mask"] is not None:
            assert record["mask"].size == record["image"].size
            assert (np.asarray(record["mask"]) > 0).sum() >= LEAST_PIXELS
    again = strips(2)
    assert all(a["image"].tobytes() == b["image"].tobytes() for a, b in zip(again, records, strict=True))
    with pytest.raises(ValueError, match=r"num_photographs=0 must lie in 1\.\.\d+\."):
        strips(0)


def test_the_table_has_every_way(capsys):
    table = main(["--num_photographs", "1", "--references", "2"])
    assert list(table) == ["strips", "strips, 2 references"]
    for ways in table.values():
        assert tuple(ways) == RESIZE_MODES
        values = [tuple(each.values()) for each in ways.values()]
        assert all(0 <= value <= 1 for each in values for value in each) and len(set(values)) == 3
    assert "| strips, 2 references |" in capsys.readouterr().out
