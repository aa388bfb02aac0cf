"""What is wrong with a folder of images, said once and completely."""

from collections.abc import Sequence
from dataclasses import dataclass


__all__ = ["DatasetLayoutError", "LayoutProblem"]

_SHOWN = 8


@dataclass(frozen=True)
class LayoutProblem:
    """
    One thing that does not fit.

    Args:
        path (`str`): the file or folder, relative to the dataset's root.
        reason (`str`): what is wrong with it.
        product (`str`, *optional*): the product it belongs to; empty if it concerns all.
    """

    path: str
    reason: str
    product: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class DatasetLayoutError(ValueError):
    """
    A folder does not hold the dataset as expected. The message lists the first problems and their number;
    `problems` has all of them.

    Args:
        where (`str`): dataset, folder and layout, for the message.
        problems (`Sequence[LayoutProblem]`): at least one.
        expected (`str`, *optional*): the layout in words or as a small tree.
        fix (`str`, *optional*): what to do about it.
    """

    def __init__(self, where: str, problems: Sequence[LayoutProblem], expected: str = "", fix: str = ""):
        self.where, self.problems, self.expected, self.fix = where, list(problems), expected, fix
        super().__init__(where, self.problems, expected, fix)  # the arguments travel between processes

    def __str__(self) -> str:
        lines = [f"{self.where}: {count_of(self.problems)}", *listed(self.problems)]
        if self.expected:
            lines += ["Expected:", *("  " + line for line in self.expected.strip("\n").splitlines())]
        if self.fix:
            lines.append(self.fix)
        return "\n".join(lines)


def count_of(problems: Sequence[LayoutProblem]) -> str:
    """`1 problem`, `14 problems, the first 8:`."""
    if len(problems) == 1:
        return "1 problem:"
    return f"{len(problems)} problems" + (f", the first {_SHOWN}:" if len(problems) > _SHOWN else ":")


def listed(problems: Sequence[LayoutProblem]) -> list[str]:
    """The first problems, one line each."""
    return [f"  - {problem}" for problem in problems[:_SHOWN]]
