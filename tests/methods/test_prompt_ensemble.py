"""Sentences in the right order, and both kinds of mean."""

import pytest
import torch

from vcp_clip_hf.methods.prompt_ensemble import PromptEnsemble, ensemble_mean


def test_states_are_the_outer_loop():
    ensemble = PromptEnsemble(["good {}", "{}"], ["bad {}"], ["a {}.", "the {}."])
    assert ensemble.sentences("nut") == (
        ["a good nut.", "the good nut.", "a nut.", "the nut."],
        ["a bad nut.", "the bad nut."],
    )


def test_templates_can_be_the_outer_loop():
    ensemble = PromptEnsemble(["good {}", "{}"], ["bad {}"], ["a {}.", "the {}."], templates_outer=True)
    assert ensemble.sentences("nut")[0] == ["a good nut.", "a nut.", "the good nut.", "the nut."]


def test_a_name_with_braces_is_not_filled_again():
    assert PromptEnsemble(["{}"], ["bad {}"], ["a {}."]).sentences("{}")[0] == ["a {}."]


@pytest.mark.parametrize("normal", [[], ["good"], ["{} {}"]])
def test_wrong_phrases_are_refused(normal):
    with pytest.raises(ValueError, match="normal"):
        PromptEnsemble(normal, ["bad {}"], ["a {}."])


def test_means_of_normalized_and_of_raw_embeddings():
    embeds = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    assert torch.allclose(ensemble_mean(embeds), torch.tensor([0.5**0.5, 0.5**0.5]))
    raw = torch.tensor([3.0, 1.0]) / 10**0.5
    assert torch.allclose(ensemble_mean(embeds, normalize_first=False), raw)
