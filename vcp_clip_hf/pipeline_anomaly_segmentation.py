"""`pipeline("anomaly-segmentation")`: images in; scores, maps, masks and regions out."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import ModelOutput, logging

from .accelerated_inference import accelerated_or_plain
from .acceleration_settings import Acceleration
from .anomaly_result import as_segments, finish
from .anomaly_scoring import TOP_K_MAPS, AnomalyScoring
from .calibration import describe_calibration
from .call_arguments import argument_names, refuse_unknown
from .configuration_vcp_clip import CATEGORY_SLOT
from .defect_names import DefectNames, name_logits, name_regions
from .devices import check_device
from .finished_maps import of_group
from .host_copy import as_array, to_device
from .image_loading import ImageLike
from .image_sources import DEFAULT_MAX_BYTES, DEFAULT_TIMEOUT
from .launched_batch import LaunchedBatch
from .map_fusion import BRANCH_MAPS
from .mutual_scoring import MEMORY_LIMIT, MutualScoring
from .pipeline_batches import BatchResults, image_batches
from .pipeline_calibration import SCORING, THRESHOLDS, CalibratingPipeline, without_given_thresholds
from .pipeline_inputs import CallText, Images, as_images, chosen, in_list, prepared
from .prompts import check_states_differ, check_tokenizer, prompt_rows, tokenize_prompts
from .reference_pictures import build_memory, find_references, image_conditions, save_references
from .references import MemorySettings, ReferencedModel, ReferenceMemory, picture_digest
from .requested_maps import RequestedMaps
from .thresholds import Thresholds
from .tiling import Tiling, segment_tiles
from .together import MutualJudge


__all__ = ["AnomalySegmentationPipeline"]

logger = logging.get_logger(__name__)

# Arguments of a call that are refused for images judged together
_NOT_TOGETHER = (
    *("tile_size", "tile_overlap", "global_weight", "score_mode", "top_k_fraction"),
    *(
        "fast_decode",
        "output_branch_maps",
        "output_layer_maps",
        "output_uncertainty",
        "reference_weight",
        "defect_names",
    ),
)

# Arguments of a call that need the map, even if the result does not contain it
_OF_MAPS = ("min_area", "heatmap", "regions")
# First fields of a result, in order
_FIRST = ("score", "label", "threshold", "image_threshold", "anomaly_map", "mask")
# Field of unfinished results: the highest distance from the references
_NEAREST = "highest_distance"
# Upper limit of a reference's distance from itself in every precision, without a scale
_NEAR = 0.01


class AnomalySegmentationPipeline(CalibratingPipeline):
    r"""
    Zero-shot anomaly segmentation with a [`VCPCLIPModel`].

    ```python
    >>> import vcp_clip_hf
    >>> from transformers import pipeline

    >>> inspect = pipeline("anomaly-segmentation", model="path/to/checkpoint")
    >>> result = inspect("part.png", threshold=0.5, heatmap=True, regions=True)
    >>> result["score"], result["label"]
    (0.87, 'anomalous')
    ```

    Besides the arguments of every pipeline, the constructor takes

    - **reference_images** (`list`, *optional*): normal images that images are compared with, see `set_references`.
      Two or more of them also calibrate the thresholds, each scored against the others, see `calibrate`;
    - **false_alarm_rate** (`float`, *optional*, defaults to 0.01): target rate of that calibration;
    - **accelerate** (`bool` or [`Acceleration`], *optional*, defaults to `True`): whether to compute with a fast copy
      of the model, or with which settings, see [`accelerate_inference`]. `pipe.model` stays the plain model. After a
      change of it, a new copy is made. If hooks, adapters or quantized layers would have no effect in a copy, the
      plain model is used, with a warning;

    and every argument of a call, as a default for all calls.
    """

    _load_processor = False
    _load_image_processor = True
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = None  # optional: only other prompts need it

    def __init__(
        self,
        *args: Any,
        reference_images: Images | None = None,
        false_alarm_rate: float | None = None,
        accelerate: bool | Acceleration = True,
        **kwargs: Any,
    ):
        settings = Acceleration.of(accelerate)
        self.accelerate = accelerate
        self._network: PreTrainedModel | None = None
        self._compared_network: PreTrainedModel | None = None
        self._references: ReferenceMemory | None = None
        self._references_as_new = False
        check_device(kwargs.get("device"))
        super().__init__(*args, **kwargs)
        if self.device.type == "cpu" and self.model.dtype == torch.float16:
            logger.warning_once("float16 is several times slower than float32 on a CPU; computing in float32.")
            self.model.float()
        if self._reads_names and self.tokenizer is not None:
            self.model.tokenizer = self.tokenizer
        self._references = find_references(self.model)
        if settings is not None and settings.float8:
            self._inference_model()  # refuses devices that cannot compute in float8
        if reference_images is not None:
            self._set_references_and_thresholds(in_list(reference_images), false_alarm_rate)
        elif false_alarm_rate is not None:
            raise ValueError(
                f"false_alarm_rate={false_alarm_rate!r} needs reference_images, the normal images that the threshold"
                " is computed from. Without them, call `calibrate` later."
            )

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

    # --- references -----------------------------------------------------------------------------------------------

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
            idle = {"layers": layers, "neighborhood": neighborhood, "scale": scale, "source": source, **kwargs}
            idle |= {"copies": copies, "max_patches": max_patches} | ({"weight": weight} if images is None else {})
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
            copies=copies,
            max_patches=max_patches,
            source=source,
            progress=progress,
            **{name: arguments[name] for name in known if name in arguments},
        )
        return self._references

    def _set_references_and_thresholds(self, images: Sequence[Any], false_alarm_rate: float | None) -> None:
        """Set references, and thresholds from them if there are two or more."""
        memory = self.set_references(images)
        split = not memory.exact and len(images) > 1
        if split:
            logger.warning(
                f"The memory keeps a coreset of {memory.settings.max_patches:,} of {memory.num_patches:,} patches, so"
                f" that these {len(images)} references cannot be scored as new images. Every second one sets the"
                " thresholds instead, and is not in the memory. To use all of them for both, call"
                f" set_references(images, max_patches={memory.num_patches}), then calibrate(images)."
            )
            self.set_references(chosen(images, range(0, len(images), 2)))
            images = chosen(images, range(1, len(images), 2))
        if split or len(memory.pictures) > 1:
            calibration = self.calibrate(images, false_alarm_rate=false_alarm_rate)
            say = logger.info if calibration.reached else logger.warning
            say(" ".join(describe_calibration(self.image_processor.calibration)))
        elif false_alarm_rate is not None:
            raise ValueError(
                f"false_alarm_rate={false_alarm_rate!r} needs two reference_images or more. {self._obstacle()}"
            )

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

    @property
    def _reads_names(self) -> bool:
        """Return whether the model is another method than VCP-CLIP, which reads the product's name."""
        return hasattr(self.model, "for_product")

    def _check_text(self, prompts: Any, product_name: str | None) -> None:
        """Raise a ValueError for prompts or a product name that the model does not read."""
        kind = type(self.model).__name__
        if self._reads_names and prompts is not None:
            raise ValueError(f"{kind} has prompts of its own, which `prompts` cannot replace. Give a product_name.")
        if not self._reads_names and product_name is not None:
            raise ValueError(f"product_name={product_name!r} has no effect: {kind} needs no name. Leave it out.")

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

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        steps = (
            argument_names(self.preprocess),
            [*argument_names(self._forward), *SCORING],
            [*argument_names(self.postprocess), *argument_names(finish)],
        )
        known = {name for names in steps for name in names} - {"prompt_input_ids"} | {"prompts"}
        refuse_unknown(kwargs, sorted(known), "The anomaly-segmentation pipeline")
        if "prompts" in kwargs:
            kwargs["prompt_input_ids"] = self._prompt_ids(kwargs.pop("prompts"))
        if kwargs.get("defect_names") is not None:
            kwargs["defect_names"] = self._defect_names(kwargs["defect_names"])
        preprocess, forward, postprocess = (
            {name: value for name, value in kwargs.items() if name in names} for names in steps
        )
        shaping = {**getattr(self, "_postprocess_params", {}), **postprocess}
        if not shaping.get("output_maps", True):
            as_segments = shaping.get("output_format", "anomaly") != "anomaly"
            forward["output_maps"] = as_segments or any(shaping.get(name) for name in _OF_MAPS)
        return preprocess, forward, postprocess

    def _prompt_ids(self, prompts: dict[str, str | Sequence[str]] | None) -> torch.LongTensor | None:
        """Tokenize state words or whole templates of both states; return ids of shape (2, templates, length)."""
        if prompts is None:
            return None
        self._check_text(prompts, None)
        if not isinstance(prompts, Mapping) or set(prompts) != {"normal", "abnormal"}:
            raise ValueError(f'prompts must have the keys "normal" and "abnormal", got {prompts!r}.')
        self._check_has_tokenizer("Other prompts")
        config = self.model.config
        rows = {}
        for state, words in prompts.items():
            words = [words] if isinstance(words, str) else list(words)
            if not words or not all(isinstance(word, str) and word.strip() for word in words):
                raise ValueError(
                    f"The {state} prompts {words!r} must be words or templates with one {CATEGORY_SLOT!r}, at least"
                    " one and none of them empty."
                )
            templates = [word if CATEGORY_SLOT in word else f"a photo of a {word} {CATEGORY_SLOT}" for word in words]
            rows[state] = tokenize_prompts(templates, self.tokenizer, config.category_token_id)
        if len(rows["normal"]) != len(rows["abnormal"]):
            counts = {state: len(ids) for state, ids in rows.items()}
            raise ValueError(f"Both states need the same number of prompts, got {counts}.")
        check_states_differ(rows["normal"], rows["abnormal"])
        ids = [*rows["normal"], *rows["abnormal"]]
        length = max(map(len, ids))
        padded = [row + [row[-1]] * (length - len(row)) for row in ids]
        return torch.tensor(padded).view(2, -1, length)

    def _defect_names(self, names: Sequence[str] | Mapping[str, str]) -> DefectNames:
        """Return names of defects with their tokenized prompts."""
        if self._reads_names:
            raise ValueError(f"{type(self.model).__name__} does not name defects; leave defect_names out.")
        self._check_has_tokenizer("Names of defects")
        return DefectNames.of(names, self.tokenizer, self.model.config.category_token_id)

    def _check_has_tokenizer(self, need: str) -> None:
        if self.tokenizer is None:
            raise ValueError(
                f"{need} need the backbone's tokenizer, and this checkpoint has none. Pass tokenizer=... to the"
                " constructor of the pipeline."
            )
        check_tokenizer(self.tokenizer, self.model.config.text_config.vocab_size)

    def __call__(
        self, inputs: Images, *args: Any, image_column: str | None = None, **kwargs: Any
    ) -> dict[str, Any] | list[Any] | Iterator[Any]:
        """
        Segment anomalies.

        Args:
            inputs (`ImageLike` or many of them):
                One image, or a list, generator, torch `Dataset`, `KeyDataset` or Hugging Face `Dataset` of images. An
                image is a path, a URL, a data URI, a base64 string, a PIL image of any mode, or a NumPy or torch
                array. A 4-dimensional array is a list.
            image_column (`str`, *optional*): column of a Hugging Face dataset; needed if several hold images.
            threshold (`float`, *optional*): pixels at or above it are abnormal. Default: the checkpoint's, if it was
                calibrated with the settings of this call. Without a threshold there are no masks and no labels.
            image_threshold (`float`, *optional*): images with a score at or above it are anomalous. Default: the
                checkpoint's on the same condition, else `threshold` with the score `"max"`.
            smoothing_sigma, score_mode, top_k_fraction (*optional*): settings of [`VCPCLIPImageProcessor`]. In tiles,
                `"image_head"` is the score of the whole image at the model's size.
            prompts (`dict`, *optional*):
                `{"normal": ..., "abnormal": ...}`: a state word ("perfect"), a template with one `{}`
                ("a perfect {} on a table"), or a list of these.
            product_name (`str`, *optional*, defaults to `"object"`):
                Name of the product in all images, for other methods than VCP-CLIP, which needs none.
            input_range (`tuple[float, float]`, *optional*): values of black and white in data of more than 8 bits.
            fast_decode (`bool`, *optional*, defaults to `False`):
                Whether large JPEG files are decoded at 1/2, 1/4 or 1/8 of their size, at least twice that of the
                model's input, if their sides are multiples of this number: several times faster for 12 megapixels. In
                our measurements, the input differed by at most 1 of 255. Results differ too, so that calibrated
                thresholds apply only with the value that they were measured with. Not possible with tiles or
                references.
            roi_mask (`ImageLike`, *optional*):
                Region of interest of the images' size: pixels that are neither black nor transparent are inspected.
            tile_size (`int`, *optional*): side in pixels of the tiles that large images are split into.
            tile_overlap (`int`, *optional*, defaults to a quarter of `tile_size`): pixels that neighbors share.
            tile_batch_size (`int`, *optional*, defaults to 4): tiles in one forward pass; bounds the memory.
            global_weight (`float`, *optional*, defaults to 0): weight of the map of the whole image, mixed into that
                of the tiles.
            reference_weight (`float`, *optional*):
                Weight of the memory that `set_references` made, in [0, 1], instead of its own; 0 is zero-shot.
            output_branch_maps (`bool`, *optional*):
                Whether to add `base_map`, `vcp_map` and, for a model with a stem branch, `stem_map`, not smoothed;
                with references, all are fused with the memory's map, which is added as `reference_map`.
            output_layer_maps (`bool`, *optional*):
                Whether to add the zero-shot `base_layer_maps` and `vcp_layer_maps`, float32
                `(feature layers, height, width)`.
            output_uncertainty (`bool`, *optional*):
                Whether to add `uncertainty_map`, float32 `(height, width)`: the standard deviation over layers and
                branches, in [0, 0.5]; and `uncertainty`, its value where the map is highest.
            min_area (`int`, *optional*): minimum area of the regions of the mask in pixels; smaller ones are dropped.
                An image becomes normal if its mask had pixels and all of them were dropped.
            fill_holes (`bool`, *optional*): fill holes in the mask.
            heatmap (`bool`, *optional*): whether to add `heatmap`, the image under its map on the fixed scale [0, 1].
            regions (`bool`, *optional*): whether to add `regions`, see `find_regions`; needs a threshold.
            defect_names (`Sequence[str]` or `dict[str, str]`, *optional*):
                At least two nouns (`["scratch", "hole"]`), or name -> template with one `{}`. Each region gets the
                most probable `name` and its `name_probability`; needs `regions=True`, and is not possible with tiles.
                Nothing is trained for this, see `defect_names.py`.
            output_maps (`bool`, *optional*, defaults to `True`):
                Whether results have `anomaly_map` and `mask`. Without them they have `size`, (height, width), and on a
                GPU the maps are not copied to the host unless something else needs them.
            output_image (`bool`, *optional*):
                Whether to add `image`, the RGB picture that the model got: rotated as its EXIF data say, in 8 bits.
            output_format (`"anomaly"` or `"image-segmentation"`, *optional*, defaults to `"anomaly"`):
                The second is the format of transformers' image-segmentation pipeline.
            on_error (`"raise"` or `"return"`, *optional*, defaults to `"raise"`):
                Treatment of unreadable images: `"return"` gives `{"error": message}` for each, and goes on.
            timeout (`float`, *optional*, defaults to 30): seconds for a URL, until its last byte.
            max_pixels (`int`, *optional*): maximum number of pixels of a file. Default: 179 million, Pillow's limit.
            max_download_bytes (`int`, *optional*, defaults to 256 MiB): maximum size of the file at a URL.
            batch_size, num_workers (`int`, *optional*): arguments of every pipeline.

        Returns:
            `dict` for one image, a list of them for a list, an iterator for a generator or a dataset, with
            - **score** (`float`);
            - **label** (`"normal"`, `"anomalous"` or `None`);
            - **threshold**, **image_threshold** (`float` or `None`);
            - **anomaly_map** (`np.ndarray` of shape `(height, width)`, float32): in [0, 1], at the original size;
            - **mask** (`PIL.Image.Image`, mode L, 0 or 255, or `None`), at the original size;
            and the requested additions. With an accelerator, the next batch of a list or dataset, or of workers, is
            read and computed before the results of a batch are returned.

        Raises:
            ValueError, TypeError, FileNotFoundError: an image or an argument is wrong; the message says which.
        """
        images = as_images(inputs, image_column)
        if isinstance(images, list) and not images:
            return []
        self._inference_model()
        return super().__call__(images, *args, **kwargs)

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
        if postprocess.get("output_image") or postprocess.get("heatmap") or preprocess.get("tile_size"):
            return True
        return self.active_references(forward.get("reference_weight")) is not None

    def _for_batch(self, image: ImageLike, keeps_image: bool, **arguments: Any) -> dict[str, Any]:
        """Prepare an image in a worker; for an accelerator, which computes the values of the pixels, as bytes."""
        if type(self).preprocess is not AnomalySegmentationPipeline.preprocess:
            inputs = self.preprocess(image, **arguments)
        else:
            further = {"keeps_image": keeps_image, "as_bytes": self._overlaps, **arguments}
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
        Start the computation of a batch. With a CUDA device, nothing waits for it.

        Args:
            inputs (`dict`): what `preprocess` returns, or a batch of it: lists, except `pixel_values`.
            forward_params: arguments of `_forward`.

        Returns:
            `Callable`: function that waits for the results and returns them, one for each image.
        """
        return super().forward(inputs, **forward_params)

    def forward(self, inputs: dict[str, Any], **forward_params: Any) -> dict[str, list[dict[str, Any]]]:
        """Compute a batch, as `launch` does, and wait for its results."""
        return {"results": self.launch(inputs, **forward_params)()}

    def _ensure_tensor_on_device(self, inputs: Any, device: torch.device) -> Any:
        if isinstance(inputs, torch.Tensor) and inputs.is_pinned():
            return to_device(inputs, device)  # `to` would wait for the batch before
        return super()._ensure_tensor_on_device(inputs, device)

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

    def _forward(
        self,
        inputs: dict[str, Any],
        prompt_input_ids: torch.LongTensor | None = None,
        product_name: str | None = None,
        tile_size: int | None = None,
        tile_overlap: int | None = None,
        tile_batch_size: int = 4,
        global_weight: float = 0.0,
        output_branch_maps: bool = False,
        output_layer_maps: bool = False,
        output_uncertainty: bool = False,
        defect_names: DefectNames | None = None,
        input_range: tuple[float, float] | None = None,
        roi_mask: ImageLike | None = None,
        reference_weight: float | None = None,
        output_maps: bool = True,
        fast_decode: bool = False,
        **settings: float | str | None,
    ) -> Callable[[], list[dict[str, Any]]]:
        tiling = Tiling.of(tile_size, tile_overlap, tile_batch_size, global_weight)
        references = self.active_references(reference_weight)
        text = CallText(prompt_input_ids, product_name)
        conditions = self.conditions(text, tiling, input_range, roi_mask, references, fast_decode)
        # inputs of a batch are lists, those of a single image are not
        is_batch = isinstance(inputs["image"], list)
        batch = {name: value if is_batch or name == "pixel_values" else [value] for name, value in inputs.items()}
        if tiling is None:
            requested = RequestedMaps(
                output_maps, output_branch_maps, output_layer_maps, output_uncertainty, defect_names
            )
            collect = self._whole(batch, references, text, {**settings, "conditions": conditions}, requested)
        else:
            if output_layer_maps or output_uncertainty:
                raise ValueError("Layer maps and uncertainty are not kept for tiles; leave tile_size out.")
            if defect_names is not None:
                raise ValueError("Regions are not named in tiles; leave defect_names or tile_size out.")
            scoring = self.image_processor.scoring(conditions, **settings)
            tiled = [
                self._tiled(image, inside, tiling, references, text, scoring, output_branch_maps)
                for image, inside in zip(batch["image"], batch["roi_mask"], strict=True)
            ]
            collect = partial(list, tiled)

        def results() -> list[dict[str, Any]]:
            found = collect()
            facts = zip(batch["image"], batch["size"], batch["roi_mask"], batch["error"], strict=True)
            for result, (image, size, inside, error) in zip(found, facts, strict=True):
                # some versions of PyTorch make lists of the tuples in pinned batches
                result.update(image=image, size=tuple(size), inside=inside, error=error)
            return found

        return results

    def _warn_of_references(self, images: list[Image.Image], references: ReferenceMemory) -> None:
        """Warn once if an image is one of the references."""
        if any(picture_digest(image) in references.pictures for image in images):
            logger.warning_once(
                "Some of these images are references: their distance from themselves is 0, so their maps and scores"
                " are not those of new images. Use other images as references than those to inspect."
            )

    def conditions(
        self,
        text: CallText,
        tiling: Tiling | None,
        input_range: tuple[float, float] | None,
        roi_mask: ImageLike | None,
        references: ReferenceMemory | None,
        fast_decode: bool = False,
    ) -> dict[str, Any]:
        """Return the settings of a call that the image processor does not know, as a calibration records them."""
        input_range = input_range or self.image_processor.input_range
        if fast_decode and (tiling is not None or references is not None):
            what = "tiles show all pixels" if references is None else "references were read in full"
            raise ValueError(f"fast_decode=True is not possible here: {what}. Leave it out.")
        if references is not None:
            references.check_conditions(image_conditions(self.image_processor, tiling, input_range))
        self._check_text(None, text.product_name)
        if self._reads_names:
            (name,) = self.model.names_of_images(text.product_name, 1)
            words = {"product_name": self.model.prompt_name(name)}
        else:
            words = {"prompts": prompt_rows(self.model.config, text.prompt_input_ids)}
        config = self.model.config
        # other methods have no branches
        fusion = config.fusion_settings(references is not None) if hasattr(config, "fusion_settings") else {}
        return {
            **words,
            **fusion,
            "tiling": None if tiling is None else tiling.settings(),
            "fast_decode": bool(fast_decode),
            "region_of_interest": roi_mask is not None,
            "input_range": None if input_range is None else list(input_range),
            "references": None if references is None else references.identity(),
        }

    def _whole(
        self,
        batch: dict[str, Any],
        references: ReferenceMemory | None,
        text: CallText,
        settings: dict[str, Any],
        requested: RequestedMaps,
    ) -> Callable[[], list[dict[str, Any]]]:
        """Segment a batch of images, each as a whole; return a function that waits for the results."""
        if references is not None and self._references_as_new:
            count = len(batch["image"])
            if count > 1:  # one by one, because each has a memory of its own
                singles = [{name: values[i : i + 1] for name, values in batch.items()} for i in range(count)]
                parts = [self._whole(single, references, text, settings, requested) for single in singles]
                return lambda: [result for collect in parts for result in collect()]
            references = references.for_new_picture(batch["image"][0])
        pixel_values, config = batch["pixel_values"], self.model.config
        if pixel_values.dtype == torch.uint8:
            pixel_values = self.image_processor.to_values(pixel_values)
        network = self._network_with(references, text.product_name)
        states = {} if requested.defect_names is None else {"output_hidden_states": config.feature_layers}
        with_layers = requested.layer_maps or requested.uncertainty
        outputs = network(
            pixel_values, prompt_input_ids=text.prompt_input_ids, output_layer_maps=with_layers, **states
        )
        sizes, roi_masks = batch["size"], batch["roi_mask"]
        finished = self.image_processor.finish_maps(
            outputs, sizes, None if all(mask is None for mask in roi_masks) else roi_masks, **settings
        )
        stacks = {"score": finished.scores}
        if requested.maps:
            stacks["anomaly_map"] = finished.maps
        for group in finished.groups:
            for name, stack in requested.stacks(self.image_processor, outputs, group, sizes[group[0]]).items():
                stacks.setdefault(name, []).append(stack)
        if requested.defect_names is not None:
            logits = self._name_logits(outputs, pixel_values.shape[-2:], requested.defect_names)
            cut = self.image_processor.without_padding
            stacks["name_logits"] = [cut(of_group(logits, group), sizes[group[0]]) for group in finished.groups]
        near = references is not None and not self._references_as_new and outputs.get("reference_map") is not None
        if near:
            highest = outputs.reference_map.flatten(1).amax(dim=1)
            stacks[_NEAREST] = [of_group(highest, group) for group in finished.groups]
        thresholds = finished.scoring.thresholds
        fields = {"threshold": thresholds.pixel, "image_threshold": thresholds.image}
        if requested.defect_names is not None:
            fields["defect_names"] = requested.defect_names.names
        launched = LaunchedBatch(finished.groups, stacks, [fields] * len(sizes))
        return partial(self._without_distance, launched, batch["image"], references) if near else launched.results

    def _name_logits(self, outputs: ModelOutput, size: tuple[int, int], names: DefectNames) -> torch.Tensor:
        """Return the logits of every name, for naming regions: (B, names, h, w), at the model's size."""
        patch_size = self.model.config.vision_config.patch_size
        logits = name_logits(self._network, outputs, names, (size[0] // patch_size, size[1] // patch_size))
        return torch.nn.functional.interpolate(logits, size=tuple(size), mode="nearest")

    def _without_distance(
        self, launched: LaunchedBatch, images: list[Image.Image], references: ReferenceMemory
    ) -> list[dict[str, Any]]:
        """Wait for results; warn if an image may be a reference by its highest distance, and is one by its pixels."""
        results = launched.results()
        limit = _NEAR * references.settings.scale
        distances = [result.pop(_NEAREST) for result in results]
        probable = [image for image, distance in zip(images, distances, strict=True) if distance < limit]
        self._warn_of_references(probable, references)
        return results

    def _tiled(
        self,
        image: Image.Image,
        roi_mask: np.ndarray | None,
        tiling: Tiling,
        references: ReferenceMemory | None,
        text: CallText,
        scoring: AnomalyScoring,
        output_branch_maps: bool,
    ) -> dict[str, Any]:
        """Segment one image in tiles."""
        scoring.check_region(roi_mask is not None)
        if references is not None and scoring.score_mode == "image_head" and not tiling.global_weight:
            raise ValueError(
                "score_mode='image_head' scores the whole image, and these references have patches of tiles only."
                " Use score_mode='max' or 'top_k', or set the references and call with a global_weight above 0."
            )
        if references is not None and self._references_as_new:
            references = references.for_new_picture(image)
        elif references is not None:
            self._warn_of_references([image], references)
        maps = segment_tiles(
            self._network_with(references, text.product_name),
            self.image_processor,
            image,
            tiling,
            text.prompt_input_ids,
            scoring.smoothing_sigma,
            with_branches=output_branch_maps or scoring.score_mode == "top_k",
        )
        anomaly_map = torch.from_numpy(maps.anomaly_map)
        read = [getattr(maps, name) for name in TOP_K_MAPS]
        branches = [torch.from_numpy(each) for each in read if each is not None]
        inside = None if roi_mask is None else torch.from_numpy(roi_mask)
        if inside is not None:
            anomaly_map, branches = anomaly_map * inside, [branch * inside for branch in branches]
        (score,) = scoring.score_tensor(
            anomaly_map[None], [branch[None] for branch in branches], maps.image_scores
        ).tolist()
        result = scoring.result(anomaly_map, score, inside)
        if output_branch_maps:
            for name in (*BRANCH_MAPS, "reference_map"):
                found = getattr(maps, name)
                if found is not None:
                    found = torch.from_numpy(found)
                    result[name] = found if inside is None else found * inside
        return result

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        output_format: str = "anomaly",
        output_maps: bool = True,
        **options: Any,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Make the result of one image with `anomaly_result.finish`, which takes the options."""
        if output_format not in ("anomaly", "image-segmentation"):
            raise ValueError(f'output_format={output_format!r} must be "anomaly" or "image-segmentation".')
        found = model_outputs["results"]
        found = dict(found[0] if isinstance(found, list) else found)
        image, inside, error = found.pop("image"), found.pop("inside", None), found.pop("error")
        size = found.pop("size", None)
        if error is not None:
            return {"error": error}
        names, logits = found.pop("defect_names", None), found.pop("name_logits", None)
        found = {name: as_array(value) if isinstance(value, torch.Tensor) else value for name, value in found.items()}
        thresholds = Thresholds(found["threshold"], found["image_threshold"])
        result = finish(image, found.get("anomaly_map"), found["score"], thresholds, inside, **options)
        if names is not None:
            if "regions" not in result:
                raise ValueError("defect_names name regions: pass regions=True too.")
            mask = np.asarray(result["mask"]) > 0
            result["regions"] = name_regions(result["regions"], mask, logits.float().numpy(), names)
        if output_format == "image-segmentation":
            return as_segments(result)
        result = {**dict.fromkeys(_FIRST), **found, **result}
        if not output_maps:
            del result["anomaly_map"], result["mask"]
            result["size"] = size
        return result

    def segment_together(
        self,
        images: Images,
        *,
        layers: Sequence[int | str] | None = None,
        degrees: Sequence[int] | None = None,
        interval: tuple[float, float] | None = None,
        subset_size: int | None = None,
        rescore_neighbors: Sequence[int] | None = None,
        zero_shot_weight: float = 0.0,
        memory_limit: int = MEMORY_LIMIT,
        progress: bool = True,
        batch_size: int | None = None,
        num_workers: int | None = None,
        image_column: str | None = None,
        **kwargs: Any,
    ) -> list[Any] | Iterator[Any]:
        """
        Judge unlabeled images of one product together (mutual scoring, MuSc): patches that are rare are abnormal.

        Results depend on the set of images, by design. Thresholds of the checkpoint do not apply to them: without a
        threshold of this call there are no masks and no labels. References have no part in them. The time grows with
        the square of the number of images, see [`mutual_scoring_cost`].

        Args:
            images (`Images`): at least 5 images, as in a call; each is read twice.
            layers, degrees, interval, subset_size, rescore_neighbors, zero_shot_weight (*optional*): settings of
                [`MutualScoring`], with its defaults; a [`MuScModel`] has those of its configuration as defaults.
            memory_limit (`int`, *optional*, defaults to 1 GiB):
                Bytes of patch tokens, of distances and of zero-shot maps that are kept in memory each; what exceeds
                them goes to a temporary file.
            progress (`bool`, *optional*, defaults to `True`): whether to print the cost and show progress bars.
            batch_size, num_workers (`int`, *optional*), image_column (`str`, *optional*): as in a call.
            kwargs: further arguments of a call. `prompts` and `smoothing_sigma` change the zero-shot map only;
                `score_mode`, tiles, and maps of branches and layers are refused. With `on_error="return"`, images
                that cannot be read are left out of the comparison.

        Returns:
            A list of results for a list, an iterator for a generator or a dataset, as in a call, with
            - **score** (`float`): in [0, 1]: the maximum of the map, scaled over the set so that the least abnormal
              image has 0 and the most abnormal one 1, then averaged over similar images. With
              `rescore_neighbors=()`, the maximum of the map;
            - **anomaly_map**: half the mean distance to the most similar images, in [0, 1], not smoothed, or its
              fusion with the zero-shot map;
            - **judged_with** (`dict`): number of `pictures` that were compared, of those in this image's `subset`,
              and the settings.

        Raises:
            ValueError: fewer than 5 images that can be read, or an argument is wrong.
        """
        preprocess, forward, postprocess = self._sanitize_parameters(**kwargs)
        preprocess = {**self._preprocess_params, **preprocess}
        forward = {**without_given_thresholds(self._forward_params), **forward}
        for name in _NOT_TOGETHER:
            if forward.get(name):
                raise ValueError(f"{name}={forward[name]!r} is not supported for images that are judged together.")
        given = {
            **{"layers": layers, "degrees": degrees, "interval": interval, "subset_size": subset_size},
            **{"rescore_neighbors": rescore_neighbors, "zero_shot_weight": zero_shot_weight},
        }
        scoring = self._mutual_scoring(**{name: value for name, value in given.items() if value is not None})
        product_name = forward.get("product_name")
        self._check_text(None, product_name)
        self._inference_model()
        judge = MutualJudge(
            self._network_with(None, product_name),
            self.image_processor,
            scoring,
            partial(self.preprocess, **preprocess),
            *(forward.get(name) for name in ("prompt_input_ids", "smoothing_sigma", *THRESHOLDS)),
            batch_size=batch_size or self._batch_size or 1,
            num_workers=self._num_workers or 0 if num_workers is None else num_workers,
            memory_limit=memory_limit,
            progress=progress,
        )
        listed = as_images(images, image_column)
        if not isinstance(listed, (list, torch.utils.data.Dataset)):
            single = isinstance(listed, (str, Image.Image, np.ndarray, torch.Tensor))
            listed = [listed] if single else list(listed)
        options = {**self._postprocess_params, **postprocess}
        results = (self.postprocess({"results": each}, **options) for each in judge.results(listed))
        return list(results) if isinstance(images, (list, tuple, np.ndarray, torch.Tensor)) else results

    def _mutual_scoring(self, **given: Any) -> MutualScoring:
        """Return the settings of images that are judged together, with layers."""
        config, own = self.model.config, {}
        if not hasattr(config, "feature_layers"):
            raise ValueError(
                f"{type(self.model).__name__} has no image tower whose patch tokens could be compared. Judge images"
                " together with a model on CLIP."
            )
        if getattr(self.model, "judges_products", False):
            if given.get("zero_shot_weight"):
                raise ValueError(
                    f"zero_shot_weight={given['zero_shot_weight']!r} needs a zero-shot map, and"
                    f" {type(self.model).__name__} has none. Leave it out."
                )
            own = config.mutual_scoring().settings()
        scoring = MutualScoring(**{**own, **given})
        return scoring.on(config.feature_layers, config.vision_config.num_hidden_layers)

    def save_pretrained(self, save_directory: str | os.PathLike, include_code: bool = False, **kwargs) -> None:
        """
        Save model, image processor, tokenizer and a model card. A README that a person wrote stays as it is.

        Args:
            save_directory (`str` or `os.PathLike`): folder, created if missing.
            include_code (`bool`, *optional*, defaults to `False`):
                Whether to also copy this package's modules, so that the folder works without the package:
                `pipeline("anomaly-segmentation", model=folder, trust_remote_code=True)`.
            kwargs: arguments of [`VCPCLIPModel.save_pretrained`], such as `adapter_only`.

        Raises:
            ValueError: the references were computed by another image tower; the checkpoint could not be loaded.
        """
        try:
            from vcp_clip_hf.checkpoint_folder import CheckpointParts, save_parts
        except ImportError:  # this file is a copy in a checkpoint with code: save that code again
            if self.references is not None:
                self.references.check_tower(self.model)
            super().save_pretrained(save_directory, **kwargs)
            custom_object_save(self, save_directory)
            save_references(self.references, save_directory)
            return
        parts = CheckpointParts(self.model, self.image_processor, self.tokenizer, self.references)
        save_parts(save_directory, parts, include_code=include_code, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs):
        """
        Push the whole checkpoint to the Hub in one commit, with its calibration. Needs the package `vcp_clip_hf`.

        Args:
            repo_id (`str`): `"owner/name"`; the repository is created if missing.
            kwargs: arguments of [`~vcp_clip_hf.hub.push_checkpoint`].

        Returns:
            `huggingface_hub.CommitInfo`
        """
        try:
            from vcp_clip_hf.hub import push_checkpoint
        except ImportError as error:
            raise ImportError(
                "Pushing a whole checkpoint needs the package: pip install vcp-clip-hf. `model.push_to_hub` works"
                " without it and pushes model and configuration only."
            ) from error
        parts = {
            "image_processor": self.image_processor,
            "tokenizer": self.tokenizer,
            "references": self.references or False,
        }
        return push_checkpoint(self.model, repo_id, **{**parts, **kwargs})
