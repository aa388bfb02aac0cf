"""Every kind of image gives the right picture; every wrong input gives an error that explains it."""

import io

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from tests.deep_files import write_png
from vcp_clip_hf.image_loading import list_images, load_image, load_mask, load_reduced


@pytest.fixture
def rgb() -> np.ndarray:
    """Return an array of shape (20, 30, 3), uint8, that uses all values."""
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def same(image, expected: np.ndarray):
    picture = load_image(image)
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), np.broadcast_to(expected, (*expected.shape[:2], 3)))


def gray_of(rgb):
    return rgb[..., :1]


# --- Pillow modes, files, bytes, URLs -----------------------------------------------------------------------------


def test_8_bit_modes(rgb):
    gray = rgb[..., 0]
    same(Image.fromarray(rgb), rgb)
    same(Image.fromarray(gray), gray[..., None])
    same(Image.fromarray(gray > 128), np.where(gray[..., None] > 128, 255, 0).astype(np.uint8))
    alpha = np.full((*gray.shape, 1), 7, np.uint8)
    same(Image.fromarray(np.concatenate([rgb, alpha], axis=-1)), rgb)
    same(Image.fromarray(np.concatenate([gray[..., None], alpha], axis=-1)), gray[..., None])
    cmyk = Image.fromarray(rgb).convert("CMYK")
    same(cmyk, np.asarray(cmyk.convert("RGB")))
    palette = Image.fromarray(rgb).quantize(16)
    same(palette, np.asarray(palette.convert("RGB")))
    palette.info["transparency"] = bytes(range(16))
    same(palette, np.asarray(Image.fromarray(rgb).quantize(16).convert("RGB")))


def test_more_than_8_bits_keep_their_range(rgb):
    gray = rgb[..., 0]
    wide = gray.astype(np.uint16) * 257
    same(Image.fromarray(wide), gray[..., None])  # I;16
    same(Image.fromarray(wide.astype(np.int32)), gray[..., None])  # I, as Pillow opens many 16-bit files
    same(Image.fromarray(gray.astype(np.float32) / 255), gray[..., None])  # F in [0, 1]
    same(Image.fromarray(gray.astype(np.float32)), gray[..., None])  # F in [0, 255]


@pytest.mark.parametrize("extension", ["png", "bmp", "tiff", "webp"])
def test_files_bytes_and_paths(rgb, extension, tmp_path):
    path = tmp_path / f"image.{extension}"
    Image.fromarray(rgb).save(path, **({"lossless": True} if extension == "webp" else {}))
    for source in (path, str(path), path.read_bytes()):
        same(source, rgb)


def test_16_bit_files(rgb, tmp_path):
    for extension in ("png", "tiff"):
        path = tmp_path / f"deep.{extension}"
        Image.fromarray(rgb[..., 0].astype(np.uint16) * 257).save(path)
        same(path, gray_of(rgb))


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    upright = load_image(tmp_path / "turned.png")
    assert upright.size == (8, 16)
    np.testing.assert_array_equal(np.asarray(upright), np.rot90(pixels, -1))


# --- arrays ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_array_layouts(rgb, library):
    gray = rgb[..., 0]
    same(library(gray), gray[..., None])
    same(library(gray[..., None]), gray[..., None])
    same(library(gray[None]), gray[..., None])
    same(library(rgb), rgb)
    same(library(rgb.transpose(2, 0, 1).copy()), rgb)
    same(library(np.concatenate([rgb, rgb[..., :1]], axis=-1)), rgb)


