"""Thumbnails: size, orientation, the scale of maps, masks, and files that cannot be read."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from vcp_clip_hf.reports.thumbnails import map_thumbnail, mask_thumbnail, placeholder, thumbnail
from vcp_clip_hf.visualization import heatmap


def decoded(uri: str) -> Image.Image:
    kind, content = uri.split(";base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == "data:image/webp" and picture.format == "WEBP"
    return picture.convert("RGB")


def test_pictures_fit_and_small_ones_are_not_enlarged(tmp_path):
    assert decoded(thumbnail(Image.new("RGB", (400, 100)), 200)).size == (200, 50)
    assert decoded(thumbnail(Image.new("L", (1000, 1)), 200)).size == (200, 1)
    assert decoded(thumbnail(Image.new("RGBA", (20, 10)), 200)).size == (20, 10)
    Image.new("RGB", (64, 32), "red").save(tmp_path / "a.png")
    assert decoded(thumbnail(tmp_path / "a.png", 16)).size == (16, 8)


def test_pictures_are_upright_and_16_bits_keep_their_gray(tmp_path):
    upright = Image.new("RGB", (40, 20))
    exif = upright.getexif()
    exif[0x0112] = 6
    upright.save(tmp_path / "turned.jpg", exif=exif)
    assert decoded(thumbnail(str(tmp_path / "turned.jpg"))).size == (20, 40)
    Image.fromarray(np.full((8, 8), 32896, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert abs(np.asarray(decoded(thumbnail(tmp_path / "deep.png"))).astype(int) - 128).max() <= 2


def test_maps_are_shown_on_the_fixed_scale(tmp_path):
    values = np.full((40, 60), 0.25, dtype=np.float32)
    Image.fromarray(np.rint(values * 65535).astype(np.uint16)).save(tmp_path / "map.png")
    np.save(tmp_path / "map.npy", values)
    expected = np.asarray(heatmap(values))[0, 0].astype(int)
    for source in (values, tmp_path / "map.png", str(tmp_path / "map.npy")):
        picture = decoded(map_thumbnail(source, 30))
        assert picture.size == (30, 20) and abs(np.asarray(picture) - expected).max() <= 4


def test_thin_regions_of_masks_stay_visible(tmp_path):
    mask = np.zeros((800, 800), dtype=np.uint8)
    mask[400:402] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for source in (mask, Image.fromarray(mask), tmp_path / "mask.png"):
        pixels = np.asarray(decoded(mask_thumbnail(source, 100)))
        assert set(np.unique(pixels)) == {0, 255} and (pixels[50] == 255).all() and pixels[:40].max() == 0


@pytest.mark.parametrize("make", [thumbnail, map_thumbnail, mask_thumbnail])
def test_files_that_cannot_be_read_have_a_placeholder(make, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "no.npy").write_bytes(b"\x93NUMPY")
    missing, damaged = placeholder("file not found", 200), placeholder("file cannot be read", 200)
    assert missing != damaged and decoded(missing).size == (200, 150)
    assert make(tmp_path / "missing.png", 200) == missing
    assert make(tmp_path / "text.png", 200) == damaged and make(tmp_path / "no.npy", 200) == damaged
    assert make(tmp_path, 200) in (missing, damaged)


def test_nothing_is_requested_from_a_network_and_no_pickle_is_read(tmp_path):
    assert thumbnail("http://127.0.0.1:9/a.png", 200) == placeholder("not on this machine", 200)
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert map_thumbnail(tmp_path / "object.npy", 200) == placeholder("file cannot be read", 200)
