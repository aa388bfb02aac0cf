"""Names of regions: the one of several given names that fits the patches of a region best, zero-shot.

The patches of a region are compared with texts such as "a photo of a {} with a scratch", in the way in which the base
branch compares them with its two states (equation 3). No part of VCP-CLIP is trained to tell kinds of defects apart:
the names are only as good as the text features of the CLIP backbone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from .configuration_vcp_clip import CATEGORY_SLOT
from .connected_components import label_components
from .prompts import tokenize_prompts


__all__ = ["DefectNames", "name_logits", "name_regions"]

_TEMPLATE = "a photo of a {} with a "


@dataclass(frozen=True)
class DefectNames:
    """
    Names of defects, with the prompts that describe them.

    Args:
        names (`tuple[str, ...]`): names, at least two.
        prompts (`tuple[str, ...]`): prompt of each name, with one `{}`.
        prompt_ids (`tuple[tuple[int, ...], ...]`): token ids of each prompt, without padding.
    """

    names: tuple[str, ...]
    prompts: tuple[str, ...]
    prompt_ids: tuple[tuple[int, ...], ...]

    @classmethod
    def of(
        cls, names: Sequence[str] | Mapping[str, str], tokenizer: PreTrainedTokenizerBase, category_token_id: int
    ) -> "DefectNames":
        """
        Make the prompts of names.

        Args:
            names (`Sequence[str]` or `Mapping[str, str]`): nouns such as `["scratch", "hole"]`, or name -> whole
                template with one `{}`.
            tokenizer (`PreTrainedTokenizerBase`): tokenizer of the CLIP backbone.
            category_token_id (`int`): id that marks the category slot.

        Raises:
            ValueError: fewer than two names, an empty or repeated one, or a word that the vocabulary cannot spell.
        """
        listed = [names] if isinstance(names, str) else list(names)
        if len(listed) < 2 or not all(isinstance(each, str) and each.strip() for each in listed):
            raise ValueError(
                f"defect_names={names!r} must be two names or more to choose from, and none of them empty, such as"
                " ['scratch', 'hole']."
            )
        prompts = [names[each] if isinstance(names, Mapping) else f"{_TEMPLATE}{each.strip()}" for each in listed]
        if len(set(listed)) < len(listed) or len(set(prompts)) < len(prompts):
            raise ValueError(f"defect_names={names!r} repeats a name or a prompt; give each of them once.")
        for name in listed:
            if not isinstance(names, Mapping) and CATEGORY_SLOT in name:
                raise ValueError(
                    f"The name {name!r} has a {CATEGORY_SLOT!r}. To give whole templates, pass a dictionary:"
                    " defect_names={'hole': 'a photo of a {} with a hole'}."
                )
        rows = tokenize_prompts(prompts, tokenizer, category_token_id)
        return cls(tuple(listed), tuple(prompts), tuple(map(tuple, rows)))


def name_logits(model: nn.Module, outputs: ModelOutput, names: DefectNames, grid: tuple[int, int]) -> torch.Tensor:
    """
    Compare patches with names.

    Args:
        model ([`VCPCLIPModel`]): the model, plain or accelerated.
        outputs ([`VCPCLIPOutput`]): its outputs, with the hidden states of its feature layers.
        names ([`DefectNames`]): names.
        grid (`tuple[int, int]`): patches in a column and in a row.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_names, grid height, grid width)`: cosine of each patch and the
        text of each name, mean over the feature layers, multiplied by the temperature of the base branch.
    """
    texts = [
        _embed_pair(model, outputs.image_embeds, names.prompt_ids, first) for first in range(0, len(names.names), 2)
    ]
    text = torch.cat(texts, dim=1)[:, : len(names.names)].float()
    cosines = []
    for layer, projection in zip(model.config.feature_layers, model.feature_projections, strict=True):
        tokens = projection(outputs.hidden_states[layer][:, 1:]).float().to(text.device)
        cosines.append(nn.functional.normalize(tokens, dim=-1) @ text.transpose(1, 2))
    logits = model.base_logit_scale.float().exp() * torch.stack(cosines).mean(dim=0)
    return logits.transpose(1, 2).unflatten(2, grid)


def _embed_pair(
    model: nn.Module, image_embeds: torch.Tensor, rows: Sequence[Sequence[int]], first: int
) -> torch.Tensor:
    """Embed two prompts in place of the two states, (B, 2, d); the last prompt of an odd number is repeated."""
    pair = [list(rows[first]), list(rows[min(first + 1, len(rows) - 1)])]
    length = max(map(len, pair))
    ids = torch.tensor([[row + [row[-1]] * (length - len(row))] for row in pair])
    return model.encode_text(image_embeds, ids)


def name_regions(
    regions: Sequence[dict[str, Any]], mask: np.ndarray, logits: np.ndarray, names: Sequence[str]
) -> list[dict[str, Any]]:
    """
    Name regions. The logits of a region are the mean over its pixels.

    Args:
        regions (sequence of `dict`): result of `find_regions`.
        mask (`np.ndarray` of shape `(height, width)`, bool): mask that they were found in.
        logits (`np.ndarray` of shape `(num_names, h, w)`, float32): logits of the image's area, at any size.
        names (`Sequence[str]`): names.

    Returns:
        `list[dict]`: the regions with `name` (`str`), the most probable one, and `name_probability` (`float`), the
        softmax over the names, in [1 / num_names, 1].
    """
    labels, _ = label_components(mask)
    named = []
    for region in regions:
        shares = _shares(labels, region, logits.shape[1:])
        means = (logits * shares).sum(axis=(1, 2)) / shares.sum()
        weights = np.exp(means - means.max())
        best = int(weights.argmax())
        named.append({**region, "name": names[best], "name_probability": float(weights[best] / weights.sum())})
    return named


def _shares(labels: np.ndarray, region: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Return the share of each cell of a grid over the image that a region covers, (h, w)."""
    column, row = region["polygon"][0]  # the first edge goes to the right, with the region below it
    inside = (labels == labels[row, column]).astype(np.float32)
    # BOX and not BILINEAR: each pixel counts once, and the smallest region covers something
    return np.asarray(Image.fromarray(inside).resize(size[::-1], Image.Resampling.BOX))
