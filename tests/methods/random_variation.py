"""Random sizes and settings, so that nothing in a method fits one set of them only."""

import random

import torch
from transformers import CLIPModel

from tests.common import tiny_clip


def random_clip(draw: random.Random) -> tuple[CLIPModel, int]:
    """Return a tiny CLIP of random sizes with lively weights, and the side of its input in pixels."""
    heads, text_heads = draw.choice([1, 2, 4]), draw.choice([1, 2])
    patch_size, grid = draw.choice([4, 8]), draw.randint(2, 5)
    act, width = draw.choice(["gelu", "quick_gelu"]), draw.choice([16, 24, 32])
    vision = {
        "hidden_size": heads * draw.choice([8, 16]),
        "intermediate_size": draw.choice([24, 40]),
        "num_hidden_layers": draw.randint(2, 7),
        "num_attention_heads": heads,
        "patch_size": patch_size,
        "image_size": patch_size * grid,
        "hidden_act": act,
        "projection_dim": width,
    }
    text = {
        "hidden_size": text_heads * draw.choice([8, 12]),
        "intermediate_size": 40,
        "num_hidden_layers": draw.randint(2, 5),
        "num_attention_heads": text_heads,
        "hidden_act": act,
        "projection_dim": width,
    }
    clip = tiny_clip(text=text, vision=vision, projection_dim=width)
    with torch.no_grad():
        for name, parameter in clip.named_parameters():
            if parameter.ndim > 1:
                # CLIP's own initialization is so small that all patches look alike
                parameter.normal_(std=1.0 if "position" in name else 2 * parameter[0].numel() ** -0.5)
            elif "norm" not in name and "logit_scale" not in name:
                parameter.normal_(std=0.1)
    return clip, patch_size * draw.randint(2, 6)


def random_layers(draw: random.Random, depth: int) -> list[int]:
    """Return one to three different blocks of a tower, ascending."""
    return sorted(draw.sample(range(1, depth + 1), draw.randint(1, min(3, depth))))
