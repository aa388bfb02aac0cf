"""The interface of every method: names of images, defaults, unknown arguments."""

import pytest

from vcp_clip_hf.methods import METHODS, AnomalyMethod
from vcp_clip_hf.methods.method import DEFAULT_PRODUCT


class Nameless(AnomalyMethod):
    uses_product_names = False


def test_names_of_images():
    assert AnomalyMethod.names_of_images(None, 2) == [DEFAULT_PRODUCT] * 2
    assert AnomalyMethod.names_of_images("nut", 2) == ["nut", "nut"]
    assert AnomalyMethod.names_of_images(("nut", "bolt"), 2) == ["nut", "bolt"]
    with pytest.raises(ValueError, match="1 product_names came with 2 images"):
        AnomalyMethod.names_of_images(["nut"], 2)
    with pytest.raises(ValueError, match="expected a name"):
        AnomalyMethod.names_of_images([""], 1)


def test_the_defaults_have_no_few_shot_mode_and_no_scores_over_products():
    method = AnomalyMethod()
    assert method.prompt_name("nut") == "nut" and Nameless().prompt_name("nut") == DEFAULT_PRODUCT
    assert method.scores_of_product(None, None) is None
    for call in (method.reference_banks, lambda: method.reference_tokens(None)):
        with pytest.raises(ValueError, match="AnomalyMethod has no few-shot mode"):
            call()


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match="did you mean 'references'"):
        AnomalyMethod()._refuse_unknown({"reference": 1})


def test_the_methods_of_the_tables_are_registered():
    assert set(METHODS) >= {"anomaly_clip", "anovl", "april_gan", "clip_ad", "cocoop", "musc", "saa", "winclip"}
    assert [name for name in METHODS if METHODS[name].judges_products] == ["musc"]
    assert [name for name in METHODS if not METHODS[name].works_on_any_clip] == ["saa"]
