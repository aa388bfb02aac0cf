"""Which frames are chosen, when they are, and how they are turned."""

from fractions import Fraction
from types import SimpleNamespace

import av
import pytest

from tests.video.clips import index_of, write_clip
from vcp_clip_hf.video.frames import FrameChoice, StreamTimes, decode_frames, to_picture
from vcp_clip_hf.video.sources import VideoError, VideoSource, open_video


def decode(path):
    """Return (number of the frame in its gray level, seconds, picture) of each frame."""
    source, found = VideoSource.of(path), []
    with open_video(source) as container:
        for frame, seconds in decode_frames(source, container):
            picture = to_picture(frame)
            found.append((index_of(picture), float(seconds), picture))
    return found


def chosen(times, **settings) -> list[int]:
    choice = FrameChoice(**settings)
    return [index for index, seconds in enumerate(times) if choice.takes(index, Fraction(seconds))]


def test_every_nth_frame():
    assert chosen([0] * 7, every=3) == [0, 3, 6]
    assert chosen([0] * 3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("rate", "fps", "expected"),
    [
        (30, 10, [0, 3, 6, 9, 12, 15, 18]),
        (30, 30, list(range(20))),
        (30, 100, list(range(20))),  # more than there are: each once
        (25, 10, [0, 3, 5, 8, 10, 13, 15, 18]),  # the first at or after 0, 0.1, 0.2, ... seconds
        (10, 0.5, [0]),
        (Fraction(30000, 1001), 5, [0, 6, 12, 18]),
    ],
)
def test_frames_per_second(rate, fps, expected):
    assert chosen([Fraction(index) / rate for index in range(20)], fps=fps) == expected


def test_frames_per_second_of_times_in_whole_milliseconds():
    assert chosen([Fraction(round(1000 * index / 30), 1000) for index in range(20)], fps=15) == list(range(0, 20, 2))


def test_frames_per_second_of_a_video_with_pauses():
    times = [Fraction(each, 1000) for each in (0, 40, 80, 500, 520, 540, 2000, 2001)]
    assert chosen(times, fps=10) == [0, 3, 6]


@pytest.mark.parametrize(
    "settings", [{"every": 0}, {"every": 1.5}, {"every": True}, {"fps": 0}, {"fps": float("inf")}]
)
def test_values_out_of_range(settings):
    with pytest.raises(ValueError, match="must be a"):
        FrameChoice(**settings)
    with pytest.raises(ValueError, match="cannot be combined"):
        FrameChoice(every=2, fps=2)


def test_the_expected_number_of_frames():
    assert FrameChoice(every=3).expected(20, None) == 7
    assert FrameChoice().expected(0, 2.0) is None
    assert FrameChoice(fps=5).expected(20, 2.0) == 10
    assert FrameChoice(fps=50).expected(20, 2.0) == 20
    assert FrameChoice(fps=5).expected(0, None) is None


def test_times_never_run_backwards():
    times = StreamTimes(Fraction(1, 10), Fraction(5))
    stamps = [None, -3, -2, None, 0, -100, -99, -98, -94, -95, -92]
    frames = [SimpleNamespace(pts=each, time_base=Fraction(1, 10)) for each in stamps]
    tenths = [50, 51, 52, 53, 54, 55, 56, 57, 61, 62, 63]
    assert [times.of(frame) * 10 for frame in frames] == tenths


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts", ".mov", ".webm"])
def test_frames_and_times_of_a_constant_rate(tmp_path, suffix):
    codec = {".webm": "libvpx", ".avi": "mpeg4"}.get(suffix, "libx264")
    frames = decode(write_clip(tmp_path / f"clip{suffix}", codec=codec))
    assert [index for index, _, _ in frames] == list(range(20))
    assert [seconds for _, seconds, _ in frames] == pytest.approx([index / 10 for index in range(20)], abs=1e-3)
    assert {picture.size for _, _, picture in frames} == {(64, 48)}


def test_times_of_reordered_frames_in_avi_are_close(tmp_path):
    frames = decode(write_clip(tmp_path / "clip.avi", codec="libx264"))
    assert [index for index, _, _ in frames] == list(range(20))
    assert [seconds for _, seconds, _ in frames] == pytest.approx([index / 10 for index in range(20)], abs=0.21)


def test_a_variable_rate(tmp_path):
    stamps = [0, 40, 80, 500, 520, 2000]
    for suffix in (".mp4", ".mkv"):
        frames = decode(write_clip(tmp_path / f"clip{suffix}", milliseconds=stamps))
        assert [round(1000 * seconds) for _, seconds, _ in frames] == stamps


def test_times_begin_at_the_first_frame(tmp_path):
    frames = decode(write_clip(tmp_path / "clip.mkv", milliseconds=[5000, 5100, 5300]))
    assert [round(1000 * seconds) for _, seconds, _ in frames] == [0, 100, 300]


@pytest.mark.parametrize(
    ("rotation", "size", "red"),
    [(0, (64, 48), (2, 2)), (90, (48, 64), (2, 61)), (180, (64, 48), (61, 45)), (-90, (48, 64), (45, 2))],
)
def test_pictures_are_turned_as_players_show_them(tmp_path, rotation, size, red):
    # counterclockwise: the red corner at the upper left goes to the lower left with 90 degrees
    _, _, picture = decode(write_clip(tmp_path / "clip.mp4", frames=1, rotation=rotation))[0]
    assert picture.size == size
    values = picture.getpixel(red)
    assert values[0] > 200 and max(values[1:]) < 60


@pytest.mark.parametrize("size", [(65, 49), (1, 1), (2, 64)])
def test_odd_sizes(tmp_path, size):
    frames = decode(write_clip(tmp_path / "clip.avi", codec="mjpeg", size=size, frames=3))
    assert [picture.size for _, _, picture in frames] == [size] * 3


def test_a_video_of_one_frame(tmp_path):
    assert [(index, seconds) for index, seconds, _ in decode(write_clip(tmp_path / "clip.mp4", frames=1))] == [(0, 0)]


def frames_until_error(path) -> tuple[int, str]:
    source, count = VideoSource.of(path), 0
    with pytest.raises(VideoError) as caught, open_video(source) as container:
        for _ in decode_frames(source, container):
            count += 1
    return count, str(caught.value)


def write_seekable_clip(path):
    """Write a video with its index at the beginning, whose packets do not need each other; return its packets."""
    write_clip(path, container_options={"movflags": "faststart"}, options={"g": "1", "bf": "0"})
    with av.open(path) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize("within", [True, False])
def test_a_cut_video_gives_its_frames_and_then_an_error(tmp_path, within):
    path = tmp_path / "clip.mp4"
    position, size = write_seekable_clip(path)[12]
    path.write_bytes(path.read_bytes()[: position + (size // 2 if within else 0)])
    count, message = frames_until_error(path)
    assert count == 12
    assert f"clip.mp4' is damaged or incomplete: 12 of 20 frames could be decoded, and {int(within)} of" in message


def test_a_damaged_video_gives_the_frames_after_the_damage(tmp_path):
    path = tmp_path / "clip.mp4"
    position, size = write_seekable_clip(path)[12]
    content = bytearray(path.read_bytes())
    content[position : position + size] = b"\xff" * size
    path.write_bytes(content)
    count, message = frames_until_error(path)
    assert count == 19 and "19 of 20 frames could be decoded, and 1 of 20 packets are broken" in message
