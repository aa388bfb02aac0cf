"""Settings of a run over a video, and its summary."""

from pathlib import Path

import pytest

from vcp_clip_hf.video import VideoReading, VideoSummary


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"duration": 0}, "duration=0 must be a number of seconds above 0"),
        ({"give_up": -1.0}, "give_up=-1.0 must be a number of seconds above 0"),
        ({"segment_seconds": float("nan")}, "segment_seconds=nan must be"),
        ({"max_frames": 0}, "max_frames=0 must be a whole number of frames, 1 or more"),
        ({"waiting_frames": 1.5}, "waiting_frames=1.5 must be a whole number"),
        ({"max_frames": True}, "max_frames=True must be a whole number"),
    ],
)
def test_values_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        VideoReading(**settings)


def test_a_summary_names_what_happened():
    summary = VideoSummary(analyzed=1, anomalous=1, seconds=0.5, records=Path("out/predictions.jsonl"))
    assert summary.describe() == "1 frame segmented (2.00 frames/s), 1 anomalous; records in out/predictions.jsonl"
    summary = VideoSummary(
        analyzed=8, skipped=2, dropped=3, reconnects=1, seconds=4, records=Path("r"), videos=[Path("a.mp4")]
    )
    assert summary.describe() == (
        "8 frames segmented (2.00 frames/s), 0 anomalous, 2 done before, 3 dropped, 1 reconnected; records in r;"
        " annotated video: a.mp4"
    )
    assert VideoSummary().frames_per_second == 0
