"""Evaluation reports: the results of an evaluation, its protocol, and tables beside the paper's numbers."""

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .anomaly_scoring import AUTHORS_SCORING
from .markdown_text import escaped, one_line, table
from .safe_csv import safe_cell


__all__ = [
    "METRIC_TITLES",
    "PROTOCOLS",
    "EvaluationProtocol",
    "EvaluationReport",
    "paper_results",
    "shown_value",
]

_MAIN_METRICS = ("pixel_auroc", "pixel_pro", "pixel_ap", "image_auroc", "image_ap")
# Column titles of the metrics that tables show
METRIC_TITLES = {
    "pixel_auroc": "AUROC",
    "pixel_pro": "PRO",
    "pixel_pro_200": "PRO (200 steps)",
    "pixel_ap": "AP",
    "pixel_f1_max": "F1-max",
    "pixel_iou": "IoU",
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image F1-max",
}
# The paper's PRO is the estimate from 200 steps, and must not be compared with an exact PRO
_PAPER_METRIC = {"pixel_auroc": "auroc", "pixel_pro_200": "pro", "pixel_ap": "ap"}


@dataclass(frozen=True)
class EvaluationProtocol:
    """
    How maps are made and scored in an evaluation. `None` means the image processor's own setting.

    Args:
        metrics (`tuple[str, ...]`): metrics of [`AnomalySegmentationEvaluator`] to compute.
        native_size (`bool`):
            Compare maps and masks at each image's own size, instead of the model's input size, at which thin defects
            can vanish.
        smoothing_sigma (`float`, *optional*): sigma of the Gaussian in pixels of the model's input.
        score_mode (`"max"`, `"top_k"` or `"image_head"`, *optional*): how the image score is computed.
        top_k_fraction (`float`, *optional*): fraction of the pixels that "top_k" averages.
        mode (`"exact"` or `"streaming"`): "streaming" needs constant memory and gives bounds.
        skip_undefined (`bool`):
            Leave products for which a metric is undefined out of its mean; otherwise the mean is undefined too.
        description (`str`): description for the report.
    """

    metrics: tuple[str, ...] = _MAIN_METRICS
    native_size: bool = False
    smoothing_sigma: float | None = None
    score_mode: str | None = None
    top_k_fraction: float | None = None
    mode: str = "exact"
    skip_undefined: bool = False
    description: str = "the image processor's own settings, at the model's input size"

    def with_score(self, score_mode: str) -> "EvaluationProtocol":
        """
        Return the same protocol with another image score, which its description names.

        Args:
            score_mode (`"max"`, `"top_k"` or `"image_head"`): the image score.
        """
        return replace(self, score_mode=score_mode, description=f"{self.description}; image score {score_mode!r}")


PROTOCOLS: dict[str, EvaluationProtocol] = {
    "default": EvaluationProtocol(),
    # The authors also stretch all maps of a product to [0, 1], which changes thresholds but no metric
    "authors": EvaluationProtocol(
        metrics=("pixel_auroc", "pixel_pro_200", "pixel_ap", "pixel_f1_max", "image_auroc", "image_ap"),
        **AUTHORS_SCORING,
        description="the authors' test code: input size, sigma 8, PRO from 200 thresholds, score from the 2000 largest"
        " pixels",
    ),
    "published": EvaluationProtocol(
        metrics=(
            *("pixel_auroc", "pixel_pro_200", "pixel_ap", "pixel_f1_max"),
            *("image_auroc", "image_ap", "image_f1_max"),
        ),
        skip_undefined=True,
        description="each method's own settings, at its input size, PRO from 200 thresholds",
    ),
    "native": EvaluationProtocol(
        native_size=True, mode="streaming", description="at each image's own size, streaming metrics"
    ),
}


def paper_results() -> dict[str, Any]:
    """
    Return the results that the paper reports, in percent.

    Returns:
        `dict`: `datasets` (means over products: AUROC, PRO and AP of each method), `products` (the products of
        MVTec-AD and VisA), `image_level`, and `source`.
    """
    return json.loads((Path(__file__).parent / "assets" / "paper_results.json").read_text(encoding="utf-8"))