def test_an_ambiguous_layout_follows_the_convention_of_the_library(rgb):
    small = rgb[:3, :, :]  # (3, 30, 3)
    same(small, small)
    same(torch.tensor(small.transpose(2, 0, 1).copy()), small)
    np.testing.assert_array_equal(np.asarray(load_image(small, channels_last=False)), small.transpose(1, 2, 0))


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.astype(np.float32) / 255,
        lambda x: x.astype(np.float64),
        lambda x: (x.astype(np.float64) / 255).astype(np.float16),
        lambda x: x.astype(np.uint16) * 257,
        lambda x: x.astype(np.int64),
        lambda x: x.astype(np.int32) * 257,
        lambda x: torch.tensor(x.astype(np.float32) / 255).requires_grad_(),
        lambda x: torch.tensor(x.astype(np.float32)),
    ],
    ids=[
        "float32 01",
        "float64 0255",
        "float16 01",
        "uint16",
        "int64 8 bit",
        "int32 16 bit",
        "torch 01",
        "torch 0255",
    ],
)
def test_value_types_keep_their_range(rgb, convert):
    same(convert(rgb), rgb)


def test_bfloat16_and_bool(rgb):
    values = torch.tensor([[0.0, 0.5, 1.0]] * 2, dtype=torch.bfloat16)
    assert np.asarray(load_image(values))[0, :, 0].tolist() == [0, 128, 255]
    same(rgb[..., 0] > 99, np.where(rgb[..., :1] > 99, 255, 0).astype(np.uint8))


def test_input_range_replaces_the_rule():
    camera = np.linspace(0, 4095, 60, dtype=np.uint16).reshape(6, 10)
    bright = np.asarray(load_image(camera, input_range=(0, 4095)))[..., 0]
    assert (bright.min(), bright.max()) == (0, 255)
    normalized = np.array([[-2.0, 0.0, 2.0, 9.0]] * 2)
    assert np.asarray(load_image(normalized, input_range=(-2, 2)))[0, :, 0].tolist() == [0, 128, 255, 255]
    same_8_bit = np.full((4, 4), 200, np.uint8)
    assert np.asarray(load_image(same_8_bit, input_range=(0, 4095))).max() == 200


def test_12_bit_data_is_darkened_with_a_warning(said, tmp_path):
    load_image(np.full((4, 4), 4000, np.uint16))
    assert len(said) == 1 and "12-bit" in said[0] and "input_range=(0, 4095)" in said[0]
    load_image(np.full((4, 4), 60000, np.uint16))
    assert len(said) == 1
    Image.fromarray(np.full((4, 4), 4000, np.uint16)).save(tmp_path / "twelve.png")
    load_image(tmp_path / "twelve.png")
    load_image(tmp_path / "twelve.png")
    assert len(said) == 2 and "twelve.png" in said[1], "each file once, by its name"


def test_warnings_name_ten_files_of_a_kind(said, tmp_path):
    for index in range(13):
        Image.fromarray(np.full((4, 4), 4000, np.uint16)).save(tmp_path / f"{index:02d}.png")
        load_image(tmp_path / f"{index:02d}.png")
    assert len(said) == 10 and said[-1].endswith("Further files of this kind are not named.")


@pytest.mark.parametrize("numbers", ["8 bits", "12 bits", "16 bits"])
@pytest.mark.parametrize("input_range", [None, (0, 4095), (0, 65535)])
def test_the_same_numbers_give_the_same_picture_in_every_container(numbers, input_range, tmp_path, said):
    largest = 2 ** int(numbers.split()[0]) - 1
    gray = np.linspace(0, largest, 20 * 30).astype(np.uint16).reshape(20, 30)
    color = np.stack([gray, gray[::-1], gray[:, ::-1]], axis=-1)
    white = input_range[1] if input_range else 255 if largest == 255 else 65535

    def expect(values):
        return np.rint(np.clip(values * (255 / white), 0, 255)).astype(np.uint8)

    for kind in ("png", "tiff"):
        Image.fromarray(gray).save(tmp_path / f"gray.{kind}")
    write_png(tmp_path / "color.png", color)
    tifffile.imwrite(tmp_path / "color.tiff", color, photometric="rgb")
    containers = {
        "gray": [gray, gray.astype(np.int32), gray.astype(np.int64), torch.tensor(gray.astype(np.int32))],
        "color": [color, color.astype(np.int32), color.astype(np.uint64)],
    }
    for kind in ("png", "tiff"):
        for name in ("gray", "color"):
            path = tmp_path / f"{name}.{kind}"
            containers[name] += [path, path.read_bytes(), Image.open(path)]
    for values, sources in ((gray[..., None], containers["gray"]), (color, containers["color"])):
        for source in sources:
            pixels = np.asarray(load_image(source, input_range))
            np.testing.assert_array_equal(pixels, np.broadcast_to(expect(values), pixels.shape), err_msg=str(source))


