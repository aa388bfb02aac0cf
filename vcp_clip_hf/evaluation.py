"""Run a model over datasets: metrics per product and their mean beside the paper's numbers, and sheets of pictures."""

import csv
import datetime
import io
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers.utils import logging

from .metrics import AnomalySegmentationEvaluator
from .version import __version__
from .visualization import contour, heatmap, sheet


__all__ = ["METRIC_TITLES", "PROTOCOLS", "EvaluationProtocol", "EvaluationReport", "evaluate", "paper_results"]

logger = logging.get_logger(__name__)

_MAIN_METRICS = ("pixel_auroc", "pixel_pro", "pixel_ap", "image_auroc", "image_ap")
# Of the metrics that tables show
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
# The paper's PRO is the 200-step estimate; beside an exact PRO it would be compared with something else
_PAPER_METRIC = {"pixel_auroc": "auroc", "pixel_pro_200": "pro", "pixel_ap": "ap"}


@dataclass(frozen=True)
class EvaluationProtocol:
    """
    How maps are made and scored for a table. `None` means the image processor's own setting.

    Args:
        metrics (`tuple[str, ...]`): names that [`AnomalySegmentationEvaluator`] knows.
        native_size (`bool`): compare at the image's size, instead of the model's, where thin defects can vanish.
        smoothing_sigma (`float`, *optional*): in pixels of the model's input.
        score_mode (`"max"` or `"top_k"`, *optional*): of the image score.
        top_k_fraction (`float`, *optional*): part of the pixels that "top_k" averages.
        mode (`"exact"` or `"streaming"`): the second in constant memory, with bounds.
        skip_undefined (`bool`): means leave out products for which a metric is undefined, instead of being so too.
        description (`str`): for the report.
    """

    metrics: tuple[str, ...] = _MAIN_METRICS
    native_size: bool = False
    smoothing_sigma: float | None = None
    score_mode: str | None = None
    top_k_fraction: float | None = None
    mode: str = "exact"
    skip_undefined: bool = False
    description: str = "the image processor's own settings, at the model's input size"


PROTOCOLS: dict[str, EvaluationProtocol] = {
    "default": EvaluationProtocol(),
    # The authors also stretch all maps of a product to [0, 1]; that changes no metric, thresholds apart
    "authors": EvaluationProtocol(
        metrics=("pixel_auroc", "pixel_pro_200", "pixel_ap", "pixel_f1_max", "image_auroc", "image_ap"),
        smoothing_sigma=8.0,
        score_mode="top_k",
        top_k_fraction=2000 / 518**2,
        description="the authors' test code: input size, sigma 8, PRO from 200 thresholds, score from the 2000 largest"
        " pixels",
    ),
    "native": EvaluationProtocol(
        native_size=True, mode="streaming", description="at each image's own size, streaming metrics"
    ),
}


def paper_results() -> dict[str, Any]:
    """
    The numbers that the paper states, in percent, as the paper's: `datasets` (mean over products; AUROC, PRO, AP for
    each method), `products` (of MVTec-AD and VisA) and `image_level`.
    """
    return json.loads((Path(__file__).parent / "assets" / "paper_results.json").read_text(encoding="utf-8"))


