"""Layers of a scene."""

import numpy as np
import pytest

from vcp_clip_hf.generator import shapes
from vcp_clip_hf.generator.fields import (
    Grid,
)
from vcp_clip_hf.generator.scene import Material, Scene


SIZE = 64


def test_layers_are_painted_and_uncovered():
    scene = Scene(Grid(SIZE)).fill(Material(np.float32([0.2, 0.2, 0.2])))
    scene.under = scene.copy()
    patch = shapes.coverage(shapes.disc(scene.grid, 0.5), 0.01)
    scene.paint(patch, Material(np.float32([0.9, 0.1, 0.1]), 0.0, 0.3), 0.1)
    assert scene.color[32, 32] == pytest.approx([0.9, 0.1, 0.1]) and scene.height[32, 32] == pytest.approx(0.1)
    kept = scene.copy()
    scene.uncover(patch)
    assert scene.color[32, 32] == pytest.approx([0.2] * 3) and scene.support[32, 32] == pytest.approx(0)
    assert kept.color[32, 32] == pytest.approx([0.9, 0.1, 0.1]) and kept.support[32, 32] == 1
