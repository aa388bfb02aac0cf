"""Compare a checkpoint with simpler methods, and with itself in 8 bits, in one table over several datasets.

    python -m examples.research.compare_with_rivals --model vcp_clip_hf/assets/vcp-clip-tiny --dataset synthetic \
        --dataset folder=my_images --rival "untrained backbone=runs/untrained/last"

`--int8` adds the checkpoint with its backbone in 8 bits (torchao): with int8 weights, and with int8 weights and
activations.

The table also has a filter without learned parameters: local contrast, |image - blurred image|, smoothed as the maps
are, at several scales. Its best scale is chosen per dataset by the metrics themselves, which a user could not do: this
makes it a strong rival. All methods are measured on the same images at the model's input size.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModel, TorchAoConfig

from vcp_clip_hf import EMBEDDED_CHECKPOINT, VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.anomaly_scoring import gaussian_smooth
from vcp_clip_hf.data import load_anomaly_dataset
from vcp_clip_hf.evaluation import evaluate
from vcp_clip_hf.evaluation_report import METRIC_TITLES, EvaluationProtocol
from vcp_clip_hf.metrics import AnomalySegmentationEvaluator
from vcp_clip_hf.training_config import TrainingConfig

from .defect_pictures import defect_pictures


__all__ = [
    "LOCAL_CONTRAST",
    "compare",
    "in_int8",
    "load_sets",
    "local_contrast",
    "main",
    "make_parser",
    "pictures_for_choices",
    "show",
    "to_markdown",
]

METRICS = ("pixel_auroc", "pixel_pro", "pixel_ap", "image_auroc")
SCALES = (1, 2, 4, 8, 16)
PROTOCOL = EvaluationProtocol(metrics=METRICS, skip_undefined=True)
LOCAL_CONTRAST = "local contrast, best scale"
_GENERATED = ("synthetic", "defect_pictures")  # names of datasets without real defects
_TRAINING = Path(__file__).parents[2] / "hub_configs" / "vcp-clip-tiny" / "train.yaml"
_SEED = 11  # of pictures for choices


def local_contrast(dataset, image_processor: VCPCLIPImageProcessor) -> dict[str, float]:
    """Return the metrics of the scale with the highest AUROC, as means over products."""
    evaluators = {scale: AnomalySegmentationEvaluator(metrics=METRICS, skip_undefined=True) for scale in SCALES}
    mean, std = (
        torch.tensor(value).view(3, 1, 1) for value in (image_processor.image_mean, image_processor.image_std)
    )
    for record in dataset:
        inputs = image_processor(record["image"], [record["mask"]], return_tensors="pt")
        gray = (inputs["pixel_values"][0] * std + mean).mean(dim=0, keepdim=True)
        labels = inputs["labels"].numpy()
        for scale, evaluator in evaluators.items():
            contrast = (gray - gaussian_smooth(gray, scale)).abs().clamp(0, 1)
            smooth = gaussian_smooth(contrast, image_processor.smoothing_sigma)
            evaluator.add(smooth.numpy(), labels, products=[record["product"]])
    means = [evaluator.compute()["mean"] for evaluator in evaluators.values()]
    return max(means, key=lambda values: values["pixel_auroc"])


def in_int8(folder: str) -> dict[str, VCPCLIPModel]:
    """Return title -> the checkpoint, quantized by torchao while it is loaded."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig

    ways = {
        "int8 weights": Int8WeightOnlyConfig(),
        "int8 weights and activations": Int8DynamicActivationInt8WeightConfig(),
    }
    return {
        title: VCPCLIPModel.from_pretrained(folder, dtype=torch.float32, quantization_config=TorchAoConfig(way))
        for title, way in ways.items()
    }


