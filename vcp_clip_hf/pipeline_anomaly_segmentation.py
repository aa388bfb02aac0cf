"""`pipeline("anomaly-segmentation")`: images in, an answer to act on out."""

import difflib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Pipeline
from transformers.utils import logging

from .calibration import Calibration, from_labelled_scores, from_normal_maps, from_normal_scores
from .configuration_vcp_clip import CATEGORY_SLOT
from .image_loading import load_image
from .image_processing_vcp_clip import resize_map
from .prompts import check_tokenizer, tokenize_prompts
from .regions import clean_mask, find_regions
from .tiling import segment_tiles
from .visualization import overlay


__all__ = ["AnomalySegmentationPipeline"]

logger = logging.get_logger(__name__)

# Which step each argument belongs to
_PREPROCESS = ("input_range", "timeout", "roi_mask", "on_error")
_FORWARD = (
    "threshold",
    "image_threshold",
    "smoothing_sigma",
    "score_mode",
    "top_k_fraction",
    "prompts",
    "tile_size",
    "tile_overlap",
    "tile_batch_size",
    "global_weight",
    "output_branch_maps",
    "output_layer_maps",
    "output_uncertainty",
)
_POSTPROCESS = ("heatmap", "regions", "min_area", "fill_holes", "output_image", "output_format")


