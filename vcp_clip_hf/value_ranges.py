"""The rule that converts pixel values of any type to 8 bits; `image_loading` documents it as a table."""

import numpy as np

from .deep_pixels import GrayScale
from .image_opening import warn_of_file


__all__ = ["checked_range", "to_8_bit", "warn_without_effect"]

_AS_STORED = GrayScale()


def checked_range(input_range: tuple[float, float] | None) -> tuple[float, float] | None:
    """
    Check the values of black and white.

    Raises:
        ValueError: not two finite numbers in ascending order.
    """
    if input_range is None:
        return None
    values = tuple(input_range)
    if len(values) != 2 or not np.isfinite(values).all() or not values[0] < values[1]:
        raise ValueError(f"input_range={values} must be (low, high) with low < high.")
    return values


def warn_without_effect(name: str) -> None:
    """Warn that an image of 8 bits was read with an `input_range`."""
    warn_of_file("8 bits", name, "has 8 bits per channel, so that input_range has no effect on it.")


def to_8_bit(
    values: np.ndarray, input_range: tuple[float, float] | None, name: str, scale: GrayScale = _AS_STORED
) -> np.ndarray:
    """
    Convert numbers of any type to uint8.

    Args:
        values (`np.ndarray`): pixel values of any shape.
        input_range (`tuple[float, float]`, *optional*): values of black and white, as stored in the file.
        name (`str`): name of the image, for messages.
        scale ([`GrayScale`], *optional*): what the file states about its values.

    Returns:
        `np.ndarray` of the same shape, uint8.

    Raises:
        ValueError: values are not numbers, not finite, or out of range.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind not in "iuf":
        raise ValueError(f"{name}: expected integers, floats or booleans.")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"{name}: {int((~np.isfinite(values)).sum())} pixels are NaN or infinite.")
    if input_range is not None:
        black, white = (each * scale.factor for each in input_range)
    else:
        black, white = 0, scale.white or _guessed_white(values, name)
    scaled = (values.astype(np.float64) - black) * (255.0 / (white - black))
    levels = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return 255 - levels if scale.inverted else levels


def _guessed_white(values: np.ndarray, name: str) -> int:
    """Return the value of white that the type and the values suggest."""
    low, high = values.min(), values.max()
    is_float = values.dtype.kind == "f"
    if low >= 0 and is_float and high <= 255:
        return 1 if high <= 1 else 255
    if low >= 0 and not is_float and high <= 65535:
        # values of 8 bits are usual in wide integers such as int64, not in 16 bits
        if 255 < high < 4096 or (0 < high <= 255 and values.dtype.itemsize == 2):
            _warn_of_dark_values(int(high), name)
        return 255 if high <= 255 else 65535
    expected = "[0, 1] or [0, 255]" if is_float else "0..255 or 0..65535"
    raise ValueError(
        f"{name}: values from {low} to {high}, expected {expected}. Pass input_range=(low, high), the values of black"
        " and white."
    )


def _warn_of_dark_values(high: int, name: str) -> None:
    if high <= 255:
        message = (
            f"16-bit data with values up to {high}, read as 8 bits. If the image really is that dark, pass"
            " input_range=(0, 65535); for data of 10 or 12 bits (0, 1023) or (0, 4095)."
        )
    else:
        bits = max(high.bit_length(), 10)
        message = (
            f"16-bit data with values up to {high}: it looks like {bits}-bit data, and without a range it becomes very"
            " dark. For such data pass input_range=(0, 4095) (12 bits) or (0, 1023) (10 bits)."
        )
    warn_of_file("dark", name, message)
