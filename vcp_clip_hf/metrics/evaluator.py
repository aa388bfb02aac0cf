"""Metrics per product and their mean over products, computed from batches of maps and masks."""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from . import bounds, curves
from .bounds import BoundedValue, RankedBins
from .curves import RankedScores, UndefinedMetricError
from .exact_scores import ExactScores
from .inputs import Image, Images, Values, as_images, as_labels, as_map, as_mask, as_scores
from .polylines import Curve, drawn_curves
from .score_histogram import ScoreGrid, ScoreHistogram


__all__ = ["IMAGE_METRICS", "PIXEL_METRICS", "AnomalySegmentationEvaluator"]


PIXEL_METRICS = (
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1_max",
    "pixel_f1_threshold",
    "pixel_iou",
    "pixel_pro",
    "pixel_pro_200",
)
IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1_max", "image_f1_threshold")

# Thresholds of different products are not comparable, so they have no mean
_THRESHOLDS = ("pixel_f1_threshold", "image_f1_threshold")

_STATE_VERSION = 1


class AnomalySegmentationEvaluator:
    """
    Compute the metrics of anomaly segmentation and detection, per product and as their mean over products, which is
    the convention of VCP-CLIP (ECCV 2024) and of the tables it compares with.

    | name | meaning |
    |---|---|
    | `pixel_auroc`, `pixel_ap` | area under the ROC curve; average precision, over all pixels of a product |
    | `pixel_f1_max`, `pixel_f1_threshold` | the largest F1 of score >= threshold; the lowest such threshold |
    | `pixel_iou` | intersection over union for scores > that threshold |
    | `pixel_pro` | per-region overlap, exact, up to `fpr_limit`, divided by it |
    | `pixel_pro_200` | per-region overlap as the authors estimate it, from 200 thresholds, as in published tables |
    | `image_auroc`, `image_ap`, `image_f1_max`, `image_f1_threshold` | the same for one score per image |

    All but the thresholds lie in [0, 1]. A metric without a value (no abnormal pixels, no normal images, ...) is NaN,
    and the result says why.

    Args:
        metrics (`Sequence[str]`, *optional*, defaults to all):
            Names from the table. Without pixel metrics, no pixels are kept.
        mode (`"exact"` or `"streaming"`, *optional*, defaults to `"exact"`):
            "exact" keeps the scores, 4 bytes per pixel of float32 maps. "streaming" counts them in a fine histogram,
            4 MB per product for any number of images, and returns bounds between which the exact values lie. The
            image metrics are exact in both.
        fpr_limit (`float`, *optional*, defaults to 0.3): false positive rate up to which PRO is integrated.
        score_range (`tuple[float, float]`, *optional*, defaults to (0, 1)): range of all maps, for streaming.
        mantissa_bits (`int`, *optional*, defaults to 11):
            Fineness of the histogram, for streaming. One more bit halves the bounds and doubles the memory.
        skip_undefined (`bool`, *optional*, defaults to `False`):
            Whether means leave out products for which a metric is undefined. Otherwise the mean is NaN as well. In
            both cases, the result's `reasons` name the products.

    ```python
    >>> evaluator = AnomalySegmentationEvaluator()
    >>> evaluator.add(maps, masks, products=["bottle"] * len(maps))
    >>> evaluator.compute()["mean"]["pixel_auroc"]
    ```

    Each process or node can use its own evaluator and pass on its state, a dict of arrays:

    ```python
    >>> states = gather_object([evaluator.state_dict()])  # of accelerate.utils
    >>> total = AnomalySegmentationEvaluator.from_state_dict(states[0])
    >>> for state in states[1:]:
    ...     total.merge(AnomalySegmentationEvaluator.from_state_dict(state))
    ```
    """

    def __init__(
        self,
        metrics: Sequence[str] | None = None,
        mode: str = "exact",
        fpr_limit: float = 0.3,
        score_range: tuple[float, float] = (0.0, 1.0),
        mantissa_bits: int = 11,
        skip_undefined: bool = False,
    ):
        known = PIXEL_METRICS + IMAGE_METRICS
        requested = known if metrics is None else ([metrics] if isinstance(metrics, str) else list(metrics))
        unknown = [name for name in requested if name not in known]
        if unknown or not requested:
            raise ValueError(
                f"metrics={requested} must be names among {', '.join(known)}; unknown: {unknown or 'none'}."
            )
        if mode not in ("exact", "streaming"):
            raise ValueError(f"mode={mode!r} must be 'exact' or 'streaming'.")
        if not 0 < fpr_limit <= 1:
            raise ValueError(f"fpr_limit={fpr_limit} must be in (0, 1].")
        self.metrics = tuple(name for name in known if name in requested)
        self.mode = mode
        self.fpr_limit = float(fpr_limit)
        self.grid = ScoreGrid(float(score_range[0]), float(score_range[1]), mantissa_bits)
        self.skip_undefined = bool(skip_undefined)
        self._products: dict[str, _Product] = {}

    @property
    def num_images(self) -> int:
        """Return the number of images added."""
        return sum(len(product.labels) for product in self._products.values())

    def reset(self) -> None:
        """Remove all images."""
        self._products = {}

    def add(
        self,
        maps: Images,
        masks: Images | Sequence[Image | None] | None,
        products: str | Sequence[str] = "all",
        image_scores: Values | None = None,
        labels: Values | None = None,
        image_ids: Sequence[str] | None = None,
    ) -> None:
        """
        Add a batch of images.

        Args:
            maps (`np.ndarray` or `torch.Tensor` of shape `(B, height, width)`, or a list of B 2-D ones):
                Anomaly maps, higher is more abnormal. Sizes may differ between the images of a list.
            masks (the same, each of the shape of its map; or `None`):
                Booleans or 0/1, 1 where abnormal. `None`, also in a list, stands for a normal image without a mask,
                or for an anomalous one whose mask is unknown (which counts for the image metrics only); `labels` must
                then say which.
            products (`str` or `Sequence[str]`, *optional*, defaults to "all"): product of each image, or of all.
            image_scores (sequence or 1-D array of length B, *optional*):
                Scores of the images; by default, the maximum of each map.
            labels (sequence or 1-D array of length B, *optional*):
                0 for normal, 1 for anomalous images; by default 1 if the mask marks any pixel.
            image_ids (`Sequence[str]`, *optional*):
                Names, for messages. An image that occurs twice within a product is then refused, as happens if
                processes receive the same images to fill up their last batches.

        Raises:
            ValueError: the arguments do not fit together; the message names the first few images, and none is added.
        """
        images = self._read(maps, masks, products, image_scores, labels, image_ids)
        for image in images:
            product = self._products.get(image.product)
            if product is None:
                product = self._products[image.product] = _Product(self._new_scores())
            product.add(image)

    def replace_image_scores(self, product: str, scores: Values) -> None:
        """
        Replace the scores of all images of a product, where they depend on each other.

        Args:
            product (`str`): name of the product.
            scores (sequence or 1-D array): one score for each image of the product, in the order of their addition.

        Raises:
            ValueError: another number of scores than of images, or an unknown product.
        """
        count = len(self._products[product].labels) if product in self._products else 0
        scores = as_scores(scores, "scores")
        if len(scores) != count:
            raise ValueError(f"{len(scores)} scores were given for the {count} images of {product!r}.")
        self._products[product].image_scores = [float(score) for score in scores]

    def merge(self, other: "AnomalySegmentationEvaluator") -> "AnomalySegmentationEvaluator":
        """
        Add all images of another evaluator with the same settings, which is not changed.

        Returns:
            This evaluator.

        Raises:
            ValueError: the settings differ, or an image (by its id) is in both.
        """
        if other._settings() != self._settings():
            raise ValueError(
                f"Evaluators with different settings cannot be merged: {self._settings()} and {other._settings()}."
            )
        in_both = [
            f"{name}/{image_id}"
            for name, product in other._products.items()
            if name in self._products
            for image_id in product.image_ids
            if image_id in self._products[name].image_ids
        ]
        if in_both:
            raise ValueError(
                f"{len(in_both)} images are in both evaluators and would count twice: {_first_few(in_both)}. Give each"
                " process its own images (with accelerate: `even_batches=False`)."
            )
        for name, product in other._products.items():
            if name not in self._products:
                self._products[name] = _Product(self._new_scores())
            self._products[name].merge(product)
        return self

    def compute(self) -> dict:
        """
        Compute the requested metrics. Can be called again, also after more images.

        Returns:
            `dict`, of plain floats, strings and dicts:

            - `mean`: metric -> mean over products (no thresholds).
            - `per_product`: product -> metric -> value.
            - `bounds`, in streaming mode: the same two, with (lower, upper) for values. Exact values lie in between.
            - `counts`: product -> images, anomalous_images, unmasked_images (anomalous without a mask), pixels,
              anomalous_pixels, regions.
            - `reasons`: product or "mean" -> metric -> why it is NaN, or which products a mean leaves out.
            - `settings`: settings of the evaluator.

        Raises:
            ValueError: no images have been added.
        """
        if not self._products:
            raise ValueError("There is nothing to evaluate yet; `add` images first.")
        values, limits, reasons = {}, {}, {}
        for name in sorted(self._products):
            values[name], limits[name], why = self._compute_product(self._products[name])
            if why:
                reasons[name] = why
        mean, mean_limits, why = self._average(values, limits, reasons)
        if why:
            reasons["mean"] = why
        result = {"mean": mean, "per_product": values}
        if self.mode == "streaming":
            result["bounds"] = {"mean": mean_limits, "per_product": limits}
        return {
            **result,
            "counts": {name: self._products[name].counts() for name in values},
            "reasons": reasons,
            "settings": self._settings(),
        }

    def image_scores(self, product: str) -> list[float]:
        """Return the scores of a product's images, in the order of their addition."""
        return list(self._products[product].image_scores)

    def curves(self) -> dict[str, dict[str, Curve]]:
        """
        Return the curves whose areas [`compute`] returns, with few points, for each product.

        Returns:
            `dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]`: product -> `image_roc`, `image_precision_recall`,
            `pixel_roc`, `pixel_precision_recall` and `pixel_pro` -> x and y, see [`drawn_curves`]. Curves without
            normal or without abnormal images (or pixels) are left out, and those of pixels without pixel metrics.
        """
        found = {}
        for name in sorted(self._products):
            product = self._products[name]
            levels = {"image": product.rank_images()}
            if product.scores is not None:
                levels["pixel"] = product.scores.rank()
            found[name] = {
                f"{level}_{kind}": curve
                for level, ranked in levels.items()
                for kind, curve in drawn_curves(ranked, self.fpr_limit).items()
            }
        return found

    def state_dict(self) -> dict[str, np.ndarray]:
        """
        Return the whole state, as a flat dict of arrays without objects, for `gather_object`, `pickle` or `np.savez`.
        In exact mode it holds the scores of all pixels, in streaming mode the occupied bins.
        """
        state = {
            "version": np.int64(_STATE_VERSION),
            "settings": np.array(json.dumps(self._settings())),
            "products": np.array(list(self._products), dtype=np.str_),
        }
        for number, product in enumerate(self._products.values()):
            state.update({f"{number}.{name}": array for name, array in product.state_dict().items()})
        return state

    @classmethod
    def from_state_dict(cls, state: Mapping[str, np.ndarray]) -> "AnomalySegmentationEvaluator":
        """Make an evaluator from a `state_dict`, which may be an open `.npz` file."""
        if int(state["version"]) != _STATE_VERSION:
            raise ValueError(f"The state has version {state['version']}, this package reads {_STATE_VERSION}.")
        evaluator = cls(**json.loads(str(state["settings"])))
        for number, name in enumerate(state["products"]):
            prefix = f"{number}."
            product = _Product(evaluator._new_scores())
            product.load_state_dict({key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)})
            evaluator._products[str(name)] = product
        return evaluator

    def _settings(self) -> dict:
        settings = {
            "metrics": list(self.metrics),
            "mode": self.mode,
            "fpr_limit": self.fpr_limit,
            "skip_undefined": self.skip_undefined,
        }
        if self.mode == "streaming":
            settings["score_range"] = [self.grid.low, self.grid.high]
            settings["mantissa_bits"] = self.grid.mantissa_bits
        return settings

    def _new_scores(self) -> ExactScores | ScoreHistogram | None:
        if not any(name in PIXEL_METRICS for name in self.metrics):
            return None
        return ExactScores() if self.mode == "exact" else ScoreHistogram(self.grid)

    def _read(self, maps, masks, products, image_scores, labels, image_ids) -> "list[_Image]":
        """Check a whole batch, before any of its images is counted."""
        maps = as_images(maps, "maps")
        count = len(maps)
        masks = [None] * count if masks is None else as_images(masks, "masks")
        products = [products] * count if isinstance(products, str) else list(products)
        image_scores = [None] * count if image_scores is None else as_scores(image_scores, "image_scores")
        labels = [None] * count if labels is None else as_labels(labels, "labels")
        image_ids = [None] * count if image_ids is None else list(image_ids)
        columns = {
            "masks": masks,
            "products": products,
            "image_scores": image_scores,
            "labels": labels,
            "image_ids": image_ids,
        }
        for name, column in columns.items():
            if len(column) != count:
                raise ValueError(f"{count} maps came with {len(column)} {name}; there must be one for each.")

        images, problems = [], []
        rows = zip(maps, masks, products, image_scores, labels, image_ids, strict=True)
        for number, (anomaly_map, mask, product, score, label, image_id) in enumerate(rows):
            try:
                image = _read_image(anomaly_map, mask, product, score, label, image_id)
                if self.mode == "streaming":
                    self.grid.check(image.anomaly_map)
                images.append(image)
            except ValueError as error:
                name = f"image {number} of the batch" if image_id is None else f"image {image_id!r}"
                problems.append(f"{name} (product {product!r}): {error}")
        problems += self._added_before(images)
        if problems:
            raise ValueError(
                f"{len(problems)} of {count} images cannot be evaluated, none was added: {_first_few(problems)}"
            )
        return images

    def _added_before(self, images: "list[_Image]") -> list[str]:
        """Return a message for each image whose id occurs twice, here or in earlier batches of its product."""
        counts = Counter((image.product, image.image_id) for image in images if image.image_id is not None)
        return [
            f"image {image_id!r} (product {product!r}): it has been added before"
            for (product, image_id), count in counts.items()
            if count > 1 or (product in self._products and image_id in self._products[product].image_ids)
        ]

    def _compute_product(self, product: "_Product") -> tuple[dict, dict, dict]:
        """Return values, bounds and reasons of one product, by metric."""
        functions = _image_functions(product.rank_images())
        if product.scores is not None:
            functions |= _pixel_functions(product.scores.rank(), self.fpr_limit)
        values, limits, reasons = {}, {}, {}
        for name in self.metrics:
            try:
                result = functions[name]()
            except UndefinedMetricError as error:
                result = math.nan
                reasons[name] = str(error)
                if name in PIXEL_METRICS and product.num_unmasked and not product.scores.num_abnormal_pixels:
                    reasons[name] += f"; anomalous images without a mask: {product.num_unmasked}"
            if not isinstance(result, BoundedValue):
                result = BoundedValue(result, result, result)
            values[name] = result.value
            limits[name] = (result.lower, result.upper)
        return values, limits, reasons

    def _average(self, values: dict, limits: dict, reasons: dict) -> tuple[dict, dict, dict]:
        """Return the means of values and bounds over products, and the reasons for undefined ones."""
        mean, mean_limits, why = {}, {}, {}
        for name in self.metrics:
            if name in _THRESHOLDS:
                continue
            undefined = [product for product in values if name in reasons.get(product, {})]
            defined = [product for product in values if product not in undefined]
            if undefined:
                listed = _first_few([f"{product} ({reasons[product][name]})" for product in undefined])
                why[name] = f"undefined for {len(undefined)} of {len(values)} products: {listed}"
            if undefined and not (self.skip_undefined and defined):
                mean[name], mean_limits[name] = math.nan, (math.nan, math.nan)
                continue
            mean[name] = _mean(values[product][name] for product in defined)
            mean_limits[name] = tuple(_mean(limits[product][name][side] for product in defined) for side in (0, 1))
        return mean, mean_limits, why


