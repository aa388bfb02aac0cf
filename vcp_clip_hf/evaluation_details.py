"""Data for the report of an evaluation, in addition to its table: curves, scores, and images of mistakes.

A folder of details holds:

- `curves.json`: the curves of each product, with few points, the areas that belong to them, and what was left out;
- `images.jsonl`: one line of JSON for each image, with its score and the files of its pictures;
- `pixel_histograms.npz`: the scores of the pixels of each image, counted in coarse bins;
- `pictures/`: small pictures of the worst images of each product.
"""

import io
import itertools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .atomic_write import atomic_folder
from .data.reports import read_report
from .evaluation_sheets import shrunk, shrunk_map
from .metrics import RankedScores
from .metrics.curves import average_precision
from .metrics.pixel_histograms import PixelHistograms
from .visualization import contour, heatmap, overlay


__all__ = ["CURVES", "DETAILS", "HISTOGRAMS", "IMAGES", "KINDS", "EvaluationDetails", "small_picture", "write_details"]

DETAILS, CURVES, IMAGES, HISTOGRAMS = "details", "curves.json", "images.jsonl", "pixel_histograms.npz"
# Kind of a mistake -> description of its images
KINDS = {
    "miss": "anomalous images with the lowest scores",
    "false_alarm": "normal images with the highest scores",
    "localization": "anomalous images with the lowest pixel AP",
}
# Pictures of each kind and product
_KEPT = 10
# Longer side of a picture in pixels
_SIDE = 256
_GREEN = (0, 255, 0)


def small_picture(image: Image.Image, mask: Image.Image | None) -> tuple[Image.Image, np.ndarray | None]:
    """Return an image and its mask as a report shows them, with a longer side of at most 256 pixels."""
    return shrunk(image, mask, _SIDE)


@dataclass
class _Candidate:
    """An image that may be among the worst: its number, and picture, ground truth and map as compressed bytes."""

    badness: float
    index: int
    picture: bytes
    truth: np.ndarray | None
    small_map: np.ndarray

    @property
    def order(self) -> tuple[float, int]:
        return -self.badness, self.index


@dataclass
class EvaluationDetails:
    """
    Details of one dataset, collected while it is evaluated.

    Memory: about 50 KB for each image, and about 0.2 MB for each of at most 30 pictures of a product.

    Args:
        images (`list[dict]`): facts about each image, in the order of the evaluation.
        histograms ([`PixelHistograms`]): scores of their pixels, in the same order.
        left_out (`list[dict]`): `product`, `image_id` and `reason` of images that were not evaluated.
        curves (`dict`): product -> name -> (x, y), see [`AnomalySegmentationEvaluator.curves`].
        result (`dict`, *optional*): result of [`AnomalySegmentationEvaluator.compute`] that the curves belong to.
        note (`str`): sentence that says which part of the evaluation the details show, if it is not all of it.
    """

    images: list[dict[str, Any]] = field(default_factory=list)
    histograms: PixelHistograms = field(default_factory=PixelHistograms)
    left_out: list[dict[str, str]] = field(default_factory=list)
    curves: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)
    result: dict[str, Any] | None = None
    note: str = ""
    _worst: dict[tuple[str, str], list[_Candidate]] = field(default_factory=dict)

    def leave_out(self, product: str, image_id: str, reason: str) -> None:
        """Note an image that is not evaluated."""
        self.left_out.append({"product": product, "image_id": image_id, "reason": reason})

    def leave_out_files(self, dataset: Sequence[dict[str, Any]]) -> None:
        """
        Note the files that were left out when the dataset was prepared.

        Args:
            dataset (`Sequence[dict]`): the dataset; a table of [`load_anomaly_dataset`] has a report beside it.
        """
        products = {facts["product"] for facts in self.images}
        for folder in {os.path.dirname(file["filename"]) for file in getattr(dataset, "cache_files", [])}:
            for problem in itertools.chain(*read_report(folder)):
                if problem.product in ("", *products):
                    self.leave_out(problem.product, problem.path, problem.reason)

    def add(
        self,
        batch: Mapping[str, Any],
        results: Sequence[Mapping[str, Any]],
        whole_maps: Callable[[list[int]], list[np.ndarray]],
    ) -> None:
        """
        Add a batch.

        Args:
            batch (`Mapping`): batch of [`EvaluationExamples`], with small pictures.
            results (`Sequence[Mapping]`): score and anomaly map of each image, the map at the size of the masks.
            whole_maps (`Callable`): function from positions in the batch to maps at the size of the images.
        """
        wanted: dict[int, list[tuple[tuple[str, str], float]]] = {}
        for position, result in enumerate(results):
            facts = {name: batch[name][position] for name in ("product", "image_id", "label", "defect", "index")}
            facts["image_id"] = facts["image_id"].rpartition("#")[0]
            anomaly_map, mask = result["anomaly_map"].cpu().numpy(), batch["mask"][position]
            facts["score"] = float(result["score"])
            facts["pixel_ap"] = _pixel_ap(anomaly_map, mask)
            self.images.append(facts)
            counts = mask is not None or not facts["label"]
            self.histograms.add(anomaly_map if counts else None, mask)
            lists = [each for each in _badness(facts) if self._is_wanted(*each, facts["index"])]
            if lists:
                wanted[position] = lists
        for (position, lists), whole in zip(wanted.items(), whole_maps(list(wanted)) if wanted else [], strict=True):
            self._keep(batch["small"][position], whole, batch["index"][position], lists)

    def _is_wanted(self, key: tuple[str, str], badness: float, index: int) -> bool:
        kept = self._worst.get(key, [])
        return len(kept) < _KEPT or (-badness, index) < kept[-1].order

    def _keep(
        self,
        small: tuple[Image.Image, np.ndarray | None],
        whole_map: np.ndarray,
        index: int,
        lists: list[tuple[tuple[str, str], float]],
    ) -> None:
        picture, truth = small
        file = io.BytesIO()
        picture.save(file, "WEBP", quality=80)
        # float16 has 3 digits, also of the small values that some methods have
        small_map = shrunk_map(whole_map, picture.size).astype(np.float16)
        packed = None if truth is None else np.packbits(truth)
        for key, badness in lists:
            self._insert(key, [_Candidate(badness, index, file.getvalue(), packed, small_map)])

    def _insert(self, key: tuple[str, str], candidates: list[_Candidate]) -> None:
        kept = [*self._worst.get(key, []), *candidates]
        self._worst[key] = sorted(kept, key=lambda each: each.order)[:_KEPT]

    def merge(self, other: "EvaluationDetails") -> None:
        """Add the details of other images of the dataset."""
        self.images += other.images
        self.histograms.merge(other.histograms)
        self.left_out += other.left_out
        for key, candidates in other._worst.items():
            self._insert(key, candidates)

    def replace_scores(self, scores_of: Callable[[str], list[float]]) -> None:
        """
        Replace scores that were known only after all images of a product.

        Args:
            scores_of (`Callable`): function from a product to the scores of its images, in order.
        """
        scores = {product: iter(scores_of(product)) for product in {facts["product"] for facts in self.images}}
        for facts in self.images:
            facts["score"] = next(scores[facts["product"]])

    def write_pictures(self, folder: Path, first: int) -> int:
        """
        Write the pictures, and note their files in `images`: image, ground truth, map, and overlay with the mask at
        the threshold of the product's best F1.

        Args:
            folder (`Path`): folder of the details.
            first (`int`): number of the first picture.

        Returns:
            `int`: number after the last picture.
        """
        (folder / "pictures").mkdir(exist_ok=True)
        of_index = {facts["index"]: facts for facts in self.images}
        for (product, kind), candidates in sorted(self._worst.items()):
            threshold = self.result["per_product"][product].get("pixel_f1_threshold", math.nan)
            for place, candidate in enumerate(candidates, 1):
                facts = of_index[candidate.index]
                facts.setdefault("worst", {})[kind] = place
                if "pictures" not in facts:
                    facts["pictures"] = _write(candidate, threshold, folder, f"pictures/{first:05d}")
                    first += 1
        return first


