"""Odd files: each has a defined picture, or an error that names it."""

import os
import struct
import tempfile

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.processes import run_program
from vcp_clip_hf.image_loading import load_image
from vcp_clip_hf.image_opening import open_picture


@pytest.fixture
def picture() -> Image.Image:
    return Image.effect_noise((40, 30), 70).convert("RGB")


def test_the_content_decides_not_the_ending(picture, tmp_path):
    picture.save(tmp_path / "a.bmp")
    os.rename(tmp_path / "a.bmp", tmp_path / "a.jpg")
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.jpg")), np.asarray(picture))


def test_files_that_hold_no_image(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink(tmp_path / "nowhere", tmp_path / "link.png")
    for name, error, message in (
        ("empty.png", ValueError, r"the file is empty \(0 bytes\)"),
        ("text.png", ValueError, "not an image file that Pillow can read"),
        ("folder.png", FileNotFoundError, "is a folder"),
        ("pipe.png", FileNotFoundError, "is not a regular file"),
        ("link.png", FileNotFoundError, "No such image file"),
    ):
        with pytest.raises(error, match=rf"(?=.*{name}).*{message}"):
            load_image(tmp_path / name)
    with pytest.raises(ValueError, match="the image bytes: the file is empty"):
        load_image(b"")


def test_a_file_that_vanishes(picture, tmp_path, monkeypatch):
    """It exists when it is found, and not when it is opened."""
    monkeypatch.setattr(os.path, "isfile", lambda path: True)
    with pytest.raises(FileNotFoundError, match=r"No such image file: .*gone\.png"):
        load_image(tmp_path / "gone.png")


def test_postscript_starts_no_program(tmp_path):
    (tmp_path / "page.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n"
    )
    assert Image.open(tmp_path / "page.png").format == "EPS"
    with pytest.raises(ValueError, match=r"page\.png: not an image file"):
        load_image(tmp_path / "page.png")


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "bmp", "gif", "webp", "ppm", "jp2"])
def test_truncated_files(picture, kind, tmp_path):
    picture.save(tmp_path / f"whole.{kind}")
    content = (tmp_path / f"whole.{kind}").read_bytes()
    (tmp_path / f"cut.{kind}").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"cut\.{kind}: (damaged|not an image)"):
        load_image(tmp_path / f"cut.{kind}")


@pytest.mark.parametrize("kind", ["gif", "tiff", "webp", "png"])
def test_the_first_frame_is_read_with_a_warning(kind, tmp_path, said):
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "blue", "lime")]
    frames[0].save(tmp_path / f"moves.{kind}", save_all=True, append_images=frames[1:])
    assert np.asarray(load_image(tmp_path / f"moves.{kind}"))[0, 0].argmax() == 0
    assert len(said) == 1 and f"moves.{kind}: several frames" in said[0]


def test_later_frames_are_not_visited(tmp_path, said):
    """Their number is not limited, and each of them takes time."""
    frames = [Image.new("L", (9, 9), 100 + number) for number in range(3)]
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    content, position = bytearray((tmp_path / "pages.tif").read_bytes()), 4
    for _ in range(3):
        (start,) = struct.unpack_from("<I", content, position)
        position = start + 2 + 12 * struct.unpack_from("<H", content, start)[0]
    content[start : start + 2] = b"\0\0"  # the directory of the third frame has no entries
    (tmp_path / "pages.tif").write_bytes(content)
    assert np.asarray(load_image(tmp_path / "pages.tif"))[0, 0, 0] == 100
    assert "pages.tif: several frames" in said[0]


def test_color_spaces(tmp_path):
    red = Image.new("RGB", (9, 9), (200, 30, 30))
    for mode, kind in (("CMYK", "jpg"), ("CMYK", "tiff"), ("YCbCr", "jpg")):
        red.convert(mode).save(tmp_path / f"{mode}.{kind}")
        pixel = np.asarray(load_image(tmp_path / f"{mode}.{kind}")).astype(int)[4, 4]
        assert np.abs(pixel - (200, 30, 30)).max() <= 4, (mode, kind)
    lab = ImageCms.profileToProfile(
        red, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    lab.save(tmp_path / "lab.tiff")
    assert np.abs(np.asarray(load_image(tmp_path / "lab.tiff")).astype(int)[4, 4] - (200, 30, 30)).max() <= 4


def test_the_limit_of_pixels_is_an_option(picture, tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    picture.save(path)
    with pytest.raises(ValueError, match=r"large\.png: 40 x 30 pixels exceed max_pixels=1199"):
        load_image(path, max_pixels=1199)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses twice as many
    with pytest.raises(ValueError, match=r"large\.png: .*--max-pixels"):
        load_image(path)
    assert load_image(path, max_pixels=1200).size == (40, 30)
    assert Image.MAX_IMAGE_PIXELS == 100, "the limit of the process is restored"


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="Cannot read an image from int"):
        open_picture(3)


def test_a_file_that_may_not_be_read(picture):
    """In a process without the rights of root, which may read everything."""
    program = (
        "import os, sys; from vcp_clip_hf.image_loading import load_image\n"
        "os.getuid() or os.setuid(65534)\n"
        "try: load_image(sys.argv[1])\n"
        "except ValueError as error: print(error)"
    )
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        os.chmod(folder, 0o755)
        path = os.path.join(folder, "locked.png")
        picture.save(path)
        os.chmod(path, 0)
        result = run_program("-c", program, path)
    assert "locked.png: the file may not be read (Permission denied)" in result.stdout, result.stderr