@dataclass
class _Image:
    """A checked image."""

    anomaly_map: np.ndarray
    mask: np.ndarray | None
    product: str
    score: float
    label: bool
    image_id: str | None


class _Product:
    """Scores, labels and counts of one product."""

    def __init__(self, scores: ExactScores | ScoreHistogram | None):
        self.scores = scores
        self.image_scores: list[float] = []
        self.labels: list[bool] = []
        self.image_ids: set[str] = set()
        self.num_unmasked = 0

    def add(self, image: _Image) -> None:
        self.image_scores.append(image.score)
        self.labels.append(image.label)
        if image.image_id is not None:
            self.image_ids.add(image.image_id)
        if image.label and image.mask is None:
            self.num_unmasked += 1
        elif self.scores is not None:
            self.scores.add(image.anomaly_map, image.mask)

    def merge(self, other: "_Product") -> None:
        self.image_scores += other.image_scores
        self.labels += other.labels
        self.image_ids |= other.image_ids
        self.num_unmasked += other.num_unmasked
        if self.scores is not None:
            self.scores.merge(other.scores)

    def rank_images(self) -> RankedScores:
        return RankedScores.from_labels(np.array(self.image_scores), np.array(self.labels), unit="images")

    def counts(self) -> dict[str, int]:
        counts = {
            "images": len(self.labels),
            "anomalous_images": sum(self.labels),
            "unmasked_images": self.num_unmasked,
        }
        if self.scores is not None:
            counts["pixels"] = self.scores.num_pixels
            counts["anomalous_pixels"] = self.scores.num_abnormal_pixels
            counts["regions"] = self.scores.num_regions
        return counts

    def state_dict(self) -> dict[str, np.ndarray]:
        return {
            "image_scores": np.array(self.image_scores, dtype=np.float64),
            "labels": np.array(self.labels, dtype=bool),
            "image_ids": np.array(sorted(self.image_ids), dtype=np.str_),
            "num_unmasked": np.int64(self.num_unmasked),
            **({} if self.scores is None else self.scores.state_dict()),
        }

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        self.image_scores = state["image_scores"].tolist()
        self.labels = state["labels"].tolist()
        self.image_ids = set(state["image_ids"].tolist())
        self.num_unmasked = int(state["num_unmasked"])
        if self.scores is not None:
            self.scores.load_state_dict(state)


