"""The last step of the pipeline and of the torch-free runtime: from a map at the image's size to the returned dict.

NumPy and Pillow only. The pipeline, Hub repositories with remote code and exported folders all run this file, so that
thresholds, masks, regions and overlays cannot differ between them.
"""

from numbers import Integral
from typing import Any

import numpy as np
from PIL import Image

from .regions import clean_mask, find_regions
from .thresholds import Thresholds
from .visualization import overlay


__all__ = ["as_segments", "finish", "missing_threshold", "resize_array"]


def finish(
    image: Image.Image,
    anomaly_map: np.ndarray | None,
    score: float,
    thresholds: Thresholds,
    inside: np.ndarray | None,
    *,
    min_area: int = 0,
    fill_holes: bool = False,
    output_image: bool = False,
    heatmap: bool = False,
    regions: bool = False,
) -> dict[str, Any]:
    """
    Make the result of one image.

    Args:
        image (`PIL.Image.Image`): mode RGB.
        anomaly_map (`np.ndarray` of shape `(height, width)`, float32, *optional*):
            Map in [0, 1], at the size of `image`. Without it there is no mask, and only the label is determined.
        score (`float`): score of the image.
        thresholds ([`Thresholds`]): limits for mask and label.
        inside (`np.ndarray` of shape `(height, width)`, bool, *optional*): region of interest; the mask ends at its
            border.
        min_area (`int`, *optional*, defaults to 0):
            Minimum area in pixels: smaller regions are dropped from mask and regions. An image becomes normal if its
            mask had pixels and all of them were dropped; an image whose mask was empty keeps its label.
        fill_holes (`bool`, *optional*, defaults to `False`):
            Fill holes in the mask, before small regions are dropped. It never changes the label.
        output_image (`bool`, *optional*, defaults to `False`): whether to add `image`.
        heatmap (`bool`, *optional*, defaults to `False`):
            Whether to add `heatmap`, the image under its map on the scale [0, 1].
        regions (`bool`, *optional*, defaults to `False`): whether to add `regions`, see `find_regions`.

    Returns:
        `dict` with
        - **score** (`float`);
        - **label** (`"normal"`, `"anomalous"` or `None`);
        - **threshold**, **image_threshold** (`float` or `None`);
        - **anomaly_map** (`np.ndarray` of shape `(height, width)`, float32);
        - **mask** (`PIL.Image.Image`, mode L, 0 or 255, or `None`);
        and the requested additions.

    Raises:
        ValueError: regions were requested without a pixel threshold, or `min_area` is not a number of pixels.
    """
    if isinstance(min_area, bool) or not isinstance(min_area, Integral) or min_area < 0:
        raise ValueError(f"min_area={min_area!r} must be a whole number of pixels; 0 keeps every region.")
    label, mask = thresholds.label(score), None if anomaly_map is None else thresholds.mask(anomaly_map)
    if regions and mask is None:
        raise ValueError(missing_threshold("Regions need"))
    if mask is not None:
        mask, all_dropped = _cleaned(mask, inside, min_area, fill_holes)
        if label == "anomalous" and all_dropped:
            label = "normal"
    result = {
        "score": score,
        "label": label,
        "threshold": thresholds.pixel,
        "image_threshold": thresholds.image,
        "anomaly_map": anomaly_map,
        "mask": None if mask is None else Image.fromarray(mask.astype(np.uint8) * np.uint8(255)),
    }
    if output_image:
        result["image"] = image
    if heatmap:
        result["heatmap"] = overlay(image, anomaly_map, mask)
    if regions:
        result["regions"] = find_regions(mask, anomaly_map)
    return result


def _cleaned(mask: np.ndarray, inside: np.ndarray | None, min_area: int, fill_holes: bool) -> tuple[np.ndarray, bool]:
    """Return the mask in the region of interest without holes and small regions, and whether that emptied it."""
    had_pixels = bool(mask.any() if inside is None else (mask & inside).any())
    if fill_holes:
        mask = clean_mask(mask, fill_holes=True)
    if inside is not None:
        mask = mask & inside
    if min_area > 1:
        mask = clean_mask(mask, min_area)
    return mask, had_pixels and not mask.any()


def as_segments(result: dict[str, Any]) -> list[dict[str, Any]]:
    """
    Convert a result to the format of transformers' image-segmentation pipeline.

    Args:
        result (`dict`): result of `finish`.

    Returns:
        `list[dict]`: one segment with `score` (maximum of the map inside the mask), `label` ("anomaly") and `mask`;
        empty if no pixel is abnormal.

    Raises:
        ValueError: the result has no mask.
    """
    if result["mask"] is None:
        raise ValueError(missing_threshold("The image-segmentation format needs"))
    inside = np.asarray(result["mask"]) > 0
    if not inside.any():
        return []
    return [{"score": float(result["anomaly_map"][inside].max()), "label": "anomaly", "mask": result["mask"]}]


def missing_threshold(need: str) -> str:
    """Return the message of an error: `need`, such as "Regions need", and what to do without a threshold."""
    return (
        f"{need} a threshold, and there is none for this call. Pass threshold=..., or calibrate the checkpoint on"
        " normal images with the settings of this call (`calibrate`; an exported folder then needs a copy of the"
        " checkpoint's preprocessor_config.json)."
    )


def resize_array(anomaly_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """
    Resize a map, bilinear, without torch. The runtime of exported models uses it; the pipeline resizes with torch, on
    the model's device, and the two agree up to rounding.

    Args:
        anomaly_map (`np.ndarray` of shape `(h, w)`, float32): map at the model's size.
        size (`tuple[int, int]`): height and width of the image.

    Returns:
        `np.ndarray` of shape `size`, float32.
    """
    for axis, length in ((1, size[1]), (0, size[0])):
        if anomaly_map.shape[axis] == length:
            continue
        known = anomaly_map.shape[axis]
        # positions in float32, as in torch: float64 would put some of them into another pixel
        scale = np.float32(known) / np.float32(length)
        places = np.maximum(scale * (np.arange(length, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
        before = np.minimum(places.astype(np.int64), known - 1)
        after = np.minimum(before + 1, known - 1)
        weights = np.expand_dims((places - before).astype(np.float32), 1 - axis)
        first, second = anomaly_map.take(before, axis), anomaly_map.take(after, axis)
        anomaly_map = first * (1 - weights) + second * weights
    return anomaly_map
