"""Measure what normal images and unlabeled images add to a checkpoint, in one table over several datasets.

    python -m examples.research.compare_references --dataset folder=my_images --dataset folder=more_images \
        --count 1 2 4 8 --seeds 3 --together --head runs/head/last --output_file references.json

Rows: zero-shot; with k references of each product (means over draws, see `vcp-clip evaluate --references k=N`); all
images of a product judged together; and, with `--head`, the same checkpoint with an image head, whose score replaces
the maximum of the map (image AUROC only: the maps are the same). All rows are measured at the size of the model's
input, which `--image_size` changes. A row has no values for datasets with too few normal images; means are over the
datasets that all rows have.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModel, pipeline

from vcp_clip_hf import EMBEDDED_CHECKPOINT
from vcp_clip_hf.data import load_anomaly_dataset
from vcp_clip_hf.evaluation import evaluate
from vcp_clip_hf.evaluation_references import ReferenceDraw
from vcp_clip_hf.evaluation_report import METRIC_TITLES, EvaluationProtocol
from vcp_clip_hf.markdown_text import table as markdown_table
from vcp_clip_hf.metrics import AnomalySegmentationEvaluator


__all__ = ["compare", "main", "make_parser", "to_markdown"]

METRICS = ("pixel_auroc", "pixel_pro", "pixel_ap", "image_auroc")
# way -> dataset -> metric -> (mean over products, standard deviation over draws)
Table = dict[str, dict[str, dict[str, tuple[float, float]]]]


def _measure(
    checkpoint: str,
    splits: dict[str, dict[str, Any]],
    references: ReferenceDraw | None,
    score_mode: str = "max",
    image_size: int | None = None,
) -> dict[str, dict[str, tuple[float, float]]]:
    """Return the metrics of each dataset that has enough normal images."""
    metrics = METRICS if score_mode == "max" else ("image_auroc",)
    protocol = EvaluationProtocol(metrics=metrics, skip_undefined=True, score_mode=score_mode)
    measured = {}
    model = AutoModel.from_pretrained(checkpoint, dtype=torch.float32)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    processor = processor if image_size is None else processor.at_size(image_size)
    for name, records in splits.items():
        pools = {name: records["train"]} if "train" in records else None
        try:
            report = evaluate(
                model,
                processor,
                {name: records["test"]},
                protocol,
                references=references,
                reference_pools=pools,
            )
        except ValueError as error:
            if references is None:
                raise
            print(f"{name}, {references.count} references: {error}")
            continue
        result = report.results[name]
        spread = result.get("spread", {"mean": {}})["mean"]
        measured[name] = {metric: (result["mean"][metric], spread.get(metric, math.nan)) for metric in metrics}
    return measured


def _judged_together(
    checkpoint: str, records: Any, subset_size: int | None, image_size: int | None
) -> dict[str, tuple[float, float]]:
    """Return the metrics of a dataset whose images are judged together, product by product."""
    pipe = pipeline("anomaly-segmentation", model=checkpoint)
    if image_size is not None:
        pipe.image_processor = pipe.image_processor.at_size(image_size)
    evaluator = AnomalySegmentationEvaluator(metrics=METRICS, skip_undefined=True)
    products = np.array(records["product"])
    for product in sorted(set(products)):
        rows = [records[int(index)] for index in np.flatnonzero(products == product)]
        if len(rows) < 5:
            continue
        labels = pipe.image_processor([row["image"] for row in rows], [row["mask"] for row in rows])["labels"]
        # at the size of the model's input, where the other ways are measured
        pictures = [
            row["image"].convert("RGB").resize(label.shape[::-1], pipe.image_processor.resample)
            for row, label in zip(rows, labels, strict=True)
        ]
        results = pipe.segment_together(pictures, subset_size=subset_size, progress=False)
        evaluator.add(
            [result["anomaly_map"] for result in results],
            list(labels),
            [product] * len(rows),
            image_scores=[result["score"] for result in results],
            labels=[row["label"] for row in rows],
        )
    return {metric: (value, math.nan) for metric, value in evaluator.compute()["mean"].items() if metric in METRICS}


def compare(
    checkpoint: str,
    splits: dict[str, dict[str, Any]],
    counts: list[int],
    seeds: int,
    together: bool = False,
    head: str | None = None,
    subset_size: int | None = None,
    image_size: int | None = None,
) -> Iterator[tuple[str, dict[str, dict[str, tuple[float, float]]]]]:
    """
    Measure all ways, one after the other.

    Args:
        checkpoint (`str`): folder or Hub repository.
        splits (`dict[str, dict[str, Dataset]]`): dataset -> split ("test", and "train" if there is one) -> records.
        counts (`list[int]`): numbers of references.
        seeds (`int`): number of draws of each of them.
        together (`bool`, *optional*, defaults to `False`): whether to judge the images of each product together, too.
        head (`str`, *optional*): the checkpoint with an image head.
        subset_size (`int`, *optional*): number of images that are judged together; default: all of a product.
        image_size (`int`, *optional*): side of the model's input; default: the checkpoint's.

    Yields:
        `tuple`: name of the way, and dataset -> metric -> mean over products and standard deviation over draws.
    """
    draws = {"zero-shot": None}
    draws |= {f"{k} reference{'s' * (k > 1)}": ReferenceDraw(k, tuple(range(seeds))) for k in counts}
    for way, draw in draws.items():
        yield way, _measure(checkpoint, splits, draw, image_size=image_size)
    if together:
        yield (
            "judged together",
            {
                name: _judged_together(checkpoint, each["test"], subset_size, image_size)
                for name, each in splits.items()
            },
        )
    if head is not None:
        for way, draw in draws.items():
            yield f"{way}, image head", _measure(head, splits, draw, "image_head", image_size)


def to_markdown(table: Table) -> str:
    """Return a table with a row for each way, and a column for each dataset and their mean."""
    names = list(next(iter(table.values())))
    shared = [name for name in names if all(name in values for values in table.values())]
    header = ["", *names, f"mean of {len(shared)}"]
    lines = []
    for way, values in table.items():
        cells = [_cell(values[name]) if name in values else "-" for name in names]
        measured = [metric for metric in METRICS if any(metric in each for each in values.values())]
        means = {
            metric: (float(np.nanmean([values[name][metric][0] for name in shared])), math.nan) for metric in measured
        }
        lines.append([way, *cells, _cell(means)])
    titles = " / ".join(METRIC_TITLES[metric] for metric in METRICS)
    return f"{titles}, in percent:\n\n" + markdown_table(header, lines, "l" + "r" * (len(header) - 1)) + "\n"


def _cell(values: dict[str, tuple[float, float]]) -> str:
    parts = []
    for metric in METRICS:
        mean, deviation = values.get(metric, (math.nan, math.nan))
        text = "-" if math.isnan(mean) else f"{100 * mean:.1f}"
        parts.append(text if math.isnan(deviation) else f"{text}±{100 * deviation:.1f}")
    return " / ".join(parts)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_CHECKPOINT, help="checkpoint (default: the embedded one)")
    parser.add_argument("--dataset", action="append", required=True, metavar="NAME=FOLDER", help="repeat for several")
    parser.add_argument("--count", type=int, nargs="*", default=[1, 2, 4, 8], help="numbers of references")
    parser.add_argument("--seeds", type=int, default=3, help="draws of each number of references")
    parser.add_argument("--together", action="store_true", help="judge the images of each product together, too")
    parser.add_argument("--subset_size", type=int, help="with --together: number of images that are compared")
    parser.add_argument("--image_size", type=int, help="side of the model's input (default: the checkpoint's)")
    parser.add_argument("--head", help="the checkpoint with an image head")
    parser.add_argument("--output_file", type=Path, help="JSON file for the table")
    return parser


def main(arguments: list[str] | None = None) -> Table:
    """Compare, print and save; return the table."""
    options = make_parser().parse_args(arguments)
    splits = {}
    for entry in options.dataset:
        name, _, folder = entry.partition("=")
        title = Path(folder).name if name == "folder" else name
        splits[title] = load_anomaly_dataset(name, data_dir=folder)
    table: Table = {}
    ways = compare(
        options.model,
        splits,
        options.count,
        options.seeds,
        options.together,
        options.head,
        options.subset_size,
        options.image_size,
    )
    for way, values in ways:
        table[way] = values
        if options.output_file is not None:  # after each way, since the whole takes long
            options.output_file.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    print(to_markdown(table))
    return table


if __name__ == "__main__":
    main()