def _read_image(anomaly_map, mask, product, score, label, image_id) -> _Image:
    if not isinstance(product, str):
        raise ValueError(f"the product must be a string, got {type(product).__name__}")
    values = as_map(anomaly_map)
    if mask is not None:
        mask = as_mask(mask, values.shape)
        marked = bool(mask.any())
        if label is None:
            label = marked
        elif marked and not label:
            raise ValueError(f"the label is 0, normal, but the mask marks {int(mask.sum())} pixels as abnormal")
    elif label is None:
        raise ValueError(
            "it has no mask; pass `labels`, to tell a normal image from an anomalous one whose mask is missing"
        )
    return _Image(
        anomaly_map=values,
        mask=mask,
        product=product,
        score=float(values.max() if score is None else score),
        label=bool(label),
        image_id=None if image_id is None else str(image_id),
    )


def _pixel_functions(ranked: RankedScores | RankedBins, fpr_limit: float) -> dict[str, Callable]:
    """Return the function of each pixel metric, by name: exact, or with bounds for a histogram."""
    if isinstance(ranked, RankedScores):
        return {
            "pixel_auroc": lambda: curves.auroc(ranked),
            "pixel_ap": lambda: curves.average_precision(ranked),
            "pixel_f1_max": lambda: curves.f1_max(ranked)[0],
            "pixel_f1_threshold": lambda: curves.f1_max(ranked)[1],
            "pixel_iou": lambda: curves.iou(ranked, curves.f1_max(ranked)[1]),
            "pixel_pro": lambda: curves.pro(ranked, fpr_limit),
            "pixel_pro_200": lambda: curves.pro_200_steps(ranked, fpr_limit),
        }
    return {
        "pixel_auroc": lambda: bounds.auroc_bounds(ranked),
        "pixel_ap": lambda: bounds.average_precision_bounds(ranked),
        "pixel_f1_max": lambda: bounds.f1_max_bounds(ranked)[0],
        "pixel_f1_threshold": lambda: bounds.f1_max_bounds(ranked)[1],
        "pixel_iou": lambda: bounds.iou_bounds(ranked),
        "pixel_pro": lambda: bounds.pro_bounds(ranked, fpr_limit),
        "pixel_pro_200": lambda: bounds.pro_200_steps_bounds(ranked, fpr_limit),
    }


def _image_functions(ranked: RankedScores) -> dict[str, Callable]:
    """Return the function of each image metric, by name."""
    return {
        "image_auroc": lambda: curves.auroc(ranked),
        "image_ap": lambda: curves.average_precision(ranked),
        "image_f1_max": lambda: curves.f1_max(ranked)[0],
        "image_f1_threshold": lambda: curves.f1_max(ranked)[1],
    }


def _mean(values) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


def _first_few(items: list[str], limit: int = 5) -> str:
    return "; ".join(items[:limit]) + (f"; and {len(items) - limit} more" if len(items) > limit else "")