def compare(
    models: dict[str, str | VCPCLIPModel],
    sets: dict,
    image_processor: VCPCLIPImageProcessor,
    batch_size: int = 16,
    image_size: int | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """
    Evaluate all methods.

    Args:
        models (`dict[str, str | VCPCLIPModel]`): title -> checkpoint, or a model.
        sets (`dict[str, Dataset]`): name -> test images.
        image_processor ([`VCPCLIPImageProcessor`]): processor of the given models and of the local contrast.
        batch_size (`int`, *optional*, defaults to 16): images in one forward pass.
        image_size (`int`, *optional*): side of the input of all methods, instead of that of each processor.

    Returns:
        `dict`: dataset -> method -> metric, means over products, in [0, 1].
    """
    table: dict[str, dict] = {name: {} for name in sets}
    if image_size is not None:
        image_processor = image_processor.at_size(image_size)
    for title, model in models.items():
        processor = image_processor
        if isinstance(model, str):
            processor = AutoImageProcessor.from_pretrained(model)
            processor = processor if image_size is None else processor.at_size(image_size)
            model = AutoModel.from_pretrained(model, dtype=torch.float32)
        report = evaluate(model, processor, sets, PROTOCOL, batch_size, num_workers=1)
        for name, result in report.results.items():
            table[name][title] = {metric: result["mean"].get(metric, float("nan")) for metric in METRICS}
    for name, dataset in sets.items():
        table[name][LOCAL_CONTRAST] = local_contrast(dataset, image_processor)
    return table


def to_markdown(table: dict[str, dict[str, dict[str, float]]], in_mean: list[str]) -> str:
    """Return a table with a row per dataset; the last row is the mean over the datasets in `in_mean`."""
    methods = list(next(iter(table.values())))
    header = ["dataset", *(f"{method}: {'/'.join(METRIC_TITLES[metric] for metric in METRICS)}" for method in methods)]
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * len(methods)]
    rows = dict(table)
    if len(in_mean) > 1:
        rows["mean of " + ", ".join(in_mean)] = {
            method: {metric: _mean([table[name][method][metric] for name in in_mean]) for metric in METRICS}
            for method in methods
        }
    for name, values in rows.items():
        cells = [" / ".join(_percent(values[method][metric]) for metric in METRICS) for method in methods]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines) + "\n"


def _mean(values: list[float]) -> float:
    """Return the mean of the defined values: sets without normal images have no image AUROC."""
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def pictures_for_choices(count: int) -> datasets.Dataset:
    """
    Make pictures of `defect_pictures` that no training used, half of them anomalous, with twice the side of the input
    of the embedded checkpoint. Metrics are over all pictures: they have one product name.
    """
    families = TrainingConfig.from_file(_TRAINING).products
    pictures = defect_pictures("test", count, 448, _SEED, families, anomaly_fraction=0.5)
    return pictures.remove_columns("product").add_column("product", ["pictures"] * count)


def load_sets(entries: Sequence[str], num_test_images: int, split: str = "test") -> dict[str, datasets.Dataset]:
    """
    Load the datasets of a command line.

    Args:
        entries (sequence of `str`): "NAME" or "NAME=FOLDER", such as "synthetic" or "folder=my_images".
            "defect_pictures" are pictures of the kind that the stem branch is trained on, of photographs and products
            that no training used, for choices between variants.
        num_test_images (`int`): number of images of "synthetic" and "defect_pictures".
        split (`str`, *optional*, defaults to `"test"`): split to load.

    Returns:
        `dict[str, Dataset]`: name of the dataset, or of the folder for "folder=..." -> images, in the given order.
    """
    sets = {}
    for entry in entries:
        name, _, folder = entry.partition("=")
        if folder:
            title = Path(folder).name if name == "folder" else name
            sets[title] = load_anomaly_dataset(name, data_dir=folder, split=split)
        elif name == "defect_pictures":
            sets[name] = pictures_for_choices(num_test_images)
        else:
            counts = {"num_images": 0, "num_test_images": num_test_images} if name == "synthetic" else {}
            sets[name] = load_anomaly_dataset(name, split=split, **counts)
    return sets


def show(table: dict[str, dict[str, dict[str, float]]], output_file: Path | None) -> None:
    """Print a table, with the mean over datasets that are not generated, and save it as JSON if a file is given."""
    print(to_markdown(table, [name for name in table if name not in _GENERATED]))
    if output_file is not None:
        output_file.write_text(json.dumps(table, indent=2) + "\n")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_CHECKPOINT, help="checkpoint (default: the embedded one)")
    parser.add_argument(
        "--rival", action="append", default=[], metavar="TITLE=CHECKPOINT", help="checkpoint to compare with"
    )
    parser.add_argument(
        "--dataset", action="append", required=True, metavar="NAME[=FOLDER]", help="several folders: folder=A folder=B"
    )
    parser.add_argument("--split", default="test")
    parser.add_argument("--num_test_images", type=int, default=500, help="number of images of generated datasets")
    parser.add_argument("--image_size", type=int, help="side of the input (default: that of each checkpoint)")
    parser.add_argument("--int8", action="store_true", help="add the checkpoint in 8 bits; needs torchao")
    parser.add_argument("--output_file", type=Path, help="JSON file for the table")
    return parser


def main(arguments: list[str] | None = None) -> dict:
    """Compare, print and save; return the table."""
    options = make_parser().parse_args(arguments)
    sets = load_sets(options.dataset, options.num_test_images, options.split)
    models = {"VCP-CLIP": options.model, **dict(rival.split("=", 1) for rival in options.rival)}
    if options.int8:
        models.update(in_int8(str(options.model)))
    processor = AutoImageProcessor.from_pretrained(options.model)
    table = compare(models, sets, processor, image_size=options.image_size)
    show(table, options.output_file)
    return table


if __name__ == "__main__":
    main()
