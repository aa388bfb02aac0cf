"""
Coordinates, random draws and noise.

Lengths are in half image sides (coordinates run from -1 to 1) and wavelengths in image sides, so that a picture looks
alike at any size. All fields are float32, which is twice as fast as float64 and precise enough for 8-bit pixels.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
from PIL import Image


__all__ = [
    "Dice",
    "Grid",
    "cells",
    "gaussian_blur",
    "lookup",
    "noise",
    "profile",
    "sample",
    "smoothstep",
    "zoomed",
]

T = TypeVar("T")


class Dice:
    """
    A random stream with the draws that scenes need.

    Scalars are Python floats and ints, because a NumPy scalar would turn float32 fields into float64.

    Args:
        entropy (`int` or sequence of `int`): seed; the stream depends on nothing else.
        stream (`int`, *optional*): number of an independent stream of the same entropy.
    """

    def __init__(self, entropy: int | Sequence[int], stream: int = 0):
        self.generator = np.random.Generator(
            np.random.PCG64(np.random.SeedSequence(entropy=entropy, spawn_key=(stream,)))
        )

    def fork(self) -> "Dice":
        """
        Return an independent stream, which costs this stream one draw, however much is drawn from the fork. A part
        that may be left out draws from a fork, so that everything after it stays the same.
        """
        return Dice(self.whole(0, 2**63 - 2))

    def between(self, low: float, high: float) -> float:
        """Draw uniformly from [low, high)."""
        return float(self.generator.uniform(low, high))

    def log_between(self, low: float, high: float) -> float:
        """Draw log-uniformly from [low, high), so that small and large values are equally frequent."""
        return math.exp(self.between(math.log(low), math.log(high)))

    def normal(self, mean: float = 0.0, std: float = 1.0) -> float:
        """Draw from a normal distribution."""
        return float(self.generator.normal(mean, std))

    def beta(self, a: float, b: float) -> float:
        """Draw from a beta distribution, in [0, 1]."""
        return float(self.generator.beta(a, b))

    def whole(self, low: int, high: int) -> int:
        """Draw a whole number uniformly, both ends included."""
        return int(self.generator.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        """Return True with this probability. Always takes one draw."""
        return float(self.generator.random()) < probability

    def sign(self) -> float:
        """Draw -1 or 1."""
        return 1.0 if self.chance(0.5) else -1.0

    def angle(self) -> float:
        """Draw any direction, in radians."""
        return self.between(-math.pi, math.pi)

    def pick(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """Draw one of the options, uniformly or with these weights."""
        if weights is None:
            return options[self.whole(0, len(options) - 1)]
        position = float(self.generator.random()) * sum(weights)
        for option, weight in zip(options, weights, strict=True):
            position -= weight
            if position < 0:
                return option
        return options[-1]

    def uniform_array(self, count: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """Draw `count` uniform float32 numbers."""
        return self.generator.uniform(low, high, count).astype(np.float32)

    def normal_array(self, *shape: int) -> np.ndarray:
        """Draw an array of standard normal float32 numbers."""
        return self.generator.standard_normal(shape, dtype=np.float32)


class Grid:
    """
    Coordinates of every pixel center, x to the right and y down.

    Attributes:
        x, y (`np.ndarray` of shape `(size, size)`, float32): coordinates from -1 to 1 in the frame of the picture; in
            a posed grid, coordinates in the frame of the object.
        size (`int`): pixels per side.
        pixel (`float`): width of a pixel in the units of x and y.
    """

    def __init__(self, size: int):
        self.size = size
        self.pixel = 2.0 / size
        self.x, self.y = _axes(size)

    def posed(
        self,
        angle: float = 0.0,
        scale: float = 1.0,
        shift: tuple[float, float] = (0.0, 0.0),
        squash: float = 1.0,
    ) -> "Grid":
        """
        Return the same pixels in the frame of an object.

        Args:
            angle (`float`): rotation of the object in radians.
            scale (`float`): size of the object's unit relative to this grid's unit.
            shift (`tuple[float, float]`): position of the object's origin in this grid.
            squash (`float`): additional factor on the scale along the object's y axis.
        """
        new = object.__new__(Grid)
        new.size = self.size
        new.pixel = self.pixel / (scale * math.sqrt(squash))
        x, y = self.x - shift[0], self.y - shift[1]
        cos, sin = math.cos(angle), math.sin(angle)
        new.x = (x * cos + y * sin) / scale
        new.y = (y * cos - x * sin) / (scale * squash)
        return new

    def local(self, x: float, y: float, angle: float = 0.0) -> "Grid":
        """Return the same pixels in the frame of a part: origin at the point (x, y), rotated, in the same units."""
        new = object.__new__(Grid)
        new.size, new.pixel = self.size, self.pixel
        u, v = self.x - np.float32(x), self.y - np.float32(y)
        cos, sin = math.cos(angle), math.sin(angle)
        new.x, new.y = u * cos + v * sin, v * cos - u * sin
        return new

    def position(self, x: float, y: float) -> tuple[float, float]:
        """Return where the object's point (x, y) lies in the frame of the picture."""
        a, b = (
            float(self.x[0, 1] - self.x[0, 0]),
            float(self.x[1, 0] - self.x[0, 0]),
        )  # three pixels determine the affine map
        c, d = float(self.y[0, 1] - self.y[0, 0]), float(self.y[1, 0] - self.y[0, 0])
        dx, dy = x - float(self.x[0, 0]), y - float(self.y[0, 0])
        determinant = a * d - b * c
        column, row = (d * dx - b * dy) / determinant, (a * dy - c * dx) / determinant
        return (column + 0.5) * 2 / self.size - 1, (row + 0.5) * 2 / self.size - 1

    @property
    def scale(self) -> float:
        """Return the half image sides per unit of this grid."""
        return 2.0 / (self.pixel * self.size)

    @property
    def angle(self) -> float:
        """Return the rotation of the object in the picture, in radians."""
        return math.atan2(-float(self.y[0, 1] - self.y[0, 0]), float(self.x[0, 1] - self.x[0, 0]))

    @property
    def radius(self) -> np.ndarray:
        """Return the distance of each pixel from the origin."""
        return np.sqrt(self.x * self.x + self.y * self.y)

    @property
    def theta(self) -> np.ndarray:
        """Return the angle of each pixel around the origin, in [-pi, pi]."""
        return np.arctan2(self.y, self.x)


