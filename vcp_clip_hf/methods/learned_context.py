"""CLIP's text tower with a learned context after the start token (CoOp, CoCoOp, AnomalyCLIP).

Shapes: B images, R prompts of each, P positions of a sequence, m context vectors, t deep prompt tokens, d the text
width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import CLIPModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.clip.modeling_clip import CLIPEncoder


__all__ = ["ContextTextEncoder", "LearnedContext", "encode_with_context"]

# Id in the place of the context and after the end token; its embedding has no effect
_FILLER = 0


@dataclass
class LearnedContext:
    """
    Learned tokens that [`ContextTextEncoder`] inserts into the sequences, from position 1 on.

    Args:
        embeddings (`torch.Tensor` of shape `(B, 1 or R, m, d)`): context vectors, position embeddings added.
        deep (`Sequence[torch.Tensor]`): deep prompts of shape `(R, t, d)`. The first overwrites positions 1..t before
            the second block, the next one before the third block, and so on; later blocks have none.
        num_prompts (`int`): R.
    """

    embeddings: torch.Tensor
    deep: Sequence[torch.Tensor]
    num_prompts: int


class ContextTextEncoder(CLIPEncoder):
    """
    CLIP's text encoder with a learned context.

    Parameters and their names are those of `CLIPEncoder`, and without `learned_context` it is a `CLIPEncoder`.
    """

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        learned_context: LearnedContext | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """
        Run all blocks.

        Args:
            inputs_embeds (`torch.Tensor` of shape `(B * R, P, d)`): embedded words with their positions, and any
                values at the positions of the context; all prompts of the first image first.
            attention_mask (`torch.Tensor`, *optional*): mask from `CLIPTextModel`.
            learned_context ([`LearnedContext`], *optional*): tokens to insert.
            kwargs: arguments of the blocks.

        Returns:
            `BaseModelOutput` with `last_hidden_state` of shape `(B * R, P, d)`.
        """
        if learned_context is None:
            return super().forward(inputs_embeds, attention_mask, **kwargs)
        shape = (-1, learned_context.num_prompts, *inputs_embeds.shape[1:])
        states = _overwrite(inputs_embeds.view(shape), learned_context.embeddings)
        for index, layer in enumerate(self.layers):
            if 1 <= index <= len(learned_context.deep):
                states = _overwrite(states, learned_context.deep[index - 1])
            states = layer(states.flatten(0, 1), attention_mask, **kwargs).view(states.shape)
        return BaseModelOutput(last_hidden_state=states.flatten(0, 1))


def encode_with_context(
    clip: CLIPModel,
    prompt_ids: Sequence[Sequence[Sequence[int]]],
    context: torch.Tensor,
    deep: Sequence[torch.Tensor] = (),
) -> torch.Tensor:
    """
    Encode prompts with a learned context between the start token and the words.

    The sequences end at the last end token: the causal mask hides everything after it.

    Args:
        clip (`CLIPModel`): CLIP whose text encoder is a [`ContextTextEncoder`].
        prompt_ids (`Sequence[Sequence[Sequence[int]]]`): for each image, R rows of ids without padding: start token,
            words, end token.
        context (`torch.Tensor` of shape `(B, 1 or R, m, d)`): context vectors; position embeddings are added.
        deep (`Sequence[torch.Tensor]`, *optional*): deep prompts as in [`LearnedContext`].

    Returns:
        `torch.Tensor` of shape `(B, R, projection_dim)`: text embeddings, L2-normalized.

    Raises:
        ValueError: a sequence is longer than the text tower allows.
    """
    text, device, num_context = clip.text_model, context.device, context.shape[2]
    filler = [_FILLER] * num_context
    rows = [[row[0], *filler, *row[1:]] for rows_of_image in prompt_ids for row in rows_of_image]
    length, limit = max(map(len, rows)), text.config.max_position_embeddings
    if length > limit:
        raise ValueError(
            f"A prompt has {length} tokens with its {num_context} context vectors, more than"
            f" max_position_embeddings={limit}. Use a shorter product name or fewer context vectors."
        )
    outputs = text(
        input_ids=torch.tensor([[*row, *[_FILLER] * (length - len(row))] for row in rows], device=device),
        learned_context=LearnedContext(
            embeddings=text.embeddings(
                inputs_embeds=context, position_ids=torch.arange(1, 1 + num_context, device=device)
            ),
            deep=deep,
            num_prompts=len(prompt_ids[0]),
        ),
        output_hidden_states=False,
        output_attentions=False,
    )
    ends = torch.tensor([len(row) - 1 for row in rows], device=device)
    at_end = outputs.last_hidden_state[torch.arange(len(rows), device=device), ends]
    embeds = nn.functional.normalize(clip.text_projection(at_end), dim=-1)
    return embeds.unflatten(0, (len(prompt_ids), -1))


def _overwrite(states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Replace the positions after the start token: (B, R, P, d) by (B, 1 or R, n, d) or (R, n, d)."""
    count = tokens.shape[-2]
    tokens = tokens.to(states).expand(*states.shape[:2], -1, -1)
    return torch.cat([states[:, :, :1], tokens, states[:, :, 1 + count :]], dim=2)