@dataclass
class EvaluationReport:
    """
    What was measured, on what, and how.

    Args:
        results (`dict[str, dict]`): dataset -> what [`AnomalySegmentationEvaluator.compute`] returned; in [0, 1].
        protocol (`EvaluationProtocol`): how.
        settings (`dict`): model, image processor, versions, machine, date.
    """

    results: dict[str, dict]
    protocol: EvaluationProtocol
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        """The metrics of the table, in order."""
        return [name for name in self.protocol.metrics if name in METRIC_TITLES]

    def rows(self) -> list[dict[str, Any]]:
        """One plain row for each product, and one for each dataset's mean (`product` is then "mean"); in percent."""
        rows = []
        for dataset, result in self.results.items():
            for product, values in [*result["per_product"].items(), ("mean", result["mean"])]:
                if product != "mean":
                    images = result["counts"][product]["images"]
                else:
                    images = sum(counts["images"] for counts in result["counts"].values())
                row = {"dataset": dataset, "product": product, "images": images}
                row.update({name: 100 * values[name] for name in self.metrics})
                rows.append(row)
        return rows

    def with_paper(self) -> dict[tuple[str, str], dict[str, float]]:
        """(dataset, product) -> the paper's VCP-CLIP numbers in percent, for the metrics of this table it has."""
        paper, found = paper_results(), {}
        for row in self.rows():
            if row["product"] == "mean":
                values = paper["datasets"].get(row["dataset"], {}).get("VCP-CLIP", {})
            else:
                values = paper["products"].get(row["dataset"], {}).get(row["product"], {}).get("VCP-CLIP", {})
            numbers = {
                name: values[key] for name, key in _PAPER_METRIC.items() if name in self.metrics and key in values
            }
            if numbers:
                found[row["dataset"], row["product"]] = numbers
        return found

    def to_markdown(self) -> str:
        """Tables in Markdown; the paper's numbers stand in brackets, as the paper's."""
        paper, lines = self.with_paper(), []
        header = ["dataset", "product", "images", *(METRIC_TITLES[name] for name in self.metrics)]
        lines += ["| " + " | ".join(header) + " |", "|" + "---|" * 2 + "---:|" * (len(header) - 2)]
        for row in self.rows():
            quoted = paper.get((row["dataset"], row["product"]), {})
            cells = [row["dataset"], row["product"], str(row["images"])]
            for name in self.metrics:
                value = "-" if math.isnan(row[name]) else f"{row[name]:.1f}"
                cells.append(f"{value} ({quoted[name]:.1f})" if name in quoted else value)
            if row["product"] == "mean":
                cells = [f"**{cell}**" for cell in cells]
            lines.append("| " + " | ".join(cells) + " |")
        notes = [f"In percent; {self.protocol.description}."]
        if paper:
            notes.append("In brackets: what the paper states for VCP-CLIP, measured by its authors on their data.")
        notes += [
            f"Undefined: {dataset} / {product} / {name}: {why}."
            for dataset, result in self.results.items()
            for product, reasons in result["reasons"].items()
            for name, why in reasons.items()
            if product != "mean" and name in self.metrics
        ]
        return "\n".join(lines) + "\n\n" + "\n".join(notes) + "\n"

    def to_text(self) -> str:
        """The table for a terminal: dataset means, and products where a dataset has several."""
        width = max(len(METRIC_TITLES[name]) for name in self.metrics) + 2
        lines = [f"{'':<34}{'images':>7}" + "".join(f"{METRIC_TITLES[name]:>{width}}" for name in self.metrics)]
        for row in self.rows():
            several = len(self.results[row["dataset"]]["per_product"]) > 1
            if row["product"] != "mean" and not several:
                continue
            name = row["dataset"] if row["product"] == "mean" else f"  {row['product']}"
            values = "".join(
                f"{'-' if math.isnan(row[key]) else format(row[key], '.1f'):>{width}}" for key in self.metrics
            )
            lines.append(f"{name[:33]:<34}{row['images']:>7}{values}")
        return "\n".join(lines)

    def to_csv(self) -> str:
        """One line for each product and each mean."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, ["dataset", "product", "images", *self.metrics], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows())
        return stream.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON (NaN becomes null)."""
        return _without_nan({"settings": self.settings, "protocol": asdict(self.protocol), "results": self.results})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EvaluationReport":
        """What `to_dict` gave."""
        protocol = dict(values["protocol"])
        protocol["metrics"] = tuple(protocol["metrics"])
        results = {
            dataset: {
                **result,
                "mean": _with_nan(result["mean"]),
                "per_product": {name: _with_nan(each) for name, each in result["per_product"].items()},
            }
            for dataset, result in values["results"].items()
        }
        return cls(results, EvaluationProtocol(**protocol), dict(values["settings"]))

    def save(self, folder: str | os.PathLike) -> None:
        """Write `results.json`, `results.csv` and `results.md`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        (folder / "results.csv").write_text(self.to_csv(), encoding="utf-8")
        (folder / "results.md").write_text(self.to_markdown(), encoding="utf-8")


def evaluate(
    model,
    image_processor,
    datasets: Mapping[str, Any],
    protocol: EvaluationProtocol | str = "default",
    batch_size: int = 8,
    num_workers: int = 0,
    accelerator: Accelerator | None = None,
    sheets_dir: str | os.PathLike | None = None,
    images_per_sheet: int = 4,
    progress: bool = True,
) -> EvaluationReport:
    """
    Evaluate a model on annotated datasets, on as many processes as `accelerator` has.

    Args:
        model ([`VCPCLIPModel`] or any model with its outputs): moved to the accelerator's device.
        image_processor ([`VCPCLIPImageProcessor`]): makes its inputs and scores its outputs.
        datasets (`Mapping[str, Dataset]`):
            Name -> records as `load_anomaly_dataset` gives them (`image`, `mask`, `label`, `product`, `image_id`).
        protocol (`EvaluationProtocol` or `str`, *optional*, defaults to `"default"`): how, or a name of `PROTOCOLS`.
        batch_size (`int`, *optional*, defaults to 8): images per process and forward pass.
        num_workers (`int`, *optional*, defaults to 0): processes that read images ahead.
        accelerator (`Accelerator`, *optional*): for several processes, or another device.
        sheets_dir (`str` or `os.PathLike`, *optional*):
            Where to write, for each product, a sheet with image, ground truth, map and mask of its first anomalous
            images; the mask is cut at the product's best F1.
        images_per_sheet (`int`, *optional*, defaults to 4): rows of a sheet.
        progress (`bool`, *optional*, defaults to `True`): show a bar.

    Returns:
        [`EvaluationReport`], the same on every process.

    Raises:
        ValueError: an unknown protocol, an empty dataset, or images without a label.
    """
    if isinstance(protocol, str):
        if protocol not in PROTOCOLS:
            raise ValueError(f"Unknown protocol {protocol!r}; known are {', '.join(PROTOCOLS)}.")
        protocol = PROTOCOLS[protocol]
    accelerator = accelerator or Accelerator()
    model = accelerator.unwrap_model(model)
    was_training = model.training
    model.to(accelerator.device).eval()
    results = {}
    try:
        for name, dataset in datasets.items():
            if not len(dataset):
                raise ValueError(f"The dataset {name!r} is empty.")
            examples = _Examples(dataset, image_processor, protocol, accelerator)
            loader = DataLoader(
                examples,
                batch_size,
                num_workers=num_workers,
                collate_fn=_collate,
                pin_memory=accelerator.device.type == "cuda",
            )
            bar = tqdm(loader, desc=name, disable=not (progress and accelerator.is_main_process), leave=False)
            evaluator, gallery = _run(model, image_processor, protocol, bar, accelerator, images_per_sheet)
            results[name] = _gathered(evaluator, accelerator).compute()
            if sheets_dir is not None:
                _write_sheets(
                    Path(sheets_dir) / name, gather_object(gallery), results[name], images_per_sheet, accelerator
                )
    finally:
        model.train(was_training)
    settings = _settings(model, image_processor, accelerator)
    settings["splits"] = {name: str(dataset.split) for name, dataset in datasets.items() if _has_split(dataset)}
    return EvaluationReport(results, protocol, settings)


def _has_split(dataset) -> bool:
    return getattr(dataset, "split", None) is not None


class _Examples(Dataset):
    """This process's share of the records, prepared for the model."""

    def __init__(self, dataset, image_processor, protocol: EvaluationProtocol, accelerator: Accelerator):
        self.dataset, self.image_processor, self.protocol = dataset, image_processor, protocol
        self.indices = range(accelerator.process_index, len(dataset), accelerator.num_processes)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> dict[str, Any]:
        index = self.indices[position]
        record = self.dataset[index]
        image, mask, label = record["image"].convert("RGB"), record["mask"], record["label"]
        if label not in (0, 1):
            raise ValueError(
                f"{record['image_id']} has no label; an evaluation needs normal (0) or anomalous (1) for every image."
            )
        inputs = self.image_processor(image, None if mask is None else [mask], return_tensors="np")
        truth = None
        if mask is not None:
            truth = np.asarray(mask) > 0 if self.protocol.native_size else inputs["labels"][0] > 0
        return {
            "pixel_values": torch.from_numpy(inputs["pixel_values"]),
            "image": image,
            "mask": truth,
            "label": label,
            "product": record["product"],
            # unique within a product, as the metrics demand
            "image_id": f"{record['image_id']}#{index}",
        }


