"""The metrics as literally defined: every distinct score is a threshold, every region is visited.

Slow, and independent of the package.
"""

import numpy as np
from scipy import ndimage


KINDS = ("random", "tied", "skewed", "saturated", "sparse", "many_regions", "half_precision", "two_levels")


def example(kind: str, seed: int = 0, images: int = 4, side: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """
    Return maps, float32 (images, side, side) in [0, 1], and masks, bool. The first image is normal; defects have
    larger scores.
    """
    generator = np.random.default_rng(seed)
    masks = ndimage.gaussian_filter(generator.standard_normal((images, side, side)), (0, 1.5, 1.5)) > 0.25
    if kind == "sparse":
        masks = np.zeros((images, side, side), bool)
        masks[1, 3, 4:6] = masks[2, 7, 7] = True
    if kind == "many_regions":
        masks = generator.random((images, side, side)) < 0.15
    masks[0] = False
    maps = generator.random((images, side, side)) * 0.7 + 0.3 * masks * generator.random((images, side, side))
    if kind == "tied":
        maps = np.round(maps * 16) / 16
    if kind == "skewed":
        maps = maps**9
    if kind == "saturated":
        maps = 1 - (1 - maps) ** 9
    if kind == "half_precision":
        maps = maps.astype(np.float16)
    if kind == "two_levels":
        maps = np.where(maps > 0.5, 1.0, 0.0)
    return maps.astype(np.float32), masks


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    above = scores[labels][:, None] > scores[~labels][None]
    equal = scores[labels][:, None] == scores[~labels][None]
    return float(above.mean() + equal.mean() / 2)


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    total, recall_before = 0.0, 0.0
    for threshold in np.unique(scores)[::-1]:
        found = scores >= threshold
        recall = labels[found].sum() / labels.sum()
        total += (recall - recall_before) * labels[found].mean()
        recall_before = recall
    return float(total)


def f1_max(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    best = (-1.0, 0.0)
    for threshold in np.unique(scores)[::-1]:
        found = scores >= threshold
        f1 = 2 * (found & labels).sum() / (found.sum() + labels.sum())
        if f1 >= best[0]:
            best = (float(f1), float(threshold))
    return best


def iou(scores: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    found = scores > np.float32(threshold)
    return float((found & labels).sum() / (found | labels).sum())


def regions(masks: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Return (number of the image, region as a mask) for each 8-connected region."""
    found = []
    for number, mask in enumerate(masks):
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        found += [(number, labels == label) for label in range(1, count + 1)]
    return found


def pro(maps: np.ndarray, masks: np.ndarray, fpr_limit: float = 0.3) -> float:
    parts = regions(masks)
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        found = maps >= threshold
        rates.append(found[~masks].mean())
        overlaps.append(np.mean([found[number][region].mean() for number, region in parts]))
    area = 0.0
    for i in range(1, len(rates)):
        left, right, bottom, top = rates[i - 1], rates[i], overlaps[i - 1], overlaps[i]
        if left >= fpr_limit:
            break
        if right > fpr_limit:
            top = bottom + (top - bottom) * (fpr_limit - left) / (right - left)
            right = fpr_limit
        area += (right - left) * (bottom + top) / 2
    return float(area / fpr_limit)


def pro_200_steps(maps: np.ndarray, masks: np.ndarray, fpr_limit: float = 0.3) -> float:
    """Run the loop of the authors' code, in the precisions of NumPy 2; NaN if it divides zero by zero."""
    parts = regions(masks)
    rates, overlaps = [], []
    step = (maps.max() - maps.min()) / maps.dtype.type(200)
    for threshold in np.arange(maps.min(), maps.max(), step):
        found = maps.astype(np.float64) > threshold
        rates.append(found[~masks].mean())
        overlaps.append(np.mean([found[number][region].mean() for number, region in parts]))
    kept = np.array(rates) < fpr_limit
    rates, overlaps = np.array(rates)[kept], np.array(overlaps)[kept]
    if not len(rates) or rates.max() == rates.min():
        return float("nan")
    rates = (rates - rates.min()) / (rates.max() - rates.min())
    return float(sum((rates[i] - rates[i + 1]) * (overlaps[i] + overlaps[i + 1]) / 2 for i in range(len(rates) - 1)))


def pixel_metrics(maps: np.ndarray, masks: np.ndarray, fpr_limit: float = 0.3) -> dict[str, float]:
    """Return all pixel metrics, by the names of the package."""
    scores, labels = maps.ravel(), masks.ravel()
    best, threshold = f1_max(scores, labels)
    return {
        "pixel_auroc": auroc(scores, labels),
        "pixel_ap": average_precision(scores, labels),
        "pixel_f1_max": best,
        "pixel_f1_threshold": threshold,
        "pixel_iou": iou(scores, labels, threshold),
        "pixel_pro": pro(maps, masks, fpr_limit),
        "pixel_pro_200": pro_200_steps(maps, masks, fpr_limit),
    }
