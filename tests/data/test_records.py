"""Records: what is read of an image and its mask, and what is refused."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.deep_files import write_png
from vcp_clip_hf.data import FEATURES, AnomalyRecord
from vcp_clip_hf.data.masks import MaskFiles
from vcp_clip_hf.data.records import KnownGap, encode_record

from .trees import HEIGHT, MARKED, WIDTH, save_image, save_mask


ORIENTATION = 0x0112


def decode(record: AnomalyRecord) -> dict:
    return FEATURES.decode_example(FEATURES.encode_example(encode_record(record)))


def record(image, label=1, mask=None, **fields) -> AnomalyRecord:
    return AnomalyRecord(image, "part", "id", label=label, defect="crack", mask=mask, **fields)


def test_pictures_in_memory_are_stored(tmp_path):
    image = Image.effect_noise((WIDTH, HEIGHT), 50)
    row = decode(record(image, mask=Image.fromarray(MARKED)))
    assert np.array_equal(np.asarray(row["image"])[..., 0], np.asarray(image))
    assert np.array_equal(np.asarray(row["mask"]), MARKED * np.uint8(255))


def test_files_are_not_copied_into_the_table(tmp_path):
    save_image(tmp_path / "a.png")
    encoded = encode_record(record(str(tmp_path / "a.png"), label=0))
    assert encoded["image"] == {"path": str(tmp_path / "a.png"), "bytes": None}
    assert encoded["mask"] is None and encoded["defect"] == "good"


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    picture = Image.effect_noise((WIDTH, HEIGHT), 50).convert("RGB").convert(mode)
    path = str(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    picture.save(path)
    row = decode(record(path, label=0))
    assert row["image"].mode == "RGB" and row["image"].size == (WIDTH, HEIGHT)


def test_16_bits_are_not_clipped_to_white(tmp_path):
    values = np.linspace(0, 65535, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    row = decode(record(str(tmp_path / "a.png"), label=0))
    assert np.abs(np.asarray(row["image"])[..., 0] - values / 257).max() <= 0.5


def test_color_of_16_bits_keeps_its_bits(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (HEIGHT, WIDTH, 3)).astype(np.uint16)
    path = str(tmp_path / "deep.png")
    write_png(tmp_path / "deep.png", values)
    for input_range, white in ((None, 65535), ((0, 4095), 4095)):
        encoded = encode_record(record(path, label=0), input_range)
        row = FEATURES.decode_example(FEATURES.encode_example(encoded))
        np.testing.assert_array_equal(np.asarray(row["image"]), np.rint(values * (255 / white)).astype(np.uint8))


def test_the_mask_decides_an_unknown_label(tmp_path):
    save_image(tmp_path / "a.png")
    for marked, label, defect in ((MARKED, 1, "crack"), (MARKED & False, 0, "good")):
        save_mask(tmp_path / "m.png", marked=marked)
        row = decode(record(str(tmp_path / "a.png"), None, MaskFiles((str(tmp_path / "m.png"),))))
        assert (row["label"], row["defect"]) == (label, defect)
        assert (row["mask"] is None) == (label == 0)
    with pytest.raises(ValueError, match="unknown whether the image is normal"):
        encode_record(record(str(tmp_path / "a.png"), None))


def test_masks_that_contradict_the_label():
    image, empty = Image.new("RGB", (WIDTH, HEIGHT)), Image.new("L", (WIDTH, HEIGHT))
    with pytest.raises(ValueError, match="its mask is empty"):
        encode_record(record(image, 1, empty))
    with pytest.raises(KnownGap):
        encode_record(record(image, 1, empty, empty_mask_known=True))
    with pytest.raises(ValueError, match=f"its mask marks {MARKED.sum()} pixels"):
        encode_record(record(image, 0, Image.fromarray(MARKED)))
    with pytest.raises(ValueError, match="the mask has 3 x 2 pixels, the image 40 x 28"):
        encode_record(record(image, 1, Image.new("L", (3, 2), 255)))
    assert encode_record(record(image, 0, empty))["mask"] is None
    assert encode_record(record(image, -1))["label"] == -1


# EXIF orientation: images become upright, and masks must fit them


def save_turned(path, orientation: int, size=(WIDTH, HEIGHT)) -> Image.Image:
    """Save a picture with an EXIF orientation; return the upright picture."""
    gradient = np.add.outer(np.arange(size[1]) * 4, np.arange(size[0])).astype(np.uint8)
    stored = Image.fromarray(gradient).convert("RGB")
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored.save(path, exif=exif, quality=95)
    return ImageOps.exif_transpose(Image.open(path)).convert("RGB")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_images_without_a_mask_are_upright(tmp_path, orientation):
    upright = save_turned(tmp_path / "a.jpg", orientation)
    row = decode(record(str(tmp_path / "a.jpg"), label=0))
    assert np.array_equal(np.asarray(row["image"]), np.asarray(upright))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_of_a_turned_image_fits_the_upright_picture(tmp_path, orientation):
    """The size of the mask tells whether it was drawn on the stored picture or on the upright one."""
    upright = save_turned(tmp_path / "a.jpg", orientation)
    on_upright = np.zeros((WIDTH, HEIGHT), bool)
    on_upright[3:9, 5:20] = True
    row = decode(record(str(tmp_path / "a.jpg"), mask=Image.fromarray(on_upright)))
    assert row["mask"].size == row["image"].size == upright.size
    assert np.array_equal(np.asarray(row["mask"]) > 0, on_upright)

    row = decode(record(str(tmp_path / "a.jpg"), mask=Image.fromarray(MARKED)))
    turned = Image.fromarray(MARKED.astype(np.uint8))
    turned.getexif()[ORIENTATION] = orientation
    assert np.array_equal(np.asarray(row["mask"]) > 0, np.asarray(ImageOps.exif_transpose(turned)) > 0)


@pytest.mark.parametrize("orientation, size", [(3, (WIDTH, HEIGHT)), (2, (WIDTH, HEIGHT)), (6, (20, 20))])
def test_a_mask_that_would_fit_both_ways_is_refused(tmp_path, orientation, size):
    save_turned(tmp_path / "a.jpg", orientation, size)
    mask = Image.new("L", size)
    mask.paste(255, (2, 2, 5, 9))
    with pytest.raises(ValueError, match=f"EXIF orientation {orientation}.*would fit both"):
        encode_record(record(str(tmp_path / "a.jpg"), mask=mask))


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_a_mask_is_turned_by_its_own_orientation(tmp_path, orientation, mode):
    exif = Image.Exif()
    exif[ORIENTATION] = {6: 8, 8: 6}.get(orientation, orientation)  # the opposite turn
    shown = Image.fromarray(MARKED.astype(np.uint8))
    shown.getexif()[ORIENTATION] = orientation
    stored = np.asarray(ImageOps.exif_transpose(shown))
    picture = Image.fromarray(stored.astype(np.uint16) if mode == "I;16" else stored)
    if mode == "P":
        picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.save(tmp_path / "m.png", exif=exif)
    save_image(tmp_path / "a.png")
    row = decode(record(str(tmp_path / "a.png"), mask=MaskFiles((str(tmp_path / "m.png"),))))
    assert np.array_equal(np.asarray(row["mask"]) > 0, MARKED)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_image_and_mask_have_the_same_orientation(tmp_path, orientation):
    """A camera's tag, copied to the mask: nothing is ambiguous, and nothing is turned twice."""
    upright, exif = save_turned(tmp_path / "a.jpg", orientation), Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(MARKED).save(tmp_path / "m.png", exif=exif)
    mask, turned = MaskFiles((str(tmp_path / "m.png"),)), Image.fromarray(MARKED.astype(np.uint8))
    turned.getexif()[ORIENTATION] = orientation
    row = decode(record(str(tmp_path / "a.jpg"), mask=mask))
    assert row["mask"].size == upright.size
    assert np.array_equal(np.asarray(row["mask"]) > 0, np.asarray(ImageOps.exif_transpose(turned)) > 0)
    if orientation > 4:
        Image.fromarray(MARKED.T).save(tmp_path / "m.png", exif=exif)
        with pytest.raises(ValueError, match="turned by its own EXIF orientation"):
            encode_record(record(str(tmp_path / "a.jpg"), mask=mask))


# Damaged files


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_truncated_files_are_found(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    save_image(path, size=(90, 70))
    assert encode_record(record(str(path), label=0))["image"]["bytes"] is None
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(ValueError, match=r"damaged or truncated|not an image file"):
        encode_record(record(str(path), label=0))


def test_bytes_after_the_end_of_a_jpeg_do_no_harm(tmp_path):
    save_image(tmp_path / "a.jpg")
    with open(tmp_path / "a.jpg", "ab") as file:
        file.write(b"\0" * 500)
    assert decode(record(str(tmp_path / "a.jpg"), label=0))["image"].size == (WIDTH, HEIGHT)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not an image file that Pillow can read"):
        encode_record(record(str(tmp_path / "gone.png"), label=0))
