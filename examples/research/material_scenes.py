"""Make pictures of photographed materials, whole and with painted anomalies.

The photographs are textures under CC0 (`materials/`, see its SOURCE.txt), most of them seamless. A scene is a surface
of one material, or a simple shape of it on plain ground or on another material.
"""

import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vcp_clip_hf.data.painted_anomalies import ANOMALY_KINDS, add_anomaly
from vcp_clip_hf.generator.fields import Dice, Grid
from vcp_clip_hf.generator.shapes import box, coverage, disc, gear, polygon, ring


__all__ = ["MATERIALS", "SPLITS", "MaterialScene", "MaterialScenes", "checksum_of_photographs", "damage"]

MATERIALS = Path(__file__).parent / "materials"
SPLITS = ("train", "test")
SURFACE_SHARE = 0.65  # of the scenes; the others show objects
SMALL_PHOTO = 200  # pixels; smaller photographs are repeated, larger ones are cropped
# Kinds that are drawn more or less often than the others: thin lines are the hardest to find
_SHARES = {"line": 3.0, "specks": 1.5, "scar": 0.7, "cut_paste": 0.7}


@dataclass(frozen=True)
class MaterialScene:
    """
    A scene without damage.

    Args:
        pixels (`np.ndarray` of shape `(size, size, 3)`, uint8): the picture.
        solid (`np.ndarray` of shape `(size, size)`, bool): the product; all of it for a surface.
        name (`str`): the material in words.
    """

    pixels: np.ndarray
    solid: np.ndarray
    name: str


