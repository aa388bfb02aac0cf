"""Normal pictures as a memory: the distance of each patch to the nearest patch of normal pictures.

The memory bank of patch tokens is that of few-shot APRIL-GAN (Chen et al. 2023, arXiv 2305.17382, section 3.3). It
holds the residual stream after chosen blocks of the image tower, neither normalized by a LayerNorm nor projected, or
the features of its convolutional stem, one bank for each layer. A patch's distance is (1 - maximum cosine) / 2, in
[0, 1]. The map is the mean over layers, multiplied by a fixed scale and limited to 1, or compared with the spacing of
normal patches (`MemorySettings.distance`).
"""

import copy
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .memory_settings import MemorySettings
from .nearest_patches import nearest_distance, nearest_ratio
from .patch_spacing import as_probability
from .patch_tokens import averaged_over_neighbors, patches_of


__all__ = ["REFERENCES_FILE", "ReferenceMemory", "check_weight", "picture_digest", "tower_weights"]

REFERENCES_FILE = "references.safetensors"

_FORMAT = 1


def picture_digest(picture: Image.Image) -> str:
    """Return a hash of the pixels of a picture, by which a reference is recognized among other pictures."""
    digest = hashlib.sha256(f"{picture.mode} {picture.size}".encode())
    digest.update(picture.tobytes())
    return digest.hexdigest()[:32]


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