@dataclass
class EvaluationReport:
    """
    Results of an evaluation, with its protocol and settings.

    Args:
        results (`dict[str, dict]`): dataset -> result of [`AnomalySegmentationEvaluator.compute`], in [0, 1].
        protocol (`EvaluationProtocol`): protocol of the evaluation.
        settings (`dict`): model, image processor, versions, machine, date.
    """

    results: dict[str, dict]
    protocol: EvaluationProtocol
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        """Return the metrics of the table, in order."""
        return [name for name in self.protocol.metrics if name in METRIC_TITLES]

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each product and one for each dataset's mean (`product` is "mean"), in percent."""
        rows = []
        for dataset, result in self.results.items():
            for product, values in [*result["per_product"].items(), ("mean", result["mean"])]:
                if product != "mean":
                    images = result["counts"][product]["images"]
                else:
                    images = sum(counts["images"] for counts in result["counts"].values())
                row = {"dataset": dataset, "product": product, "images": images}
                row.update({name: 100 * values[name] for name in self.metrics})
                row.update(self._spread(result, product))
                rows.append(row)
        return rows

    def _spread(self, result: Mapping[str, Any], product: str) -> dict[str, float]:
        """Return the standard deviations over draws of references in percent, as `NAME_spread`, if there are any."""
        spread = result.get("spread")
        if spread is None:
            return {}
        values = spread["mean"] if product == "mean" else spread["per_product"][product]
        return {f"{name}_spread": 100 * values[name] for name in self.metrics}

    @property
    def has_spread(self) -> bool:
        """Return whether the numbers are means over draws of references."""
        return any("spread" in result for result in self.results.values())

    def with_paper(self) -> dict[tuple[str, str], dict[str, float]]:
        """Return the paper's results for VCP-CLIP in percent, for the rows and metrics that it reports."""
        paper, quoted = paper_results(), {}
        for row in self.rows():
            if row["product"] == "mean":
                values = paper["datasets"].get(row["dataset"], {}).get("VCP-CLIP", {})
            else:
                values = paper["products"].get(row["dataset"], {}).get(row["product"], {}).get("VCP-CLIP", {})
            numbers = {
                name: values[key] for name, key in _PAPER_METRIC.items() if name in self.metrics and key in values
            }
            if numbers:
                quoted[row["dataset"], row["product"]] = numbers
        return quoted

    def to_markdown(self) -> str:
        """Return a table in Markdown, with the paper's numbers in brackets."""
        paper, rows = self.with_paper(), []
        header = ["dataset", "product", "images", *(METRIC_TITLES[name] for name in self.metrics)]
        for row in self.rows():
            quoted = paper.get((row["dataset"], row["product"]), {})
            cells = [escaped(row["dataset"]), escaped(row["product"]), str(row["images"])]
            for name in self.metrics:
                value = shown_value(row, name)
                cells.append(f"{value} ({quoted[name]:.1f})" if name in quoted else value)
            if row["product"] == "mean":
                cells = [f"**{cell}**" for cell in cells]
            rows.append(cells)
        notes = [f"In percent; {self.protocol.description}."]
        if "references" in self.settings:
            notes.append(self.describe_references())
        if paper:
            zero_shot = ", zero-shot" if "references" in self.settings else ""
            notes.append(
                f"In brackets: results of the paper for VCP-CLIP{zero_shot}, measured by its authors on their data."
            )
        notes += [
            f"Undefined: {escaped(dataset)} / {escaped(product)} / {name}: {escaped(why)}."
            for dataset, result in self.results.items()
            for product, reasons in result["reasons"].items()
            for name, why in reasons.items()
            if product != "mean" and name in self.metrics
        ]
        return table(header, rows, "ll" + "r" * (len(header) - 2)) + "\n\n" + "\n".join(notes) + "\n"

    def to_text(self) -> str:
        """Return a table for a terminal: dataset means, and products where a dataset has several."""
        width = max(12 if self.has_spread else 0, *(len(METRIC_TITLES[name]) for name in self.metrics)) + 2
        lines = [f"{'':<34}{'images':>7}" + "".join(f"{METRIC_TITLES[name]:>{width}}" for name in self.metrics)]
        for row in self.rows():
            several = len(self.results[row["dataset"]]["per_product"]) > 1
            if row["product"] != "mean" and not several:
                continue
            name = one_line(row["dataset"]) if row["product"] == "mean" else f"  {one_line(row['product'])}"
            values = "".join(f"{shown_value(row, key):>{width}}" for key in self.metrics)
            lines.append(f"{name[:33]:<34}{row['images']:>7}{values}")
        if "references" in self.settings:
            lines.append(self.describe_references())
        return "\n".join(lines)

    def describe_references(self) -> str:
        """Return one or two sentences about the references of the evaluation."""
        facts = self.settings["references"]
        known = sum(facts.get("left_out", {}).values())
        left_out = f" Left out, because they are references: {known} of the images." if known else ""
        if "per_product" not in facts:
            return facts["description"] + left_out
        count, seeds = facts["per_product"], facts["seeds"]
        text = f"With {count} reference{'' if count == 1 else 's'} of each product, seeds {', '.join(map(str, seeds))}"
        text += ": means and standard deviations over the draws." if len(seeds) > 1 else "."
        if facts["drawn_from_test_images"]:
            names = ", ".join(facts["drawn_from_test_images"])
            text += (
                f" For products of {names} without normal training images, they were drawn from the evaluated images,"
                " and left out."
            )
        return text + left_out

    def to_csv(self) -> str:
        """Return a CSV table with one line for each product and each mean; names that are formulas become text."""
        stream = io.StringIO()
        columns = [*self.metrics, *(f"{name}_spread" for name in self.metrics if self.has_spread)]
        writer = csv.DictWriter(stream, ["dataset", "product", "images", *columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: safe_cell(value) for name, value in row.items()} for row in self.rows())
        return stream.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a dictionary for JSON; NaN becomes `None`."""
        return _without_nan({"settings": self.settings, "protocol": asdict(self.protocol), "results": self.results})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EvaluationReport":
        """Return the report that `to_dict` was called on."""
        protocol = dict(values["protocol"])
        protocol["metrics"] = tuple(protocol["metrics"])
        results = {
            dataset: {
                **result,
                "mean": _with_nan(result["mean"]),
                "per_product": {name: _with_nan(each) for name, each in result["per_product"].items()},
                **({"spread": _spread_with_nan(result["spread"])} if "spread" in result else {}),
            }
            for dataset, result in values["results"].items()
        }
        return cls(results, EvaluationProtocol(**protocol), dict(values["settings"]))

    def save(self, folder: str | os.PathLike) -> None:
        """Write `results.json`, `results.csv` and `results.md` to a folder, created if missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        (folder / "results.csv").write_text(self.to_csv(), encoding="utf-8", errors="backslashreplace")
        (folder / "results.md").write_text(self.to_markdown(), encoding="utf-8")


def shown_value(row: Mapping[str, Any], name: str) -> str:
    """Return a value of a row in percent, with its standard deviation over draws if there is one."""
    if math.isnan(row[name]):
        return "-"
    spread = row.get(f"{name}_spread", math.nan)
    return f"{row[name]:.1f}" if math.isnan(spread) else f"{row[name]:.1f} ± {spread:.1f}"


def _spread_with_nan(spread: Mapping[str, Any]) -> dict[str, Any]:
    of_products = {name: _with_nan(each) for name, each in spread["per_product"].items()}
    return {"mean": _with_nan(spread["mean"]), "per_product": of_products}


def _without_nan(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _without_nan(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_without_nan(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _with_nan(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in values.items()}
