"""What is a video source, names without credentials, and sources that cannot be opened."""

import socket
import subprocess
import sys

import pytest

from tests.video.clips import ROOT, write_clip, write_sound
from vcp_clip_hf.video.sources import VideoError, VideoSource, is_video_source, open_video, without_secrets


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("clip.mp4", "file"),
        ("a folder/CLIP.MKV", "file"),
        ("a.png", None),
        ("folder", None),
        ("*.png", None),
        ("https://example.com/clip.mp4?size=1", "url"),
        ("https://example.com/part.jpg", None),
        ("http://camera/live/index.m3u8", "stream"),
        ("http://camera/video.mjpg", "stream"),
        ("RTSP://camera/1", "stream"),
        ("rtsps://user:secret@camera:322/1", "stream"),
        ("udp://127.0.0.1:5000", "stream"),
        ("srt://host:9000?mode=caller", "stream"),
        ("/dev/video0", "device"),
        ("/dev/null", "device"),
    ],
)
def test_what_is_a_video_source(source, kind):
    assert is_video_source(source) is (kind is not None)
    if kind is None:
        with pytest.raises(ValueError, match="is not a video: give a file with an ending such as"):
            VideoSource.of(source)
        return
    video = VideoSource.of(source)
    assert (video.kind, video.is_live) == (kind, kind in ("stream", "device"))
    assert "secret" not in repr(video) + str(video) + video.name + video.identity


def test_a_folder_with_the_ending_of_a_video_is_a_folder(tmp_path):
    (tmp_path / "frames.mp4").mkdir()
    assert not is_video_source(tmp_path / "frames.mp4")


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("rtsp://user:s3cret@camera:554/1?x=2", "rtsp://***@camera:554/1?x=2"),
        ("rtsp://s3cret@camera/1", "rtsp://***@camera/1"),
        ("rtsp://user:s3/cr@et#s3@camera/1", "rtsp://***@camera/1"),
        ("https://h/a.m3u8?token=s3cret&b=1&api_key=s3cret", "https://h/a.m3u8?token=***&b=1&api_key=***"),
        ("rtsp://h/user=s3cret_password=s3_cret_channel=1", "rtsp://h/user=***_password=***_channel=1"),
        ("rtsp://h/1?Username=s3cret;PWD=s3cret", "rtsp://h/1?Username=***;PWD=***"),
        ("a@b/token=1.mp4", "a@b/token=1.mp4"),
    ],
)
def test_credentials_are_not_shown(source, shown):
    assert without_secrets(source) == shown


def open_error(source, **timeouts) -> str:
    with pytest.raises((VideoError, OSError)) as caught, open_video(VideoSource.of(source), **timeouts):
        pass
    assert caught.value.__cause__ is None and (caught.value.__suppress_context__ or not caught.value.__context__)
    return str(caught.value)


def test_files_that_are_not_videos(tmp_path):
    (tmp_path / "empty.mp4").touch()
    assert "is an empty file" in open_error(tmp_path / "empty.mp4")
    (tmp_path / "text.mp4").write_text("This is a text. " * 100)
    assert "text.mp4' could not be opened as a video: Invalid data" in open_error(tmp_path / "text.mp4")
    whole = write_clip(tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "begun.mp4").write_bytes(whole[:-200])  # the index is at the end
    assert "Check that the file is a complete video" in open_error(tmp_path / "begun.mp4")
    assert "has no video, only audio" in open_error(write_sound(tmp_path / "sound.mp4"))
    assert "No such file" in open_error(tmp_path / "missing.mp4")


def test_a_file_cannot_name_other_files_to_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "private.mkv")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile private.mkv\n")
    assert "could not be opened as a video" in open_error("list.mp4")


def test_a_name_that_ffmpeg_would_take_for_a_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("udp:1.mp4", "%03d.mp4", "a <script>.mp4", "-.mp4"):
        write_clip(tmp_path / name)
        with open_video(VideoSource.of(name)) as container:
            assert container.streams.video[0].frames == 20


def test_streams_and_devices_that_cannot_be_opened():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        message = open_error(f"rtsp://user:s3cret@127.0.0.1:{port}/1")
    assert f"'rtsp://***@127.0.0.1:{port}/1' could not be opened as a video: Connection refused." in message
    assert "s3cret" not in message
    assert "Check that it is a camera" in open_error("/dev/null")


def test_a_server_that_does_not_answer():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        message = open_error(f"rtsp://user:s3cret@127.0.0.1:{port}/1", open_timeout=0.5)
    assert "could not be opened as a video: no response arrived in 0.5 seconds." in message and "s3cret" not in message


def test_pyav_is_imported_for_videos_only(tmp_path):
    code = (
        "import sys; import vcp_clip_hf.video, vcp_clip_hf.cli.predict\n"
        "from vcp_clip_hf.video import is_video_source\n"
        "assert not is_video_source('a.png') and is_video_source('a.mp4') and 'av' not in sys.modules\n"
        "sys.modules['av'] = None\n"
        "from vcp_clip_hf.video.sources import import_av\n"
        "try: import_av()\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == 'Video files and cameras need PyAV: pip install "vcp-clip-hf[video]"'
