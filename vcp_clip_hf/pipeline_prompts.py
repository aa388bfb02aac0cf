"""The part of the pipeline that reads words: other prompts, names of products, and names of defects."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import Pipeline

from .configuration_vcp_clip import CATEGORY_SLOT
from .defect_names import DefectNames
from .prompts import check_states_differ, check_tokenizer, tokenize_prompts


__all__ = ["PromptedPipeline"]


class PromptedPipeline(Pipeline):
    """Base class of [`AnomalySegmentationPipeline`]: a pipeline that tokenizes words for its model."""

    @property
    def _reads_names(self) -> bool:
        """Return whether the model is another method than VCP-CLIP, which reads the product's name."""
        return hasattr(self.model, "for_product")

    def _check_text(self, prompts: Any, product_name: str | None) -> None:
        """Raise a ValueError for prompts or a product name that the model does not read."""
        kind = type(self.model).__name__
        if self._reads_names and prompts is not None:
            raise ValueError(f"{kind} has prompts of its own, which `prompts` cannot replace. Give a product_name.")
        if not self._reads_names and product_name is not None:
            raise ValueError(f"product_name={product_name!r} has no effect: {kind} needs no name. Leave it out.")

    def _prompt_ids(self, prompts: dict[str, str | Sequence[str]] | None) -> torch.LongTensor | None:
        """Tokenize state words or whole templates of both states; return ids of shape (2, templates, length)."""
        if prompts is None:
            return None
        self._check_text(prompts, None)
        if not isinstance(prompts, Mapping) or set(prompts) != {"normal", "abnormal"}:
            raise ValueError(f'prompts must have the keys "normal" and "abnormal", got {prompts!r}.')
        self._check_has_tokenizer("Other prompts")
        config = self.model.config
        rows = {}
        for state, words in prompts.items():
            words = [words] if isinstance(words, str) else list(words)
            if not words or not all(isinstance(word, str) and word.strip() for word in words):
                raise ValueError(
                    f"The {state} prompts {words!r} must be words or templates with one {CATEGORY_SLOT!r}, at least"
                    " one and none of them empty."
                )
            templates = [word if CATEGORY_SLOT in word else f"a photo of a {word} {CATEGORY_SLOT}" for word in words]
            rows[state] = tokenize_prompts(templates, self.tokenizer, config.category_token_id)
        if len(rows["normal"]) != len(rows["abnormal"]):
            counts = {state: len(ids) for state, ids in rows.items()}
            raise ValueError(f"Both states need the same number of prompts, got {counts}.")
        check_states_differ(rows["normal"], rows["abnormal"])
        ids = [*rows["normal"], *rows["abnormal"]]
        length = max(map(len, ids))
        padded = [row + [row[-1]] * (length - len(row)) for row in ids]
        return torch.tensor(padded).view(2, -1, length)

    def _defect_names(self, names: Sequence[str] | Mapping[str, str]) -> DefectNames:
        """Return names of defects with their tokenized prompts."""
        if self._reads_names:
            raise ValueError(f"{type(self.model).__name__} does not name defects; leave defect_names out.")
        self._check_has_tokenizer("Names of defects")
        return DefectNames.of(names, self.tokenizer, self.model.config.category_token_id)

    def _check_has_tokenizer(self, need: str) -> None:
        if self.tokenizer is None:
            raise ValueError(
                f"{need} need the backbone's tokenizer, and this checkpoint has none. Pass tokenizer=... to the"
                " constructor of the pipeline."
            )
        check_tokenizer(self.tokenizer, self.model.config.text_config.vocab_size)
