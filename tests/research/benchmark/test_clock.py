"""Times of parts and of ways."""

import time

import pytest
import torch

from examples.research.benchmark.clock import REFERENCE, EventClock, PartClock, time_in_turns


@pytest.mark.parametrize("make", [PartClock, EventClock])
def test_a_part_does_not_include_the_parts_in_it(make):
    clock = make(torch.device("cpu"))
    for _ in range(2):
        with clock.part("whole"):
            time.sleep(0.02)
            for _ in range(2):
                with clock.part("inner"):
                    time.sleep(0.01)
    assert sorted(clock.spent) == ["inner", "whole"]
    for spent in clock.spent.values():
        assert 0.04 <= spent < 0.3


def test_ways_take_turns():
    calls = []
    ways = {name: lambda name=name: calls.append(name) for name in ("a", ("b", 1), REFERENCE)}
    times = time_in_turns(ways, torch.device("cpu"), 3, 1, every_round=lambda: calls.append("-"))
    assert calls == ["-", "a", ("b", 1), REFERENCE, "-", "a", ("b", 1), "-", "a", ("b", 1)]
    assert {name: len(each) for name, each in times.items()} == {"a": 3, ("b", 1): 3, REFERENCE: 1}