@pytest.fixture
def deep() -> np.ndarray:
    """Return an array of shape (20, 30, 3), uint16, with different high and low bytes."""
    return np.random.default_rng(1).integers(0, 4096, (20, 30, 3)).astype(np.uint16)


def as_12_bits(values: np.ndarray) -> np.ndarray:
    return np.rint(values * (255 / 4095)).astype(np.uint8)


def check_deep(path, expected):
    np.testing.assert_array_equal(np.asarray(load_image(path, (0, 4095))), as_12_bits(expected))


@pytest.mark.parametrize("interlaced", [False, True])
def test_png_files_of_16_bits_per_channel(deep, interlaced, tmp_path):
    path = tmp_path / "deep.png"
    write_png(path, deep, interlaced)
    check_deep(path, deep)
    write_png(path, np.concatenate([deep, deep[..., :1]], axis=-1), interlaced)
    check_deep(path, deep)
    write_png(path, deep[..., :2], interlaced)  # gray and alpha
    check_deep(path, np.broadcast_to(deep[..., :1], deep.shape))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_files_of_16_bits_per_channel(deep, byteorder, compression, tmp_path):
    path = tmp_path / "deep.tiff"
    tifffile.imwrite(path, deep, photometric="rgb", byteorder=byteorder, compression=compression)
    check_deep(path, deep)
    tifffile.imwrite(path, deep, photometric="rgb", byteorder=byteorder, compression=compression, tile=(16, 16))
    check_deep(path, deep)
    with_alpha = np.concatenate([deep, deep[..., :1]], axis=-1)
    tifffile.imwrite(
        path, with_alpha, photometric="rgb", extrasamples=["unassalpha"], byteorder=byteorder, compression=compression
    )
    check_deep(path, deep)


def test_16_bits_that_pillow_cannot_read_are_refused(deep, tmp_path):
    planes = deep.transpose(2, 0, 1).copy()
    for compression in (None, "zlib"):
        path = tmp_path / f"planes-{compression}.tiff"
        tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate", compression=compression)
        with pytest.raises(ValueError, match=r"planes-.*tiff: cannot read all bits.*interleaved RGB"):
            load_image(path)
    (tmp_path / "deep.ppm").write_bytes(b"P6 30 20 4095\n" + deep.astype(">u2").tobytes())
    with pytest.raises(ValueError, match=r"deep\.ppm: cannot read all bits"):
        load_image(tmp_path / "deep.ppm")
    Image.fromarray(deep[..., 0]).save(tmp_path / "gray.jp2")
    pixels = np.asarray(load_image(tmp_path / "gray.jp2", (0, 4095)))[..., 0]
    np.testing.assert_array_equal(pixels, as_12_bits(deep[..., 0]))


