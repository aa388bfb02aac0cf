"""Rendering of one picture: product, light, camera, an optional defect, and the mask of its visible changes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .camera import Camera
from .catalog import possible_defects, product_family
from .fields import Dice, Grid, gaussian_blur
from .light import Light
from .registry import DEFECTS, FAULTS, Fault, ProductFamily
from .scene import Scene


__all__ = ["SyntheticSample", "render_sample"]

# areas of a defect as shares of the picture: below the smallest, one image patch changes very little; above
# the largest, it is rather another product than a defect
_SMALLEST, _TYPICAL, _LARGEST = 0.0004, 0.02, 0.3
_VISIBLE = 0.022  # difference as a share of the full range: 5 to 6 of 255 levels
_ATTEMPTS = 16
_CROPPED = {"texture": 0.45, "object": 0.12}  # share of pictures that show only a window of the scene
_FAULT_SHARE = 0.3  # share of pictures in which construction faults are tried first
_SCENE, _LIGHT, _CAMERA, _CHOICE, _DEFECT = range(5)  # numbers of the random streams of a picture


@dataclass(frozen=True)
class SyntheticSample:
    """
    A rendered picture with its ground truth.

    Attributes:
        image (`PIL.Image.Image`): picture in RGB.
        mask (`PIL.Image.Image`, *optional*): mask in mode L, 255 where the defect visibly changed the picture, else 0;
            None if normal.
        product (`str`): name of the product family.
        material (`str`): material of the product, see [`ProductFamily`].
        defect (`str`): name of the defect family, "good" if normal.
        defect_part (`str`, *optional*): part that is missing, bent, ..., such as "tooth" or "pin"; None for damage to
            a surface.
        image_id (`str`): unique and stable name: family, seed, index, size and defect.
        normal (`PIL.Image.Image`, *optional*): the same picture without the defect, if requested.
    """

    image: Image.Image
    mask: Image.Image | None
    product: str
    material: str
    defect: str
    defect_part: str | None
    image_id: str
    normal: Image.Image | None = None

    @property
    def label(self) -> int:
        """Return 0 if normal, 1 if anomalous."""
        return int(self.mask is not None)


def render_sample(
    family: str,
    seed: int,
    index: int,
    size: int = 256,
    defect: str | None = "auto",
    defects: Sequence[str] | None = None,
    pair: bool = False,
) -> SyntheticSample:
    """
    Render one picture.

    The same arguments give the same bytes, in any order and in any process. On processors with different vector units,
    a few pixels in a few pictures differ by some levels.

    Args:
        family (`str`): name of a product family, one of `PRODUCTS`.
        seed, index (`int`): non-negative numbers; together with the family they determine scene, light and camera.
        size (`int`): pixels per side, at least 32. A different size gives a different picture of the same kind.
        defect (`str`, *optional*): name of a defect; "auto" for a random one that suits the product; None for a normal
            picture.
        defects (sequence of `str`, *optional*): names that "auto" selects from.
        pair (`bool`): whether to also return the same picture without its defect.

    Returns:
        [`SyntheticSample`].

    Raises:
        ValueError: unknown names, numbers out of range, or a defect that this product cannot have.
        RuntimeError: no attempt at the defect was visible; another index or "auto" helps.
    """
    product = product_family(family)
    if size < 32 or seed < 0 or index < 0:
        raise ValueError(f"size={size} must be at least 32, seed={seed} and index={index} must not be negative.")
    entropy = (seed, product.key, index)
    names = _selectable_defects(product, defect, defects)

    shot = _Shot.take(product, entropy, size)
    identity = f"{family}-{seed}-{index}-{size}"
    if not names:
        image = shot.camera.record(shot.clean)
        return SyntheticSample(image, None, family, product.material, "good", None, f"{identity}-good")

    found = _find_visible_defect(shot, names)
    if found is None:
        raise RuntimeError(
            f"No visible defect on {identity} after {_ATTEMPTS} attempts at {', '.join(names)}; try another index or"
            ' defect="auto".'
        )
    name, flawed, mask = found
    return SyntheticSample(
        image=shot.camera.record(flawed),
        mask=Image.fromarray(mask.astype(np.uint8) * 255),
        product=family,
        material=product.material,
        defect=name,
        defect_part=product.faults.get(name),
        image_id=f"{identity}-{name}",
        normal=shot.camera.record(shot.clean) if pair else None,
    )


@dataclass(frozen=True)
class _Shot:
    """
    A product in front of the camera without a defect, and everything needed to photograph it again with one.

    Attributes:
        entropy (`tuple[int, ...]`): seed, product and index; all random streams of the picture derive from it.
        clean (`np.ndarray` of shape `(size, size, 3)`): the developed picture, before sensor noise.
    """

    product: ProductFamily
    entropy: tuple[int, ...]
    scene: Scene
    light: Light
    camera: Camera
    clean: np.ndarray

    @classmethod
    def take(cls, product: ProductFamily, entropy: tuple[int, ...], size: int) -> "_Shot":
        """Build the product, light it, and set the camera's exposure for it."""
        grid = Grid(size)
        scene = product.build(Dice(entropy, _SCENE), grid, None)
        light = Light.random(Dice(entropy, _LIGHT), grid)
        camera = Camera.random(Dice(entropy, _CAMERA), size, product.gray, _CROPPED[product.kind])
        picture = light.render(scene)
        camera.meter(picture, scene.support)
        return cls(product, entropy, scene, light, camera, camera.develop(picture))

    def with_defect(self, name: str, dice: Dice, effort: float) -> tuple[np.ndarray, np.ndarray | None]:
        """
        Photograph the product again, with this defect.

        Returns:
            the developed picture, and the opacity of the defect in the scene; None if a construction fault leaves it
            to the comparison of the pictures.
        """
        if name in FAULTS:
            strength = min(1.0, dice.beta(1.4, 1.4) + 0.4 * effort)
            fault = Fault(name, dice, strength)
            damaged = self.product.build(Dice(self.entropy, _SCENE), self.scene.grid, fault)
            region = damaged.fault_region
        else:
            damaged = self.scene.copy()
            region = _apply_defect(damaged, dice, name, effort, self.camera.window)
        return self.camera.develop(self.light.render(damaged)), region


