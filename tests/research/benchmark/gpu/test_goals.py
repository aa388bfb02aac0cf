"""Targets beside rows."""

import pytest

from examples.research.benchmark.gpu.goals import GOALS, judge


def speed(batch_size, way, ms, floor=1.3):
    return {
        "table": "speed",
        "batch_size": batch_size,
        "way": way,
        "ms_per_image": ms,
        "times_floor": ms / floor,
    }


def verdicts(*rows):
    return {each["goal"]: each for each in judge(rows)}


def test_without_rows_nothing_is_said():
    found = judge([])
    assert len(found) == len(GOALS) and all(set(each) == {"goal", "target"} for each in found)
    assert [each["target"] for each in found] == [
        "4.00 ms",
        "2.30 ms",
        "1.70 x floor",
        "2.20 ms",
        "1.70 x floor",
        "1.70 ms",
        "1.50 x",
        "85%",
        "2.0e-03",
    ]


def test_the_best_way_counts_and_float8_is_a_goal_of_its_own():
    found = verdicts(
        speed(1, "plain", 25.6),
        speed(1, "accelerated", 3.9),
        speed(1, "accelerated, float8", 3.0),
        speed(16, "accelerated", 2.4),
        speed(16, "accelerated, float8", 1.6),
    )
    one = found["one image, with post-processing"]
    assert (one["measured"], one["way"], one["reached"]) == ("3.90 ms", "accelerated", True)
    batch = found["batch of 16, an image"]
    assert (batch["measured"], batch["reached"]) == ("2.40 ms", False)
    assert found["batch of 16, an image beside the floor"]["measured"] == "1.85 x floor"
    float8 = found["batch of 16 in float8, an image"]
    assert (float8["measured"], float8["way"], float8["reached"]) == ("1.60 ms", "accelerated, float8", True)
    assert "measured" not in found["batch of 4, an image"]


@pytest.mark.parametrize(("share", "reached"), [(0.84, False), (0.85, True), (0.97, True)])
def test_files_have_a_lowest_share(share, reached):
    rows = [
        {"table": "files", "way": "model alone", "share_of_model_rate": 1.0},
        {"table": "files", "way": "predict, scores only", "share_of_model_rate": share},
    ]
    found = verdicts(*rows)["files to scores, of the model's own rate"]
    assert found["way"] == "predict, scores only" and found["reached"] == reached


def test_of_differences_the_worst_counts():
    rows = [
        {"table": "deviation", "what": "with graphs beside without, batch of 1", "map_deviation_max": 0.0},
        {"table": "deviation", "what": "with graphs beside without, batch of 4", "map_deviation_max": 3e-3},
        {"table": "deviation", "what": "float8 beside bfloat16", "map_deviation_max": 0.1},
    ]
    found = verdicts(*rows)["largest difference of maps with graphs from those without"]
    assert (found["measured"], found["reached"], found["way"]) == ("3.0e-03", False, rows[1]["what"])


def test_accumulation_beside_one_batch():
    rows = [
        {"table": "training", "way": "training, batch of 8", "ms_per_image": 12.4},
        {"table": "training", "way": "training, accumulated, 8 x 1", "ms_per_image": 18.0, "times_batch": 1.45},
        {"table": "training", "way": "training, accumulated, 8 x 1, otherwise", "ms_per_image": 9, "times_batch": 1.2},
    ]
    found = verdicts(*rows)["a training step accumulated image by image, beside the step of one batch"]
    assert (found["measured"], found["reached"]) == ("1.45 x", True)
