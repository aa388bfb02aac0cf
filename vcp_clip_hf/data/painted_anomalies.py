"""Paint anomalies on normal images, so that normal images are enough for training.

There are four kinds, each with an exact mask:

- "perlin": another texture, blended in where Perlin noise is high (DRAEM, Zavrtanik et al., ICCV 2021). The texture is
  procedural, or comes from images given by the caller.
- "cut_paste": a rectangle of the image, with jittered color, pasted elsewhere (CutPaste, Li et al., CVPR 2021).
- "scar": the same with a long, thin, rotated rectangle (the "scar" of that paper).
- "line": thin scratches and branching cracks.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ..generator.fields import Dice, Grid, smoothstep
from ..generator.materials import any_material
from ..generator.shapes import strokes, wander
from ..image_loading import load_image, load_mask
from .records import ANOMALOUS, GOOD, NORMAL


__all__ = ["ANOMALY_KINDS", "PaintedAnomalies", "add_anomaly", "perlin_noise"]

ANOMALY_KINDS = ("perlin", "cut_paste", "scar", "line")

_ATTEMPTS = 24
_SMALLEST = 0.0002  # area, as a share of the image
_FAINTEST = 4.0  # mean difference on the mask, in levels of 0..255

# Painted pixels (height, width, 3) in 0..255, and their opacity (height, width) in 0..1
_Painted = tuple[np.ndarray, np.ndarray]


def add_anomaly(
    image: Image.Image | np.ndarray | str,
    seed: int | Sequence[int],
    kind: str | Sequence[str] = ANOMALY_KINDS,
    foreground: Image.Image | np.ndarray | str | None = None,
    textures: Sequence[Image.Image | np.ndarray | str] | None = None,
) -> tuple[Image.Image, Image.Image, str]:
    """
    Paint one anomaly on a normal image.

    Args:
        image (`PIL.Image.Image`, `np.ndarray` or `str`):
            Anything that [`vcp_clip_hf.image_loading.load_image`] reads.
        seed (`int` or `Sequence[int]`): seed; the same seed and image give the same bytes.
        kind (`str` or `Sequence[str]`, *optional*):
            One or more of `ANOMALY_KINDS`; by default all. One of several is drawn at random.
        foreground (`PIL.Image.Image`, `np.ndarray` or `str`, *optional*):
            Binary mask of the image's size, not 0 on the product; anomalies stay on the product.
        textures (`Sequence` of images, *optional*): textures for "perlin"; by default procedural ones.

    Returns:
        `tuple[PIL.Image.Image, PIL.Image.Image, str]`: image (RGB), mask (L, 0 or 255) and kind. Pixels outside the
        mask are unchanged.

    Raises:
        ValueError: a kind is unknown, the foreground is empty or of another size, or no attempt gives a visible
            anomaly.
    """
    kinds = (kind,) if isinstance(kind, str) else tuple(kind)
    unknown = [name for name in kinds if name not in ANOMALY_KINDS]
    if unknown or not kinds:
        raise ValueError(f"Unknown kinds of anomalies {unknown}; there are {', '.join(ANOMALY_KINDS)}.")
    picture = load_image(image)
    pixels = np.asarray(picture, np.float32)
    solid = _read_foreground(foreground, pixels.shape[:2])

    entropy = (seed,) if isinstance(seed, int) else tuple(seed)
    for attempt in range(_ATTEMPTS):
        dice = Dice(entropy, attempt)
        name = dice.pick(kinds)
        changed, opacity = _MAKERS[name](pixels, dice, solid, textures)
        opacity = opacity * solid
        mask = opacity > 0.12
        opacity = (opacity * mask)[..., None]
        result = np.floor(pixels + opacity * (changed - pixels) + 0.5).clip(0, 255)
        if mask.mean() < _SMALLEST or np.abs(result - pixels).max(axis=2)[mask].mean() < _FAINTEST:
            continue
        return Image.fromarray(result.astype(np.uint8)), Image.fromarray(mask.astype(np.uint8) * 255), name
    raise ValueError(
        f"No visible anomaly of the kinds {', '.join(kinds)} after {_ATTEMPTS} attempts on an image of"
        f" {picture.width} x {picture.height} pixels with {int(solid.sum())} foreground pixels; give a larger"
        " foreground, other kinds or another seed."
    )


def perlin_noise(dice: Dice, shape: tuple[int, int], periods: tuple[int, int]) -> np.ndarray:
    """
    Draw gradient noise (Perlin 1985).

    Args:
        dice (`Dice`): source of random numbers.
        shape (`tuple[int, int]`): height and width.
        periods (`tuple[int, int]`): number of lattice cells, vertically and horizontally.

    Returns:
        `np.ndarray` of shape `(height, width)`, float32, about -1..1.
    """
    down = np.linspace(0, periods[0], shape[0], endpoint=False, dtype=np.float32)
    across = np.linspace(0, periods[1], shape[1], endpoint=False, dtype=np.float32)
    angles = dice.uniform_array((periods[0] + 1) * (periods[1] + 1), 0, 2 * math.pi).reshape(
        periods[0] + 1, periods[1] + 1
    )
    row, column = down.astype(np.int32)[:, None], across.astype(np.int32)[None, :]
    y, x = down[:, None] - row, across[None, :] - column

    def corner(below: int, right: int) -> np.ndarray:
        angle = angles[row + below, column + right]
        return np.cos(angle) * (x - right) + np.sin(angle) * (y - below)

    def fade(t: np.ndarray) -> np.ndarray:
        return t * t * t * (t * (t * 6 - 15) + 10)

    u, v = fade(x), fade(y)
    top = corner(0, 0) * (1 - u) + corner(0, 1) * u
    bottom = corner(1, 0) * (1 - u) + corner(1, 1) * u
    return ((top * (1 - v) + bottom * v) * np.float32(math.sqrt(2))).astype(np.float32)


class PaintedAnomalies(Dataset):
    """
    Dataset of the user's normal images, with anomalies painted on some of them. Item `i` of epoch `e` is always the
    same, whatever the worker and the order.

    Items are dicts with `image` (PIL, RGB), `mask` (PIL, L; None if normal), `label` (0 or 1), `product`, `defect`
    (the kind, or "good") and `image_id`.

    Args:
        images (`Sequence`):
            Normal images, or rows with the key "image", such as a `datasets.Dataset` of normal images.
        product (`str`, *optional*, defaults to `"product"`): name of the product, for rows without one.
        kinds (`Sequence[str]`, *optional*): kinds of anomalies, see `ANOMALY_KINDS`; by default all.
        anomaly_fraction (`float`, *optional*, defaults to 0.5): share of anomalous items, 0..1.
        foregrounds (`Sequence` or `Callable`, *optional*):
            Mask of the product for each image (None: the whole image), or a function from the PIL image to such a
            mask.
        textures (`Sequence` of images, *optional*): textures as in [`add_anomaly`].
        seed (`int`, *optional*, defaults to 0): seed of all random choices.
        transform (`Callable`, *optional*): function that is applied to every item, a dict.

    Raises:
        ValueError: there are no images, a kind is unknown, the numbers of foregrounds and images differ, or a row is
            labeled anomalous.
    """

    def __init__(
        self,
        images: Sequence,
        product: str = "product",
        kinds: Sequence[str] = ANOMALY_KINDS,
        anomaly_fraction: float = 0.5,
        foregrounds: Sequence | Callable[[Image.Image], Any] | None = None,
        textures: Sequence | None = None,
        seed: int = 0,
        transform: Callable[[dict[str, Any]], Any] | None = None,
    ):
        if not len(images):
            raise ValueError("PaintedAnomalies needs at least one normal image, got none.")
        unknown = [name for name in kinds if name not in ANOMALY_KINDS]
        if unknown or not kinds:
            raise ValueError(f"Unknown kinds of anomalies {unknown}; there are {', '.join(ANOMALY_KINDS)}.")
        if not 0 <= anomaly_fraction <= 1 or seed < 0:
            raise ValueError(f"anomaly_fraction={anomaly_fraction} must lie in 0..1, seed={seed} not be negative.")
        if foregrounds is not None and not callable(foregrounds) and len(foregrounds) != len(images):
            raise ValueError(f"{len(foregrounds)} foregrounds for {len(images)} images; give one per image, or None.")
        self.images, self.product, self.kinds = images, product, tuple(kinds)
        self.anomaly_fraction, self.foregrounds, self.textures = anomaly_fraction, foregrounds, textures
        self.seed, self.transform = seed, transform
        # in shared memory, so that persistent workers, which hold copies of this object, see set_epoch
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose other anomalies for the same images; call it before iterating."""
        if epoch < 0:
            raise ValueError(f"epoch={epoch} must not be negative.")
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        index = index % len(self)
        row = self.images[index]
        row = row if isinstance(row, dict) else {"image": row}
        if row.get("label", NORMAL) == ANOMALOUS:
            name = row.get("image_id", "no image_id")
            raise ValueError(f"Item {index} ({name}) is labeled anomalous; only normal images are allowed.")
        epoch = int(self._epoch)
        item = {
            "image": load_image(row["image"]),
            "mask": None,
            "label": NORMAL,
            "product": row.get("product", self.product),
            "defect": GOOD,
            "image_id": str(row.get("image_id", index)),
        }
        # a separate random stream: the attempts use the stream numbers below _ATTEMPTS
        if Dice((self.seed, epoch, index), _ATTEMPTS).chance(self.anomaly_fraction):
            foreground = self._foreground(index, item["image"])
            image, mask, kind = add_anomaly(
                item["image"], (self.seed, epoch, index), self.kinds, foreground, self.textures
            )
            item.update(image=image, mask=mask, label=ANOMALOUS, defect=kind)
        return item if self.transform is None else self.transform(item)

    def _foreground(self, index: int, image: Image.Image) -> Any:
        if self.foregrounds is None:
            return None
        return self.foregrounds(image) if callable(self.foregrounds) else self.foregrounds[index]