def _find_visible_defect(shot: _Shot, names: tuple[str, ...]) -> tuple[str, np.ndarray, np.ndarray] | None:
    """
    Try defects, more forcefully each time, until one changes the picture visibly and on a reasonable area.

    Returns:
        name, developed picture and mask of the first such attempt, otherwise of the visible attempt whose area is
        closest to a typical one; None if nothing was visible.
    """
    order = _random_order(shot.product, Dice(shot.entropy, _CHOICE), names)
    best = None
    best_error = math.inf
    for attempt in range(_ATTEMPTS):
        name = order[attempt // 4 % len(order)]
        flawed, region = shot.with_defect(name, Dice((*shot.entropy, attempt), _DEFECT), attempt / _ATTEMPTS)
        thin = name in DEFECTS and DEFECTS[name].thin
        mask, visibility = _visible_change(
            shot.clean, flawed, None if region is None else shot.camera.frame(region), thin
        )
        area = float(mask.mean())
        if max(_SMALLEST, 6 / mask.size) <= area <= _LARGEST and visibility > _VISIBLE * 1.5:
            return name, flawed, mask
        error = abs(area - _TYPICAL)
        if visibility > 0 and error < best_error:
            best, best_error = (name, flawed, mask), error
    return best


def _selectable_defects(product: ProductFamily, defect: str | None, defects: Sequence[str] | None) -> tuple[str, ...]:
    """Return the defects to select from; none for a normal picture."""
    if defect is None:
        return ()
    requested = defects if defect == "auto" else (defect,)
    known = {*DEFECTS, *FAULTS}
    unknown = sorted({*(defects or ()), *(requested or ())} - known)
    if unknown:
        raise ValueError(f"Unknown defects {unknown}; expected some of {', '.join(sorted(known))}.")
    names = possible_defects(product.name, requested)
    if not names:
        requested_names = sorted(known if requested is None else requested)
        raise ValueError(
            f"Product {product.name!r} cannot have any of the requested defects {requested_names}; possible are"
            f" {', '.join(possible_defects(product.name))}."
        )
    return names


def _random_order(product: ProductFamily, dice: Dice, names: tuple[str, ...]) -> list[str]:
    """
    Return the names in random order. Construction faults are few, so they come first in a fixed share of pictures.
    """
    faults = [name for name in names if name in FAULTS]
    others = [name for name in names if name not in FAULTS]
    faults_first = dice.chance(_FAULT_SHARE)
    dice.generator.shuffle(faults)
    # weighted order without replacement: the largest u ** (1 / weight) first (Efraimidis and Spirakis 2006)
    keys = {name: dice.between(0, 1) ** (1 / DEFECTS[name].weight) for name in others}
    others.sort(key=lambda name: -keys[name])
    return faults + others if faults_first else others + faults


def _apply_defect(
    scene: Scene, dice: Dice, name: str, effort: float, window: tuple[float, float, float, float] | None
) -> np.ndarray:
    """
    Apply a defect to the scene, sometimes at several places.

    Args:
        effort (`float`): progress of the attempts, 0..1. With more effort, the defect gets stronger and its size
            closer to the middle of its range.
        window (`tuple[float, float, float, float]`, *optional*): part of the scene that the camera shows.

    Returns:
        `np.ndarray` of shape `(size, size)`, float32: opacity of the change.
    """
    defect, size = DEFECTS[name], scene.grid.size
    solid = scene.support > 0.9
    if window is not None:  # only places that the camera shows
        left, top, right, bottom = (round(edge * size) for edge in window)
        shown = np.zeros_like(solid)
        shown[top:bottom, left:right] = solid[top:bottom, left:right]
        solid = shown
    rows, columns = np.nonzero(solid)
    if len(rows) < 16:
        rows, columns = np.nonzero(scene.support >= scene.support.max())
    low, high = defect.sizes
    room = max(0.3, min(1.0, 1.2 * float(scene.support.mean()) ** 0.5))
    region = np.zeros_like(scene.support)
    for _ in range(dice.pick((1, 2, 3), (0.78, 0.15, 0.07))):
        chosen = dice.whole(0, len(rows) - 1)
        place = (float(scene.grid.x[0, columns[chosen]]), float(scene.grid.y[rows[chosen], 0]))
        extent = low * (high / low) ** (dice.between(0, 1) ** 0.75)
        extent += effort * ((low * high) ** 0.5 - extent)
        strength = min(1.0, 0.04 + 0.96 * dice.beta(1.3, 1.7) + 0.5 * effort)
        region = np.maximum(region, defect.apply(scene, dice, place, max(extent * room, 3.0 / size), strength))
    return region


def _visible_change(
    clean: np.ndarray, flawed: np.ndarray, region: np.ndarray | None, thin: bool
) -> tuple[np.ndarray, float]:
    """
    Return the mask, boolean `(size, size)`, and the mean difference within it.

    A difference counts above a few levels. Thin defects keep the pixels that differ at least a third as much as the
    strongest ones. Areas are closed, because single pixels of a different texture can agree with the surface by
    chance.
    """
    size = clean.shape[0]
    difference = np.abs(flawed - clean).max(axis=2)
    if thin:
        difference = difference * (gaussian_blur(region, 0.8 * size / 256) > 0.12)
    rank = difference.size - max(8, difference.size // 2000)
    peak = float(np.partition(difference.ravel(), rank)[rank])
    visible = difference > max(_VISIBLE, (0.33 if thin else 0.12) * peak)
    mask = visible
    if not thin:
        dense = gaussian_blur(visible.astype(np.float32), 2.2 * size / 256)
        closed = dense > 0.38
        mask = (closed if region is None else closed & (region > 0.25)) | (visible & (dense > 0.3))
    count = int(mask.sum())
    return mask, float(difference[mask].mean()) if count else 0.0
