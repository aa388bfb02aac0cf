"""Mutual scoring of unlabeled pictures (MuSc, Li et al., ICLR 2024): patches that are rare among them are abnormal.

Every patch of every picture is compared with the patches of all other pictures of one product. A normal patch has a
close match in most of them, an abnormal patch in none. The numbers are those of the authors' code (xrli-U/MuSc).

Results are transductive: they depend on the set of pictures, by design.

Shapes use N pictures, P = h * w patches of a picture, h x w the grid of patches, D the width of a token, K layers, R
degrees of aggregation and E the width of an image embedding.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from .autocast import no_autocast
from .convolutional_stem import STEM_LAYER, without_stem_layer
from .patch_tokens import patches_of
from .tensor_store import TensorStore


__all__ = [
    "FEWEST_PICTURES",
    "MEMORY_LIMIT",
    "MutualCost",
    "MutualScores",
    "MutualScoring",
    "Patches",
    "lnamd",
    "mutual_scores",
    "mutual_scoring_cost",
    "patch_scores",
    "raise_to_image",
    "rscin",
    "score_together",
]

# With fewer, the nearest 30 % of the other pictures are less than one
FEWEST_PICTURES = 5
# Bytes of each large array that are kept in memory; what exceeds them goes to a temporary file
MEMORY_LIMIT = 2**30
# Bytes of all tensors in one comparison of blocks, and of one product: on a CPU, a product should fit into the cache
_CPU_BLOCK, _CPU_PRODUCT = 2**28, 2**22
_GPU_BLOCK, _GPU_PRODUCT = 2**31, 2**29
_LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class MutualScoring:
    """
    Settings of mutual scoring; the defaults are those of the authors for MVTec-AD.

    Args:
        layers (`Sequence[int | str]`, *optional*): blocks of the image tower whose patch tokens are compared, counted
            from 1; 0 is the embedded patches. Before them may stand `"stem"`, the features of a convolutional stem.
            Default: the feature layers of the model.
        degrees (`Sequence[int]`, *optional*, defaults to `(1, 3, 5)`): sides of the neighborhoods that patch tokens
            are averaged over, odd.
        interval (`tuple[float, float]`, *optional*, defaults to `(0.0, 0.3)`): part of the other pictures, from the
            most similar one to the least similar one, whose distances are averaged.
        subset_size (`int`, *optional*): number of pictures that are compared with each other, at least 10. Default:
            all of them.
        rescore_neighbors (`Sequence[int]`, *optional*, defaults to `(1, 2, 3)`): numbers of similar pictures that the
            score of an image is averaged over (RsCIN), itself included; the authors use `(1, 8, 9)` for VisA. Empty:
            the score of an image is the maximum of its map.
        zero_shot_weight (`float`, *optional*, defaults to 0): weight of the zero-shot map in the fused map, in [0, 1].

    Raises:
        ValueError: a value is out of range.
    """

    layers: Sequence[int | str] | None = None
    degrees: Sequence[int] = (1, 3, 5)
    interval: tuple[float, float] = (0.0, 0.3)
    subset_size: int | None = None
    rescore_neighbors: Sequence[int] = (1, 2, 3)
    zero_shot_weight: float = 0.0

    def __post_init__(self):
        for name in ("layers", "degrees", "interval", "rescore_neighbors"):
            value = getattr(self, name)
            object.__setattr__(self, name, value if value is None else tuple(value))
        if self.layers != (STEM_LAYER,):
            _check_counts("layers", self.layers and without_stem_layer(self.layers), 0)
        _check_counts("degrees", self.degrees, 1)
        if not all(degree % 2 for degree in self.degrees):
            raise ValueError(
                f"degrees={self.degrees} must be odd, so that each neighborhood has a patch in its center."
            )
        if len(self.interval) != 2 or not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise ValueError(f"interval={self.interval} must be (low, high) with 0 <= low < high <= 1.")
        if self.subset_size is not None and self.subset_size < 2 * FEWEST_PICTURES:
            raise ValueError(
                f"subset_size={self.subset_size} must be at least {2 * FEWEST_PICTURES}, so that every subset has"
                f" {FEWEST_PICTURES} images."
            )
        if self.rescore_neighbors:
            _check_counts("rescore_neighbors", self.rescore_neighbors, 1)
        if not 0 <= self.zero_shot_weight <= 1:
            raise ValueError(f"zero_shot_weight={self.zero_shot_weight} must lie in [0, 1].")

    def on(self, feature_layers: Sequence[int], num_layers: int) -> "MutualScoring":
        """
        Return the settings for a model: its feature layers stand for missing `layers`.

        Args:
            feature_layers (`Sequence[int]`): layers to use if none were chosen.
            num_layers (`int`): blocks of the image tower.

        Raises:
            ValueError: the image tower does not have a chosen layer.
        """
        layers = tuple(feature_layers) if self.layers is None else self.layers
        if max(without_stem_layer(layers), default=0) > num_layers:
            raise ValueError(f"layers={layers}: the image tower has {num_layers} blocks.")
        return MutualScoring(**{**asdict(self), "layers": layers})

    def settings(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def subset_sizes(self, num_pictures: int) -> list[int]:
        """Return the sizes of the subsets that pictures are divided into, in order; they differ by 1 at most."""
        parts = 1 if self.subset_size is None else max(1, math.ceil(num_pictures / self.subset_size))
        return [num_pictures // parts + (part < num_pictures % parts) for part in range(parts)]


def _check_counts(name: str, values: Sequence[int] | None, lowest: int) -> None:
    if values is None:
        return
    if not values or len(set(values)) < len(values) or not all(isinstance(value, int) for value in values):
        raise ValueError(f"{name}={values!r} must be different whole numbers, at least one.")
    if min(values) < lowest:
        raise ValueError(f"{name}={values!r} must be {lowest} or more.")


# --- what it costs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MutualCost:
    """
    Cost of judging pictures together.

    Args:
        pictures (`int`): number of pictures.
        comparisons (`int`): pairs of pictures, counted once for each layer and degree.
        flops (`int`): floating-point operations of the products, two for each multiplication.
        token_bytes (`int`): patch tokens of one subset.
        distance_bytes (`int`): distances of one subset, for one layer and degree.
    """

    pictures: int
    comparisons: int
    flops: int
    token_bytes: int
    distance_bytes: int

    def describe(self) -> str:
        """Return the cost in one line."""
        return (
            f"{self.pictures} images together: {self.comparisons:,} comparisons of two images,"
            f" {self.flops / 1e12:,.3g} TFLOP; {self.token_bytes / 2**20:,.0f} MiB of patch tokens and"
            f" {self.distance_bytes / 2**20:,.0f} MiB of distances. In one set, twice the images take four times as"
            " long; subset_size limits this."
        )


def mutual_scoring_cost(
    num_pictures: int,
    grid: tuple[int, int],
    width: int | Sequence[int],
    scoring: MutualScoring,
    token_bytes: int = 4,
) -> MutualCost:
    """
    Return the cost of [`mutual_scores`] over all layers and degrees, without computing it.

    A set of N pictures with P patches of width D needs `N * (N - 1) / 2` products of `2 * P * P * D` operations for
    each layer and degree: one product gives the distances in both directions.

    Args:
        num_pictures (`int`): number of pictures.
        grid (`tuple[int, int]`): patches in a column and in a row.
        width (`int` or `Sequence[int]`): width of the patch tokens of all layers, or of each.
        scoring ([`MutualScoring`]): settings, with layers.
        token_bytes (`int`, *optional*, defaults to 4): bytes of one number in the stored tokens.
    """
    patches = grid[0] * grid[1]
    sizes = scoring.subset_sizes(num_pictures)
    largest, pairs = max(sizes), sum(size * (size - 1) // 2 for size in sizes) * len(scoring.degrees)
    total_width = width * len(scoring.layers) if isinstance(width, int) else sum(width)
    return MutualCost(
        pictures=num_pictures,
        comparisons=pairs * len(scoring.layers),
        flops=pairs * 2 * patches * patches * total_width,
        token_bytes=largest * patches * total_width * token_bytes,
        distance_bytes=largest * largest * patches * 4,
    )


# --- patches against the patches of other pictures ------------------------------------------------------------------


class Patches(Protocol):
    """Patch tokens of many pictures, read in slices: a tensor of shape (N, P, D), or an object that reads a file."""

    def __len__(self) -> int:
        """Return the number of pictures."""

    def __getitem__(self, pictures: slice) -> torch.Tensor:
        """Return the tokens of consecutive pictures, `(n, P, D)`, on the device that computes."""


@torch.no_grad()
def lnamd(tokens: torch.Tensor, grid: tuple[int, int], degree: int) -> torch.Tensor:
    """
    Average patch tokens over their neighborhoods (LNAMD): one LayerNorm over all values of a picture, the mean of
    `degree` x `degree` patches with zeros around the grid, and L2 normalization.

    Args:
        tokens (`torch.Tensor` of shape `(B, P, D)`): patch tokens without the class token, row by row.
        grid (`tuple[int, int]`): patches in a column and in a row.
        degree (`int`): side of the neighborhood, odd; 1 averages nothing.

    Returns:
        `torch.FloatTensor` of shape `(B, P, D)`: unit vectors.

    Raises:
        ValueError: the grid does not have P patches, or the degree is even.
    """
    if tokens.ndim != 3 or tokens.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"tokens has shape {tuple(tokens.shape)}, expected (B, {grid[0]} * {grid[1]}, D).")
    if degree < 1 or degree % 2 == 0:
        raise ValueError(f"degree={degree} must be odd and 1 or more.")
    tokens = tokens.float()
    tokens = nn.functional.layer_norm(tokens, tokens.shape[1:], eps=_LAYER_NORM_EPS)
    if degree > 1:
        # Channels stay last in memory, which is several times faster than a transposed copy
        maps = tokens.unflatten(1, grid).permute(0, 3, 1, 2)
        maps = nn.functional.avg_pool2d(maps, degree, stride=1, padding=degree // 2)
        tokens = maps.permute(0, 2, 3, 1).flatten(1, 2)
    return nn.functional.normalize(tokens, dim=-1)


@torch.no_grad()
def mutual_scores(
    features: Patches,
    interval: tuple[float, float] = (0.0, 0.3),
    block_bytes: int | None = None,
    memory_limit: int = MEMORY_LIMIT,
    on_pairs: Callable[[int], object] | None = None,
) -> torch.Tensor:
    """
    Score each patch by its distance to the most similar pictures (MSM).

    The distance of a patch to a picture is the Euclidean distance to the nearest of its patches. The distances to the
    other N - 1 pictures are sorted, and those with the ranks `int(low * (N - 1))` to `int(high * (N - 1)) - 1`,
    counted from 0, are averaged.

    Time: `N * (N - 1) * P * P * D` floating-point operations. On a CUDA device, vectors are rounded to bfloat16 and
    their products added in float32; elsewhere everything is float32. Near zero, distances have an absolute error of up
    to 1e-3, on a CUDA device 2e-2.

    Memory: `block_bytes` for the comparison of two blocks of pictures, at least what two pictures need, and
    `4 * N * N * P` bytes of nearest neighbors, in a temporary file above `memory_limit`.

    Args:
        features ([`Patches`]): unit vectors, float32, such as a tensor of shape `(N, P, D)`; see [`lnamd`].
        interval (`tuple[float, float]`, *optional*, defaults to `(0.0, 0.3)`): part of the sorted distances.
        block_bytes (`int`, *optional*): limit of the memory of a comparison; default: 256 MiB, 2 GiB on a GPU.
        memory_limit (`int`, *optional*, defaults to 1 GiB): bytes of nearest neighbors that are kept in memory.
        on_pairs (`Callable[[int], object]`, *optional*): function that is called with the number of pairs of pictures
            that have just been compared.

    Returns:
        `torch.DoubleTensor` of shape `(N, P)` on the CPU, in [0, 2].

    Raises:
        ValueError: fewer than 5 pictures, or so few that the interval has no rank.
    """
    count = len(features)
    first, last = _ranks(interval, count)
    example = features[0:1]
    patches, width = example.shape[1:]
    block = _Block.of(example.device, patches, width, block_bytes)
    # Row i * N + j: highest cosine of each patch of picture i with the patches of picture j
    cosines = TensorStore((count * count, patches), torch.float32, memory_limit)
    for start in range(0, count, block.pictures):
        rows = features[start : start + block.pictures]
        for other in range(start, count, block.pictures):
            columns = rows if other == start else features[other : other + block.pictures]
            for i, j, forth, back in _compare(rows, columns, block, same=other == start):
                cosines.write((start + i) * count + other + j, forth)
                for number, row in enumerate(back):
                    cosines.write((other + j + number) * count + start + i, row[None])
                if on_pairs is not None:
                    on_pairs(len(back))
    return torch.stack([_mean_distance(cosines, each, count, first, last) for each in range(count)])


def _ranks(interval: tuple[float, float], count: int) -> tuple[int, int]:
    if count < FEWEST_PICTURES:
        raise ValueError(
            f"At least {FEWEST_PICTURES} images are needed to judge them together, because each is compared with the"
            f" most similar of the others; got {count}. Give more images of the same product."
        )
    first, last = (int(bound * (count - 1)) for bound in interval)
    if first >= last:
        raise ValueError(
            f"interval={interval} has no rank among the {count - 1} other images. Use a wider interval or more images."
        )
    return first, last


@dataclass(frozen=True)
class _Block:
    """Number of pictures in a block, number of pictures in one product, and the data type of its factors."""

    pictures: int
    in_product: int
    dtype: torch.dtype

    @classmethod
    def of(cls, device: torch.device, patches: int, width: int, block_bytes: int | None) -> "_Block":
        on_gpu = device.type == "cuda"
        block_bytes = block_bytes or (_GPU_BLOCK if on_gpu else _CPU_BLOCK)
        # A quarter each for the rows, the columns, the tensors that they are computed from, and the product
        quarter = block_bytes // 4
        pictures = max(1, quarter // (4 * patches * width))
        product = min(quarter, _GPU_PRODUCT if on_gpu else _CPU_PRODUCT)
        in_product = min(pictures, max(1, product // (4 * patches * patches)))
        return cls(pictures, in_product, torch.bfloat16 if on_gpu and _adds_in_float32() else torch.float32)


def _adds_in_float32() -> bool:
    """Return whether products of bfloat16 can be float32 here: since PyTorch 2.8, on devices with bfloat16."""
    return "dtype_out" in torch.ops.aten.mm.overloads() and torch.cuda.is_bf16_supported(including_emulation=False)


def _compare(
    rows: torch.Tensor, columns: torch.Tensor, block: _Block, same: bool
) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor]]:
    """
    Compare each picture of a block with those of another one, or with the later ones of the same block.

    Yields:
        `tuple`: picture i of the rows, first picture j of n columns, the highest cosine of each patch of i with each
        of them, and that of their patches with i, both of shape `(n, P)`, on the CPU.
    """
    patches = rows.shape[1]
    rows, columns = rows.to(block.dtype), columns.to(block.dtype)
    buffer = rows.new_empty(patches * block.in_product * patches, dtype=torch.float32)
    with no_autocast(rows.device):
        for i, row in enumerate(rows):
            for j in range(i + 1 if same else 0, len(columns), block.in_product):
                targets = columns[j : j + block.in_product].flatten(0, 1)
                cosines = buffer[: patches * len(targets)].view(patches, len(targets))
                _multiply(row, targets, cosines)
                forth = cosines.view(patches, -1, patches).amax(dim=2).T
                back = cosines.amax(dim=0).view(-1, patches)
                yield i, j, *torch.stack([forth, back]).cpu()


def _multiply(row: torch.Tensor, targets: torch.Tensor, out: torch.Tensor) -> None:
    """Write the cosines of unit vectors, (P, D) and (M, D) -> (P, M), float32 whatever the type of the vectors."""
    if row.dtype == out.dtype:
        torch.mm(row, targets.T, out=out)
    else:
        torch.mm(row, targets.T, out_dtype=out.dtype, out=out)


def _mean_distance(cosines: TensorStore, picture: int, count: int, first: int, last: int) -> torch.Tensor:
    """Return the mean of the chosen ranks among the distances of a picture's patches to the others, (P,) float64."""
    start, own, stop = picture * count, picture * count + picture, (picture + 1) * count
    others = torch.cat([cosines.read(start, own), cosines.read(own + 1, stop)])
    # Euclidean distances of unit vectors; rounding may make a cosine larger than 1
    by_patch = (2 - 2 * others.T.contiguous()).clamp_(min=0).sqrt_().numpy()
    by_patch.partition(sorted({first, last - 1}), axis=1)
    return torch.from_numpy(by_patch[:, first:last].mean(axis=1, dtype=np.float64))


