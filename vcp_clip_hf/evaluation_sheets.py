"""Sheets of an evaluation: for each product, examples of every kind of defect and of normal images."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .visualization import contour, heatmap, sheet


__all__ = ["choose_examples", "column_of", "shown_example", "shrunk", "shrunk_map", "write_sheets"]

# Pictures of examples are kept until the thresholds are known, no larger than sheets show them
_LONGER_SIDE = 512


def choose_examples(dataset: Sequence[dict[str, Any]], count: int) -> set[int]:
    """
    Choose examples of each product: normal images and every kind of defect in turn, spread over the dataset.

    Args:
        dataset (`Sequence[dict]`): records with `product` and `label`, and `defect` if the kinds are known.
        count (`int`): number of examples of each product.

    Returns:
        `set[int]`: indices of the chosen records.
    """
    products, labels, defects = (column_of(dataset, name) for name in ("product", "label", "defect"))
    groups: dict[str, dict[tuple, list[int]]] = {}
    for index, (product, label, defect) in enumerate(zip(products, labels, defects, strict=True)):
        kind = (label != 0, defect if label else "")
        groups.setdefault(product, {}).setdefault(kind, []).append(index)
    return {index for kinds in groups.values() for index in _spread_over_kinds(kinds, count)}


def column_of(dataset: Sequence[dict[str, Any]], name: str) -> list[Any]:
    """Return one column, without decoding the images; None for each record if there is no such column."""
    columns = getattr(dataset, "column_names", None)
    if columns is None:
        return [record.get(name) for record in dataset]
    return list(dataset[name]) if name in columns else [None] * len(dataset)


def _spread_over_kinds(kinds: dict[tuple, list[int]], count: int) -> list[int]:
    normal = [indices for (is_defect, _), indices in kinds.items() if not is_defect]
    defects = [kinds[kind] for kind in sorted(kinds, key=str) if kind[0]]
    # One row at least for normal images, if there is more than one row
    places = max(1, count - len(normal)) if count > 1 else 1
    if len(defects) > places:
        defects = [defects[place] for place in _spread(len(defects), places)]
    turns = [*defects, *normal]
    quotas = [0] * len(turns)
    while sum(quotas) < count and any(quota < len(some) for quota, some in zip(quotas, turns, strict=True)):
        for place, some in enumerate(turns):
            if sum(quotas) < count and quotas[place] < len(some):
                quotas[place] += 1
    return [some[place] for some, quota in zip(turns, quotas, strict=True) for place in _spread(len(some), quota)]


def _spread(length: int, count: int) -> list[int]:
    """Return `count` of `length` places, at equal distances."""
    return [int((number + 0.5) * length / count) for number in range(count)]


def shown_example(
    image: Image.Image, mask: Image.Image | None, anomaly_map: np.ndarray, **facts: Any
) -> dict[str, Any]:
    """
    Prepare an example for a sheet: picture, mask and map with the image's ratio, no larger than a sheet needs.

    Args:
        image (`PIL.Image.Image`): image.
        mask (`PIL.Image.Image`, *optional*): its ground truth.
        anomaly_map (`np.ndarray` of shape `(height, width)`): its map at the size of the image.
        facts: `product`, `image_id`, `defect`, `label` and `score` of the image.
    """
    picture, truth = shrunk(image, mask, _LONGER_SIDE)
    return {**facts, "image": picture, "mask": truth, "map": shrunk_map(anomaly_map, picture.size)}


def shrunk(image: Image.Image, mask: Image.Image | None, longer_side: int) -> tuple[Image.Image, np.ndarray | None]:
    """
    Return an image and its mask, of equal size and not larger than requested; the ratio of the image stays.

    Args:
        image (`PIL.Image.Image`): image.
        mask (`PIL.Image.Image`, *optional*): its ground truth, non-zero where abnormal.
        longer_side (`int`): largest side in pixels.

    Returns:
        `tuple`: the image, and the mask, bool `(height, width)`, or `None`.
    """
    scale = min(1.0, longer_side / max(image.size))
    size = tuple(max(1, round(side * scale)) for side in image.size)
    # BOX and not NEAREST: thin defects must not vanish
    truth = (
        None if mask is None else np.asarray(mask.convert("L").point(_to_255).resize(size, Image.Resampling.BOX)) > 0
    )
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0), truth


def shrunk_map(anomaly_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a map, float32, at another size (width, height)."""
    return np.asarray(Image.fromarray(anomaly_map.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))


def _to_255(value: int) -> int:
    return 255 if value else 0


def write_sheets(folder: Path, examples: Sequence[dict[str, Any]], result: dict[str, Any]) -> None:
    """
    Write one sheet for each product.

    Args:
        folder (`Path`): folder to write; created if missing.
        examples (`Sequence[dict]`): examples from `shown_example`.
        result (`dict`): the dataset's result of [`AnomalySegmentationEvaluator.compute`], with the threshold of each
            product's best F1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    for product in sorted({example["product"] for example in examples}):
        threshold = result["per_product"][product].get("pixel_f1_threshold", math.nan)
        rows = [_row(example, threshold) for example in examples if example["product"] == product]
        sheet(rows, title=product).save(folder / f"{_file_name(product, taken)}.png")


def _row(example: dict[str, Any], threshold: float) -> list[tuple[str, Image.Image]]:
    image, anomaly_map, truth = example["image"], example["map"], example["mask"]
    kind = "normal" if example["label"] == 0 else example["defect"] or "anomalous"
    if truth is not None:
        marked = ("ground truth", contour(image, truth, (0, 255, 0)))
    else:
        marked = ("normal: no mask" if example["label"] == 0 else "no mask given", image)
    if math.isnan(threshold):
        found = ("mask: no threshold", image)
    else:
        found = (f"mask (map >= {threshold:.2f})", contour(image, anomaly_map >= threshold))
    name = f"{kind}: {example['image_id']}"
    return [(name, image), marked, (f"map (score {example['score']:.2f})", heatmap(anomaly_map)), found]


def _file_name(product: str, taken: set[str]) -> str:
    """Return a file name for a product that no earlier product has, also where case is ignored."""
    stem = re.sub(r"[^\w.()-]+", "_", product)[:80].strip(". ") or "_"
    name, number = stem, 2
    while name.casefold() in taken:
        name, number = f"{stem}-{number}", number + 1
    taken.add(name.casefold())
    return name
