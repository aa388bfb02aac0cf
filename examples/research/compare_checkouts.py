"""Time the forward pass of this checkout and of another one, in turns on one machine.

    python -m examples.research.compare_checkouts --other ../vcp_clip_hf-0.1.0 --dtypes float32 bfloat16

Each checkout runs in a process of its own; the processes take turns, so that a slow moment of the machine hits both.
Timed are the model of the other checkout, and here the plain model, the accelerated copy, and for comparison CLIP's
own two towers as `CLIPModel` runs them (the image at the same size, both prompts padded to 77 tokens). The weights of
ViT-L/14 are random: their values do not affect the time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


__all__ = ["main", "make_parser"]

ROOT = Path(__file__).resolve().parent.parent.parent
MODELS = {"vit-large-patch14 at 518": 518, "embedded checkpoint": None}


# --- in a process of its own: the ways to compute, timed on request ------------------------------------------------


def _make_ways(name: str, dtype: str, batch_size: int) -> dict[str, Callable[[], object]]:
    """Return the ways to compute that the imported checkout has."""
    import torch

    import vcp_clip_hf
    from vcp_clip_hf import EMBEDDED_CHECKPOINT, VCPCLIPConfig, VCPCLIPModel

    torch.manual_seed(0)
    if MODELS[name] is None:
        model = VCPCLIPModel.from_pretrained(EMBEDDED_CHECKPOINT, dtype=torch.float32)
    else:
        model = VCPCLIPModel(VCPCLIPConfig(image_size=MODELS[name]))
    model = model.to(getattr(torch, dtype)).eval()
    text = model.config.text_config
    images = torch.randn(batch_size, 3, *model.config.input_size, dtype=model.dtype)
    words = torch.randint(0, text.vocab_size, (2 * batch_size, text.max_position_embeddings))

    def own_towers() -> None:
        _, image_embeds = model.encode_image(images)
        model.encode_text(image_embeds)

    def towers() -> None:
        model.clip.get_image_features(images, interpolate_pos_encoding=True)
        model.clip.get_text_features(words)

    ways = {"model": lambda: model(images)}
    if hasattr(vcp_clip_hf, "accelerate_inference"):
        fast = vcp_clip_hf.accelerate_inference(model)
        ways = {
            "plain model": lambda: model(images),
            "accelerated copy": lambda: fast(images),
            "the plain model's two towers": own_towers,
            "CLIPModel's two towers": towers,
        }
    return ways


def _work(name: str, dtype: str, batch_size: int) -> None:
    """Answer each line of the standard input with the seconds of one run of each way."""
    import torch

    ways = _make_ways(name, dtype, batch_size)
    with torch.inference_mode():
        for run in ways.values():
            run()
        print("ready", flush=True)
        for _ in sys.stdin:
            seconds = {}
            for way, run in ways.items():
                start = time.perf_counter()
                run()
                seconds[way] = time.perf_counter() - start
            print(json.dumps(seconds), flush=True)


# --- the turns -------------------------------------------------------------------------------------------------------


def _start(checkout: Path, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, __file__, "--work", *arguments]
    return subprocess.Popen(
        command, cwd=checkout, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _wait_until_ready(process: subprocess.Popen) -> None:
    for line in process.stdout:
        if line.strip() == "ready":
            return
    raise RuntimeError("A checkout's process ended before it was ready; its message is above.")


def compare(other: Path, name: str, dtype: str, batch_size: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every round, by way; the other checkout's model is called "other"."""
    processes = {key: _start(path, name, dtype, str(batch_size)) for key, path in (("other", other), ("this", ROOT))}
    try:
        for process in processes.values():
            _wait_until_ready(process)
        seconds: dict[str, list[float]] = {}
        for _ in range(rounds):
            for key, process in processes.items():
                process.stdin.write("run\n")
                process.stdin.flush()
                for way, value in json.loads(process.stdout.readline()).items():
                    seconds.setdefault("other" if key == "other" else way, []).append(value)
        return seconds
    finally:
        for process in processes.values():
            process.stdin.close()
            process.wait()


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--other", type=Path, required=True, help="folder of another checkout")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    return parser


def main() -> None:
    """Print one table."""
    options = make_parser().parse_args()
    print("| model, dtype | way | median seconds | ratio to the other checkout, round by round: median (min to max) |")
    print("|---|---|---:|---:|", flush=True)
    for name in options.models:
        for dtype in options.dtypes:
            seconds = compare(options.other.resolve(), name, dtype, options.batch_size, options.rounds)
            for way, values in seconds.items():
                ratios = [value / base for value, base in zip(values, seconds["other"], strict=True)]
                spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                print(f"| {name}, {dtype} | {way} | {statistics.median(values):.3f} | {spread} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        _work(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
