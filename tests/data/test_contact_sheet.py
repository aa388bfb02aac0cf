import numpy as np
from PIL import Image

from examples.research import contact_sheet as example
from vcp_clip_hf.data import load_anomaly_dataset

from . import trees


def test_outlines_lie_just_outside():
    outline = example.outline(trees.MARKED, 1)
    left, top, right, bottom = trees.BOX
    expected = np.zeros_like(trees.MARKED)
    expected[top - 1 : bottom + 2, left - 1 : right + 2] = True
    assert np.array_equal(outline, expected & ~trees.MARKED)
    at_the_edge = np.zeros((5, 5), bool)
    at_the_edge[0, 0] = True
    assert example.outline(at_the_edge, 1).sum() == 3


def test_picks_are_spread_over_products_and_defects(tmp_path):
    trees.mpdd(tmp_path / "mpdd")
    dataset = load_anomaly_dataset("mpdd", tmp_path / "mpdd", split="test", cache_dir=tmp_path / "cache")
    rows = dataset.select(example.pick(dataset, 6))
    assert len(set(zip(rows["product"], rows["defect"], strict=True))) == 6
    assert example.pick(dataset, 100) == list(range(18))


def test_the_sheet_shows_the_outline(tmp_path, capsys):
    trees.mpdd(tmp_path / "mpdd")
    output = tmp_path / "sheet.png"
    arguments = ["mpdd", str(tmp_path / "mpdd"), "--split", "test", "--products", "tubes", "--side", "80"]
    arguments += ["--columns", "2", "--option", "layout=official", "--output", str(output)]
    example.main(arguments)
    sheet = np.asarray(Image.open(output))
    assert sheet.shape == (2 * (2 * trees.HEIGHT + 28 + 4), 2 * (80 + 4), 3)
    red = (sheet == example.OUTLINE).all(axis=-1)
    # two anomalous tiles of 80 pixels: the box is twice its size, and its outline one pixel wide
    left, top, right, bottom = trees.BOX
    around = 2 * (2 * (right - left + 1) + 2 * (bottom - top + 1)) + 4
    assert red.sum() == 2 * around
    assert "3 of 3 images" in capsys.readouterr().out
