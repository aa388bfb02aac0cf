"""Normal pictures as a memory: the distance of each patch to the nearest patch of normal pictures.

The memory bank of patch tokens is that of few-shot APRIL-GAN (Chen et al. 2023, arXiv 2305.17382, section 3.3). It
holds the residual stream after chosen blocks of the image tower, neither normalized by a LayerNorm nor projected, or
the features of its convolutional stem, one bank for each layer. A patch's distance is (1 - maximum cosine) / 2, in
[0, 1]. The map is the mean over layers, multiplied by a fixed scale and limited to 1, or compared with the spacing of
normal patches (`MemorySettings.distance`), and upsampled like the model's maps. It is fused with the zero-shot map:
`(1 - weight) * zero_shot + weight * memory`, or the sigmoid of the same mean of logits
(`config.reference_fusion="logits"`). The paper of VCP-CLIP names few-shot segmentation as future work, so no published
numbers exist for this fusion.
"""

import copy
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers.utils import ModelOutput

from .autocast import no_autocast
from .convolutional_stem import STEM_LAYER, without_stem_layer
from .map_fusion import BRANCH_MAPS, fused_by_logits
from .patch_spacing import as_probability, patch_spacing, smallest_ratio


__all__ = [
    "COPIES",
    "DISTANCES",
    "REFERENCES_FILE",
    "MemoryBuilder",
    "MemorySettings",
    "ReferenceMemory",
    "ReferencedModel",
    "averaged_over_neighbors",
    "check_weight",
    "greedy_k_center",
    "nearest_distance",
    "nearest_ratio",
    "patches_of",
    "picture_digest",
    "states_of",
    "tower_weights",
    "turned_copies",
]

REFERENCES_FILE = "references.safetensors"

# Turned and mirrored copies of each reference; the picture itself is always in the memory
COPIES: dict[str, tuple[Image.Transpose, ...]] = {
    "none": (),
    "flips": (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM),
    "rotations": (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270),
    "all": tuple(Image.Transpose),
}

# Ways to convert distances to a map, see `MemorySettings`
DISTANCES = ("scaled", "relative")

# Values of one block of cosines: 64 MiB in float32
_BLOCK_VALUES = 2**24
# Width at which the coreset compares patches; wider ones are projected (Johnson-Lindenstrauss), as PatchCore does
_CORESET_WIDTH = 128
# Maps that are fused by logits are kept this far from 0 and 1: the distance of equal patches is 0
_LOGIT_EPS = 1e-4
# Number of candidates that are compared with each other at a time, for the next steps of the coreset
_CANDIDATES = 512
_FORMAT = 1


# --- distances and the coreset --------------------------------------------------------------------------------------


def nearest_distance(tokens: torch.Tensor, bank: torch.Tensor, block_values: int = _BLOCK_VALUES) -> torch.Tensor:
    """
    Compute the cosine distance of tokens to the nearest row of a bank.

    The search is one matrix product, in blocks of rows of the bank, in the dtype of the tokens; on a CPU in float32,
    because a cosine that is rounded to bfloat16 has steps of 0.004.

    Args:
        tokens (`torch.Tensor` of shape `(..., width)`): tokens, not normalized.
        bank (`torch.Tensor` of shape `(rows, width)`): unit vectors, at least one.
        block_values (`int`, *optional*, defaults to 2**24): maximum number of cosines in memory at a time.

    Returns:
        `torch.FloatTensor` of shape `(...)`: `1 - maximum cosine`, float32, in [0, 2].

    Raises:
        ValueError: the widths differ, or the bank has no row to compare with.
    """
    flat, blocks = _blocks(tokens, bank, block_values)
    with no_autocast(flat.device):
        parts = [(flat @ rows.T).amax(dim=1) for rows in blocks]
        nearest = parts[0] if len(parts) == 1 else torch.stack(parts).amax(dim=0)
        cosine = nearest.float() / _lengths(flat)
    return (1 - cosine).clamp(0, 2).view(tokens.shape[:-1])


def nearest_ratio(
    tokens: torch.Tensor, bank: torch.Tensor, spacing: torch.Tensor, block_values: int = _BLOCK_VALUES
) -> torch.Tensor:
    """
    Compute the smallest ratio over the rows of a bank: the distance of a token from a row, `(1 - cosine) / 2`, divided
    by the square root of the row's spacing.

    Args:
        tokens, bank, block_values: as in `nearest_distance`.
        spacing (`torch.FloatTensor` of shape `(rows,)`): `patch_spacing` of the rows of the bank.

    Returns:
        `torch.FloatTensor` of shape `(...)`: ratios, float32, at least 0.

    Raises:
        ValueError: as in `nearest_distance`.
    """
    flat, blocks = _blocks(tokens, bank, block_values)
    with no_autocast(flat.device):
        lengths = _lengths(flat)[:, None]
        units = spacing.to(flat.device).split(len(blocks[0]))
        parts = [
            smallest_ratio((flat @ rows.T).float() / lengths, unit) for rows, unit in zip(blocks, units, strict=True)
        ]
        nearest = parts[0] if len(parts) == 1 else torch.stack(parts).amin(dim=0)
    return nearest.view(tokens.shape[:-1])


