"""Measure time and memory of pictures judged together, and the share of the comparison's time in matrix products.

    python -m examples.research.benchmark_together --pictures 50
    python -m examples.research.benchmark_together --pictures 500 --image_size 112 --degrees 3 --memory_limit 64

The pictures are generated. Times are CPU seconds, which a busy machine changes less than wall time; with one thread,
they are those of one core. Memory is the peak of the process, which includes Python, PyTorch and the model.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import pipeline
from transformers.image_utils import SizeDict

from vcp_clip_hf import EMBEDDED_CHECKPOINT
from vcp_clip_hf.generator import render_sample
from vcp_clip_hf.mutual_scoring import mutual_scores
from vcp_clip_hf.peak_memory import peak_memory


__all__ = ["main", "make_parser"]

_PRODUCT, _SEED = "leather", 5
# Pictures of the comparison that is timed by itself, and repetitions
_COMPARED, _ROUNDS = 8, 5


class _Files(Dataset):
    """Paths of pictures: the pipeline then yields results one by one."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = [str(path) for path in paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> str:
        return self.paths[index]


def _seconds(function: Callable[[], object]) -> float:
    """Return the CPU seconds of a call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def _product_share(patches: int, width: int) -> tuple[float, float]:
    """Return the rate of the comparison in GFLOP/s, and the share of its time that the bare products take."""
    features = torch.nn.functional.normalize(torch.randn(_COMPARED, patches, width), dim=-1)
    pairs = _COMPARED * (_COMPARED - 1) // 2
    out = torch.empty(patches, patches)

    def products() -> None:
        for _ in range(pairs):
            torch.mm(features[0], features[1].T, out=out)

    times = [(_seconds(products), _seconds(lambda: mutual_scores(features))) for _ in range(_ROUNDS)]
    bare, whole = (min(column) for column in zip(*times, strict=True))
    return 2e-9 * pairs * patches * patches * width / whole, bare / whole


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_CHECKPOINT, help="checkpoint")
    parser.add_argument("--pictures", type=int, default=50, help="number of pictures")
    parser.add_argument("--picture_size", type=int, default=96, help="side of the pictures in pixels")
    parser.add_argument("--image_size", type=int, help="side of the model's input; default: the checkpoint's")
    parser.add_argument("--degrees", type=int, nargs="+", default=[1, 3, 5], help="sides of the neighborhoods")
    parser.add_argument("--subset_size", type=int, help="pictures that are compared with each other; default: all")
    parser.add_argument("--zero_shot_weight", type=float, default=0.5, help="weight of the zero-shot map")
    parser.add_argument("--memory_limit", type=int, default=1024, help="MiB of each large array kept in memory")
    parser.add_argument("--shape", type=int, nargs=2, help="patches and width of the comparison that is timed alone")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Measure and print.

    Args:
        arguments (`Sequence[str]`, *optional*): command line; that of the process by default.
    """
    options = make_parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    inspect = pipeline("anomaly-segmentation", model=options.model, device="cpu")
    if options.image_size is not None:
        inspect.image_processor.size = SizeDict(height=options.image_size, width=options.image_size)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index:05d}.png" for index in range(options.pictures)]
        for index, path in enumerate(paths):
            render_sample(_PRODUCT, _SEED, index, options.picture_size).image.save(path)
        list(inspect(_Files(paths[:8]), batch_size=8))
        before = peak_memory(inspect.device)
        started = time.perf_counter()
        results = inspect.segment_together(
            _Files(paths),
            degrees=options.degrees,
            subset_size=options.subset_size,
            zero_shot_weight=options.zero_shot_weight,
            memory_limit=options.memory_limit * 2**20,
            batch_size=8,
        )
        taken = _seconds(lambda: [None for _ in results])
        elapsed = time.perf_counter() - started
    vision = inspect.model.config.vision_config
    size = inspect.image_processor.size
    patches = (size.height // vision.patch_size) * (size.width // vision.patch_size)
    rate, share = _product_share(*(options.shape or (patches, vision.hidden_size)))
    print(f"{options.pictures} pictures: {elapsed:.1f} s, {taken:.1f} CPU seconds")
    print(f"{options.pictures / taken:.2f} pictures per CPU second")
    if before is not None:
        print(f"peak memory {peak_memory(inspect.device) / 2**20:.0f} MiB, before {before / 2**20:.0f} MiB")
    print(f"comparison alone: {rate:.0f} GFLOP/s, {100 * share:.0f} % of the rate of its products")


if __name__ == "__main__":
    main()
