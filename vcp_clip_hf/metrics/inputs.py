"""Conversion of anomaly maps, masks and scores to checked NumPy arrays on the CPU."""

from collections.abc import Sequence

import numpy as np
import torch


__all__ = ["Image", "Images", "Values", "as_images", "as_labels", "as_map", "as_mask", "as_scores"]

# One image, (height, width); a batch of them, (batch_size, height, width) or a list; one value per image
Image = np.ndarray | torch.Tensor
Images = np.ndarray | torch.Tensor | Sequence[Image]
Values = np.ndarray | torch.Tensor | Sequence[float]


def as_images(images: Images | Sequence[Image | None], name: str) -> list[Image | None]:
    """Return a batch, `(batch_size, height, width)` or a sequence of `(height, width)`, as a list, without a copy."""
    if isinstance(images, (np.ndarray, torch.Tensor)):
        if images.ndim == 2:
            raise ValueError(f"{name} is one image of shape {tuple(images.shape)}; pass a batch: `{name}[None]`.")
        if images.ndim == 4 and images.shape[1] == 1:
            raise ValueError(f"{name} has shape {tuple(images.shape)}; drop the channel: `{name}[:, 0]`.")
        if images.ndim != 3:
            raise ValueError(f"{name} has shape {tuple(images.shape)}, expected (batch_size, height, width).")
        # One transfer from the device for the batch instead of one per image
        return list(_to_numpy(images))
    if isinstance(images, (str, bytes)) or not isinstance(images, Sequence):
        raise TypeError(
            f"{name} is a {type(images).__name__}; expected an array or tensor of shape (batch_size, height, width),"
            " or a list of arrays of shape (height, width)."
        )
    return list(images)


def as_map(anomaly_map: Image) -> np.ndarray:
    """
    Convert and check one anomaly map.

    Returns:
        `np.ndarray` of shape `(height, width)`: float32, or float64 where float32 would not hold the values exactly.

    Raises:
        ValueError: the map is not two-dimensional, is empty, or has values that are not finite numbers.
    """
    values = _to_float(_to_numpy(anomaly_map), "the anomaly map")
    if values.ndim != 2 or not values.size:
        raise ValueError(f"the anomaly map has shape {values.shape}, expected (height, width), not empty")
    # One NaN pixel makes minimum and maximum NaN; they are several times faster than np.isfinite
    if not (np.isfinite(values.min()) and np.isfinite(values.max())):
        count = int((~np.isfinite(values)).sum())
        raise ValueError(f"the anomaly map has {count} of {values.size} pixels that are NaN or infinite")
    return values


def as_mask(mask: Image, shape: tuple[int, int]) -> np.ndarray:
    """
    Convert one mask and check it against the shape of its anomaly map.

    Returns:
        `np.ndarray` of shape `(height, width)`, bool: True where abnormal.

    Raises:
        ValueError: the shapes differ, or the mask has values other than 0 and 1.
    """
    values = _to_numpy(mask)
    if values.shape != shape:
        raise ValueError(
            f"the mask has shape {values.shape} and the anomaly map {shape}; resize one to the size of the other first"
        )
    if values.dtype == bool:
        return values
    if values.dtype.kind not in "iuf":
        raise ValueError(f"the mask has dtype {values.dtype}, expected booleans or the numbers 0 and 1")
    abnormal = values == 1
    if not (abnormal | (values == 0)).all():
        raise ValueError(
            f"the mask has values from {values.min()} to {values.max()}, expected 0 and 1;"
            " pass `mask > 0` if every other value means abnormal"
        )
    return abnormal


def as_scores(scores: Values, name: str) -> np.ndarray:
    """Convert a sequence of finite numbers to `(length,)`, float32 or float64."""
    values = _to_float(_to_numpy(scores), name)
    if values.ndim != 1:
        raise ValueError(f"{name} has shape {values.shape}, expected (length,).")
    if not np.isfinite(values).all():
        wrong = np.flatnonzero(~np.isfinite(values))
        shown = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        raise ValueError(f"{name} has {len(wrong)} values that are NaN or infinite, at {shown}.")
    return values


def as_labels(labels: Values, name: str) -> np.ndarray:
    """Convert a sequence of 0 (normal) and 1 (abnormal) to `(length,)`, bool."""
    values = _to_numpy(labels)
    if values.ndim != 1:
        raise ValueError(f"{name} has shape {values.shape}, expected (length,).")
    if values.dtype != bool and not np.isin(values, (0, 1)).all():
        raise ValueError(f"{name} must be 0 (normal) or 1 (abnormal), got {np.unique(values)[:6].tolist()}.")
    return values.astype(bool)


def _to_numpy(values: Image | Images | Values) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach()
        # NumPy has no bfloat16; float32 represents all its values
        return (values.float() if values.dtype == torch.bfloat16 else values).cpu().numpy()
    return np.asarray(values)


def _to_float(values: np.ndarray, name: str) -> np.ndarray:
    """Convert to the smaller of float32 and float64 that represents all values exactly."""
    if values.dtype in (np.float32, np.float64):
        return values
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{name} has dtype {values.dtype}, expected real numbers")
    return values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
