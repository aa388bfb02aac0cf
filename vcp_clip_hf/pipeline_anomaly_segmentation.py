"""`pipeline("anomaly-segmentation")`: images in; scores, maps, masks and regions out."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import logging

from .acceleration_settings import Acceleration, computes_in_float8
from .anomaly_result import as_segments, finish
from .call_arguments import argument_names, refuse_unknown
from .defect_names import name_regions
from .devices import check_device
from .host_copy import as_array
from .pipeline_calibration import SCORING
from .pipeline_inputs import Images, as_images, in_list
from .pipeline_together import JudgingPipeline
from .reference_pictures import find_references, save_references
from .thresholds import Thresholds


__all__ = ["AnomalySegmentationPipeline"]

logger = logging.get_logger(__name__)

# Arguments of a call that need the map, even if the result does not contain it
_OF_MAPS = ("min_area", "heatmap", "regions")
# First fields of a result, in order
_FIRST = ("score", "label", "threshold", "image_threshold", "anomaly_map", "mask")


class AnomalySegmentationPipeline(JudgingPipeline):
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
        check_device(kwargs.get("device"))
        super().__init__(*args, **kwargs)
        if self.device.type == "cpu" and self.model.dtype == torch.float16:
            logger.warning_once("float16 is several times slower than float32 on a CPU; computing in float32.")
            self.model.float()
        if self._reads_names and self.tokenizer is not None:
            self.model.tokenizer = self.tokenizer
        self._references = find_references(self.model)
        if computes_in_float8(settings):
            self._inference_model()  # refuses devices that cannot compute in float8
        if reference_images is not None:
            self._set_references_and_thresholds(in_list(reference_images), false_alarm_rate)
        elif false_alarm_rate is not None:
            raise ValueError(
                f"false_alarm_rate={false_alarm_rate!r} needs reference_images, the normal images that the threshold"
                " is computed from. Without them, call `calibrate` later."
            )

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        steps = (
            argument_names(self.preprocess),
            [*argument_names(self._begin), *argument_names(self._forward), *SCORING],
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
                `(feature layers, height, width)`. A stem branch has no layers; `output_branch_maps` adds its map.
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

    def _replaces(self, *steps: str) -> bool:
        """Return whether a subclass that a user wrote has one of these steps of its own."""
        return any(getattr(type(self), step) is not getattr(AnomalySegmentationPipeline, step) for step in steps)

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
