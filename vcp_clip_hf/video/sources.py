"""Recognize video sources, name them without their credentials, and open them with FFmpeg (PyAV).

Sources are files, http(s) addresses of files, network streams (RTSP, RTMP, SRT, HLS, MPEG-TS over TCP or UDP, ...) and
capture devices of Linux (`/dev/video0`).
"""

import contextlib
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit


if TYPE_CHECKING:
    from av.container import InputContainer

__all__ = [
    "VIDEO_SUFFIXES",
    "VideoError",
    "VideoSource",
    "import_av",
    "is_video_source",
    "open_video",
    "without_secrets",
]

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".wmv", ".asf", ".flv", ".ogv", ".mxf"),
    *(".mpg", ".mpeg", ".m1v", ".m2v", ".vob", ".ts", ".mts", ".m2ts"),
    *(".h264", ".264", ".h265", ".265", ".hevc", ".mjpg", ".mjpeg"),
)
_STREAM_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "srt", "udp", "tcp", "rtp")
# Endings of URLs of endless streams on a web server
_STREAM_SUFFIXES = (".m3u8", ".mpd", ".mjpg", ".mjpeg")
# FFmpeg recognizes formats by content. Some of them (playlists, concat scripts) name other files to read
_FILE_FORMATS = ",".join(
    (
        *("mov", "matroska", "avi", "asf", "flv", "ogg", "mxf", "mpeg", "mpegts", "mpegvideo", "m4v"),
        *("h264", "hevc", "mjpeg", "mpjpeg"),
    )
)
_SECRET_NAMES = "user|usr|login|pass|pwd|token|key|auth|secret|sig"
# Names in queries (a=1&b=2), and in the paths of some cameras (user=a_password=b_channel=1)
_SECRET_VALUES = re.compile(rf"((?:{_SECRET_NAMES})[a-z]*=).*?(?=[&;#/]|_[a-z]+=|$)", re.IGNORECASE)
# Permanent failures of a connection
_LASTING = (
    *("ProtocolNotFoundError", "DemuxerNotFoundError", "DecoderNotFoundError", "OptionNotFoundError"),
    *("HTTPBadRequestError", "HTTPUnauthorizedError", "HTTPForbiddenError", "HTTPNotFoundError", "ArgumentError"),
    *("FileNotFoundError", "PermissionError"),
)


class VideoError(ValueError):
    """
    A source that cannot be opened or read, in a sentence without credentials.

    Args:
        message (`str`): the sentence.
        lasting (`bool`): whether the failure is permanent, so that opening the source again cannot help.
    """

    def __init__(self, message: str, lasting: bool = True):
        super().__init__(message)
        self.lasting = lasting