@lru_cache(maxsize=8)
def _axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of every pixel center, read-only because the arrays are shared."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) * np.float32(2.0 / size)) - 1
    x, y = np.meshgrid(line, line)
    x.flags.writeable = y.flags.writeable = False
    return x, y


@lru_cache(maxsize=8)
def _frequencies(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the frequencies in x and y of a real Fourier transform, in cycles per image side."""
    fy = (np.fft.fftfreq(size) * size).astype(np.float32)[:, None]
    fx = (np.fft.rfftfreq(size) * size).astype(np.float32)[None, :]
    return fx, fy


def noise(
    dice: Dice,
    size: int,
    coarsest: float = 1.0,
    finest: float = 0.0,
    beta: float = 2.0,
    angle: float = 0.0,
    stretch: float = 1.0,
) -> np.ndarray:
    """
    Return Gaussian noise with a power-law spectrum, made with one fast Fourier transform.

    Args:
        coarsest, finest (`float`): longest and shortest wavelength, in image sides; `finest=0` is one pixel.
        beta (`float`): exponent of the power spectrum, frequency ** -beta: 0 white noise, 2 clouds, 3 and more soft
            hills.
        angle (`float`): direction of the grain in radians, 0 along x.
        stretch (`float`): ratio of wavelengths along the grain to those across it.

    Returns:
        `np.ndarray` of shape `(size, size)`, float32, mean 0, standard deviation 1. It wraps around at the borders.
    """
    fx, fy = _frequencies(size)
    cos, sin = math.cos(angle), math.sin(angle)
    along, across = (fx * cos + fy * sin) * stretch, fy * cos - fx * sin
    squared = along * along + across * across
    squared[0, 0] = 1
    weight = squared ** (-0.25 * beta)
    weight *= 1 / (1 + (coarsest * coarsest * squared) ** -3.0)
    if stretch > 1:  # remove wavelengths that only the direction along the grain could resolve
        finest = max(finest, 2.0 / size)
    if finest > 1.0 / size:
        weight *= np.exp(np.maximum(-0.35 * finest * finest * squared, -60))
    weight[0, 0] = 0
    field = np.fft.irfft2(np.fft.rfft2(dice.normal_array(size, size)) * weight, s=(size, size)).astype(np.float32)
    return field / max(float(field.std()), 1e-12)


def profile(
    dice: Dice, length: int = 512, coarsest: float = 1.0, finest: float = 0.0, beta: float = 1.0
) -> np.ndarray:
    """
    Return periodic noise along a line.

    Args:
        coarsest, finest, beta (`float`): parameters as in [`noise`], with wavelengths in periods.

    Returns:
        `np.ndarray` of shape `(length,)`, float32, mean 0, standard deviation 1.
    """
    frequency = (np.fft.rfftfreq(length) * length).astype(np.float32)
    frequency[0] = 1
    weight = frequency ** (-0.5 * beta) / (1 + (coarsest * frequency) ** -6.0)
    if finest > 2.0 / length:
        weight *= np.exp(np.maximum(-0.35 * (finest * frequency) ** 2, -60))
    weight[0] = 0
    line = np.fft.irfft(np.fft.rfft(dice.normal_array(length)) * weight, n=length).astype(np.float32)
    return line / max(float(line.std()), 1e-12)


def lookup(table: np.ndarray, coordinate: np.ndarray) -> np.ndarray:
    """
    Read a periodic table of shape `(n,)` or `(n, c)` at `coordinate`, one period per unit, with linear interpolation.
    """
    count = len(table)
    position = coordinate * np.float32(count)
    below = np.floor(position)
    share = (position - below).astype(np.float32)
    index = below.astype(np.int32) % count
    following = np.roll(table, -1, axis=0)
    if table.ndim == 2:
        share = share[..., None]
    return table[index] * (1 - share) + following[index] * share


def sample(field: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Read a field of shape `(h, w)` or `(h, w, c)` at coordinates in [-1, 1], bilinear, clamped at the border."""
    height, width = field.shape[:2]
    column = np.clip((x + 1) * np.float32(width / 2) - np.float32(0.5), 0, width - 1.001)
    row = np.clip((y + 1) * np.float32(height / 2) - np.float32(0.5), 0, height - 1.001)
    left, top = column.astype(np.int32), row.astype(np.int32)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    u, v = column - left, row - top
    if field.ndim == 3:
        u, v = u[..., None], v[..., None]
    upper = field[top, left] * (1 - u) + field[top, right] * u
    lower = field[bottom, left] * (1 - u) + field[bottom, right] * u
    return upper * (1 - v) + lower * v


def cells(dice: Dice, grid: Grid, count: float, jitter: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Return cellular noise (Worley 1996): seeds are scattered, about `count` across the picture.

    Args:
        jitter (`float`): randomness of the seeds, from 0 (a square lattice) to 1.

    Returns:
        three `np.ndarray` of shape `(size, size)`, float32: distance to the nearest seed and to the second nearest
        one, in units of the mean spacing, and a random number in [0, 1) that belongs to the nearest seed.
    """
    period = 64
    table = dice.generator.random((period, period, 3), dtype=np.float32)
    u, v = (grid.x + 1) * np.float32(count / 2), (grid.y + 1) * np.float32(count / 2)
    column, row = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    u, v = u - column, v - row
    first = np.full(u.shape, 9, np.float32)
    second = first.copy()
    owner = np.zeros(u.shape, np.float32)
    half = np.float32((1 - jitter) / 2)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            seed = table[(row + down) % period, (column + right) % period]
            dx = seed[..., 0] * np.float32(jitter) + (half + right) - u
            dy = seed[..., 1] * np.float32(jitter) + (half + down) - v
            distance = dx * dx + dy * dy
            nearer = distance < first
            second = np.where(nearer, first, np.minimum(second, distance))
            owner = np.where(nearer, seed[..., 2], owner)
            first = np.minimum(first, distance)
    return np.sqrt(first), np.sqrt(second), owner


def gaussian_blur(field: np.ndarray, sigma: float) -> np.ndarray:
    """
    Blur a field `(h, w)` or `(h, w, c)`, float32, whose borders are continued.

    Args:
        sigma (`float`): standard deviation in pixels. Above 4, the blur runs on a smaller copy, without a visible
            difference.
    """
    if sigma < 0.15:
        return field
    if sigma > 4:
        factor = int(sigma // 2)
        height, width = field.shape[:2]
        small_size = (max(2, width // factor), max(2, height // factor))
        small = gaussian_blur(_resize(field, small_size), sigma * small_size[0] / width)
        return _resize(small, (width, height))
    reach = math.ceil(3 * sigma)
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(reach + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    weights = [weight / total for weight in weights]
    for axis in (0, 1):
        length = field.shape[axis]
        padded = field.take(np.arange(-reach, length + reach).clip(0, length - 1), axis=axis)

        def part(start: int, padded: np.ndarray = padded, length: int = length, axis: int = axis) -> np.ndarray:
            return padded[start : start + length] if axis == 0 else padded[:, start : start + length]

        field = part(reach) * np.float32(weights[0])
        for offset in range(1, reach + 1):
            field += (part(reach - offset) + part(reach + offset)) * np.float32(weights[offset])
    return field


def zoomed(field: np.ndarray, window: tuple[float, float, float, float]) -> np.ndarray:
    """Enlarge a window (left, top, right, bottom in 0..1) of a field `(h, w)` or `(h, w, c)` to the field's size."""
    height, width = field.shape[:2]
    box = (window[0] * width, window[1] * height, window[2] * width, window[3] * height)
    return _resize(field, (width, height), box)


def _resize(field: np.ndarray, size: tuple[int, int], box: tuple[float, ...] | None = None) -> np.ndarray:
    if field.ndim == 3:
        return np.stack([_resize(field[..., channel], size, box) for channel in range(field.shape[2])], axis=-1)
    picture = Image.fromarray(np.ascontiguousarray(field, dtype=np.float32))
    return np.array(picture.resize(size, Image.Resampling.BILINEAR, box=box))


def smoothstep(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """Rise smoothly from 0 at `low` to 1 at `high`; with `low` above `high`, fall."""
    share = np.clip((value - low) / (high - low), 0, 1)
    return share * share * (3 - 2 * share)
