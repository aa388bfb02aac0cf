"""The camera's window and noise."""

import numpy as np
import pytest

from vcp_clip_hf.generator.camera import Camera
from vcp_clip_hf.generator.fields import (
    Dice,
    Grid,
)


SIZE = 64


def test_noise_is_repeatable_and_the_window_is_shown():
    camera = Camera.random(Dice(3), SIZE, 0.0, 1.0)
    camera.grain, camera.quality, camera.blur = 0.02, None, 0.0
    gray = np.full((SIZE, SIZE, 3), 0.5, np.float32)
    first, second = np.asarray(camera.record(gray)), np.asarray(camera.record(gray))
    assert np.array_equal(first, second) and 2 < first.astype(float).std() < 10
    shown = camera.frame(Grid(SIZE).x)
    left, _, right, _ = camera.window
    assert shown[0, 0] == pytest.approx(2 * left - 1, abs=0.05) and shown[0, -1] == pytest.approx(
        2 * right - 1, abs=0.05
    )
