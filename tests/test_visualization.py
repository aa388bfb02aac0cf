"""Pictures: one fixed color scale, outlines, color bars, sheets."""

import numpy as np
import pytest
import torch
from PIL import Image

from vcp_clip_hf.visualization import add_color_bar, contour, draw_boxes, heatmap, overlay, overlay_with_scale, sheet


def test_a_color_always_means_the_same_value():
    low = np.full((4, 4), 0.25, np.float32)
    mixed = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    mixed[0, 0] = 0.25
    assert heatmap(low).getpixel((0, 0)) == heatmap(mixed).getpixel((0, 0))
    levels = [sum(heatmap(np.full((1, 1), value)).getpixel((0, 0))) for value in np.linspace(0, 1, 20)]
    assert levels == sorted(levels) and levels[0] < 10 and levels[-1] > 600, "brighter is more abnormal"
    stretched = heatmap(low + mixed * 0.01, stretch=True)
    assert np.asarray(stretched).max() > 240 and np.asarray(heatmap(low, stretch=True)).max() < 10


def test_maps_of_every_kind():
    values = np.random.default_rng(0).random((5, 7), dtype=np.float32)
    expected = np.asarray(heatmap(values))
    np.testing.assert_array_equal(np.asarray(heatmap(torch.from_numpy(values).requires_grad_())), expected)
    np.testing.assert_array_equal(np.asarray(heatmap(Image.fromarray(values))), expected)
    assert np.asarray(heatmap(values * 3 - 1)).shape == (5, 7, 3), "values outside [0, 1] are clipped"


def test_overlay_covers_abnormal_pixels_only():
    image = Image.new("RGB", (8, 6), (10, 200, 30))
    anomaly_map = np.zeros((6, 8), np.float32)
    anomaly_map[2, 3] = 1.0
    picture = overlay(image, anomaly_map, alpha=1.0)
    assert picture.getpixel((0, 0)) == (10, 200, 30) and picture.getpixel((3, 2)) == (252, 255, 164)
    assert overlay(image.convert("L"), anomaly_map).mode == "RGB"
    with pytest.raises(ValueError, match=r"The map is \(6, 7\), the image \(6, 8\)"):
        overlay(image, anomaly_map[:, :7])


@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255), (128, 128, 128), (30, 25, 20)])
def test_colors_are_visible_on_dark_and_on_bright_parts(background):
    for value in (0.3, 0.5, 0.8, 1.0):
        (drawn,) = np.asarray(overlay(Image.new("RGB", (1, 1), background), np.full((1, 1), value))).astype(int)
        assert np.abs(drawn - background).sum() > 50, f"a map of {value} hardly changes {background}"
    assert overlay(Image.new("RGB", (1, 1), background), np.zeros((1, 1))).getpixel((0, 0)) == background


def test_contour_is_drawn_around_the_mask():
    mask = np.zeros((20, 20), bool)
    mask[5:12, 6:15] = True
    drawn = np.asarray(contour(Image.new("L", (20, 20), 200), mask, (1, 2, 3), width=2))
    rim = np.zeros((20, 20), bool)
    rim[3:14, 4:17] = True
    np.testing.assert_array_equal((drawn == (1, 2, 3)).all(axis=-1), rim & ~mask)
    rim[2:15, 3:18] ^= True
    np.testing.assert_array_equal((drawn == (0, 0, 0)).all(axis=-1), rim)
    assert (drawn[mask] == 200).all(), "the defect itself stays visible"


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (3, 2), (700, 900), (2000, 30)])
@pytest.mark.parametrize("background", ["black", "white", "cyan"])
def test_every_mask_has_a_visible_contour(shape, background):
    image = Image.new("RGB", shape[::-1], background)
    masks = {"full": np.ones(shape, bool), "corner": np.zeros(shape, bool), "last pixel": np.zeros(shape, bool)}
    masks["corner"][0, 0] = masks["last pixel"][-1, -1] = True
    for name, mask in masks.items():
        changed = np.abs(np.asarray(contour(image, mask)).astype(int) - np.asarray(image)).sum(axis=-1) > 250
        if background != "cyan" or name != "full":  # outside of a full mask, there is no room for the dark line
            assert changed.any() or (shape == (1, 1) and background == "cyan"), name
    assert contour(image, np.zeros(shape, bool)).tobytes() == image.tobytes()


def test_contour_needs_a_mask_of_the_images_size():
    with pytest.raises(ValueError, match=r"The mask is \(6, 7\), the image \(6, 8\)"):
        contour(Image.new("L", (8, 6)), np.ones((6, 7), bool))


