"""Large images: overlapping tiles, prompted by the whole image, blended without seams.

Each tile is seen at the model's full resolution, so that a defect of a few pixels in a picture of many megapixels
stays visible. The text prompt comes from the whole image (one global Pre-VCP context), since what the product is
cannot be told from a tile.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from .image_processing_vcp_clip import gaussian_smooth, resize_map


__all__ = ["TiledMaps", "segment_tiles", "tile_starts"]


@dataclass
class TiledMaps:
    """
    Maps of a tiled image at its own size, float32 arrays of shape `(height, width)` in [0, 1].

    Args:
        anomaly_map: fused and smoothed.
        base_map, vcp_map: one branch each, not smoothed; only where they were asked for.
        num_tiles: how many tiles there were.
    """

    anomaly_map: np.ndarray
    base_map: np.ndarray | None
    vcp_map: np.ndarray | None
    num_tiles: int


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """
    Where tiles begin along one side: evenly spread, the last one ends at the border, neighbours share at least
    `overlap` pixels. A side shorter than a tile has one.
    """
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [round(index * (length - tile) / (count - 1)) for index in range(count)]


def _ramp(length: int, overlap: int) -> np.ndarray:
    """Weight of a tile along one side: rises over the overlap, positive everywhere."""
    positions = np.arange(length) + 0.5
    distance = np.minimum(positions, length - positions)
    return np.minimum(distance / max(overlap, 1), 1).astype(np.float32)


def _batches(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@torch.no_grad()
def segment_tiles(
    model,
    image_processor,
    image: Image.Image,
    tile_size: int,
    tile_overlap: int,
    batch_size: int = 4,
    global_weight: float = 0.0,
    prompt_input_ids: torch.LongTensor | None = None,
    smoothing_sigma: float | None = None,
    with_branches: bool = False,
) -> TiledMaps:
    """
    Segment an image tile by tile. At any time the memory holds one batch of tiles and the maps of the whole image.

    Args:
        model ([`VCPCLIPModel`]): on any device.
        image_processor ([`VCPCLIPImageProcessor`]): its size is what the model sees of a tile.
        image (`PIL.Image.Image`): mode RGB.
        tile_size (`int`): side of a tile in pixels of the image.
        tile_overlap (`int`): pixels that neighbours share at least; smaller than `tile_size`.
        batch_size (`int`, *optional*, defaults to 4): tiles in one forward pass.
        global_weight (`float`, *optional*, defaults to 0): weight of the whole image's own map, in [0, 1].
        prompt_input_ids (`torch.LongTensor`, *optional*): as in the model's forward.
        smoothing_sigma (`float`, *optional*): instead of the processor's, in pixels of the model's input.
        with_branches (`bool`, *optional*, defaults to `False`): also keep the maps of both branches.

    Returns:
        [`TiledMaps`]

    Raises:
        ValueError: tile or overlap out of range.
    """
    if tile_size < 1 or not 0 <= tile_overlap < tile_size:
        raise ValueError(f"tile_overlap={tile_overlap} must be at least 0 and below tile_size={tile_size}.")
    if not 0 <= global_weight <= 1:
        raise ValueError(f"global_weight={global_weight} must lie in [0, 1].")
    sigma = image_processor.smoothing_sigma if smoothing_sigma is None else smoothing_sigma
    options = {"return_tensors": "pt", "resize_mode": "squash"}

    def forward(pictures: list[Image.Image], image_embeds: torch.Tensor | None = None):
        pixel_values = image_processor(pictures, **options).pixel_values.to(model.device)
        return model(pixel_values, prompt_input_ids=prompt_input_ids, image_embeds=image_embeds)

    # 1. the whole image, once: its global feature prompts every tile
    height, width = image.height, image.width
    whole = forward([image])
    names = ["anomaly_map"]
    if with_branches:
        names += ["base_map"] if whole.vcp_map is None else ["base_map", "vcp_map"]
    canvases = {name: np.zeros((height, width), np.float32) for name in names}

    # 2. the tiles, a batch at a time, added with their weights
    tile_height, tile_width = min(tile_size, height), min(tile_size, width)
    tops, lefts = tile_starts(height, tile_height, tile_overlap), tile_starts(width, tile_width, tile_overlap)
    row_ramp, column_ramp = _ramp(tile_height, tile_overlap), _ramp(tile_width, tile_overlap)
    weights = row_ramp[:, None] * column_ramp
    corners = [(top, left) for top in tops for left in lefts]
    for batch in _batches(corners, batch_size):
        tiles = [image.crop((left, top, left + tile_width, top + tile_height)) for top, left in batch]
        outputs = forward(tiles, whole.image_embeds)
        for name, canvas in canvases.items():
            maps = _at_size(_smoothed(outputs, name, sigma), (tile_height, tile_width))
            for (top, left), tile_map in zip(batch, maps, strict=True):
                canvas[top : top + tile_height, left : left + tile_width] += tile_map * weights

    # 3. the weights are products of a row's and a column's, and so is their sum: two vectors, not a third canvas
    row_sum, column_sum = np.zeros(height, np.float32), np.zeros(width, np.float32)
    for top in tops:
        row_sum[top : top + tile_height] += row_ramp
    for left in lefts:
        column_sum[left : left + tile_width] += column_ramp
    for name, canvas in canvases.items():
        canvas /= row_sum[:, None]
        canvas /= column_sum
        if global_weight:
            canvas *= 1 - global_weight
            canvas += global_weight * _at_size(_smoothed(whole, name, sigma), (height, width))[0]
    return TiledMaps(
        anomaly_map=canvases["anomaly_map"],
        base_map=canvases.get("base_map"),
        vcp_map=canvases.get("vcp_map"),
        num_tiles=len(corners),
    )


def _smoothed(outputs, name: str, sigma: float) -> torch.Tensor:
    maps = outputs[name].float()
    return gaussian_smooth(maps, sigma) if name == "anomaly_map" else maps


def _at_size(maps: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """(B, h, w) -> (B, height, width) on the host."""
    return resize_map(maps, size).cpu().numpy()
