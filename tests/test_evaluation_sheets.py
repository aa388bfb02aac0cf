"""Sheets of an evaluation: which images they show, and how."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from tests.common import tiny_model
from vcp_clip_hf import VCPCLIPImageProcessor
from vcp_clip_hf.evaluation import evaluate
from vcp_clip_hf.evaluation_sheets import choose_examples, shown_example, write_sheets


def records(kinds: dict[str, int], product: str = "bolt") -> list[dict]:
    return [
        {"product": product, "label": int(kind != "good"), "defect": kind}
        for kind, count in sorted(kinds.items())
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({"blowhole": 30, "break": 20, "crack": 5, "good": 40}, {"blowhole": 1, "break": 1, "crack": 1, "good": 1}),
        ({"crack": 30, "good": 1}, {"crack": 3, "good": 1}),
        ({"crack": 9, "good": 9}, {"crack": 2, "good": 2}),
        ({"good": 9}, {"good": 4}),
        ({"a": 2}, {"a": 2}),
    ],
)
def test_every_kind_and_normal_images_are_chosen(kinds, expected):
    rows = records(kinds)
    chosen = choose_examples(rows, 4)
    assert Counter(rows[index]["defect"] for index in chosen) == expected


def test_rows_are_spread_when_there_are_more_kinds_than_rows():
    rows = records({**{f"kind_{letter}": 3 for letter in "abcdefgh"}, "good": 5})
    kinds = sorted({rows[index]["defect"] for index in choose_examples(rows, 4)})
    assert len(kinds) == 4 and kinds[0] == "good" and kinds[1] != "kind_a" and kinds[-1] >= "kind_f"
    assert len(choose_examples(rows, 1)) == 1


def test_every_product_has_its_own_examples_and_kinds_are_optional():
    rows = records({"crack": 5, "good": 5}) + records({"dent": 5}, "nut")
    assert Counter(rows[index]["product"] for index in choose_examples(rows, 3)) == {"bolt": 3, "nut": 3}
    for row in rows:
        del row["defect"]
    assert len(choose_examples(rows, 3)) == 6


def test_thin_defects_stay_visible_and_ratios_are_kept():
    mask = np.zeros((4000, 400), np.uint8)
    mask[2001] = 1
    image = Image.new("RGB", (400, 4000))
    example = shown_example(image, Image.fromarray(mask), np.zeros((4000, 400)), product="x")
    assert example["image"].size == (51, 512) and example["map"].shape == example["mask"].shape == (512, 51)
    assert example["mask"].any(axis=1).sum() in (1, 2)


def test_file_names_of_products(tmp_path):
    products = ["../up", "a/b", "a_b", "A_B", "two\nlines", "<b>", "..", "x" * 300]
    image = Image.new("RGB", (40, 30))
    examples = [
        shown_example(image, None, np.zeros((30, 40)), product=product, image_id="1", label=1, defect=None, score=0.5)
        for product in products
    ]
    write_sheets(tmp_path / "sheets", examples, {"per_product": {product: {} for product in products}})
    assert len({path.name.casefold() for path in (tmp_path / "sheets").iterdir()}) == len(products)
    assert [path.name for path in tmp_path.iterdir()] == ["sheets"]


def test_tall_pictures_are_not_squashed(tmp_path):
    """A green square in a tall image is a square on the sheet, and normal images have rows."""
    torch.manual_seed(0)
    model = tiny_model()
    picture = np.full((300, 100, 3), 90, np.uint8)
    picture[50:90, 30:70] = (10, 250, 10)
    mask = Image.fromarray(np.pad(np.full((20, 20), 255, np.uint8), ((100, 180), (40, 40))))
    dataset = [
        {
            "image": Image.fromarray(picture),
            "mask": mask if label else None,
            "label": label,
            "defect": "dent" if label else "good",
            "product": "can",
            "image_id": f"can/test/{index}",
        }
        for index, label in enumerate([1, 1, 0, 0])
    ]
    evaluate(model, VCPCLIPImageProcessor.for_model(model.config), {"cans": dataset}, sheets_dir=tmp_path)
    drawn = np.asarray(Image.open(tmp_path / "cans" / "can.png")).astype(int)
    column = drawn[:, 8 : 8 + 85]  # the images; 256 rows are 85 columns
    green = (column[..., 1] > 200) & (column[..., 0] < 60)
    assert green.any(axis=0).sum() == pytest.approx(34, abs=3)
    assert green.any(axis=1).sum() == pytest.approx(4 * 34, abs=12), "four rows of squares"