def _collate(examples: list[dict]) -> dict[str, Any]:
    batch = {name: [example[name] for example in examples] for name in examples[0]}
    batch["pixel_values"] = torch.cat(batch["pixel_values"])
    return batch


@torch.no_grad()
def _run(model, image_processor, protocol: EvaluationProtocol, batches, accelerator: Accelerator, keep: int):
    """All batches of this process: the evaluator they were added to, and a few examples of each product."""
    evaluator = AnomalySegmentationEvaluator(
        metrics=_with_threshold(protocol.metrics), mode=protocol.mode, skip_undefined=protocol.skip_undefined
    )
    settings = {name: getattr(protocol, name) for name in ("smoothing_sigma", "score_mode", "top_k_fraction")}
    gallery, kept = [], {}
    for batch in batches:
        with accelerator.autocast():
            outputs = model(batch["pixel_values"].to(accelerator.device, non_blocking=True))
        sizes = [(image.height, image.width) for image in batch["image"]] if protocol.native_size else None
        found = image_processor.post_process_anomaly_segmentation(outputs, sizes, **settings)
        maps = [result["anomaly_map"].cpu().numpy() for result in found]
        evaluator.add(
            maps,
            batch["mask"],
            batch["product"],
            image_scores=[result["score"] for result in found],
            labels=batch["label"],
            image_ids=batch["image_id"],
        )
        for index, product in enumerate(batch["product"]):
            if batch["label"][index] and batch["mask"][index] is not None and kept.get(product, 0) < keep:
                kept[product] = kept.get(product, 0) + 1
                gallery.append(
                    {
                        "product": product,
                        "image_id": batch["image_id"][index],
                        "image": batch["image"][index],
                        "mask": batch["mask"][index],
                        "map": maps[index],
                        "score": found[index]["score"],
                    }
                )
    return evaluator, gallery


