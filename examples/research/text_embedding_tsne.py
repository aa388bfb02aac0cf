"""Draw the text embeddings of many pictures with t-SNE, to see whether visual context separates products.

The paper's figure 10. Each dot is a picture, each color a product. Its position is the direction from the normal to
the abnormal text embedding, which classifies the patches; left after Pre-VCP, right after the last Post-VCP. The cross
is the embedding without visual context (the image feature is zero), which is the same for all pictures.

Needs matplotlib and scikit-learn (`pip install "vcp-clip-hf[figures]"`).

    python -m examples.research.text_embedding_tsne --model vcp-clip-visa --dataset mvtec_ad=D/mvtec --output tsne.png
"""

import argparse
import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from transformers import AutoImageProcessor, AutoModel

from vcp_clip_hf import EMBEDDED_CHECKPOINT, VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.data import load_anomaly_dataset
from vcp_clip_hf.generator import UNSEEN_PRODUCTS


__all__ = ["draw", "main", "make_parser", "project", "separation", "text_directions"]


@torch.no_grad()
def text_directions(
    model: VCPCLIPModel, processor: VCPCLIPImageProcessor, images: Iterable, batch_size: int = 8
) -> dict[str, np.ndarray]:
    """
    Return the directions from the normal to the abnormal text embedding, of length 1.

    Args:
        model ([`VCPCLIPModel`]): model; without Post-VCP, "post_vcp" is missing in the result.
        processor ([`VCPCLIPImageProcessor`]): image processor of the model.
        images (`Iterable`): N pictures.
        batch_size (`int`, *optional*, defaults to 8): pictures in one forward pass.

    Returns:
        `dict[str, np.ndarray]`, float32: `no_context` of shape `(1, projection_dim)`, `pre_vcp` of shape
        `(N, projection_dim)` and `post_vcp` of shape `(N, d_v)`.
    """
    updated: list[torch.Tensor] = []  # outputs of Post-VCP, one per feature layer
    hook = None
    if model.post_vcp is not None:
        hook = model.post_vcp.register_forward_hook(lambda module, inputs, outputs: updated.append(outputs[0][-1]))
    images, found = iter(images), {"pre_vcp": [], "post_vcp": []}
    try:
        while batch := list(itertools.islice(images, batch_size)):
            updated.clear()
            inputs = processor(batch, return_tensors="pt").to(model.device)
            found["pre_vcp"].append(model(**inputs).text_embeds)
            if hook is not None:
                found["post_vcp"].append(updated[-1])
    finally:
        if hook is not None:
            hook.remove()
    nothing = torch.zeros(1, model.config.projection_dim, device=model.device, dtype=model.dtype)
    found["no_context"] = [model.encode_text(nothing)]
    return {name: _directions(torch.cat(parts)) for name, parts in found.items() if parts}


def _directions(embeds: torch.Tensor) -> np.ndarray:
    """Return the directions from normal to abnormal text, (N, 2, d) -> (N, d), normalized."""
    return torch.nn.functional.normalize(embeds[:, 1] - embeds[:, 0], dim=-1).float().cpu().numpy()


def project(directions: np.ndarray, seed: int = 0) -> np.ndarray:
    """Project directions (N, d) to (N, 2) with t-SNE; repeatable."""
    perplexity = min(30.0, (len(directions) - 1) / 3)
    # without Pre-VCP all embeddings are equal, and "pca" fails
    init = "pca" if np.ptp(directions, axis=0).max() > 1e-6 else "random"
    return TSNE(perplexity=perplexity, metric="cosine", init=init, random_state=seed).fit_transform(directions)


def separation(directions: np.ndarray, products: Sequence[str]) -> float:
    """Return the silhouette of the products before projection, in [-1, 1]: 1 is well separated, 0 is mixed."""
    if np.ptp(directions, axis=0).max() <= 1e-6:
        return 0.0  # all directions are equal
    return float(silhouette_score(directions, products, metric="cosine"))


def draw(directions: dict[str, np.ndarray], products: Sequence[str], seed: int = 0) -> Figure:
    """Draw a panel for Pre-VCP, which also has the embedding without context, and a panel for Post-VCP."""
    panels = [
        (name, title) for name, title in (("pre_vcp", "Pre-VCP"), ("post_vcp", "Post-VCP")) if name in directions
    ]
    figure = Figure(figsize=(6 * len(panels) + 2, 5.5), layout="constrained")
    names = sorted(set(products))
    colors = dict(zip(names, _colors(len(names)), strict=True))
    for axis, (name, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        points = directions[name]
        if name == "pre_vcp":
            points = np.concatenate([points, directions["no_context"]])
        points = project(points, seed)
        for product in names:
            chosen = points[: len(products)][[each == product for each in products]]
            axis.scatter(*chosen.T, s=18, color=colors[product], label=product)
        if name == "pre_vcp":
            axis.scatter(*points[-1], s=120, marker="x", color="black", label="without visual context")
            handles = axis.get_legend_handles_labels()
        axis.set_title(f"{title}, silhouette of products {separation(directions[name], products):.2f}")
        axis.set_xticks([])
        axis.set_yticks([])
    figure.legend(*handles, loc="outside right center", fontsize=8)
    return figure


def _colors(count: int) -> np.ndarray:
    if count <= 20:
        return np.array(colormaps["tab10" if count <= 10 else "tab20"].colors)[:count]
    return colormaps["turbo"](np.linspace(0, 1, count))[:, :3]


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_CHECKPOINT, help="checkpoint (default: the embedded one)")
    parser.add_argument(
        "--dataset", default="synthetic", metavar="NAME[=FOLDER]", help="dataset (default: generated pictures)"
    )
    parser.add_argument("--split", default="test")
    parser.add_argument("--products", nargs="+", help="products to draw (default: all)")
    parser.add_argument("--images_per_product", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="seed of t-SNE")
    parser.add_argument(
        "--output", type=Path, default=Path("text_embedding_tsne.png"), help="figure to write: png, pdf or svg"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the figure from the command line."""
    options = make_parser().parse_args(arguments)

    name, _, folder = options.dataset.partition("=")
    generated = {}
    if name == "synthetic":
        count = options.images_per_product * len(options.products or UNSEEN_PRODUCTS)
        generated = {"num_images": count, "num_test_images": count}
    try:
        dataset = load_anomaly_dataset(
            name, data_dir=folder or None, split=options.split, products=options.products, **generated
        )
        rows: dict[str, list[int]] = {}
        for index, product in enumerate(dataset["product"]):
            rows.setdefault(product, []).append(index)
        chosen = [index for indices in rows.values() for index in indices[: options.images_per_product]]
        if len(rows) < 2 or len(chosen) < 3:
            raise ValueError(
                f"{len(chosen)} pictures of {len(rows)} products; at least two products and three pictures are needed."
            )
        model, processor = AutoModel.from_pretrained(options.model), AutoImageProcessor.from_pretrained(options.model)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    every = dataset["product"]
    products = [every[index] for index in chosen]
    images = (dataset[index]["image"] for index in chosen)
    directions = text_directions(model, processor, images, options.batch_size)
    draw(directions, products, options.seed).savefig(options.output, dpi=150)
    print(f"{options.output}: {len(chosen)} pictures of {len(rows)} products")


if __name__ == "__main__":
    main()
