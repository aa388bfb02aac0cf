"""Reading a file in a thread: what is read, what is left out, and how memory is bounded."""

import threading
import time

import pytest

from tests.video.clips import index_of, write_clip
from vcp_clip_hf.video.frames import FrameChoice
from vcp_clip_hf.video.readers import FileReader
from vcp_clip_hf.video.sources import VideoError, VideoSource


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


def make_reader(path, waiting_frames=4, done=(), duration=None, **choice):
    return FileReader(VideoSource.of(path), FrameChoice(**choice), waiting_frames, done=done, duration=duration)


def read(path, size=8, max_frames=None, **settings):
    with make_reader(path, **settings) as reader:
        frames = [frame for batch in reader.batches(size, max_frames) for frame in batch]
    assert [index_of(frame.picture) for frame in frames] == [frame.index for frame in frames]
    assert reader.error is None and reader.dropped == 0
    return [frame.index for frame in frames]


def test_chosen_frames_in_order(clip):
    assert read(clip) == list(range(20))
    assert read(clip, every=6) == [0, 6, 12, 18]
    assert read(clip, fps=5) == list(range(0, 20, 2))
    assert read(clip, fps=50) == list(range(20))
    assert read(clip, size=1, waiting_frames=1) == list(range(20))


def test_frames_that_are_done_are_left_out(clip):
    assert read(clip, every=3, done={0, 3, 12}) == [6, 9, 15, 18]


def test_the_number_of_frames_and_the_duration_are_limits(clip):
    assert read(clip, max_frames=3) == [0, 1, 2]
    assert read(clip, size=2, max_frames=3, done={0}) == [1, 2, 3]
    assert read(clip, duration=0.5) == [0, 1, 2, 3, 4]


def test_the_expected_number_of_frames(clip):
    assert make_reader(clip).expected == 20
    assert make_reader(clip, fps=5).expected == 10


def test_batches_are_full_where_decoding_is_fast(clip):
    with make_reader(clip, waiting_frames=8) as reader:
        sizes = [len(batch) for batch in reader.batches(8)]
    assert sizes == [8, 8, 4]


def test_a_slow_model_is_waited_for(clip):
    with make_reader(clip, waiting_frames=2) as reader:
        batches = reader.batches(1)
        taken = [next(batches)[0].index]
        time.sleep(0.3)
        assert reader._queue.qsize() == 2
        taken += [batch[0].index for batch in batches]
    assert taken == list(range(20))


def test_leaving_early_ends_the_thread(clip):
    before = threading.active_count()
    with make_reader(clip, waiting_frames=1) as reader:
        next(reader.batches(1))
        assert threading.active_count() > before
    assert not reader._thread.is_alive()


def test_a_file_that_cannot_be_read_is_an_error_at_once(tmp_path):
    with pytest.raises(FileNotFoundError):
        make_reader(tmp_path / "missing.mp4")


def test_an_error_at_the_end_is_kept_with_the_frames_before(tmp_path):
    path = write_clip(
        tmp_path / "clip.mp4", container_options={"movflags": "faststart"}, options={"g": "1", "bf": "0"}
    )
    path.write_bytes(path.read_bytes()[:-600])
    with make_reader(path) as reader:
        count = sum(len(batch) for batch in reader.batches(4))
    assert 5 < count < 20 and isinstance(reader.error, VideoError)
