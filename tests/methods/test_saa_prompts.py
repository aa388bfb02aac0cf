"""Knowledge of SAA+ about products: the authors' values, defaults, wrong values."""

import pytest

from vcp_clip_hf.methods.prompt_ensemble import read_prompts
from vcp_clip_hf.methods.saa_prompts import ProductKnowledge, find_knowledge


def test_products_of_the_authors():
    nut = find_knowledge("metal nut")
    assert nut.captions == (
        ("defect on metal_nut", "metal_nut"),
        ("damage on metal_nut", "metal_nut"),
        ("flaw on metal_nut", "metal_nut"),
        ("blue defect. black defect. red defect. scratch.", "nut"),
    )
    assert (nut.object_phrase, nut.num_objects, nut.max_masks, nut.max_area_fraction) == ("metal_nut,", 1, 5, 1.0)
    assert find_knowledge("Metal-Nut") == nut
    candle, gum = find_knowledge("candle"), find_knowledge("chewinggum")
    assert (candle.num_objects, candle.max_masks, candle.max_area_fraction) == (4, 1, 0.3)
    # the sentence of this product has no comma
    assert (gum.object_phrase, gum.max_masks) == ("chewinggum", 50)


def test_magnetic_tiles_have_values_of_their_own():
    assert find_knowledge("mtd").object_phrase == "mtd," and find_knowledge("ksdd2").object_phrase == "ksdd2,"


def test_every_product_of_the_file_is_valid():
    products = read_prompts("saa")["products"]
    assert len(products) == 15 + 12 + 2
    for name in products:
        assert len(find_knowledge(name).captions) == 3 + len(products[name]["prompts"])


def test_other_products():
    assert find_knowledge("left door") == ProductKnowledge(
        tuple((f"{kind} on left door", "left door") for kind in ("defect", "damage", "flaw")), "left door,"
    )
    door = find_knowledge("left door", {"Left-door": {"max_masks": 2}})
    assert door.captions[0] == ("defect on left door", "left door") and door.max_masks == 2
    gear = find_knowledge("gear", {"gear": {"prompts": [["crack.", "gear"]], "num_objects": 2}})
    assert gear.captions[-1] == ("crack.", "gear") and (gear.num_objects, gear.max_masks) == (2, 5)


@pytest.mark.parametrize(
    ("values", "words"), [({"masks": 3}, "has the keys"), ({"num_objects": 0}, "must be at least 1")]
)
def test_wrong_values_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        find_knowledge("gear", {"gear": values})
