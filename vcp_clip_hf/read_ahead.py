"""Take items from an iterable before they are needed, so that a device computes while its last results are used."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar


__all__ = ["read_ahead"]

Item = TypeVar("Item")


def read_ahead(items: Iterable[Item], number: int) -> Iterator[Item]:
    """
    Yield items in order, each after up to `number` further ones have been taken.

    Args:
        items (iterable): items, such as batches that a device has begun to compute.
        number (`int`): number of items that are held back; 0 yields each item at once.

    Yields:
        The items. An exception of `items` is raised after the items before it; `KeyboardInterrupt` and others
        that are not an `Exception` are raised at once.
    """
    waiting: deque[Item] = deque()
    try:
        for item in items:
            waiting.append(item)
            if len(waiting) > number:
                yield waiting.popleft()
    except Exception:
        yield from waiting
        raise
    yield from waiting
