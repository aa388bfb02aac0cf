"""Selections of products and defects."""

import pytest

from vcp_clip_hf.generator import (
    DEFECTS,
    FAULTS,
    PRODUCTS,
    SEEN_DEFECTS,
    SEEN_PRODUCTS,
    UNSEEN_DEFECTS,
    UNSEEN_PRODUCTS,
    possible_defects,
    select_products,
)


def test_splits_are_large_and_disjoint():
    assert len(PRODUCTS) >= 60 and len(DEFECTS) + len(FAULTS) >= 40
    assert not set(SEEN_PRODUCTS) & set(UNSEEN_PRODUCTS) and not set(SEEN_DEFECTS) & set(UNSEEN_DEFECTS)
    assert set(SEEN_PRODUCTS) | set(UNSEEN_PRODUCTS) == set(PRODUCTS)
    assert set(SEEN_DEFECTS) | set(UNSEEN_DEFECTS) == {*DEFECTS, *FAULTS}
    for names in (SEEN_PRODUCTS, UNSEEN_PRODUCTS):
        assert {PRODUCTS[name].kind for name in names} == {"texture", "object"}
    seen, unseen = ({PRODUCTS[name].products[0] for name in names} for names in (SEEN_PRODUCTS, UNSEEN_PRODUCTS))
    assert not seen & unseen


def test_every_construction_fault_is_used():
    assert {fault for family in PRODUCTS.values() for fault in family.faults} == set(FAULTS)


def test_every_product_can_have_several_seen_defects():
    for family in PRODUCTS:
        assert len(possible_defects(family, SEEN_DEFECTS)) >= 5


def test_products_are_selected_by_split_or_name():
    assert select_products("seen") == SEEN_PRODUCTS and select_products("unseen") == UNSEEN_PRODUCTS
    assert set(select_products("all")) == set(PRODUCTS)
    assert select_products("gear") == ("gear",) and select_products(["gear", "nut"]) == ("gear", "nut")
    for wrong in ("geer", ["gear", "geer"], []):
        with pytest.raises(ValueError, match="Unknown product families"):
            select_products(wrong)


def test_defects_suit_the_material():
    assert "loose_thread" in possible_defects("woven_fabric") and "loose_thread" not in possible_defects("washer")
    assert "missing_part" in possible_defects("gear") and "missing_part" not in possible_defects("shaft")
    assert possible_defects("washer", ["scratch", "loose_thread"]) == ("scratch",)
