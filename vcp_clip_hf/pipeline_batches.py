"""Batches of the pipeline: images from workers, and results that are collected while the device computes the next."""

import os
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, default_collate
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import logging

from .read_ahead import read_ahead


__all__ = ["BatchResults", "image_batches"]

logger = logging.get_logger(__name__)

Results = Callable[[], list[dict[str, Any]]]


def image_batches(
    images: Any, prepare: Callable[..., dict[str, Any]], arguments: dict[str, Any], num_workers: int, **options: Any
) -> DataLoader:
    """
    Return batches of prepared images.

    Args:
        images (list, `Dataset` or iterable): images in any form that `prepare` takes.
        prepare (`Callable`): function of one image that returns a `dict`; called in the workers.
        arguments (`dict`): further arguments of `prepare`.
        num_workers (`int`): number of worker processes; for an iterable without a length, at most 1.
        options: further arguments of the `DataLoader`.

    Returns:
        `DataLoader`: of dictionaries of lists, except `pixel_values`, which is one tensor.
    """
    if isinstance(images, Sized):
        dataset = PipelineDataset(images, prepare, arguments)
    else:
        if num_workers > 1:
            logger.warning_once(
                f"num_workers={num_workers}: images without a length are read by one worker, in order."
            )
            num_workers = 1
        dataset = PipelineIterator(images, prepare, arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are forks of this process
    return DataLoader(dataset, num_workers=num_workers, collate_fn=_collate, **options)


def _collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    batch = {name: [item[name] for item in items] for name in items[0]}
    if "pixel_values" in batch:
        # in a worker, the batch is made in shared memory
        batch["pixel_values"] = default_collate([values[0] for values in batch["pixel_values"]])
    return batch


class BatchResults(IterableDataset):
    """
    Results of batches, image by image: the iterator that a pipeline returns.

    Args:
        batches (`Iterable[dict]`): inputs of `launch`.
        launch (`Callable[[dict], Callable[[], list[dict]]]`):
            Function that starts the computation of a batch and returns a function that waits for its results.
        finish (`Callable[[dict], Any]`): function that makes the final result of an image.
        ahead (`int`): number of batches that are started before the results of a batch are used.
    """

    def __init__(
        self,
        batches: Iterable[dict[str, Any]],
        launch: Callable[[dict[str, Any]], Results],
        finish: Callable[[dict[str, Any]], Any],
        ahead: int,
    ):
        self.batches, self.launch, self.finish, self.ahead = batches, launch, finish, ahead

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        launched = (self.launch(inputs) for inputs in self.batches)
        for collect in read_ahead(launched, self.ahead):
            for result in collect():
                yield self.finish({"results": result})