def _pixel_ap(anomaly_map: np.ndarray, mask: np.ndarray | None) -> float | None:
    """Return the average precision of the pixels of one image; `None` without normal and abnormal pixels."""
    if mask is None or not mask.any() or mask.all():
        return None
    return average_precision(RankedScores.from_split(anomaly_map[~mask], anomaly_map[mask]))


def _badness(facts: Mapping[str, Any]) -> list[tuple[tuple[str, str], float]]:
    """Return ((product, kind), how bad) for each list that an image may be in."""
    if not facts["label"]:
        return [((facts["product"], "false_alarm"), facts["score"])]
    found = [((facts["product"], "miss"), -facts["score"])]
    if facts["pixel_ap"] is not None:
        found.append(((facts["product"], "localization"), -facts["pixel_ap"]))
    return found


def _write(candidate: _Candidate, threshold: float, folder: Path, stem: str) -> dict[str, str]:
    """Write the views of a candidate; return view -> file, relative to the folder."""
    picture = Image.open(io.BytesIO(candidate.picture)).convert("RGB")
    small_map = candidate.small_map.astype(np.float32)
    mask = None if math.isnan(threshold) else small_map >= threshold
    views = {"map": heatmap(small_map), "overlay": overlay(picture, small_map, mask)}
    if candidate.truth is not None:
        shape = (picture.height, picture.width)
        truth = np.unpackbits(candidate.truth, count=picture.width * picture.height).reshape(shape)
        views["truth"] = contour(picture, truth, _GREEN)
    files = {"image": f"{stem}_image.webp"}
    (folder / files["image"]).write_bytes(candidate.picture)
    for name, view in views.items():
        files[name] = f"{stem}_{name}.webp"
        view.save(folder / files[name], "WEBP", quality=80)
    return files


def write_details(folder: str | os.PathLike, details: Mapping[str, EvaluationDetails]) -> None:
    """
    Write a folder of details; an existing one is replaced as a whole.

    Args:
        folder (`str` or `os.PathLike`): folder to write.
        details (`Mapping[str, EvaluationDetails]`): dataset -> its details, with curves and result.
    """
    with atomic_folder(folder) as path:
        number, datasets, lines, histograms = 0, {}, [], PixelHistograms()
        for name, each in details.items():
            number = each.write_pictures(path, number)
            histograms.merge(each.histograms)
            lines += [json.dumps({"dataset": name, **_named(facts)}) for facts in each.images]
            datasets[name] = {
                "products": {product: _product(each, product) for product in each.curves},
                "left_out": each.left_out,
                "note": each.note,
                "fpr_limit": each.result["settings"]["fpr_limit"],
                "mode": each.result["settings"]["mode"],
            }
        text = json.dumps({"datasets": datasets}, allow_nan=False)
        (path / CURVES).write_text(text + "\n", encoding="utf-8")
        (path / IMAGES).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        histograms.save(path / HISTOGRAMS)


def _named(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}


def _product(details: EvaluationDetails, product: str) -> dict[str, Any]:
    values = details.result["per_product"][product]
    return {
        "curves": {
            name: {"x": x.round(5).tolist(), "y": y.round(5).tolist()}
            for name, (x, y) in details.curves[product].items()
        },
        "values": {name: None if math.isnan(value) else value for name, value in values.items()},
        "counts": details.result["counts"][product],
        "reasons": details.result["reasons"].get(product, {}),
    }