def test_16_bit_color_is_turned_upright(deep, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    write_png(tmp_path / "turned.png", deep, exif=exif.tobytes()[6:])
    check_deep(tmp_path / "turned.png", np.rot90(deep, -1))
    opened = Image.open(tmp_path / "turned.png")
    check_deep(opened, np.rot90(deep, -1))
    opened.load()  # reading all bits left the caller's picture as it was


def test_gray_files_that_state_their_white(deep, tmp_path):
    gray = deep[..., 0]
    expected = as_12_bits(gray)
    (tmp_path / "white.pgm").write_bytes(b"P5 30 20 4095\n" + gray.astype(">u2").tobytes())
    for input_range in (None, (0, 4095)):
        pixels = np.asarray(load_image(tmp_path / "white.pgm", input_range))[..., 0]
        np.testing.assert_array_equal(pixels, expected)
    tifffile.imwrite(tmp_path / "inverted.tiff", gray * np.uint16(16), photometric="miniswhite")
    pixels = np.asarray(load_image(tmp_path / "inverted.tiff"))[..., 0]
    np.testing.assert_array_equal(pixels, 255 - np.rint(gray * (16 / 257)).astype(np.uint8))


def test_input_range_without_effect_is_said(rgb, said, tmp_path):
    Image.fromarray(rgb).save(tmp_path / "eight.png")
    load_image(tmp_path / "eight.png", (0, 4095))
    assert len(said) == 1 and "eight.png" in said[0] and "no effect" in said[0]
    load_image(rgb, (0, 4095))
    assert len(said) == 2
    load_image(tmp_path / "eight.png")
    assert len(said) == 2


# --- wrong input --------------------------------------------------------------------------------------------------


def test_files_that_are_not_images(rgb, tmp_path):
    (tmp_path / "note.txt").write_text("not an image")
    with pytest.raises(ValueError, match=r"note\.txt: not an image file"):
        load_image(tmp_path / "note.txt")
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path)

    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(stream, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(stream.getvalue()[:2000])
    with pytest.raises(ValueError, match=r"cut\.jpg: damaged or truncated"):
        load_image(tmp_path / "cut.jpg")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 0, 3), np.uint8), "empty"),
        (np.zeros((0, 5)), "empty"),
        (Image.new("RGB", (0, 0)), "empty"),
        (np.full((4, 4), np.nan), "16 pixels are NaN"),
        (np.array([[0.0, np.inf]]), "1 pixels are NaN or infinite"),
        (np.zeros((5, 5, 2), np.uint8), "1, 3 or 4 channels"),
        (torch.zeros(5, 7, 7), "1, 3 or 4 channels"),
        (np.zeros(5), r"expected \(H, W\)"),
        (np.zeros((1, 1, 1, 1, 1)), r"expected \(H, W\)"),
        (np.array([[-1.0, 1.0]]), "input_range"),
        (np.array([[0.0, 256.0]]), r"\[0, 1\] or \[0, 255\]"),
        (np.array([[-1, 1]]), "0..255 or 0..65535"),
        (np.array([[0, 70000]]), "70000"),
        (np.zeros((4, 4), complex), "integers, floats or booleans"),
        (Image.new("La", (4, 4)), "mode La to RGB"),
    ],
)
def test_wrong_images_are_explained(image, message):
    with pytest.raises(ValueError, match=message):
        load_image(image)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="dict"):
        load_image({"bytes": b""})
    with pytest.raises(ValueError, match="low < high"):
        load_image(np.zeros((4, 4)), input_range=(5, 5))


def test_lists(rgb):
    assert len(list_images("a.png")) == len(list_images(rgb)) == len(list_images(Image.new("L", (2, 2)))) == 1
    assert len(list_images(np.zeros((5, 4, 4, 3)))) == len(list_images(torch.zeros(5, 3, 4, 4))) == 5
    assert len(list_images(("a.png", rgb))) == 2
    for empty in ([], (), np.zeros((0, 4, 4, 3))):
        with pytest.raises(ValueError, match="empty"):
            list_images(empty)
    with pytest.raises(TypeError, match="int"):
        list_images(3)


# --- masks --------------------------------------------------------------------------------------------------------


