"""A network camera: `python -m tests.video.camera URL FORMAT RATE PART...` sends a video at its pace.

Each part is a connection: a number of seconds to send, "stall" to connect and send a second, then nothing for a while,
or "pause" to be off for a second.
"""

import contextlib
import sys
import time

import av
import numpy as np


# Difference of the gray levels of consecutive frames; encoders change them by less than half of it
STEP = 8
_STALL_SECONDS = 60.0


def gray_picture(index: int, size: tuple[int, int]) -> np.ndarray:
    """Make frame `index`: one gray level, with a red corner at the top left."""
    picture = np.full((size[1], size[0], 3), STEP * index % 256, np.uint8)
    picture[: size[1] // 4, : size[0] // 4] = (255, 0, 0)
    return picture


def send(url: str, format: str, rate: int, seconds: float, stall: float = 0.0) -> None:
    """Send frames in one connection, made by this side or the other, for some seconds."""
    options = {"rtsp_transport": "tcp"} if format == "rtsp" else {}
    with av.open(url, "w", format=format, options=options) as file:
        stream = file.add_stream("libx264", rate=rate, options={"tune": "zerolatency", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = 5
        started = time.monotonic()
        for index in range(round(seconds * rate)):
            frame = av.VideoFrame.from_ndarray(gray_picture(index % 30, (64, 48)), "rgb24")
            frame.pts = index
            file.mux(stream.encode(frame))
            time.sleep(max(0.0, started + (index + 1) / rate - time.monotonic()))
        time.sleep(stall)


def main(url: str, format: str, rate: str, *parts: str) -> None:
    """Send all parts; a part without a reader is sent again."""
    for part in parts:
        if part == "pause":
            time.sleep(1.0)
            continue
        for _ in range(600):
            with contextlib.suppress(OSError):  # no reader yet, or the reader has disconnected
                if part == "stall":
                    send(url, format, int(rate), 1.0, _STALL_SECONDS)
                else:
                    send(url, format, int(rate), float(part))
                break
            time.sleep(0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
