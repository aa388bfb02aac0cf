"""Prompt ensembles: every state phrase in every template, and the mean of their text embeddings."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import torch


__all__ = ["PRODUCT_SLOT", "PromptEnsemble", "ensemble_mean", "read_prompts"]

# Place of the product in a state phrase, and of the state phrase in a template
PRODUCT_SLOT = "{}"


@cache
def _prompt_file(name: str) -> str:
    return (files(__package__) / "prompts" / f"{name}.json").read_text(encoding="utf-8")


def read_prompts(name: str) -> dict[str, Any]:
    """
    Return the prompt lists of a method, from `prompts/<name>.json`.

    Args:
        name (`str`): the method's `model_type`.
    """
    return json.loads(_prompt_file(name))


@dataclass(frozen=True)
class PromptEnsemble:
    """
    State phrases and templates.

    Args:
        normal, abnormal (`Sequence[str]`): phrases with one `{}`, the product.
        templates (`Sequence[str]`): sentences with one `{}`, the state phrase.
        templates_outer (`bool`, *optional*, defaults to `False`):
            Order of the sentences. `True`: all states in the first template, then all in the second, and so on;
            `False`: the first state in all templates, then the second, and so on.

    Raises:
        ValueError: an empty list, or a phrase without exactly one `{}`.
    """

    normal: Sequence[str]
    abnormal: Sequence[str]
    templates: Sequence[str]
    templates_outer: bool = False

    def __post_init__(self):
        for name in ("normal", "abnormal", "templates"):
            phrases = getattr(self, name)
            if not phrases:
                raise ValueError(f"A prompt ensemble needs at least one phrase in {name!r}.")
            for phrase in phrases:
                if phrase.count(PRODUCT_SLOT) != 1:
                    raise ValueError(f"The phrase {phrase!r} in {name!r} must have exactly one {PRODUCT_SLOT!r}.")

    def sentences(self, product: str) -> tuple[list[str], list[str]]:
        """
        Return the sentences of both states, normal first.

        Args:
            product (`str`): name of the product, inserted as it is.
        """
        return self._fill(self.normal, product), self._fill(self.abnormal, product)

    def _fill(self, states: Sequence[str], product: str) -> list[str]:
        phrases = [state.replace(PRODUCT_SLOT, product) for state in states]
        if self.templates_outer:
            return [template.replace(PRODUCT_SLOT, phrase) for template in self.templates for phrase in phrases]
        return [template.replace(PRODUCT_SLOT, phrase) for phrase in phrases for template in self.templates]


def ensemble_mean(embeds: torch.Tensor, normalize_first: bool = True) -> torch.Tensor:
    """
    Return the mean of an ensemble's text embeddings, L2-normalized.

    Args:
        embeds (`torch.Tensor` of shape `(num_prompts, projection_dim)`): projected, not normalized.
        normalize_first (`bool`, *optional*, defaults to `True`): whether to L2-normalize the embeddings before the
            mean, as in APRIL-GAN; WinCLIP and AnoVL do not.

    Returns:
        `torch.Tensor` of shape `(projection_dim,)`.
    """
    if normalize_first:
        embeds = torch.nn.functional.normalize(embeds, dim=-1)
    return torch.nn.functional.normalize(embeds.mean(dim=0), dim=-1)
