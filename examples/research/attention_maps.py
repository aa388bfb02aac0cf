"""Draw the attention of Post-VCP over the picture, per head, for the normal and the abnormal prompt.

The paper's figure 4. Needs matplotlib (`pip install "vcp-clip-hf[figures]"`).

    python -m examples.research.attention_maps part.png other.png --model vcp-clip-visa --output attention.png

Without pictures, generated ones are used. Values are multiples of uniform attention, in which every patch would have
the value 1. All maps of a figure share one scale.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from vcp_clip_hf import EMBEDDED_CHECKPOINT, VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.anomaly_scoring import resize_map
from vcp_clip_hf.generator import render_sample
from vcp_clip_hf.image_loading import load_image


__all__ = ["attention_maps", "draw", "main", "make_parser"]

STATES = ("normal", "abnormal")
GENERATED = ("saw_blade", "marble")


@torch.no_grad()
def attention_maps(
    model: VCPCLIPModel, processor: VCPCLIPImageProcessor, image: Image.Image, layer: int | None = None
) -> np.ndarray:
    """
    Return the Post-VCP attention over one image.

    Args:
        model ([`VCPCLIPModel`]): model with Post-VCP.
        processor ([`VCPCLIPImageProcessor`]): image processor of the model.
        image (`PIL.Image.Image`): picture.
        layer (`int`, *optional*): feature layer of the configuration; the last one by default.

    Returns:
        `np.ndarray` of shape `(heads, 2, height, width)`, float32: multiples of uniform attention at the image's size,
        normal prompt first.

    Raises:
        ValueError: the model has no Post-VCP, or `layer` is not one of its feature layers.
    """
    layers = model.config.feature_layers
    if not model.config.use_post_vcp:
        raise ValueError("This checkpoint has no Post-VCP (use_post_vcp=False), and therefore no attention to draw.")
    layer = layers[-1] if layer is None else layer
    if layer not in layers:
        raise ValueError(f"layer={layer} is not one of the feature layers {list(layers)}.")
    pixel_values = processor(image, return_tensors="pt").pixel_values.to(model.device)
    attention = model(pixel_values, output_attentions=True).attentions[layers.index(layer)][0].float().cpu()
    height, width = pixel_values.shape[-2:]
    patch_size = model.config.vision_config.patch_size
    grid = (height // patch_size, width // patch_size)
    maps = resize_map(attention.unflatten(-1, grid) * attention.shape[-1], (height, width))
    size = (image.height, image.width)
    return resize_map(processor.without_padding(maps, size), size).numpy()


def draw(images: Sequence[Image.Image], maps: Sequence[np.ndarray], names: Sequence[str], title: str) -> Figure:
    """Draw two rows per image, normal and abnormal, with the picture, the mean over heads, and every head."""
    heads = maps[0].shape[0]
    highest = max(1.0, *(float(each.max()) for each in maps))
    figure = Figure(figsize=(1.5 * (heads + 2) + 1, 3.3 * len(images) + 0.6), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(2 * len(images), heads + 2, squeeze=False)
    for number, (image, per_head, name) in enumerate(zip(images, maps, names, strict=True)):
        for state, word in enumerate(STATES):
            row = axes[2 * number + state]
            for axis in row:
                axis.set_axis_off()
            row[0].imshow(image)
            row[0].set_title(f"{name}\n{word}", fontsize=8)
            columns = [("mean", per_head.mean(axis=0)), *((f"head {i + 1}", each) for i, each in enumerate(per_head))]
            for axis, (label, both) in zip(row[1:], columns, strict=True):
                shown = axis.imshow(both[state], cmap="inferno", vmin=0, vmax=highest)
                axis.set_title(label, fontsize=8)
    figure.colorbar(shown, ax=axes, shrink=0.6, label="times uniform attention")
    return figure


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", help="image files (default: generated pictures)")
    parser.add_argument("--model", default=EMBEDDED_CHECKPOINT, help="checkpoint (default: the embedded one)")
    parser.add_argument("--layer", type=int, help="feature layer (default: the last)")
    parser.add_argument(
        "--output", type=Path, default=Path("attention_maps.png"), help="figure to write: png, pdf or svg"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the figure from the command line."""
    options = make_parser().parse_args(arguments)

    model, processor = AutoModel.from_pretrained(options.model), AutoImageProcessor.from_pretrained(options.model)
    try:
        if options.images:
            names, images = [Path(path).name for path in options.images], [load_image(path) for path in options.images]
        else:
            samples = [render_sample(product, 7, 0, 256) for product in GENERATED]
            names, images = [f"{each.product}, {each.defect}" for each in samples], [each.image for each in samples]
        maps = [attention_maps(model, processor, image, options.layer) for image in images]
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    layer = options.layer or model.config.feature_layers[-1]
    draw(images, maps, names, f"Post-VCP attention, layer {layer}").savefig(options.output, dpi=150)
    print(options.output)


if __name__ == "__main__":
    main()