class MaterialScenes:
    """
    Draw scenes of photographed materials.

    Args:
        split (`"train"` or `"test"`): photographs to draw from; about one of twelve is kept for tests.
        folder (`Path`, *optional*):
            Folder with photographs (*.jpg), searched with its subfolders; file names begin with the material. By
            default `MATERIALS`.

    Raises:
        ValueError: there is no such split.
        FileNotFoundError: the folder has no photographs of the split.
    """

    def __init__(self, split: str, folder: Path = MATERIALS):
        if split not in SPLITS:
            raise ValueError(f"split={split!r} must be one of {', '.join(SPLITS)}.")
        files = [path for path in sorted(folder.rglob("*.jpg")) if _is_for_test(path) == (split == "test")]
        if not files:
            raise FileNotFoundError(f"{folder} has no photographs (*.jpg) of materials for the split {split!r}.")
        self.photos = [np.asarray(Image.open(path).convert("RGB")) for path in files]
        self.names = [_material_of(path.stem) for path in files]

    def texture(self, dice: Dice, size: int) -> tuple[np.ndarray, str]:
        """Draw a square of a material, (size, size, 3) uint8, and its name."""
        chosen = dice.whole(0, len(self.photos) - 1)
        photo = self.photos[chosen]
        photo = np.rot90(photo, dice.whole(0, 3))
        if dice.chance(0.5):
            photo = photo[:, ::-1]
        side = min(photo.shape[:2])
        if side < SMALL_PHOTO:
            # one repetition has this share of the picture
            tile = max(48, round(size * dice.log_between(0.4, 1.3)))
            picture = Image.fromarray(np.ascontiguousarray(photo)).resize((tile, tile), Image.Resampling.BICUBIC)
            count = -(-size // tile) + 1
            pixels = np.tile(np.asarray(picture), (count, count, 1))
            top, left = dice.whole(0, tile - 1), dice.whole(0, tile - 1)
            pixels = pixels[top : top + size, left : left + size]
        else:
            crop = round(side * dice.log_between(0.3, 1.0))
            top, left = dice.whole(0, photo.shape[0] - crop), dice.whole(0, photo.shape[1] - crop)
            window = np.ascontiguousarray(photo[top : top + crop, left : left + crop])
            pixels = np.asarray(Image.fromarray(window).resize((size, size), Image.Resampling.BICUBIC))
        return _recolored(pixels, dice), self.names[chosen]

    def crops(self, number: int, count: int, size: int, dice: Dice) -> list[np.ndarray]:
        """Draw pictures of one material that differ in their place alone: `count` arrays (size, size, 3) uint8."""
        photo = self.photos[number]
        if min(photo.shape[:2]) < SMALL_PHOTO:
            photo = np.tile(photo, (3, 3, 1))
        window = min(photo.shape[:2]) // 2
        pictures = []
        for _ in range(count):
            top, left = (dice.whole(0, side - window) for side in photo.shape[:2])
            crop = Image.fromarray(np.ascontiguousarray(photo[top : top + window, left : left + window]))
            pictures.append(np.asarray(crop.resize((size, size), Image.Resampling.BICUBIC)))
        return pictures

    def scene(self, dice: Dice, size: int) -> MaterialScene:
        """Draw a [`MaterialScene`] of `size` x `size` pixels: a surface, all of which is `solid`, or an object."""
        pixels, name = self.texture(dice, size)
        if dice.chance(SURFACE_SHARE):
            return MaterialScene(pixels, np.ones((size, size), bool), name)
        grid = Grid(size).local(dice.between(-0.2, 0.2), dice.between(-0.2, 0.2), dice.angle())
        distance = _outline(dice, grid)
        cover = coverage(distance, 2 / size)[..., None]
        if dice.chance(0.3):
            ground = self.texture(dice, size)[0].astype(np.float32)
        else:
            slope = dice.between(0, 40) * (grid.x * math.cos(dice.angle()) + grid.y)
            ground = dice.uniform_array(3, 0, 255) * 0.3 + dice.between(0, 200) + slope[..., None]
        # a rounded edge is darker, and the object throws a shadow on the ground
        edge = 1 - dice.between(0, 0.6) * np.exp(np.minimum(distance, 0) / dice.between(0.01, 0.15))
        shadow = 1 - dice.between(0, 0.5) * np.exp(-np.maximum(distance, 0) / dice.between(0.02, 0.2))
        mixed = cover * pixels * edge[..., None] + (1 - cover) * ground * shadow[..., None]
        return MaterialScene(mixed.clip(0, 255).astype(np.uint8), distance < 0, name)


def damage(scene: MaterialScene, dice: Dice, materials: MaterialScenes) -> tuple[np.ndarray, np.ndarray, str]:
    """
    Paint one to three anomalies on a scene.

    Args:
        scene ([`MaterialScene`]): scene without damage; anomalies stay on its product.
        dice (`Dice`): source of random numbers.
        materials ([`MaterialScenes`]): source of foreign textures.

    Returns:
        `tuple[np.ndarray, np.ndarray, str]`: the picture `(size, size, 3)` uint8, its mask `(size, size)` bool, and
        the kind of the last anomaly.

    Raises:
        ValueError: no anomaly is visible.
    """
    pixels, mask = scene.pixels, np.zeros(scene.solid.shape, bool)
    foreground = None if scene.solid.all() else scene.solid.astype(np.uint8)
    textures = [materials.texture(dice, scene.pixels.shape[0])[0]]
    kind = ""
    for _ in range(dice.pick((1, 2, 3), (0.75, 0.17, 0.08))):
        # first one kind, then any: some kinds are invisible on some surfaces
        preferred = dice.pick(ANOMALY_KINDS, [_SHARES.get(name, 1.0) for name in ANOMALY_KINDS])
        for kinds in ((preferred,), ANOMALY_KINDS):
            try:
                seed = dice.whole(0, 2**62)
                picture, painted, kind = add_anomaly(pixels, seed, kinds, foreground, textures, attempts=6)
            except ValueError:
                continue
            pixels, mask = np.asarray(picture), mask | (np.asarray(painted) > 0)
            break
    if not mask.any():
        raise ValueError(f"No anomaly is visible on {scene.name}.")
    return pixels, mask, kind


def checksum_of_photographs(folder: Path = MATERIALS) -> str:
    """Return 8 hexadecimal digits that change with the names and sizes (bytes) of the photographs of a folder."""
    files = sorted((path.name, path.stat().st_size) for path in folder.rglob("*.jpg"))
    return f"{zlib.crc32(repr(files).encode()):08x}"


def _is_for_test(path: Path) -> bool:
    """Return whether a photograph is kept for tests; its name decides, so that new files do not move others."""
    return zlib.crc32(path.name.encode()) % 12 == 0


def _material_of(stem: str) -> str:
    """Return the material in a file name, such as `bricks_85` or `brick_floor_02_1k`."""
    words = [word for word in stem.split("_") if word.isalpha() and word != "large"]
    return " ".join(words[:2]).lower() or "surface"


def _recolored(pixels: np.ndarray, dice: Dice) -> np.ndarray:
    """Change contrast, brightness and colors of a material, so that one photograph gives many materials."""
    values = pixels.astype(np.float32)
    if dice.chance(0.35):
        values = np.broadcast_to(values.mean(axis=2, keepdims=True), values.shape)
    mean = values.mean(axis=(0, 1), keepdims=True)
    values = (values - mean) * np.float32(dice.log_between(0.35, 1.6)) + mean * (
        1 + dice.uniform_array(3, -0.15, 0.15)
    )
    return (values * np.float32(dice.log_between(0.6, 1.6))).clip(0, 255).astype(np.uint8)


def _outline(dice: Dice, grid: Grid) -> np.ndarray:
    """Draw the outline of an object: signed distance, negative inside, (size, size) float32."""
    size = dice.between(0.35, 0.8)
    kind = dice.whole(0, 4)
    if kind == 0:
        return disc(grid, size)
    if kind == 1:
        return ring(grid, size, size * dice.between(0.25, 0.6))
    if kind == 2:
        return polygon(grid, dice.whole(3, 8), size)
    if kind == 3:
        return gear(grid, dice.whole(6, 20), size, size * dice.between(0.1, 0.25))
    return box(grid, size, size * dice.log_between(0.25, 1.0), size * dice.between(0, 0.2))
