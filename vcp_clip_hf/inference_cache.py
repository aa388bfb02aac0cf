"""What does not depend on the image, kept between forward passes, and never used once it is out of date."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch


__all__ = ["FrozenCache", "InferenceCache"]


class InferenceCache:
    """
    Values made from parameters, one for each name.

    A value is used again only with the same key and with the very same parameters, unchanged: PyTorch counts every
    in-place change of a tensor, and the parameters themselves are held, so that no other can take their place. Only
    changes through `.data` escape that count; after one, call `clear`.
    """

    def __init__(self):
        self._entries: dict[str, tuple[Hashable, list[torch.Tensor], list[int], Any]] = {}

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def frozen(self) -> "FrozenCache":
        """What is kept now, for good."""
        return FrozenCache({name: (key, value) for name, (key, _, _, value) in self._entries.items()})

    @staticmethod
    def usable() -> bool:
        """
        Whether values may be kept now: not while gradients are recorded, which would end at a kept value, and not in
        a graph that is being compiled or exported, which computes them as constants of its own.
        """
        return not torch.is_grad_enabled() and not torch.compiler.is_compiling()

    def get(self, name: str, key: Hashable, parameters: Sequence[torch.Tensor], make: Callable[[], Any]) -> Any:
        """
        The value `name`, made by `make()` if there is none for this key and these parameters as they are now.

        Args:
            name (`str`): of the value; a newer one replaces it.
            key (hashable): everything else it depends on: sizes, token ids, device.
            parameters (`Sequence[torch.Tensor]`): everything it is computed from.
            make (callable): computes it.
        """
        if any(parameter.is_inference() for parameter in parameters):
            return make()  # their changes are not counted
        versions = [parameter._version for parameter in parameters]
        entry = self._entries.get(name)
        if entry is not None:
            known_key, known_parameters, known_versions, value = entry
            if (
                known_key == key
                and known_versions == versions
                and len(known_parameters) == len(parameters)
                and all(ours is theirs for ours, theirs in zip(known_parameters, parameters, strict=True))
            ):
                return value
        # made as ordinary tensors also inside inference_mode, so that they can be used outside of it
        with torch.inference_mode(False), torch.no_grad():
            value = make()
        self._entries[name] = (key, list(parameters), versions, value)
        return value

    def __deepcopy__(self, memo: dict) -> "InferenceCache":
        return InferenceCache()

    def __getstate__(self) -> dict:
        return {"_entries": {}}


class FrozenCache(InferenceCache):
    """
    The values of a model whose parameters never change again, used in exported graphs too: they become constants.

    Args:
        values (`dict`): for each name, the key it was made for and the value.
    """

    def __init__(self, values: dict[str, tuple[Hashable, Any]]):
        super().__init__()
        self._values = dict(values)

    def clear(self) -> None:
        """Nothing is forgotten: nothing can be out of date."""

    @staticmethod
    def usable() -> bool:
        """Always."""
        return True

    def get(self, name: str, key: Hashable, parameters: Sequence[torch.Tensor], make: Callable[[], Any]) -> Any:
        """
        The value `name`.

        Raises:
            ValueError: it was made for other sizes or other prompts.
        """
        known_key, value = self._values.get(name, (None, None))
        if known_key != key:
            raise ValueError(
                f"This model is frozen, and {name!r} was not made for {key!r} but for {known_key!r}. Use the model it"
                " was copied from."
            )
        return value

    def __deepcopy__(self, memo: dict) -> "FrozenCache":
        return FrozenCache(self._values)
