"""The camera that photographs a lit scene: lens, sensor and file format."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .fields import Dice, gaussian_blur, zoomed


__all__ = ["Camera"]


@dataclass
class Camera:
    """
    Lens, sensor and file format.

    Args:
        blur (`float`): standard deviation of the lens blur in pixels.
        exposure (`float`): target mean brightness, 0..1, see [`Camera.meter`].
        gamma, black (`float`): exponent of the tone curve, and its black level, 0..1.
        gray (`bool`): whether the camera is monochrome.
        grain (`float`): noise at half brightness, as a share (0..1) of the full range.
        stripes (`float`): column noise of line scan cameras, as a share (0..1) of the full range.
        coarse (`int`): pixels per noise grain; 2 imitates enlarged pictures.
        quality (`int`, *optional*): quality of the JPEG file; None for no compression.
        window (`tuple[float, float, float, float]`, *optional*): left, top, right, bottom, 0..1, of the part that is
            enlarged to the full picture. It is not square, as in datasets of squashed oblong pictures.
        seed (`int`): seed of the sensor noise.
        gain (`float`): factor on the light, set by [`Camera.meter`].
    """

    blur: float
    exposure: float
    gamma: float
    black: float
    gray: bool
    grain: float
    stripes: float
    coarse: int
    quality: int | None
    window: tuple[float, float, float, float] | None
    seed: int
    gain: float = 1.0

    @classmethod
    def random(cls, dice: Dice, size: int, gray: float, cropped: float) -> "Camera":
        """
        Draw a plausible camera.

        Args:
            gray (`float`): probability of a monochrome camera, 0..1.
            cropped (`float`): probability that the picture is a window, 0..1.
        """
        wide, high = dice.between(0.5, 1.0), dice.between(0.5, 1.0)
        left, top = dice.between(0, 1 - wide), dice.between(0, 1 - high)
        return cls(
            blur=dice.pick((0.0, dice.between(0.3, 0.8), dice.between(0.5, 1.5)), (0.3, 0.5, 0.2)) * size / 256,
            exposure=dice.between(0.13, 0.7),
            gamma=dice.log_between(0.7, 1.4),
            black=dice.pick((0.0, dice.between(0, 0.12)), (0.6, 0.4)),
            gray=dice.chance(gray),
            grain=dice.pick((0.0, dice.log_between(0.004, 0.045)), (0.25, 0.75)),
            stripes=dice.pick((0.0, dice.log_between(0.003, 0.015)), (0.85, 0.15)),
            coarse=dice.pick((1, 2), (0.8, 0.2)),
            quality=dice.pick((None, dice.whole(45, 95)), (0.5, 0.5)),
            window=(left, top, left + wide, top + high) if dice.chance(cropped) else None,
            seed=dice.whole(0, 2**31 - 1),
        )

    def meter(self, picture: np.ndarray, support: np.ndarray) -> None:
        """
        Set the gain so that the product gets about the brightness `exposure`. Pictures that are compared
        must share one metering.
        """
        weight = support + np.float32(0.3)
        mean = float((picture.mean(axis=2) * weight).sum() / weight.sum())
        self.gain = (self.exposure / max(mean, 1e-3)) ** 0.75  # below 1, so that dark products stay a little darker

    def frame(self, field: np.ndarray) -> np.ndarray:
        """Return the visible part of a field `(size, size)` or `(size, size, 3)`, enlarged to the same size."""
        return field if self.window is None else zoomed(field, self.window)

    def develop(self, picture: np.ndarray) -> np.ndarray:
        """Apply lens and tone curve to linear light: `(size, size, 3)` float32 in [0, 1], without noise."""
        picture = gaussian_blur(self.frame(picture), self.blur)
        if self.gray:
            luminance = picture @ np.array([0.299, 0.587, 0.114], np.float32)
            picture = np.repeat(luminance[..., None], 3, axis=2)
        picture = np.maximum(picture * np.float32(self.gain), 1e-4) ** np.float32(self.gamma)
        # highlights roll off instead of clipping hard
        bright = np.maximum(picture - 0.8, 0)
        picture = np.minimum(picture, 0.8) + bright / (1 + bright * 2.2)
        return np.clip(np.float32(self.black) + picture * np.float32(1 - self.black), 0, 1)

    def record(self, developed: np.ndarray) -> Image.Image:
        """
        Add sensor noise, round to 8 bits and compress. The noise depends on the camera only: its pictures all share
        it.
        """
        size = developed.shape[0]
        dice = Dice(self.seed)
        if self.grain:
            side = -(-size // self.coarse)
            grain = dice.normal_array(side, side, 1 if self.gray else 3)
            if self.coarse > 1:
                grain = grain.repeat(self.coarse, axis=0).repeat(self.coarse, axis=1)[:size, :size]
                grain = gaussian_blur(grain, 0.6)
            level = np.sqrt(0.3 + 1.4 * developed.mean(axis=2, keepdims=True)) * np.float32(self.grain)
            developed = developed + grain * level
        if self.stripes:
            developed = developed + dice.normal_array(1, size, 1) * np.float32(self.stripes)
        pixels = np.clip(developed * 255 + 0.5, 0, 255).astype(np.uint8)
        image = Image.fromarray(pixels)
        if self.quality is not None:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=self.quality, subsampling=0 if self.quality > 85 else 2)
            image = Image.open(buffer).convert("RGB")
        return image
