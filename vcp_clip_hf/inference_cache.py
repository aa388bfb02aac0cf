"""What does not depend on the image, kept between forward passes, and never used once it is out of date."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch


__all__ = ["FrozenCache", "InferenceCache"]


class InferenceCache:
    """
    Values made from parameters, one for each name.

    A value is used again only with the same key and with the very same parameters, unchanged: PyTorch counts every
    in-place change of a tensor, and the parameters and their memory are held, so that no other can take their place
    (`Module.to` puts other memory behind the same parameters, and does not count). Only in-place changes through
    `.data` escape; after one, call `clear`.
    """

    def __init__(self):
        self._entries: dict[str, tuple[Hashable, list[torch.Tensor], list[_Seen], Any]] = {}

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
        entry = self._entries.get(name)
        if entry is not None:
            known_key, known_parameters, seen, value = entry
            if (
                known_key == key
                and len(known_parameters) == len(parameters)
                and all(ours is theirs for ours, theirs in zip(known_parameters, parameters, strict=True))
                and all(each.still(parameter) for each, parameter in zip(seen, parameters, strict=True))
            ):
                return value
        seen = [_Seen(parameter) for parameter in parameters]
        # made as ordinary tensors also inside inference_mode, so that they can be used outside of it
        with torch.inference_mode(False), torch.no_grad():
            value = make()
        self._entries[name] = (key, list(parameters), seen, value)
        return value

    def __deepcopy__(self, memo: dict) -> "InferenceCache":
        return InferenceCache()

    def __getstate__(self) -> dict:
        return {"_entries": {}}


class _Seen:
    """What a parameter was when a value was made from it."""

    def __init__(self, parameter: torch.Tensor):
        self.version, self.dtype = parameter._version, parameter.dtype
        # holds the memory too; tensors that stand for several others, such as quantised ones, have none of their own
        self.plain = type(parameter) in (torch.Tensor, torch.nn.Parameter)
        self.memory = parameter.detach() if self.plain else None

    def still(self, parameter: torch.Tensor) -> bool:
        """Whether it has changed in no way."""
        if self.version != parameter._version or self.dtype != parameter.dtype:
            return False
        return not self.plain or (
            self.memory.device == parameter.device and self.memory.data_ptr() == parameter.data_ptr()
        )


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
