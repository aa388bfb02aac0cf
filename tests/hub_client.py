"""Functions of the push tests that run in another process: huggingface_hub reads its settings once, on import."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch


__all__ = [
    "command",
    "environment",
    "example",
    "online",
    "push",
    "push_from_memory",
    "push_model_only",
    "push_new",
    "push_records",
    "push_references",
    "run_fresh",
]

ROOT = Path(__file__).parent.parent


def environment(url: str, home: Path, token: str | None = None) -> dict[str, str]:
    """Return the environment of a client of the server at `url`: an empty cache, and no login."""
    values = {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return {**kept, **values, **({} if token is None else {"HF_TOKEN": token})}


@contextmanager
def online(url: str, home: Path) -> Iterator[ProcessPoolExecutor]:
    """Yield a process that can talk to the server."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        with mock.patch.dict(os.environ, environment(url, home), clear=True):
            executor.submit(os.getpid).result()  # the process starts here, with this environment
        yield executor


def run_fresh(program: str, url: str, home: Path) -> str:
    """Run a program in a new process with its own cache, outside of this repository; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=home.parent,
        env=environment(url, home),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def push(folder: Path, repo_id: str, **options: Any) -> str:
    """Push a checkpoint's folder; return the commit."""
    from vcp_clip_hf.hub import push_checkpoint

    torch.set_num_threads(1)
    return push_checkpoint(str(folder), repo_id, **options).oid


def push_from_memory(folder: Path, repo_id: str, **options: Any) -> str:
    """Push a model in memory; return the commit."""
    from vcp_clip_hf import VCPCLIPModel
    from vcp_clip_hf.hub import push_checkpoint

    torch.set_num_threads(1)
    return push_checkpoint(VCPCLIPModel.from_pretrained(folder), repo_id, **options).oid


def push_references(
    folder: Path | str, repo_id: str, images: list | None, calibrate: bool = True, **options: Any
) -> str:
    """Push a pipeline, with `images` as its references or none; return the commit."""
    from transformers import pipeline

    import vcp_clip_hf  # noqa: F401 (registers the task)

    torch.set_num_threads(1)
    pipe = pipeline("anomaly-segmentation", model=str(folder))
    pipe.set_references(images)
    if images is not None and calibrate:
        pipe.calibrate(images, false_alarm_rate=0.3)
    return pipe.push_to_hub(repo_id, **options).oid


def push_model_only(folder: Path, repo_id: str, **options: Any) -> str:
    """Call the model's own `push_to_hub`, which is transformers'; return its result."""
    from vcp_clip_hf import VCPCLIPModel

    torch.set_num_threads(1)
    return VCPCLIPModel.from_pretrained(folder).push_to_hub(repo_id, **options)


def command(*arguments: str, token: str) -> str:
    """Run `vcp-clip ...`; return what it prints."""
    from vcp_clip_hf.cli import main

    return _printed(main, list(arguments), token)


def example(repo_id: str, folder: Path, token: str) -> str:
    """Run `python examples/push_to_hub.py`; return its output."""
    from examples.push_to_hub import main

    return _printed(lambda: main(repo_id, str(folder)), None, token)


def _printed(main, arguments: list[str] | None, token: str) -> str:
    torch.set_num_threads(1)
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit), mock.patch.dict(os.environ, {"HF_TOKEN": token}):
        main(*([] if arguments is None else [arguments]))
    return printed.getvalue()


def push_new(repo_id: str, **options: Any) -> str:
    """Push a new model that was never saved; return the commit."""
    from tests.common import tiny_model
    from vcp_clip_hf.hub import push_checkpoint

    torch.manual_seed(1)
    return push_checkpoint(tiny_model(), repo_id, **options).oid


def push_records(repo_id: str, **options: Any) -> str:
    """Push the generated records of the training tests; return the commit."""
    from tests.training_run import make_records
    from vcp_clip_hf.hub import push_dataset

    records = make_records()
    return push_dataset(
        {"train": records.select(range(16)), "test": records.select(range(16, 24))}, repo_id, **options
    ).oid
