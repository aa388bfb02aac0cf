"""Command line of the benchmark; see the package's docstring."""

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch

from . import __doc__ as description
from .gpu.run import QUICK_SECONDS, SECONDS, benchmark_gpu
from .gpu.sections import SECTIONS
from .gpu.ways import ATTENTIONS
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
    parser.add_argument("--what", default="inference", choices=[*BENCHMARKS, "gpu"])
    parser.add_argument("--model", help="checkpoint; without it, random weights of --model_config (predict: embedded)")
    parser.add_argument("--model_config", help="folder with a config.json; default: ViT-L/14 (predict: --model)")
    parser.add_argument("--image_size", type=int, help="side in pixels, a multiple of the patch size")
    parser.add_argument("--batch_sizes", type=int, nargs="+", help="default: 1 (gpu: 1 4 16 64)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="default: float32 (and bfloat16, not for predict)")
    parser.add_argument("--devices", nargs="+", default=["cuda" if torch.cuda.is_available() else "cpu"])
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument("--compile_mode", help="mode of torch.compile, e.g. reduce-overhead for CUDA graphs")
    parser.add_argument("--no_reference", action="store_true", help="leave out the reference")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reference_rounds", type=int, default=2)
    parser.add_argument(
        "--images", type=int, help="predict: number of files (default: 64; gpu: 1024, with --quick 192)"
    )
    parser.add_argument("--file_size", type=int, default=512, help="predict: side of the image files in pixels")
    parser.add_argument("--num_workers", type=int, default=1, help="predict: processes that read images ahead")
    parser.add_argument("--quick", action="store_true", help="gpu: stop after less than one minute, not three")
    parser.add_argument(
        "--seconds", type=float, help=f"gpu: limit of the whole run (default: {SECONDS}, with --quick {QUICK_SECONDS})"
    )
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, help="gpu: these only (default: all)")
    parser.add_argument("--attention", nargs="+", default=[], choices=ATTENTIONS, help="gpu: measure these too")
    parser.add_argument("--output_dir", type=Path, help="folder for benchmark.json and benchmark.md")
    # The GPU benchmark sets its own device: a CPU takes seconds to draw the random weights of ViT-L
    parser.set_defaults(weights_on="cpu")
    return parser


def main(arguments: list[str] | None = None) -> list[dict]:
    """Measure, print and save; return the rows."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = make_parser().parse_args(arguments)
    command = shlex.join(["python", "-m", "examples.research.benchmark", *arguments])
    if options.what == "gpu":
        return benchmark_gpu(options, command)
    options.batch_sizes = options.batch_sizes or [1]
    options.images = options.images or 64
    options.dtypes = options.dtypes or (["float32"] if options.what == "predict" else ["float32", "bfloat16"])
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    rows = BENCHMARKS[options.what](options)
    if options.output_dir is not None:
        options.output_dir.mkdir(parents=True, exist_ok=True)
        content = {"machine": facts, "command": command, "rows": rows}
        (options.output_dir / "benchmark.json").write_text(json.dumps(content, indent=2) + "\n")
        (options.output_dir / "benchmark.md").write_text(to_markdown(rows))
    return rows


if __name__ == "__main__":
    main()
