"""A watch with a tiny model, in this process or in another one that can be killed."""

import os
import time
from collections.abc import Callable
from functools import lru_cache
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.common import tiny_model, tiny_tokenizer
from tests.processes import fork_context
from vcp_clip_hf import AnomalySegmentationPipeline, VCPCLIPImageProcessor
from vcp_clip_hf.cli import main
from vcp_clip_hf.prediction_records import iterate_records
from vcp_clip_hf.watching import WatchSummary, WatchTiming, watch_folder
from vcp_clip_hf.webhook import Webhook


QUICK = WatchTiming(settle_seconds=0.1, give_up_seconds=0.4, poll_seconds=0.3, retry_seconds=0.1)
QUICK_RETRIES = {"timeout_seconds": 0.5, "first_wait_seconds": 0.05, "longest_wait_seconds": 0.2}


class StoppedError(Exception):
    """Ends a watch in this process."""


@lru_cache
def tiny_pipe() -> AnomalySegmentationPipeline:
    torch.manual_seed(0)
    model = tiny_model()
    processor = VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=2.0, threshold=0.5)
    return AnomalySegmentationPipeline(
        model=model, image_processor=processor, tokenizer=tiny_tokenizer(), device="cpu"
    )


def save_image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def watch_once(folder: Path, output: Path, **options) -> WatchSummary:
    return watch_folder(tiny_pipe(), folder, output, once=True, **{"timing": QUICK, **options})


def watch_until(done: Callable[[WatchSummary], bool], folder: Path, output: Path, **options) -> WatchSummary:
    """Watch until the counts are as expected; fail after half a minute."""
    end, last = time.monotonic() + 30, []

    def report(summary: WatchSummary) -> None:
        last[:] = [summary]
        if done(summary):
            raise StoppedError
        assert time.monotonic() < end, summary

    try:
        watch_folder(tiny_pipe(), folder, output, report=report, **{"timing": QUICK, **options})
    except StoppedError:
        pass
    return last[0]


def records(output: Path) -> list[dict]:
    path = output / "predictions.jsonl"
    return [record for _, record in iterate_records(path)] if path.exists() else []


def names(output: Path) -> list[str]:
    return [Path(record["image"]).name for record in records(output)]


def start_process(function: Callable[..., None], *arguments: object) -> BaseProcess:
    """Start a process that has imported everything, so that it works within a fraction of a second."""
    process = fork_context().Process(target=function, args=arguments)
    process.start()
    return process


def watch_and_post(folder: Path, output: Path, url: str, said: Path) -> None:
    """Watch, move and post."""
    _write_to(said)
    webhook = Webhook(url, **QUICK_RETRIES)
    watch_folder(tiny_pipe(), folder, output, timing=QUICK, batch_size=4, webhook=webhook, when_done="move")


def run_command(arguments: list[str], said: Path) -> None:
    """Run `vcp-clip`."""
    _write_to(said)
    main(arguments)


def _write_to(path: Path) -> None:
    """Redirect all output of this process to a file."""
    with open(path, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def watch_as_nobody(folder: Path, output: Path) -> None:
    """Watch once, without root's right to read everything."""
    tiny_pipe()
    _ = os.getuid() or os.setuid(65534)
    watch_once(folder, output)
