"""Light that falls on a scene."""

import math
from dataclasses import dataclass

import numpy as np

from .fields import Dice, Grid, lookup, noise, profile, smoothstep
from .scene import Scene


__all__ = ["Light"]


@dataclass
class Light:
    """
    An arrangement of lamps.

    Args:
        direction (`tuple[float, float, float]`): unit vector toward the main lamp, z toward the camera.
        ambient (`float`): share of light from all directions, 0..1.
        color (`np.ndarray` of shape `(3,)`): color of the lamp.
        surroundings (`np.ndarray` of shape `(n,)`): brightness that metal mirrors, by the angle of reflection.
        tilt (`tuple[float, float]`): axis of the mirror image.
        falloff (`np.ndarray` of shape `(size, size)`): share of light that arrives at each pixel.
        glare (`np.ndarray` of shape `(size, size)`, *optional*): light added on top of the reflected light.
        relief (`float`): factor on heights.
        bend (`tuple[float, float, float]`): movement of the mirror image across the picture in x and y, and its start.
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
    def random(cls, dice: Dice, grid: Grid) -> "Light":
        """Draw a plausible arrangement: ring lights, side lights, windows, uneven fields."""
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

        falloff = _uneven_field(dice, grid, turn)
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
            falloff=falloff,
            glare=glare,
            relief=dice.log_between(0.6, 1.5),
            bend=(dice.normal(0, 0.25), dice.normal(0, 0.25), dice.between(0, 1)),
        )

    def render(self, scene: Scene) -> np.ndarray:
        """Return the lit scene: `(size, size, 3)` float32, where 1 is white and highlights may exceed it."""
        scale = np.float32(scene.grid.size / 2 * self.relief)
        slope_x, slope_y = _slopes(scene.height)
        slope_x *= scale
        slope_y *= scale
        length = 1 / np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
        lx, ly, lz = self.direction
        facing = (lz - slope_x * lx - slope_y * ly) * length
        diffuse = np.float32(self.ambient) + np.float32((1 - self.ambient) / lz) * np.maximum(facing, 0)
        diffuse = np.minimum(diffuse, 2.2)

        # Blinn-Phong highlight, with t / (s - t s + t) for t ** s (Schlick 1994) at a tenth of the cost
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


def _uneven_field(dice: Dice, grid: Grid, turn: float) -> np.ndarray:
    """Draw the share of light that arrives at each pixel: slope, vignette and soft clouds, all moderate."""
    light = np.ones((grid.size, grid.size), np.float32)
    slope, heading = dice.beta(1.2, 2.5) * 0.65, dice.angle()
    light += np.float32(slope) * (grid.x * math.cos(heading) + grid.y * math.sin(heading))
    vignette = dice.beta(1.0, 3.0) * 0.5
    light *= 1 - np.float32(vignette) * 0.5 * (grid.x * grid.x + grid.y * grid.y)
    if dice.chance(0.35):
        light *= 1 + np.float32(dice.between(0.03, 0.14)) * noise(dice, grid.size, finest=0.6, beta=3.0)
    if dice.chance(0.06):  # a soft straight border: the shadow of a gantry, or the end of a lamp
        edge = grid.x * math.cos(turn) + grid.y * math.sin(turn) - np.float32(dice.between(-0.7, 0.7))
        width = dice.log_between(0.02, 0.5)
        light *= 1 - np.float32(dice.between(0.1, 0.45)) * smoothstep(-width, width, edge)
    return np.maximum(light, 0.12)


def _slopes(height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return central differences per pixel, in x and y."""
    x, y = np.empty_like(height), np.empty_like(height)
    x[:, 1:-1] = (height[:, 2:] - height[:, :-2]) * np.float32(0.5)
    x[:, 0], x[:, -1] = x[:, 1], x[:, -2]
    y[1:-1] = (height[2:] - height[:-2]) * np.float32(0.5)
    y[0], y[-1] = y[1], y[-2]
    return x, y
