"""Regions of interest of every kind mean the same, and none is lost."""

import io

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from tests.deep_files import write_png
from vcp_clip_hf.region_of_interest import load_region_of_interest, region_at_size


INSIDE = np.zeros((6, 8), bool)
INSIDE[:3, 2:] = True
IMAGE = Image.new("RGB", (8, 6), "gray")


def check(mask):
    np.testing.assert_array_equal(load_region_of_interest(mask, INSIDE.shape), INSIDE)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int16, np.int64, np.float32])
def test_arrays(dtype):
    values = INSIDE.astype(dtype)
    for array in (values, values[..., None], values[None], torch.from_numpy(values.copy())):
        check(array)
    if dtype is not bool:
        check(values * dtype(100))
    one_channel = np.zeros((6, 8, 3), dtype)
    one_channel[..., 2] = values
    check(one_channel)
    check(np.moveaxis(one_channel, -1, 0).copy())


@pytest.mark.parametrize("value", [1, 255, 65535])
def test_gray_files(value, tmp_path):
    gray = INSIDE * np.uint16(value)
    if value < 256:
        Image.fromarray(gray.astype(np.uint8)).save(tmp_path / "8.png")
        check(tmp_path / "8.png")
    for kind in ("png", "tiff"):
        Image.fromarray(gray).save(tmp_path / f"16.{kind}")
        check(str(tmp_path / f"16.{kind}"))
    Image.fromarray(gray.astype(np.int32)).save(tmp_path / "32.tiff")
    check(tmp_path / "32.tiff")
    tifffile.imwrite(tmp_path / "float.tiff", (gray / 65535).astype(np.float32))
    check(tmp_path / "float.tiff")
    Image.fromarray(INSIDE).save(tmp_path / "1.png")
    check((tmp_path / "1.png").read_bytes())


@pytest.mark.parametrize("color", [(1, 0, 0), (0, 0, 1), (255, 255, 255)])
def test_color_files(color, tmp_path):
    picture = Image.new("RGB", (8, 6))
    picture.paste(color, mask=Image.fromarray(INSIDE))
    picture.save(tmp_path / "color.png")
    check(tmp_path / "color.png")
    picture.quantize(4).save(tmp_path / "palette.png")
    check(tmp_path / "palette.png")
    write_png(tmp_path / "deep.png", np.asarray(picture).astype(np.uint16))  # Pillow alone would read zeros
    check(tmp_path / "deep.png")


def test_palettes_count_by_their_colors():
    """The first entry of the palette is white: an index of 0 is inside."""
    picture = Image.fromarray((~INSIDE).astype(np.uint8)).convert("P")
    picture.putpalette([255, 255, 255, 0, 0, 0])
    check(picture)


def test_transparent_pixels_are_outside(tmp_path):
    white = Image.new("RGBA", (8, 6), (255, 255, 255, 0))
    white.putalpha(Image.fromarray(INSIDE.astype(np.uint8)))
    white.save(tmp_path / "alpha.png")
    check(tmp_path / "alpha.png")
    opaque = Image.fromarray(INSIDE * np.uint8(255)).convert("RGBA")
    check(opaque)
    check(opaque.convert("LA"))
    pixels = np.stack([INSIDE * 9, INSIDE * 0, INSIDE * 0, INSIDE * 65535], axis=-1).astype(np.uint16)
    write_png(tmp_path / "deep.png", pixels)
    check(tmp_path / "deep.png")


def test_noise_of_jpeg_files_is_outside():
    large = INSIDE.repeat(13, 0).repeat(13, 1)
    stream = io.BytesIO()
    Image.fromarray(large * np.uint8(255)).save(stream, "JPEG", quality=60)
    assert len(np.unique(np.asarray(Image.open(stream)))) > 2, "a test without noise would prove nothing"
    inside = load_region_of_interest(stream.getvalue(), large.shape)
    np.testing.assert_array_equal(inside, large)


def test_empty_and_wrong_masks_are_errors_that_name_the_mask(tmp_path):
    Image.new("L", (8, 6)).save(tmp_path / "nothing.png")
    with pytest.raises(ValueError, match=r"nothing\.png.* leaves nothing to inspect"):
        load_region_of_interest(tmp_path / "nothing.png", INSIDE.shape)
    with pytest.raises(ValueError, match="leaves nothing"):
        load_region_of_interest(Image.new("RGBA", (8, 6), (0, 0, 0, 255)), INSIDE.shape)
    with pytest.raises(ValueError, match=r"roi_mask is \(5, 8\) \(height, width\), the image \(6, 8\)"):
        load_region_of_interest(INSIDE[1:], INSIDE.shape)
    with pytest.raises(ValueError, match="NaN"):
        load_region_of_interest(np.full((6, 8), np.nan), INSIDE.shape)
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        load_region_of_interest(tmp_path / "gone.png", INSIDE.shape)


@pytest.mark.parametrize("size", [(48, 48), (97, 131), (48, 500), (31, 20), (1, 1), (700, 3)])
def test_regions_are_resampled_as_in_torch(size):
    torch.manual_seed(0)
    for shape in ((48, 48), (37, 1), (4, 5)):
        roi = torch.rand(shape) > 0.5
        expected = torch.nn.functional.interpolate(roi[None, None].float(), size=size, mode="nearest-exact")[0, 0]
        if expected.any():
            np.testing.assert_array_equal(region_at_size(roi.numpy(), size), expected.bool())


def test_a_small_region_is_not_lost():
    inside = np.zeros((1000, 1000), bool)
    inside[700, 300:302] = True
    reduced = region_at_size(inside, (48, 48))
    assert np.argwhere(reduced).tolist() == [[33, 14]]
    assert not region_at_size(np.zeros((9, 9), bool), (3, 3)).any()
