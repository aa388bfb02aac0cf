"""Rows of the GPU benchmark as lines of the terminal, and as tables in Markdown."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vcp_clip_hf.markdown_text import as_code, escaped, table

from ..inference import PARTS
from ..reports import line_of, milliseconds, to_markdown
from .kernels import KINDS, REST


__all__ = ["MISSING", "line_of_message", "report_in_markdown"]

Row = Mapping[str, Any]

# Keys of messages about what was not measured, or not as intended
MISSING = {"left_out", "failed", "warned"}


@dataclass(frozen=True)
class Column:
    """
    A column of a table.

    Args:
        key (`str`): key of the value in a row, or `"group.key"` for a value of a group.
        title (`str`): title of the column.
        write (`Callable`): value -> text.
        free (`bool`): whether values are texts with characters that Markdown reads.
    """

    key: str
    title: str
    write: Callable[[Any], str] = str
    free: bool = False

    def value(self, row: Row) -> Any:
        """Return the value of a row, or `None` without one."""
        group, _, key = self.key.rpartition(".")
        return (row.get(group, {}) if group else row).get(key)

    def cell(self, row: Row) -> str:
        """Return the value of a row in Markdown."""
        value = self.value(row)
        if value is None:
            return ""
        return escaped(value) if self.free else self.write(value)


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


_BATCH = Column("batch_size", "batch")
_PER_IMAGE = Column("ms_per_image", "ms per image", milliseconds)

GOALS_COLUMNS = (
    Column("goal", "goal"),
    Column("target", "target"),
    Column("measured", "measured"),
    Column("way", "way"),
    Column("reached", "reached", _yes),
)
TABLES = {
    "equality": (
        "Checks of results on this device",
        (
            Column("check", "check", free=True),
            Column("passed", "passed", _yes),
            Column("largest_difference", "largest difference", _tiny),
            Column("why", "why", free=True),
        ),
    ),
    "speed": (
        "Milliseconds of an image",
        (
            _BATCH,
            Column("way", "way"),
            Column("encoder_ms", "encoder alone", milliseconds),
            Column("forward_ms", "whole forward", milliseconds),
            Column("ms_per_image", "with post-processing", milliseconds),
            Column("times_floor", "x floor", _times),
            Column("times_accelerated", "x accelerated", _times),
            Column("working_memory_bytes", "MiB beyond the weights", _mib),
        ),
    ),
    "kernels": (
        "Milliseconds of an image by kind of kernel, accelerated without graphs",
        (
            _BATCH,
            _PER_IMAGE,
            Column("kernel_ms_per_image", "all kernels", _times),
            *(Column(f"kinds_ms_per_image.{kind}", kind, "{:.3f}".format) for kind in (*KINDS, REST)),
            Column("kernels", "number of kernels"),
        ),
    ),
    "parts": (
        "Share of the parts, accelerated without graphs",
        (_BATCH, _PER_IMAGE, *(Column(f"shares.{part}", part, _share) for part in PARTS)),
    ),
    "deviation": (
        "Difference of the maps",
        (
            Column("what", "maps"),
            Column("equal", "bit-equal", _yes),
            Column("map_deviation_max", "at most", _tiny),
            Column("map_deviation_mean", "on average", _tiny),
        ),
    ),
    "graphs": (
        "Cost of a CUDA graph",
        (_BATCH, Column("capture_seconds", "seconds to capture", _times), Column("graph_bytes", "MiB", _mib)),
    ),
}
# Rows of other benchmarks, which have their own lines and tables
OTHER_TABLES = {"training": "Training", "files": "Files to results"}


def line_of_message(message: Row) -> str:
    """Return a row or another message of a section as text."""
    if "left_out" in message:
        return f"left out: {message['left_out']} ({message['why']})"
    if "failed" in message:
        return f"failed: {message['failed']} ({message['why']})"
    if "warned" in message:
        return f"warned: {message['warned']} ({message['why']})"
    if "machine" in message:
        return _line_of_machine(message["machine"])
    name = message["table"]
    if name in OTHER_TABLES:
        return f"{name} | {line_of(message)}"
    _, columns = TABLES[name]
    values = {column: column.value(message) for column in columns}
    texts = [f"{column.title}: {column.write(value)}" for column, value in values.items() if value is not None]
    return " | ".join([name, *texts])


def _line_of_machine(facts: Row) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)


def report_in_markdown(
    messages: Sequence[Row], goals: Sequence[Row], command: str, date: str, subject: str = "a model"
) -> str:
    """
    Return the whole report, for BENCHMARKS.md.

    Args:
        messages (`Sequence[Mapping]`): rows and other messages, in their order.
        goals (`Sequence[Mapping]`): targets and what was measured; none if the targets are not for this run.
        command (`str`): command that measured them.
        date (`str`): date of the measurement.
        subject (`str`, *optional*): what was measured: model, size of the images and dtype.
    """
    machines = [each["machine"] for each in messages if "machine" in each]
    facts = _line_of_machine(machines[0]) if machines else "an unknown machine"
    parts = [f"{escaped(subject)}, measured on {date} on {escaped(facts)}: {as_code(command)}"]
    parts.append(
        _titled("Goals", _table(goals, GOALS_COLUMNS)) if goals else "The goals are for another model or device."
    )
    for name in (*TABLES, *OTHER_TABLES):
        rows = [dict(each) for each in messages if each.get("table") == name]
        if rows:
            parts += _section(name, rows)
    missing = [f"- {escaped(line_of_message(each))}" for each in messages if MISSING & each.keys()]
    return "\n\n".join([*parts, *(["\n".join(missing)] if missing else [])]) + "\n"


def _section(name: str, rows: list[dict]) -> list[str]:
    """Return the paragraphs of one table."""
    if name in OTHER_TABLES:
        return [_titled(OTHER_TABLES[name], to_markdown(rows).strip())]
    title, columns = TABLES[name]
    if name == "equality":
        failed = [row for row in rows if not row["passed"]]
        largest = max((row.get("largest_difference", 0.0) for row in rows), default=0.0)
        passed = f"{len(rows) - len(failed)} of {len(rows)} passed; largest difference {_tiny(largest)}."
        return [f"**{title}**: {passed}", *([_table(failed, columns)] if failed else [])]
    if name == "kernels":
        names = dict.fromkeys(kernel for row in rows for kernel in row["largest_of_the_rest"])
        rest = [f"Largest kernels of the rest: {', '.join(map(as_code, names))}."] if names else []
        return [_titled(title, _turned_table(rows, columns)), *rest]
    paragraphs = [_titled(title, _table(rows, columns))]
    if name == "speed":
        rates = sorted(row["product_tflops"] for row in rows)
        paragraphs.append(
            "Floor: the image encoder's products and convolutions at the rate of a large matrix product in the same"
            f" run, {rates[0]:.4g} to {rates[-1]:.4g} TFLOP/s; {rows[0]['floor_ms_per_image']:.3g} ms an image."
        )
    return paragraphs


def _titled(title: str, text: str) -> str:
    return f"**{title}**\n\n{text}"


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Return a table of the columns that at least one row has a value for."""
    shown = [column for column in columns if any(column.value(row) is not None for row in rows)]
    cells = [[column.cell(row) for column in shown] for row in rows]
    align = "".join("l" if any(isinstance(column.value(row), str) for row in rows) else "r" for column in shown)
    return table([column.title for column in shown], cells, align)


def _turned_table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Return a table with a line for each column, and a column for each row."""
    first, *others = columns
    header = [first.title, *(first.cell(row) for row in rows)]
    cells = [[column.title, *(column.cell(row) for row in rows)] for column in others]
    return table(header, cells, "l" + "r" * len(rows))
