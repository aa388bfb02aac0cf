"""Choose layers, neighborhood and scale of a checkpoint's reference memory, on photographs with painted anomalies.

    python -m examples.research.choose_reference_settings --photos photos_of_materials

Each photograph stands for a product: its references and test images are random crops of it, and half of the test
images get a painted anomaly. So no data set of real defects has a part in the choice. For each choice of layers and
neighborhood, a line has the metrics of the memory alone, and the scale at which both maps vary equally on normal
crops: the standard deviation of the zero-shot map over pixels divided by that of the memory's map, as the median over
photographs.
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from vcp_clip_hf import EMBEDDED_CHECKPOINT
from vcp_clip_hf.anomaly_scoring import gaussian_smooth
from vcp_clip_hf.data.painted_anomalies import add_anomaly
from vcp_clip_hf.image_files import find_images
from vcp_clip_hf.metrics import AnomalySegmentationEvaluator
from vcp_clip_hf.reference_pictures import build_memory
from vcp_clip_hf.references import ReferencedModel


__all__ = ["balancing_scale", "crops_of", "main", "make_parser", "measure"]

METRICS = ("pixel_auroc", "pixel_ap", "image_auroc")


def crops_of(photo: Image.Image, count: int, dice: random.Random) -> list[Image.Image]:
    """Return random square crops of a photograph, half as long as its shorter side."""
    side = max(1, min(photo.size) // 2)
    corners = [(dice.randrange(photo.width - side + 1), dice.randrange(photo.height - side + 1)) for _ in range(count)]
    return [photo.crop((left, top, left + side, top + side)) for left, top in corners]


def balancing_scale(zero_shot: torch.Tensor, memory: torch.Tensor) -> float:
    """Return the factor of `memory` that gives both maps `(images, height, width)` of normal images equal spread."""
    return zero_shot.std().item() / memory.std().item()


@torch.no_grad()
def measure(
    checkpoint: str, photos: list[Path], layers: list[int], neighborhood: int, num_references: int, num_tested: int
) -> tuple[dict[str, float], float]:
    """Return the metrics of the memory alone, means over the photographs, and the median of the balancing scales."""
    model, processor = AutoModel.from_pretrained(checkpoint), AutoImageProcessor.from_pretrained(checkpoint)
    evaluator = AnomalySegmentationEvaluator(metrics=METRICS, skip_undefined=True)
    scales = []
    for number, path in enumerate(photos):
        dice = random.Random(number)
        crops = crops_of(Image.open(path).convert("RGB"), num_references + num_tested, dice)
        references, tested = crops[:num_references], crops[num_references:]
        masks = [None] * len(tested)
        for index in range(1, len(tested), 2):
            tested[index], masks[index], _ = add_anomaly(tested[index], [number, index])
        inputs = processor(tested, masks, return_tensors="pt")
        memory = build_memory(model, processor, references, 1.0, layers, neighborhood, scale=1.0)
        outputs = model(inputs.pixel_values)
        found = ReferencedModel(model, memory)(inputs.pixel_values).anomaly_map
        maps = gaussian_smooth(found, processor.smoothing_sigma)
        evaluator.add(list(maps.numpy()), list(inputs.labels.numpy()), [path.name] * len(tested))
        zero_shot = gaussian_smooth(outputs.anomaly_map, processor.smoothing_sigma)
        scales.append(balancing_scale(zero_shot[::2], maps[::2]))
    return evaluator.compute()["mean"], float(np.median(scales))


def _layer(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder with photographs of materials")
    parser.add_argument("--model", default=EMBEDDED_CHECKPOINT, help="checkpoint (default: the embedded one)")
    parser.add_argument("--num_photos", type=int, default=30, help="photographs to take, evenly spaced")
    parser.add_argument(
        "--layers", action="append", type=_layer, nargs="+", help='layers to try, "stem" first; repeat for several'
    )
    parser.add_argument("--neighborhood", type=int, nargs="+", default=[1, 3], help="neighborhoods to try")
    parser.add_argument("--num_references", type=int, default=4)
    parser.add_argument("--num_tested", type=int, default=12)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Measure each choice, and print a line for it."""
    options = make_parser().parse_args(arguments)
    files = sorted(options.photos / path for path in find_images(options.photos)[0])
    photos = [files[index] for index in np.linspace(0, len(files) - 1, min(options.num_photos, len(files)), dtype=int)]
    config = AutoModel.from_pretrained(options.model).config
    for layers in options.layers or [config.feature_layers, list(range(1, config.feature_layers[-1] // 2 + 1))]:
        for neighborhood in options.neighborhood:
            metrics, scale = measure(
                options.model, photos, layers, neighborhood, options.num_references, options.num_tested
            )
            numbers = ", ".join(f"{name} {100 * metrics[name]:.1f}" for name in METRICS)
            print(f"layers {layers}, neighborhood {neighborhood}: {numbers}; balancing scale {scale:.1f}", flush=True)


if __name__ == "__main__":
    main()
