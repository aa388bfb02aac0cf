"""The scene: a relief with color and gloss, painted layer by layer."""

from dataclasses import dataclass

import numpy as np

from .fields import Grid, gaussian_blur


__all__ = ["Material", "Scene"]


@dataclass
class Material:
    """
    A surface. Every field is a scalar or a map of shape `(size, size)`.

    Args:
        color (`np.ndarray` of shape `(3,)` or `(size, size, 3)`): reflected share of red, green and blue, 0..1.
        height: relief, in half image sides.
        gloss: strength of highlights.
        sharpness: exponent of highlights; 5 is satin, 100 is lacquer.
        metal: share of mirrored surroundings, 0..1.
    """

    color: np.ndarray
    height: np.ndarray | float = 0.0
    gloss: np.ndarray | float = 0.1
    sharpness: np.ndarray | float = 15.0
    metal: np.ndarray | float = 0.0


class Scene:
    """
    A relief with color and gloss, painted layer by layer.

    Attributes:
        grid (`Grid`): coordinates of the picture.
        color (`(size, size, 3)`), height, gloss, sharpness, metal (`(size, size)`): float32, see [`Material`].
        support (`(size, size)`): opacity of the product, 0 in the background. Defects stay on the product.
        shade (`(size, size)`): share of light that arrives, below 1 in drop shadows.
        under (`Scene`, *optional*): scene that appears where a piece of the product is gone.
        grain (`float`): direction of the surface structure in radians; streaky defects follow it.
        fault_region (`(size, size)`, *optional*): opacity of the piece that a construction fault concerns. A builder
            sets it where comparing with the normal picture would mark too much: a moved component also changes its
            old place, which has no defect.
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
        self.fault_region: np.ndarray | None = None

    def fill(self, material: Material) -> "Scene":
        """Cover the whole scene with a material."""
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
        Paint a layer of a material.

        Args:
            opacity (`(size, size)`): 0 leaves the scene as it is, 1 covers it.
            height: level of the new surface, to which the material's own relief is added; with None the relief stays
                (as under a print).
            add (`bool`): whether `height` counts from the surface below instead of from zero.
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
        """Multiply the color, as ink or shadow would; a `color` of 1 changes nothing."""
        self.color *= 1 + opacity[..., None] * (np.asarray(color, np.float32) - 1)
        return self

    def shift_tone(self, opacity: np.ndarray, amount: float, sign: float) -> "Scene":
        """
        Darken (`sign` -1) or brighten (1) by a share of the possible change. Surfaces too dark to get darker get
        brighter.
        """
        weight = float(opacity.sum()) + 1e-6
        level = float((self.color.mean(axis=2) * opacity).sum()) / weight
        if sign < 0 and level < 0.1:
            sign = 1.0
        alpha = opacity[..., None] * np.float32(amount)
        if sign < 0:
            self.color *= 1 - alpha
        else:
            self.color += alpha * np.maximum(0.95 - self.color, 0.1)
        return self

    def emboss(self, relief: np.ndarray) -> "Scene":
        """Add to the height."""
        self.height += relief
        return self

    def cast_shadow(
        self, opacity: np.ndarray, offset: tuple[float, float], softness: float, strength: float
    ) -> "Scene":
        """Darken the surroundings of a shape; call before [`Scene.paint`] with the shape itself."""
        size = self.grid.size
        shift = (round(offset[1] * size / 2), round(offset[0] * size / 2))
        moved = _shifted(opacity, shift)
        self.shade *= 1 - np.float32(strength) * gaussian_blur(moved, softness * size / 2)
        return self

    def remove_shadow(self, opacity: np.ndarray) -> "Scene":
        """Take shadows off a shape that lies on top of them."""
        self.shade += opacity * (1 - self.shade)
        return self

    def copy(self) -> "Scene":
        """Return an independent copy of every layer; `under` is shared, because it is only read."""
        new = object.__new__(Scene)
        new.__dict__.update(self.__dict__)
        for name in ("color", "height", "gloss", "sharpness", "metal", "shade", "support"):
            setattr(new, name, getattr(self, name).copy())
        return new

    def blend(self, opacity: np.ndarray, other: "Scene") -> "Scene":
        """Replace every layer except `support` by that of another scene, to the extent of `opacity`."""
        for name in ("color", "height", "gloss", "sharpness", "metal", "shade"):
            plane = getattr(self, name)
            alpha = opacity[..., None] if plane.ndim == 3 else opacity
            plane += alpha * (getattr(other, name) - plane)
        return self

    def uncover(self, opacity: np.ndarray) -> "Scene":
        """Take a piece of the product away: `under` appears, or a dark surface if it is None."""
        self.blend(opacity, self.under or Scene(self.grid).fill(Material(np.float32([0.03, 0.03, 0.03]), -0.1, 0.0)))
        self.support *= 1 - opacity
        return self


def _shifted(field: np.ndarray, shift: tuple[int, int]) -> np.ndarray:
    """Return a field moved by whole pixels (down, right), filled with zeros."""
    moved = np.zeros_like(field)
    down, right = shift
    height, width = field.shape
    if abs(down) >= height or abs(right) >= width:
        return moved
    moved[max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)] = field[
        max(0, -down) : height + min(0, -down), max(0, -right) : width + min(0, -right)
    ]
    return moved
