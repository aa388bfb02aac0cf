"""From layers to a photograph: a relief with colour and gloss, the light that falls on it, the camera that sees it."""

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .fields import Dice, Grid, gaussian_blur, lookup, noise, profile, smoothstep, zoomed


__all__ = ["Camera", "Light", "Material", "Scene"]


@dataclass
class Material:
    """
    What a surface is made of. Every field is a scalar or a map of shape `(size, size)`.

    Args:
        color (`np.ndarray` of shape `(3,)` or `(size, size, 3)`): reflected share of red, green and blue, 0..1.
        height: relief, in half image sides.
        gloss: strength of highlights.
        sharpness: their exponent; 5 satin, 100 lacquer.
        metal: share of mirrored surroundings, 0..1.
    """

    color: np.ndarray
    height: np.ndarray | float = 0.0
    gloss: np.ndarray | float = 0.1
    sharpness: np.ndarray | float = 15.0
    metal: np.ndarray | float = 0.0


class Scene:
    """
    A relief with colour and gloss, painted layer by layer.

    Attributes:
        grid (`Grid`): the frame of the picture.
        color (`(size, size, 3)`), height, gloss, sharpness, metal (`(size, size)`): float32, see [`Material`].
        support (`(size, size)`): opacity of the product itself; background where 0. Defects stay on it.
        shade (`(size, size)`): share of light that arrives, below 1 in drop shadows.
        under (`Scene`, *optional*): what appears where a piece of the product is gone.
        grain (`float`): direction of the surface structure in radians; streaky defects follow it.
        marks (`dict[str, np.ndarray]`): "fault": the piece that a defect of construction concerns, where the change
            alone does not tell (a component moved aside leaves nothing amiss at its old place).
    """

    def __init__(self, grid: Grid):
        size = grid.size
        self.grid = grid
        self.color = np.zeros((size, size, 3), np.float32)
        self.height, self.gloss, self.sharpness, self.metal = (np.zeros((size, size), np.float32) for _ in range(4))
        self.shade = np.ones((size, size), np.float32)
        self.support = np.ones((size, size), np.float32)
        self.under: Scene | None = None
        self.grain = 0.0
        self.marks: dict[str, np.ndarray] = {}

    def fill(self, material: Material) -> "Scene":
        """The material everywhere."""
        self.color[...] = material.color
        self.height[...] = material.height
        self.gloss[...] = material.gloss
        self.sharpness[...] = material.sharpness
        self.metal[...] = material.metal
        return self

    def paint(
        self, opacity: np.ndarray, material: Material, height: np.ndarray | float | None = 0.0, add: bool = False
    ) -> "Scene":
        """
        A layer of another material.

        Args:
            opacity (`(size, size)`): 0 leaves the scene, 1 covers it.
            height: level of the new surface, to which the material's own relief is added; None keeps the relief below
                (a print).
            add (`bool`): count `height` from the surface below instead of from zero.
        """
        alpha = opacity[..., None]
        self.color += alpha * (material.color - self.color)
        for name in ("gloss", "sharpness", "metal"):
            plane = getattr(self, name)
            plane += opacity * (getattr(material, name) - plane)
        if height is not None:
            level = material.height + height
            self.height += opacity * (level if add else level - self.height)
        return self

    def tint(self, opacity: np.ndarray, color: np.ndarray | float) -> "Scene":
        """Multiplies the colour, as ink or shadow would: `color` 1 changes nothing."""
        self.color *= 1 + opacity[..., None] * (np.asarray(color, np.float32) - 1)
        return self

    def emboss(self, relief: np.ndarray) -> "Scene":
        """Adds to the height."""
        self.height += relief
        return self

    def cast_shadow(
        self, opacity: np.ndarray, offset: tuple[float, float], softness: float, strength: float
    ) -> "Scene":
        """Darkens what lies below a shape that is about to be painted; call before [`Scene.paint`]."""
        size = self.grid.size
        shift = (round(offset[1] * size / 2), round(offset[0] * size / 2))
        moved = _shifted(opacity, shift)
        self.shade *= 1 - np.float32(strength) * gaussian_blur(moved, softness * size / 2)
        return self

    def lit(self, opacity: np.ndarray) -> "Scene":
        """Takes shadows off what has been painted on top of them."""
        self.shade += opacity * (1 - self.shade)
        return self

    def copy(self) -> "Scene":
        """An independent copy of every layer; `under` is shared, it is only read."""
        new = object.__new__(Scene)
        new.__dict__.update(self.__dict__)
        for name in ("color", "height", "gloss", "sharpness", "metal", "shade", "support"):
            setattr(new, name, getattr(self, name).copy())
        new.marks = dict(self.marks)
        return new

    def uncover(self, opacity: np.ndarray) -> "Scene":
        """Takes a piece of the product away: the layer below appears, or darkness where there is none."""
        below = self.under or Scene(self.grid).fill(Material(np.float32([0.03, 0.03, 0.03]), -0.1, 0.0))
        for name in ("color", "height", "gloss", "sharpness", "metal", "shade"):
            plane = getattr(self, name)
            alpha = opacity[..., None] if plane.ndim == 3 else opacity
            plane += alpha * (getattr(below, name) - plane)
        self.support *= 1 - opacity
        return self


