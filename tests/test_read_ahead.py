"""Items are taken ahead of their use, in order, and errors come after the items before them."""

import pytest

from vcp_clip_hf.read_ahead import read_ahead


@pytest.mark.parametrize("number", [0, 1, 3, 9])
def test_items_come_in_order_after_further_ones_were_taken(number):
    taken = []
    items = (taken.append(item) or item for item in range(6))
    for used in read_ahead(items, number):
        assert taken == list(range(min(6, used + number + 1)))
    assert used == 5 and taken == list(range(6))


def failing(error: BaseException):
    yield from "ab"
    raise error


def test_an_error_comes_after_the_items_before_it():
    seen = []
    with pytest.raises(ValueError, match="third"):
        for item in read_ahead(failing(ValueError("third")), 1):
            seen.append(item)
    assert seen == ["a", "b"]


def test_an_interruption_comes_at_once():
    items = read_ahead(failing(KeyboardInterrupt()), 1)
    assert next(items) == "a"
    with pytest.raises(KeyboardInterrupt):
        next(items)