class _Neighborhoods:
    """Averaged patch tokens of one layer, computed when they are read, one picture at a time."""

    def __init__(self, tokens: Patches, grid: tuple[int, int], degree: int):
        self.tokens, self.grid, self.degree = tokens, grid, degree

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, pictures: slice) -> torch.Tensor:
        found = None
        for number, index in enumerate(indices := range(len(self))[pictures]):
            vectors = lnamd(self.tokens[index : index + 1], self.grid, self.degree)
            if found is None:
                found = vectors.new_empty(len(indices), *vectors.shape[1:])
            found[number] = vectors[0]
        return found


def patch_scores(
    tokens: Mapping[int | str, Patches],
    grid: tuple[int, int],
    scoring: MutualScoring,
    block_bytes: int | None = None,
    memory_limit: int = MEMORY_LIMIT,
    on_pairs: Callable[[int], object] | None = None,
) -> torch.Tensor:
    """
    Score the patches of one subset of pictures, for every degree and layer.

    Args:
        tokens (`Mapping[int | str, Patches]`): layer -> its patch tokens without class token, in slices of shape
            `(n, P, D)`, on the device that computes.
        grid (`tuple[int, int]`): patches in a column and in a row.
        scoring ([`MutualScoring`]): settings, with layers.
        block_bytes, memory_limit, on_pairs: see [`mutual_scores`].

    Returns:
        `torch.DoubleTensor` of shape `(R, K, N, P)` on the CPU, in [0, 2]. The published map is its mean over degrees
        and layers.

    Raises:
        ValueError: as in [`mutual_scores`].
    """
    return torch.stack(
        [
            torch.stack(
                [
                    mutual_scores(
                        _Neighborhoods(tokens[layer], grid, degree),
                        scoring.interval,
                        block_bytes,
                        memory_limit,
                        on_pairs,
                    )
                    for layer in scoring.layers
                ]
            )
            for degree in scoring.degrees
        ]
    )


