"""Compare several methods on the same data, with the same metrics, in one table beside the published numbers."""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from transformers.utils import logging

from .backbone_loading import learned_state, segmenter_config_class
from .checkpoint_errors import read_config_values
from .checkpoint_facts import overlap, read_training_facts
from .checkpoint_folder import CheckpointParts, load_parts
from .configuration_segmenter import SegmenterConfig
from .evaluation import Records, evaluate
from .evaluation_details import DETAILS
from .evaluation_report import METRIC_TITLES, EvaluationProtocol, EvaluationReport, paper_results, shown_value
from .image_processing_vcp_clip import VCPCLIPImageProcessor
from .markdown_text import escaped, one_line, table
from .methods import METHODS
from .safe_csv import safe_cell
from .version import EMBEDDED_CHECKPOINT


__all__ = ["MethodComparison", "MethodResult", "compare_methods", "load_method", "published_results"]

logger = logging.get_logger(__name__)

# Metric of VCP-CLIP's tables -> our name of it. Their PRO is the estimate from 200 thresholds
_TABLE_METRICS = {"auroc": "pixel_auroc", "pro": "pixel_pro_200", "ap": "pixel_ap"}
_IMAGE_TABLE_METRICS = {"auroc": "image_auroc", "ap": "image_ap"}


# --- the methods ----------------------------------------------------------------------------------------------------


def load_method(
    name: str, source: str | None = None, backbone: str | None = None, dtype: torch.dtype | str = "auto"
) -> CheckpointParts:
    """
    Load a method for an evaluation.

    Args:
        name (`str`): `"vcp_clip"`, or the `model_type` of another method.
        source (`str`, *optional*): folder or Hub repository of its checkpoint; not needed for a method without a
            learned part.
        backbone (`str`, *optional*): CLIP of a method without a checkpoint: a Hub repository, a folder, or
            `"embedded"`. The method then works at its own input size, or that of the checkpoint that the CLIP is from.
            Methods that are not on CLIP load the networks of their authors.
        dtype (`torch.dtype` or `str`, *optional*, defaults to `"auto"`): dtype of the weights.

    Returns:
        [`CheckpointParts`]: model, image processor and tokenizer.

    Raises:
        ValueError: an unknown method, a checkpoint of another method, or a method that needs a checkpoint or a
            backbone and got none.
    """
    known = ("vcp_clip", *METHODS)
    if name not in known:
        raise ValueError(f"Unknown method {name!r}; known are {', '.join(known)}.")
    if source is not None:
        model_type = segmenter_config_class(read_config_values(source), source).model_type
        if model_type != name:
            raise ValueError(f"{source} is a checkpoint of {model_type!r}, and not of {name!r}.")
        return load_parts(source, dtype=dtype)
    if name == "vcp_clip":
        return load_parts(EMBEDDED_CHECKPOINT, dtype=dtype)
    loading = {} if dtype == "auto" else {"dtype": dtype}
    if not METHODS[name].works_on_any_clip:
        model = METHODS[name].fitted_to(None, **loading)
        return CheckpointParts(model, VCPCLIPImageProcessor.for_model(model.config), model.tokenizer)
    if backbone is None:
        raise ValueError(
            f"{name!r} came without a checkpoint ({name}=FOLDER) and without a CLIP for methods that need no training"
            " (backbone=..., on the command line --backbone): a repository, a folder, or 'embedded'."
        )
    backbone = EMBEDDED_CHECKPOINT if backbone == "embedded" else backbone
    model = METHODS[name].fitted_to(backbone, **loading)
    if _num_learned(model):
        raise ValueError(
            f"{METHODS[name].config_class.title} has a learned part: name its checkpoint, {name}=FOLDER. `vcp-clip"
            " train` makes one, and `vcp-clip convert` converts those of the authors."
        )
    return CheckpointParts(model, VCPCLIPImageProcessor.for_model(model.config), model.tokenizer)