def import_av() -> ModuleType:
    """
    Return PyAV.

    Raises:
        ImportError: it is not installed; the message has the pip line.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError('Video files and cameras need PyAV: pip install "vcp-clip-hf[video]"') from error
    return av


def is_video_source(source: str | os.PathLike) -> bool:
    """
    Return whether a source is a video: by its ending, its scheme, or because it is a character device.

    Args:
        source (`str` or `os.PathLike`): path or URL. No file is opened.
    """
    return _kind(os.fspath(source)) is not None


def _kind(source: str) -> str | None:
    """Return "file", "url" (a file on a web server), "stream", "device", or `None` for other sources."""
    scheme, found, _ = source.partition("://")
    if found and scheme.lower() in _STREAM_SCHEMES:
        return "stream"
    if found and scheme.lower() in ("http", "https"):
        suffix = os.path.splitext(urlsplit(source).path)[1].lower()
        if suffix in _STREAM_SUFFIXES:
            return "stream"
        return "url" if suffix in VIDEO_SUFFIXES else None
    with contextlib.suppress(OSError, ValueError):
        if stat.S_ISCHR(os.stat(source).st_mode):
            return "device"
    if source.startswith("/dev/video"):
        return "device"  # not connected now
    return "file" if source.lower().endswith(VIDEO_SUFFIXES) and not os.path.isdir(source) else None


def without_secrets(source: str) -> str:
    """
    Return a path or URL for messages: user name, password, and values of parameters such as `token` become `***`.

    Args:
        source (`str`): path, which is returned unchanged, or URL. All up to the last "@" counts as credentials, since
            passwords may have any character.
    """
    scheme, found, rest = source.partition("://")
    if not found:
        return source
    _, at, place = rest.rpartition("@")
    place = _SECRET_VALUES.sub(r"\1***", place)
    return f"{scheme}://{'***@' if at else ''}{place}"


@dataclass(frozen=True)
class VideoSource:
    """
    A video.

    Args:
        location (`str`): path or URL, with credentials; not in the representation.
        kind (`str`): `"file"`, `"url"` (a file on a web server), `"stream"` or `"device"`.
    """

    location: str = field(repr=False)
    kind: str

    @classmethod
    def of(cls, source: str | os.PathLike) -> "VideoSource":
        """
        Return the source that a path or URL names.

        Args:
            source (`str` or `os.PathLike`): path or URL.

        Raises:
            ValueError: it is not a video source.
        """
        location = os.fspath(source)
        kind = _kind(location)
        if kind is None:
            raise ValueError(
                f"{without_secrets(location)!r} is not a video: give a file with an ending such as .mp4 or .mkv, a"
                f" stream ({', '.join(_STREAM_SCHEMES)}), or a device such as /dev/video0."
            )
        return cls(location, kind)

    @property
    def is_live(self) -> bool:
        """Return whether the source is a stream or a device, whose frames must be dropped if the reader is slow."""
        return self.kind in ("stream", "device")

    @property
    def name(self) -> str:
        """Return the path or URL without credentials."""
        return without_secrets(self.location)

    @property
    def identity(self) -> str:
        """Return the name that is the same in every run: the absolute path, or the URL without credentials."""
        return os.path.abspath(self.location) if self.kind == "file" else self.name


@contextlib.contextmanager
def open_video(
    source: VideoSource,
    input_options: Mapping[str, str] | None = None,
    open_timeout: float = 10.0,
    read_timeout: float = 10.0,
) -> "Iterator[InputContainer]":
    """
    Open a source with a video stream for reading.

    Args:
        source ([`VideoSource`]): the source.
        input_options (`Mapping[str, str]`, *optional*):
            Options of FFmpeg's demuxers and protocols, such as `{"rtsp_transport": "udp"}` or
            `{"video_size": "1920x1080", "framerate": "30"}` for a device.
        open_timeout, read_timeout (`float`): seconds to wait for a connection, and for data.

    Yields:
        `av.container.InputContainer`

    Raises:
        OSError: a file cannot be opened.
        VideoError: the source cannot be opened, or has no video.
    """
    av = import_av()
    with contextlib.ExitStack() as stack:
        if source.kind == "file":
            # FFmpeg gets the file and not its name, which it could interpret as a protocol or a pattern
            file = stack.enter_context(open(source.location, "rb"))
            if not os.fstat(file.fileno()).st_size:
                raise VideoError(f"{source.name!r} is an empty file. Copy the video again.")
        else:
            file = source.location
        options = {**_default_options(source), **(input_options or {})}
        timeout = None if source.kind == "file" else (open_timeout, read_timeout)
        format = "video4linux2" if source.kind == "device" else None
        deadline = time.monotonic() + open_timeout
        try:
            container = av.open(file, format=format, options=options, timeout=timeout)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            # FFmpeg's own message has the URL, and a wrong reason after a timeout
            reason = getattr(error, "strerror", None) or type(error).__name__
            if timeout is not None and time.monotonic() >= deadline:
                reason = f"no response arrived in {open_timeout:.1f} seconds"
            raise VideoError(_sentence(source, reason), type(error).__name__ in _LASTING) from None
        stack.enter_context(container)
        if not container.streams.video:
            raise VideoError(
                f"{source.name!r} has no video, only {_streams(container)}. Give a file with a video stream."
            )
        yield container


def _default_options(source: VideoSource) -> dict[str, str]:
    if source.kind in ("file", "url"):
        return {"format_whitelist": _FILE_FORMATS}
    if source.location.lower().startswith("rtsp"):
        return {"rtsp_flags": "prefer_tcp"}  # packets over UDP get lost, and firewalls stop them
    return {}


def _sentence(source: VideoSource, reason: str) -> str:
    advice = {
        "file": "Check that the file is a complete video, in a format that FFmpeg reads.",
        "url": "Check the address, and that it is a complete video.",
        "stream": "Check address, user name and password, and that the camera is on.",
        "device": "Check that it is a camera (v4l2-ctl --list-devices) and that this user is in the group video.",
    }[source.kind]
    return f"{source.name!r} could not be opened as a video: {reason}. {advice}"


def _streams(container: "InputContainer") -> str:
    return ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
