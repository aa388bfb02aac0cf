"""Counts of operators: those that compute or copy, in both directions, without views."""

import torch

from examples.research.benchmark.calls import count_calls, count_waits


def test_operators_are_counted_in_both_directions():
    matrix = torch.ones(3, 4, requires_grad=True)

    assert count_calls(lambda: matrix.T.unsqueeze(0)) == 0
    assert count_calls(lambda: torch.empty(3)) == 0
    assert count_calls(lambda: (matrix.detach().T * 2).sum()) == 2
    assert count_calls(lambda: (matrix * 2).sum().backward()) > 3


def test_a_cpu_has_no_waits():
    assert count_waits(lambda: torch.ones(1).item(), torch.device("cpu")) is None
