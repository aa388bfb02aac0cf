"""Coordinates, random draws and noise: the raw material of every picture.

Lengths are in units of half an image side (coordinates run from -1 to 1), wavelengths in units of a whole side, so
that a picture looks alike at any size. Everything is float32: twice as fast as float64, and 8-bit pixels need no
more.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image


__all__ = [
    "Dice",
    "Grid",
    "cells",
    "gaussian_blur",
    "lookup",
    "noise",
    "normalized",
    "profile",
    "sample",
    "smoothstep",
    "zoomed",
]


class Dice:
    """
    A NumPy generator with the draws that scenes need. Scalars are Python floats and ints: a NumPy scalar would turn
    float32 fields into float64.

    Args:
        entropy (`int` or sequence of `int`): what the stream depends on, and nothing else.
        stream (`int`, *optional*): number of an independent stream of the same entropy.
    """

    def __init__(self, entropy: int | Sequence[int], stream: int = 0):
        self.generator = np.random.Generator(
            np.random.PCG64(np.random.SeedSequence(entropy=entropy, spawn_key=(stream,)))
        )

    def fork(self) -> "Dice":
        """An independent stream that costs this one a single draw, whatever is done with it: what may be left out
        must not change what comes after it."""
        return Dice(self.whole(0, 2**63 - 2))

    def between(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return float(self.generator.uniform(low, high))

    def log_between(self, low: float, high: float) -> float:
        """Log-uniform in [low, high): as many small values as large ones."""
        return math.exp(self.between(math.log(low), math.log(high)))

    def normal(self, mean: float = 0.0, std: float = 1.0) -> float:
        """One normal draw."""
        return float(self.generator.normal(mean, std))

    def beta(self, a: float, b: float) -> float:
        """Beta distribution, in [0, 1]."""
        return float(self.generator.beta(a, b))

    def whole(self, low: int, high: int) -> int:
        """Uniform integer, both ends included."""
        return int(self.generator.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        """True with this probability. Always uses up one draw."""
        return float(self.generator.random()) < probability

    def sign(self) -> float:
        """-1 or 1."""
        return 1.0 if self.chance(0.5) else -1.0

    def angle(self) -> float:
        """Any direction, in radians."""
        return self.between(-math.pi, math.pi)

    def pick(self, options: Sequence, weights: Sequence[float] | None = None):
        """One of the options."""
        if weights is None:
            return options[self.whole(0, len(options) - 1)]
        position = float(self.generator.random()) * sum(weights)
        for option, weight in zip(options, weights, strict=True):
            position -= weight
            if position < 0:
                return option
        return options[-1]

    def some(self, count: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """`(count,)` float32, uniform."""
        return self.generator.uniform(low, high, count).astype(np.float32)

    def gauss(self, *shape: int) -> np.ndarray:
        """Standard normal float32 of this shape."""
        return self.generator.standard_normal(shape, dtype=np.float32)


class Grid:
    """
    Coordinates of every pixel centre, x to the right and y down.

    Attributes:
        x, y (`np.ndarray` of shape `(size, size)`, float32): in the frame of the picture from -1 to 1; in a posed
            grid, in the frame of the object.
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
        """The same pixels seen from an object turned by `angle`, `scale` times as large (in y `squash` times that)
        and moved by `shift`."""
        new = object.__new__(Grid)
        new.size = self.size
        new.pixel = self.pixel / (scale * math.sqrt(squash))
        x, y = self.x - shift[0], self.y - shift[1]
        cos, sin = math.cos(angle), math.sin(angle)
        new.x = (x * cos + y * sin) / scale
        new.y = (y * cos - x * sin) / (scale * squash)
        return new

    def local(self, x: float, y: float, angle: float = 0.0) -> "Grid":
        """The same pixels seen from a part of the object: origin at its point (x, y), turned, in the same units."""
        new = object.__new__(Grid)
        new.size, new.pixel = self.size, self.pixel
        u, v = self.x - np.float32(x), self.y - np.float32(y)
        cos, sin = math.cos(angle), math.sin(angle)
        new.x, new.y = u * cos + v * sin, v * cos - u * sin
        return new

    def position(self, x: float, y: float) -> tuple[float, float]:
        """Where the object's point (x, y) lies in the picture."""
        a, b = float(self.x[0, 1] - self.x[0, 0]), float(self.x[1, 0] - self.x[0, 0])  # affine: three pixels tell
        c, d = float(self.y[0, 1] - self.y[0, 0]), float(self.y[1, 0] - self.y[0, 0])
        dx, dy = x - float(self.x[0, 0]), y - float(self.y[0, 0])
        determinant = a * d - b * c
        column, row = (d * dx - b * dy) / determinant, (a * dy - c * dx) / determinant
        return (column + 0.5) * 2 / self.size - 1, (row + 0.5) * 2 / self.size - 1

    @property
    def scale(self) -> float:
        """Half image sides per unit of this grid."""
        return 2.0 / (self.pixel * self.size)

    @property
    def angle(self) -> float:
        """How the object is turned in the picture, in radians."""
        return math.atan2(-float(self.y[0, 1] - self.y[0, 0]), float(self.x[0, 1] - self.x[0, 0]))

    @property
    def radius(self) -> np.ndarray:
        """Distance from the origin."""
        return np.sqrt(self.x * self.x + self.y * self.y)

    @property
    def theta(self) -> np.ndarray:
        """Angle around the origin, in [-pi, pi]."""
        return np.arctan2(self.y, self.x)


