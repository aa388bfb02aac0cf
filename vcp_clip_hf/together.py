"""Pictures judged together, from images to results: two passes over the images around the mutual scoring of patches.

The first pass keeps the patch tokens of one subset at a time and compares them; the second one makes the results, one
by one, so that no more than one picture is held at its own size.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .anomaly_scoring import gaussian_smooth, resize_map
from .convolutional_stem import check_stem_layer, layer_width
from .image_loading import ImageLike
from .image_processing_vcp_clip import VCPCLIPImageProcessor
from .modeling_vcp_clip import VCPCLIPOutput
from .mutual_scoring import (
    FEWEST_PICTURES,
    MutualCost,
    MutualScoring,
    mutual_scoring_cost,
    patch_scores,
    raise_to_image,
    rscin,
)
from .patch_tokens import patches_of, states_of
from .region_of_interest import region_at_size
from .tensor_store import TensorStore
from .thresholds import Thresholds


__all__ = ["MutualJudge"]

# Distances of unit vectors lie in [0, 2], maps in [0, 1]
_LARGEST_DISTANCE = 2


@dataclass
class MutualJudge:
    """
    Judge pictures together.

    Memory: one subset's patch tokens, its distances, and the zero-shot maps if they are fused, each in memory up to
    `memory_limit` and in a temporary file above it; 256 MiB (2 GiB on a GPU) for the comparison; one batch of the
    model; and 8 bytes for each patch of each picture.

    Args:
        model ([`VCPCLIPModel`] or a model with the same arguments): model on any device.
        image_processor ([`VCPCLIPImageProcessor`]): image processor, whose size is that of the comparison.
        scoring ([`MutualScoring`]): settings, with layers.
        load (`Callable`): function that returns the prepared inputs of an image, as the pipeline's `preprocess` does.
        prompt_input_ids (`torch.LongTensor`, *optional*): prompts of the zero-shot map.
        smoothing_sigma (`float`, *optional*): sigma of the zero-shot map instead of the processor's.
        threshold, image_threshold (`float`, *optional*): limits for masks and labels.
        batch_size, num_workers (`int`): images in one forward pass; processes that read images.
        memory_limit (`int`): bytes of each large array that are kept in memory.
        progress (`bool`): whether to print the cost and show progress bars.

    Attributes:
        seconds (`float`): seconds of the model and of the comparison so far, without reading images.

    Raises:
        ValueError: a setting is out of range, or pictures would have grids of different shapes.
    """

    model: PreTrainedModel
    image_processor: VCPCLIPImageProcessor
    scoring: MutualScoring
    load: Callable[[ImageLike], dict[str, Any]]
    prompt_input_ids: torch.LongTensor | None
    smoothing_sigma: float | None
    threshold: float | None
    image_threshold: float | None
    batch_size: int
    num_workers: int
    memory_limit: int
    progress: bool
    seconds: float = field(default=0.0, init=False)

    def __post_init__(self):
        if self.image_processor.resize_mode == "keep_ratio":
            raise ValueError(
                "Images that are judged together need the same grid of patches, and resize_mode='keep_ratio' gives"
                " images of different shapes different grids. Use an image processor with 'squash' or 'pad'."
            )
        check_stem_layer(self.scoring.layers, self.model.config.vision_config)
        given = self.image_processor.without_thresholds().scoring(smoothing_sigma=self.smoothing_sigma)
        self.smoothing_sigma = given.smoothing_sigma
        # The rescored score is not a value of the map, so the pixel threshold does not apply to it
        thresholds = Thresholds.of(self.threshold, self.image_threshold, "max")
        image = self.image_threshold if self.scoring.rescore_neighbors else thresholds.image
        self.threshold, self.image_threshold = thresholds.pixel, image

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width of the model's input."""
        return self.image_processor.size.height, self.image_processor.size.width

    @property
    def grid(self) -> tuple[int, int]:
        """Return the numbers of patches in a column and in a row."""
        patch_size = self.model.config.vision_config.patch_size
        return self.size[0] // patch_size, self.size[1] // patch_size

    def cost(self, num_pictures: int) -> MutualCost:
        """Return what judging this many pictures costs."""
        widths = list(self._widths().values())
        return mutual_scoring_cost(num_pictures, self.grid, widths, self.scoring, self.model.dtype.itemsize)

    def _widths(self) -> dict[int | str, int]:
        vision_config = self.model.config.vision_config
        return {layer: layer_width(layer, vision_config) for layer in self.scoring.layers}

    def results(self, images: Sequence[ImageLike] | Dataset) -> Iterator[dict[str, Any]]:
        """
        Judge images, then yield their results in order.

        Args:
            images (sequence of `ImageLike`, or `Dataset`): images; each is read twice.

        Yields:
            `dict`: for each image `score`, `threshold`, `image_threshold`, `anomaly_map` (`torch.FloatTensor` of the
            image's size), `judged_with`, and what the pipeline's `postprocess` needs: `image`, `inside`, `error`.

        Raises:
            ValueError: fewer than 5 images, or fewer than 5 that can be read.
        """
        count = len(images)
        if count < FEWEST_PICTURES:
            raise ValueError(_too_few(f"got {count}"))
        judged = self._judge(images)
        scores = self._image_scores(judged)
        for position, (inputs,) in enumerate(self._loaded(images, 1)):
            found = {"image": inputs["image"], "inside": inputs["roi_mask"], "error": judged.errors.get(position)}
            if found["error"] is None:
                found["error"] = inputs["error"]
            if found["error"] is None:
                found.update(self._result(judged, position, found["image"], found["inside"], scores))
            yield found

    def outputs(self, images: Sequence[Any] | Dataset) -> Iterator[VCPCLIPOutput]:
        """
        Judge images, then yield one output for each in order, in the form of the model's: for evaluations.

        Args:
            images (sequence or `Dataset`): arguments of `load`; each is read once.

        Yields:
            [`VCPCLIPOutput`] with `anomaly_map` of shape `(1, height, width)`, in [0, 1], at the model's
            size, and `image_scores` of shape `(1,)`, on the CPU.

        Raises:
            ValueError: fewer than 5 images, or one that cannot be read.
        """
        if len(images) < FEWEST_PICTURES:
            raise ValueError(_too_few(f"got {len(images)}"))
        judged = self._judge(images)
        for error in judged.errors.values():
            raise ValueError(error)
        scores = self._image_scores(judged)
        for position in range(len(images)):
            score = self._highest(judged, position) if scores is None else torch.tensor(scores[position])
            anomaly_map = self._map(judged, position, with_padding=True)[None]
            yield VCPCLIPOutput(anomaly_map=anomaly_map, image_scores=score.reshape(1))

    # --- the first pass ---------------------------------------------------------------------------------------------

    def _judge(self, images: Sequence[ImageLike] | Dataset) -> "_Judged":
        """Compare the pictures subset by subset."""
        count, cost = len(images), self.cost(len(images))
        if self.progress:
            tqdm.write(cost.describe(), file=sys.stderr)
        judged = _Judged()
        if self.scoring.zero_shot_weight:
            judged.zero_shot = TensorStore((count, *self.size), torch.float32, self.memory_limit)
        features = tqdm(total=count, desc="features", unit="image", disable=not self.progress)
        compare = tqdm(total=cost.comparisons, desc="compare", unit="pair", disable=not self.progress)
        with features, compare:
            subset = self._new_subset(count)
            for number, batch in enumerate(self._loaded(images, self.batch_size)):
                subset.add(*self._features(batch, number * self.batch_size, judged))
                features.update(len(batch))
                while subset.is_full:
                    self._compare(subset, subset.sizes.pop(0), judged, compare)
            if len(judged.sizes) < FEWEST_PICTURES:
                reasons = "; ".join(list(judged.errors.values())[:3])
                raise ValueError(_too_few(f"{len(judged.sizes)} of {count} could be read ({reasons})"))
            self._compare(subset, len(subset.positions), judged, compare)
        return judged

    def _loaded(self, images: Sequence[ImageLike] | Dataset, batch_size: int) -> DataLoader:
        return DataLoader(
            _Loaded(images, self.load), batch_size=batch_size, num_workers=self.num_workers, collate_fn=list
        )

    def _new_subset(self, count: int) -> "_Subset":
        sizes = self.scoring.subset_sizes(count)
        capacity = min(count, max(sizes) + FEWEST_PICTURES + self.batch_size)
        shape = (capacity, math.prod(self.grid))
        limit = self.memory_limit // len(self.scoring.layers)
        stores = {
            layer: TensorStore((*shape, width), self.model.dtype, limit) for layer, width in self._widths().items()
        }
        return _Subset(stores, sizes[:-1], self.model.device)

    @torch.no_grad()
    def _features(
        self, batch: list[dict[str, Any]], start: int, judged: "_Judged"
    ) -> tuple[list[int], dict[int | str, torch.Tensor]]:
        """Return positions and patch tokens of the readable images, and keep what the second pass needs of them."""
        positions = []
        for position, inputs in enumerate(batch, start):
            if inputs["error"] is not None:
                judged.errors[position] = inputs["error"]
                continue
            positions.append(position)
            judged.note(position, inputs["image"], inputs["roi_mask"])
        if not positions:
            return [], {}
        started = time.perf_counter()
        outputs = self._forward([batch[position - start]["pixel_values"] for position in positions])
        class_tokens = torch.nn.functional.normalize(outputs.image_embeds.float(), dim=-1).cpu()
        self.seconds += time.perf_counter() - started
        judged.class_tokens.update(zip(positions, class_tokens, strict=True))
        if judged.zero_shot is not None:
            for position, zero_shot in zip(positions, outputs.anomaly_map, strict=True):
                judged.zero_shot.write(position, zero_shot[None])
        states = states_of(outputs, self.scoring.layers)
        return positions, {layer: patches_of(states, layer) for layer in states}

    def _forward(self, pixel_values: list[torch.Tensor]) -> ModelOutput:
        return self.model(
            torch.cat(pixel_values).to(self.model.device),
            prompt_input_ids=self.prompt_input_ids,
            output_hidden_states=list(self.scoring.layers),
        )

    def _compare(self, subset: "_Subset", count: int, judged: "_Judged", bar: tqdm) -> None:
        """Score the first pictures of a subset, and remove them from it."""
        started = time.perf_counter()
        scores = patch_scores(
            {layer: _Tokens(store, count, subset.device) for layer, store in subset.stores.items()},
            self.grid,
            self.scoring,
            memory_limit=self.memory_limit,
            on_pairs=bar.update,
        ).mean(dim=(0, 1))
        self.seconds += time.perf_counter() - started
        for position, each in zip(subset.remove(count), scores, strict=True):
            judged.grid_scores[position] = each.unflatten(0, self.grid)
            judged.subset_sizes[position] = count

    # --- the second pass --------------------------------------------------------------------------------------------

    def _image_scores(self, judged: "_Judged") -> dict[int, float] | None:
        """Return the rescored score of each readable image, or `None` if scores are the maxima of the maps."""
        if not self.scoring.rescore_neighbors:
            return None
        positions = list(judged.sizes)
        raw = torch.stack([self._highest(judged, position) for position in positions])
        class_tokens = torch.stack([judged.class_tokens[position] for position in positions])
        rescored = rscin(raw, class_tokens, self.scoring.rescore_neighbors)
        return dict(zip(positions, rescored.tolist(), strict=True))

    def _highest(self, judged: "_Judged", position: int) -> torch.Tensor:
        """Return the maximum of an image's map at the model's size, inside the region of interest."""
        fused, region = self._map(judged, position), judged.regions.get(judged.sizes[position])
        if region is None:
            return fused.amax()
        return fused[torch.from_numpy(region_at_size(region, tuple(fused.shape)))].amax()

    def _map(self, judged: "_Judged", position: int, with_padding: bool = False) -> torch.Tensor:
        """Return the fused map of an image at the model's size, without padding unless it is requested."""
        size = judged.sizes[position]

        def cut(anomaly_map: torch.Tensor) -> torch.Tensor:
            return anomaly_map if with_padding else self.image_processor.without_padding(anomaly_map, size)

        fused = cut(raise_to_image(judged.grid_scores[position][None], self.size)[0].float() / _LARGEST_DISTANCE)
        if judged.zero_shot is not None:
            zero_shot = gaussian_smooth(cut(judged.zero_shot.read(position, position + 1)[0]), self.smoothing_sigma)
            fused = torch.lerp(fused, zero_shot, float(self.scoring.zero_shot_weight))
        return fused

    def _result(
        self,
        judged: "_Judged",
        position: int,
        image: Any,
        inside: np.ndarray | None,
        scores: dict[int, float] | None,
    ) -> dict[str, Any]:
        size = (image.height, image.width)
        if size != judged.sizes[position]:
            return {
                "error": f"ValueError: the image was {judged.sizes[position]} when it was compared, now it is {size}."
            }
        anomaly_map = resize_map(self._map(judged, position), size)
        if inside is not None:
            anomaly_map = anomaly_map * torch.from_numpy(inside)
        return {
            "score": anomaly_map.amax().item() if scores is None else scores[position],
            "label": None,
            "threshold": self.threshold,
            "image_threshold": self.image_threshold,
            "anomaly_map": anomaly_map,
            "mask": None,
            "judged_with": {
                "pictures": len(judged.sizes),
                "subset": judged.subset_sizes[position],
                **self.scoring.settings(),
            },
        }


