"""Registration of products and defects."""

import pytest

from vcp_clip_hf.generator import DEFECTS, PRODUCTS, defect, product


def test_names_are_registered_once():
    with pytest.raises(ValueError, match="'gear' is already registered"):
        product("gear", ("gear",), "object", "metal")
    with pytest.raises(ValueError, match="'scratch' is already registered"):
        defect("scratch", ("scratch",), ("scratched",), (0.1, 0.2))


def test_construction_faults_are_known():
    with pytest.raises(ValueError, match=r"'sprocket' has unknown faults \['lost_part'\]"):
        product("sprocket", ("sprocket",), "object", "metal", faults={"lost_part": "tooth"})
    assert "sprocket" not in PRODUCTS


def test_keys_of_products_differ():
    assert len({family.key for family in PRODUCTS.values()}) == len(PRODUCTS)


def test_a_defect_suits_kinds_and_materials():
    assert DEFECTS["scratch"].suits(PRODUCTS["gear"])
    assert DEFECTS["rust"].suits(PRODUCTS["gear"]) and not DEFECTS["rust"].suits(PRODUCTS["leather"])
