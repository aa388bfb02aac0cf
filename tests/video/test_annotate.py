"""Annotated videos: playable, with the right times, under their name only when they are complete."""

import av
import numpy as np
import pytest
from PIL import Image

from vcp_clip_hf.video import annotate
from vcp_clip_hf.video.annotate import annotated_video


def record(seconds, score=0.25):
    return {"time_seconds": seconds, "score": score, "label": None, "image_threshold": None, "frame": 0}


def overlay(color, size=(120, 90)):
    return Image.new("RGB", size, color)


def read(path):
    with av.open(path) as container:
        stream = container.streams.video[0]
        return stream.codec_context.name, [(float(frame.time), frame.to_image()) for frame in container.decode(stream)]


def write(path, times, **settings):
    with annotated_video(path, **settings) as video:
        for number, seconds in enumerate(times):
            video.add(overlay((0, 0, 255) if number % 2 else (255, 0, 0)), record(seconds))
    return read(path)


def test_frames_keep_their_times_and_pictures(tmp_path):
    times = [2.0, 2.1, 2.5, 4.0]
    codec, frames = write(tmp_path / "a.mp4", times, seconds=2.0, fps=2.0)
    assert codec == "h264"
    assert [seconds for seconds, _ in frames] == pytest.approx([0, 0.1, 0.5, 2.0], abs=2e-3)
    for number, (_, picture) in enumerate(frames):
        assert picture.width == 640 and picture.height > 480
        expected = (0, 0, 255) if number % 2 else (255, 0, 0)
        assert np.abs(np.subtract(picture.getpixel((320, 200)), expected)).max() < 12
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_one_frame_equal_times_and_a_second_size(tmp_path):
    assert len(write(tmp_path / "one.mp4", [0.0])[1]) == 1
    assert len(write(tmp_path / "equal.mp4", [0.0, 0.0, 0.0])[1]) == 3
    with annotated_video(tmp_path / "sizes.mp4") as video:
        video.add(overlay("red"), record(0.0))
        video.add(overlay("blue", (30, 90)), record(1.0))
    (_, first), (_, second) = read(tmp_path / "sizes.mp4")[1]
    assert first.size == second.size
    assert second.getpixel((320, 200))[2] > 200 and max(second.getpixel((20, 200))) < 20  # in the middle, on black


@pytest.mark.parametrize(
    ("size", "width"), [((1, 1), 640), ((33, 801), None), ((4000, 3000), 1280), ((641, 479), 642)]
)
def test_sizes_that_are_odd_small_and_large(tmp_path, size, width):
    with annotated_video(tmp_path / "a.mp4") as video:
        video.add(overlay("red", size), record(0.0))
    ((_, picture),) = read(tmp_path / "a.mp4")[1]
    assert picture.width % 2 == 0 == picture.height % 2
    assert width is None or picture.width == width


def test_without_an_encoder_for_h264(tmp_path, monkeypatch):
    monkeypatch.setattr(annotate.import_av(), "codecs_available", {"mpeg4"})
    codec, frames = write(tmp_path / "a.mp4", [0.0, 0.1, 0.3])
    assert codec == "mpeg4" and [round(seconds, 2) for seconds, _ in frames] == [0, 0.1, 0.3]


def test_an_interrupted_video_leaves_no_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), annotated_video(tmp_path / "a.mp4") as video:
        for number in range(40):  # the encoder holds the first ones
            video.add(overlay("red"), record(number / 10))
        assert [path.name for path in tmp_path.iterdir()] == [".a.mp4.unfinished"]
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