def _num_learned(model: torch.nn.Module) -> int:
    return sum(value.numel() for value in learned_state(dict(model.named_parameters())).values())


# --- published numbers ----------------------------------------------------------------------------------------------


def published_results(
    config: SegmenterConfig, dataset: str, product: str | None = None, shots: int = 0
) -> dict[str, tuple[float, str]]:
    """
    Return published results of a method in percent.

    Args:
        config ([`SegmenterConfig`]): configuration of the method; variants have numbers of their own.
        dataset (`str`): name of the dataset.
        product (`str`, *optional*): product; by default, the mean over products.
        shots (`int`, *optional*, defaults to 0): number of references of each product.

    Returns:
        `dict[str, tuple[float, str]]`: metric -> value and its source; empty without published results.
    """
    facts = json.loads((Path(__file__).parent / "assets" / "method_results.json").read_text(encoding="utf-8"))
    found: dict[str, tuple[float, str]] = {}
    if product is None:
        for entry in facts["published"].get(config.model_type, []):
            fits = all(getattr(config, field) == value for field, value in entry.get("requires", {}).items())
            if fits and entry.get("shots", 0) == shots:
                values = entry["datasets"].get(dataset, {})
                found.update({name: (value, entry["source"]) for name, value in values.items() if name not in found})
    row, paper = facts["table_rows"].get(config.model_type), paper_results()
    if row is None or shots:
        return found
    # The numbers of a method's own publication come before those that others quote
    tables = [(_TABLE_METRICS, paper["products"].get(dataset, {}).get(product, {}))]
    if product is None:
        tables = [
            (_TABLE_METRICS, paper["datasets"].get(dataset, {})),
            (_IMAGE_TABLE_METRICS, paper["image_level"].get(dataset, {})),
        ]
    for metrics, values in tables:
        for key, value in values.get(row, {}).items():
            if key in metrics:
                found.setdefault(metrics[key], (value, "VCP-CLIP's paper (arXiv 2407.12276)"))
    return found


# --- the comparison -------------------------------------------------------------------------------------------------


@dataclass
class MethodResult:
    """
    Results of one method.

    Args:
        report ([`EvaluationReport`]): its metrics.
        title (`str`): name for tables.
        learned, parameters (`int`): number of learned parameters, and of all parameters.
        seconds_per_image (`float`): time of the model for an image, on the machine of the report.
        notes (`list[str]`): sentences on whether the numbers are zero-shot, one for each dataset, and on references.
        published (`dict`): (dataset, product) -> metric -> published value in percent and its source; the mean over
            products has the product "mean".
    """

    report: EvaluationReport
    title: str
    learned: int
    parameters: int
    seconds_per_image: float
    notes: list[str] = field(default_factory=list)
    published: dict[tuple[str, str], dict[str, tuple[float, str]]] = field(default_factory=dict)