def _shifted(field: np.ndarray, shift: tuple[int, int]) -> np.ndarray:
    """Moved by whole pixels, zeros come in."""
    moved = np.zeros_like(field)
    down, right = shift
    height, width = field.shape
    if abs(down) >= height or abs(right) >= width:
        return moved
    moved[max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)] = field[
        max(0, -down) : height + min(0, -down), max(0, -right) : width + min(0, -right)
    ]
    return moved


@dataclass
class Light:
    """
    One arrangement of lamps, drawn once per picture.

    Args:
        direction (`tuple[float, float, float]`): towards the main lamp, unit length, z towards the camera.
        ambient (`float`): share of light from everywhere.
        color (`np.ndarray` of shape `(3,)`): of the lamp.
        surroundings (`np.ndarray` of shape `(n,)`): what metal mirrors, by the angle of reflection.
        tilt (`tuple[float, float]`): axis of that mirror image.
        falloff (`np.ndarray` of shape `(size, size)`): how much light arrives where.
        glare (`np.ndarray` of shape `(size, size)`, *optional*): light that is added, not reflected.
        relief (`float`): how strongly heights show.
        bend (`tuple[float, float, float]`): how the mirror image moves across the picture, in x and y, and its start.
    """

    direction: tuple[float, float, float]
    ambient: float
    color: np.ndarray
    surroundings: np.ndarray
    tilt: tuple[float, float]
    falloff: np.ndarray
    glare: np.ndarray | None = None
    relief: float = 1.0
    bend: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def draw(cls, dice: Dice, grid: Grid) -> "Light":
        """A plausible arrangement: ring lights, side lights, windows, uneven fields."""
        azimuth, elevation = dice.angle(), math.radians(dice.between(25, 80))
        direction = (
            math.cos(azimuth) * math.cos(elevation),
            math.sin(azimuth) * math.cos(elevation),
            math.sin(elevation),
        )
        warmth = dice.normal(0, 0.05)
        color = np.array([1 + warmth, 1.0 + dice.normal(0, 0.015), 1 - warmth], np.float32)
        bands = profile(dice, 256, coarsest=1.0, finest=dice.between(0.04, 0.3), beta=dice.between(1.0, 2.4))
        surroundings = np.clip(0.62 + bands * np.float32(dice.between(0.15, 0.4)), 0.05, 1.6)
        turn = dice.angle()

        # slope across the picture, vignette, soft clouds of light, all moderate and often absent
        light = np.ones((grid.size, grid.size), np.float32)
        slope, heading = dice.beta(1.2, 2.5) * 0.65, dice.angle()
        light += np.float32(slope) * (grid.x * math.cos(heading) + grid.y * math.sin(heading))
        vignette = dice.beta(1.0, 3.0) * 0.5
        light *= 1 - np.float32(vignette) * 0.5 * (grid.x * grid.x + grid.y * grid.y)
        if dice.chance(0.35):
            light *= 1 + np.float32(dice.between(0.03, 0.14)) * noise(dice, grid.size, finest=0.6, beta=3.0)
        if dice.chance(0.06):  # the shadow of a gantry, or a lamp that ends: a soft straight border
            edge = grid.x * math.cos(turn) + grid.y * math.sin(turn) - np.float32(dice.between(-0.7, 0.7))
            width = dice.log_between(0.02, 0.5)
            light *= 1 - np.float32(dice.between(0.1, 0.45)) * smoothstep(-width, width, edge)
        glare = None
        if dice.chance(0.16):
            spot = grid.posed(dice.angle(), dice.between(0.25, 0.9), (dice.between(-1, 1), dice.between(-1, 1)))
            glare = np.exp(-(spot.x**2) - spot.y**2 * dice.between(0.3, 6)) * np.float32(dice.between(0.06, 0.45))
        return cls(
            direction=direction,
            ambient=dice.between(0.25, 0.7),
            color=color,
            surroundings=surroundings.astype(np.float32),
            tilt=(math.cos(turn), math.sin(turn)),
            falloff=np.maximum(light, 0.12),
            glare=glare,
            relief=dice.log_between(0.6, 1.5),
            bend=(dice.normal(0, 0.25), dice.normal(0, 0.25), dice.between(0, 1)),
        )

    def render(self, scene: Scene) -> np.ndarray:
        """The scene as it is lit: `(size, size, 3)` float32, 1 is white, highlights may pass it."""
        scale = np.float32(scene.grid.size / 2 * self.relief)
        slope_x, slope_y = _slopes(scene.height)
        slope_x *= scale
        slope_y *= scale
        length = 1 / np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
        lx, ly, lz = self.direction
        facing = (lz - slope_x * lx - slope_y * ly) * length
        diffuse = np.float32(self.ambient) + np.float32((1 - self.ambient) / lz) * np.maximum(facing, 0)
        diffuse = np.minimum(diffuse, 2.2)

        # Blinn-Phong highlight; t / (s - t s + t) stands for t ** s (Schlick 1994), which costs a tenth
        hx, hy, hz = lx, ly, lz + 1
        norm = math.sqrt(hx * hx + hy * hy + hz * hz)
        half = np.clip((hz - slope_x * hx - slope_y * hy) * length / np.float32(norm), 0, 1)
        shine = scene.gloss * (half / (scene.sharpness - half * scene.sharpness + half))

        bend_x, bend_y, start = self.bend
        angle = np.float32(0.35) * length * (slope_x * self.tilt[0] + slope_y * self.tilt[1])
        angle += scene.grid.x * np.float32(bend_x) + scene.grid.y * np.float32(bend_y) + np.float32(start)
        mirrored = lookup(self.surroundings, angle)
        body = diffuse * (1 - scene.metal) + scene.metal * (np.float32(0.45) * diffuse + np.float32(0.75) * mirrored)

        arriving = self.falloff * scene.shade
        picture = scene.color * (body * arriving)[..., None]
        picture += (shine * arriving)[..., None]
        picture *= self.color
        if self.glare is not None:
            picture += self.glare[..., None]
        return picture


