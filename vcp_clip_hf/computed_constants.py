"""A few computed values by key, for the accelerated inference copy."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch


__all__ = ["ComputedConstants"]

# Number of values that are kept; the oldest is dropped
_MAX_CONSTANTS = 8


class ComputedConstants:
    """
    Values that do not depend on the images, such as the keys and values of prompts, computed at the first request.

    Attributes:
        values (`Mapping`): the present values by key. A change replaces the mapping: code that holds the former
            one keeps its values, also those that are dropped later.
    """

    def __init__(self):
        self.values: Mapping[Hashable, Any] = {}
        self._frozen = False

    def freeze(self) -> None:
        """Refuse other keys from now on."""
        self._frozen = True

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """
        Return the value of a key.

        Args:
            key (`Hashable`): what the value depends on.
            make (`Callable`): computes the value, at the first request.

        Raises:
            ValueError: a new key after `freeze`.
        """
        value = self.values.get(key)
        if value is None:
            if self._frozen:
                raise ValueError(
                    f"This copy is frozen for {list(self.values)} and was called with {key}: another image size or"
                    " other prompts. Use the model that it was made from."
                )
            value = make()
            if not torch.compiler.is_compiling() and _is_computed():  # a traced value is not a tensor
                # Replaced as a whole: another thread may read the dictionary meanwhile
                values = {**self.values, key: value}
                self.values = dict(list(values.items())[-_MAX_CONSTANTS:])
        return value

    def clear(self) -> None:
        """Drop all values."""
        self.values = {}


def _is_computed() -> bool:
    """Wait for a GPU, because other threads may read a value in streams of their own; `False` during a capture."""
    if not torch.cuda.is_initialized():
        return True
    if torch.cuda.is_current_stream_capturing():  # the graph computes the value in every replay
        return False
    torch.cuda.current_stream().synchronize()
    return True
