"""Large images: overlapping tiles, prompted by the whole image, blended without seams.

The model gets each tile at its full resolution, so that a defect of a few pixels in a picture of many megapixels stays
visible. The text prompt comes from the whole image (one global Pre-VCP context), because a tile does not show what the
product is.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .anomaly_scoring import gaussian_smooth, resize_map
from .host_copy import HostCopy, to_device
from .image_processing_vcp_clip import VCPCLIPImageProcessor
from .map_fusion import BRANCH_MAPS
from .read_ahead import read_ahead


__all__ = ["TiledMaps", "Tiling", "segment_tiles", "tile_starts", "tiles_of"]


@dataclass(frozen=True)
class Tiling:
    """
    Size, overlap and weights of tiles.

    Args:
        size (`int`): side of a tile in pixels of the image.
        overlap (`int`, *optional*, defaults to a quarter of `size`): minimum number of pixels that neighbors share.
        batch_size (`int`, *optional*, defaults to 4): tiles in one forward pass; bounds the memory.
        global_weight (`float`, *optional*, defaults to 0): weight of the map of the whole image, in [0, 1].

    Raises:
        ValueError: a value is out of range.
    """

    size: int
    overlap: int | None = None
    batch_size: int = 4
    global_weight: float = 0.0

    @classmethod
    def of(
        cls, tile_size: int | None, tile_overlap: int | None, tile_batch_size: int = 4, global_weight: float = 0.0
    ) -> "Tiling | None":
        """
        Make the tiling of a call from its arguments; `None` without `tile_size`.

        Raises:
            ValueError: a value is out of range, or is given without `tile_size`.
        """
        if tile_size is not None:
            return cls(tile_size, tile_overlap, tile_batch_size, global_weight)
        for name, value, idle in (("tile_overlap", tile_overlap, None), ("global_weight", global_weight, 0)):
            if value != idle:
                raise ValueError(
                    f"{name}={value!r} needs tile_size, the side of the tiles in pixels; without it the"
                    " image is segmented as a whole."
                )
        return None

    def __post_init__(self):
        for name, value in (("size", self.size), ("overlap", self.overlap), ("batch_size", self.batch_size)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
                raise ValueError(f"tile_{name}={value!r} must be a whole number.")
        if self.size < 1:
            raise ValueError(f"tile_size={self.size} must be 1 or more.")
        if self.overlap is None:
            object.__setattr__(self, "overlap", self.size // 4)
        if not 0 <= self.overlap < self.size:
            raise ValueError(f"tile_overlap={self.overlap} must be at least 0 and below tile_size={self.size}.")
        if self.batch_size < 1:
            raise ValueError(f"tile_batch_size={self.batch_size} must be 1 or more.")
        if not 0 <= self.global_weight <= 1:
            raise ValueError(f"global_weight={self.global_weight} must lie in [0, 1].")

    def check_input(self, height: int, width: int) -> None:
        """
        Check that the model's input has the shape of the tiles, which would be distorted otherwise.

        Args:
            height, width (`int`): size of the input in pixels.

        Raises:
            ValueError: the input is not square.
        """
        if height != width:
            raise ValueError(
                f"tile_size={self.size} makes square tiles, and the model's input is {height} pixels high and {width}"
                " wide: tiles would be distorted. Give one number as image_size (--image-size), or leave tile_size"
                " (--tile-size) out."
            )

    def settings(self) -> dict[str, int | float]:
        """Return the values that results depend on, under the names of the pipeline's arguments."""
        return {
            "tile_size": int(self.size),
            "tile_overlap": int(self.overlap),
            "global_weight": float(self.global_weight),
        }


@dataclass
class TiledMaps:
    """
    Maps of a tiled image at its own size, float32 arrays of shape `(height, width)` in [0, 1].

    Args:
        anomaly_map (`np.ndarray`): fused and smoothed map.
        base_map, vcp_map, stem_map (`np.ndarray`, *optional*): unsmoothed map of each branch, if requested.
        num_tiles (`int`): number of tiles.
        image_scores (`torch.FloatTensor` of shape `(1,)`, *optional*): the model's own score of the whole image, from
            the pass over it at the model's size; `None` for a model without one.
        reference_map (`np.ndarray`, *optional*): map of the memory, for a model with references, if branches are
            requested.
    """

    anomaly_map: np.ndarray
    base_map: np.ndarray | None
    vcp_map: np.ndarray | None
    num_tiles: int
    image_scores: torch.Tensor | None = None
    reference_map: np.ndarray | None = None
    stem_map: np.ndarray | None = None


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """
    Return the first pixels of the tiles along one side. They are evenly spread, the last tile ends at the border, and
    neighbors share at least `overlap` pixels. A side not longer than a tile has one.

    Args:
        length (`int`): pixels of the side.
        tile (`int`): pixels of a tile.
        overlap (`int`): minimum number of shared pixels, below `tile`.
    """
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [round(index * (length - tile) / (count - 1)) for index in range(count)]


def _tops_and_lefts(image: Image.Image, tiling: Tiling) -> tuple[list[int], list[int]]:
    """Return the first rows and the first columns of an image's tiles."""
    tops, lefts = (
        tile_starts(length, min(tiling.size, length), tiling.overlap) for length in (image.height, image.width)
    )
    return tops, lefts


