"""Memories of random pictures, and plain coresets, shared by tests."""

import numpy as np
import torch
from PIL import Image
from torch import nn

from vcp_clip_hf.memory_builder import MemoryBuilder
from vcp_clip_hf.memory_settings import MemorySettings
from vcp_clip_hf.references import ReferenceMemory, picture_digest, tower_weights


GRID = (3, 4)
WIDTH = 8


def unit(*shape: int) -> torch.Tensor:
    return nn.functional.normalize(torch.randn(*shape), dim=-1)


def states_of(views: int = 1, layers: int = 3, grid: tuple[int, int] = GRID) -> list[torch.Tensor]:
    """Make a residual stream: of each layer a class token and the patches."""
    return [torch.randn(views, 1 + grid[0] * grid[1], WIDTH) for _ in range(layers)]


def small_picture(seed: int, size: tuple[int, int] = (9, 7)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def memory_of(pictures: int = 3, dtype: torch.dtype = torch.float32, **settings) -> ReferenceMemory:
    """Make a memory of layers 1 and 2 of random pictures."""
    builder = MemoryBuilder(MemorySettings(**{"layers": (1, 2), **settings}))
    for seed in range(pictures):
        states = [each.to(dtype) for each in states_of()]
        builder.add(picture_digest(small_picture(seed)), states, GRID)
    return builder.finish(weight=0.3, source="line 4", conditions={"size": [48, 48]}, tower={"a.weight": 0.25})


def radius(vectors: torch.Tensor, chosen) -> float:
    """Return the largest distance of a row to its nearest chosen row."""
    centers = vectors[torch.as_tensor(chosen)].double()
    return torch.cdist(vectors.double(), centers).amin(dim=1).max().item()


def plain_k_center_fast(vectors: torch.Tensor, count: int) -> list[int]:
    """Choose the row farthest from the mean, then always that farthest from all chosen ones, by a distance matrix."""
    distances = torch.cdist(vectors.double(), vectors.double())
    chosen = [int((vectors - vectors.mean(dim=0)).norm(dim=1).argmax())]
    while len(chosen) < count:
        chosen.append(int(distances[chosen].amin(dim=0).argmax()))
    return chosen


def for_model(model: nn.Module, pixel_values: torch.Tensor, **settings) -> ReferenceMemory:
    """Make the memory of a batch of pictures."""
    settings = MemorySettings(**{"layers": tuple(model.config.memory_layers), **settings})
    builder = MemoryBuilder(settings)
    grid = tuple(length // model.config.vision_config.patch_size for length in pixel_values.shape[-2:])
    with torch.no_grad():
        states = model(pixel_values, output_hidden_states=list(settings.layers)).hidden_states
    for index in range(len(pixel_values)):
        builder.add(str(index), [None if each is None else each[index : index + 1] for each in states], grid)
    return builder.finish(weight=0.5, tower=tower_weights(model))
