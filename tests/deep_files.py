"""PNG files with 16 bits per channel, which Pillow cannot write."""

import struct
import zlib
from pathlib import Path

import numpy as np


def write_png(path: Path, values: np.ndarray, interlaced: bool = False, exif: bytes = b"") -> None:
    """Write 16-bit gray, gray with alpha, RGB or RGBA; Pillow cannot."""
    height, width, channels = values.shape
    steps = (
        [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
        if interlaced
        else [(0, 0, 1, 1)]
    )
    rows = b""
    for column, row, across, down in steps:  # Adam7
        for line in values[row::down, column::across].astype(">u2"):
            rows += (b"\0" + line.tobytes()) if line.size else b""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, int(interlaced))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"eXIf", exif) if exif else b"")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
