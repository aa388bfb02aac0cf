"""Captions of rendered pictures."""

import itertools

import numpy as np
import pytest

from vcp_clip_hf.generator import DEFECTS, FAULTS, PRODUCTS, possible_defects, render_sample
from vcp_clip_hf.generator.captions import ABNORMAL_STATES, NORMAL_STATES, caption, caption_words, captions


def test_captions_name_the_product_in_known_words():
    rng = np.random.default_rng(0)
    words = set(caption_words())
    for family in PRODUCTS:
        for defect in ("good", *possible_defects(family)[::3]):
            for _ in range(4):
                text = caption({"product": family, "defect": defect}, rng)
                assert any(name in text for name in PRODUCTS[family].products), text
                assert set(text.split()) <= words and "  " not in text and "{" not in text
                assert not set(text.split()) & set(ABNORMAL_STATES) or defect != "good", text


def test_captions_distinguish_normal_from_anomalous():
    for family, defect in (("gear", "missing_part"), ("ceramic_tile", "crack"), ("capsule", "print_error")):
        good, bad = set(captions(family)), set(captions(family, defect))
        assert len(good) > 100 and len(bad) > 100 and not good & bad
    assert "a photo of a cracked ceramic tile" in set(captions("ceramic_tile", "crack"))
    assert "a photo of a good gear" in set(captions("gear"))
    assert any("a missing tooth" in text for text in captions("gear", "missing_part"))
    assert not any("a leather" in text.replace("a leather hide", "") for text in captions("leather"))
    assert len(set(itertools.chain(NORMAL_STATES, ABNORMAL_STATES))) == len(NORMAL_STATES) + len(ABNORMAL_STATES)


def test_captions_accept_samples_and_refuse_unknown_names():
    sample = render_sample("gear", 0, 0, 32)
    assert any(name in caption(sample, np.random.default_rng(1)) for name in PRODUCTS["gear"].products)
    with pytest.raises(ValueError, match="Unknown product"):
        caption({"product": "car", "defect": "good"}, np.random.default_rng(1))
    with pytest.raises(ValueError, match="Unknown defect"):
        caption({"product": "gear", "defect": "sadness"}, np.random.default_rng(1))


def test_every_defect_has_words():
    for family in DEFECTS.values():
        assert family.words and family.adjectives
    assert all(FAULTS.values())
