"""Compare ways to bring images that are not square to the input of a model, in one table over several datasets.

    python -m examples.research.compare_resize_modes                            # photographs that no training used
    python -m examples.research.compare_resize_modes --dataset folder=my_images # and own images

The photographs show strips of materials, 2 to 2.8 times as long as they are wide, half of them with painted
anomalies; each photograph is a product. With `--references K`, all sets are also measured with K normal images of each
product as references (one draw). All ways are measured on the same images and masks, at the size of the files.
"""

import argparse
from collections.abc import Iterator, Sequence
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
from vcp_clip_hf.evaluation_references import ReferenceDraw
from vcp_clip_hf.evaluation_report import EvaluationProtocol
from vcp_clip_hf.generator.fields import Dice
from vcp_clip_hf.pixel_preprocessing import RESIZE_MODES

from .compare_with_rivals import METRICS, to_markdown
from .material_scenes import MaterialScene, MaterialScenes, damage


__all__ = ["compare", "main", "make_parser", "strips"]

PROTOCOL = EvaluationProtocol(metrics=METRICS, skip_undefined=True, native_size=True, mode="streaming")
SIDE = 560  # pixels, of the longer side
RATIOS = (2.0, 2.8)  # range of longer to shorter side
STRIPS_OF_PHOTOGRAPH = 16
LEAST_PIXELS = 20  # of an anomaly within the strip
ATTEMPTS = 100  # at a strip, until an anomaly is visible


def strips(num_photographs: int, seed: int = 7) -> list[dict]:
    """
    Make pictures of materials that are not square, 16 of each photograph, from photographs that are kept for tests.

    Args:
        num_photographs (`int`): number of photographs, spread over all of them; every second one gives upright strips.
        seed (`int`, *optional*, defaults to 7): seed of the pictures.

    Returns:
        `list` of records with the columns of every dataset of this package.

    Raises:
        ValueError: there are fewer photographs.
    """
    materials = MaterialScenes("test")
    if not 1 <= num_photographs <= len(materials.photos):
        raise ValueError(f"num_photographs={num_photographs} must lie in 1..{len(materials.photos)}.")
    records = []
    for place in range(num_photographs):
        number = place * len(materials.photos) // num_photographs
        dice = Dice((seed, place))
        height = round(SIDE / dice.between(*RATIOS))  # one shape for a product
        for index in range(STRIPS_OF_PHOTOGRAPH):
            pixels, mask, kind = _strip(dice, materials, number, height, index % 2 == 1)
            if place % 2:
                pixels, mask = pixels.transpose(1, 0, 2), mask.T
            records.append(
                {
                    "image": Image.fromarray(np.ascontiguousarray(pixels, np.uint8)),
                    "mask": Image.fromarray(np.ascontiguousarray(mask).astype(np.uint8) * 255) if index % 2 else None,
                    "label": ANOMALOUS if index % 2 else NORMAL,
                    "product": f"{materials.names[number]} {number}",
                    "defect": kind,
                    "image_id": f"{number:03d}/{index:02d}",
                }
            )
    return records


def _strip(
    dice: Dice, materials: MaterialScenes, number: int, height: int, is_anomalous: bool
) -> tuple[np.ndarray, np.ndarray, str]:
    """Draw a strip of a photograph: pixels (height, SIDE, 3), mask (height, SIDE), and the kind of the anomaly."""
    for _ in range(ATTEMPTS):
        (pixels,) = materials.crops(number, 1, SIDE, dice)
        mask, kind = np.zeros((SIDE, SIDE), bool), GOOD
        top = dice.whole(0, SIDE - height)
        if is_anomalous:
            scene = MaterialScene(pixels, np.ones((SIDE, SIDE), bool), materials.names[number])
            try:
                pixels, mask, kind = damage(scene, dice, materials)
            except ValueError:
                continue
            shown = int(dice.pick(np.flatnonzero(mask.any(axis=1))))  # a row with an anomaly is in the strip
            top = int(np.clip(shown - dice.whole(0, height - 1), 0, SIDE - height))
        pixels, mask = pixels[top : top + height], mask[top : top + height]
        if not is_anomalous or mask.sum() >= LEAST_PIXELS:
            return pixels, mask, kind
    raise RuntimeError(f"No anomaly is visible on photograph {number} after {ATTEMPTS} attempts.")


def compare(
    model: str, sets: dict[str, datasets.Dataset], num_references: int = 0, modes: Sequence[str] = RESIZE_MODES
) -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
    """
    Measure a checkpoint with several ways to resize.

    Args:
        model (`str`): checkpoint.
        sets (`dict[str, datasets.Dataset]`): name -> images.
        num_references (`int`, *optional*, defaults to 0): number of references of each product; 0: zero-shot only.
        modes (sequence of `str`, *optional*): ways to resize.

    Yields:
        The way, and name -> metric -> mean over products, in 0..1; rows with references have names of their own.
    """
    processor = AutoImageProcessor.from_pretrained(model)
    network = AutoModel.from_pretrained(model, dtype=torch.float32)
    draws = {"": None}
    if num_references:
        draws[f", {num_references} references"] = ReferenceDraw(num_references, seeds=(0,))
    for mode in modes:
        values = {}
        for suffix, draw in draws.items():
            report = evaluate(
                network, processor.with_resize_mode(mode), sets, PROTOCOL, batch_size=8, num_workers=1, references=draw
            )
            for name, result in report.results.items():
                values[name + suffix] = {metric: result["mean"].get(metric, float("nan")) for metric in METRICS}
        yield mode, values


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_CHECKPOINT, help="checkpoint (default: the embedded one)")
    parser.add_argument("--num_photographs", type=int, default=24, help="number of photographs, 16 strips of each")
    parser.add_argument("--references", type=int, default=0, metavar="K", help="also measure with K references")
    parser.add_argument("--modes", nargs="*", choices=RESIZE_MODES, default=RESIZE_MODES, help="ways to resize")
    parser.add_argument(
        "--dataset", action="append", default=[], metavar="NAME=FOLDER", help="several folders: folder=A folder=B"
    )
    return parser


def main(arguments: list[str] | None = None) -> dict[str, dict]:
    """Compare and print; return the table: dataset -> way -> metric -> value."""
    options = make_parser().parse_args(arguments)
    sets = {}
    if options.num_photographs:
        sets["strips"] = datasets.Dataset.from_list(strips(options.num_photographs), features=FEATURES)
    for entry in options.dataset:
        name, _, folder = entry.partition("=")
        sets[Path(folder).name] = load_anomaly_dataset(name, data_dir=folder, split="test")
    table: dict[str, dict] = {}
    for mode, values in compare(options.model, sets, options.references, options.modes):
        for name, metrics in values.items():
            table.setdefault(name, {})[mode] = metrics
    print(to_markdown(table, []))
    return table


if __name__ == "__main__":
    main()
