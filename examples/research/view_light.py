"""Change turn, light and camera of a training picture: what differs between pictures of the same good product."""

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter


__all__ = ["ViewLight"]


@dataclass(frozen=True)
class ViewLight:
    """
    Turn, light and camera of a view, which are not damage.

    Args:
        size (`int`): side of the view in pixels.
        turn (`int`): number of quarter turns, 0..3.
        flip (`bool`): whether the view is mirrored.
        gray (`bool`): whether the view loses its colors.
        contrast, gamma (`float`): factor of the contrast and exponent of the tone; 1 changes nothing.
        brightness (`float`): levels of 0..255 that are added.
        slope (`np.ndarray` of shape `(size, size, 1)` or `float`): factor of the light at each pixel.
        blur (`float`): standard deviation of the blur in pixels.
        noise (`np.ndarray` of shape `(size, size, 3)` or `float`): noise of the camera in levels of 0..255.
        quality (`int`, *optional*): quality of the JPEG compression, 1..95.
    """

    size: int
    turn: int
    flip: bool
    gray: bool
    contrast: float
    brightness: float
    gamma: float
    slope: np.ndarray | float
    blur: float
    noise: np.ndarray | float
    quality: int | None

    @classmethod
    def draw(cls, size: int, rng: np.random.Generator) -> "ViewLight":
        """Draw turn, light and camera at random for a view of `size` x `size` pixels."""
        slope: np.ndarray | float = 1.0
        if rng.random() < 0.4:  # light from one side
            x, y = np.meshgrid(*2 * [np.linspace(-1, 1, size, dtype=np.float32)])
            angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.35)
            slope = 1 + np.float32(strength) * (x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle)))
            slope = slope[..., None]
        noise: np.ndarray | float = 0.0
        if rng.random() < 0.4:
            noise = rng.standard_normal((size, size, 3), np.float32) * np.float32(rng.uniform(0, 7))
        return cls(
            size=size,
            turn=int(rng.integers(4)),
            flip=rng.random() < 0.5,
            gray=rng.random() < 0.3,
            contrast=rng.uniform(0.65, 1.35),
            brightness=rng.uniform(-30, 30),
            gamma=rng.uniform(0.75, 1.35) if rng.random() < 0.4 else 1.0,
            slope=slope,
            blur=rng.uniform(0.3, 1.1) if rng.random() < 0.3 else 0.0,
            noise=noise,
            quality=int(rng.integers(50, 95)) if rng.random() < 0.3 else None,
        )

    def turned(self, array: np.ndarray) -> np.ndarray:
        """Turn and mirror an array (height, width, ...)."""
        array = np.rot90(array, self.turn)
        return array[:, ::-1] if self.flip else array

    def picture(self, crop: np.ndarray) -> np.ndarray:
        """Convert (side, side, 3) uint8 -> (size, size, 3) float in [0, 255]."""
        picture = Image.fromarray(crop).resize((self.size, self.size), Image.Resampling.BICUBIC)
        picture = picture.filter(ImageFilter.GaussianBlur(self.blur)) if self.blur else picture
        picture = picture.convert("L").convert("RGB") if self.gray else picture
        pixels = self.turned(np.asarray(picture, np.float32))
        if self.gamma != 1:
            pixels = 255 * (pixels / 255) ** np.float32(self.gamma)
        pixels = ((pixels * self.slope - 128) * self.contrast + 128 + self.brightness + self.noise).clip(0, 255)
        return pixels if self.quality is None else _compressed(pixels, self.quality)


def _compressed(pixels: np.ndarray, quality: int) -> np.ndarray:
    """Return the pixels after JPEG compression."""
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file), np.float32)