class AnomalySegmentationPipeline(Pipeline):
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

    Beyond the arguments of every pipeline, it may be made with

    - **reference_images** (`list`, *optional*): normal images to calibrate the thresholds on, see `calibrate`;
    - **false_alarm_rate** (`float`, *optional*, defaults to 0.01): for that calibration;

    and with every argument of a call, as a default for all calls.
    """

    _load_processor = False
    _load_image_processor = True
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = None  # needed for other prompts only

    def __init__(self, *args, reference_images: Sequence | None = None, false_alarm_rate: float = 0.01, **kwargs):
        super().__init__(*args, **kwargs)
        if self.device.type == "cpu" and self.model.dtype == torch.float16:
            logger.warning_once("float16 is several times slower than float32 on a CPU; computing in float32.")
            self.model.float()
        if reference_images is not None:
            calibration = self.calibrate(reference_images, false_alarm_rate=false_alarm_rate)
            (logger.info if calibration.reached else logger.warning)(calibration.describe())

    def _sanitize_parameters(self, **kwargs) -> tuple[dict, dict, dict]:
        known = (*_PREPROCESS, *_FORWARD, *_POSTPROCESS)
        for name in kwargs:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}."
                raise TypeError(f"The anomaly-segmentation pipeline has no argument {name!r}; {hint}")
        steps = [{name: kwargs[name] for name in names if name in kwargs} for names in (_PREPROCESS, _FORWARD)]
        postprocess = {name: kwargs[name] for name in _POSTPROCESS if name in kwargs}
        preprocess, forward = steps
        if "prompts" in forward:
            forward["prompt_input_ids"] = self._prompt_ids(forward.pop("prompts"))
        if "tile_size" in forward:
            preprocess["tiled"] = forward["tile_size"] is not None
        return preprocess, forward, postprocess

    def _prompt_ids(self, prompts: dict[str, str | Sequence[str]] | None) -> torch.LongTensor | None:
        """State words or whole templates of both states -> (2, templates, length)."""
        if prompts is None:
            return None
        if set(prompts) != {"normal", "abnormal"}:
            raise ValueError(f'prompts must have the keys "normal" and "abnormal", got {sorted(prompts)}.')
        if self.tokenizer is None:
            raise ValueError(
                "Other prompts need the backbone's tokenizer, and this checkpoint came without one. Pass"
                " tokenizer=... when making the pipeline."
            )
        config = self.model.config
        check_tokenizer(self.tokenizer, config.text_config.vocab_size)
        rows = {}
        for state, words in prompts.items():
            words = [words] if isinstance(words, str) else list(words)
            templates = [word if CATEGORY_SLOT in word else f"a photo of a {word} {CATEGORY_SLOT}" for word in words]
            rows[state] = tokenize_prompts(templates, self.tokenizer, config.category_token_id)
        if len(rows["normal"]) != len(rows["abnormal"]):
            counts = {state: len(ids) for state, ids in rows.items()}
            raise ValueError(f"Both states need the same number of prompts, got {counts}.")
        ids = [*rows["normal"], *rows["abnormal"]]
        length = max(map(len, ids))
        padded = [row + [row[-1]] * (length - len(row)) for row in ids]
        return torch.tensor(padded).view(2, -1, length)

    def __call__(self, inputs, *args, image_column: str | None = None, **kwargs):
        """
        Segment anomalies.

        Args:
            inputs:
                One image, or a list, generator, torch `Dataset`, `KeyDataset` or Hugging Face `Dataset` of them. An
                image is a path, a URL, a PIL picture of any mode, or a NumPy or torch array. A 4-dimensional array is
                a list.
            image_column (`str`, *optional*): of a Hugging Face dataset, if it is not clear.
            threshold (`float`, *optional*): pixels at or above it are abnormal. Default: the checkpoint's. Without
                any, there are no masks and no labels.
            image_threshold (`float`, *optional*): images at or above it are anomalous.
            smoothing_sigma, score_mode, top_k_fraction (*optional*): as in [`VCPCLIPImageProcessor`].
            prompts (`dict`, *optional*):
                `{"normal": ..., "abnormal": ...}`: a state word ("perfect"), a template with one `{}`
                ("a perfect {} on a table"), or a list of these.
            input_range (`tuple[float, float]`, *optional*): black and white of data of more than 8 bits.
            roi_mask (image or array, *optional*): of the images' size, non-zero where to look.
            tile_size (`int`, *optional*): look at large images in tiles of so many pixels a side.
            tile_overlap (`int`, *optional*, defaults to a quarter of `tile_size`): pixels that neighbours share.
            tile_batch_size (`int`, *optional*, defaults to 4): tiles at a time; bounds the memory.
            global_weight (`float`, *optional*, defaults to 0): weight of the whole image's own map beside the tiles'.
            heatmap (`bool`, *optional*): add `heatmap`, the image under its map on the fixed scale [0, 1].
            regions (`bool`, *optional*): add `regions`, see `find_regions`; needs a threshold.
            min_area (`int`, *optional*): regions of fewer pixels are dropped from mask and regions; an image whose
                regions are all dropped is normal.
            fill_holes (`bool`, *optional*): holes in the mask are filled.
            output_image (`bool`, *optional*):
                Add `image`, the picture of mode RGB that was looked at: turned as its camera says, 16 bits made 8.
            output_branch_maps (`bool`, *optional*): add `base_map` and `vcp_map`, not smoothed.
            output_layer_maps (`bool`, *optional*):
                Add `base_layer_maps` and `vcp_layer_maps`, float32 arrays `(feature layers, height, width)`.
            output_uncertainty (`bool`, *optional*):
                Add `uncertainty_map`, float32 `(height, width)`: the standard deviation over layers and branches,
                in [0, 0.5]; and `uncertainty`, its value where the map is highest.
            output_format (`"anomaly"` or `"image-segmentation"`, *optional*, defaults to `"anomaly"`):
                The second is the format of transformers' image-segmentation pipeline.
            on_error (`"raise"` or `"return"`, *optional*, defaults to `"raise"`):
                With `"return"`, an image that cannot be read gives `{"error": message}` and the others their results.
            batch_size, num_workers (`int`, *optional*): as in every pipeline.

        Returns:
            `dict` for one image, a list of them for a list, an iterator for a generator or a dataset, with
            - **score** (`float`);
            - **label** (`"normal"`, `"anomalous"` or `None`);
            - **threshold**, **image_threshold** (`float` or `None`);
            - **anomaly_map** (`np.ndarray` of shape `(height, width)`, float32): in [0, 1], at the original size;
            - **mask** (`PIL.Image.Image`, mode L, 0 or 255, or `None`), at the original size;
            and what was asked for.

        Raises:
            ValueError, TypeError, FileNotFoundError: an image or an argument is wrong; the message says which.
        """
        return super().__call__(_as_images(inputs, image_column), *args, **kwargs)

    def get_iterator(self, inputs, *args, **kwargs):
        """As in every pipeline; batches go to a GPU from pinned memory."""
        iterator = super().get_iterator(inputs, *args, **kwargs)
        # results <- outputs of the model <- batches
        iterator.loader.loader.pin_memory = self.device.type == "cuda"
        return iterator

    def preprocess(
        self,
        image,
        input_range=None,
        timeout: float = 30.0,
        roi_mask=None,
        on_error: str = "raise",
        tiled: bool = False,
    ) -> dict[str, Any]:
        """One image of any kind -> the model's input, and what the later steps need to know."""
        if on_error not in ("raise", "return"):
            raise ValueError(f'on_error={on_error!r} must be "raise" or "return".')
        error = None
        try:
            picture = load_image(image, input_range or self.image_processor.input_range, timeout=timeout)
            if roi_mask is not None:
                roi_mask = self._load_roi(roi_mask, picture)
        except (ValueError, TypeError, OSError) as problem:
            if on_error == "raise":
                raise
            # a blank picture keeps its place in the batch
            error, roi_mask = f"{type(problem).__name__}: {problem}", None
            picture = Image.new("RGB", (self.image_processor.size.width, self.image_processor.size.height))
        inputs = {"image": picture, "roi_mask": roi_mask, "error": error}
        if not tiled:
            inputs["pixel_values"] = self.image_processor(picture, return_tensors="pt").pixel_values
        return inputs

    @staticmethod
    def _load_roi(roi_mask, picture: Image.Image) -> np.ndarray:
        if not isinstance(roi_mask, (np.ndarray, torch.Tensor)):
            roi_mask = load_image(roi_mask).convert("L")
        roi_mask = np.asarray(roi_mask) != 0
        if roi_mask.shape != (picture.height, picture.width):
            raise ValueError(
                f"roi_mask is {roi_mask.shape} (height, width), the image ({picture.height}, {picture.width})."
            )
        return roi_mask

    def _forward(
        self,
        inputs: dict[str, Any],
        prompt_input_ids: torch.LongTensor | None = None,
        tile_size: int | None = None,
        tile_overlap: int | None = None,
        tile_batch_size: int = 4,
        global_weight: float = 0.0,
        output_branch_maps: bool = False,
        output_layer_maps: bool = False,
        output_uncertainty: bool = False,
        **settings,
    ) -> dict[str, list]:
        # a batch comes as lists, a single image as itself
        images, roi_masks, errors = (
            inputs[name] if isinstance(inputs["image"], list) else [inputs[name]]
            for name in ("image", "roi_mask", "error")
        )
        if tile_size is not None:
            if output_layer_maps or output_uncertainty:
                raise ValueError("Layer maps and uncertainty are not kept for tiles; leave tile_size out.")
            overlap = tile_size // 4 if tile_overlap is None else tile_overlap
            tiling = (tile_size, overlap, tile_batch_size, global_weight, prompt_input_ids)
            results = [
                self._tiled(image, roi_mask, tiling, output_branch_maps, settings)
                for image, roi_mask in zip(images, roi_masks, strict=True)
            ]
        else:
            sizes = [(image.height, image.width) for image in images]
            outputs = self.model(
                inputs["pixel_values"],
                prompt_input_ids=prompt_input_ids,
                output_layer_maps=output_layer_maps or output_uncertainty,
            )
            results = self.image_processor.post_process_anomaly_segmentation(
                outputs, sizes, None if all(mask is None for mask in roi_masks) else roi_masks, **settings
            )
            for index, result in enumerate(results):
                result.update(
                    self._further_maps(
                        outputs, index, sizes[index], output_branch_maps, output_layer_maps, output_uncertainty
                    )
                )
        for result, image, error in zip(results, images, errors, strict=True):
            result.update(image=image, error=error)
        return {"results": results}

    def _tiled(self, image: Image.Image, roi_mask, tiling: tuple, output_branch_maps: bool, settings: dict) -> dict:
        scoring = self.image_processor.scoring(**settings)
        tile_size, overlap, batch_size, global_weight, prompt_input_ids = tiling
        maps = segment_tiles(
            self.model,
            self.image_processor,
            image,
            tile_size,
            overlap,
            batch_size,
            global_weight,
            prompt_input_ids,
            scoring.smoothing_sigma,
            with_branches=output_branch_maps or scoring.score_mode == "top_k",
        )
        anomaly_map = torch.from_numpy(maps.anomaly_map)
        branches = [torch.from_numpy(each) for each in (maps.base_map, maps.vcp_map) if each is not None]
        if roi_mask is not None:
            inside = torch.from_numpy(roi_mask)
            anomaly_map, branches = anomaly_map * inside, [branch * inside for branch in branches]
        score = scoring.scores(anomaly_map[None], [branch[None] for branch in branches])[0]
        result = scoring.result(anomaly_map, score)
        if output_branch_maps:
            result.update(zip(("base_map", "vcp_map"), branches, strict=False))
        return result

    def _further_maps(
        self, outputs, index: int, size: tuple[int, int], branches: bool, layers: bool, uncertainty: bool
    ) -> dict[str, Any]:
        """The maps beyond the fused one, at the original size."""

        def at_size(maps: torch.Tensor) -> torch.Tensor:
            return resize_map(self.image_processor.without_padding(maps, size), size)

        found = {}
        if branches:
            for name in ("base_map", "vcp_map"):
                if outputs[name] is not None:
                    found[name] = at_size(outputs[name][index])
        stacks = {
            name: outputs[name][index]
            for name in ("base_layer_maps", "vcp_layer_maps")
            if (layers or uncertainty) and outputs[name] is not None
        }
        if layers:
            found.update({name: at_size(stack) for name, stack in stacks.items()})
        if uncertainty:
            spread = torch.cat(list(stacks.values())).std(dim=0, correction=0)
            fused = outputs.anomaly_map[index]
            found["uncertainty_map"] = at_size(spread)
            found["uncertainty"] = spread.flatten()[fused.argmax()].item()
        return found

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        heatmap: bool = False,
        regions: bool = False,
        min_area: int = 0,
        fill_holes: bool = False,
        output_image: bool = False,
        output_format: str = "anomaly",
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """One image's maps -> the answer."""
        result = model_outputs["results"]
        result = dict(result[0] if isinstance(result, list) else result)
        image, error = result.pop("image"), result.pop("error")
        if error is not None:
            return {"error": error}
        result = {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in result.items()}

        mask = result["mask"]
        if mask is None and (regions or output_format == "image-segmentation"):
            raise ValueError(
                "Regions and the image-segmentation format need a threshold, and this checkpoint has none. Pass"
                " threshold=..., or calibrate one on normal images (`calibrate`)."
            )
        if mask is not None and (min_area > 1 or fill_holes):
            mask = clean_mask(mask, min_area, fill_holes)
            if result["label"] == "anomalous" and min_area > 1 and not mask.any():
                result["label"] = "normal"
        if output_format == "image-segmentation":
            score = float(result["anomaly_map"][mask].max()) if mask.any() else 0.0
            return [{"score": score, "label": "anomaly", "mask": _as_picture(mask)}] if mask.any() else []
        if output_format != "anomaly":
            raise ValueError(f'output_format={output_format!r} must be "anomaly" or "image-segmentation".')
        result["mask"] = None if mask is None else _as_picture(mask)
        if output_image:
            result["image"] = image
        if heatmap:
            result["heatmap"] = overlay(image, result["anomaly_map"], mask)
        if regions:
            result["regions"] = find_regions(mask, result["anomaly_map"])
        return result

    def calibrate(
        self,
        images,
        labels: Sequence[int] | None = None,
        false_alarm_rate: float = 0.01,
        pixel_false_alarm_rate: float | None = None,
        **kwargs,
    ) -> Calibration:
        """
        Set the thresholds of this pipeline from images like those to come. Kept by `save_pretrained`.

        Args:
            images: as in a call. Normal ones, unless `labels` are given.
            labels (`Sequence[int]`, *optional*): 1 anomalous, 0 normal: take the threshold with the best F1 instead.
            false_alarm_rate (`float`, *optional*, defaults to 0.01): wished rate of normal images flagged.
            pixel_false_alarm_rate (`float`, *optional*):
                Wished part of normal pixels flagged, for the mask's threshold. Without it, masks use the images'
                threshold, so that an image has a mask exactly if it is anomalous (with `score_mode="max"`).
            kwargs: of a call.

        Returns:
            [`Calibration`] of the image threshold; `describe()` says what was reached.
        """
        scores, maps = [], []

        def maps_one_by_one():
            for result in self._results(images, **kwargs):
                scores.append(result["score"])
                yield result["anomaly_map"]

        pixels = None
        if labels is None and pixel_false_alarm_rate is not None:
            pixels = from_normal_maps(maps_one_by_one(), pixel_false_alarm_rate)
        else:
            maps.extend(None for _ in maps_one_by_one())
        calibration = (
            from_normal_scores(scores, false_alarm_rate) if labels is None else from_labelled_scores(scores, labels)
        )
        processor = self.image_processor
        score_mode = kwargs.get("score_mode") or processor.score_mode
        processor.image_threshold = calibration.threshold
        if pixels is not None:
            processor.threshold = pixels.threshold
        elif score_mode == "max":
            processor.threshold = calibration.threshold
        processor.calibration = {
            "image": calibration.to_dict(),
            **({} if pixels is None else {"pixel": pixels.to_dict()}),
            "score_mode": score_mode,
        }
        return calibration

    def _results(self, images, **kwargs):
        """Results one by one, whatever the images came as."""
        images = _as_images(images, None)
        if isinstance(images, list):
            images = (image for image in images)
        results = self(images, **kwargs)
        return [results] if isinstance(results, dict) else results

    def save_pretrained(self, save_directory: str | os.PathLike, include_code: bool = False, **kwargs) -> None:
        """
        Save model, image processor, tokenizer and a model card. A README that a person wrote stays as it is.

        Args:
            save_directory (`str` or `os.PathLike`): folder, created if missing.
            include_code (`bool`, *optional*, defaults to `False`):
                Also copy this package's modules, so that the folder works without the package:
                `pipeline("anomaly-segmentation", model=folder, trust_remote_code=True)`.
            kwargs: arguments of [`VCPCLIPModel.save_pretrained`], such as `adapter_only`.
        """
        try:
            from vcp_clip_hf.checkpoint_folder import CheckpointParts, save_parts
        except ImportError:  # this file is a copy in a checkpoint with code: transformers saves that code again
            super().save_pretrained(save_directory, **kwargs)
            return
        parts = CheckpointParts(self.model, self.image_processor, self.tokenizer)
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
        parts = {"image_processor": self.image_processor, "tokenizer": self.tokenizer}
        return push_checkpoint(self.model, repo_id, **{**parts, **kwargs})


def _as_picture(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * np.uint8(255))


def _as_images(inputs, image_column: str | None):
    """Bring what transformers' pipelines do not iterate over into a form that they do."""
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


def _image_column(dataset, asked: str | None) -> str:
    names = dataset.column_names
    if names is None:  # a stream that has not been looked into
        return asked or "image"
    if asked is None:
        images = [name for name, feature in (dataset.features or {}).items() if type(feature).__name__ == "Image"]
        candidates = ["image"] if "image" in names else [name for name in images if name != "mask"]
        if len(candidates) != 1:
            raise ValueError(f"Which column of {names} holds the images? Pass image_column=...")
        return candidates[0]
    if asked not in names:
        raise ValueError(f"image_column={asked!r} is not among the columns {names}.")
    return asked


class _Column(torch.utils.data.Dataset):
    """One column of a dataset, read item by item."""

    def __init__(self, dataset, column: str):
        self.dataset, self.column = dataset, column

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        return self.dataset[index][self.column]
