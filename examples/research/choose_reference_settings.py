"""Choose layers, neighborhood, distance and scale of a checkpoint's reference memory, without real defects.

    python -m examples.research.choose_reference_settings --photos photos_of_materials --num_rendered 20

Products are photographs, whose references and test images are random crops, half of the test images with painted
anomalies, and, with `--num_rendered`, rendered products as a camera sees them on a line. So no data set of real
defects has a part in the choice. For each choice, a line has the metrics of the memory alone and those of the fused
map, and for scaled distances the scale at which both maps vary equally on normal images: the standard deviation of the
zero-shot map over pixels divided by that of the memory's map, times the scale, as the median over products.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModel

from examples.research.products_with_references import Product, photographed, rendered
from vcp_clip_hf import EMBEDDED_CHECKPOINT
from vcp_clip_hf.anomaly_scoring import gaussian_smooth
from vcp_clip_hf.image_files import find_images
from vcp_clip_hf.memory_settings import DISTANCES
from vcp_clip_hf.metrics import AnomalySegmentationEvaluator
from vcp_clip_hf.reference_pictures import build_memory
from vcp_clip_hf.referenced_model import ReferencedModel


__all__ = ["balancing_scale", "main", "make_parser", "measure"]

METRICS = ("pixel_auroc", "pixel_ap", "image_auroc")


def balancing_scale(zero_shot: torch.Tensor, memory: torch.Tensor) -> float:
    """Return the factor of `memory` that gives both maps `(images, height, width)` of normal images equal spread."""
    return zero_shot.std().item() / memory.std().item()


@torch.no_grad()
def measure(
    checkpoint: str, products: Iterable[Product], layers: list[int | str], **settings: int | float | str | None
) -> tuple[dict[str, dict[str, float]], float]:
    """
    Measure a choice of settings.

    Args:
        checkpoint (`str`): folder or repository.
        products (`Iterable[Product]`): products with their references and test images.
        layers (`list`), settings: settings of [`build_memory`]; `None` stands for the configuration's.

    Returns:
        `tuple`: metrics of the memory alone (`"memory"`) and of the fused map (`"fused"`), means over the products;
        and the median of the balancing scales, which have a meaning for scaled distances only.
    """
    model, processor = AutoModel.from_pretrained(checkpoint).float(), AutoImageProcessor.from_pretrained(checkpoint)
    evaluators = {
        way: AnomalySegmentationEvaluator(metrics=METRICS, skip_undefined=True) for way in ("memory", "fused")
    }
    scales = []
    for product in products:
        inputs = processor(product.tested, product.masks, return_tensors="pt")
        memory = build_memory(model, processor, product.references, layers=layers, **settings)
        outputs = ReferencedModel(model, memory)(inputs.pixel_values)
        for way, found in (("memory", outputs.reference_map), ("fused", outputs.anomaly_map)):
            maps = gaussian_smooth(found, processor.smoothing_sigma)
            evaluators[way].add(list(maps.numpy()), list(inputs.labels.numpy()), [product.name] * len(maps))
        normal = [index for index, mask in enumerate(product.masks) if mask is None]
        zero_shot = model(inputs.pixel_values[normal]).anomaly_map
        spread = [
            gaussian_smooth(each, processor.smoothing_sigma) for each in (zero_shot, outputs.reference_map[normal])
        ]
        scales.append(balancing_scale(*spread) * memory.settings.scale)
    return {way: each.compute()["mean"] for way, each in evaluators.items()}, float(np.median(scales))


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
    parser.add_argument(
        "--distance", nargs="+", choices=DISTANCES, help="distances to try (default: the checkpoint's)"
    )
    parser.add_argument("--scale", type=float, help="scale of the memory (default: the checkpoint's)")
    parser.add_argument("--num_rendered", type=int, default=0, help="rendered products, at most 20")
    parser.add_argument("--num_references", type=int, default=4)
    parser.add_argument("--num_tested", type=int, default=12)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Measure each choice, and print a line for it."""
    options = make_parser().parse_args(arguments)
    files = sorted(options.photos / path for path in find_images(options.photos)[0])
    photos = [files[index] for index in np.linspace(0, len(files) - 1, min(options.num_photos, len(files)), dtype=int)]
    products = list(photographed(photos, options.num_references, options.num_tested))
    products += rendered(options.num_rendered, options.num_references, options.num_tested)
    config = AutoModel.from_pretrained(options.model).config
    for layers in options.layers or [config.feature_layers, list(range(1, config.feature_layers[-1] // 2 + 1))]:
        for neighborhood in options.neighborhood:
            for distance in options.distance or [config.reference_distance]:
                settings = {"neighborhood": neighborhood, "distance": distance, "scale": options.scale}
                metrics, scale = measure(options.model, products, layers, **settings)
                numbers = "; ".join(
                    f"{way}: " + ", ".join(f"{name} {100 * values[name]:.1f}" for name in METRICS)
                    for way, values in metrics.items()
                )
                balance = f"; balancing scale {scale:.1f}" if distance == "scaled" else ""
                print(f"layers {layers}, neighborhood {neighborhood}, {distance}: {numbers}{balance}", flush=True)


if __name__ == "__main__":
    main()
