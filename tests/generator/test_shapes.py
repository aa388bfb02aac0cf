"""Shapes, strokes and lettering."""

import math

import numpy as np
import pytest

from vcp_clip_hf.generator import shapes
from vcp_clip_hf.generator.fields import (
    Dice,
    Grid,
)


SIZE = 64


def test_shapes_cover_their_area():
    grid = Grid(256)
    for distance, area in (
        (shapes.disc(grid, 0.5), math.pi * 0.25),
        (shapes.box(grid, 0.5, 0.25), 0.5),
        (shapes.ring(grid, 0.5, 0.2), 2 * math.pi * 0.5 * 0.2),
        (shapes.polygon(grid, 6, 0.5), 6 * 0.25 * math.tan(math.pi / 6)),
        (shapes.segment(grid, (-0.4, 0.0), (0.4, 0.0), 0.2), 0.16 + math.pi * 0.01),
    ):
        assert shapes.coverage(distance, grid.pixel).mean() * 4 == pytest.approx(area, rel=0.01)
    teeth = shapes.gear(grid, 12, 0.8, 0.2, keep=np.r_[0.0, np.ones(11)])
    whole = shapes.gear(grid, 12, 0.8, 0.2)
    lost = (whole < 0) & (teeth >= 0)
    assert lost.any() and not ((whole >= 0) & (teeth < 0)).any()
    assert grid.radius[lost].min() > 0.58 and np.abs(grid.theta[lost]).max() < 0.3


@pytest.mark.parametrize("width", [0.004, 0.02, 0.1])
def test_strokes_have_the_requested_width(width):
    size = 256
    path = np.float32([(-0.5, 0.1), (0.0, 0.1), (0.5, 0.1)])
    for widths in ([width], [np.float32([width, width * 1.001, width])]):
        line = shapes.strokes(size, [path], widths)
        assert line.min() >= 0 and line.max() <= 1
        assert line[:, 128].sum() == pytest.approx(width * size / 2, rel=0.2, abs=0.15)
        assert line[:, 20].max() == 0
    assert not shapes.strokes(size, [], []).any()
    assert not shapes.strokes(size, [path + 5], [width]).any()


def test_every_letter_is_drawn():
    for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-+./:":
        marks = shapes.lettering(SIZE, letter, (0.0, 0.0), 1.0)
        assert 2 < marks.sum() < SIZE * SIZE / 3, letter
    assert set(shapes.random_text(Dice(1), 40, 40)) <= set(shapes._GLYPHS)


def test_blobs_have_about_the_requested_size():
    areas = [shapes.coverage(shapes.blob(Dice(i), Grid(SIZE), 0.5, 0.2, 0.05), 0.02).mean() * 4 for i in range(20)]
    assert np.median(areas) == pytest.approx(math.pi * 0.25, rel=0.25)
