"""Geometry of shapes: turned boxes, ellipses, strokes, and what they refuse."""

import math

import numpy as np
import pytest

from vcp_clip_hf.data.annotations.shapes import Runs, box, ellipse, outline, stroke


def area(flat) -> float:
    x, y = np.asarray(flat).reshape(-1, 2).T
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def test_a_box_turns_clockwise_about_its_center():
    assert box(2, 3, 6, 5) == (2, 3, 6, 3, 6, 5, 2, 5)
    # the right end of a wide box goes down, since y points down
    np.testing.assert_allclose(box(2, 3, 6, 5, 90), (5, 2, 5, 6, 3, 6, 3, 2), atol=1e-12)


@pytest.mark.parametrize("radius", [0.5, 3, 40, 900])
def test_an_ellipse_is_as_near_as_stated(radius):
    points = np.asarray(ellipse(10, 20, radius, radius)).reshape(-1, 2)
    np.testing.assert_allclose(np.hypot(*(points - (10, 20)).T), radius)
    middles = (points + np.roll(points, -1, axis=0)) / 2
    assert radius - np.hypot(*(middles - (10, 20)).T).min() <= 0.0501
    assert abs(area(points.ravel()) / (math.pi * radius**2) - 1) < 0.12 / max(radius, 1) + 0.01 * (radius < 3) * 4


def test_the_axes_of_a_turned_ellipse_change_places():
    flat = np.asarray(ellipse(0, 0, 8, 2, 90)).reshape(-1, 2)
    np.testing.assert_allclose(np.abs(flat).max(axis=0), (2, 8), atol=0.06)


def test_a_stroke_has_the_width_of_its_line_and_round_ends():
    parts = stroke((0, 0, 10, 0, 10, 0), 4)
    assert len(parts) == 4, "three disks, and one segment; a segment without length has no direction"
    assert area(parts[3]) == 40
    np.testing.assert_allclose(sorted(parts[3]), sorted((0, 2, 10, 2, 10, -2, 0, -2)))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([(0, 0), (1, 1)], "2 points, expected at least 3"),
        ([(0, 0), (1, float("nan")), (2, 2)], "not a finite number"),
        ([(0, 0), (1, float("inf")), (2, 2)], "not a finite number"),
        ([(0, 0), (1, 2, 3), (2, 2)], "too many values"),
        ([(0, 0), (1, "x"), (2, 2)], "could not convert"),
    ],
)
def test_points_that_are_not_an_outline(points, message):
    with pytest.raises(ValueError, match=message):
        outline(points)


@pytest.mark.parametrize("radius", [0, float("nan"), 1e9])
def test_an_ellipse_needs_a_radius(radius):
    with pytest.raises(ValueError, match=r"the radius .* is not between"):
        ellipse(0, 0, radius, radius)


@pytest.mark.parametrize(
    ("width", "height", "counts", "message"),
    [
        (4, 5, (4, 4), r"describe 8 pixels, and the mask has 4 x 5"),
        (4, 5, (4, 17), "describe 21 pixels"),
        (4, 5, (25, -5), "negative"),
        (0, 5, (0,), "0 x 5"),
    ],
)
def test_run_lengths_must_fill_their_rectangle(width, height, counts, message):
    with pytest.raises(ValueError, match=message):
        Runs(0, 0, width, height, counts, by_columns=True)