def _blocks(
    tokens: torch.Tensor, bank: torch.Tensor, block_values: int
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Return tokens as `(tokens, width)` and blocks of rows of the bank, in the dtype that they are compared in."""
    if bank.ndim != 2 or bank.shape[-1] != tokens.shape[-1]:
        raise ValueError(
            f"Tokens of width {tokens.shape[-1]} cannot be compared with a bank of shape {tuple(bank.shape)}; expected"
            f" (rows, {tokens.shape[-1]})."
        )
    if not bank.shape[0]:
        raise ValueError("The memory has no patch to compare with: it needs at least one other picture.")
    flat = tokens.flatten(0, -2)
    flat = flat.float() if flat.device.type == "cpu" else flat
    # a traced graph accepts any number of images, so the size of its blocks is that for one image
    count = tokens.shape[-2] if torch.compiler.is_compiling() else flat.shape[0]
    return flat, bank.to(flat.device, flat.dtype).split(max(1, block_values // max(1, count)))


def _lengths(flat: torch.Tensor) -> torch.Tensor:
    return flat.float().norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)


def greedy_k_center(vectors: torch.Tensor, count: int) -> torch.Tensor:
    """
    Choose rows so that every row is near a chosen one: each step takes the row farthest from those chosen so far
    (Gonzalez 1985). The largest distance to a chosen row is at most twice the smallest possible one.

    Args:
        vectors (`torch.FloatTensor` of shape `(rows, width)`): unit vectors. Those wider than 128 are compared through
            a fixed random projection to 128.
        count (`int`): number of rows to choose.

    Returns:
        `torch.LongTensor` of shape `(min(count, rows),)`: ascending indices.
    """
    if count >= len(vectors):
        return torch.arange(len(vectors), device=vectors.device)
    chosen, _ = _farthest_first(_compared(vectors), count)
    return chosen.sort().values


def _compared(vectors: torch.Tensor) -> torch.Tensor:
    """Return vectors as the coreset compares them: float32, wide ones projected."""
    points = vectors.float()
    if points.shape[1] <= _CORESET_WIDTH:
        return points
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(points.shape[1], _CORESET_WIDTH, generator=generator) / _CORESET_WIDTH**0.5
    with no_autocast(points.device):
        return points @ projection.to(points.device)


def _squared_distances(points: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """Return the squared distance of each point to each center, `(points, centers)`; rounding can make it negative."""
    with no_autocast(points.device):
        products = points @ centers.T
    return products.mul_(-2).add_(points.square().sum(dim=1)[:, None]).add_(centers.square().sum(dim=1))


def _farthest_first(points: torch.Tensor, count: int) -> tuple[torch.Tensor, float]:
    """
    Choose points one after the other, each the farthest from those chosen before.

    The distance of a point to the chosen ones never grows. Therefore the points that are farthest now are the only
    candidates of the next steps, as long as one of them is at least as far as any other point was. These steps read
    the distances among the candidates only, and one matrix product updates all points afterwards.

    Returns:
        `tuple`: indices in the order of choice, and the largest squared distance of a point to a chosen one.
    """
    # the first row is the one farthest from the mean: the choice does not depend on the order of the pictures
    chosen = [(points - points.mean(dim=0)).square().sum(dim=1).argmax()[None]]
    nearest = _squared_distances(points, points[chosen[0]])[:, 0]
    nearest[chosen[0]] = -torch.inf
    missing = count - 1
    while missing:
        distances, candidates = nearest.topk(min(_CANDIDATES + 1, len(points)))
        rest = distances[-1].item() if len(distances) > _CANDIDATES else -torch.inf
        distances, candidates = distances[:_CANDIDATES], candidates[:_CANDIDATES]
        steps = _steps_among(distances, _squared_distances(points[candidates], points[candidates]), rest, missing)
        latest = candidates[steps.to(candidates.device)]
        nearest = torch.minimum(nearest, _squared_distances(points, points[latest]).amin(dim=1))
        nearest[latest] = -torch.inf
        chosen.append(latest)
        missing -= len(latest)
    return torch.cat(chosen), max(0.0, nearest.max().item())


def _steps_among(distances: torch.Tensor, mutual: torch.Tensor, rest: float, count: int) -> torch.Tensor:
    """Choose up to `count` candidates, while the farthest of them is at least as far as `rest`; always one."""
    values, mutual = distances.cpu().numpy().copy(), mutual.cpu().numpy()
    steps = [int(values.argmax())]
    while len(steps) < count:
        np.minimum(values, mutual[steps[-1]], out=values)
        values[steps[-1]] = -np.inf
        farthest = int(values.argmax())
        if values[farthest] < rest or values[farthest] == -np.inf:
            break
        steps.append(farthest)
    return torch.tensor(steps)


def averaged_over_neighbors(tokens: torch.Tensor, grid: tuple[int, int], side: int) -> torch.Tensor:
    """
    Replace each patch token by the mean over its neighbors in the picture; at a border, over those that exist.

    Args:
        tokens (`torch.Tensor` of shape `(batch_size, num_patches, width)`): patch tokens, row by row.
        grid (`tuple[int, int]`): rows and columns of patches.
        side (`int`): odd side of the square of neighbors; 1 returns the tokens unchanged.
    """
    if side == 1:
        return tokens
    planes = tokens.transpose(1, 2).unflatten(2, grid)
    means = nn.functional.avg_pool2d(planes, side, stride=1, padding=side // 2, count_include_pad=False)
    return means.flatten(2).transpose(1, 2)


def states_of(outputs: ModelOutput, layers: Iterable[int | str]) -> dict[int | str, torch.Tensor]:
    """
    Return the states of layers from the outputs of a model that was called with `output_hidden_states=layers`.

    Args:
        outputs (`ModelOutput`): outputs with `hidden_states` and `stem_features`.
        layers (`Iterable[int | str]`): blocks, and `"stem"`.

    Returns:
        `dict[int | str, torch.Tensor]`: layer -> residual stream `(batch_size, 1 + num_patches, width)`, class token
        first, or the stem's features `(batch_size, num_patches, 176)`.
    """
    return {layer: outputs.stem_features if layer == STEM_LAYER else outputs.hidden_states[layer] for layer in layers}


def patches_of(states: Sequence[torch.Tensor] | Mapping[int | str, torch.Tensor], layer: int | str) -> torch.Tensor:
    """Return the patch tokens of a layer: its states, as `states_of` returns them, without the class token."""
    return states[layer] if layer == STEM_LAYER else states[layer][:, 1:]


def picture_digest(picture: Image.Image) -> str:
    """Return a hash of the pixels of a picture, by which a reference is recognized among other pictures."""
    digest = hashlib.sha256(f"{picture.mode} {picture.size}".encode())
    digest.update(picture.tobytes())
    return digest.hexdigest()[:32]


def turned_copies(picture: Image.Image, copies: str) -> list[Image.Image]:
    """Return the picture and the copies of it that `copies`, a name in `COPIES`, stands for."""
    return [picture, *(picture.transpose(each) for each in COPIES[copies])]


# --- the memory -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemorySettings:
    """
    Settings that a memory is built with.

    Args:
        layers (`tuple[int | str, ...]`): blocks of the image tower whose patch tokens are kept, 1-based; 0 is the
            embedded patches. Before them may stand `"stem"`, the features of a convolutional stem. For a method with
            its own few-shot mode, the names of its banks.
        max_patches (`int`, *optional*, defaults to 10000): maximum number of patches kept of each layer. Up to it the
            memory is exact; beyond it, a greedy k-center coreset is kept.
        neighborhood (`int`, *optional*, defaults to 1): odd side of the square of patches that a token is averaged
            over, in references and in images; 1: no averaging.
        scale (`float`, *optional*, defaults to 1): factor of the distances. Distances of patches are small numbers;
            the factor brings them to the range of the zero-shot map. It has no effect on methods with their own
            few-shot mode.
        distance (`str`, *optional*, defaults to `"scaled"`): way to convert distances to a map. `"scaled"`: the mean
            over layers of the distance to the nearest normal patch, times the scale, at most 1. `"relative"`: the
            distance from each normal patch is divided by the square root of the spacing of that patch, its mean
            distance from the 16 nearest patches of its own view; r is the smallest of these ratios, as mean over
            layers, times the scale; the map is `r ** 2 / (1 + r ** 2)`, whose logit is `2 * log(r)`.
        copies (`str`, *optional*, defaults to `"none"`): turned and mirrored copies of each reference that are kept
            too: `"none"`, `"flips"` (2), `"rotations"` (by 90, 180 and 270 degrees) or `"all"` (7).

    Raises:
        ValueError: a value is out of range.
    """

    layers: tuple[int | str, ...]
    max_patches: int = 10_000
    neighborhood: int = 1
    scale: float = 1.0
    copies: str = "none"
    distance: str = "scaled"

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers or not all(isinstance(each, str) for each in self.layers):
            self._check_blocks()
        for name in ("max_patches", "neighborhood"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number, 1 or more.")
        if isinstance(self.scale, (bool, str)) or not 0 < self.scale < math.inf:
            raise ValueError(f"scale={self.scale!r} must be a positive number; 1 keeps the distances as they are.")
        object.__setattr__(self, "scale", float(self.scale))
        if self.neighborhood % 2 == 0:
            raise ValueError(f"neighborhood={self.neighborhood} must be odd, so that it has a center.")
        if not isinstance(self.copies, str) or self.copies not in COPIES:
            raise ValueError(f"copies={self.copies!r} must be one of {', '.join(map(repr, COPIES))}.")
        if self.distance not in DISTANCES:
            raise ValueError(f"distance={self.distance!r} must be one of {', '.join(map(repr, DISTANCES))}.")

    @property
    def is_relative(self) -> bool:
        """Return whether distances are compared with the spacing of normal patches."""
        return self.distance == "relative"

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as plain values; `distance` only if it is `"relative"`: earlier files do not have it."""
        values = asdict(self)
        if not self.is_relative:
            values.pop("distance", None)
        return values

    def _check_blocks(self) -> None:
        blocks = without_stem_layer(self.layers)
        if not blocks or any(isinstance(each, bool) or not isinstance(each, int) for each in blocks):
            raise ValueError(
                f"layers={self.layers!r} must be whole numbers, at least one; before them may stand {STEM_LAYER!r}."
            )
        if blocks != sorted(set(blocks)) or blocks[0] < 0:
            raise ValueError(f"layers={self.layers} must be ascending, distinct, and 0 or more.")


@dataclass(eq=False)
class ReferenceMemory:
    """
    Patch tokens of normal pictures.

    Args:
        banks (`dict[int | str, torch.Tensor]`): layer -> unit vectors `(patches, width)`, in the model's dtype.
        rows_of (`dict[int | str, torch.IntTensor]`): layer -> index of the picture that each row is from.
        settings ([`MemorySettings`]): settings that it was built with.
        pictures (`list[str]`): `picture_digest` of each picture, in order.
        num_patches (`int`): number of patches of each layer in all pictures, copies included, before a coreset is
            chosen; for a method whose banks have different numbers, that of the largest bank.
        weight (`float`, *optional*, defaults to 0.5): weight of the memory's map in the fusion, in [0, 1].
        source (`str`, *optional*): where the pictures are from, for the model card.
        conditions (`dict`, *optional*): settings of the images that the patches depend on, such as tiles.
        tower (`dict[str, float]`, *optional*): one weight of each tensor of the image tower that computed the tokens,
            by which `check_tower` recognizes another tower.
        unreadable (`list[tuple[str, str]]`, *optional*): image and message of each picture that was left out because
            it could not be read; not saved.
        spacing (`dict[int | str, torch.FloatTensor]`, *optional*): layer -> `patch_spacing` of each row, `(patches,)`;
            empty unless distances are relative.

    Raises:
        ValueError: the shapes of a layer do not fit, or the weight is out of range.
    """

    banks: dict[int | str, torch.Tensor]
    rows_of: dict[int | str, torch.Tensor]
    settings: MemorySettings
    pictures: list[str]
    num_patches: int
    weight: float = 0.5
    source: str = ""
    conditions: dict[str, Any] = field(default_factory=dict)
    tower: dict[str, float] = field(default_factory=dict)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    spacing: dict[int | str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self):
        self.weight = check_weight(self.weight)
        for layer in self.settings.layers:
            bank, rows_of = self.banks[layer], self.rows_of[layer]
            if bank.ndim != 2 or not bank.is_floating_point() or rows_of.shape != bank.shape[:1]:
                raise ValueError(
                    f"layer {layer}: tokens of shape {tuple(bank.shape)} and pictures of shape {tuple(rows_of.shape)};"
                    " expected floating-point tokens (patches, width) and pictures (patches,)"
                )
            if self.settings.is_relative:
                self._check_spacing(layer, bank)

    def _check_spacing(self, layer: int | str, bank: torch.Tensor) -> None:
        if layer not in self.spacing:
            raise ValueError(f"layer {layer}: relative distances need the spacing of its patches, and none was given")
        if self.spacing[layer].shape != bank.shape[:1]:
            raise ValueError(
                f"layer {layer}: tokens of shape {tuple(bank.shape)} and spacing of shape"
                f" {tuple(self.spacing[layer].shape)}; expected one spacing for each patch"
            )

    @property
    def exact(self) -> bool:
        """Return whether every patch of the references is kept, and not a coreset of them."""
        return max(len(bank) for bank in self.banks.values()) == self.num_patches

    @property
    def num_bytes(self) -> int:
        """Return the size of the banks in bytes."""
        return sum(bank.numel() * bank.element_size() for bank in self.banks.values())

    @cached_property
    def digest(self) -> str:
        """Return a hash of everything that results depend on, except the weight."""
        digest = hashlib.sha256(json.dumps([self.settings.to_dict(), self.conditions], sort_keys=True).encode())
        for layer in sorted(self.banks, key=lambda layer: (isinstance(layer, int), layer)):
            bank = self.banks[layer]
            digest.update(f"{layer} {tuple(bank.shape)} {bank.dtype}".encode())
            digest.update(bank.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
            if self.settings.is_relative:
                digest.update(self.spacing[layer].cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        """Return one sentence for a terminal or a model card."""
        kept = max(len(bank) for bank in self.banks.values())
        count = f"{len(self.pictures)} normal picture{'' if len(self.pictures) == 1 else 's'}"
        origin = f" from {self.source}" if self.source else ""
        extent = "all" if self.exact else f"a coreset of {kept:,}"
        layers = ", ".join(map(str, self.settings.layers))
        scale = "" if self.settings.scale == 1 else f", scale {self.settings.scale:g}"
        return (
            f"References: {count}{origin}; {extent} of {self.num_patches:,} patches in each of the layers {layers},"
            f" {self.num_bytes / 1e6:.1f} MB; {'relative distances, ' if self.settings.is_relative else ''}weight"
            f" {self.weight:g}{scale}."
        )

    def distances(
        self,
        hidden_states: Sequence[torch.Tensor | None] | Mapping[int | str, torch.Tensor],
        grid: tuple[int, int],
    ) -> torch.Tensor:
        """
        Compare the patches of a batch with the memory.

        Args:
            hidden_states (`Sequence[torch.Tensor]` or `Mapping[int | str, torch.Tensor]`): the image tower's states,
                indexed by layer, as `states_of` returns them; only the memory's layers are read.
            grid (`tuple[int, int]`): rows and columns of patches.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, *grid)`: values of the map, in [0, 1], see
            `MemorySettings.distance`.
        """
        total = 0
        for layer in self.settings.layers:
            tokens = averaged_over_neighbors(patches_of(hidden_states, layer), grid, self.settings.neighborhood)
            if self.settings.is_relative:
                found = nearest_ratio(tokens, self.banks[layer], self.spacing[layer])
            else:
                found = nearest_distance(tokens, self.banks[layer])
            total = total + found.to(tokens.device)
        if self.settings.is_relative:
            return as_probability(total * (self.settings.scale / len(self.settings.layers))).unflatten(1, grid)
        distances = total * (self.settings.scale / (2 * len(self.settings.layers)))
        return distances.clamp(max=1).unflatten(1, grid)

    def value_at(self, distance: float) -> float:
        """Return the highest value that the map can have where a patch is this far from its nearest normal patch."""
        if not self.settings.is_relative:
            return self.settings.scale * distance
        return as_probability(torch.tensor(self.settings.scale * distance / math.sqrt(self._least_spacing))).item()

    @cached_property
    def _least_spacing(self) -> float:
        return min(values.min().item() for values in self.spacing.values())

    def identity(self) -> dict[str, Any]:
        """Return what thresholds belong to: a hash of the memory, and its weight."""
        return {"memory": self.digest, "weight": self.weight}

    def differing_conditions(self, conditions: Mapping[str, Any]) -> list[str]:
        """
        Return in words which settings of images differ from those of the references.

        Args:
            conditions (`Mapping[str, Any]`): settings of the images, under the names of `self.conditions`.
        """
        return [
            f"{name} was {value!r}, is {conditions[name]!r}"
            for name, value in self.conditions.items()
            if name in conditions and conditions[name] != value
        ]

    def check_conditions(self, conditions: Mapping[str, Any]) -> None:
        """Raise a ValueError if images are prepared otherwise than the references; see `differing_conditions`."""
        differing = self.differing_conditions(conditions)
        if differing:
            raise ValueError(
                f"The references were set with other settings: {'; '.join(differing)}. Use those settings, set the"
                " references again with the settings of this call, or pass reference_weight=0 for zero-shot maps."
            )

    def for_new_picture(self, picture: Image.Image) -> "ReferenceMemory":
        """Return the memory without a picture, if that is one of the references."""
        digest = picture_digest(picture)
        return self.without(self.pictures.index(digest)) if digest in self.pictures else self

    def without(self, picture: int) -> "ReferenceMemory":
        """
        Return the memory without one of its pictures, to score that picture as a new one.

        Args:
            picture (`int`): index of the picture in `pictures`.
        """
        kept = self._copy()
        rows = {layer: rows_of != picture for layer, rows_of in self.rows_of.items()}
        kept.banks = {layer: bank[rows[layer]] for layer, bank in self.banks.items()}
        kept.rows_of = {layer: rows_of[rows[layer]] for layer, rows_of in self.rows_of.items()}
        kept.spacing = {layer: values[rows[layer]] for layer, values in self.spacing.items()}
        return kept

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "ReferenceMemory":
        """Return a memory with its banks on another device or in another dtype."""
        moved = self._copy()
        moved.banks = {layer: bank.to(device, dtype or bank.dtype) for layer, bank in self.banks.items()}
        moved.rows_of = {layer: rows.to(device) for layer, rows in self.rows_of.items()}
        moved.spacing = {layer: values.to(device) for layer, values in self.spacing.items()}
        return moved

    def with_weight(self, weight: float) -> "ReferenceMemory":
        """
        Return the memory with another weight in the fusion.

        Raises:
            ValueError: the weight is not a number in [0, 1].
        """
        self.digest  # noqa: B018 (computed here, once, and shared by all copies)
        moved = copy.copy(self)
        moved.weight = check_weight(weight)
        return moved

    def _copy(self) -> "ReferenceMemory":
        """Return a shallow copy for other banks, without what is computed from these once."""
        other = copy.copy(self)
        for name in ("digest", "_least_spacing"):
            other.__dict__.pop(name, None)
        return other

    def check_tower(self, model: nn.Module) -> None:
        """
        Raise a ValueError if a model's image tower is not the one that computed the tokens.

        One weight of each tensor is compared, with a tolerance of the rounding of bfloat16.
        """
        present = tower_weights(model)
        shared = self.tower.keys() & present.keys()
        close = [math.isclose(self.tower[name], present[name], rel_tol=0.005, abs_tol=1e-6) for name in shared]
        if not all(close) or (self.tower and not shared):
            raise ValueError(
                f"The references were computed by another image tower: {close.count(False) or 'all'} of"
                f" {len(self.tower)} compared weights differ. Set the references again with this model"
                f" (`pipe.set_references`), or delete {REFERENCES_FILE} from the checkpoint."
            )

    # --- files ------------------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike) -> Path:
        """Write the memory to `references.safetensors` in a folder; `load` reads it back bit-equal."""
        tensors = {}
        for layer, bank in self.banks.items():
            tensors[f"layer_{layer}.tokens"] = bank.detach().cpu().contiguous()
            tensors[f"layer_{layer}.picture"] = self.rows_of[layer].cpu().contiguous()
            if self.settings.is_relative:
                tensors[f"layer_{layer}.spacing"] = self.spacing[layer].cpu().contiguous()
        facts = {name: getattr(self, name) for name in _FACTS}
        facts |= {"settings": self.settings.to_dict(), "format": _FORMAT}
        # one entry: safetensors writes several in any order, and equal memories would have different files
        metadata = {"references": json.dumps(facts, sort_keys=True)}
        path = Path(folder) / REFERENCES_FILE
        unfinished = path.with_name(f".{path.name}.unfinished")
        save_file(tensors, unfinished, metadata)
        os.replace(unfinished, path)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> "ReferenceMemory":
        """
        Read a memory.

        Args:
            path (`str` or `os.PathLike`): the file that `save` wrote.

        Raises:
            ValueError: the file is damaged, or of a newer format.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not iterable)
            facts = json.loads(metadata["references"])
            if facts["format"] != _FORMAT:
                raise ValueError(f"its format is {facts['format']!r}, expected {_FORMAT}")
            settings = MemorySettings(**facts.pop("settings"))
            banks = {layer: tensors[f"layer_{layer}.tokens"] for layer in settings.layers}
            rows_of = {layer: tensors[f"layer_{layer}.picture"] for layer in settings.layers}
            spacing = {}
            if settings.is_relative:
                spacing = {layer: tensors[f"layer_{layer}.spacing"] for layer in settings.layers}
            return cls(banks, rows_of, settings, **{name: facts[name] for name in _FACTS}, spacing=spacing)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{os.fspath(path)!r} cannot be read as a memory of references ({error}). Restore the file, or delete"
                " it and set the references again."
            ) from error


def tower_weights(model: nn.Module) -> dict[str, float]:
    """
    Return one weight of each floating-point tensor of a model's image tower, quantized and offloaded ones left out.

    Args:
        model ([`VCPCLIPModel`]): model with the image tower `clip.vision_model`.
    """
    weights = {}
    for name, parameter in model.clip.vision_model.named_parameters():
        if type(parameter.data) is torch.Tensor and parameter.is_floating_point() and not parameter.is_meta:
            flat = parameter.data.reshape(-1)
            weights[name] = float(flat[len(flat) // 2])
    return weights


_NO_FACTS = ("banks", "rows_of", "settings", "unreadable", "spacing")
_FACTS = [each.name for each in fields(ReferenceMemory) if each.name not in _NO_FACTS]


def check_weight(weight: float) -> float:
    """Return the weight of a memory as a number; raise a ValueError unless it lies in [0, 1]."""
    if not isinstance(weight, Real) or isinstance(weight, bool) or not 0 <= weight <= 1:
        raise ValueError(f"reference_weight={weight!r} must lie in [0, 1]: 0 is zero-shot, 1 the memory alone.")
    return float(weight)


class MemoryBuilder:
    """
    Collect patch tokens picture by picture, in bounded memory.

    When more than twice `max_patches` rows are held, a coreset of `max_patches` of them is kept. Let r be the largest
    distance of a row to this coreset. From then on, a new row within r of the coreset is left out, so that thousands
    of pictures need few coresets.

    Args:
        settings ([`MemorySettings`]): settings of the memory.
    """

    def __init__(self, settings: MemorySettings):
        self.settings = settings
        self.pictures: list[str] = []
        self.num_patches = 0
        self._rows = {layer: _LayerRows(settings.max_patches) for layer in settings.layers}

    def add(
        self,
        picture: str,
        hidden_states: Sequence[torch.Tensor | None] | Mapping[int | str, torch.Tensor],
        grid: tuple[int, int],
    ) -> None:
        """
        Add the patches of one picture: those of the picture and its copies, or of their tiles.

        Args:
            picture (`str`): `picture_digest` of the picture.
            hidden_states (`Sequence[torch.Tensor]` or `Mapping[int | str, torch.Tensor]`): states of the views,
                indexed by layer, as `states_of` returns them.
            grid (`tuple[int, int]`): rows and columns of patches of a view.
        """
        self.add_tokens(
            picture,
            {
                layer: averaged_over_neighbors(patches_of(hidden_states, layer), grid, self.settings.neighborhood)
                for layer in self.settings.layers
            },
        )

    def add_tokens(self, picture: str, tokens: Mapping[int | str, torch.Tensor]) -> None:
        """
        Add tokens of one picture.

        Args:
            picture (`str`): `picture_digest` of the picture.
            tokens (`Mapping[int | str, torch.Tensor]`): layer or bank -> tokens `(..., width)`, not normalized; for
                relative distances `(..., num_patches, width)`, the patches of views.
        """
        if not self.pictures or self.pictures[-1] != picture:
            self.pictures.append(picture)
        index, added = len(self.pictures) - 1, 0
        for layer in self.settings.layers:
            rows = nn.functional.normalize(tokens[layer].flatten(0, -2).float(), dim=1).to(tokens[layer].dtype)
            spacing = patch_spacing(tokens[layer]).flatten() if self.settings.is_relative else None
            self._rows[layer].add(rows, index, spacing)
            added = max(added, len(rows))
        self.num_patches += added

    def finish(self, **facts: Any) -> ReferenceMemory:
        """
        Return the memory.

        Args:
            facts: further fields of [`ReferenceMemory`], such as `weight` and `source`.

        Raises:
            ValueError: no picture was added.
        """
        if not self.pictures:
            raise ValueError("References need at least one normal picture, and none was given.")
        found = {layer: rows.finish() for layer, rows in self._rows.items()}
        banks, rows_of, spacing = ({layer: each[place] for layer, each in found.items()} for place in range(3))
        facts |= {"spacing": spacing if self.settings.is_relative else {}}
        return ReferenceMemory(banks, rows_of, self.settings, self.pictures, self.num_patches, **facts)


class _LayerRows:
    """The rows of one layer that a [`MemoryBuilder`] holds, the pictures that they are from, and their spacing."""

    def __init__(self, max_rows: int):
        self.max_rows = max_rows
        self.tokens: list[torch.Tensor] = []
        self.rows_of: list[torch.Tensor] = []
        self.spacing: list[torch.Tensor] = []
        # the last coreset, and the largest squared distance to it of the rows that it was chosen from
        self.centers: torch.Tensor | None = None
        self.reach = 0.0

    def __len__(self) -> int:
        return sum(map(len, self.tokens))

    def add(self, rows: torch.Tensor, picture: int, spacing: torch.Tensor | None = None) -> None:
        spacing = rows.new_zeros(len(rows), dtype=torch.float32) if spacing is None else spacing
        if self.centers is not None:
            far = _squared_distances(_compared(rows), self.centers).amin(dim=1) > self.reach
            rows, spacing = rows[far], spacing[far]
        self.tokens.append(rows)
        self.rows_of.append(torch.full((len(rows),), picture, dtype=torch.int32, device=rows.device))
        self.spacing.append(spacing)
        if len(self) > 2 * self.max_rows:
            self._thin()

    def _thin(self) -> None:
        points = _compared(torch.cat(self.tokens))
        chosen, self.reach = _farthest_first(points, self.max_rows)
        kept = chosen.sort().values
        for parts in (self.tokens, self.rows_of, self.spacing):
            parts[:] = [torch.cat(parts)[kept]]
        self.centers = points[kept]

    def finish(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return at most `max_rows` rows, the index of the picture of each, and its spacing."""
        if len(self) > self.max_rows:
            self._thin()
        return torch.cat(self.tokens), torch.cat(self.rows_of), torch.cat(self.spacing)


# --- a model with a memory ------------------------------------------------------------------------------------------


class ReferencedModel(nn.Module):
    """
    A model together with a memory: the same `forward`, whose maps and image scores include the memory's.

    Args:
        model ([`VCPCLIPModel`]): the model, plain or accelerated.
        memory ([`ReferenceMemory`]): the memory, of this model's image tower.
    """

    def __init__(self, model: nn.Module, memory: ReferenceMemory):
        super().__init__()
        self.model = model
        self.memory = memory

    @property
    def device(self) -> torch.device:
        """Return the model's device."""
        return self.model.device

    @property
    def config(self) -> Any:
        """Return the model's configuration."""
        return self.model.config

    def forward(
        self, pixel_values: torch.FloatTensor, output_hidden_states: Sequence[int] = (), **kwargs: Any
    ) -> ModelOutput:
        """
        Compute maps with the memory.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`): images.
            output_hidden_states (`Sequence[int]`, *optional*): blocks whose hidden states are returned too.
            kwargs: further arguments of the model's `forward`.

        Returns:
            `ModelOutput` of the model, in which `anomaly_map` and the maps of the branches are fused with the memory's
            map, and `image_scores`, if the model has them, with its maximum; and `reference_map` of shape
            `(batch_size, height, width)`, float32 in [0, 1], the memory's map alone. Layer maps are the model's.
        """
        layers = list(self.memory.settings.layers)
        further = [each for each in output_hidden_states if each not in layers]
        outputs = self.model(pixel_values, output_hidden_states=[*layers, *further], **kwargs)
        height, width = pixel_values.shape[-2:]
        patch_size = self.config.vision_config.patch_size
        grid = (height // patch_size, width // patch_size)
        distances = self.memory.distances(states_of(outputs, layers), grid)
        memory_map = nn.functional.interpolate(
            distances[:, None], size=(height, width), mode="bilinear", align_corners=True
        )[:, 0]
        weight = self.memory.weight
        # a weight of 0 or 1 gives one of the maps, which logits would limit
        by_logits = getattr(self.config, "reference_fusion", "mean") == "logits" and 0 < weight < 1
        memory_logits = torch.logit(memory_map, eps=_LOGIT_EPS) if by_logits else None
        for name in ("anomaly_map", *BRANCH_MAPS):
            zero_shot = outputs.get(name)
            if zero_shot is None:
                continue
            if by_logits:
                logits = memory_logits.to(zero_shot.device)
                outputs[name] = fused_by_logits(zero_shot.float(), logits, weight, _LOGIT_EPS)
            else:
                outputs[name] = torch.lerp(zero_shot.float(), memory_map.to(zero_shot.device), weight)
        if outputs.get("image_scores") is not None:
            highest = memory_map.flatten(1).amax(dim=1).to(outputs.image_scores.device)
            outputs["image_scores"] = torch.lerp(outputs.image_scores.float(), highest, weight)
        for name in ("stem_features", "stem_cells"):
            if outputs.get(name) is not None:
                outputs[name] = None
        if not output_hidden_states:
            outputs["hidden_states"] = None
        outputs["reference_map"] = memory_map
        return outputs