def _read_foreground(foreground: Any, shape: tuple[int, int]) -> np.ndarray:
    """Return an array (height, width), float32, with 1 where anomalies may lie."""
    if foreground is None:
        return np.ones(shape, np.float32)
    solid = load_mask(foreground)
    if solid.shape != shape:
        raise ValueError(
            f"The foreground has {solid.shape[1]} x {solid.shape[0]} pixels, the image {shape[1]} x {shape[0]}."
        )
    if not solid.any():
        raise ValueError("The foreground is empty: it has no pixel for an anomaly.")
    return solid.astype(np.float32)


def _somewhere(dice: Dice, solid: np.ndarray) -> tuple[int, int]:
    """Draw the row and column of a foreground pixel."""
    rows, columns = np.nonzero(solid)
    chosen = dice.whole(0, len(rows) - 1)
    return int(rows[chosen]), int(columns[chosen])


def _perlin(pixels: np.ndarray, dice: Dice, solid: np.ndarray, textures: Sequence | None) -> _Painted:
    height, width = pixels.shape[:2]
    periods = (2 ** dice.whole(0, 5), 2 ** dice.whole(0, 5))
    field = perlin_noise(dice, (height, width), periods)
    if dice.chance(0.5):
        field = field[:, ::-1]
    region = (field > 0.5).astype(np.float32)
    if textures is None:
        grid = Grid(max(height, width, 32))
        texture = np.broadcast_to(any_material(dice, grid).color, (grid.size, grid.size, 3))[:height, :width] * 255
    else:
        chosen = load_image(textures[dice.whole(0, len(textures) - 1)])
        texture = np.asarray(chosen.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    texture = texture.clip(0, 255)
    kept = dice.between(0.0, 0.8)
    return pixels * np.float32(kept) + texture * np.float32(1 - kept), region


def _jittered(patch: np.ndarray, dice: Dice, amount: float = 0.1) -> np.ndarray:
    """Change brightness, contrast and the balance of the channels, each by up to `amount`."""
    mean = patch.mean(axis=(0, 1), keepdims=True)
    patch = mean + (patch - mean) * np.float32(1 + dice.between(-amount, amount))
    return patch * (1 + dice.uniform_array(3, -amount, amount)) * np.float32(1 + dice.between(-amount, amount))


def _paste(pixels: np.ndarray, dice: Dice, solid: np.ndarray, high: int, wide: int, turn: float) -> _Painted:
    """Rotate a rectangle from a random place on the product, and paste it at another place."""
    height, width = pixels.shape[:2]
    high, wide = min(high, height), min(wide, width)
    row, column = _somewhere(dice, solid)
    top, left = min(max(row - high // 2, 0), height - high), min(max(column - wide // 2, 0), width - wide)
    patch = _jittered(pixels[top : top + high, left : left + wide], dice)
    piece = Image.fromarray(patch.clip(0, 255).astype(np.uint8))
    stencil = Image.new("L", piece.size, 255)
    if turn:
        piece = piece.rotate(turn, Image.Resampling.BILINEAR, expand=True)
        stencil = stencil.rotate(turn, Image.Resampling.BILINEAR, expand=True)
    row, column = _somewhere(dice, solid)
    corner = (column - piece.width // 2, row - piece.height // 2)
    canvas, cover = Image.new("RGB", (width, height)), Image.new("L", (width, height))
    canvas.paste(piece, corner)
    cover.paste(stencil, corner)
    # rotated edges mix with the black around the piece: only fully covered pixels count
    return np.asarray(canvas, np.float32), (np.asarray(cover) > 250).astype(np.float32)


def _cut_paste(pixels: np.ndarray, dice: Dice, solid: np.ndarray, textures: Sequence | None) -> _Painted:
    area = dice.between(0.02, 0.15) * float(solid.mean()) * pixels.shape[0] * pixels.shape[1]
    aspect = dice.between(0.3, 1.0) if dice.chance(0.5) else dice.between(1.0, 3.3)
    high, wide = max(2, round(math.sqrt(area / aspect))), max(2, round(math.sqrt(area * aspect)))
    return _paste(pixels, dice, solid, high, wide, 0.0)


def _scar(pixels: np.ndarray, dice: Dice, solid: np.ndarray, textures: Sequence | None) -> _Painted:
    unit = max(pixels.shape[:2]) / 256
    wide, high = max(2, round(dice.between(2, 16) * unit)), max(3, round(dice.between(10, 25) * unit))
    return _paste(pixels, dice, solid, high, wide, dice.between(-45, 45))


def _line(pixels: np.ndarray, dice: Dice, solid: np.ndarray, textures: Sequence | None) -> _Painted:
    height, width = pixels.shape[:2]
    side = max(height, width)
    row, column = _somewhere(dice, solid)
    place = ((column + 0.5) * 2 / side - 1, (row + 0.5) * 2 / side - 1)
    length, heading, cracked = dice.log_between(0.08, 0.7), dice.angle(), dice.chance(0.5)
    start = (place[0] - length * math.cos(heading), place[1] - length * math.sin(heading))
    restless = dice.between(0.4, 1.3) if cracked else dice.between(0.0, 0.12)
    paths = [wander(dice, start, heading, 2 * length, restless, 0.02, 0.0 if cracked else dice.normal(0, 0.8))]
    thick = dice.log_between(0.004, 0.016)
    widths: list = [thick * _uneven(dice, len(paths[0]))]
    for _ in range(dice.whole(0, 3) if cracked else 0):
        spot = tuple(paths[0][dice.whole(0, len(paths[0]) - 2)].tolist())
        lean = dice.sign() * dice.between(0.4, 1.2)
        paths.append(wander(dice, spot, heading + lean, 0.6 * length, restless, 0.02))
        widths.append(0.7 * thick * _uneven(dice, len(paths[-1])))
    opacity = strokes(side, paths, widths)[:height, :width]
    dark = cracked or dice.chance(0.4)
    local = pixels[max(0, row - 8) : row + 9, max(0, column - 8) : column + 9].mean(axis=(0, 1))
    if dark and local.mean() < 40:
        dark = False
    tone = local * dice.between(0.1, 0.7) if dark else local + (255 - local) * dice.between(0.25, 0.9)
    return np.broadcast_to(tone.astype(np.float32), pixels.shape), opacity


def _uneven(dice: Dice, count: int) -> np.ndarray:
    along = np.linspace(0, 1, count, dtype=np.float32)
    ends = smoothstep(0, 0.3, along) * smoothstep(1, 0.7, along)
    return np.clip(ends, 0.3, 1) * dice.uniform_array(count, 0.7, 1.3)


_MAKERS = {"perlin": _perlin, "cut_paste": _cut_paste, "scar": _scar, "line": _line}
