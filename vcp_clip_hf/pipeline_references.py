"""The part of the pipeline that compares images with references, and chooses the network of a call."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel
from transformers.utils import logging

from .accelerated_inference import accelerated_or_plain
from .acceleration_settings import Acceleration
from .call_arguments import argument_names, refuse_unknown
from .launched_batch import LaunchedBatch
from .memory_settings import MemorySettings
from .pipeline_inputs import Images, in_list
from .pipeline_prompts import PromptedPipeline
from .reference_pictures import build_memory
from .referenced_model import ReferencedModel
from .references import ReferenceMemory, picture_digest


__all__ = ["NEAREST", "ReferencedPipeline"]

logger = logging.get_logger(__name__)

# Field of unfinished results: the highest distance from the references
NEAREST = "highest_distance"
# Upper limit of a reference's distance from itself in every precision, without a scale
_NEAR = 0.01


class ReferencedPipeline(PromptedPipeline):
    """
    Base class of [`AnomalySegmentationPipeline`]: a pipeline with a memory of normal images.

    Attributes:
        accelerate (`bool` or [`Acceleration`]): whether to compute with a fast copy of the model, or its settings.
    """

    accelerate: bool | Acceleration = True
    # what computed last, and what the references were last checked against
    _network: PreTrainedModel | None = None
    _compared_network: PreTrainedModel | None = None
    _references: ReferenceMemory | None = None
    # whether each image is a reference, scored against the others
    _references_as_new: bool = False

    def __getstate__(self) -> dict[str, Any]:
        # The fast copy is made again: a pickle would contain the weights twice
        return {**self.__dict__, "_network": None, "_compared_network": None}

    def _inference_model(self, values: bool = True) -> PreTrainedModel:
        """
        Return what computes: the fast copy of the model as it is now, or the model itself.

        Args:
            values (`bool`, *optional*, defaults to `True`): as in [`accelerated_or_plain`].
        """
        settings = Acceleration.of(self.accelerate)
        if settings is None:
            self._network = self.model
        else:
            self._network = accelerated_or_plain(self.model, self._network, settings, values)
        return self._network

    @property
    def references(self) -> ReferenceMemory | None:
        """Return the memory of normal pictures that images are compared with, or `None`."""
        return self._references

    def set_references(
        self,
        images: Images | ReferenceMemory | None,
        weight: float | None = None,
        layers: Sequence[int | str] | None = None,
        neighborhood: int | None = None,
        scale: float | None = None,
        copies: str = MemorySettings.copies,
        max_patches: int = MemorySettings.max_patches,
        source: str = "",
        progress: bool = False,
        distance: str | None = None,
        **kwargs: Any,
    ) -> ReferenceMemory | None:
        """
        Set the normal images that later calls compare images with.

        The distance of each patch to the nearest patch of these images is fused with the zero-shot map,
        `(1 - weight) * zero_shot + weight * memory`, or the sigmoid of the same mean of logits
        (`config.reference_fusion="logits"`). `save_pretrained` saves the memory. Thresholds that were calibrated
        without these references do not apply to calls with them: call `calibrate` again.

        Args:
            images (`ImageLike` or many of them, [`ReferenceMemory`], or `None`):
                Normal images of one product, one to thousands; a memory; or `None` to go back to zero-shot.
            weight (`float`, *optional*, defaults to `config.reference_weight`):
                Weight of the memory's map, in [0, 1]: 0 is zero-shot, 1 the memory alone. `reference_weight` of a call
                replaces it.
            layers, neighborhood, scale (*optional*, default to `config.reference_layers`,
                `config.reference_neighborhood` and `config.reference_scale`), copies, max_patches (*optional*): see
                [`MemorySettings`].
            source (`str`, *optional*): where the images are from, for the model card.
            progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar.
            distance (`str`, *optional*, defaults to `config.reference_distance`): see [`MemorySettings`].
            kwargs: arguments of a call for reading images (`input_range`, `timeout`, `max_pixels`,
                `max_download_bytes`, `on_error`), `batch_size`, and `tile_size`, `tile_overlap`, `global_weight` as in
                later calls with tiles. With `on_error="return"`, images that cannot be read are left out, with a
                warning.

        Returns:
            [`ReferenceMemory`], or `None`; `describe()` states its size.

        Raises:
            ValueError, TypeError, FileNotFoundError: an image cannot be read, no image is given, a value is out of
                range, or a given memory belongs to another image tower. The former references are kept.
        """
        if images is None or isinstance(images, ReferenceMemory):
            idle = {"layers": layers, "neighborhood": neighborhood, "scale": scale, "distance": distance}
            idle |= {"source": source, **kwargs, "copies": copies, "max_patches": max_patches}
            idle |= {"weight": weight} if images is None else {}
            defaults = {"copies": MemorySettings.copies, "max_patches": MemorySettings.max_patches, "source": ""}
            for name, value in idle.items():
                if value != defaults.get(name):
                    given = "no references" if images is None else "a finished memory"
                    raise TypeError(f"{name}={value!r} has no effect on {given}; leave it out.")
            if images is not None:
                images.check_tower(self.model)
                images = (images if weight is None else images.with_weight(weight)).to(self.device)
            self._references = images
            return images
        known = [name for name in argument_names(self.preprocess) if name not in ("roi_mask", "fast_decode")]
        known += ["tile_overlap", "tile_batch_size", "global_weight", "batch_size"]
        refuse_unknown(kwargs, [*known, "image_column"], "set_references")
        images = in_list(images, kwargs.pop("image_column", None))
        arguments = {**self._preprocess_params, **self._forward_params, **kwargs}
        self._references = build_memory(
            self._inference_model(),
            self.image_processor,
            images,
            weight=weight,
            layers=layers,
            neighborhood=neighborhood,
            scale=scale,
            distance=distance,
            copies=copies,
            max_patches=max_patches,
            source=source,
            progress=progress,
            **{name: arguments[name] for name in known if name in arguments},
        )
        return self._references

    def active_references(self, weight: float | None) -> ReferenceMemory | None:
        """
        Return the memory that a call uses, or `None` if it has no part in the results.

        Args:
            weight (`float`, *optional*): `reference_weight` of the call.

        Raises:
            ValueError: there is a weight, and there are no references.
        """
        if self._references is None:
            if weight:
                raise ValueError(
                    f"reference_weight={weight!r} needs references: call `set_references` with normal images first."
                )
            return None
        if self._reads_names and weight not in (None, 0, 1):
            raise ValueError(
                f"reference_weight={weight!r} has no meaning for {type(self.model).__name__}, which fuses both maps as"
                " it was published. Leave it out, or give 0 for zero-shot."
            )
        active = self._references if weight is None else self._references.with_weight(weight)
        return active if active.weight else None

    def _obstacle(self) -> str | None:
        """Return why the references cannot be scored as new images, each against the others, or `None`."""
        if len(self.references.pictures) < 2:
            return "A single reference has no other to be compared with: `calibrate` on other normal images."
        if not self.references.exact:
            return (
                "The memory keeps only a coreset of their patches, so that they cannot be scored without themselves:"
                " `calibrate` on other normal images, or set the references with a larger max_patches"
                f" ({self.references.num_patches} keeps all)."
            )
        return None

    def _network_with(self, references: ReferenceMemory | None, product_name: str | None) -> torch.nn.Module:
        """
        Return the network that computes maps: the model, alone or with a memory, and bound to the product's name if
        the model reads one.
        """
        # On a GPU, values are compared at the start of a call only: the host would wait for the batch before
        network = self._inference_model(values=self.device.type == "cpu")
        if references is not None and (network is self.model or network is not self._compared_network):
            # on the first call and after a change of `model`; without a fast copy, which notices changes in place, on
            # every call
            references.check_tower(network)
            self._compared_network = network
        if self._reads_names:
            return network.for_product(product_name, None if references is None else references.banks)
        return network if references is None else ReferencedModel(network, references)

    def _warn_of_references(self, images: list[Image.Image], references: ReferenceMemory) -> None:
        """Warn once if an image is one of the references."""
        if any(picture_digest(image) in references.pictures for image in images):
            logger.warning_once(
                "Some of these images are references: their distance from themselves is 0, so their maps and scores"
                " are not those of new images. Use other images as references than those to inspect."
            )

    def _without_distance(
        self, launched: LaunchedBatch, images: list[Image.Image], references: ReferenceMemory
    ) -> list[dict[str, Any]]:
        """Wait for results; warn if an image may be a reference by its highest distance, and is one by its pixels."""
        results = launched.results()
        limit = references.value_at(_NEAR)
        distances = [result.pop(NEAREST) for result in results]
        probable = [image for image, distance in zip(images, distances, strict=True) if distance < limit]
        self._warn_of_references(probable, references)
        return results
