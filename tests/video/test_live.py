"""Live sources over real connections on loopback: dropped frames, lost and stalled connections, and the end."""

import re
import socket
import time
from contextlib import contextmanager
from itertools import pairwise

import pytest

from tests.video.clips import index_of, start_camera
from vcp_clip_hf.video import live
from vcp_clip_hf.video.frames import FrameChoice
from vcp_clip_hf.video.live import LiveReader
from vcp_clip_hf.video.sources import VideoError, VideoSource


RTSP_SERVER = {"rtsp_flags": "listen", "listen_timeout": "10"}


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


@contextmanager
def camera(url, format, rate, *parts):
    process = start_camera(url, format, rate, *parts)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def warnings(monkeypatch):
    messages = []
    monkeypatch.setattr(live.logger, "warning", lambda text, *words: messages.append(text % words))
    return messages


def make_reader(url, waiting_frames=100, give_up=10.0, input_options=None, **choice):
    return LiveReader(VideoSource.of(url), FrameChoice(**choice), waiting_frames, input_options, give_up)


def check_order(frames):
    """Numbers and times grow, and pictures follow the numbers within each connection."""
    for before, after in pairwise(frames):
        assert after.index > before.index and after.seconds >= before.seconds and after.arrived >= before.arrived
        if after.connection == before.connection:
            assert (index_of(after.picture) - index_of(before.picture)) % 30 == (after.index - before.index) % 30


@pytest.mark.parametrize("protocol", ["tcp", "udp", "rtsp"])
def test_frames_of_a_stream(protocol):
    url = f"{protocol}://127.0.0.1:{free_port()}" + ("/line" if protocol == "rtsp" else "")
    options = {"tcp": {"listen": "1"}, "rtsp": RTSP_SERVER}.get(protocol)
    sent_to = f"{url}?pkt_size=1316" if protocol == "udp" else url
    with (
        make_reader(url, input_options=options) as reader,
        camera(sent_to, "rtsp" if protocol == "rtsp" else "mpegts", 20, 3),
    ):
        frames = [frame for batch in reader.batches(8, max_frames=20) for frame in batch]
    check_order(frames)
    assert len(frames) == 20 and reader.dropped == 0 and frames[0].connection == 0
    assert frames[19].index == 19
    assert frames[19].seconds - frames[0].seconds == pytest.approx(0.95, abs=0.06)
    assert frames[0].picture.size == (64, 48)


def test_old_frames_are_dropped_and_counted():
    url = f"tcp://127.0.0.1:{free_port()}"
    with make_reader(url, 2, input_options={"listen": "1"}) as reader, camera(url, "mpegts", 25, 4):
        frames = []
        for (frame,) in reader.batches(1, max_frames=6):
            frames.append(frame)
            waited = time.monotonic() - frame.arrived_clock
            time.sleep(0.2)  # a model of five frames per second
    check_order(frames)
    # each waits for the two frames before it at most, and does not fall behind more and more
    assert waited < 0.5
    assert reader.dropped > 8
    assert sum(frame.dropped for frame in frames) <= reader.dropped
    assert frames[-1].index - frames[0].index >= 15


def test_a_lost_connection_is_opened_again(warnings):
    url = f"tcp://127.0.0.1:{free_port()}"
    with make_reader(url, input_options={"listen": "1"}) as reader, camera(url, "mpegts", 20, 1, "pause", 1):
        frames = [frame for batch in reader.batches(8, max_frames=30) for frame in batch]
    check_order(frames)
    assert reader.reconnects == 1 and {frame.connection for frame in frames} == {0, 1}
    first = next(frame for frame in frames if frame.connection == 1)
    assert first.index == 20 and first.seconds > 1.5  # with the pause, on one clock
    assert "ended, or sent nothing for 3.3 seconds. Connecting again in 0.5 seconds." in warnings[0]


def test_a_stalled_connection_is_opened_again(warnings):
    url = f"tcp://127.0.0.1:{free_port()}"
    with (
        make_reader(url, input_options={"listen": "1"}, give_up=6.0) as reader,
        camera(url, "mpegts", 20, "stall"),
        camera(url, "mpegts", 20, "pause", "pause", "pause", 2),
    ):
        frames = [frame for batch in reader.batches(8, max_frames=30) for frame in batch]
    assert reader.reconnects == 1 and len(frames) == 30
    assert re.search(
        "(sent nothing for 2.0 seconds|no data arrived in time). Connecting again in 0.5 sec", warnings[0]
    )


def test_a_source_without_frames_is_given_up(warnings):
    url = f"rtsp://user:s3cret@127.0.0.1:{free_port()}/line"
    started = time.monotonic()
    with make_reader(url, give_up=1.0) as reader:
        assert list(reader.batches(8)) == []
    assert 0.9 < time.monotonic() - started < 5
    assert isinstance(reader.error, VideoError)
    assert str(reader.error).startswith("No frame arrived for 1 seconds. 'rtsp://***@127.0.0.1:")
    assert len(warnings) >= 1 and "s3cret" not in f"{warnings} {reader.error}"


def test_an_error_that_does_not_pass_ends_the_first_connection(warnings):
    with make_reader("/dev/video_that_is_not_there", give_up=60.0) as reader:
        assert list(reader.batches(8)) == []
    assert "could not be opened as a video: No such file or directory" in str(reader.error) and not warnings


def test_waiting_for_a_frame_can_be_ended():
    url, deadline = f"udp://127.0.0.1:{free_port()}", time.monotonic() + 0.5
    with make_reader(url, give_up=60.0) as reader:
        assert list(reader.batches(8, is_over=lambda: time.monotonic() > deadline)) == []
    assert time.monotonic() - deadline < 5
