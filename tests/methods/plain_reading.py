"""AnomalyCLIP and CoCoOp as their papers and code state them: slow, but easy to compare with the text.

One image at a time, eager attention, all 77 text tokens, separate projections of both streams, both states upsampled.
Tests compare the package's forward pass with this one, and `examples/research/benchmark_methods.py` measures both.
"""

import math

import torch
import torch.nn.functional as F
from transformers import CLIPModel

from tests.reference_forward import block


def embed_image(clip: CLIPModel, image: torch.Tensor, **resize) -> torch.Tensor:
    """Embed an image (3, H, W) to the input of the first block, (1 + N, d_v)."""
    vision = clip.vision_model
    patches = vision.embeddings.patch_embedding(image[None])[0]
    table = vision.embeddings.position_embedding.weight
    side = math.isqrt(len(table) - 1)
    if patches.shape[1:] != (side, side):
        grid = table[1:].view(side, side, -1).permute(2, 0, 1)[None]
        grid = F.interpolate(grid, size=patches.shape[1:], align_corners=False, **resize)
        table = torch.cat([table[:1], grid[0].flatten(1).T])
    tokens = torch.cat([vision.embeddings.class_embedding[None], patches.flatten(1).T])
    return vision.pre_layrnorm(tokens + table)


def value_attention(module, hidden_states: torch.Tensor) -> torch.Tensor:
    """Compute the attention of a CLIP layer with its values as queries and keys, (tokens, width) -> the same."""
    tokens, width = hidden_states.shape
    heads = module.v_proj(hidden_states).view(tokens, module.num_heads, -1).transpose(0, 1)
    weights = (heads @ heads.transpose(1, 2) / math.sqrt(width // module.num_heads)).softmax(dim=-1)
    return module.out_proj((weights @ heads).transpose(0, 1).reshape(tokens, width))


def encode_text(clip: CLIPModel, ids: list[int], context: torch.Tensor, deep: list[torch.Tensor]) -> torch.Tensor:
    """Encode ids with a context (m, d) after the start token, and deep prompts (t, d), to an embedding (d,)."""
    text = clip.text_model
    length = text.embeddings.position_embedding.num_embeddings
    words = text.embeddings.token_embedding.weight
    sequence = torch.cat([words[ids[:1]], context, words[ids[1 + len(context) :]]])
    padding = words[0].expand(length - len(sequence), -1)
    states = torch.cat([sequence, padding]) + text.embeddings.position_embedding.weight
    mask = torch.full((length, length), -torch.inf).triu(1)
    for index, layer in enumerate(text.encoder.layers):
        if 1 <= index <= len(deep):
            tokens = deep[index - 1].half().float()
            states = torch.cat([states[:1], tokens, states[1 + len(tokens) :]])
        states = block(layer, states, mask)
    embedding = clip.text_projection(text.final_layer_norm(states[len(ids) - 1]))
    return F.normalize(embedding, dim=-1)


def anomaly_clip(
    clip: CLIPModel,
    image: torch.Tensor,
    text: torch.Tensor,
    feature_layers: list[int],
    dpam_layer: int,
    temperature: float,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return AnomalyCLIP's pairs of layer maps, K tensors (2, H, W), and pair of image probabilities, (2,)."""
    vision = clip.vision_model
    size = image.shape[1:]
    grid = tuple(side // vision.config.patch_size for side in size)
    layers = vision.encoder.layers
    first = len(layers) - (dpam_layer - 1) + 1
    x, s, maps = embed_image(clip, image, mode="bilinear"), None, []
    for number, layer in enumerate(layers, start=1):
        if number == first:
            s = x
        if number >= first:
            s = s + value_attention(layer.self_attn, layer.layer_norm1(x))
        x = block(layer, x)
        if number in feature_layers:
            patches = clip.visual_projection(vision.post_layernorm(x if s is None else s))[1:]
            pair = (F.normalize(patches, dim=-1) @ text.T / temperature).softmax(dim=-1)
            pair = F.interpolate(pair.T.view(1, 2, *grid), size=size, mode="bilinear", align_corners=False)
            maps.append(pair[0])
    image_embed = F.normalize(clip.visual_projection(x[0]), dim=-1)
    return maps, (image_embed @ text.T / temperature).softmax(dim=-1)


def paired_focal(pair: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the focal loss of pairs of maps (B, 2, H, W) and masks (B, H, W)."""
    target = torch.stack([1 - mask, mask], dim=1).clamp(1e-5, 1 - 1e-5)
    p = (target * pair).sum(dim=1) + 1e-5
    return -((1 - p) ** 2 * p.log()).mean()


def dice(probability: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the dice loss of maps and masks (B, H, W)."""
    overlap = (probability * mask).sum(dim=(1, 2))
    total = probability.sum(dim=(1, 2)) + mask.sum(dim=(1, 2))
    return (1 - (2 * overlap + 1) / (total + 1)).mean()


def cocoop(
    clip: CLIPModel,
    image: torch.Tensor,
    prompts: list[list[int]],
    learned: dict[str, torch.Tensor],
    feature_layers: list[int],
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """
    Return the pairs of layer maps of CoCoOp for segmentation, K tensors (2, H, W), and the text embeddings (2, d).

    `learned` holds context, linear1 / linear2 / fc.i with .weight and .bias, and temperature.
    """
    vision = clip.vision_model
    size = image.shape[1:]
    grid = tuple(side // vision.config.patch_size for side in size)
    x, features = embed_image(clip, image, mode="bicubic", antialias=True), []
    for number, layer in enumerate(vision.encoder.layers, start=1):
        x = block(layer, x)
        if number in feature_layers:
            features.append(x[1:])
    image_embed = F.normalize(clip.visual_projection(vision.post_layernorm(x[0])), dim=-1)
    hidden = F.relu(F.linear(image_embed, learned["linear1.weight"], learned["linear1.bias"]))
    context = learned["context"] + F.linear(hidden, learned["linear2.weight"], learned["linear2.bias"])
    text = torch.stack([encode_text(clip, ids, context, []) for ids in prompts])
    maps = []
    for index, tokens in enumerate(features):
        projected = F.linear(tokens, learned[f"fc.{index}.weight"], learned[f"fc.{index}.bias"])
        logits = learned["temperature"].exp() * F.normalize(projected, dim=-1) @ text.T
        pair = F.interpolate(logits.T.view(1, 2, *grid), size=size, mode="bilinear", align_corners=True)
        maps.append(pair.softmax(dim=1)[0])
    return maps, text
