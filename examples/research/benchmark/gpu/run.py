"""The run of all sections: rows on the terminal and on disk as they come, and the report at the end."""

import argparse
import datetime
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tests.common import tiny_config
from vcp_clip_hf import VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.atomic_write import atomic_file

from ..setting import DEFAULT_CONFIG
from .goals import judge
from .sections import measure_sections, sections_of
from .supervisor import supervise
from .tables import MISSING, line_of_message, report_in_markdown


__all__ = ["QUICK_SECONDS", "SECONDS", "benchmark_gpu", "measured_options"]

# Seconds from the first section to the last, so that the whole command takes less than 3 minutes, or 1 with --quick
SECONDS, QUICK_SECONDS = 165, 52


class _Report:
    """
    Messages of the sections, printed and written as they come.

    Args:
        command (`str`): the command that the report names.
        has_goals (`bool`): whether the targets are for this run.
        folder (`Path`, *optional*): folder for benchmark.jsonl, benchmark.json and benchmark.md.
    """

    def __init__(self, command: str, has_goals: bool, folder: Path | None):
        self.command = command
        self.has_goals = has_goals
        self.folder = folder
        self.messages: list[dict[str, Any]] = []
        self.date = datetime.date.today().isoformat()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "benchmark.jsonl").write_text("")

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of all tables."""
        return [each for each in self.messages if "table" in each]

    @property
    def goals(self) -> list[dict[str, Any]]:
        """Return the targets beside what was measured so far; none if they are not for this run."""
        return judge(self.rows) if self.has_goals else []

    def receive(self, message: dict[str, Any]) -> None:
        """Print and write one message."""
        if "machine" in message and any("machine" in each for each in self.messages):
            return  # of a process that took over
        self.messages.append(message)
        print(line_of_message(message), flush=True)
        if self.folder is not None:
            with (self.folder / "benchmark.jsonl").open("a") as lines:
                lines.write(json.dumps(message) + "\n")
            self.write()

    def markdown(self) -> str:
        """Return the report of the messages so far."""
        return report_in_markdown(self.messages, self.goals, self.command, self.date)

    def write(self) -> None:
        """Write the tables of the messages so far."""
        content = {
            "command": self.command,
            "date": self.date,
            "machine": next((each["machine"] for each in self.messages if "machine" in each), None),
            "goals": self.goals,
            "rows": self.rows,
            "missing": [each for each in self.messages if MISSING & each.keys()],
        }
        for name, text in (
            ("benchmark.json", json.dumps(content, indent=2) + "\n"),
            ("benchmark.md", self.markdown()),
        ):
            with atomic_file(self.folder / name) as path:
                path.write_text(text)


def benchmark_gpu(options: argparse.Namespace, command: str) -> list[dict]:
    """
    Measure all sections on one device, print and write them; return the rows.

    Args:
        options (`argparse.Namespace`): command line.
        command (`str`): the command that the report names.
    """
    seconds = QUICK_SECONDS if options.quick else SECONDS
    end = time.time() + (seconds if options.seconds is None else options.seconds)
    device = torch.device(options.devices[0])
    # The targets are for this model, size and precision
    true_size = device.type == "cuda" and not (options.model or options.model_config or options.image_size)
    report = _Report(command, true_size and options.dtypes in (None, ["bfloat16"]), options.output_dir)
    with tempfile.TemporaryDirectory() as folder:
        arguments = [measured_options(options, folder)]
        supervise(measure_sections, arguments, sections_of(options), end, report.receive)
    print("\n" + report.markdown(), flush=True)
    return report.rows


def measured_options(options: argparse.Namespace, folder: str) -> argparse.Namespace:
    """
    Return a command line with what it leaves open: on a CPU, a tiny model and small batches.

    Args:
        options (`argparse.Namespace`): command line.
        folder (`str`): folder for the tiny model.
    """
    device = torch.device(options.devices[0])
    on_gpu = device.type == "cuda"
    sizes = ([1, 16] if options.quick else [1, 4, 16, 64]) if on_gpu else [1, 4]
    chosen: dict[str, Any] = {"batch_sizes": options.batch_sizes or sizes, "dtypes": options.dtypes or ["bfloat16"]}
    chosen |= {"weights_on": str(device)}
    if on_gpu:
        chosen["images"] = options.images or (192 if options.quick else 1024)
    else:
        chosen |= {"images": 4, "file_size": 64}
    if options.model is None and options.model_config is None:
        # Configurations with large towers take a CPU minutes
        chosen |= {"model_config": str(DEFAULT_CONFIG)} if on_gpu else {"model": _save_tiny_model(folder)}
    return argparse.Namespace(**{**vars(options), **chosen})


def _save_tiny_model(folder: str) -> str:
    """Save a tiny model with random weights, and return its folder."""
    torch.manual_seed(0)
    model = VCPCLIPModel(tiny_config())
    model.save_pretrained(folder)
    VCPCLIPImageProcessor.for_model(model.config).save_pretrained(folder)
    return folder