@dataclass
class MethodComparison:
    """
    Several methods on the same data.

    Args:
        results (`dict[str, MethodResult]`): name of the method -> its results, in the order of the table.
        protocol ([`EvaluationProtocol`]): protocol of all of them.
        seed (`int`): seed that each method started from.
    """

    results: dict[str, MethodResult]
    protocol: EvaluationProtocol
    seed: int

    @property
    def metrics(self) -> list[str]:
        """Return the metrics of the table, in order."""
        return [name for name in self.protocol.metrics if name in METRIC_TITLES]

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each method, dataset and product, and one for each mean, in percent."""
        return [
            {"method": name, **row, "published": result.published.get((row["dataset"], row["product"]), {})}
            for name, result in self.results.items()
            for row in result.report.rows()
        ]

    def to_markdown(self) -> str:
        """Return one table in Markdown, published numbers in brackets, and a list of their sources below."""
        sources: dict[str, int] = {}

        def cell(row: Mapping[str, Any], metric: str) -> str:
            text = shown_value(row, metric)
            if metric not in row["published"]:
                return text
            value, source = row["published"][metric]
            return f"{text} ({value:.1f} [{sources.setdefault(source, len(sources) + 1)}])"

        header = ["method", "dataset", "product", "images", *(METRIC_TITLES[name] for name in self.metrics)]
        lines = []
        for row in self.rows():
            names = (self.results[row["method"]].title, row["dataset"], row["product"])
            cells = [*map(escaped, names), f"{row['images']:,}", *(cell(row, name) for name in self.metrics)]
            lines.append([f"**{each}**" for each in cells] if row["product"] == "mean" else cells)
        parts = [table(header, lines, "lll" + "r" * (len(header) - 3)), self._method_table()]
        parts.append(f"In percent; {self.protocol.description}; seed {self.seed}.")
        if sources:
            listed = "\n".join(f"{number}. {source}." for source, number in sources.items())
            parts.append(f"In brackets: published numbers, measured by their authors on their data.\n\n{listed}")
        notes = [f"- {result.title}: {note}" for result in self.results.values() for note in result.notes]
        return "\n\n".join([*parts, "\n".join(notes)]) + "\n"

    def _method_table(self) -> str:
        rows = [
            (
                escaped(result.title),
                f"{result.learned:,}",
                f"{result.parameters:,}",
                f"{1000 * result.seconds_per_image:.1f}",
                " x ".join(map(str, result.report.settings["image_size"])),
                one_line(f"{result.report.settings['device']}, {result.report.settings['dtype']}"),
            )
            for result in self.results.values()
        ]
        header = ("method", "learned parameters", "parameters", "ms per image", "input", "on")
        return table(header, rows, "lrrrrl")

    def to_text(self) -> str:
        """Return a table for a terminal: the mean of each method over the products of each dataset."""
        titles = [METRIC_TITLES[name] for name in self.metrics]
        few_shot = any(result.report.has_spread for result in self.results.values())
        width = max(12 if few_shot else 0, *map(len, titles)) + 2
        head = f"{'':<32}{'images':>7}" + "".join(f"{title:>{width}}" for title in titles)
        lines = [f"{head}{'parameters':>14}{'ms/image':>10}"]
        for row in self.rows():
            if row["product"] == "mean":
                result = self.results[row["method"]]
                values = (shown_value(row, name) for name in self.metrics)
                name = f"{result.title} {one_line(row['dataset'])}"
                lines.append(
                    f"{name[:31]:<32}{row['images']:>7}"
                    + "".join(f"{value:>{width}}" for value in values)
                    + f"{result.parameters:>14,}{1000 * result.seconds_per_image:>10.1f}"
                )
        return "\n".join(lines)

    def to_csv(self) -> str:
        """Return a CSV table with one line for each row, published values in columns of their own."""
        columns = ["method", "dataset", "product", "images"]
        columns += [name for metric in self.metrics for name in (metric, f"{metric} published")]
        columns += ["sources"]
        stream = io.StringIO()
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        for row in self.rows():
            published = row.pop("published")
            row |= {f"{metric} published": value for metric, (value, _) in published.items() if metric in self.metrics}
            row["sources"] = "; ".join(sorted({source for _, source in published.values()}))
            writer.writerow({name: safe_cell(row.get(name, "")) for name in columns})
        return stream.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a dictionary for JSON."""
        methods = {
            name: {
                "title": result.title,
                "learned_parameters": result.learned,
                "parameters": result.parameters,
                "seconds_per_image": result.seconds_per_image,
                "notes": result.notes,
                "published": [
                    {"dataset": dataset, "product": product, "metric": metric, "value": value, "source": source}
                    for (dataset, product), metrics in result.published.items()
                    for metric, (value, source) in metrics.items()
                ],
                **result.report.to_dict(),
            }
            for name, result in self.results.items()
        }
        return {"protocol": asdict(self.protocol), "seed": self.seed, "methods": methods}

    def save(self, folder: str | os.PathLike) -> None:
        """Write `methods.json`, `methods.csv` and `methods.md` to a folder, created if missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "methods.json").write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        (folder / "methods.csv").write_text(self.to_csv(), encoding="utf-8", errors="backslashreplace")
        (folder / "methods.md").write_text(self.to_markdown(), encoding="utf-8")


def compare_methods(
    methods: Mapping[str, CheckpointParts] | Iterable[tuple[str, CheckpointParts]],
    datasets: Mapping[str, Records],
    protocol: EvaluationProtocol | str = "published",
    seed: int = 0,
    sheets_dir: str | os.PathLike | None = None,
    details_dir: str | os.PathLike | None = None,
    **options: Any,
) -> MethodComparison:
    """
    Evaluate several methods, one after the other.

    Args:
        methods (`Mapping[str, CheckpointParts]` or pairs of both): name -> model with its image processor. Pairs may
            come from a generator that loads one method at a time.
        datasets (`Mapping[str, Dataset]`): as in [`evaluate`].
        protocol (`EvaluationProtocol` or `str`, *optional*, defaults to `"published"`):
            Protocol; `"published"` has the metrics of the methods' papers, with the image score of each method.
        seed (`int`, *optional*, defaults to 0): seed that each method starts from, for those with random numbers.
        sheets_dir (`str` or `os.PathLike`, *optional*): folder for sheets of pictures, one folder for each method.
        details_dir (`str` or `os.PathLike`, *optional*):
            Folder for the data that a report shows in addition to the table: METHOD/details for each method, see
            [`evaluate`].
        options: further arguments of [`evaluate`]. `references` are for the methods that have a few-shot mode; the
            others are zero-shot, with a note.

    Returns:
        [`MethodComparison`]; its published numbers are those for the same number of references.

    Raises:
        ValueError: there is no method, or as in [`evaluate`].
    """
    pairs = methods.items() if isinstance(methods, Mapping) else methods
    results: dict[str, MethodResult] = {}
    for name, parts in pairs:
        set_seed(seed)
        folders = {
            "sheets_dir": None if sheets_dir is None else Path(sheets_dir) / name,
            "details_dir": None if details_dir is None else Path(details_dir) / name / DETAILS,
        }
        few_shot = options.get("references") is not None
        supported = getattr(parts.model, "supports_references", True)
        of_method = options if supported or not few_shot else {**options, "references": None}
        report = evaluate(parts.model, parts.image_processor, datasets, protocol, **folders, **of_method)
        results[name] = _result(parts, report)
        if few_shot:
            results[name].notes.append(
                report.describe_references() if supported else "zero-shot, since it has no few-shot mode."
            )
    if not results:
        raise ValueError("There is no method to evaluate.")
    return MethodComparison(results, next(iter(results.values())).report.protocol, seed)


def _result(parts: CheckpointParts, report: EvaluationReport) -> MethodResult:
    config, learned = parts.model.config, _num_learned(parts.model)
    training = read_training_facts(parts.model.name_or_path or "")
    references, notes = report.settings.get("references"), []
    for dataset, result in report.results.items():
        if learned:
            notes.append(overlap(training, "the checkpoint", dataset, result["per_product"]))
        else:
            notes.append(f"{escaped(dataset)}: {'zero-shot, ' if references is None else ''}nothing is trained.")
    published, paper = {}, paper_results()
    shots = 0 if references is None else references.get("per_product", -1)
    for row in report.rows():
        product = row["product"]
        products = paper["products"].get(row["dataset"])
        if product == "mean" and products and set(report.results[row["dataset"]]["per_product"]) != set(products):
            continue  # the published mean is that of all products
        found = published_results(config, row["dataset"], None if product == "mean" else product, shots)
        found = {name: value for name, value in found.items() if name in report.metrics}
        if found:
            published[row["dataset"], product] = found
    return MethodResult(
        report=report,
        title=config.title or config.model_type,
        learned=learned,
        parameters=sum(parameter.numel() for parameter in parts.model.parameters()),
        seconds_per_image=report.settings["seconds_per_image"],
        notes=notes,
        published=published,
    )
