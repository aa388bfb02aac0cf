"""References in evaluations: normal images drawn for each product, several times, and results over the draws."""

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from .evaluation_sheets import column_of


__all__ = ["DrawnReferences", "ReferenceDraw", "draw_references", "over_draws"]

# Sized, with dictionaries for items: `datasets.Dataset`, or a list of records
Records = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class ReferenceDraw:
    """
    References of an evaluation: for each product and each seed, normal images drawn without replacement.

    Args:
        count (`int`): k, number of references of each product.
        seeds (`tuple[int, ...]`, *optional*, defaults to `(0, 1, 2)`): one evaluation for each; the report has the
            means and the standard deviations over them.
        settings (`dict`, *optional*): arguments of `set_references`, such as `weight` and `copies`.

    Raises:
        ValueError: there is no reference or no seed.
    """

    count: int
    seeds: tuple[int, ...] = (0, 1, 2)
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise ValueError(f"count={self.count!r} must be a number of references, 1 or more.")
        object.__setattr__(self, "seeds", tuple(self.seeds))
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds} must be distinct, at least one.")


@dataclass(frozen=True)
class DrawnReferences:
    """
    The references of one product.

    Args:
        source (sequence of records): records that they were drawn from.
        indices (`list[int]`): their indices in `source`.
        tested (`list[int]`): indices of the product's records of the evaluated dataset, without the references.
        held_out (`bool`): whether they were drawn from the evaluated dataset, because there are no normal training
            images.
    """

    source: Records
    indices: list[int]
    tested: list[int]
    held_out: bool

    def images(self) -> list[Image.Image]:
        """Return the images, mode RGB."""
        return [self.source[index]["image"].convert("RGB") for index in self.indices]


def draw_references(dataset: Records, pool: Records | None, count: int, seed: int) -> dict[str, DrawnReferences]:
    """
    Draw references for each product of a dataset.

    Args:
        dataset (sequence of records): records to evaluate, with `product` and `label`.
        pool (sequence of records, *optional*): training records. For a product without normal records in it,
            references are drawn from `dataset` and left out of the evaluation.
        count (`int`): number of references of each product.
        seed (`int`): seed of the draw; that of a product does not depend on the other products.

    Returns:
        `dict[str, DrawnReferences]`: product -> its references, in the order of the names.

    Raises:
        ValueError: a product has fewer normal images than references, or no image is left to evaluate.
    """
    of_dataset, of_pool = _normal_and_all(dataset), {} if pool is None else _normal_and_all(pool)
    drawn = {}
    for product, (normal, every) in sorted(of_dataset.items()):
        candidates = of_pool.get(product, ([], []))[0]
        held_out = not candidates
        candidates = normal if held_out else candidates
        if len(candidates) < count:
            place = "among the evaluated images (there are no normal training images)" if held_out else "for training"
            raise ValueError(
                f"{product} has {len(candidates)} normal images {place}; {count} references cannot be drawn from"
                " them. Use fewer references, or leave the product out."
            )
        indices = random.Random(f"{seed} {product}").sample(candidates, count)
        chosen = set(indices) if held_out else set()
        tested = [index for index in every if index not in chosen]
        if not tested:
            raise ValueError(f"No image of {product} is left to evaluate after drawing {count} references.")
        drawn[product] = DrawnReferences(dataset if held_out else pool, sorted(indices), tested, held_out)
    return drawn


def _normal_and_all(records: Records) -> dict[str, tuple[list[int], list[int]]]:
    """Return product -> indices of its normal records, and of all its records."""
    groups: dict[str, tuple[list[int], list[int]]] = {}
    for index, (product, label) in enumerate(
        zip(column_of(records, "product"), column_of(records, "label"), strict=True)
    ):
        normal, every = groups.setdefault(product, ([], []))
        every.append(index)
        if label == 0:
            normal.append(index)
    return groups


def over_draws(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """
    Combine the results of several draws.

    Args:
        results (sequence of `dict`): result of [`AnomalySegmentationEvaluator.compute`] for each draw.

    Returns:
        `dict`: a result whose `mean` and `per_product` are means over the draws, with the entry `spread` of the same
        form: standard deviations over the draws (divided by n - 1; NaN for one draw). Counts and reasons are those of
        the first draw, bounds are left out.
    """
    first = results[0]
    combined = {"counts": first["counts"], "reasons": first["reasons"], "spread": {"per_product": {}}}
    combined["mean"], combined["spread"]["mean"] = _mean_and_deviation([each["mean"] for each in results])
    combined["per_product"] = {}
    for product in first["per_product"]:
        means, deviations = _mean_and_deviation([each["per_product"][product] for each in results])
        combined["per_product"][product], combined["spread"]["per_product"][product] = means, deviations
    return combined


def _mean_and_deviation(draws: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    means, deviations = {}, {}
    for name in draws[0]:
        values = [draw[name] for draw in draws]
        means[name] = sum(values) / len(values)
        known = len(values) > 1 and all(map(math.isfinite, values))
        deviations[name] = statistics.stdev(values) if known else math.nan
    return means, deviations
