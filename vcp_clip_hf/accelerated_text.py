"""The text tower of an accelerated copy: everything that does not depend on the image is computed once.

Most tokens of a prompt come before the category tokens, and the tower is causal: their keys and values are the same
for every image.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .autocast import no_autocast
from .modeling_vcp_clip import VCPCLIPModel
from .prompted_text import insert_category_tokens, insert_deep_prompts
from .prompts import PromptPlan


__all__ = ["PREFIX_ATTENTION", "TextConstants", "prefix_attention"]

# Name of `prefix_attention` among transformers' attention implementations
PREFIX_ATTENTION = "vcp_clip_prefix"


@dataclass
class TextConstants:
    """
    What the text tower computes independently of the image, for one set of prompts.

    Args:
        plan ([`PromptPlan`]): the position of every token.
        embeddings (`torch.Tensor` of shape `(R, P - prefix, d)`): embedded words from the first category token on.
        positions (`torch.Tensor` of shape `(R, P - prefix, d)`): their position embeddings.
        deep (`torch.Tensor` of shape `(L, 1, 1, n, d)`, *optional*): the deep prompt tokens.
        keys_values (`list` of L pairs `(R, heads, prefix, d / heads)`): keys and values before the category tokens.
        text_embeds (`torch.Tensor` of shape `(1, 2, projection_dim)`, *optional*): the result, without Pre-VCP.
    """

    plan: PromptPlan
    embeddings: torch.Tensor
    positions: torch.Tensor
    deep: torch.Tensor | None
    keys_values: list[tuple[torch.Tensor, torch.Tensor]]
    text_embeds: torch.Tensor | None = None

    @classmethod
    def of(cls, model: VCPCLIPModel, prompt_ids: list[list[int]]) -> "TextConstants":
        """
        Compute the constants of a set of prompts.

        Args:
            model ([`VCPCLIPModel`]): the copy, whose text tower has the attention implementation `PREFIX_ATTENTION`.
            prompt_ids (`list[list[int]]`): token ids of each prompt.
        """
        text, plan = model.clip.text_model, PromptPlan(prompt_ids, model.config, model.device)
        # Later calls use the constants with and without autocast: they are computed in the model's own dtype
        with no_autocast(model.device):
            deep = model._deep_prompt_tokens(1, plan)
            embeddings = text.embeddings(input_ids=plan.token_ids, position_ids=plan.position_ids)
            prefix, rest = slice(0, plan.prefix_length), slice(plan.prefix_length, None)
            states, recorded = embeddings[:, prefix], []
            for index, layer in enumerate(text.encoder.layers):
                if deep is not None:
                    states = insert_deep_prompts(states[None], deep[index], plan, prefix)[0]
                states = layer(states, None, is_causal=True, recorded=recorded)
            constants = cls(
                plan=plan,
                embeddings=embeddings[:, rest],
                positions=text.embeddings.position_embedding(plan.position_ids[:, rest]),
                deep=deep,
                keys_values=recorded,
            )
            if model.pre_vcp.mini_net is None:
                # Without Pre-VCP the category tokens are constants too; `pre_vcp` does not read its argument
                no_image = torch.zeros(1, model.config.projection_dim, device=model.device, dtype=model.dtype)
                constants.text_embeds = constants.encode(model, model.pre_vcp(no_image))
        return constants

    def encode(self, model: VCPCLIPModel, category: torch.Tensor) -> torch.Tensor:
        """
        Run the text tower from the first category token on.

        Args:
            model ([`VCPCLIPModel`]): the copy.
            category (`torch.Tensor` of shape `(B, r, d)`): category tokens of each image.

        Returns:
            `torch.Tensor` of shape `(B, 2, projection_dim)`, L2-normalized, normal first.
        """
        text, plan = model.clip.text_model, self.plan
        length = plan.prefix_length
        rest = slice(length, None)
        category = category[:, plan.category_index[:, rest]] + self.positions
        states = insert_category_tokens(self.embeddings[None], category, plan, rest)
        shape = states.shape
        # Each position attends to the whole prefix, to itself, and to the positions of the rest before it
        positions = shape[2]
        mask = torch.ones(1, 1, positions, length + positions, dtype=torch.bool, device=states.device).tril(length)
        for index, layer in enumerate(text.encoder.layers):
            if self.deep is not None:
                states = insert_deep_prompts(states, self.deep[index], plan, rest)
            states = layer(states.flatten(0, 1), mask, prefix=self.keys_values[index]).view(shape)
        ends = states[:, plan.rows, plan.end - length]
        return model._project_text(text.final_layer_norm(model.prompt_norm(ends)))


def prefix_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    recorded: list[tuple[torch.Tensor, torch.Tensor]] | None = None,
    prefix: tuple[torch.Tensor, torch.Tensor] | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """
    Compute the attention of the text tower; record keys and values, or attend to recorded ones before its own.

    Args:
        query, key, value (`torch.Tensor` of shape `(sequences, heads, positions, head width)`).
        recorded (`list`, *optional*): list that the keys and values are appended to.
        prefix (pair of `torch.Tensor` of shape `(R, heads, prefix, head width)`, *optional*):
            Keys and values before those given, the same for every image; needs an `attention_mask` over both.
        module, attention_mask, scaling, kwargs: as in every attention function of transformers.
    """
    if recorded is not None:
        recorded.append((key, value))
    if prefix is not None:
        num_images = key.shape[0] // prefix[0].shape[0]
        key, value = (
            torch.cat([known.to(own).repeat(num_images, 1, 1, 1), own], dim=2)
            for known, own in zip(prefix, (key, value), strict=True)
        )
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


AttentionInterface.register(PREFIX_ATTENTION, prefix_attention)
