"""Short videos whose frames can be told apart by their gray level, and a small pipeline."""

import io
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from tests.common import tiny_model, tiny_tokenizer
from tests.video.camera import STEP, gray_picture
from vcp_clip_hf import AnomalySegmentationPipeline, VCPCLIPImageProcessor


ROOT = Path(__file__).parents[2]


def make_pipe(**settings) -> AnomalySegmentationPipeline:
    torch.manual_seed(0)
    model = tiny_model()
    processor = VCPCLIPImageProcessor.for_model(
        model.config, **{"smoothing_sigma": 2.0, "threshold": 0.5, "image_threshold": 0.5, **settings}
    )
    return AnomalySegmentationPipeline(
        model=model, image_processor=processor, tokenizer=tiny_tokenizer(), device="cpu"
    )


def index_of(picture: Image.Image) -> int:
    """Read the number of a frame from its gray level, which is that of its center."""
    return round(picture.convert("L").getpixel((picture.width // 2, picture.height // 2)) / STEP)


def write_clip(
    path: Path | io.BytesIO,
    frames: int = 20,
    rate: int = 10,
    size: tuple[int, int] = (64, 48),
    milliseconds: Sequence[int] | None = None,
    rotation: int | None = None,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    **container,
) -> Path:
    """Write a video at a constant rate, or with a time stamp for each frame."""
    with av.open(path, "w", **container) as file:
        stream = file.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p" if codec != "mjpeg" else "yuvj420p"
        if rotation is not None:
            stream.set_display_rotation(rotation)
        ticks = 1000 if milliseconds else rate
        stream.codec_context.time_base = Fraction(1, ticks)
        for index in range(frames if milliseconds is None else len(milliseconds)):
            frame = av.VideoFrame.from_ndarray(gray_picture(index, size), "rgb24")
            frame.pts, frame.time_base = (milliseconds or range(frames))[index], Fraction(1, ticks)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """Write a file with sound only."""
    with av.open(path, "w") as file:
        stream = file.add_stream("aac", rate=16000)
        for number in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 16000, 1024 * number
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def start_camera(*arguments: object) -> subprocess.Popen:
    """Start `camera.py`, a sender in a process of its own."""
    command = [sys.executable, "-m", "tests.video.camera", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
