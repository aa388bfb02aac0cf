"""Paint anomalies on normal images, so that normal images are enough for training; kinds are in `anomaly_painters`."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ..generator.fields import Dice
from ..image_loading import load_image, load_mask
from .anomaly_painters import ANOMALY_KINDS, PAINTERS
from .records import ANOMALOUS, GOOD, NORMAL


__all__ = ["ANOMALY_KINDS", "PaintedAnomalies", "add_anomaly"]

_ATTEMPTS = 24
_SMALLEST = 0.0002  # area, as a share of the image
# Mean difference on the mask, in levels of 0..255, and as a share of the deviation of the image there
_FAINTEST, _FAINTEST_SHARE = 4.0, 0.35


def add_anomaly(
    image: Image.Image | np.ndarray | str,
    seed: int | Sequence[int],
    kind: str | Sequence[str] = ANOMALY_KINDS,
    foreground: Image.Image | np.ndarray | str | None = None,
    textures: Sequence[Image.Image | np.ndarray | str] | None = None,
    attempts: int = _ATTEMPTS,
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
        textures (`Sequence` of images, *optional*): textures for "perlin" and "missing"; by default
            procedural ones.
        attempts (`int`, *optional*, defaults to 24): number of attempts to paint a visible anomaly.

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
    for attempt in range(attempts):
        dice = Dice(entropy, attempt)
        name = dice.pick(kinds)
        changed, opacity = PAINTERS[name](pixels, dice, solid, textures)
        opacity = opacity * solid
        mask = opacity > 0.12
        opacity = (opacity * mask)[..., None]
        result = np.floor(pixels + opacity * (changed - pixels) + 0.5).clip(0, 255)
        if mask.mean() < _SMALLEST:
            continue
        faintest = max(_FAINTEST, _FAINTEST_SHARE * float(pixels[mask].std(axis=0).max()))
        if np.abs(result - pixels).max(axis=2)[mask].mean() < faintest:
            continue
        return Image.fromarray(result.astype(np.uint8)), Image.fromarray(mask.astype(np.uint8) * 255), name
    raise ValueError(
        f"No visible anomaly of the kinds {', '.join(kinds)} after {attempts} attempts on an image of"
        f" {picture.width} x {picture.height} pixels with {int(solid.sum())} foreground pixels; give a larger"
        " foreground, other kinds or another seed."
    )


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
