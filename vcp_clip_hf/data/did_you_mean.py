"""Suggest a known name in error messages about an unknown one."""

import difflib
from collections.abc import Sequence


__all__ = ["did_you_mean"]


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return `did you mean 'bottle'? Known: ...`; the question is left out if no known name is similar."""
    folded = {other.casefold(): other for other in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    question = f"did you mean {folded[close[0]]!r}? " if close else ""
    return f"{question}Known: {', '.join(known)}."
