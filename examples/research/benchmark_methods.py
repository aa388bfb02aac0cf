"""Time methods beside the image tower that they run on, and beside a plain reading of their formulas.

    python -m examples.research.benchmark_methods
    python -m examples.research.benchmark_methods --methods winclip --rounds 5 --size 240
    python -m examples.research.benchmark_methods --methods anomaly_clip --small --batch_size 4 --rounds 25

All ways run in turns, round after round. The program prints the median of the ratio to the image tower's time, and for
a method whose FLOPs are counted, that ratio divided by the ratio of the FLOPs. The image tower has random weights and
the published size, or with `--small` 12 blocks of 256 channels, patches of 16 pixels and images of 224. The text tower
is small, because text embeddings are computed once and kept.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer

from examples.research.benchmark.clock import REFERENCE, time_in_turns
from examples.research.benchmark.floor import image_encoder_flops, tower_flops
from examples.research.benchmark.reports import machine
from examples.research.benchmark.setting import DTYPES
from vcp_clip_hf import EMBEDDED_CHECKPOINT
from vcp_clip_hf.methods import METHODS, AnomalyMethodConfig, AnomalyMethodModel
from vcp_clip_hf.methods.vv_attention import value_stream
from vcp_clip_hf.methods.windows import window_index, window_sequences


__all__ = ["FIELDS", "SUBJECTS", "Subject", "main", "make_model", "make_parser", "measure"]


@dataclass(frozen=True)
class Subject:
    """
    Further measurements of a method.

    Args:
        share (`Callable`, *optional*): configuration and image side -> FLOPs of the method divided by those of the
            image tower.
        plain (`Callable`, *optional*): function of model and images that computes the method's expensive part plainly.
    """

    share: Callable[[AnomalyMethodConfig, int], float] | None = None
    plain: Callable[[AnomalyMethodModel, torch.Tensor], object] | None = None


def winclip_share(config: AnomalyMethodConfig, size: int) -> float:
    """Return the FLOPs of the full image and of all windows, divided by those of the full image."""
    grid = size // config.vision_config.patch_size
    windows = sum((grid - side + 1) ** 2 * tower_flops(config, 1 + side**2) for side in config.scales)
    whole = image_encoder_flops(config, size)
    return (whole + windows) / whole


def windows_one_by_one(model: AnomalyMethodModel, pixel_values: torch.Tensor) -> None:
    """Run WinCLIP's image side with one pass for each window."""
    features = model.image_features(pixel_values)
    for side in model.config.scales:
        for column in window_index(features.grid, side).split(1, dim=1):
            model.clip.vision_model.encoder(inputs_embeds=window_sequences(features.states[0], column))


