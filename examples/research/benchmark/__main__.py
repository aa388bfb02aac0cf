"""Command line of the benchmark; see the package's docstring."""

import argparse
import json
import sys
from pathlib import Path

import torch

from . import __doc__ as description
from .inference import benchmark_inference
from .predict import benchmark_predict
from .reports import machine, to_markdown
from .setting import DTYPES
from .training import benchmark_training


__all__ = ["main", "make_parser"]

BENCHMARKS = {"inference": benchmark_inference, "training": benchmark_training, "predict": benchmark_predict}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.research.benchmark",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--what", default="inference", choices=BENCHMARKS)
    parser.add_argument("--model", help="checkpoint; without it, random weights of --model_config (predict: embedded)")
    parser.add_argument("--model_config", help="folder with a config.json; default: ViT-L/14 (predict: --model)")
    parser.add_argument("--image_size", type=int, help="side in pixels, a multiple of the patch size")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="default: float32 (and bfloat16, not for predict)")
    parser.add_argument("--devices", nargs="+", default=["cuda" if torch.cuda.is_available() else "cpu"])
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument("--compile_mode", help="mode of torch.compile, e.g. reduce-overhead for CUDA graphs")
    parser.add_argument("--no_reference", action="store_true", help="leave out the reference")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reference_rounds", type=int, default=2)
    parser.add_argument("--images", type=int, default=64, help="predict: number of files")
    parser.add_argument("--file_size", type=int, default=512, help="predict: side of the image files in pixels")
    parser.add_argument("--num_workers", type=int, default=1, help="predict: processes that read images ahead")
    parser.add_argument("--output_dir", type=Path, help="folder for benchmark.json and benchmark.md")
    return parser


def main(arguments: list[str] | None = None) -> list[dict]:
    """Measure, print and save; return the rows."""
    options = make_parser().parse_args(arguments)
    options.dtypes = options.dtypes or (["float32"] if options.what == "predict" else ["float32", "bfloat16"])
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    rows = BENCHMARKS[options.what](options)
    if options.output_dir is not None:
        options.output_dir.mkdir(parents=True, exist_ok=True)
        content = {"machine": facts, "command": sys.argv, "rows": rows}
        (options.output_dir / "benchmark.json").write_text(json.dumps(content, indent=2) + "\n")
        (options.output_dir / "benchmark.md").write_text(to_markdown(rows))
    return rows


if __name__ == "__main__":
    main()
