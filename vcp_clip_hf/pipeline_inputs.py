"""The inputs of the pipeline: one image or many, in every form that transformers' pipelines take, and some more."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .image_loading import ImageLike, load_image, load_reduced
from .image_processing_vcp_clip import VCPCLIPImageProcessor
from .region_of_interest import load_region_of_interest


__all__ = ["CallText", "Images", "ListedImages", "as_images", "chosen", "in_list", "prepared"]

# A picture that is decoded at a reduced size has at least this number of pixels for one of the model's input, along
# each side: the resize then averages pixels as it does for the whole picture
_LEAST_RATIO = 2
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


def prepared(
    image_processor: VCPCLIPImageProcessor,
    image: ImageLike,
    input_range: tuple[float, float] | None = None,
    roi_mask: ImageLike | None = None,
    on_error: str = "raise",
    tile_size: int | None = None,
    fast_decode: bool = False,
    keeps_image: bool = True,
    as_bytes: bool = False,
    **limits: Any,
) -> dict[str, Any]:
    """
    Load one image and its region of interest, and prepare the model's input.

    Args:
        image_processor ([`VCPCLIPImageProcessor`]): what prepares the input.
        image, input_range, roi_mask, on_error, tile_size, fast_decode: arguments of the pipeline's call.
        keeps_image (`bool`, *optional*, defaults to `True`): whether `image` has to be the whole picture.
        as_bytes (`bool`, *optional*, defaults to `False`): whether `pixel_values` are bytes for `to_values`.
        limits: `timeout`, `max_pixels` and `max_download_bytes` of [`load_image`].

    Returns:
        `dict` with `image`, its `size` (height, width), `roi_mask` (`np.ndarray` or `None`), `error` (`str` or `None`)
        and, without `tile_size`, `pixel_values` of shape `(1, 3, height, width)`.

    Raises:
        ValueError, TypeError, OSError: with `on_error="raise"`, the image cannot be read.
    """
    if on_error not in ("raise", "return"):
        raise ValueError(f'on_error={on_error!r} must be "raise" or "return".')
    input_range, error = input_range or image_processor.input_range, None
    try:
        picture, for_model, size = _pictures(image_processor, image, input_range, fast_decode, keeps_image, limits)
        if roi_mask is not None:
            roi_mask = load_region_of_interest(roi_mask, size)
    except (ValueError, TypeError, OSError) as problem:
        if on_error == "raise":
            raise
        # a blank picture keeps its place in the batch
        error, roi_mask = f"{type(problem).__name__}: {problem}", None
        picture = for_model = Image.new("RGB", (image_processor.size.width, image_processor.size.height))
        size = (picture.height, picture.width)
    inputs = {"image": picture, "size": size, "roi_mask": roi_mask, "error": error}
    if tile_size is None and (as_bytes or for_model is not picture):
        pixels = image_processor.to_bytes(for_model, size)
        inputs["pixel_values"] = pixels if as_bytes else image_processor.to_values(pixels)
    elif tile_size is None:
        inputs["pixel_values"] = image_processor(picture, return_tensors="pt").pixel_values
    return inputs


def _pictures(
    image_processor: VCPCLIPImageProcessor,
    image: ImageLike,
    input_range: tuple[float, float] | None,
    fast_decode: bool,
    keeps_image: bool,
    limits: dict[str, Any],
) -> tuple[Image.Image | None, Image.Image, tuple[int, int]]:
    """Return the whole picture (`None` if it is neither read nor kept), what the model sees, and the whole size."""
    reduced = size = None
    if fast_decode:
        least = (_LEAST_RATIO * image_processor.size.height, _LEAST_RATIO * image_processor.size.width)
        reduced, size = load_reduced(image, least, input_range, **limits)
        if size == (reduced.height, reduced.width):
            return reduced, reduced, size
        if not keeps_image:
            return None, reduced, size
    picture = load_image(image, input_range, **limits)
    return picture, picture if reduced is None else reduced, (picture.height, picture.width)
