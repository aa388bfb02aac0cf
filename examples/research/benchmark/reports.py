"""Rows of a benchmark as lines of the terminal and as a Markdown table, and facts about the machine."""

import contextlib
import os
import platform
from pathlib import Path

import torch
import transformers


__all__ = ["machine", "report", "to_markdown"]

# Key of a row -> column title, and how its value is written
_COLUMNS = {
    "dtype": ("dtype", str),
    "batch_size": ("batch", str),
    "way": ("way", str),
    "ms_per_image": ("ms per image", "{:.1f}".format),
    "images_per_second": ("images/s", "{:.2f}".format),
    "times_floor": ("x floor", "{:.2f}".format),
    "times_faster_than_reference": ("x faster than the reference", "{:.2f}".format),
    "share_of_model_rate": ("of the model's rate", "{:.0%}".format),
    "working_memory_bytes": ("MiB beyond weights", lambda value: f"{value / 2**20:.0f}"),
}


def report(row: dict) -> None:
    """Print one row."""
    line = f"{row['device']} | {row['dtype']} | batch {row['batch_size']} | {row['way']}: {row['ms_per_image']:.1f} ms"
    line += f" per image, {row['images_per_second']:.2f} images/s"
    if "times_floor" in row:
        line += f", {row['times_floor']:.2f} x floor ({row['floor_ms_per_image']:.1f} ms)"
    if "times_faster_than_reference" in row:
        line += f", {row['times_faster_than_reference']:.2f} x faster than the reference"
    if "working_memory_bytes" in row:
        line += f", {row['working_memory_bytes'] / 2**20:.0f} MiB beyond the weights"
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
    print(line, flush=True)


def to_markdown(rows: list[dict]) -> str:
    """Return a table of the columns that at least one row has."""
    columns = {key: column for key, column in _COLUMNS.items() if any(key in row for row in rows)}
    lines = ["| " + " | ".join(title for title, _ in columns.values()) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [write(row[key]) if key in row else "" for key, (_, write) in columns.items()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def machine() -> dict:
    """Return processor, cores, GPU and versions."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