def _slopes(height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Central differences per pixel."""
    x, y = np.empty_like(height), np.empty_like(height)
    x[:, 1:-1] = (height[:, 2:] - height[:, :-2]) * np.float32(0.5)
    x[:, 0], x[:, -1] = x[:, 1], x[:, -2]
    y[1:-1] = (height[2:] - height[:-2]) * np.float32(0.5)
    y[0], y[-1] = y[1], y[-2]
    return x, y


@dataclass
class Camera:
    """
    Lens, sensor and file format, drawn once per picture.

    Args:
        blur (`float`): sigma in pixels.
        exposure, gamma, black (`float`): tone curve; `exposure` is the mean brightness aimed at, see [`Camera.meter`].
        gray (`bool`): monochrome camera.
        grain (`float`): noise at half brightness, of the full range.
        stripes (`float`): column noise of line scan cameras.
        coarse (`int`): pixels per noise grain, 2 for pictures that were enlarged.
        quality (`int`, *optional*): of the JPEG file.
        window (`tuple[float, float, float, float]`, *optional*): left, top, right, bottom of the part that is kept and
            enlarged to the full picture, 0..1; not square, as where an oblong picture has been squashed.
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
    def draw(cls, dice: Dice, size: int, gray: float, cropped: float) -> "Camera":
        """A plausible camera. `gray`: share of monochrome ones; `cropped`: share of pictures that are windows."""
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
        """Sets the gain by a picture: the product comes out at about `exposure`. Two pictures that are to be compared
        need one metering."""
        weight = support + np.float32(0.3)
        mean = float((picture.mean(axis=2) * weight).sum() / weight.sum())
        self.gain = (self.exposure / max(mean, 1e-3)) ** 0.75  # dark things stay a little darker

    def frame(self, field: np.ndarray) -> np.ndarray:
        """The part of a field, `(size, size)` or `(size, size, 3)`, that this camera shows, at the same size."""
        return field if self.window is None else zoomed(field, self.window)

    def develop(self, picture: np.ndarray) -> np.ndarray:
        """Lens and tone curve: linear light -> `(size, size, 3)` float32 in [0, 1], still without noise."""
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
        """Sensor noise, 8 bits, JPEG. The noise is the camera's own: two pictures by one camera share it."""
        size = developed.shape[0]
        dice = Dice(self.seed)
        if self.grain:
            side = -(-size // self.coarse)
            grain = dice.gauss(side, side, 1 if self.gray else 3)
            if self.coarse > 1:
                grain = grain.repeat(self.coarse, axis=0).repeat(self.coarse, axis=1)[:size, :size]
                grain = gaussian_blur(grain, 0.6)
            level = np.sqrt(0.3 + 1.4 * developed.mean(axis=2, keepdims=True)) * np.float32(self.grain)
            developed = developed + grain * level
        if self.stripes:
            developed = developed + dice.gauss(1, size, 1) * np.float32(self.stripes)
        pixels = np.clip(developed * 255 + 0.5, 0, 255).astype(np.uint8)
        image = Image.fromarray(pixels)
        if self.quality is not None:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=self.quality, subsampling=0 if self.quality > 85 else 2)
            image = Image.open(buffer).convert("RGB")
        return image