@lru_cache(maxsize=8)
def _axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    line = ((np.arange(size, dtype=np.float32) + 0.5) * np.float32(2.0 / size)) - 1
    x, y = np.meshgrid(line, line)
    x.flags.writeable = y.flags.writeable = False
    return x, y


@lru_cache(maxsize=8)
def _frequencies(size: int) -> tuple[np.ndarray, np.ndarray]:
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
    Gaussian noise with a power-law spectrum, one fast Fourier transform.

    Args:
        coarsest, finest (`float`): longest and shortest wavelength, in image sides; `finest` 0 is the pixel.
        beta (`float`): power falls as frequency ** -beta. 0 white, 2 clouds, 3 and more: soft hills.
        angle (`float`): direction of the grain in radians, 0 along x.
        stretch (`float`): wavelengths along the grain are this many times longer.

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
    if stretch > 1:  # across the grain the pixel is the limit; along it, what is finer must go too
        finest = max(finest, 2.0 / size)
    if finest > 1.0 / size:
        weight *= np.exp(np.maximum(-0.35 * finest * finest * squared, -60))
    weight[0, 0] = 0
    field = np.fft.irfft2(np.fft.rfft2(dice.gauss(size, size)) * weight, s=(size, size)).astype(np.float32)
    return field / max(float(field.std()), 1e-12)


def profile(
    dice: Dice, length: int = 512, coarsest: float = 1.0, finest: float = 0.0, beta: float = 1.0
) -> np.ndarray:
    """Noise along a line: `(length,)` float32, mean 0, standard deviation 1, periodic. Arguments as in [`noise`]."""
    frequency = (np.fft.rfftfreq(length) * length).astype(np.float32)
    frequency[0] = 1
    weight = frequency ** (-0.5 * beta) / (1 + (coarsest * frequency) ** -6.0)
    if finest > 2.0 / length:
        weight *= np.exp(np.maximum(-0.35 * (finest * frequency) ** 2, -60))
    weight[0] = 0
    line = np.fft.irfft(np.fft.rfft(dice.gauss(length)) * weight, n=length).astype(np.float32)
    return line / max(float(line.std()), 1e-12)


def lookup(table: np.ndarray, coordinate: np.ndarray) -> np.ndarray:
    """A periodic table of shape `(n,)` or `(n, c)` read at `coordinate`, one period per unit, linear in between."""
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
    """A field of shape `(h, w)` or `(h, w, c)` read at coordinates in [-1, 1], bilinear, clamped at the border."""
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
    Cellular noise (Worley 1996): scattered seeds, about `count` across the picture.

    Returns:
        three `np.ndarray` of shape `(size, size)`, float32: distance to the nearest seed and to the second nearest, in
        units of the mean spacing, and a number in [0, 1) that is the nearest seed's own.
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
    Gaussian blur of `(h, w)` or `(h, w, c)` float32, borders continued.

    Args:
        sigma (`float`): in pixels. Wide blurs run on a smaller copy, which no eye can tell apart.
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
    """A window (left, top, right, bottom in 0..1) of a field `(h, w)` or `(h, w, c)`, enlarged to the field's size."""
    height, width = field.shape[:2]
    box = (window[0] * width, window[1] * height, window[2] * width, window[3] * height)
    return _resize(field, (width, height), box)


def _resize(field: np.ndarray, size: tuple[int, int], box: tuple[float, ...] | None = None) -> np.ndarray:
    if field.ndim == 3:
        return np.stack([_resize(field[..., channel], size, box) for channel in range(field.shape[2])], axis=-1)
    picture = Image.fromarray(np.ascontiguousarray(field, dtype=np.float32))
    return np.array(picture.resize(size, Image.Resampling.BILINEAR, box=box))


def smoothstep(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth in between. `low` above `high` turns it round."""
    share = np.clip((value - low) / (high - low), 0, 1)
    return share * share * (3 - 2 * share)


def normalized(field: np.ndarray) -> np.ndarray:
    """Stretched to 0..1."""
    low, high = float(field.min()), float(field.max())
    return (field - low) / max(high - low, 1e-12)
