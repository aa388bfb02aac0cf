"""Rows of a benchmark as lines of the terminal and as a Markdown table, and facts about the machine."""

import contextlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

import torch
import transformers

from vcp_clip_hf import __version__


__all__ = ["line_of", "machine", "milliseconds", "report", "reported_to", "to_markdown"]


def milliseconds(value: float) -> str:
    """Return milliseconds as text: two decimals below 10, the range of a GPU, else one."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


# Key of a row -> column title, and how its value is written
_COLUMNS = {
    "dtype": ("dtype", str),
    "batch_size": ("batch", str),
    "way": ("way", str),
    "ms_per_image": ("ms per image", milliseconds),
    "images_per_second": ("images/s", "{:.2f}".format),
    "times_floor": ("x floor", "{:.2f}".format),
    "times_faster_than_reference": ("x faster than the reference", "{:.2f}".format),
    "times_batch": ("x one batch", "{:.2f}".format),
    "share_of_model_rate": ("of the model's rate", "{:.0%}".format),
    "working_memory_bytes": ("MiB beyond weights", lambda value: f"{value / 2**20:.0f}"),
    "operator_calls": ("operators called", str),
    "waits": ("waits for the device", str),
}


def report(row: dict) -> None:
    """Print one row, or hand it to the function of `reported_to`."""
    _receiver.get()(row)


@contextlib.contextmanager
def reported_to(receiver: Callable[[dict], None]) -> Iterator[None]:
    """Hand the rows of `report` to `receiver` within the block, instead of printing them."""
    token = _receiver.set(receiver)
    try:
        yield
    finally:
        _receiver.reset(token)


def line_of(row: dict) -> str:
    """Return one row as text, with an indented line for each group of further values."""
    line = f"{row['device']} | {row['dtype']} | batch {row['batch_size']} | {row['way']}:"
    line += f" {milliseconds(row['ms_per_image'])} ms per image, {row['images_per_second']:.2f} images/s"
    if "times_floor" in row:
        line += f", {row['times_floor']:.2f} x floor ({milliseconds(row['floor_ms_per_image'])} ms)"
    if "times_faster_than_reference" in row:
        line += f", {row['times_faster_than_reference']:.2f} x faster than the reference"
    if "times_batch" in row:
        line += f", {row['times_batch']:.2f} x one batch"
    if "working_memory_bytes" in row:
        line += f", {row['working_memory_bytes'] / 2**20:.0f} MiB beyond the weights"
    if "operator_calls" in row:
        line += f", {row['operator_calls']} operators called"
    if "waits" in row:
        line += f", {row['waits']} waits for the device"
    if "share_of_model_rate" in row:
        line += f", {row['share_of_model_rate']:.0%} of the model's rate"
    if "stages_ms_per_image" in row:
        for place, steps in row["stages_ms_per_image"].items():
            line += f"\n    {place}: " + ", ".join(f"{step} {spent:.2f}" for step, spent in steps.items()) + " ms"
    if "shares" in row:
        line += "\n    " + ", ".join(f"{part} {share:.2%}" for part, share in row["shares"].items())
    if "map_deviation_max" in row:
        line += f"\n    map differs from float32 by {row['map_deviation_max']:.1e} at most,"
        line += f" {row['map_deviation_mean']:.1e} on average"
    return line


def _print_row(row: dict) -> None:
    print(line_of(row), flush=True)


_receiver: ContextVar[Callable[[dict], None]] = ContextVar("receiver", default=_print_row)


def to_markdown(rows: list[dict]) -> str:
    """Return a table of the columns that at least one row has."""
    columns = {key: column for key, column in _COLUMNS.items() if any(key in row for row in rows)}
    lines = ["| " + " | ".join(title for title, _ in columns.values()) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [write(row[key]) if key in row else "" for key, (_, write) in columns.items()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def machine() -> dict:
    """Return processor, cores, GPU, driver and versions; what a machine lacks is `None`."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "vcp_clip_hf": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _driver() -> str | None:
    """Return the version of NVIDIA's driver, which PyTorch does not know."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.split()
        return answer[0] if answer else None
    return None
