"""Regions of interest, for pipeline and exported runtime. NumPy and Pillow only."""

import numpy as np

from .image_loading import ImageLike, load_nonzero


__all__ = ["load_region_of_interest", "region_at_size"]


def load_region_of_interest(roi_mask: ImageLike, size: tuple[int, int]) -> np.ndarray:
    """
    Read a region of interest.

    Args:
        roi_mask (`ImageLike`):
            Picture or array of the size of the image. Pixels with a color channel that is not zero are inspected,
            whatever the type: 0/1, 0/255, 16 bits, bool, palette (by its colors), RGB. Transparent pixels are not
            inspected. In a JPEG file, values of 128 or more count.
        size (`tuple[int, int]`): height and width of the image that it belongs to.

    Returns:
        `np.ndarray` of shape `(height, width)`, bool.

    Raises:
        ValueError: the two sizes differ, or the mask leaves nothing to inspect.
    """
    name, inside = load_nonzero(roi_mask)
    if inside.shape != size:
        raise ValueError(f"roi_mask is {inside.shape} (height, width), the image {size}: {name}.")
    if not inside.any():
        raise ValueError(
            f"roi_mask ({name}) leaves nothing to inspect: all {size[0]} x {size[1]} pixels are black or"
            " transparent. Pixels to inspect must have another color."
        )
    return inside


def region_at_size(inside: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """
    Resample a region of interest to the size of a map, by the nearest pixel center.

    Args:
        inside (`np.ndarray` of shape `(height, width)`, bool): region at the image's size.
        size (`tuple[int, int]`): height and width of the map.

    Returns:
        `np.ndarray` of shape `size`, bool; equal to torch's interpolation "nearest-exact". If a small region lies
        between all centers, the pixels of the map that contain it are returned instead, so that it is never lost.
    """
    resampled = inside
    for axis, length in enumerate(size):
        scale = np.float32(inside.shape[axis]) / np.float32(length)
        places = ((np.arange(length, dtype=np.float32) + np.float32(0.5)) * scale).astype(np.int64)
        resampled = resampled.take(np.minimum(places, inside.shape[axis] - 1), axis)
    if inside.any() and not resampled.any():
        rows, columns = np.nonzero(inside)
        resampled[rows * size[0] // inside.shape[0], columns * size[1] // inside.shape[1]] = True
    return resampled
