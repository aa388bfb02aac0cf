"""Datasets by name, and the facts about them."""

import pytest

from vcp_clip_hf.data import dataset_builder, list_datasets
from vcp_clip_hf.data.datasets_by_name import _ALIASES, _DATASETS, _builder_class

from .trees import TREES


PAPER = {"mvtec_ad", "visa", "bsd", "gc10_det", "ksdd2", "msd", "road", "rsdd", "btad", "dagm"}


def test_facts_of_all_datasets():
    cards = {card.name: card for card in list_datasets()}
    assert {name for name, card in cards.items() if card.in_paper} == PAPER
    assert set(list(cards)[:10]) == PAPER
    assert {"mpdd", "kolektor_sdd", "magnetic_tile", "mvtec_loco", "mvtec_ad_2", "dtd_synthetic", "real_iad"} <= set(
        cards
    )
    for name, card in cards.items():
        assert card.title and card.license and card.splits and card.description, name
        if name not in ("folder", "synthetic"):
            assert card.homepage.startswith("http") and "year={" in card.citation and card.products, name
            assert "official" in card.layouts
            assert ("standard" in card.layouts) == card.in_paper
    assert cards["gc10_det"].mask_source == "boxes" and cards["bsd"].mask_source == "polygons"
    assert cards["visa"].license == "CC BY 4.0"


def test_every_layout_of_every_dataset_has_a_generated_tree():
    read = {(tree.dataset, tree.layout) for tree in TREES}
    for card in list_datasets():
        if card.name not in ("folder", "synthetic"):
            assert {(card.name, layout) for layout in card.layouts} <= read


def test_names_are_found_in_all_usual_spellings():
    for name in ("MVTec-AD", "mvtec ad", "MVTEC_AD", "mvtec"):
        assert _builder_class(name).__name__ == "MVTecAD"
    for alias, name in _ALIASES.items():
        assert name in _DATASETS and alias not in _DATASETS
    with pytest.raises(ValueError, match="no dataset 'mvtec_da'; did you mean 'mvtec_ad'"):
        dataset_builder("mvtec_da")


def test_every_builder_has_a_module_of_its_own():
    """`datasets` names the cache folder after the last part of the module's name."""
    modules = [builder.__module__.rpartition(".")[2] for builder in _DATASETS.values()]
    assert len(set(modules)) == len(modules)


def test_no_two_datasets_share_products_or_citations():
    products = [(card.name, product) for card in list_datasets() for product in card.products]
    assert len(products) == len(set(products))
    citations = [card.citation for card in list_datasets() if card.citation]
    assert len(citations) == len(set(citations))
