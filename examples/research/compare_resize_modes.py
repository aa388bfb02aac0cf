"""Compare ways to bring images that are not square to the input of a model, in one table over several datasets.

    python -m examples.research.compare_resize_modes                            # photographs that no training used
    python -m examples.research.compare_resize_modes --dataset folder=my_images # and own images

The photographs show strips of materials, 2 to 2.8 times as long as they are wide, two of three with painted
anomalies. All ways are measured on the same images and masks, at the size of the files.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from vcp_clip_hf import EMBEDDED_CHECKPOINT
from vcp_clip_hf.data import load_anomaly_dataset
from vcp_clip_hf.data.records import ANOMALOUS, FEATURES, GOOD, NORMAL
from vcp_clip_hf.evaluation import evaluate
from vcp_clip_hf.evaluation_report import EvaluationProtocol
from vcp_clip_hf.generator.fields import Dice
from vcp_clip_hf.pixel_preprocessing import RESIZE_MODES

from .compare_with_rivals import METRICS, to_markdown
from .material_scenes import MaterialScenes, damage


__all__ = ["compare", "main", "make_parser", "strips"]

PROTOCOL = EvaluationProtocol(metrics=METRICS, skip_undefined=True, native_size=True, mode="streaming")
SIDE = 560  # pixels, of the longer side
RATIOS = (2.0, 2.8)  # range of longer to shorter side
LEAST_PIXELS = 20  # of an anomaly within the strip
ANOMALOUS_OF = 3  # consecutive strips, the first of which is normal


def strips(count: int, seed: int = 7) -> list[dict]:
    """
    Make pictures of materials that are not square, from photographs that are kept for tests.

    Args:
        count (`int`): number of pictures, half of them upright.
        seed (`int`, *optional*, defaults to 7): seed of the pictures.

    Returns:
        `list` of records with the columns of every dataset of this package.
    """
    materials, records, number = MaterialScenes("test"), [], 0
    while len(records) < count:
        number += 1
        record = _strip(Dice((seed, number)), materials, len(records))
        if record is not None:
            records.append(record)
    return records


def _strip(dice: Dice, materials: MaterialScenes, index: int) -> dict | None:
    """Draw the strip at an index, or return `None` if no anomaly is visible on it."""
    scene, is_anomalous = materials.scene(dice, SIDE), index % ANOMALOUS_OF != 0
    pixels, mask, kind = scene.pixels, np.zeros((SIDE, SIDE), bool), GOOD
    if is_anomalous:
        try:
            pixels, mask, kind = damage(scene, dice, materials)
        except (ValueError, RuntimeError):
            return None
    height = round(SIDE / dice.between(*RATIOS))
    top = dice.whole(0, SIDE - height)
    if is_anomalous:
        rows = np.flatnonzero(mask.any(axis=1))
        shown = int(dice.pick(rows))
        top = int(np.clip(shown - dice.whole(0, height - 1), 0, SIDE - height))
    pixels, mask = pixels[top : top + height], mask[top : top + height]
    if is_anomalous and mask.sum() < LEAST_PIXELS:
        return None
    if index % 2:
        pixels, mask = pixels.transpose(1, 0, 2), mask.T
    return {
        "image": Image.fromarray(np.ascontiguousarray(pixels, np.uint8)),
        "mask": Image.fromarray(np.ascontiguousarray(mask).astype(np.uint8) * 255) if is_anomalous else None,
        "label": ANOMALOUS if is_anomalous else NORMAL,
        "product": "strips",
        "defect": kind,
        "image_id": f"strips/{index:04d}",
    }


def compare(model: str, sets: dict[str, datasets.Dataset], batch_size: int = 8) -> Iterator[tuple[str, dict]]:
    """
    Measure a checkpoint with every way to resize.

    Args:
        model (`str`): checkpoint.
        sets (`dict[str, datasets.Dataset]`): name -> images.
        batch_size (`int`, *optional*, defaults to 8): images in one forward pass.

    Yields:
        The way, and name -> metric -> mean over products, in 0..1.
    """
    processor = AutoImageProcessor.from_pretrained(model)
    network = AutoModel.from_pretrained(model, dtype=torch.float32)
    for mode in RESIZE_MODES:
        report = evaluate(network, processor.with_resize_mode(mode), sets, PROTOCOL, batch_size, num_workers=1)
        yield (
            mode,
            {
                name: {metric: result["mean"].get(metric, float("nan")) for metric in METRICS}
                for name, result in report.results.items()
            },
        )


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_CHECKPOINT, help="checkpoint (default: the embedded one)")
    parser.add_argument("--num_images", type=int, default=300, help="number of photographed strips")
    parser.add_argument(
        "--dataset", action="append", default=[], metavar="NAME=FOLDER", help="several folders: folder=A folder=B"
    )
    return parser


def main(arguments: list[str] | None = None) -> dict[str, dict]:
    """Compare and print; return the table: dataset -> way -> metric -> value."""
    options = make_parser().parse_args(arguments)
    sets = {"strips": datasets.Dataset.from_list(strips(options.num_images), features=FEATURES)}
    for entry in options.dataset:
        name, _, folder = entry.partition("=")
        sets[Path(folder).name] = load_anomaly_dataset(name, data_dir=folder, split="test")
    table: dict[str, dict] = {name: {} for name in sets}
    for mode, values in compare(options.model, sets):
        for name, metrics in values.items():
            table[name][mode] = metrics
    print(to_markdown(table, []))
    return table


if __name__ == "__main__":
    main()
