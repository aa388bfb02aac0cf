"""The inputs of the pipeline: one image or many, in every form that transformers' pipelines take, and some more."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .image_loading import ImageLike


__all__ = ["CallText", "Images", "ListedImages", "as_images", "chosen", "in_list"]

# One image or many: the inputs of `__call__` and `calibrate`
Images = ImageLike | Iterable[ImageLike] | torch.utils.data.Dataset


@dataclass(frozen=True)
class CallText:
    """Text of a call: token ids of other prompts for VCP-CLIP, or the product's name for the other methods."""

    prompt_input_ids: torch.LongTensor | None
    product_name: str | None


class ListedImages(torch.utils.data.Dataset):
    """
    A list of images as a dataset, for which the pipeline returns results one by one.

    Args:
        images (`list`): the images.
    """

    def __init__(self, images: list[Any]):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.images[index]


def in_list(inputs: Images, image_column: str | None = None) -> Sequence[Any]:
    """Return a sequence of images that can be read more than once; those of a dataset are read when needed."""
    images = as_images(inputs, image_column)
    if isinstance(images, (str, bytes, Image.Image, np.ndarray, torch.Tensor)):
        return [images]
    if isinstance(images, torch.utils.data.Dataset) and hasattr(images, "__len__"):
        return chosen(images, range(len(images)))
    return list(images)


def chosen(images: Sequence[Any] | torch.utils.data.Dataset, indices: Sequence[int]) -> Sequence[Any]:
    """Return the images with some indices: a list for a list, and for a dataset, a dataset that ends like a list."""
    if isinstance(images, torch.utils.data.Dataset):
        return torch.utils.data.Subset(images, indices)
    return [images[index] for index in indices]


def as_images(inputs: Images, image_column: str | None) -> Any:
    """Convert inputs that transformers' pipelines cannot iterate over into a form that they can."""
    if isinstance(inputs, (np.ndarray, torch.Tensor)) and inputs.ndim == 4:
        return list(inputs)
    if isinstance(inputs, tuple):
        return list(inputs)
    if isinstance(inputs, os.PathLike):
        return os.fspath(inputs)
    # a Hugging Face Dataset or IterableDataset, without importing the library
    if hasattr(inputs, "column_names") and hasattr(inputs, "select_columns"):
        column = _image_column(inputs, image_column)
        only = inputs.select_columns(column)
        return _Column(only, column) if hasattr(inputs, "__len__") else (row[column] for row in only)
    return inputs


def _image_column(dataset: Any, requested: str | None) -> str:
    names = dataset.column_names
    if names is None:  # a stream without known features
        return requested or "image"
    if requested is None:
        images = [name for name, feature in (dataset.features or {}).items() if type(feature).__name__ == "Image"]
        candidates = ["image"] if "image" in names else [name for name in images if name != "mask"]
        if len(candidates) != 1:
            raise ValueError(f"Which column of {names} holds the images? Pass image_column=...")
        return candidates[0]
    if requested not in names:
        raise ValueError(f"image_column={requested!r} is not among the columns {names}.")
    return requested


class _Column(torch.utils.data.Dataset):
    """One column of a dataset, read item by item."""

    def __init__(self, dataset: Any, column: str):
        self.dataset, self.column = dataset, column

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index][self.column]
