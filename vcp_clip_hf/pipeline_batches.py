"""Batches of the pipeline: images from workers, and results that are collected while the device computes the next."""

import os
from collections.abc import Callable, Iterable, Iterator, Sized
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import logging

from .host_copy import to_device
from .image_loading import ImageLike
from .image_sources import DEFAULT_MAX_BYTES, DEFAULT_TIMEOUT
from .pipeline_inputs import Images, prepared
from .pipeline_segmentation import SegmentingPipeline
from .read_ahead import read_ahead


__all__ = ["BatchResults", "BatchedPipeline", "image_batches"]

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
        `DataLoader`: of dictionaries of lists; `pixel_values` is one tensor, if its images have one shape.
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
        values = batch["pixel_values"]
        if len({each.shape for each in values}) == 1:
            # in a worker, the batch is made in shared memory
            batch["pixel_values"] = default_collate([each[0] for each in values])
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


class BatchedPipeline(SegmentingPipeline):
    """Base class of [`AnomalySegmentationPipeline`]: a pipeline that reads images and computes them in batches."""

    def preprocess(
        self,
        image: ImageLike,
        input_range: tuple[float, float] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        max_pixels: int | None = None,
        max_download_bytes: int = DEFAULT_MAX_BYTES,
        roi_mask: ImageLike | None = None,
        on_error: str = "raise",
        tile_size: int | None = None,
        fast_decode: bool = False,
    ) -> dict[str, Any]:
        """Load one image and prepare the model's input, unless the image is tiled later."""
        limits = {"timeout": timeout, "max_pixels": max_pixels, "max_download_bytes": max_download_bytes}
        return prepared(self.image_processor, image, input_range, roi_mask, on_error, tile_size, fast_decode, **limits)

    def get_iterator(
        self,
        inputs: Images,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> BatchResults:
        """Return the results of many images, one by one; an accelerator computes the next batch in the meantime."""
        finish = partial(self.postprocess, **postprocess_params)
        keeps_image = self._keeps_image(preprocess_params, forward_params, postprocess_params)
        batches = image_batches(
            inputs,
            partial(self._for_batch, keeps_image=keeps_image),
            preprocess_params,
            num_workers,
            batch_size=batch_size,
            pin_memory=self.device.type == "cuda",
        )
        # A generator may wait for the result of its last image, and large images in tiles take much memory
        reads_ahead = num_workers or isinstance(inputs, Sized)
        ahead = 1 if self._overlaps and reads_ahead and not preprocess_params.get("tile_size") else 0
        return BatchResults(batches, partial(self.launch, **forward_params), finish, ahead)

    def unfinished(
        self, images: Images, batch_size: int = 1, num_workers: int = 0, **kwargs: Any
    ) -> Iterator[Callable[[], Any]]:
        """
        Segment many images, and leave the last step to the caller, who may take it in other threads.

        Args:
            images (list, `Dataset` or generator): images, as in a call.
            batch_size, num_workers (`int`, *optional*), kwargs: as in a call.

        Yields:
            For each image, a function that returns its result; call it once.
        """
        self._inference_model()  # compares values, as `__call__` does
        preprocess, forward, postprocess = self._merged_parameters(**kwargs)
        results = self.get_iterator(images, num_workers, batch_size, preprocess, forward, postprocess)
        results.finish = partial(partial, results.finish)
        return iter(results)

    def _merged_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        """Return the arguments of each step, those of a call before the pipeline's own."""
        own = (self._preprocess_params, self._forward_params, self._postprocess_params)
        given = self._sanitize_parameters(**kwargs)
        preprocess, forward, postprocess = ({**mine, **each} for mine, each in zip(own, given, strict=True))
        return preprocess, forward, postprocess

    @property
    def _overlaps(self) -> bool:
        """Return whether the host works while the device computes."""
        return self.device.type != "cpu"

    def _keeps_image(self, preprocess: dict[str, Any], forward: dict[str, Any], postprocess: dict[str, Any]) -> bool:
        """Return whether anything after the reading needs pictures, which are large on the way from a worker."""
        if self._replaces("_forward", "postprocess"):  # it may read them
            return True
        if postprocess.get("output_image") or postprocess.get("heatmap") or preprocess.get("tile_size"):
            return True
        return self.active_references(forward.get("reference_weight")) is not None

    def _for_batch(self, image: ImageLike, keeps_image: bool, **arguments: Any) -> dict[str, Any]:
        """Prepare an image in a worker; for an accelerator, which computes the values of the pixels, as bytes."""
        if self._replaces("preprocess"):
            inputs = self.preprocess(image, **arguments)
            if "size" not in inputs:
                inputs = {**inputs, "size": (inputs["image"].height, inputs["image"].width)}
        else:
            as_bytes = self._overlaps and not self._replaces("_forward")
            further = {"keeps_image": keeps_image, "as_bytes": as_bytes, **arguments}
            inputs = prepared(self.image_processor, image, **further)
        return inputs if keeps_image else {**inputs, "image": None}

    def run_single(
        self, inputs: ImageLike, preprocess_params: dict, forward_params: dict, postprocess_params: dict
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Segment one image."""
        keeps_image = self._keeps_image(preprocess_params, forward_params, postprocess_params)
        prepared = self._for_batch(inputs, keeps_image, **preprocess_params)
        return self.postprocess(self.forward(prepared, **forward_params), **postprocess_params)

    def launch(self, inputs: dict[str, Any], **forward_params: Any) -> Callable[[], list[dict[str, Any]]]:
        """
        Start the computation of a batch. With a CUDA device, nothing waits for it, unless a subclass has a `_forward`
        of its own.

        Args:
            inputs (`dict`):
                What `preprocess` returns, or a batch of it: lists, with one tensor for `pixel_values` of one shape.
            forward_params: arguments of `_forward`.

        Returns:
            `Callable`: function that waits for the results and returns them, one for each image.
        """
        if self._replaces("_forward"):
            return partial(list, self.forward(inputs, **forward_params)["results"])
        with self.device_placement(), self.get_inference_context()():
            return self._begin(self._ensure_tensor_on_device(inputs, device=self.device), **forward_params)

    def _ensure_tensor_on_device(self, inputs: Any, device: torch.device) -> Any:
        if isinstance(inputs, torch.Tensor) and inputs.is_pinned():
            return to_device(inputs, device)  # `to` would wait for the batch before
        return super()._ensure_tensor_on_device(inputs, device)
