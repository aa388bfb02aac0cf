"""Image processor of VCP-CLIP: any image to `pixel_values`, model outputs to maps, scores and masks."""

import copy
from dataclasses import fields
from functools import lru_cache
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, ChannelDimension, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import ModelOutput

from .anomaly_scoring import AUTHORS_SCORING, TOP_K_MAPS, AnomalyScoring
from .configuration_frozen_clip import FrozenCLIPConfig
from .finished_maps import FinishedMaps, ScoredBatch, groups_of_one_size
from .image_loading import ImageLike, list_images, load_image, load_mask
from .pixel_preprocessing import check_resize_mode, fit, mode_of_one_shape, place, to_planes, value_table
from .thresholds import resolve_thresholds


__all__ = ["VCPCLIPImageProcessor", "VCPCLIPImageProcessorKwargs"]

# Arguments of transformers' image processors that have no meaning here: the values without effect, and the reason why
# other values are refused, or the alternative
_NOT_HONORED = {
    "do_center_crop": ((None, False), "nothing is cropped, because a defect may lie at the border. Crop beforehand."),
    "crop_size": ((None,), "nothing is cropped, because a defect may lie at the border. Crop beforehand."),
    "do_pad": ((None, False), "set resize_mode='pad' to keep the ratio and pad to `size`."),
    "pad_size": ((None,), "set resize_mode='pad' to keep the ratio and pad to `size`."),
    "data_format": ((None, "channels_first"), "the model takes `pixel_values` with channels first."),
    "image_seq_length": ((None,), "images do not become tokens of a text here."),
}
# Smallest side of `at_size` in patches: with fewer, a patch has too few others to compare with
_LEAST_PATCHES = 4
_LARGEST_SIDE = 16_384  # pixels; larger inputs fit into no memory
# Settings of the post-processing, which a call that prepares images cannot use
_OF_RESULTS = (*(field.name for field in fields(AnomalyScoring)), "calibration")


class VCPCLIPImageProcessorKwargs(ImagesKwargs, total=False):
    """
    Arguments of [`VCPCLIPImageProcessor`] that other image processors do not have.

    resize_mode (`"squash"`, `"pad"` or `"keep_ratio"`): way to bring an image to `size`.
    size_divisor (`int`): divisor of both sides with `"keep_ratio"`: the model's patch size.
    input_range (`tuple[float, float]`): values of black and white in data of more than 8 bits.
    smoothing_sigma (`float`): standard deviation of the Gaussian on the map, in input pixels; 0 switches it off.
    score_mode (`"max"`, `"top_k"` or `"image_head"`): way to get the image score.
    top_k_fraction (`float`): fraction of the pixels that `"top_k"` averages.
    threshold (`float`): pixels of the map at or above it are abnormal.
    image_threshold (`float`): images with a score at or above it are anomalous.
    calibration (`dict`): origin of the thresholds.
    """

    resize_mode: Literal["squash", "pad", "keep_ratio"]
    size_divisor: int
    input_range: list[float | int] | tuple[float | int, ...] | None
    smoothing_sigma: float | int
    score_mode: Literal["max", "top_k", "image_head"]
    top_k_fraction: float | int
    threshold: float | int | None
    image_threshold: float | int | None
    calibration: dict | None


