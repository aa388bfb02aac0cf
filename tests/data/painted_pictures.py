"""A small picture with a foreground, to paint anomalies on."""

import numpy as np
from PIL import Image


__all__ = ["HEIGHT", "WIDTH", "foreground", "picture"]

HEIGHT, WIDTH = 70, 110


def picture(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Image.Image:
    """Return a noisy ramp of gray values."""
    rng = np.random.default_rng(seed)
    base = np.linspace(60, 190, width)[None, :, None] + rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(base.clip(0, 255).astype(np.uint8))


def foreground() -> np.ndarray:
    """Return a mask of that picture: 1 in a rectangle, else 0."""
    solid = np.zeros((HEIGHT, WIDTH), np.uint8)
    solid[15:60, 20:80] = 1
    return solid
