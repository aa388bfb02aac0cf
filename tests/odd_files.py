"""A folder of odd files, and what each verb does with them; `python -m tests.odd_files` rewrites the docs' table.

The table is made from real runs, never by hand.
"""

import logging
import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

from tests.common import tiny_model, tiny_tokenizer
from tests.training_run import make_model_folder
from vcp_clip_hf import AnomalySegmentationPipeline, VCPCLIPImageProcessor
from vcp_clip_hf.data import load_anomaly_dataset
from vcp_clip_hf.evaluation import evaluate
from vcp_clip_hf.input_images import find_inputs
from vcp_clip_hf.prediction import predict_files, read_predictions
from vcp_clip_hf.training import train
from vcp_clip_hf.training_config import TrainingConfig


DOCUMENT = Path(__file__).parent.parent / "docs" / "odd_files.md"
SIZE = (32, 24)
READ, FAILED, LEFT_OUT = "read", "listed as failed", "left out"


def _values(dtype: type = np.uint8, channels: int | None = 3) -> np.ndarray:
    shape = (SIZE[1], SIZE[0]) if channels is None else (SIZE[1], SIZE[0], channels)
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


def _rgb() -> Image.Image:
    return Image.fromarray(_values())


def _saved(mode: str = "RGB", **options) -> Callable[[Path], None]:
    return lambda path: _rgb().convert(mode).save(path, **options)


def _content(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content)