def _with_threshold(metrics: Sequence[str]) -> list[str]:
    """The F1 threshold too: sheets cut their masks there."""
    return [*metrics, *(name for name in ("pixel_f1_threshold",) if name not in metrics)]


def _gathered(evaluator: AnomalySegmentationEvaluator, accelerator: Accelerator) -> AnomalySegmentationEvaluator:
    if accelerator.num_processes == 1:
        return evaluator
    states = gather_object([evaluator.state_dict()])
    total = AnomalySegmentationEvaluator.from_state_dict(states[0])
    for state in states[1:]:
        total.merge(AnomalySegmentationEvaluator.from_state_dict(state))
    return total


def _write_sheets(folder: Path, gallery: list[dict], result: dict, rows: int, accelerator: Accelerator) -> None:
    if not accelerator.is_main_process:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for product in sorted({example["product"] for example in gallery}):
        threshold = result["per_product"][product]["pixel_f1_threshold"]
        pictures = []
        for example in [each for each in gallery if each["product"] == product][:rows]:
            anomaly_map, truth = example["map"], example["mask"]
            image = example["image"].resize(anomaly_map.shape[::-1], Image.Resampling.BICUBIC)
            pictures.append(
                [
                    (example["image_id"].split("#")[0], image),
                    ("ground truth", contour(image, truth, (0, 255, 0))),
                    (f"map (score {example['score']:.2f})", heatmap(anomaly_map)),
                    (f"mask (map >= {threshold:.2f})", contour(image, anomaly_map >= threshold)),
                ]
            )
        sheet(pictures, title=product).save(folder / f"{product.replace('/', '_')}.png")


def _settings(model, image_processor, accelerator: Accelerator) -> dict[str, Any]:
    return {
        "model": str(model.name_or_path or type(model).__name__),
        "dtype": str(model.dtype).removeprefix("torch."),
        "mixed_precision": accelerator.mixed_precision,
        "image_size": [image_processor.size.height, image_processor.size.width],
        "resize_mode": image_processor.resize_mode,
        "smoothing_sigma": image_processor.smoothing_sigma,
        "score_mode": image_processor.score_mode,
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "versions": {
            "vcp_clip_hf": __version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "date": datetime.date.today().isoformat(),
    }


def _without_nan(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _without_nan(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_without_nan(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _with_nan(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in values.items()}
