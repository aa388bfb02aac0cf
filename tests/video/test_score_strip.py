"""The strip with label, score, time and the course of the scores."""

from datetime import datetime

import numpy as np
import pytest

from vcp_clip_hf.video.score_strip import ScoreStrip, clock_time, video_time


RED, GREEN, CURVE = (205, 45, 48), (20, 126, 80), (120, 190, 255)


def record(seconds=0.0, score=0.25, label="normal", limit=0.5, **fields):
    return {"time_seconds": seconds, "score": score, "label": label, "image_threshold": limit, "frame": 3, **fields}


def near(strip, color) -> np.ndarray:
    """Return where a strip has about a color: rows and columns."""
    return np.argwhere(np.abs(np.asarray(strip).astype(int) - color).max(axis=2) < 40)


@pytest.mark.parametrize("width", [160, 640, 1281])
def test_the_label_has_its_color(width):
    strip = ScoreStrip(width, 10.0)
    normal, anomalous = strip.draw(record()), strip.draw(record(1.0, 0.75, "anomalous"))
    assert normal.size == anomalous.size == (width, strip.height)
    assert len(near(normal, GREEN)) > 200 and not len(near(normal, RED))
    assert len(near(anomalous, RED)) > 200 and not len(near(anomalous, GREEN))
    neither = strip.draw(record(2.0, 0.5, None, None))
    assert not len(near(neither, RED)) and not len(near(neither, GREEN))


def test_scores_are_plotted_over_time_and_roll_out_of_the_window():
    strip = ScoreStrip(640, 10.0)
    for seconds in range(6):
        drawn = strip.draw(record(float(seconds), 0.9, limit=None))
    columns = near(drawn, CURVE)[:, 1]
    # half of the window: the left half of the plot
    assert columns.min() < 20 and 290 < columns.max() < 340
    for seconds in range(6, 30):
        drawn = strip.draw(record(float(seconds), 0.1, limit=None))
    rows, columns = near(drawn, CURVE).T
    assert columns.min() < 20 and columns.max() > 600
    assert rows.min() > strip.height // 2  # the high scores are older than the window
    assert len(strip._scores) == 11


def test_scores_and_limits_outside_of_the_scale_stay_in_the_plot():
    strip = ScoreStrip(640, 10.0)
    strip.draw(record(0.0, 1.7, "anomalous", 1.5))
    strip.draw(record(0.0, -0.5, "normal", 1.5))


def test_times():
    assert video_time(0.0) == "00:00.000"
    assert video_time(59.9996) == "01:00.000"
    assert video_time(83.5) == "01:23.500"
    assert video_time(7263.25) == "2:01:03.250"
    local = datetime.fromisoformat("2026-03-01T12:00:00.250+00:00").astimezone()
    assert clock_time("2026-03-01T12:00:00.250+00:00") == f"{local:%Y-%m-%d %H:%M:%S}.2"
