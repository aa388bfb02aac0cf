"""Make pictures with and without defects, of photographed materials and of rendered products.

Half of the pictures show photographed materials with painted anomalies, a quarter rendered products with the defects
of the generator, and a quarter rendered products with painted anomalies. Every source has normal pictures too.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import datasets
import numpy as np
from PIL import Image

from vcp_clip_hf.data.records import ANOMALOUS, FEATURES, GOOD, NORMAL
from vcp_clip_hf.generator import SEEN_DEFECTS, render_sample, select_products
from vcp_clip_hf.generator.fields import Dice
from vcp_clip_hf.version import __version__

from .material_scenes import SPLITS, MaterialScene, MaterialScenes, checksum_of_photographs, damage
from .view_light import ViewLight


__all__ = ["SOURCES", "defect_pictures"]

# Sources of consecutive rows. "rendered": products with the generator's defects; "painted": with painted anomalies
SOURCES = ("material", "rendered", "material", "painted")
SMALLEST = 32  # pixels, of `render_sample`
ATTEMPTS = 100  # at a picture, until damage is visible
CROP_SHARE = 0.4  # of the pictures; the others show the whole scene
CROP_SIDES = (0.5, 1.0)  # range of the side of a crop, as a share of the scene's side


def defect_pictures(
    split: str,
    count: int,
    size: int,
    seed: int,
    products: Sequence[str],
    anomaly_fraction: float = 0.7,
    num_proc: int | None = None,
) -> datasets.Dataset:
    """
    Make a table of pictures, with the columns of every dataset of this package (`data.records.FEATURES`).

    A row depends on `split`, `seed`, its index and `size`, its source and label, and `products`; not on `count` or
    `num_proc`. The table stays in the cache of `datasets`, and the same arguments read it from there.

    Args:
        split (`"train"` or `"test"`): photographs to draw from; rendered products differ between the splits too.
        count, size (`int`): number of pictures, at least 1, and their side in pixels, at least 32.
        seed (`int`): seed of the pictures, not negative.
        products (sequence of `str`): families of rendered products, names of `vcp_clip_hf.generator.PRODUCTS`.
        anomaly_fraction (`float`, *optional*, defaults to 0.7): share of anomalous pictures, 0..1.
        num_proc (`int`, *optional*): number of processes that make the pictures.

    Returns:
        `datasets.Dataset` of `count` rows; `floor(count * anomaly_fraction)` of them are anomalous, evenly spread over
        the table and over `SOURCES`. `image_id` is "split/source/seed/index".

    Raises:
        ValueError: an argument lies outside its range, or a product is unknown.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} must be one of {', '.join(SPLITS)}.")
    if count < 1 or size < SMALLEST or seed < 0:
        raise ValueError(
            f"count={count} must be at least 1, size={size} at least {SMALLEST}, and seed={seed} must not be negative."
        )
    if not 0 <= anomaly_fraction <= 1:
        raise ValueError(f"anomaly_fraction={anomaly_fraction} must lie in 0..1.")
    what = {"split": split, "size": size, "seed": seed, "products": select_products(products)}
    key = repr((__version__, checksum_of_photographs(), count, float(anomaly_fraction), *what.values()))
    return datasets.Dataset.from_generator(
        _records,
        features=FEATURES,
        # `datasets` shares the list among the processes; everything else goes to each of them
        gen_kwargs={"rows": _plan(count, anomaly_fraction), **what},
        num_proc=num_proc,
        fingerprint=f"defect_pictures-{hashlib.sha256(key.encode()).hexdigest()[:40]}",
    )


def _plan(count: int, anomaly_fraction: float) -> list[tuple[int, str, bool]]:
    """Return (index, source, whether it is anomalous) of every row; normal and anomalous rows go through `SOURCES`."""
    rows = []
    for index in range(count):
        before = math.floor(index * anomaly_fraction)  # anomalous rows
        is_anomalous = math.floor((index + 1) * anomaly_fraction) > before
        rows.append((index, SOURCES[(before if is_anomalous else index - before) % len(SOURCES)], is_anomalous))
    return rows


def _records(
    rows: list[tuple[int, str, bool]], split: str, size: int, seed: int, products: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """Yield the records of these rows of `_plan`."""
    materials = _materials(split)
    for index, source, is_anomalous in rows:
        for attempt in range(ATTEMPTS):
            dice = Dice((SPLITS.index(split), seed, index, attempt))
            try:
                record = _record(source, is_anomalous, dice, size, materials, products)
                break
            except (ValueError, RuntimeError) as error:  # no damage is visible
                last = error
        else:
            raise RuntimeError(f"Row {index} ({source}) has no picture after {ATTEMPTS} attempts.") from last
        yield {**record, "image_id": f"{split}/{source}/{seed}/{index:06d}"}


@lru_cache(maxsize=1)
def _materials(split: str) -> MaterialScenes:
    """Read the photographs once in a process: `datasets` calls the generator anew for every row."""
    return MaterialScenes(split)


def _record(
    source: str, is_anomalous: bool, dice: Dice, size: int, materials: MaterialScenes, products: tuple[str, ...]
) -> dict[str, Any]:
    """Draw a record without its id. Raises ValueError or RuntimeError if no damage is visible."""
    # The crop and the light are drawn before the scene, so that a whole and a damaged scene share them
    window = _window(dice, size)
    light = ViewLight.draw(size, dice.generator)
    pixels, mask, product, defect = _picture(source, is_anomalous, dice, size, materials, products)
    if is_anomalous and not mask[window].any():
        window = (slice(None), slice(None))
    return {
        "image": Image.fromarray(light.picture(pixels[window]).astype(np.uint8)),
        "mask": _resized(light.turned(mask[window]), size) if is_anomalous else None,
        "label": ANOMALOUS if is_anomalous else NORMAL,
        "product": product,
        "defect": defect,
    }


def _picture(
    source: str, is_anomalous: bool, dice: Dice, size: int, materials: MaterialScenes, products: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, str, str]:
    """Return a picture (size, size, 3) uint8, its mask (size, size) bool, and the names of product and defect."""
    if source == "material":
        scene = materials.scene(dice, size)
        product = f"material {scene.name}"
    else:
        product, number = dice.pick(products), dice.whole(0, 2**31 - 1)
        has_own_defect = is_anomalous and source == "rendered"
        sample = render_sample(product, number, 0, size, "auto" if has_own_defect else None, SEEN_DEFECTS)
        if has_own_defect:
            return np.asarray(sample.image), np.asarray(sample.mask) > 0, product, sample.defect
        scene = MaterialScene(np.asarray(sample.image), np.ones((size, size), bool), product)
    if not is_anomalous:
        return scene.pixels, np.zeros((size, size), bool), product, GOOD
    pixels, mask, defect = damage(scene, dice, materials)
    return pixels, mask, product, defect


def _window(dice: Dice, size: int) -> tuple[slice, slice]:
    """Draw the rows and columns of a square crop, or of the whole scene."""
    side = int(size * dice.between(*CROP_SIDES)) if dice.chance(CROP_SHARE) else size
    top, left = dice.whole(0, size - side), dice.whole(0, size - side)
    return slice(top, top + side), slice(left, left + side)


def _resized(mask: np.ndarray, size: int) -> Image.Image:
    """Convert (side, side) bool to a mask of `size` x `size` pixels, 0 or 255. Raises ValueError if it is empty."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255).resize((size, size), Image.Resampling.BILINEAR)
    levels = np.asarray(picture) >= 128
    if not levels.any():
        raise ValueError("The damage is too small for a mask.")
    return Image.fromarray(levels.astype(np.uint8) * 255)
