"""The targets on a GPU: bfloat16, ViT-L/14 at 518 x 518, an H100 or H200 beside its own floor."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .deviation import WITH_GRAPHS
from .ways import EXACT_WAYS, FLOAT8_WAYS


__all__ = ["GOALS", "Goal", "judge"]


@dataclass(frozen=True)
class Goal:
    """
    One target, and the rows that it is about.

    Args:
        title (`str`): what is measured.
        table (`str`): table of the rows.
        value (`str`): key of the value in a row.
        limit (`float`): the target.
        unit (`str`): unit of value and target; `"%"` for a share, `""` for a tiny number.
        applies (`Callable[[dict], bool]`): whether a row of the table is about this target.
        at_least (`bool`): whether values from the target on reach it; else, values up to the target.
        by_all (`bool`): whether all rows must reach it; else, the best one.
    """

    title: str
    table: str
    value: str
    limit: float
    unit: str
    applies: Callable[[dict], bool]
    at_least: bool = False
    by_all: bool = False

    def reached_by(self, value: float) -> bool:
        """Return whether a value reaches the target."""
        return value >= self.limit if self.at_least else value <= self.limit

    def write(self, value: float) -> str:
        """Return a value with its unit."""
        if self.unit == "%":
            return f"{value:.0%}"
        return f"{value:.2f} {self.unit}" if self.unit else f"{value:.1e}"


def _speed(title: str, batch_size: int, value: str, limit: float, ways: tuple[str, ...] = EXACT_WAYS) -> Goal:
    unit = "ms" if value == "ms_per_image" else "x floor"
    return Goal(title, "speed", value, limit, unit, lambda r: r["batch_size"] == batch_size and r["way"] in ways)


GOALS = (
    _speed("one image, with post-processing", 1, "ms_per_image", 4.0),
    _speed("batch of 4, an image", 4, "ms_per_image", 2.3),
    _speed("batch of 16, an image beside the floor", 16, "times_floor", 1.7),
    _speed("batch of 16, an image", 16, "ms_per_image", 2.2),
    _speed("batch of 64, an image beside the floor", 64, "times_floor", 1.7),
    _speed("batch of 16 in float8, an image", 16, "ms_per_image", 1.7, FLOAT8_WAYS),
    Goal(
        "a training step accumulated image by image, beside the step of one batch",
        "training",
        "times_batch",
        1.5,
        "x",
        # Further ways of the same step have longer names
        lambda row: row["way"].endswith("accumulated, 8 x 1"),
    ),
    Goal(
        "files to scores, of the model's own rate",
        "files",
        "share_of_model_rate",
        0.85,
        "%",
        lambda row: "scores only" in row["way"],
        at_least=True,
    ),
    Goal(
        "largest difference of maps with graphs from those without",
        "deviation",
        "map_deviation_max",
        2e-3,
        "",
        lambda row: row["what"].startswith(WITH_GRAPHS),
        by_all=True,
    ),
)


def judge(rows: Sequence[dict]) -> list[dict]:
    """
    Compare rows with the targets.

    Args:
        rows (`Sequence[dict]`): rows with their `table`.

    Returns:
        `list[dict]`: for each target its `goal` and `target`; and, if a row is about it, the value that counts as
        `measured`, its `way`, and whether it `reached` the target.
    """
    judged = []
    for goal in GOALS:
        verdict = {"goal": goal.title, "target": goal.write(goal.limit)}
        about = [row for row in rows if row["table"] == goal.table and goal.value in row and goal.applies(row)]
        if about:
            choose = max if goal.at_least != goal.by_all else min
            chosen = choose(about, key=lambda row: row[goal.value])
            verdict |= {"measured": goal.write(chosen[goal.value]), "way": chosen.get("way") or chosen["what"]}
            verdict["reached"] = goal.reached_by(chosen[goal.value])
        judged.append(verdict)
    return judged