@pytest.mark.parametrize("size", [(1, 1), (8, 6), (60, 3000), (3000, 60), (640, 480)])
def test_overlays_of_any_size_have_a_color_bar_with_the_threshold(size):
    width, height = size
    anomaly_map = np.linspace(0, 1, width * height, dtype=np.float32).reshape(height, width)
    image = Image.new("RGB", size, (90, 90, 90))
    drawn = np.asarray(overlay_with_scale(image, anomaly_map, anomaly_map >= 0.4, threshold=0.4)).astype(int)
    factor = max(1, 160 // max(size))
    bar = drawn[:, width * factor :]
    assert drawn.shape[0] >= max(100, height) and 20 < bar.shape[1] < max(60, width), "legible, and not dominant"
    cyan = (bar == (0, 255, 255)).all(axis=-1)
    (rows,) = np.nonzero(cyan.any(axis=1))
    colored = np.nonzero((bar.max(axis=-1) - bar.min(axis=-1) > 60).any(axis=1))[0]
    part = (colored[-1] - rows.mean()) / (colored[-1] - colored[0])
    assert part == pytest.approx(0.4, abs=0.03), "the mark is at the threshold"
    plain = np.asarray(overlay_with_scale(image, anomaly_map))
    assert not (plain == (0, 255, 255)).all(axis=-1).any(), "no mark without a threshold"


def test_boxes_and_color_bar():
    region = {"box": {"xmin": 10, "ymin": 20, "xmax": 60, "ymax": 50}, "score": 0.91}
    drawn = draw_boxes(Image.new("RGB", (100, 100)), [region])
    assert drawn.getpixel((10, 35)) == (0, 255, 255) and drawn.getpixel((5, 5)) == (0, 0, 0)
    framed = add_color_bar(Image.new("RGB", (120, 110)))
    assert framed.height == 110 and framed.width > 140
    assert add_color_bar(Image.new("RGB", (40, 40)), 0.2, 0.4, "stretched").width > 40


def test_the_color_bar_does_not_make_a_picture_too_wide_for_jpeg(tmp_path):
    image = Image.new("RGB", (65_490, 2))
    overlay_with_scale(image, np.zeros((2, 65_490), np.float32)).save(tmp_path / "wide.jpg")
    assert Image.open(tmp_path / "wide.jpg").width == 65_490


def test_labels_of_boxes_stay_inside_the_picture():
    region = {"box": {"xmin": 90, "ymin": 92, "xmax": 100, "ymax": 100}, "score": 0.91}
    drawn = np.asarray(draw_boxes(Image.new("RGB", (100, 100)), [region]))
    assert drawn[-1, 95].tolist() == [0, 255, 255] and drawn[95, -1].tolist() == [0, 255, 255]
    assert (drawn[80:92, 70:90, 1] > 120).any(), "the score is moved to the left"


def test_sheets_keep_ratios():
    wide, tall, flat = (
        Image.new("RGB", (200, 100), "red"),
        Image.new("L", (50, 1000)),
        Image.new("RGB", (900, 9), "red"),
    )
    drawn = sheet([[("a", tall), ("b", wide)], [("c", wide)]], 100, "title")
    assert drawn.mode == "RGB" and drawn.width >= 66 + 200 + 3 * 8 and drawn.height > 200
    assert sheet([[("a", wide)]], 100, color_bar=False).width == 200 + 2 * 8
    for picture, size in ((wide, (200, 100)), (flat, (200, 2))):
        red = (np.asarray(sheet([[("a", picture)]], 100, color_bar=False)) == (255, 0, 0)).all(axis=-1)
        assert (red.any(axis=0).sum(), red.any(axis=1).sum()) == size


def test_captions_are_shortened_in_the_middle():
    picture = Image.new("RGB", (100, 100))
    names = [f"datasets/products/a_long_name/test/broken/{number:03d}.png" for number in range(3)]
    captions = {sheet([[(name, picture)]], 100, color_bar=False).crop((0, 0, 116, 16)).tobytes() for name in names}
    assert len(captions) == 3, "captions of different files differ"


def test_titles_are_shown_in_full():
    picture = Image.new("RGB", (100, 100))
    short, long = (sheet([[("a", picture)]], 100, "word " * count, color_bar=False) for count in (2, 40))
    assert long.width == short.width and long.height > short.height + 100, "a long title takes more lines"
    right = np.asarray(sheet([[("a", picture)]], 100, "x" * 300, color_bar=False))[:100, -8:]
    assert (right == 255).all(), "no line reaches the border"


def test_any_name_can_be_drawn():
    picture = Image.new("RGB", (100, 100))
    for name in ("two\nlines", "not UTF-8 \udcff", "\x00\x1b[31m", "\u202egnp.exe", "缺陷", ""):
        assert sheet([[(name, picture)]], 100, name).size > (100, 100)
