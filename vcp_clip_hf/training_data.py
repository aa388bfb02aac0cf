"""Auxiliary dataset of a training run: held-out products, augmentation, and an order that can be resumed."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, default_collate

from .data import load_anomaly_dataset
from .data.augmentation import AugmentationConfig, AugmentedDataset
from .data.painted_anomalies import add_anomaly
from .image_processing_vcp_clip import VCPCLIPImageProcessor
from .training_config import TrainingConfig


__all__ = [
    "EpochSampler",
    "Records",
    "check_training_data",
    "collate_examples",
    "load_training_data",
    "training_examples",
]

# Rows as `load_anomaly_dataset` returns them: dicts with `image`, `mask`, `label`, `product`, ...
Records = datasets.Dataset | Sequence[dict[str, Any]]

_AUGMENTATION_PROBABILITIES = tuple(
    entry.name
    for entry in dataclasses.fields(AugmentationConfig)
    if entry.name.endswith("_prob") and entry.name != "mosaic_prob"
)


def load_training_data(config: TrainingConfig) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """
    Load the auxiliary dataset of a configuration and split it by products.

    Returns:
        Training records, and those of the held-out products (`None` without any).

    Raises:
        ValueError: a held-out product does not exist, or no product is left to train on.
    """
    dataset = load_anomaly_dataset(
        config.dataset,
        data_dir=config.data_dir,
        split=config.split,
        products=config.products,
        **config.dataset_options,
    )
    products = sorted(set(dataset["product"]))
    held_out = config.validation_products
    if isinstance(held_out, int):
        if not 0 <= held_out < len(products):
            raise ValueError(
                f"validation_products={held_out} of {len(products)} products leave nothing to train on."
                if held_out > 0
                else f"validation_products={held_out} must not be negative."
            )
        held_out = products[len(products) - held_out :]
    unknown = sorted(set(held_out) - set(products))
    if unknown:
        raise ValueError(f"validation_products={unknown} are not among the products {products}.")
    if not held_out:
        return dataset, None
    column = np.array(dataset["product"])
    inside = np.isin(column, held_out)
    if inside.all():
        raise ValueError(
            f"validation_products={held_out} are all the products of the dataset; nothing is left to train on."
        )
    return dataset.select(np.flatnonzero(~inside)), dataset.select(np.flatnonzero(inside))


def check_training_data(dataset: Records, config: TrainingConfig) -> None:
    """
    Check that there are images, that they have labels, and that some are anomalous or will be made so.

    Raises:
        ValueError: nothing to train on, images without a label, or no anomaly to learn from.
    """
    if not len(dataset):
        raise ValueError("There are no images to train on.")
    labels = np.array(dataset["label"]) if hasattr(dataset, "column_names") else None
    if labels is None:
        return
    if (labels == -1).any():
        raise ValueError(
            f"{int((labels == -1).sum())} of {len(labels)} images have no label. Sort them into good and bad, or train"
            " on normal images alone, with synthetic_anomaly_probability."
        )
    if not (labels == 1).any() and config.synthetic_anomaly_probability == 0:
        raise ValueError(
            f"All {len(labels)} images are normal: there is nothing to learn anomalies from. Set"
            " synthetic_anomaly_probability, for example to 0.5."
        )


def training_examples(
    dataset: Records, image_processor: VCPCLIPImageProcessor, config: TrainingConfig, with_names: bool = False
) -> AugmentedDataset:
    """
    Make augmented examples of records: `pixel_values` (3, H, W), `labels` (H, W) uint8, `has_mask` and `is_anomalous`,
    whether the image is anomalous; with `with_names`, also `product_names`, the name of the product.

    Batches need images of one shape: with `resize_mode="keep_ratio"`, images are squashed to the processor's size.
    """
    image_processor = image_processor.with_one_shape()
    probability = config.synthetic_anomaly_probability
    if probability > 0:
        dataset = _WithSyntheticAnomalies(dataset, probability, config.seed)
    options: dict[str, Any] = {"mosaic_prob": config.mosaic_probability}
    if not config.augmentation:
        options.update(dict.fromkeys(_AUGMENTATION_PROBABILITIES, 0.0))
    return AugmentedDataset(
        dataset, AugmentationConfig(**options), seed=config.seed, transform=_ToTensors(image_processor, with_names)
    )


def collate_examples(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """
    Stack examples to a batch; `has_mask` becomes a list of booleans, and `product_names` a list of names.

    Lists stay on the CPU when accelerate moves a batch to the device. The loss depends on `has_mask`, and reading it
    back would make every step wait for the device.
    """
    tensors = [{name: value for name, value in example.items() if name != "has_mask"} for example in examples]
    return {**default_collate(tensors), "has_mask": [bool(example["has_mask"]) for example in examples]}


class _ToTensors:
    """Converts a record to tensors: image and mask for the model, whether the mask is known, and the label."""

    def __init__(self, image_processor: VCPCLIPImageProcessor, with_names: bool):
        self.image_processor, self.with_names = image_processor, with_names

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        inputs = self.image_processor(record["image"], [record["mask"]], return_tensors="np")
        return {
            "pixel_values": torch.from_numpy(inputs["pixel_values"][0]),
            "labels": torch.from_numpy(inputs["labels"][0]).to(torch.uint8),
            # The mask of a normal image is known to be empty
            "has_mask": torch.tensor(record["mask"] is not None or record["label"] == 0),
            "is_anomalous": torch.tensor(record["label"] == 1),
            **({"product_names": record["product"]} if self.with_names else {}),
        }


class _WithSyntheticAnomalies(Dataset):
    """Paint an anomaly on some of the normal images; each epoch chooses others."""

    def __init__(self, dataset: Records, probability: float, seed: int):
        self.dataset, self.probability, self.seed = dataset, probability, seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, in shared memory, so that running DataLoader workers see it."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index) -> Any:
        if isinstance(index, str):  # a column, which the mosaic asks for
            return self.dataset[index]
        record = dict(self.dataset[index])
        place = (self.seed, int(self._epoch), index)
        if record["label"] == 0 and np.random.default_rng(place).random() < self.probability:
            image, mask, kind = add_anomaly(record["image"], place)
            record.update(image=image, mask=mask, label=1, defect=kind)
        return record


class EpochSampler(Sampler):
    """
    Order of the images in an epoch: a permutation that seed and epoch determine, started at any batch.

    With several processes, images from the start of the permutation fill the last round of batches, so that a resumed
    epoch ends with the same images.

    With a `normal_fraction`, normal and anomalous images alternate in that ratio, so that every batch has its share.
    Images of the kind with too few are repeated; of the other kind, each epoch uses others.

    Args:
        length (`int`): number of images.
        seed (`int`): seed of the permutations.
        batch_size (`int`): images per batch of one process.
        num_processes (`int`, *optional*, defaults to 1): processes that take batches in turn.
        labels (`np.ndarray` of shape `(length,)`, *optional*): 0 (normal) or 1 (anomalous); for `normal_fraction`.
        normal_fraction (`float`, *optional*): share of normal images; by default, each image is used once.

    Raises:
        ValueError: a `normal_fraction` that needs images of a kind that does not exist.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        batch_size: int,
        num_processes: int = 1,
        labels: np.ndarray | None = None,
        normal_fraction: float | None = None,
    ):
        self.length, self.seed = length, seed
        self.normal_fraction, self.labels = normal_fraction, labels
        if normal_fraction is not None:
            for label, kind, share in ((0, "normal", normal_fraction), (1, "anomalous", 1 - normal_fraction)):
                if share > 0 and not (labels == label).any():
                    raise ValueError(
                        f"normal_fraction={normal_fraction} needs {kind} images, and the training data has none. Leave"
                        " it out, or train on data with both kinds."
                    )
        self.num_processes, self.round_size = num_processes, batch_size * num_processes
        self.epoch, self.first = 0, 0

    def set_place(self, epoch: int, batches: int) -> None:
        """Continue in `epoch` after `batches` batches of each process."""
        self.epoch, self.first = epoch, batches * self.round_size

    @property
    def num_images(self) -> int:
        """Return the number of images of all processes in a whole epoch."""
        if self.num_processes == 1:
            return self.length
        return -(-self.length // self.round_size) * self.round_size

    @property
    def num_batches(self) -> int:
        """Return the number of batches per process in a whole epoch."""
        return -(-self.num_images // self.round_size)

    def __len__(self) -> int:
        return self.num_images - self.first

    def __iter__(self) -> Iterator[int]:
        order = self._order(np.random.default_rng((self.seed, self.epoch)))
        return iter(np.resize(order, self.num_images)[self.first :].tolist())

    def _order(self, generator: np.random.Generator) -> np.ndarray:
        """Return the images of one epoch in their order."""
        if self.normal_fraction is None:
            return generator.permutation(self.length)
        steps = np.floor(np.arange(self.length + 1) * self.normal_fraction + 1e-9)
        is_normal = np.diff(steps) > 0
        order = np.empty(self.length, np.int64)
        for places, label in ((is_normal, 0), (~is_normal, 1)):
            if places.any():
                order[places] = np.resize(generator.permutation(np.flatnonzero(self.labels == label)), places.sum())
        return order