def anomaly_clip_share(config: AnomalyMethodConfig, size: int) -> float:
    """Return the FLOPs of both streams, without those that are not needed, divided by those of the image tower."""
    vision, tokens = config.vision_config, 1 + (size // config.vision_config.patch_size) ** 2
    width, depth = vision.hidden_size, vision.num_hidden_layers
    product, attention = 2.0 * tokens * width**2, 4.0 * tokens**2 * width
    whole = image_encoder_flops(config, size)
    value_blocks = min(depth, max(config.feature_layers)) - config.first_value_block + 1
    # Each block has an attention and an output projection more; in the last block, the ordinary stream only computes
    # the keys and values of all tokens
    last = tower_flops(config, tokens) / depth - 2 * product
    return (whole + value_blocks * (product + attention) - last) / whole


def streams_one_after_the_other(model: AnomalyMethodModel, pixel_values: torch.Tensor) -> None:
    """Run AnomalyCLIP's image side with all tokens in every block, then the value-value stream by itself."""
    layers, blocks = model.config.feature_layers, model.clip.vision_model.encoder.layers
    states, _ = model.run_image_tower(pixel_values, range(len(blocks) + 1))
    streams = value_stream(blocks, states, layers, model.config.first_value_block)
    for layer in layers:
        model.project(streams[layer])


SUBJECTS = {
    "winclip": Subject(winclip_share, windows_one_by_one),
    "anomaly_clip": Subject(anomaly_clip_share, streams_one_after_the_other),
}

# Fields that a small text tower needs
FIELDS = {"anomaly_clip": {"deep_prompt_depth": 1}}

# Sizes of `--small`
_SMALL_VISION = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_hidden_layers": 12}


def make_model(
    method: str, config: AnomalyMethodConfig | None = None, small: bool = False, dtype: torch.dtype | None = None
) -> AnomalyMethodModel:
    """
    Return a method with random weights.

    Args:
        method (`str`): `model_type` of the method.
        config ([`AnomalyMethodConfig`], *optional*, defaults to the method's with a small text tower): the sizes.
        small (`bool`, *optional*, defaults to `False`): whether the default has a small image tower too.
        dtype (`torch.dtype`, *optional*, defaults to float32): dtype of the weights.
    """
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_CHECKPOINT)
    model_class = METHODS[method]
    if config is None:
        text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        fields = {"text_config": {**text, **ids, "vocab_size": len(tokenizer)}, **FIELDS.get(method, {})}
        if small:
            fields |= {"vision_config": {**_SMALL_VISION, "patch_size": 16, "image_size": 224}, "image_size": 224}
        config = model_class.config_class(**fields)
    model = model_class(config).eval().to(dtype or torch.float32)
    model.tokenizer = tokenizer
    return model


def measure(
    model: AnomalyMethodModel, subject: Subject, size: int, batch_size: int, rounds: int, reference_rounds: int
) -> dict[str, float]:
    """
    Time a method, the image tower and the plain reading in turns.

    Args:
        model ([`AnomalyMethodModel`]): the method.
        subject ([`Subject`]): its share of FLOPs and plain reading.
        size (`int`): side of the images in pixels.
        batch_size (`int`): number of images.
        rounds, reference_rounds (`int`): rounds of all ways, and of the plain reading.

    Returns:
        `dict[str, float]`: milliseconds per image of each way (median), and ratios.
    """
    device = next(model.parameters()).device
    pixel_values = torch.randn(batch_size, 3, size, size, device=device).to(model.dtype)
    ways = {"image tower": lambda: model.run_image_tower(pixel_values, ()), "method": lambda: model(pixel_values)}
    if subject.plain is not None:
        ways[REFERENCE] = lambda: subject.plain(model, pixel_values)
    with torch.inference_mode():
        model(pixel_values)  # the text embeddings are kept from here on
        times = time_in_turns(ways, device, rounds, reference_rounds)
    row = {f"{way}, ms per image": 1000 * statistics.median(spent) / batch_size for way, spent in times.items()}
    row["times the image tower"] = _ratio(times["method"], times["image tower"])
    if subject.share is not None:
        row["times the image tower, in FLOPs"] = subject.share(model.config, size)
        row["time divided by FLOPs' share"] = row["times the image tower"] / row["times the image tower, in FLOPs"]
    if subject.plain is not None:
        row["times faster than the plain reading"] = _ratio(times[REFERENCE], times["method"])
    return row


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=False))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.research.benchmark_methods",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--methods", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--size", type=int, help="side of the images in pixels; default: the method's")
    parser.add_argument("--small", action="store_true", help="a small image tower")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reference_rounds", type=int, default=1)
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file to write")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Measure, print and save; return the rows."""
    options = make_parser().parse_args(arguments)
    rows = {}
    for method in options.methods:
        model = make_model(method, small=options.small, dtype=DTYPES[options.dtype])
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        size = options.size or model.config.input_size[0]
        counts = options.batch_size, options.rounds, options.reference_rounds
        rows[method] = measure(model, SUBJECTS[method], size, *counts)
        print(method, f"({size} x {size} pixels)")
        for name, value in rows[method].items():
            print(f"  {name}: {value:.2f}", flush=True)
    if options.output is not None:
        options.output.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
    return rows


if __name__ == "__main__":
    main()