def raise_to_image(grid_scores: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """
    Interpolate the scores of patches to the pixels of the model's input: bilinear, corners aligned, not smoothed.

    Args:
        grid_scores (`torch.Tensor` of shape `(N, h, w)`): scores of the patches.
        size (`tuple[int, int]`): height and width of the model's input.

    Returns:
        `torch.Tensor` of shape `(N, height, width)`, same dtype.
    """
    return nn.functional.interpolate(grid_scores[:, None], size=size, mode="bilinear", align_corners=True)[:, 0]


# --- scores of images -----------------------------------------------------------------------------------------------


def rscin(scores: torch.Tensor, class_tokens: torch.Tensor, neighbors: Sequence[int] = (1, 2, 3)) -> torch.Tensor:
    """
    Average the scores of images over those that look most like them (RsCIN).

    The scores are scaled to [0, 1] over the set; that of each image becomes the mean over its k most similar images,
    itself included, weighted by their cosines. The result is the mean over the values of k.

    Args:
        scores (`torch.Tensor` of shape `(N,)`): scores of the images, of any scale.
        class_tokens (`torch.Tensor` of shape `(N, E)`): global features, L2-normalized.
        neighbors (`Sequence[int]`, *optional*, defaults to `(1, 2, 3)`): values of k.

    Returns:
        `torch.FloatTensor` of shape `(N,)`, in [0, 1]. All zero if all scores are equal.

    Raises:
        ValueError: fewer images than the largest k.
    """
    if len(scores) < max(neighbors):
        raise ValueError(
            f"Scores of {len(scores)} images cannot be averaged over {max(neighbors)} of them. Use smaller numbers in"
            " rescore_neighbors, or more images."
        )
    low, high = scores.min(), scores.max()
    scaled = (scores - low) / (high - low) if high > low else torch.zeros_like(scores)
    scaled, class_tokens = scaled.float(), class_tokens.float()
    rescored = []
    for rows in class_tokens.split(1024):  # bounds the memory of large sets
        weights, similar = (rows @ class_tokens.T).topk(max(neighbors), dim=1)
        means = [(weights[:, :k] * scaled[similar[:, :k]]).sum(dim=1) / weights[:, :k].sum(dim=1) for k in neighbors]
        rescored.append(torch.stack(means).mean(dim=0))
    return torch.cat(rescored)


@dataclass(frozen=True)
class MutualScores:
    """
    Every quantity of the method for one set of pictures, at the scale of the publication.

    Args:
        patch_scores (`torch.DoubleTensor` of shape `(R, K, N, h, w)`): distances in [0, 2], see [`patch_scores`].
        anomaly_maps (`torch.DoubleTensor` of shape `(N, height, width)`): maps at the size of the model's input.
        raw_scores (`torch.DoubleTensor` of shape `(N,)`): maxima of the maps.
        image_scores (`torch.FloatTensor` of shape `(N,)`): raw scores after [`rscin`], or as they are without it.
    """

    patch_scores: torch.Tensor
    anomaly_maps: torch.Tensor
    raw_scores: torch.Tensor
    image_scores: torch.Tensor


def score_together(
    hidden_states: Mapping[int | str, torch.Tensor],
    image_embeds: torch.Tensor,
    grid: tuple[int, int],
    size: tuple[int, int],
    scoring: MutualScoring | None = None,
) -> MutualScores:
    """
    Judge pictures together whose hidden states fit into memory, with the published equations.

    Args:
        hidden_states (`Mapping[int | str, torch.Tensor]`): layer -> residual stream after that block of CLIP's image
            tower, `(N, 1 + P, D)`, class token first; of `"stem"`, its features `(N, P, d_s)`.
        image_embeds (`torch.Tensor` of shape `(N, E)`): CLIP's image embeddings, normalized or not.
        grid (`tuple[int, int]`): patches in a column and in a row.
        size (`tuple[int, int]`): height and width of the model's input.
        scoring ([`MutualScoring`], *optional*): settings; the layers are those of `hidden_states` if it has none. A
            `subset_size` divides the pictures into consecutive subsets of almost equal size.

    Returns:
        [`MutualScores`]

    Raises:
        ValueError: too few pictures for the settings, or a layer that `hidden_states` do not reach.
    """
    highest = max(without_stem_layer(hidden_states), default=0)
    scoring = (scoring or MutualScoring()).on(list(hidden_states), highest)
    tokens = {layer: patches_of(hidden_states, layer) for layer in scoring.layers}
    sizes = scoring.subset_sizes(len(image_embeds))
    subsets = zip(*(states.split(sizes) for states in tokens.values()), strict=True)
    scores = [patch_scores(dict(zip(tokens, subset, strict=True)), grid, scoring) for subset in subsets]
    scores = torch.cat(scores, dim=2).unflatten(-1, grid)
    maps = raise_to_image(scores.mean(dim=(0, 1)), size)
    raw_scores = maps.flatten(1).amax(dim=1)
    class_tokens = nn.functional.normalize(image_embeds.float(), dim=-1).cpu()
    neighbors = scoring.rescore_neighbors
    image_scores = rscin(raw_scores, class_tokens, neighbors) if neighbors else raw_scores.float()
    return MutualScores(scores, maps, raw_scores, image_scores)
