"""Image processor of VCP-CLIP: any image to `pixel_values`, model outputs to maps, scores and masks."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, ChannelDimension, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs, Unpack

from .image_loading import list_images, load_image, load_mask
from .pixel_preprocessing import fit, place, to_planes, value_table


__all__ = [
    "AnomalyScoring",
    "VCPCLIPImageProcessor",
    "VCPCLIPImageProcessorKwargs",
    "gaussian_matrix",
    "gaussian_smooth",
    "resize_map",
]

# scipy.ndimage.gaussian_filter's default, which the authors use: the kernel ends at 4 sigma
_TRUNCATE = 4.0


class VCPCLIPImageProcessorKwargs(ImagesKwargs, total=False):
    """
    Arguments of [`VCPCLIPImageProcessor`] beyond those of every image processor.

    resize_mode (`"squash"`, `"pad"` or `"keep_ratio"`): how an image is brought to `size`.
    size_divisor (`int`): what sides are multiples of with `"keep_ratio"`: the model's patch size.
    input_range (`tuple[float, float]`): black and white of data of more than 8 bits.
    smoothing_sigma (`float`): standard deviation of the Gaussian on the map, in input pixels; 0 switches it off.
    score_mode (`"max"` or `"top_k"`): how the image score is read from the maps.
    top_k_fraction (`float`): part of the pixels that `"top_k"` averages.
    threshold (`float`): on the map: pixels at or above it are abnormal.
    image_threshold (`float`): on the score: images at or above it are anomalous.
    calibration (`dict`): where the thresholds came from.
    """

    resize_mode: Literal["squash", "pad", "keep_ratio"]
    size_divisor: int
    input_range: list[float | int] | tuple[float | int, ...] | None
    smoothing_sigma: float | int
    score_mode: Literal["max", "top_k"]
    top_k_fraction: float | int
    threshold: float | int | None
    image_threshold: float | int | None
    calibration: dict | None


class VCPCLIPImageProcessor(PilBackend):
    r"""
    Prepares images for [`VCPCLIPModel`] and turns its outputs into results at the original size.

    Images may be paths, URLs, PIL pictures of any mode, NumPy or torch arrays, or lists of these; see
    `image_loading` for how values are read. The resize is Pillow's, bit-exact with the authors' transform.

    Args:
        size (`dict[str, int]`, *optional*, defaults to `{"height": 518, "width": 518}`):
            Size of `pixel_values`; multiples of the model's patch size.
        resample (`PILImageResampling`, *optional*, defaults to `BICUBIC`): filter of the image resize.
        resize_mode (`str`, *optional*, defaults to `"squash"`):
            `"squash"`: to `size`, whatever the ratio (the paper). `"pad"`: fit inside `size`, then pad on the right
            and at the bottom with the mean colour. `"keep_ratio"`: keep the ratio at about the area of `size`, sides
            rounded to `size_divisor`; images of one batch must then come out at one size.
        size_divisor (`int`, *optional*, defaults to 14): the model's patch size, for `"keep_ratio"`.
        image_mean, image_std (`list[float]`, *optional*, defaults to CLIP's): per channel, on [0, 1].
        input_range (`tuple[float, float]`, *optional*):
            Values that become black and white in data of more than 8 bits; (0, 4095) for a 12-bit camera.
        smoothing_sigma (`float`, *optional*, defaults to 8):
            Gaussian smoothing of the map, in pixels of `size` (the authors' test code). 0: none.
        score_mode (`str`, *optional*, defaults to `"max"`):
            `"max"`: maximum of the smoothed map, in [0, 1] (the paper, table 10). `"top_k"`: mean of the largest
            values of the unsmoothed base map plus the same of the Post-VCP map, in [0, 2] (the authors' code).
        top_k_fraction (`float`, *optional*, defaults to 2000 / 518^2):
            Part of the pixels that `"top_k"` averages.
        threshold (`float`, *optional*):
            Pixels of the map at or above it are abnormal. `None`: no masks.
        image_threshold (`float`, *optional*):
            Images with a score at or above it are anomalous. `None`: `threshold` with `"max"`, where both are on one
            scale; no labels with `"top_k"`.
        calibration (`dict`, *optional*):
            Method, number of images and date of the thresholds, as `calibration` writes it.
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
    smoothing_sigma = 8.0
    score_mode = "max"
    top_k_fraction = 2000 / 518**2
    threshold = None
    image_threshold = None
    calibration = None

    def __init__(self, **kwargs: Unpack[VCPCLIPImageProcessorKwargs]):
        super().__init__(**kwargs)
        if self.resize_mode not in ("squash", "pad", "keep_ratio"):
            raise ValueError(f"resize_mode={self.resize_mode!r} must be 'squash', 'pad' or 'keep_ratio'.")
        if not (self.size.height and self.size.width):
            raise ValueError(f"size={dict(self.size)} must give 'height' and 'width'.")
        self.scoring()  # checks its own settings
        if self.input_range is not None:
            self.input_range = list(self.input_range)  # as JSON gives it back

    @classmethod
    def for_model(cls, config, **kwargs) -> "VCPCLIPImageProcessor":
        """A processor for the input size and the patch size of a [`VCPCLIPConfig`]; `kwargs` as in the constructor."""
        height, width = config.input_size
        defaults = {
            "size": {"height": height, "width": width},
            "size_divisor": config.vision_config.patch_size,
        }
        return cls(**{**defaults, **kwargs})

    def preprocess(
        self, images, segmentation_maps=None, **kwargs: Unpack[VCPCLIPImageProcessorKwargs]
    ) -> BatchFeature:
        """
        Args:
            images: one image, a list of images, or a 4-dimensional array of images.
            segmentation_maps (*optional*):
                The masks, in the same order and at the size of their images: two-valued, single-channel. `None` in
                the list stands for a mask without defect.
            kwargs: any attribute of this processor, for this call; `return_tensors="pt"` or `"np"` to stack.

        Returns:
            [`BatchFeature`] with `pixel_values`, float32 of shape `(batch_size, 3, height, width)`, and `labels`,
            int64 of shape `(batch_size, height, width)` with 0 and 1, if `segmentation_maps` were given.
        """
        return super().preprocess(images, segmentation_maps, **kwargs)

    def _preprocess_image_like_inputs(
        self,
        images,
        segmentation_maps,
        do_resize: bool,
        size: SizeDict,
        resample: int,
        resize_mode: str,
        size_divisor: int,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean,
        image_std,
        input_range,
        input_data_format,
        return_tensors,
        **kwargs,
    ) -> BatchFeature:
        channels_last = (
            None if input_data_format is None else ChannelDimension(input_data_format) == ChannelDimension.LAST
        )
        pictures = [load_image(image, input_range, channels_last) for image in list_images(images)]
        full = (size.height, size.width)
        fitted = [
            fit(picture.height, picture.width, full, resize_mode, size_divisor) if do_resize else None
            for picture in pictures
        ]
        table = value_table(rescale_factor if do_rescale else 1.0, image_mean if do_normalize else None, image_std)
        fill = (0, 0, 0)
        if do_normalize:  # the colour that becomes 0
            fill = tuple(round(float(value) * 255) for value in np.broadcast_to(image_mean, 3))
        pixel_values = [
            to_planes(picture if fits is None else place(picture, fits, resample, fill), table)
            for picture, fits in zip(pictures, fitted, strict=True)
        ]
        data = {"pixel_values": self._stackable(pixel_values, return_tensors)}

        if segmentation_maps is not None:
            data["labels"] = self._prepare_masks(segmentation_maps, pictures, fitted)
        return BatchFeature(data=data, tensor_type=return_tensors)

    @staticmethod
    def _stackable(pixel_values: list[np.ndarray], return_tensors) -> list[np.ndarray]:
        shapes = {array.shape[1:] for array in pixel_values}
        if return_tensors is not None and len(shapes) > 1:
            raise ValueError(
                f"The images of this batch come out at {len(shapes)} sizes, {sorted(shapes)[:4]}, and cannot be"
                " stacked. Use resize_mode='squash' or 'pad', group images by their ratio, or take batches of one."
            )
        return pixel_values

    def _prepare_masks(self, segmentation_maps, pictures: list[Image.Image], fitted: list) -> list[np.ndarray]:
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
            # As the authors do: bilinear, then more than half of the pixel (thin defects can vanish)
            resized = Image.fromarray(values * np.uint8(255))
            if fits is not None:
                resized = place(resized, fits, PILImageResampling.BILINEAR, 0)
            labels.append((np.asarray(resized) > 127.5).astype(np.int64))
        return labels

    @staticmethod
    def _list_masks(segmentation_maps) -> list:
        if isinstance(segmentation_maps, (np.ndarray, torch.Tensor)) and segmentation_maps.ndim >= 3:
            return list(segmentation_maps)
        if isinstance(segmentation_maps, (list, tuple)):
            return list(segmentation_maps)
        return [segmentation_maps]

    def post_process_anomaly_segmentation(
        self,
        outputs,
        target_sizes: list[tuple[int, int]] | None = None,
        roi_masks: list | None = None,
        **settings,
    ) -> list[dict]:
        """
        Turn a [`VCPCLIPOutput`] into one result for each image. Results do not depend on the rest of the batch.

        Args:
            outputs ([`VCPCLIPOutput`]): raw maps, on any device; the work is done there.
            target_sizes (`list[tuple[int, int]]`, *optional*):
                (height, width) of each original image; the map is resized to it (bilinear), padding removed. Without
                it the map stays at the model's size, padding included.
            roi_masks (`list`, *optional*):
                For each image, `None` or an array of its original size, non-zero where to look; the map is 0
                elsewhere, for the score too.
            settings: `threshold`, `image_threshold`, `smoothing_sigma`, `score_mode`, `top_k_fraction`,
                `resize_mode`, instead of the processor's own.

        Returns:
            `list[dict]` with, for each image,
            - **score** (`float`): read at the model's size; in [0, 1] with `"max"`, in [0, 2] with `"top_k"`;
            - **label** (`"normal"`, `"anomalous"` or `None`): score against the image threshold;
            - **threshold**, **image_threshold** (`float` or `None`): those used;
            - **anomaly_map** (`torch.FloatTensor` of shape `(height, width)`): fused, smoothed, in [0, 1];
            - **mask** (`torch.BoolTensor` of shape `(height, width)`, or `None`): map at or above `threshold`.

        Raises:
            ValueError: the number of `target_sizes` or `roi_masks` is not that of images; an unknown setting.
        """
        scoring = self.scoring(**settings)
        maps = outputs.anomaly_map.float()
        branches = [branch.float() for branch in (outputs.base_map, outputs.vcp_map) if branch is not None]
        for name, given in (("target_sizes", target_sizes), ("roi_masks", roi_masks)):
            if given is not None and len(given) != len(maps):
                raise ValueError(f"{len(given)} {name} came with {len(maps)} images.")

        # 1. remove the padding, so that it takes part in nothing; without it the images stay one batch
        if scoring.resize_mode == "pad" and target_sizes is not None:
            groups = [
                ([index], [self.without_padding(stack[index : index + 1], size, "pad") for stack in (maps, *branches)])
                for index, size in enumerate(target_sizes)
            ]
        else:
            groups = [(list(range(len(maps))), [maps, *branches])]

        results = [{} for _ in maps]
        for indices, (group_maps, *group_branches) in groups:
            # 2. smooth and score at the model's size
            smooth = gaussian_smooth(group_maps, scoring.smoothing_sigma)
            if roi_masks is not None:
                inside = torch.stack([_roi_at(roi_masks[index], smooth[0]) for index in indices])
                smooth, group_branches = smooth * inside, [branch * inside for branch in group_branches]
            scores = scoring.scores(smooth, group_branches)
            # 3. to the original size
            for index, anomaly_map, score in zip(indices, smooth, scores, strict=True):
                if target_sizes is not None:
                    anomaly_map = resize_map(anomaly_map, target_sizes[index])
                if roi_masks is not None:
                    anomaly_map = anomaly_map * _roi_at(roi_masks[index], anomaly_map)
                results[index] = scoring.result(anomaly_map, score)
        return results

    def without_padding(
        self, maps: torch.Tensor, target_size: tuple[int, int], resize_mode: str | None = None
    ) -> torch.Tensor:
        """Maps of shape (..., h, w) of an image of `target_size`, cut to the part that shows the image."""
        if (resize_mode or self.resize_mode) != "pad":
            return maps
        (height, width), _ = fit(*target_size, tuple(maps.shape[-2:]), "pad")
        return maps[..., :height, :width]

    def scoring(self, **settings) -> "AnomalyScoring":
        """How maps become scores, labels and masks: this processor's settings, and those given instead of them."""
        names = list(AnomalyScoring.__dataclass_fields__)
        unknown = sorted(settings.keys() - set(names))
        if unknown:
            raise ValueError(f"Unknown settings {unknown}; known are {names}.")
        own = {name: getattr(self, name) for name in names}
        return AnomalyScoring(**{**own, **{name: value for name, value in settings.items() if value is not None}})


@dataclass
class AnomalyScoring:
    """
    From maps to scores, labels and masks; the fields are those of [`VCPCLIPImageProcessor`] of the same names.

    The one place where maps are scored and thresholds are applied, for whole images and for tiled ones.
    """

    threshold: float | None
    image_threshold: float | None
    smoothing_sigma: float
    score_mode: str
    top_k_fraction: float
    resize_mode: str

    def __post_init__(self):
        if self.score_mode not in ("max", "top_k"):
            raise ValueError(f"score_mode={self.score_mode!r} must be 'max' or 'top_k'.")
        if not 0 < self.top_k_fraction <= 1:
            raise ValueError(f"top_k_fraction={self.top_k_fraction} must lie in (0, 1].")
        if self.smoothing_sigma < 0:
            raise ValueError(f"smoothing_sigma={self.smoothing_sigma} must be 0 (none) or more.")
        if self.image_threshold is None and self.score_mode == "max":
            self.image_threshold = self.threshold  # both are on one scale

    def scores(self, smooth: torch.Tensor, branches: list[torch.Tensor]) -> list[float]:
        """Smoothed fused maps and unsmoothed maps of the branches, all `(batch_size, height, width)` -> scores."""
        return self.score_tensor(smooth, branches).tolist()

    def score_tensor(self, smooth: torch.Tensor, branches: list[torch.Tensor]) -> torch.Tensor:
        """As `scores`, of shape `(batch_size,)`, on the device of the maps; exported graphs end with it."""
        if self.score_mode == "max":
            return smooth.flatten(1).amax(dim=1)
        return sum(_top_mean(branch, self.top_k_fraction) for branch in branches)

    def result(self, anomaly_map: torch.Tensor, score: float) -> dict:
        """One image's result, as `post_process_anomaly_segmentation` returns it."""
        label = None
        if self.image_threshold is not None:
            label = "anomalous" if score >= self.image_threshold else "normal"
        return {
            "score": score,
            "label": label,
            "threshold": self.threshold,
            "image_threshold": self.image_threshold,
            "anomaly_map": anomaly_map,
            "mask": None if self.threshold is None else anomaly_map >= self.threshold,
        }


def resize_map(anomaly_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(..., h, w) -> (..., height, width), bilinear: how every map comes back to its image's size."""
    if tuple(anomaly_map.shape[-2:]) == tuple(size):
        return anomaly_map
    flat = anomaly_map.reshape(1, -1, *anomaly_map.shape[-2:])
    flat = torch.nn.functional.interpolate(flat, size=tuple(size), mode="bilinear", align_corners=False)
    return flat.reshape(*anomaly_map.shape[:-2], *size)


def _roi_at(roi_mask, like: torch.Tensor) -> torch.Tensor:
    """A region of interest at the size of a map: 1 where to look, else 0."""
    if roi_mask is None:
        return torch.ones_like(like)
    inside = torch.from_numpy(np.asarray(roi_mask) != 0).to(like)
    if inside.shape != like.shape:
        inside = torch.nn.functional.interpolate(inside[None, None], size=like.shape, mode="nearest-exact")[0, 0]
    return inside


def _top_mean(maps: torch.Tensor, fraction: float) -> torch.Tensor:
    """(B, H, W) -> (B,): mean of the largest values, `fraction` of the pixels and at least one."""
    values = maps.flatten(1)
    return values.topk(max(1, round(fraction * values.shape[1])), dim=1).values.mean(dim=1)


@lru_cache(maxsize=16)
def gaussian_matrix(length: int, sigma: float, device: torch.device) -> torch.Tensor:
    """(length, length) float32: row i weighs the samples that make output i, reflections at both ends folded in."""
    radius = int(_TRUNCATE * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    # half-sample reflection (d c b a | a b c d | d c b a), repeated if the kernel is longer than the signal
    source = (np.arange(length)[:, None] + offsets) % (2 * length)
    source = np.where(source < length, source, 2 * length - 1 - source)
    matrix = np.zeros((length, length))
    np.add.at(matrix, (np.arange(length)[:, None], source), weights)
    return torch.from_numpy(matrix).to(device=device, dtype=torch.float32)


def gaussian_smooth(maps: torch.Tensor, sigma: float) -> torch.Tensor:
    """
    Gaussian smoothing, equal to `scipy.ndimage.gaussian_filter(map, sigma)` (reflecting edges, cut at 4 sigma).

    Args:
        maps (`torch.FloatTensor` of shape `(..., height, width)`): on any device.
        sigma (`float`): standard deviation in pixels; 0 returns the maps as they are.

    Returns:
        `torch.FloatTensor` of the same shape.
    """
    if not sigma:
        return maps
    # Two small matrix products: exact at the edges, and as fast as a convolution where it matters
    rows, columns = (gaussian_matrix(length, float(sigma), maps.device) for length in maps.shape[-2:])
    return rows @ maps @ columns.T