def test_masks_of_every_kind(tmp_path):
    expected = np.array([[0, 1, 1], [0, 0, 1]], np.uint8)
    gray = Image.fromarray(expected * np.uint8(255))
    gray.save(tmp_path / "mask.png")
    kinds = [
        expected,
        expected * 255,
        expected.astype(bool),
        expected[..., None],
        torch.tensor(expected)[None].float(),
        gray,
        gray.convert("1"),
        tmp_path / "mask.png",
        str(tmp_path / "mask.png"),
    ]
    for mask in kinds:
        values = load_mask(mask)
        assert values.dtype == np.uint8
        np.testing.assert_array_equal(values, expected)
    assert not load_mask(np.zeros((2, 3), np.uint8)).any()
    assert load_mask(np.ones((2, 3), np.uint8)).all(), "a mask may be all defect"


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.array([[0, 1, 2]], np.uint8), "3 values: 0, 1, 2"),
        (np.array([[0, 128, 255, 254]], np.uint8), "Binarize"),
        (np.array([[1, 2]]), "2 values: 1, 2"),
        (np.array([[-1, 0]]), "-1"),
        (np.zeros((2, 2, 3), np.uint8), r"\(2, 2, 3\)"),
        (np.zeros((0, 2), np.uint8), r"\(0, 2\)"),
    ],
)
def test_masks_of_more_than_two_values_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        load_mask(mask)


def test_more_pixels_than_pillow_decodes_are_an_error_that_names_the_file(tmp_path, monkeypatch):
    path = tmp_path / "huge.png"
    Image.new("L", (64, 64)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"huge\.png: .*max_pixels.*--max-pixels"):
        load_image(path)


# --- JPEG files decoded at a reduced size ---------------------------------------------------------------------------


def jpeg(width: int, height: int, orientation: int = 1, mode: str = "RGB", **options) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    smooth = Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    smooth.save(stream, "JPEG", exif=exif, quality=95, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("least", "size", "scale"),
    [
        *(((40, 40), (800, 600), 8), ((75, 60), (800, 600), 8), ((76, 60), (800, 600), 4), ((60, 100), (800, 600), 4)),
        *(
            ((301, 301), (800, 600), 1),
            ((40, 40), (804, 600), 4),
            ((40, 40), (806, 600), 2),
            ((40, 40), (801, 600), 1),
        ),
    ],
)
def test_jpeg_files_are_decoded_at_the_smallest_size_that_suffices(least, size, scale):
    content = jpeg(*size)
    reduced, whole_size = load_reduced(content, least)
    assert whole_size == size[::-1] and reduced.size == (size[0] // scale, size[1] // scale)
    expected = load_image(content).resize(reduced.size, Image.Resampling.BOX)
    assert reduced.mode == "RGB" and np.abs(np.asarray(reduced, int) - np.asarray(expected)).mean() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_picture_is_upright_and_so_is_its_size(orientation):
    content = jpeg(408, 400, orientation)
    whole, (reduced, size) = load_image(content), load_reduced(content, (50, 50))
    assert size == (whole.height, whole.width)
    assert reduced.size == (whole.width // 8, whole.height // 8)
    expected = whole.resize(reduced.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(reduced, int) - np.asarray(expected)).mean() < 1


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_every_mode_of_a_jpeg_file_can_be_reduced(mode):
    reduced, size = load_reduced(jpeg(400, 304, mode=mode), (30, 30))
    assert reduced.mode == "RGB" and reduced.size == (50, 38) and size == (304, 400)


def test_other_images_are_read_whole(tmp_path):
    picture = load_image(jpeg(400, 300))
    picture.save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", picture, np.asarray(picture)):
        read, size = load_reduced(source, (10, 10))
        assert np.array_equal(read, picture) and size == (300, 400)
    opened = Image.open(io.BytesIO(jpeg(400, 300)))
    assert load_reduced(opened, (10, 10))[0].size == opened.size == (400, 300)


def test_a_truncated_jpeg_file_is_an_error_at_every_size():
    with pytest.raises(ValueError, match="damaged or truncated"):
        load_reduced(jpeg(800, 600)[:3000], (50, 50))
