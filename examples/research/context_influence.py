"""Measure what the visual context and the words contribute to the maps of a checkpoint, and what they could.

    python -m examples.research.context_influence                            # generated products that no training saw
    python -m examples.research.context_influence --dataset folder=my_images # and own images

Three tables for each dataset:

- *directions*: patches are compared with the direction from the normal to the abnormal text embedding, which the
  context of an image turns. Cosine of the direction of each image with their mean: 1 if the context changes nothing.
- *exchanged*: metrics of the maps if the text is prompted by the context of another image, by the mean of all
  contexts, or by none, and with other words.
- *fitted*: the best direction for the model's own patch tokens, a linear discriminant that is fitted to masks: those
  of all other products, or those of half of the images of the product itself. The other half of its images is
  measured. If both are equally good, no context could improve the maps by turning the direction for a product.

A stem branch is left out: it has its own convolutions, and would hide the maps that the context prompts.

Needs matplotlib and scikit-learn (`pip install "vcp-clip-hf[figures]"`).
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import datasets
import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from transformers import AutoImageProcessor, AutoTokenizer

from vcp_clip_hf import EMBEDDED_CHECKPOINT, VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.anomaly_scoring import gaussian_smooth
from vcp_clip_hf.evaluation_report import METRIC_TITLES
from vcp_clip_hf.metrics import AnomalySegmentationEvaluator
from vcp_clip_hf.prompts import tokenize_prompts

from .compare_with_rivals import load_sets
from .text_embedding_tsne import text_directions


__all__ = ["direction_cosines", "exchanged", "fitted", "main", "make_parser"]

METRICS = ("pixel_auroc", "pixel_pro", "pixel_ap")
BATCH_SIZE = 8
UNRELATED = (["a photo of a wooden {}"], ["a photo of a metal {}"])  # normal and abnormal prompts
_SHRINKAGE = 0.1  # of the covariance of patch tokens, towards a multiple of the unit matrix


def direction_cosines(directions: np.ndarray) -> tuple[float, float]:
    """Return the mean and the lowest cosine of directions (N, d), of length 1, with their mean."""
    mean = directions.mean(axis=0)
    cosines = directions @ (mean / np.linalg.norm(mean))
    return float(cosines.mean()), float(cosines.min())


class _Encoded:
    """Patch tokens, global features, masks (N, height, width) and names of products of all images of a dataset."""

    def __init__(self, model: VCPCLIPModel, processor: VCPCLIPImageProcessor, images: datasets.Dataset):
        processor = processor.with_one_shape()
        tokens, embeds, masks = [], [], []
        for start in range(0, len(images), BATCH_SIZE):
            rows = images.select(range(start, min(start + BATCH_SIZE, len(images))))
            given = [row["mask"] or np.zeros(row["image"].size[::-1], np.uint8) for row in rows]
            inputs = processor([row["image"] for row in rows], given, return_tensors="pt")
            of_layers, of_images = model.encode_image(inputs.pixel_values)
            tokens.append(torch.stack(of_layers, dim=1))
            embeds.append(of_images)
            masks.append(inputs.labels.numpy())
        self.patch_tokens, self.image_embeds = torch.cat(tokens), torch.cat(embeds)
        self.masks, self.products = np.concatenate(masks), list(images["product"])


@torch.no_grad()
def exchanged(
    model: VCPCLIPModel, processor: VCPCLIPImageProcessor, tokenizer, images: datasets.Dataset, seed: int = 0
) -> dict[str, dict[str, float]]:
    """
    Measure the maps with other contexts and other words.

    Args:
        model ([`VCPCLIPModel`]): model without a stem branch.
        processor ([`VCPCLIPImageProcessor`]): its image processor; images are squashed to the size of the model.
        tokenizer: its tokenizer.
        images (`datasets.Dataset`): at least two images, with masks.
        seed (`int`, *optional*, defaults to 0): seed of the images whose contexts are exchanged.

    Returns:
        `dict`: way -> "difference", the mean absolute difference of the maps from those of the first way, and the
        metrics `METRICS`, means over products; all in 0..1.
    """
    encoded = _Encoded(model, processor, images)
    own = encoded.image_embeds
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(own)))
    of_another = torch.empty_like(own)
    of_another[order] = own[order.roll(1)]  # nobody keeps their own
    exchanged_words = (model.config.abnormal_prompts, model.config.normal_prompts)
    ways = {
        "own context": (own, None),
        "context of another image": (of_another, None),
        "mean of all contexts": (own.mean(dim=0).expand_as(own), None),
        "no context": (torch.zeros_like(own), None),
        "normal and abnormal words exchanged": (own, _prompt_ids(model, tokenizer, exchanged_words)),
        "unrelated words": (own, _prompt_ids(model, tokenizer, UNRELATED)),
    }
    results, first = {}, None
    for name, (embeds, prompt_ids) in ways.items():
        maps = torch.cat(
            [
                model(
                    patch_tokens=encoded.patch_tokens[start : start + BATCH_SIZE],
                    image_embeds=embeds[start : start + BATCH_SIZE],
                    prompt_input_ids=prompt_ids,
                ).anomaly_map
                for start in range(0, len(own), BATCH_SIZE)
            ]
        )
        first = maps if first is None else first
        evaluator = AnomalySegmentationEvaluator(metrics=METRICS, mode="streaming", skip_undefined=True)
        smooth = gaussian_smooth(maps, processor.smoothing_sigma).clamp(0, 1)
        evaluator.add(smooth.numpy(), encoded.masks, products=encoded.products)
        means = evaluator.compute()["mean"]
        results[name] = {"difference": float((maps - first).abs().mean()), **{key: means[key] for key in METRICS}}
    return results


def _prompt_ids(model: VCPCLIPModel, tokenizer, prompts: tuple[list[str], list[str]]) -> torch.Tensor:
    """Return as many normal as abnormal prompts as ids, (2, templates, length), padded with the end token."""
    states = [tokenize_prompts(each, tokenizer, model.config.category_token_id) for each in prompts]
    length = max(len(row) for rows in states for row in rows)
    return torch.tensor([[row + row[-1:] * (length - len(row)) for row in rows] for rows in states])


@torch.no_grad()
def fitted(
    model: VCPCLIPModel, processor: VCPCLIPImageProcessor, images: datasets.Dataset
) -> dict[str, dict[str, float]]:
    """
    Measure directions that are fitted to the masks, beside that of the text.

    Args:
        model, processor: as in `exchanged`.
        images (`datasets.Dataset`): images of several products, with masks.

    Returns:
        `dict`: product -> AUROC in 0..1 of the patches of the second half of its images, for "text", the mean over
        layers that the base branch computes, "other products", if there are any, and "the product". Products without
        a normal and an abnormal patch in both halves are left out.
    """
    encoded = _Encoded(model, processor, images)
    projected = [
        nn.functional.normalize(projection(tokens), dim=-1)
        for projection, tokens in zip(model.feature_projections, encoded.patch_tokens.unbind(1), strict=True)
    ]
    text = model.encode_text(encoded.image_embeds)
    direction = text[:, 1] - text[:, 0]
    by_text = sum((each @ direction[:, :, None]).squeeze(2) for each in projected).numpy()
    patches = torch.cat(projected, dim=2).numpy()
    masks = torch.from_numpy(encoded.masks).float()[:, None]
    labels = nn.functional.max_pool2d(masks, model.config.vision_config.patch_size).flatten(1).numpy() > 0

    halves = {}
    for product in sorted(set(encoded.products)):
        mine = np.flatnonzero([each == product for each in encoded.products])
        # anomalous images in both halves, whatever their order
        mine = mine[np.argsort(labels[mine].any(axis=1), kind="stable")]
        if all(0 < labels[half].mean() < 1 for half in (mine[::2], mine[1::2])):
            halves[product] = mine[::2], mine[1::2]
    moments = {
        product: [_Moments.of(patches[half], labels[half]) for half in both] for product, both in halves.items()
    }
    results = {}
    for product, (_, measured) in halves.items():
        ways = {"text": by_text[measured]}
        others = [each for name, both in moments.items() if name != product for each in both]
        if others:
            ways["other products"] = patches[measured] @ _Moments.sum(others).discriminant()
        ways["the product"] = patches[measured] @ moments[product][0].discriminant()
        results[product] = {
            name: float(roc_auc_score(labels[measured].ravel(), values.ravel())) for name, values in ways.items()
        }
    return results


@dataclass
class _Moments:
    """Numbers (2), sums (2, d) and products (d, d) of normal and abnormal patches, float64."""

    counts: np.ndarray
    sums: np.ndarray
    products: np.ndarray

    @classmethod
    def of(cls, patches: np.ndarray, labels: np.ndarray) -> "_Moments":
        """Return the moments of patches (images, N, d) with labels (images, N)."""
        both = [patches[labels == state].astype(np.float64) for state in (False, True)]
        return cls(
            np.array([len(each) for each in both]),
            np.stack([each.sum(axis=0) for each in both]),
            sum(each.T @ each for each in both),
        )

    @classmethod
    def sum(cls, moments: Sequence["_Moments"]) -> "_Moments":
        """Return the moments of all patches together."""
        return cls(*(sum(getattr(each, field.name) for each in moments) for field in fields(cls)))

    def discriminant(self) -> np.ndarray:
        """Return the direction (d) of the linear discriminant."""
        means = self.sums / self.counts[:, None]
        covariance = (self.products - (self.counts[:, None] * means).T @ means) / self.counts.sum()
        spread = np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        return np.linalg.solve((1 - _SHRINKAGE) * covariance + _SHRINKAGE * spread, means[1] - means[0])


def _percent(values: Iterable[float]) -> str:
    return " / ".join(f"{100 * value:.1f}" for value in values)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_CHECKPOINT, help="checkpoint (default: the embedded one)")
    parser.add_argument("--dataset", action="append", metavar="NAME[=FOLDER]", help="several: folder=A folder=B")
    parser.add_argument("--num_test_images", type=int, default=300, help="number of images of generated datasets")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Measure and print all tables."""
    options = make_parser().parse_args(arguments)
    model = VCPCLIPModel.from_pretrained(options.model, dtype=torch.float32, use_stem_branch=False).eval()
    processor = AutoImageProcessor.from_pretrained(options.model)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    for name, images in load_sets(options.dataset or ["synthetic"], options.num_test_images).items():
        print(f"\n{name}, {len(images)} images\n")

        directions = text_directions(model, processor.with_one_shape(), images["image"])
        print("| directions of the text | mean cosine with their mean | lowest |\n|---|---:|---:|")
        for title, values in directions.items():
            if title != "no_context":
                print("| {} | {:.3f} | {:.3f} |".format(title, *direction_cosines(values)))

        titles = " / ".join(METRIC_TITLES[metric] for metric in METRICS)
        print(f"\n| exchanged | difference of the maps | {titles} |\n|---|---:|---:|")
        for way, values in exchanged(model, processor, tokenizer, images).items():
            print(f"| {way} | {values['difference']:.4f} | {_percent(values[metric] for metric in METRICS)} |")

        of_products = fitted(model, processor, images)
        if not of_products:
            print("\nNo product has enough images with and without anomalies to fit a direction.")
        else:
            print("\n| fitted to | AUROC of patches, mean over products |\n|---|---:|")
            for way in next(iter(of_products.values())):
                print(f"| {way} | {_percent([float(np.mean([each[way] for each in of_products.values()]))])} |")


if __name__ == "__main__":
    main()
