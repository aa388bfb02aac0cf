"""Maps, masks and overlays on the disk, and how torn files are noticed."""

import numpy as np
import pytest
from PIL import Image

from vcp_clip_hf.input_images import InputImage
from vcp_clip_hf.picture_writer import PictureWriter, is_whole


def result(threshold: float | None = 0.5) -> dict:
    anomaly_map = np.linspace(0, 1, 35, dtype=np.float32).reshape(5, 7)
    mask = None if threshold is None else Image.fromarray((anomaly_map >= threshold).astype(np.uint8) * 255)
    thresholds = {"threshold": threshold, "image_threshold": threshold}
    values = {"score": 1.0, "label": "anomalous", "anomaly_map": anomaly_map, "mask": mask, **thresholds}
    return {**values, "image": Image.new("RGB", (7, 5))}


@pytest.mark.parametrize("kind", ["map", "mask", "overlay"])
@pytest.mark.parametrize("maps", ["png", "npy"])
def test_a_missing_or_torn_file_is_noticed(tmp_path, kind, maps):
    writer = PictureWriter(tmp_path, maps, True, True)
    record = writer(InputImage("a.png", "a"), result())
    assert not writer.lacks(record)
    path = tmp_path / record[kind]
    content = path.read_bytes()
    damages = [content[:-1], b"", content + b"x"]
    if path.suffix != ".npy":
        damages.append(content[:-20] + bytes(20))  # same size: a power cut before the data reached the disk
    for damaged in damages:
        path.write_bytes(damaged)
        assert writer.lacks(record)
    path.unlink()
    assert writer.lacks(record)
    path.write_bytes(content)
    assert not writer.lacks(record) and is_whole(path, len(content))


def test_outputs_that_are_requested_later_are_lacking(tmp_path):
    record = PictureWriter(tmp_path, "png", False, False)(InputImage("a.png", "a"), result())
    assert not PictureWriter(tmp_path, None, False, False).lacks(record)
    for wanted in [("npy", False, False), ("png", True, False), ("png", False, True)]:
        assert PictureWriter(tmp_path, *wanted).lacks(record)
    # without a threshold there is no mask to lack
    record = PictureWriter(tmp_path, "png", True, False)(InputImage("a.png", "a"), result(None))
    assert not PictureWriter(tmp_path, "png", True, False).lacks(record)


def test_one_file_that_cannot_be_written_is_an_error_of_its_image(tmp_path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "a.png").mkdir()
    writer = PictureWriter(tmp_path, "png", True, True)
    record = writer(InputImage("a.png", "a"), result())
    assert set(record) == {"image", "name", "error"} and "could not be written" in record["error"]
    assert "score" in writer(InputImage("b.png", "b"), result())


def test_a_full_disk_ends_the_run(tmp_path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "a.png").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        PictureWriter(tmp_path, "png", False, False)(InputImage("a.png", "a"), result())


def test_urls_record_what_was_seen(tmp_path):
    record = PictureWriter(tmp_path, None, False, False)(InputImage("https://example.org/a.png", "a"), result())
    assert len(record["pixels_sha256"]) == 64
