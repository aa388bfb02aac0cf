"""Compare means of the maps that a checkpoint computes at several sizes of its input, in one table over datasets.

    python -m examples.research.compare_input_sizes --dataset synthetic --dataset folder=my_images \
        --sizes 224 --sizes 112 224 --sizes 112 160 224 320

Every image is resized from its file for each size. The logits of the maps are brought to the size of the checkpoint's
own input and averaged; smoothing, score and masks are those of this input. `--stem_branch_weight` measures another
weight of the stem branch on the same images.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoImageProcessor

from vcp_clip_hf import EMBEDDED_CHECKPOINT, VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.anomaly_scoring import gaussian_smooth
from vcp_clip_hf.metrics import AnomalySegmentationEvaluator

from .compare_with_rivals import METRICS, load_sets, show


__all__ = ["compare", "main", "make_parser"]

_EPS = 1e-6  # distance of probabilities from 0 and 1, whose logits are infinite


@torch.no_grad()
def compare(
    model: VCPCLIPModel, processor: VCPCLIPImageProcessor, sets: dict, ways: Sequence[Sequence[int]]
) -> dict[str, dict[str, dict[str, float]]]:
    """
    Measure means of maps.

    Args:
        model ([`VCPCLIPModel`]): model in evaluation mode.
        processor ([`VCPCLIPImageProcessor`]): its image processor.
        sets (`dict[str, Dataset]`): name -> images.
        ways (sequence of sequences of `int`): sides of the inputs whose maps are averaged, for each way.

    Returns:
        `dict`: dataset -> way, such as "112 + 224" -> metric, means over products, in 0..1.
    """
    processors = {size: processor.at_size(size) for size in sorted({size for way in ways for size in way})}
    table = {}
    for name, images in sets.items():
        evaluators = {tuple(way): AnomalySegmentationEvaluator(METRICS, skip_undefined=True) for way in ways}
        for record in tqdm(images, desc=name):
            labels = processor(record["image"], [record["mask"]], return_tensors="pt").labels
            logits = {
                size: nn.functional.interpolate(
                    torch.logit(model(**at_size(record["image"], return_tensors="pt")).anomaly_map, eps=_EPS)[None],
                    size=labels.shape[1:],
                    mode="bilinear",
                    align_corners=False,
                )[0]
                for size, at_size in processors.items()
            }
            for way, evaluator in evaluators.items():
                mean = torch.stack([logits[size] for size in way]).mean(dim=0).sigmoid()
                smooth = gaussian_smooth(mean, processor.smoothing_sigma).clamp(0, 1)
                evaluator.add(smooth.numpy(), labels.numpy(), products=[record["product"]])
        table[name] = {
            " + ".join(map(str, way)): {
                metric: evaluator.compute()["mean"].get(metric, float("nan")) for metric in METRICS
            }
            for way, evaluator in evaluators.items()
        }
    return table


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_CHECKPOINT, help="checkpoint (default: the embedded one)")
    parser.add_argument(
        "--dataset", action="append", required=True, metavar="NAME[=FOLDER]", help="several: folder=A folder=B"
    )
    parser.add_argument(
        "--sizes", action="append", type=int, nargs="+", required=True, help="a way: one or more sides"
    )
    parser.add_argument("--stem_branch_weight", type=float, help="default: that of the checkpoint")
    parser.add_argument("--num_test_images", type=int, default=300, help="number of images of generated datasets")
    parser.add_argument("--output_file", type=Path, help="JSON file for the table")
    return parser


def main(arguments: list[str] | None = None) -> dict:
    """Compare, print and save; return the table."""
    options = make_parser().parse_args(arguments)
    weight = options.stem_branch_weight
    fields = {} if weight is None else {"stem_branch_weight": weight}
    model = VCPCLIPModel.from_pretrained(options.model, dtype=torch.float32, **fields).eval()
    if fields and not model.config.use_stem_branch:
        raise ValueError(f"{options.model} has no stem branch: leave out --stem_branch_weight.")
    processor = AutoImageProcessor.from_pretrained(options.model)
    sets = load_sets(options.dataset, options.num_test_images)
    table = compare(model, processor, sets, options.sizes)
    show(table, options.output_file)
    return table


if __name__ == "__main__":
    main()
