"""Greedy k-center coresets, against plain loops and their guarantee."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from tests.memories import WIDTH, plain_k_center_fast, radius, unit
from vcp_clip_hf.coreset import greedy_k_center


def plain_k_center(vectors: torch.Tensor, count: int) -> list[int]:
    """Choose the row farthest from the mean, and then always the row farthest from all chosen ones."""
    points = [vector.double() for vector in vectors]
    mean = sum(points) / len(points)
    chosen = [max(range(len(points)), key=lambda row: float((points[row] - mean).norm()))]
    while len(chosen) < count:
        others = [row for row in range(len(points)) if row not in chosen]
        chosen.append(max(others, key=lambda row: min(float((points[row] - points[each]).norm()) for each in chosen)))
    return sorted(chosen)


@pytest.mark.parametrize("count", [1, 2, 5, 12, 29])
def test_the_coreset_is_that_of_a_plain_loop(count):
    vectors = unit(30, WIDTH)
    chosen = greedy_k_center(vectors, count)
    assert chosen.tolist() == plain_k_center(vectors, count)


def test_the_radius_is_at_most_twice_the_best_possible():
    for _ in range(10):
        vectors = unit(11, 3)
        for count in (1, 2, 3):
            best = min(radius(vectors, chosen) for chosen in itertools.combinations(range(11), count))
            assert best <= radius(vectors, greedy_k_center(vectors, count)) <= 2 * best + 1e-6


def test_every_cluster_is_kept():
    """Also of vectors so wide that they are compared through a projection."""
    centers = unit(20, 300)
    vectors = nn.functional.normalize(centers.repeat(50, 1) + 0.003 * torch.randn(1000, 300), dim=1)
    assert sorted((greedy_k_center(vectors, 20) % 20).tolist()) == list(range(20))


def test_the_projection_keeps_the_radius_small():
    """The coreset of projected vectors covers the vectors themselves far better than random rows."""
    # patches of a few dimensions, most of them alike, as in pictures
    amounts = torch.rand(600, 1) ** 8 * torch.randn(600, 4)
    vectors = nn.functional.normalize(unit(1, 300) * 3 + amounts @ unit(4, 300), dim=1)
    covered = radius(vectors, greedy_k_center(vectors, 60))
    exact = radius(vectors, plain_k_center_fast(vectors, 60))
    random = np.mean([radius(vectors, torch.randperm(600)[:60]) for _ in range(10)])
    assert covered < 1.5 * exact < random


@pytest.mark.parametrize("width", [WIDTH, 300])
def test_the_coreset_does_not_depend_on_the_order_or_on_the_seed(width):
    vectors = unit(80, width)
    chosen = greedy_k_center(vectors, 15)
    assert torch.equal(chosen, chosen.sort().values) and len(set(chosen.tolist())) == 15
    torch.manual_seed(99)
    assert torch.equal(greedy_k_center(vectors, 15), chosen)
    order = torch.randperm(80)
    assert sorted(order[greedy_k_center(vectors[order], 15)].tolist()) == chosen.tolist()


def test_a_coreset_of_all_rows_is_all_rows():
    vectors = unit(6, WIDTH)
    for count in (6, 7, 1000):
        assert greedy_k_center(vectors, count).tolist() == [0, 1, 2, 3, 4, 5]


def test_rows_that_are_equal_are_chosen_last_and_once_each():
    vectors = unit(3, WIDTH).repeat(4, 1)
    assert sorted((greedy_k_center(vectors, 3) % 3).tolist()) == [0, 1, 2]
    assert len(set(greedy_k_center(vectors, 11).tolist())) == 11
    assert len(greedy_k_center(vectors.bfloat16(), 5)) == 5