def tiles_of(image: Image.Image, tiling: Tiling) -> Iterator[Image.Image]:
    """
    Yield the tiles of an image, row by row.

    Args:
        image (`PIL.Image.Image`): the image.
        tiling ([`Tiling`]): size and overlap of the tiles.
    """
    tops, lefts = _tops_and_lefts(image, tiling)
    height, width = min(tiling.size, image.height), min(tiling.size, image.width)
    for top in tops:
        for left in lefts:
            yield image.crop((left, top, left + width, top + height))


def _ramp(length: int, overlap: int) -> np.ndarray:
    """Return the weights of a tile along one side: rising over the overlap, positive everywhere."""
    positions = np.arange(length) + 0.5
    distance = np.minimum(positions, length - positions)
    return np.minimum(distance / max(overlap, 1), 1).astype(np.float32)


def _batches(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@torch.no_grad()
def segment_tiles(
    model: PreTrainedModel,
    image_processor: VCPCLIPImageProcessor,
    image: Image.Image,
    tiling: Tiling,
    prompt_input_ids: torch.LongTensor | None = None,
    smoothing_sigma: float | None = None,
    with_branches: bool = False,
) -> TiledMaps:
    """
    Segment an image tile by tile. At any time, the memory holds one batch of tiles and the maps of the whole image.

    Args:
        model ([`VCPCLIPModel`]): model on any device.
        image_processor ([`VCPCLIPImageProcessor`]): its size is the size at which the model gets a tile.
        image (`PIL.Image.Image`): mode RGB.
        tiling ([`Tiling`]): size, overlap and weights of the tiles.
        prompt_input_ids (`torch.LongTensor`, *optional*): prompts for the model's forward.
        smoothing_sigma (`float`, *optional*): sigma instead of the processor's, in pixels of the model's input.
        with_branches (`bool`, *optional*, defaults to `False`): whether to keep the maps of the branches too.

    Returns:
        [`TiledMaps`]
    """
    sigma = image_processor.smoothing_sigma if smoothing_sigma is None else smoothing_sigma
    options = {"return_tensors": "pt", "resize_mode": "squash"}

    def forward(pictures: list[Image.Image], image_embeds: torch.Tensor | None = None) -> ModelOutput:
        pixel_values = to_device(image_processor(pictures, **options).pixel_values, model.device)
        return model(pixel_values, prompt_input_ids=prompt_input_ids, image_embeds=image_embeds)

    # 1. the whole image: its global feature prompts every tile
    height, width = image.height, image.width
    whole = forward([image])
    names = ["anomaly_map"]
    if with_branches:
        names += [name for name in (*BRANCH_MAPS, "reference_map") if whole.get(name) is not None]
    canvases = {name: np.zeros((height, width), np.float32) for name in names}

    # 2. the tiles, one batch at a time, added with their weights
    tile_height, tile_width = min(tiling.size, height), min(tiling.size, width)
    tops, lefts = _tops_and_lefts(image, tiling)
    row_ramp, column_ramp = _ramp(tile_height, tiling.overlap), _ramp(tile_width, tiling.overlap)
    weights = row_ramp[:, None] * column_ramp
    corners = [(top, left) for top in tops for left in lefts]

    def launched(batch: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], HostCopy]:
        tiles = [image.crop((left, top, left + tile_width, top + tile_height)) for top, left in batch]
        outputs = forward(tiles, whole.image_embeds)
        maps = [resize_map(_smoothed(outputs, name, sigma), (tile_height, tile_width)) for name in canvases]
        return batch, HostCopy(maps)

    ahead = 0 if model.device.type == "cpu" else 1
    for batch, copy in read_ahead(map(launched, _batches(corners, tiling.batch_size)), ahead):
        for canvas, maps in zip(canvases.values(), copy.tensors(), strict=True):
            for (top, left), tile_map in zip(batch, maps.numpy(), strict=True):
                canvas[top : top + tile_height, left : left + tile_width] += tile_map * weights

    # 3. division by the sum of weights, which is a product of two vectors, as every weight is
    row_sum, column_sum = np.zeros(height, np.float32), np.zeros(width, np.float32)
    for top in tops:
        row_sum[top : top + tile_height] += row_ramp
    for left in lefts:
        column_sum[left : left + tile_width] += column_ramp
    for name, canvas in canvases.items():
        canvas /= row_sum[:, None]
        canvas /= column_sum
        if tiling.global_weight:
            canvas *= 1 - tiling.global_weight
            canvas += tiling.global_weight * _at_size(_smoothed(whole, name, sigma), (height, width))[0]
    return TiledMaps(
        anomaly_map=canvases["anomaly_map"],
        base_map=canvases.get("base_map"),
        vcp_map=canvases.get("vcp_map"),
        num_tiles=len(corners),
        reference_map=canvases.get("reference_map"),
        stem_map=canvases.get("stem_map"),
        image_scores=getattr(whole, "image_scores", None),
    )


def _smoothed(outputs: ModelOutput, name: str, sigma: float) -> torch.Tensor:
    maps = outputs[name].float()
    return gaussian_smooth(maps, sigma) if name == "anomaly_map" else maps


def _at_size(maps: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Resize maps (B, h, w) to (B, height, width), and move them to the CPU."""
    return resize_map(maps, size).cpu().numpy()