def _png(width: int, height: int, depth: int, color: int, data: bytes) -> bytes:
    """Return a PNG file with the given header; `data` are its rows, each after a filter byte."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def _png_16_bit_rgb() -> bytes:
    rows = _values(np.uint16).astype(">u2")
    return _png(*SIZE, 16, 2, b"".join(b"\0" + row.tobytes() for row in rows))


def _truncated(suffix: str, kept: float) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        whole = path.with_name(f"whole{suffix}")
        _rgb().save(whole)
        content = whole.read_bytes()
        whole.unlink()
        path.write_bytes(content[: int(len(content) * kept)])

    return make


def _exif(orientation: int) -> Callable[[Path], None]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _saved(exif=exif)


def _frames(path: Path) -> None:
    _rgb().convert("P").save(path, save_all=True, append_images=[Image.new("P", SIZE), Image.new("P", SIZE)])


def _link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


# Path below the folder of normal images -> what it is, and how it is made
FILES: dict[str, tuple[str, Callable[[Path], None]]] = {
    # kinds
    "plain.png": ("PNG, 8 bits, RGB", _saved()),
    "photo.jpg": ("JPEG", _saved()),
    "photo_2.jpeg": ("JPEG", _saved()),
    "photo_3.jfif": ("JPEG", _saved(format="JPEG")),
    "cmyk.jpg": ("JPEG, CMYK", _saved("CMYK")),
    "gray.jpg": ("JPEG, gray", _saved("L")),
    "bitmap.bmp": ("BMP", _saved()),
    "tiff.tif": ("TIFF", _saved()),
    "lzw.tiff": ("TIFF, LZW", _saved(compression="tiff_lzw")),
    "web.webp": ("WebP", _saved()),
    "av1.avif": ("AVIF", _saved()),
    "jpeg_2000.jp2": ("JPEG 2000", _saved()),
    "targa.tga": ("TGA", _saved()),
    "pixmap.ppm": ("PPM", _saved()),
    "graymap.pgm": ("PGM", _saved("L")),
    "bitmap_1.pbm": ("PBM, 1 bit", _saved("1")),
    "frames.gif": ("GIF, 3 frames: the first is read", _frames),
    "frames_2.png": ("PNG, 3 frames: the first is read", _frames),
    "UPPER.PNG": ("ending in capitals", _saved()),
    "alpha.png": ("PNG with transparency", _saved("RGBA")),
    "palette.png": ("PNG with a palette", _saved("P")),
    "one_bit.png": ("PNG, 1 bit", _saved("1")),
    "gray_alpha.png": ("PNG, gray with transparency", _saved("LA")),
    # bits
    "gray16.png": ("PNG, gray, 16 bits", lambda path: Image.fromarray(_values(np.uint16, None)).save(path)),
    "tiff16.tif": ("TIFF, gray, 16 bits", lambda path: Image.fromarray(_values(np.uint16, None)).save(path)),
    "rgb16.png": ("PNG, RGB, 16 bits", _content(_png_16_bit_rgb())),
    "float01.tif": (
        "TIFF, floats from 0 to 1",
        lambda path: Image.fromarray(np.float32(_values(channels=None) / 255)).save(path),
    ),
    "float255.tif": (
        "TIFF, floats from 0 to 255",
        lambda path: Image.fromarray(np.float32(_values(channels=None))).save(path),
    ),
    "float_range.tif": (
        "TIFF, floats from -1000 to 1000",
        lambda path: Image.fromarray(np.linspace(-1000, 1000, 24 * 32, dtype=np.float32).reshape(24, 32)).save(path),
    ),
    "nan.tif": ("TIFF with a NaN", lambda path: Image.fromarray(np.full((24, 32), np.nan, np.float32)).save(path)),
    # EXIF, sizes
    "exif6.jpg": ("JPEG turned by its EXIF data", _exif(6)),
    "exif3.png": ("PNG turned by its EXIF data", _exif(3)),
    "one_pixel.png": ("1 x 1 pixel", lambda path: Image.new("RGB", (1, 1)).save(path)),
    "thin.png": ("1 x 300 pixels", lambda path: Image.new("RGB", (300, 1)).save(path)),
    "huge.png": ("header of 40000 x 40000 pixels", _content(_png(40000, 40000, 8, 2, b"\0"))),
    # broken
    "empty.png": ("0 bytes", _content(b"")),
    "text.png": ("text named .png", _content(b"not an image")),
    "truncated.png": ("PNG, second half missing", _truncated(".png", 0.5)),
    "truncated_2.jpg": ("JPEG, second half missing", _truncated(".jpg", 0.5)),
    "header_only.tif": ("TIFF, only the header", _truncated(".tif", 0.01)),
    "zeros.jpg": ("1000 zeros", _content(bytes(1000))),
    "jpeg_inside.png": ("JPEG named .png", _saved(format="JPEG")),
    "page.jpg": ("HTML page named .jpg", _content(b"<html><body>404</body></html>")),
    # names
    "two words.png": ("space in the name", _saved()),
    "new\nline.png": ("line break in the name", _saved()),
    'quo"te,comma.png': ("quotation mark and comma in the name", _saved()),
    "=cmd|' -C calc'!A0.png": ("a formula as name", _saved()),
    "-dash.png": ("dash before the name", _saved()),
    "emoji 😀.png": ("emoji in the name", _saved()),
    "x" * 200 + ".png": ("200 characters", _saved()),
    os.fsdecode(b"bytes \xff\xfe.png"): (
        "name that is not UTF-8",
        lambda path: path.write_bytes(_png(1, 1, 8, 2, b"\0abc")),
    ),
    "case.png": ("same name in small letters", _saved()),
    "CASE.png": ("same name in capitals", _saved()),
    "plain.png.bmp": ("two endings", _saved()),
    "a%20b.png": ("percent sign in the name", _saved()),
    # places
    "deep/er/still.png": ("in a folder of folders", _saved()),
    "folder.png/inside.png": ("in a folder named .png", _saved()),
    "._plain.png": ("hidden, by macOS", _content(b"\0\5\26\7")),
    ".hidden.png": ("hidden", _saved()),
    ".ipynb_checkpoints/plain.png": ("in a hidden folder", _saved()),
    "__MACOSX/plain.png": ("in a folder of macOS", _saved()),
    "Thumbs.db": ("by Windows", _content(b"x")),
    "link.png": ("link to an image", _link("plain.png")),
    "broken_link.png": ("link to nothing", _link("gone.png")),
    "loop": ("link to its own folder", _link(".")),
    "copy.png": ("same content as plain.png", _saved()),
    "one_name.jpg": ("same name with two endings", _saved()),
    "one_name.png": ("same name with two endings", _saved()),
    # other endings
    "notes.txt": ("text", _content(b"notes")),
    "no_ending": ("PNG without an ending", _saved(format="PNG")),
    "photo.heic": ("HEIC", _content(b"\0\0\0\x18ftypheic")),
    "drawing.svg": ("SVG", _content(b"<svg/>")),
    "values.npy": ("NumPy array", lambda path: np.save(path, _values())),
}


def make_folder(root: Path) -> None:
    """Write the odd files into `root/good`, and two anomalous images into `root/scratch`."""
    for name, (_, make) in FILES.items():
        path = root / "good" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)
    (root / "scratch").mkdir()
    for index in range(2):
        Image.fromarray(255 - _values()).save(root / "scratch" / f"{index}.png")


def _statuses(read: set[str], failed: set[str]) -> dict[str, str]:
    return {name: READ if name in read else FAILED if name in failed else LEFT_OUT for name in FILES}


def _relative(root: Path, path: str) -> str:
    return os.path.relpath(path, root / "good")


def of_predict(root: Path, pipe: AnomalySegmentationPipeline) -> dict[str, str]:
    """Segment the folder into a folder inside of it, twice; return the status of each file."""
    output = root / "good" / "results"
    for _ in range(2):
        predict_files(pipe, [root / "good"], output, progress=False)
    read, failed = set(), set()
    for record in read_predictions(output):
        (failed if "error" in record else read).add(_relative(root, record["image"]))
    return _statuses(read, failed)


def of_calibrate(root: Path, pipe: AnomalySegmentationPipeline) -> dict[str, str]:
    """Calibrate on the folder; return the status of each file."""
    paths = [image.path for image in find_inputs([root / "good"], exclude=[root / "good" / "results"]).images]
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("vcp_clip_hf.pipeline_calibration")
    logger.addHandler(handler)
    try:
        calibration = pipe.calibrate(paths, false_alarm_rate=0.1, on_error="return")
    finally:
        logger.removeHandler(handler)
    unread = {path for path in paths if any(path in message for message in messages)}
    assert calibration.num_images == len(paths) - len(unread)
    return _statuses(
        {_relative(root, path) for path in paths if path not in unread}, {_relative(root, path) for path in unread}
    )


def _load(root: Path, folder: Path):
    options = {"data_dir": str(root), "layout": "kinds", "cache_dir": str(folder / "cache"), "on_error": "skip"}
    return load_anomaly_dataset("folder", split="test", **options)


def of_dataset(root: Path, folder: Path) -> dict[str, str]:
    """Read the folder as `evaluate` and `train` do; return the status of each file."""
    listed = {_relative(root, image.path) for image in find_inputs([root / "good"]).images}
    by_id = {_image_id(name): name for name in listed}
    read = set()
    for row in _load(root, folder).cast_column("image", datasets.Image(decode=False)):
        if row["label"] == 0:
            path = row["image"]["path"]  # missing where the table holds the converted picture
            read.add(by_id[row["image_id"]] if path is None else _relative(root, path))
    return _statuses(read, listed - read)


def _image_id(name: str) -> str:
    return f"good/{os.path.splitext(name)[0]}".encode("utf-8", "backslashreplace").decode()


def make_pipe() -> AnomalySegmentationPipeline:
    """Return a pipeline with random weights, the same at every call."""
    torch.manual_seed(0)
    model = tiny_model()
    processor = VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=2.0, threshold=0.5)
    return AnomalySegmentationPipeline(
        model=model, image_processor=processor, tokenizer=tiny_tokenizer(), device="cpu"
    )


def make_table(folder: Path) -> str:
    """Run all verbs over the folder; return the table as Markdown."""
    root = folder / "parts"
    make_folder(root)
    pipe = make_pipe()
    columns = [of_dataset(root, folder), of_calibrate(root, pipe), of_predict(root, pipe)][::-1]
    rows = [
        f"| `{_shown(name)}` | {kind} | {' | '.join(column[name] for column in columns)} |"
        for name, (kind, _) in FILES.items()
    ]
    return "\n".join(["| file | what it is | predict | calibrate | evaluate, train |", "|---|---|---|---|---|", *rows])


def _shown(name: str) -> str:
    name = f"{name[:20]}...{name[-8:]}" if len(name) > 60 else name
    return name.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n").replace("|", "\\|")


def evaluate_and_train(folder: Path) -> None:
    """Evaluate and train on the folder of [`make_table`]; fail if an image is missing in either."""
    dataset = _load(folder / "parts", folder)
    model = tiny_model()
    report = evaluate(model, VCPCLIPImageProcessor.for_model(model.config), {"odd": dataset}, progress=False)
    make_model_folder(folder)
    result = train(
        TrainingConfig(
            output_dir=str(folder / "run"),
            dataset="folder",
            model=str(folder / "model"),
            per_device_train_batch_size=8,
            num_train_epochs=1,
            dataloader_num_workers=0,
        ),
        dataset,
    )
    assert sum(counts["images"] for counts in report.results["odd"]["counts"].values()) == len(dataset)
    assert result.last.is_dir() and result.state.step == -(-len(dataset) // 8)


def document() -> str:
    """Return the text before the table."""
    return DOCUMENT.read_text(encoding="utf-8").split("| file |")[0] if DOCUMENT.is_file() else ""


def main() -> None:
    """Rewrite the table in the docs."""
    with tempfile.TemporaryDirectory() as folder:
        DOCUMENT.write_text(document() + make_table(Path(folder)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
