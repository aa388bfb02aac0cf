"""Rows of the GPU benchmark as lines of the terminal, and as tables in Markdown."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vcp_clip_hf.markdown_text import as_code, escaped, table

from ..inference import PARTS
from ..reports import line_of, to_markdown
from .goals import judge
from .kernels import KINDS, REST


__all__ = ["line_of_message", "report_in_markdown"]


@dataclass(frozen=True)
class Column:
    """
    A column of a table.

    Args:
        key (`str`): key of the value in a row, or `"group.key"` for a value of a group.
        title (`str`): title of the column.
        write (`Callable`): value -> text.
    """

    key: str
    title: str
    write: Callable[[Any], str] = str

    def text(self, row: Mapping[str, Any]) -> str | None:
        """Return the text of a row's value, or `None` without one."""
        group, _, key = self.key.rpartition(".")
        value = (row.get(group, {}) if group else row).get(key)
        return None if value is None else self.write(value)


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _mib(value: float) -> str:
    return f"{value / 2**20:.0f}"


def _tiny(value: float) -> str:
    return f"{value:.1e}"


def _times(value: float) -> str:
    return f"{value:.2f}"


def _share(value: float) -> str:
    return f"{value:.1%}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


TABLES = {
    "speed": (
        "Milliseconds of an image",
        (
            Column("batch_size", "batch"),
            Column("way", "way"),
            Column("encoder_ms", "encoder alone, ms", _ms),
            Column("forward_ms", "whole forward, ms", _ms),
            Column("ms_per_image", "with post-processing, ms", _ms),
            Column("times_floor", "x floor", _times),
            Column("times_accelerated", "x accelerated", _times),
            Column("working_memory_bytes", "MiB beyond the weights", _mib),
        ),
    ),
    "kernels": (
        "Milliseconds of an image by kind of kernel, accelerated without graphs",
        (
            Column("batch_size", "batch"),
            Column("ms_per_image", "whole", _ms),
            Column("kernel_ms_per_image", "all kernels", _ms),
            Column("kernels", "number of kernels"),
            *(Column(f"kinds_ms_per_image.{kind}", kind, "{:.3f}".format) for kind in (*KINDS, REST)),
        ),
    ),
    "parts": (
        "Share of the parts, accelerated without graphs",
        (
            Column("batch_size", "batch"),
            Column("ms_per_image", "ms per image", _ms),
            *(Column(f"shares.{part}", part, _share) for part in PARTS),
        ),
    ),
    "deviation": (
        "Difference of the maps",
        (
            Column("what", "what"),
            Column("equal", "bit-equal", _yes),
            Column("map_deviation_max", "at most", _tiny),
            Column("map_deviation_mean", "on average", _tiny),
        ),
    ),
    "graphs": (
        "Cost of a CUDA graph",
        (
            Column("batch_size", "batch"),
            Column("capture_seconds", "s to capture", _times),
            Column("graph_bytes", "MiB", _mib),
        ),
    ),
    "equality": (
        "Checks of results on this device",
        (
            Column("check", "check"),
            Column("passed", "passed", _yes),
            Column("largest_difference", "largest difference", _tiny),
            Column("why", "why"),
        ),
    ),
}
# Rows of other benchmarks, which have their own tables
OTHER_TABLES = {"training": "Training", "files": "Files to results"}


def line_of_message(message: Mapping[str, Any]) -> str:
    """Return a row or another message of a section as text."""
    if "left_out" in message:
        return f"left out: {message['left_out']} ({message['why']})"
    if "failed" in message:
        return f"failed: {message['failed']} ({message['why']})"
    if "machine" in message:
        return _line_of_machine(message["machine"])
    name = message["table"]
    if name in OTHER_TABLES:
        return f"{name} | {line_of(message)}"
    _, columns = TABLES[name]
    cells = [(column.title, column.text(message)) for column in columns]
    return f"{name} | " + ", ".join(f"{title} {text}" for title, text in cells if text is not None)


def _line_of_machine(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)


def report_in_markdown(messages: Sequence[Mapping[str, Any]], command: str, date: str) -> str:
    """
    Return the whole report, for BENCHMARKS.md.

    Args:
        messages (`Sequence[Mapping]`): rows and other messages, in their order.
        command (`str`): command that measured them.
        date (`str`): date of the measurement.
    """
    rows = [dict(each) for each in messages if "table" in each]
    machines = [each["machine"] for each in messages if "machine" in each]
    facts = _line_of_machine(machines[0]) if machines else "an unknown machine"
    parts = [f"Measured on {date} on {escaped(facts)}: {as_code(command)}", _goals(rows)]
    for name, (title, columns) in TABLES.items():
        own = [row for row in rows if row["table"] == name]
        if own:
            parts.append(f"**{title}**\n\n{_table(own, columns)}")
            parts += _notes(name, own)
    for name, title in OTHER_TABLES.items():
        own = [row for row in rows if row["table"] == name]
        if own:
            parts.append(f"**{title}**\n\n{to_markdown(own).strip()}")
    missing = [f"- {escaped(line_of_message(each))}" for each in messages if {"left_out", "failed"} & each.keys()]
    return "\n\n".join([*parts, *(["\n".join(missing)] if missing else [])]) + "\n"


def _goals(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = (
        Column("goal", "goal"),
        Column("target", "target"),
        Column("measured", "measured"),
        Column("way", "way"),
        Column("reached", "reached", _yes),
    )
    return f"**Goals** (ViT-L/14 at 518 in bfloat16 on an H100 or H200)\n\n{_table(judge(rows), columns)}"


def _notes(name: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return sentences after a table."""
    if name == "speed":
        rates = sorted(row["product_tflops"] for row in rows)
        return [
            f"Floor: the image encoder's products at the rate of a large matrix product in the same run,"
            f" {rates[0]:.4g} to {rates[-1]:.4g} TFLOP/s; {rows[0]['floor_ms_per_image']:.3g} ms an image."
        ]
    if name == "kernels":
        names = [kernel for row in rows for kernel in row["largest_of_the_rest"]]
        return [f"Largest kernels of the rest: {', '.join(map(as_code, dict.fromkeys(names)))}."] if names else []
    return []


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    """Return a table of the columns that at least one row has."""
    texts = {column: [column.text(row) for row in rows] for column in columns}
    shown = [column for column in columns if any(text is not None for text in texts[column])]
    numbers = [all(_is_number(text) for text in texts[column]) for column in shown]
    cells = [[escaped(texts[column][index] or "") for column in shown] for index in range(len(rows))]
    return table([column.title for column in shown], cells, "".join("r" if each else "l" for each in numbers))


def _is_number(text: str | None) -> bool:
    return text is None or text[:1].isdigit()
