"""Pictures: one fixed color scale, outlines, color bars, sheets."""

import numpy as np
import pytest
import torch
from PIL import Image

from vcp_clip_hf.visualization import add_color_bar, contour, draw_boxes, heatmap, overlay, sheet


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


def test_contour_is_drawn_inside_the_mask():
    mask = np.zeros((20, 20), bool)
    mask[5:12, 6:15] = True
    drawn = np.asarray(contour(Image.new("L", (20, 20)), mask, (1, 2, 3), width=1))
    rim = mask.copy()
    rim[6:11, 7:14] = False
    np.testing.assert_array_equal((drawn == (1, 2, 3)).all(axis=-1), rim)
    # the outline does not follow the border of the image
    full = np.asarray(contour(Image.new("L", (20, 20)), np.ones((20, 20), bool), (1, 2, 3)))
    assert not full.any()


def test_boxes_and_color_bar():
    region = {"box": {"xmin": 10, "ymin": 20, "xmax": 60, "ymax": 50}, "score": 0.91}
    drawn = draw_boxes(Image.new("RGB", (100, 100)), [region])
    assert drawn.getpixel((10, 35)) == (0, 255, 255) and drawn.getpixel((5, 5)) == (0, 0, 0)
    framed = add_color_bar(Image.new("RGB", (120, 90)))
    assert framed.height == 90 and framed.width > 140
    assert add_color_bar(Image.new("RGB", (40, 40)), 0.2, 0.4, "stretched").width > 40


def test_sheets_keep_ratios_and_cut_long_captions():
    wide, tall = Image.new("RGB", (200, 100), "red"), Image.new("L", (50, 100))
    drawn = sheet(
        [[("a caption that is far too long for its picture", tall), ("b", wide)], [("c", wide)]], 100, "title"
    )
    assert drawn.mode == "RGB" and drawn.width >= 50 + 200 + 3 * 8 and drawn.height > 200
    assert sheet([[("a", wide)]], 100, color_bar=False).width == 200 + 2 * 8
