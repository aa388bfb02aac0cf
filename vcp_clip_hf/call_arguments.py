"""Argument names read from signatures, and the error for an unknown name. Standard library only."""

import difflib
import inspect
from collections.abc import Callable, Iterable


__all__ = ["argument_names", "refuse_unknown"]


def argument_names(function: Callable) -> list[str]:
    """Return the names of the optional arguments of a function, in order, without `**kwargs`."""
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.default is not inspect.Parameter.empty]


def refuse_unknown(given: Iterable[str], known: Iterable[str], owner: str) -> None:
    """
    Raise for the first name that is not known, with the closest known name.

    Args:
        given (`Iterable[str]`): names of the arguments of a call.
        known (`Iterable[str]`): names that are accepted.
        owner (`str`): subject of the message, such as "The anomaly-segmentation pipeline".

    Raises:
        TypeError: a name in `given` is not in `known`.
    """
    known = list(known)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}."
            raise TypeError(f"{owner} has no argument {name!r}; {hint}")
