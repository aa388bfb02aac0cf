"""Light on a scene."""

import numpy as np
import pytest

from vcp_clip_hf.generator.fields import (
    Grid,
)
from vcp_clip_hf.generator.light import Light
from vcp_clip_hf.generator.scene import Material, Scene


SIZE = 64


def flat_light(direction=(0.6, 0.0, 0.8)) -> Light:
    """Return even light without colors, glare or varied surroundings."""
    ones = np.ones((SIZE, SIZE), np.float32)
    return Light(direction, 0.4, np.ones(3, np.float32), np.full(8, 0.5, np.float32), (1.0, 0.0), ones)


def test_light_brightens_the_side_that_faces_it():
    grid = Grid(SIZE)
    dome = Material(np.float32([0.5, 0.5, 0.5]), np.sqrt(np.maximum(0.5 - grid.radius**2, 0)), 0.0, 5.0)
    picture = flat_light().render(Scene(grid).fill(dome)).mean(axis=2)
    assert picture[32, 44] > picture[32, 20] * 1.2
    flat = flat_light().render(Scene(grid).fill(Material(np.float32([0.5, 0.5, 0.5]), 0.0, 0.0, 5.0)))
    assert flat == pytest.approx(0.5, abs=1e-4)