def _too_few(found: str) -> str:
    return (
        f"At least {FEWEST_PICTURES} images are needed to judge them together, {found}. Give more images of the same"
        " product, or segment each by itself."
    )


@dataclass
class _Judged:
    """Values of each readable image that the second pass needs, by its position among the images."""

    errors: dict[int, str] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    class_tokens: dict[int, torch.Tensor] = field(default_factory=dict)
    grid_scores: dict[int, torch.Tensor] = field(default_factory=dict)
    subset_sizes: dict[int, int] = field(default_factory=dict)
    # One region of interest for all images of a size
    regions: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    zero_shot: TensorStore | None = None

    def note(self, position: int, image: Any, region: np.ndarray | None) -> None:
        """Keep the size and the region of interest of an image."""
        self.sizes[position] = (image.height, image.width)
        if region is not None:
            self.regions.setdefault(self.sizes[position], region)


@dataclass
class _Subset:
    """
    Patch tokens of the pictures that wait to be compared.

    Args:
        stores (`dict[int | str, TensorStore]`): layer -> tokens, one row for each waiting picture.
        sizes (`list[int]`): sizes of this and the following subsets, except the last one, which has all that remain.
        device (`torch.device`): device that compares.
    """

    stores: dict[int | str, TensorStore]
    sizes: list[int]
    device: torch.device
    positions: list[int] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Return whether the next subset can be compared: enough further pictures wait to make another subset."""
        return bool(self.sizes) and len(self.positions) >= self.sizes[0] + FEWEST_PICTURES

    def add(self, positions: list[int], tokens: dict[int | str, torch.Tensor]) -> None:
        """Append pictures: their positions, and layer -> tokens of shape `(n, P, D)`."""
        for layer, rows in tokens.items():
            self.stores[layer].write(len(self.positions), rows)
        self.positions += positions

    def remove(self, count: int) -> list[int]:
        """Remove the first pictures, and return their positions; the others move to the beginning."""
        removed, self.positions = self.positions[:count], self.positions[count:]
        for store in self.stores.values():
            if self.positions:
                store.write(0, store.read(count, count + len(self.positions)).clone())
        return removed


@dataclass
class _Tokens:
    """The first rows of a store, on the device that computes."""

    store: TensorStore
    count: int
    device: torch.device

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, pictures: slice) -> torch.Tensor:
        start, stop, _ = pictures.indices(self.count)
        return self.store.read(start, stop).to(self.device)


class _Loaded(Dataset):
    """Images with the function that prepares them, for a DataLoader."""

    def __init__(self, images: Sequence[ImageLike] | Dataset, load: Callable[[ImageLike], dict[str, Any]]):
        self.images, self.load = images, load

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.load(self.images[index])
