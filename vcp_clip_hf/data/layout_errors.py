"""The error that lists everything that is wrong with a dataset's folder."""

from collections.abc import Sequence
from dataclasses import dataclass


__all__ = ["DatasetLayoutError", "LayoutProblem", "count_of", "listed"]

_SHOWN = 8


@dataclass(frozen=True)
class LayoutProblem:
    """
    One file or folder that cannot be used.

    Args:
        path (`str`): file or folder, relative to the dataset's root.
        reason (`str`): reason why it cannot be used.
        product (`str`, *optional*): product that it belongs to; "" if it concerns all.
    """

    path: str
    reason: str
    product: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class DatasetLayoutError(ValueError):
    """
    Raised if a folder does not hold the dataset as expected. The message has the number of problems and the first of
    them; `problems` has all.

    Args:
        where (`str`): dataset, folder and layout, for the message.
        problems (`Sequence[LayoutProblem]`): one or more problems.
        expected (`str`, *optional*): expected layout, in words or as a small tree.
        fix (`str`, *optional*): advice how to solve the problems.
    """

    def __init__(self, where: str, problems: Sequence[LayoutProblem], expected: str = "", fix: str = ""):
        self.where, self.problems, self.expected, self.fix = where, list(problems), expected, fix
        super().__init__(where, self.problems, expected, fix)  # so that the error can be pickled

    def __str__(self) -> str:
        lines = [f"{self.where}: {count_of(self.problems)}", *listed(self.problems)]
        if self.expected:
            lines += ["Expected:", *("  " + line for line in self.expected.strip("\n").splitlines())]
        if self.fix:
            lines.append(self.fix)
        return "\n".join(lines)


def count_of(problems: Sequence[LayoutProblem]) -> str:
    """Return `1 problem:` or `14 problems, the first 8:`."""
    if len(problems) == 1:
        return "1 problem:"
    return f"{len(problems)} problems" + (f", the first {_SHOWN}:" if len(problems) > _SHOWN else ":")


def listed(problems: Sequence[LayoutProblem]) -> list[str]:
    """Return the first problems, one line each."""
    return [f"  - {problem}" for problem in problems[:_SHOWN]]