class VCPCLIPImageProcessor(PilBackend):
    r"""
    Prepare images for [`VCPCLIPModel`] and turn its outputs into results at the original size.

    Images may be paths, URLs, PIL images of any mode, NumPy or torch arrays, or lists of these; `image_loading`
    documents how their values are read. The resize is Pillow's, bit-exact with the authors' transform.

    Of the arguments that every image processor has, those that ask for a crop, for padding to another size or for
    channels last raise a ValueError, because the model has no use for their results.

    Args:
        size (`dict[str, int]`, *optional*, defaults to `{"height": 518, "width": 518}`):
            Size of `pixel_values`: multiples of the model's patch size.
        resample (`PILImageResampling`, *optional*, defaults to `BICUBIC`): filter of the image resize.
        do_convert_rgb (`bool`, *optional*, defaults to `True`):
            Convert images to RGB. `False` keeps one channel or four, for a model with such an input.
        resize_mode (`str`, *optional*, defaults to `"squash"`):
            `"squash"`: resize to `size` and ignore the ratio (the paper). `"pad"`: fit inside `size`, then pad on the
            right and at the bottom with the mean color. `"keep_ratio"`: keep the ratio at about the area of `size`,
            with sides rounded to `size_divisor`. Images of one call must then have one shape at the model's input;
            pipeline and evaluation group the images of a batch by themselves.
        size_divisor (`int`, *optional*, defaults to 14): the model's patch size, for `"keep_ratio"`.
        image_mean, image_std (`list[float]`, *optional*, defaults to CLIP's): values for each channel, on [0, 1].
        input_range (`tuple[float, float]`, *optional*):
            Values that become black and white in data of more than 8 bits, such as (0, 4095) for a 12-bit camera.
        smoothing_sigma (`float`, *optional*, defaults to 8):
            Standard deviation of the Gaussian on the map, in pixels of `size` (the authors' test code). 0: none.
        score_mode (`str`, *optional*, defaults to `"max"`):
            `"max"`: maximum of the smoothed map at the size of the mask, in [0, 1] (the paper, table 10). `"top_k"`:
            mean of the largest values of the unsmoothed base map plus the same of the Post-VCP map, in [0, 2] (the
            authors' code; a stem branch has no part in it). `"image_head"`: the model's own score of the whole image,
            `image_scores` of its outputs, in [0, 1]; it needs a model that has one, and cannot be restricted to a
            region of interest.
        top_k_fraction (`float`, *optional*, defaults to 2000 / 518^2):
            Fraction of the pixels that `"top_k"` averages.
        threshold (`float`, *optional*):
            Pixels of the map at or above it are abnormal, in [0, 1]. `None`: no masks.
        image_threshold (`float`, *optional*):
            Images with a score at or above it are anomalous, on the scale of the score. `None`: `threshold` with
            `"max"`, where both are on one scale; no labels with the other scores.
        calibration (`dict`, *optional*):
            Method, number of images, date and settings of the thresholds, as the pipeline's `calibrate` writes it.
            A calibrated threshold is not used under other settings.

    Raises:
        ValueError: a setting is out of range or not supported.
    """

    valid_kwargs = VCPCLIPImageProcessorKwargs
    model_input_names = ["pixel_values"]

    do_convert_rgb = True
    do_resize = True
    size = {"height": 518, "width": 518}
    default_to_square = True
    resample = PILImageResampling.BICUBIC
    resize_mode = "squash"
    size_divisor = 14
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    input_range = None
    smoothing_sigma = AUTHORS_SCORING["smoothing_sigma"]
    score_mode = "max"
    top_k_fraction = AUTHORS_SCORING["top_k_fraction"]
    threshold = None
    image_threshold = None
    calibration = None

    def __init__(self, **kwargs: Unpack[VCPCLIPImageProcessorKwargs]):
        super().__init__(**kwargs)
        self._check_settings(**{name: getattr(self, name) for name in self.valid_kwargs.__annotations__})
        self.scoring()  # checks its own settings
        if self.input_range is not None:
            self.input_range = list(self.input_range)  # the type that JSON returns

    @classmethod
    def for_model(
        cls, config: FrozenCLIPConfig, **kwargs: Unpack[VCPCLIPImageProcessorKwargs]
    ) -> "VCPCLIPImageProcessor":
        """
        Make an image processor for the input size and the patch size of a model.

        Args:
            config ([`FrozenCLIPConfig`]): configuration of the model.
            kwargs: arguments of the constructor, which take precedence.

        Returns:
            [`VCPCLIPImageProcessor`]
        """
        height, width = config.input_size
        defaults = {
            "size": {"height": height, "width": width},
            "size_divisor": config.vision_config.patch_size,
            **config.image_processing,
        }
        return cls(**{**defaults, **kwargs})

    def at_size(self, image_size: int | tuple[int, int]) -> "VCPCLIPImageProcessor":
        """
        Return a copy that gives the model an input of another size. A larger one reveals smaller defects; the time of
        the model grows at least with its area.

        Thresholds that were calibrated at another size stay stored; a call warns and does not use them.

        Args:
            image_size (`int` or `tuple[int, int]`): side of a square, or height and width, in pixels. Each is a
                multiple of `size_divisor`, the patch size of the model, at least four patches, and at most 16,384.

        Raises:
            ValueError: these are not such numbers; or height and width differ, and images keep their own ratio.
        """
        sides = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
        if len(sides) != 2 or not all(map(self._is_side, sides)):
            # "--image-size 225" arrives as both sides
            given = sides[0] if len(sides) == 2 and sides[0] == sides[1] else image_size
            raise ValueError(
                f"image_size={given!r} must be a whole number of pixels, at least"
                f" {_LEAST_PATCHES * self.size_divisor}, at most {_LARGEST_SIDE}, and a multiple of the model's patch"
                f" size, {self.size_divisor}, or two such numbers (height and width); now the input has"
                f" {self.size.height} x {self.size.width} pixels."
            )
        if sides[0] != sides[1] and self.resize_mode == "keep_ratio":
            raise ValueError(
                f"image_size={image_size!r} is not square, but with resize_mode='keep_ratio' every input has the ratio"
                " of its image. Choose with_resize_mode('squash') first (--resize-mode squash), or give one number."
            )
        other = copy.copy(self)
        other.size = SizeDict(height=int(sides[0]), width=int(sides[1]))
        return other

    def _is_side(self, side: Any) -> bool:
        """Return whether the input can have a side of this length."""
        if isinstance(side, bool) or not isinstance(side, Integral):
            return False
        return _LEAST_PATCHES * self.size_divisor <= side <= _LARGEST_SIDE and side % self.size_divisor == 0

    def with_resize_mode(self, resize_mode: str) -> "VCPCLIPImageProcessor":
        """
        Return a copy that brings images to `size` in another way, see `resize_mode` of the class.

        Thresholds that were calibrated in another way stay stored; a call warns and does not use them.

        Raises:
            ValueError: the mode is unknown.
        """
        check_resize_mode(resize_mode)
        other = copy.copy(self)
        other.resize_mode = resize_mode
        return other

    def with_one_shape(self) -> "VCPCLIPImageProcessor":
        """
        Return an image processor whose inputs have one shape, `size`, for what needs the same grid of patches for all
        images: this one, or a copy that squashes images instead of keeping their ratio.
        """
        mode = mode_of_one_shape(self.resize_mode)
        return self if mode == self.resize_mode else self.with_resize_mode(mode)

    @staticmethod
    def _check_settings(size: SizeDict, resize_mode: str, image_mean: Any, image_std: Any, **settings) -> None:
        for name, (harmless, reason) in _NOT_HONORED.items():
            value = settings.get(name)
            if value not in harmless:
                shown = dict(value) if isinstance(value, SizeDict) else value
                raise ValueError(f"{name}={shown!r} is not supported: {reason}")
        check_resize_mode(resize_mode)
        if not (size.height and size.width):
            raise ValueError(f"size={dict(size)} must have the keys 'height' and 'width'.")
        for name, value in (("image_mean", image_mean), ("image_std", image_std)):
            # without the conversion to RGB, the number of channels is that of the image
            if value is not None and np.size(value) not in (1, 3) and settings.get("do_convert_rgb") is not False:
                raise ValueError(f"{name}={value} must be one number or three, one for each channel of RGB.")

    def _validate_preprocess_kwargs(self, **kwargs) -> None:
        self._check_settings(**kwargs)
        super()._validate_preprocess_kwargs(**kwargs)

    def preprocess(
        self,
        images: ImageLike | list[ImageLike],
        segmentation_maps: ImageLike | list[ImageLike | None] | None = None,
        **kwargs: Unpack[VCPCLIPImageProcessorKwargs],
    ) -> BatchFeature:
        """
        Prepare images, and optionally their masks, for the model.

        Args:
            images (`ImageLike` or `list[ImageLike]`): one image, a list of images, or a 4-dimensional array.
            segmentation_maps (`ImageLike` or list of them, *optional*):
                Masks in the order and at the sizes of the images: two-valued, single-channel. `None` in the list
                stands for a mask without defect.
            kwargs: attributes of this processor that differ in this call; `return_tensors="pt"` or `"np"` to stack;
                `device` to move stacked tensors to.

        Returns:
            [`BatchFeature`] with `pixel_values`, float32 of shape `(batch_size, 3, height, width)`, and `labels`,
            int64 of shape `(batch_size, height, width)` with 0 and 1, if `segmentation_maps` were given.

        Raises:
            ValueError: an image or a mask cannot be read, sizes do not match, or an argument is not supported.
        """
        for name in _OF_RESULTS:
            if name in kwargs:
                raise ValueError(
                    f"{name} does not change how images are prepared; pass it to `post_process_anomaly_segmentation`."
                )
        return super().preprocess(images, segmentation_maps, **kwargs)

    def _preprocess_image_like_inputs(
        self,
        images: ImageLike | list[ImageLike],
        segmentation_maps: ImageLike | list[ImageLike | None] | None,
        do_convert_rgb: bool | None,
        do_resize: bool,
        size: SizeDict,
        resample: int,
        resize_mode: str,
        size_divisor: int,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | tuple[float, ...] | None,
        image_std: float | tuple[float, ...] | None,
        input_range: tuple[float, float] | None,
        input_data_format: str | ChannelDimension | None,
        return_tensors: str | None,
        device: str | torch.device | None = None,
        **kwargs,
    ) -> BatchFeature:
        channels_last = (
            None if input_data_format is None else ChannelDimension(input_data_format) == ChannelDimension.LAST
        )
        pictures = [
            load_image(image, input_range, channels_last, convert_rgb=do_convert_rgb is not False)
            for image in list_images(images)
        ]
        full = (size.height, size.width)
        fitted = [
            fit(picture.height, picture.width, full, resize_mode, size_divisor) if do_resize else None
            for picture in pictures
        ]
        scale, mean = rescale_factor if do_rescale else 1.0, image_mean if do_normalize else None
        pixel_values = []
        for picture, fits in zip(pictures, fitted, strict=True):
            placed = _placed(picture, fits, resample, mean)
            pixel_values.append(to_planes(placed, value_table(scale, mean, image_std, len(picture.getbands()))))
        data = {"pixel_values": self._stackable(pixel_values, return_tensors)}

        if segmentation_maps is not None:
            data["labels"] = self._prepare_masks(segmentation_maps, pictures, fitted)
        batch = BatchFeature(data=data, tensor_type=return_tensors)
        if device is None:
            return batch
        if return_tensors != "pt":
            raise ValueError(f"device={device!r} needs return_tensors='pt', got {return_tensors!r}.")
        return batch.to(device)

    def to_bytes(self, picture: Image.Image, size: tuple[int, int] | None = None) -> torch.ByteTensor:
        """
        Prepare a picture as bytes, a quarter of the size of `pixel_values`, which `to_values` makes of them.

        Args:
            picture (`PIL.Image.Image`): picture as `load_image` returns it, of mode L, RGB or RGBA.
            size (`tuple[int, int]`, *optional*): height and width of the whole image, if `picture` is a reduced one.

        Returns:
            `torch.ByteTensor` of shape `(1, channels, height, width)`: resized and padded, on the CPU.
        """
        full = (self.size.height, self.size.width)
        mode, divisor = self.resize_mode, self.size_divisor
        fits = fit(*(size or (picture.height, picture.width)), full, mode, divisor) if self.do_resize else None
        placed = _placed(picture, fits, self.resample, self.image_mean if self.do_normalize else None)
        pixels = np.asarray(placed).reshape(placed.height, placed.width, -1)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]

    def to_values(self, pixels: torch.ByteTensor) -> torch.FloatTensor:
        """
        Rescale and normalize bytes on their device.

        Args:
            pixels (`torch.ByteTensor` of shape `(batch_size, channels, height, width)`): pictures from `to_bytes`.

        Returns:
            `torch.FloatTensor` of the same shape: the `pixel_values` of these pictures, bit by bit.
        """
        channels = pixels.shape[1]
        scale, mean = self.rescale_factor if self.do_rescale else 1.0, self.image_mean if self.do_normalize else None
        table = _table_on(pixels.device, scale, _hashable(mean), _hashable(self.image_std), channels)
        starts = 256 * torch.arange(channels, device=pixels.device).view(-1, 1, 1)
        return table.take(pixels + starts)

    @staticmethod
    def _stackable(pixel_values: list[np.ndarray], return_tensors: str | None) -> list[np.ndarray]:
        shapes = {array.shape for array in pixel_values}
        if return_tensors is not None and len(shapes) > 1:
            raise ValueError(
                f"The images of this batch have {len(shapes)} shapes, {sorted(shapes)[:4]}, and cannot be stacked. Use"
                " resize_mode='squash' or 'pad', group images by their ratio, or use a batch size of 1."
            )
        return pixel_values

    def _prepare_masks(
        self,
        segmentation_maps: ImageLike | list[ImageLike | None],
        pictures: list[Image.Image],
        fitted: list[tuple | None],
    ) -> list[np.ndarray]:
        masks = self._list_masks(segmentation_maps)
        if len(masks) != len(pictures):
            raise ValueError(f"{len(masks)} segmentation_maps came with {len(pictures)} images.")
        labels = []
        for mask, picture, fits in zip(masks, pictures, fitted, strict=True):
            values = np.zeros((picture.height, picture.width), np.uint8) if mask is None else load_mask(mask)
            if values.shape != (picture.height, picture.width):
                raise ValueError(
                    f"A segmentation map is {values.shape[0]} x {values.shape[1]} pixels (height x width), its image"
                    f" {picture.height} x {picture.width}."
                )
            # As in the authors' code: bilinear, then more than half of the pixel (thin defects can vanish)
            resized = Image.fromarray(values * np.uint8(255))
            if fits is not None:
                resized = place(resized, fits, PILImageResampling.BILINEAR, 0)
            labels.append((np.asarray(resized) > 127.5).astype(np.int64))
        return labels

    @staticmethod
    def _list_masks(segmentation_maps: ImageLike | list[ImageLike | None]) -> list[ImageLike | None]:
        if isinstance(segmentation_maps, (np.ndarray, torch.Tensor)) and segmentation_maps.ndim >= 3:
            return list(segmentation_maps)
        if isinstance(segmentation_maps, (list, tuple)):
            return list(segmentation_maps)
        return [segmentation_maps]

    def post_process_anomaly_segmentation(
        self,
        outputs: ModelOutput,
        target_sizes: list[tuple[int, int]] | None = None,
        roi_masks: list[np.ndarray | None] | None = None,
        resize_mode: str | None = None,
        conditions: dict[str, Any] | None = None,
        **settings: float | str | None,
    ) -> list[dict[str, Any]]:
        """
        Turn a [`VCPCLIPOutput`] into one result for each image. A result does not depend on the rest of the batch.

        Args:
            outputs ([`VCPCLIPOutput`]): raw maps; they are processed on their device.
            target_sizes (`list[tuple[int, int]]`, *optional*):
                (height, width) of each original image; padding is removed and the map is resized to it (bilinear).
                Without target sizes the map stays at the model's size, including the padding.
            roi_masks (`list[np.ndarray | None]`, *optional*):
                Region of interest of each image, an array of its original size, non-zero in the inspected area, or
                `None`.
                The map is 0 elsewhere, and so is its part in the score; the mask ends at the border of the region.
            resize_mode (`str`, *optional*): resize mode that the images were prepared with, if not the processor's.
            conditions (`dict[str, Any]`, *optional*): further settings of the call, see `scoring`.
            settings: `threshold`, `image_threshold`, `smoothing_sigma`, `score_mode` or `top_k_fraction`, instead of
                the processor's own.

        Returns:
            `list[dict]` with, for each image,
            - **score** (`float`): with `"max"`, the maximum of `anomaly_map`, in [0, 1]; with `"top_k"`, read at the
              model's size, in [0, 2]; with `"image_head"`, the model's own, in [0, 1];
            - **label** (`"normal"`, `"anomalous"` or `None`): score compared with the image threshold;
            - **threshold**, **image_threshold** (`float` or `None`): the thresholds in use;
            - **anomaly_map** (`torch.FloatTensor` of shape `(height, width)`): fused, smoothed, in [0, 1];
            - **mask** (`torch.BoolTensor` of shape `(height, width)`, or `None`): map at or above `threshold`.

            With the score `"max"` and one threshold for both, an image is anomalous exactly if its mask has a pixel.

        Raises:
            ValueError: the number of `target_sizes` or `roi_masks` differs from that of images; a setting is unknown
                or out of range; the score `"image_head"` with a region of interest, or without image scores.
        """
        return self.finish_maps(outputs, target_sizes, roi_masks, resize_mode, conditions, **settings).results()

    def finish_maps(
        self,
        outputs: ModelOutput,
        target_sizes: list[tuple[int, int]] | None = None,
        roi_masks: list[np.ndarray | None] | None = None,
        resize_mode: str | None = None,
        conditions: dict[str, Any] | None = None,
        **settings: float | str | None,
    ) -> FinishedMaps:
        """
        Compute maps and scores on the device of the outputs, without waiting for it.

        Args:
            outputs, target_sizes, roi_masks, resize_mode, conditions, settings: see
                `post_process_anomaly_segmentation`.

        Returns:
            [`FinishedMaps`]: images of one size are one group.

        Raises:
            ValueError: as in `post_process_anomaly_segmentation`.
        """
        known = {
            "resize_mode": resize_mode or self.resize_mode,
            "region_of_interest": roi_masks is not None,
            **(conditions or {}),
        }
        scoring = self.scoring(known, **settings)
        scoring.check_region(roi_masks is not None and any(mask is not None for mask in roi_masks))
        maps, image_scores = outputs.anomaly_map.float(), getattr(outputs, "image_scores", None)
        for name, given in (("target_sizes", target_sizes), ("roi_masks", roi_masks)):
            if given is not None and len(given) != len(maps):
                raise ValueError(f"{len(given)} {name} came with {len(maps)} images.")
        branches = []
        if scoring.score_mode == "top_k":
            branches = [outputs[name].float() for name in TOP_K_MAPS if outputs.get(name) is not None] or [maps]
        batch = ScoredBatch(scoring, maps, branches, image_scores, roi_masks)
        if target_sizes is None:
            return batch.finished([tuple(maps.shape[-2:])] * len(maps), [list(range(len(maps)))])
        groups = groups_of_one_size(target_sizes, maps.device)
        if (resize_mode or self.resize_mode) != "pad":
            return batch.finished(target_sizes, groups)
        # padding is removed before anything reads it, so that each size is a batch of its own
        finished = FinishedMaps(scoring)
        for group in groups:
            size = target_sizes[group[0]]
            own = batch.of_group(group, lambda stack, size=size: self.without_padding(stack, size, "pad"))
            finished.extend(group, own.finished([size] * len(group), [list(range(len(group)))]))
        return finished

    def without_padding(
        self, maps: torch.Tensor, target_size: tuple[int, int], resize_mode: str | None = None
    ) -> torch.Tensor:
        """
        Cut maps to the part that shows the image.

        Args:
            maps (`torch.Tensor` of shape `(..., h, w)`): maps at the model's size.
            target_size (`tuple[int, int]`): (height, width) of the original image.
            resize_mode (`str`, *optional*): resize mode that the image was prepared with, if not the processor's.

        Returns:
            `torch.Tensor`: the maps unchanged, unless the mode is `"pad"`.
        """
        if (resize_mode or self.resize_mode) != "pad":
            return maps
        (height, width), _ = fit(*target_size, tuple(maps.shape[-2:]), "pad")
        return maps[..., :height, :width]

    def scoring(self, conditions: dict[str, Any] | None = None, **settings: float | str | None) -> AnomalyScoring:
        """
        Return this processor's settings for scores, labels and masks.

        A calibrated threshold is left out, with a warning, if it was measured with other settings and the call does
        not give a threshold of its own.

        Args:
            conditions (`dict[str, Any]`, *optional*):
                Settings of the call that this processor does not know, under their names in `calibration["settings"]`:
                `prompts`, `tiling`, `region_of_interest`, `input_range`.
            settings: fields of [`AnomalyScoring`] that differ; those that are `None` do not.

        Returns:
            [`AnomalyScoring`]

        Raises:
            ValueError: a setting is unknown or out of range.
        """
        names = [field.name for field in fields(AnomalyScoring)]
        unknown = sorted(settings.keys() - set(names))
        if unknown:
            raise ValueError(f"Unknown settings {unknown}; known are {names}.")
        stored = {name: getattr(self, name) for name in (*names, "calibration")}
        given = {name: value for name, value in settings.items() if value is not None}
        values = {name: given.get(name, stored[name]) for name in names}
        current = {**self.measured_with(values), **(conditions or {})}
        return AnomalyScoring(**{**values, **resolve_thresholds(given, stored, current)})

    def without_thresholds(self) -> "VCPCLIPImageProcessor":
        """Return a copy that gives scores and maps, and neither labels nor masks."""
        bare = copy.copy(self)
        bare.threshold = bare.image_threshold = bare.calibration = None
        return bare

    def measured_with(self, settings: dict[str, Any] | None = None) -> dict[str, Any]:
        """
        Return the settings of this processor that scores and maps depend on, as a calibration records them.

        Args:
            settings (`dict[str, Any]`, *optional*): values of a call instead of the processor's.
        """
        settings = settings or {}
        scoring = ("score_mode", "top_k_fraction", "smoothing_sigma")
        return {
            **{name: settings.get(name, getattr(self, name)) for name in scoring},
            "size": [self.size.height, self.size.width],
            "resize_mode": self.resize_mode,
        }


def _placed(
    picture: Image.Image, fits: tuple[tuple[int, int], tuple[int, int]] | None, resample: int, mean: Any
) -> Image.Image:
    """Return a picture at the size of the model's input; padding has the color that becomes 0."""
    if fits is None:
        return picture
    channels = len(picture.getbands())
    fill = tuple(round(float(value) * 255) for value in np.broadcast_to(0 if mean is None else mean, channels))
    return place(picture, fits, resample, fill)


def _hashable(values: Any) -> Any:
    return tuple(values) if isinstance(values, (list, tuple, np.ndarray)) else values


@lru_cache(maxsize=16)
def _table_on(device: torch.device, scale: float, mean: Any, std: Any, channels: int) -> torch.Tensor:
    """Return `value_table` as one row, on a device."""
    return torch.from_numpy(value_table(scale, mean, std, channels)).flatten().to(device)
