"""Measure what bfloat16 and float8 change in the results of a checkpoint, on a CPU.

    python -m examples.research.float8_accuracy --dataset folder=my_images --dataset folder=more_images
    python -m examples.research.float8_accuracy --random_vit_large

Rows: float32; the whole model in bfloat16; the same with the linear layers of the image tower's blocks in float8, as
`Acceleration(float8=True)` computes them on a GPU. Float8 is emulated: inputs and weights are quantized in the same
way, and the products of the quantized numbers are summed in float32. A GPU may sum them less exactly.

Besides the metrics, the table has the largest and the mean difference of the maps from those in float32, on the first
images of each dataset. `--random_vit_large` measures this difference on ViT-L/14 at 518 x 518 with random weights and
random images instead.
"""

import argparse
import copy
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModel, CLIPVisionModel

from examples.research.compare_with_rivals import METRICS, PROTOCOL, load_sets
from vcp_clip_hf import EMBEDDED_CHECKPOINT, VCPCLIPConfig, VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.accelerated_vision import linear_layers
from vcp_clip_hf.evaluation import evaluate
from vcp_clip_hf.evaluation_report import METRIC_TITLES
from vcp_clip_hf.float8_linear import Float8Matrix, quantize_rows
from vcp_clip_hf.markdown_text import escaped
from vcp_clip_hf.markdown_text import table as markdown_table


__all__ = ["EmulatedFloat8Linear", "deviation", "emulate_float8", "main", "make_parser", "measure", "ways_of"]


class EmulatedFloat8Linear(nn.Linear):
    """Compute what [`Float8Linear`] does, with products in float32."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Compute `(..., in_features)` -> `(..., out_features)` in bfloat16."""
        matrix = Float8Matrix.of(self.weight)
        values, scales = quantize_rows(input)
        result = (values.float() @ matrix.values.float().T) * scales * matrix.scales
        return (result + self.bias.float()).bfloat16()


def emulate_float8(vision_model: CLIPVisionModel) -> None:
    """
    Replace the linear layers of an image tower's blocks by emulated ones, in place.

    Args:
        vision_model (`CLIPVisionModel`): image tower in bfloat16.
    """
    for layer in linear_layers(vision_model):
        layer.__class__ = EmulatedFloat8Linear


def ways_of(model: VCPCLIPModel) -> dict[str, VCPCLIPModel]:
    """
    Return title -> the model, copied for each way to compute it.

    Args:
        model ([`VCPCLIPModel`]): model in float32; it becomes the first one.
    """
    half = copy.deepcopy(model).to(torch.bfloat16)
    quarter = copy.deepcopy(half)
    emulate_float8(quarter.clip.vision_model)
    return {"float32": model, "bfloat16": half, "float8, emulated": quarter}


@torch.no_grad()
def deviation(ways: Mapping[str, VCPCLIPModel], batches: Iterable[torch.Tensor]) -> dict[str, dict[str, float]]:
    """
    Compare the maps of all models with those of the first one.

    Args:
        ways (`Mapping[str, VCPCLIPModel]`): title -> model.
        batches (`Iterable[torch.Tensor]`): `pixel_values` of shape `(B, 3, H, W)`.

    Returns:
        `dict`: title -> `largest` and `mean` difference, of maps in [0, 1].
    """
    differences: dict[str, list[torch.Tensor]] = {title: [] for title in ways}
    for images in batches:
        maps = {title: model(images).anomaly_map.float() for title, model in ways.items()}
        exact = next(iter(maps.values()))
        for title, each in maps.items():
            differences[title].append((each - exact).abs().flatten(1))
    joined = {title: torch.cat(each) for title, each in differences.items()}
    return {title: {"largest": each.max().item(), "mean": each.mean().item()} for title, each in joined.items()}


def measure(
    ways: Mapping[str, VCPCLIPModel],
    datasets: Mapping[str, Iterable[dict]],
    image_processor: VCPCLIPImageProcessor,
    num_compared: int,
) -> dict[str, dict[str, dict[str, float]]]:
    """
    Measure all ways.

    Args:
        ways (`Mapping[str, VCPCLIPModel]`): result of [`ways_of`].
        datasets (`Mapping[str, Dataset]`): name -> test images.
        image_processor ([`VCPCLIPImageProcessor`]): processor of the checkpoint.
        num_compared (`int`): number of images of each dataset whose maps are compared.

    Returns:
        `dict`: dataset -> way -> metrics and differences, in [0, 1].
    """
    result: dict[str, dict] = {name: {title: {} for title in ways} for name in datasets}
    for title, model in ways.items():
        report = evaluate(model, image_processor, datasets, PROTOCOL, batch_size=16, num_workers=1)
        for name, measured in report.results.items():
            result[name][title] = {metric: measured["mean"].get(metric, float("nan")) for metric in METRICS}
    for name, dataset in datasets.items():
        first = itertools.islice(dataset, num_compared)
        batches = (image_processor(record["image"], return_tensors="pt")["pixel_values"] for record in first)
        for title, values in deviation(ways, batches).items():
            result[name][title].update(values)
    return result


def to_markdown(result: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return a table with a row per dataset and way: metrics in percent, and differences of maps."""
    header = ["dataset", "way", *(METRIC_TITLES[metric] for metric in METRICS), "largest", "mean difference"]
    rows = [
        [escaped(name), title]
        + ["-" if math.isnan(values[metric]) else f"{100 * values[metric]:.2f}" for metric in METRICS]
        + [f"{values['largest']:.1e}", f"{values['mean']:.1e}"]
        for name, ways in result.items()
        for title, values in ways.items()
    ]
    return markdown_table(header, rows, "llrrrrrr")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_CHECKPOINT, help="checkpoint (default: the embedded one)")
    parser.add_argument(
        "--dataset", action="append", default=[], metavar="NAME[=FOLDER]", help="several folders: folder=A folder=B"
    )
    parser.add_argument("--num_test_images", type=int, default=300, help="number of images of generated datasets")
    parser.add_argument("--num_compared", type=int, default=20, help="images of each dataset whose maps are compared")
    parser.add_argument("--random_vit_large", action="store_true", help="two random images, random weights")
    parser.add_argument("--output_file", type=Path, help="JSON file for the table")
    return parser


def main(arguments: list[str] | None = None) -> dict:
    """Measure, print and save; return the result."""
    options = make_parser().parse_args(arguments)
    if options.random_vit_large:
        torch.manual_seed(0)
        ways = ways_of(VCPCLIPModel(VCPCLIPConfig()).eval())
        result = deviation(ways, torch.randn(2, 1, 3, 518, 518))
        print(json.dumps(result, indent=2))
    else:
        sets = load_sets(options.dataset, options.num_test_images)
        ways = ways_of(AutoModel.from_pretrained(options.model, dtype=torch.float32))
        processor = AutoImageProcessor.from_pretrained(options.model)
        result = measure(ways, sets, processor, options.num_compared)
        print(to_markdown(result))
    if options.output_file is not None:
        options.output_file.write_text(json.dumps(result, indent=2) + "\n")
    return result


if __name__ == "__main__":
    main()
