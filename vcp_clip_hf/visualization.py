"""Pictures of results: heat maps on one fixed color scale, overlays, outlines, sheets.

A color has the same value in every picture: 0 is the dark end of the scale and 1 the bright end. Stretching a map to
its own range makes noise look like defects. It is therefore optional, and the color bar must then show the range.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Union

import numpy as np
from PIL import Image, ImageDraw, ImageFont


if TYPE_CHECKING:
    import torch


__all__ = ["MapLike", "add_color_bar", "contour", "draw_boxes", "heatmap", "overlay", "sheet", "to_array"]

# A map or a mask of shape (height, width)
MapLike = Union[np.ndarray, "torch.Tensor", Image.Image]

# Eleven colors of matplotlib's "inferno" (CC0): perceptually uniform, readable in gray and by the color-blind
_INFERNO = np.array(
    [
        (0, 0, 4),
        (22, 11, 57),
        (66, 10, 104),
        (106, 23, 110),
        (147, 38, 103),
        (188, 55, 84),
        (221, 81, 58),
        (243, 120, 25),
        (252, 165, 10),
        (246, 215, 70),
        (252, 255, 164),
    ],
    dtype=np.float32,
)
_COLORS = (
    np.stack(
        [np.interp(np.linspace(0, 1, 256), np.linspace(0, 1, len(_INFERNO)), _INFERNO[:, c]) for c in range(3)],
        axis=-1,
    )
    .round()
    .astype(np.uint8)
)

_OUTLINE = (0, 255, 255)


def to_array(values: MapLike) -> np.ndarray:
    """Convert a map or a mask to a NumPy array of shape (height, width)."""
    if hasattr(values, "detach"):  # a torch tensor, recognized without importing torch
        values = values.detach().cpu().numpy()
    return np.asarray(values)


def _range_of(anomaly_map: np.ndarray, stretch: bool) -> tuple[float, float]:
    if not stretch:
        return 0.0, 1.0
    low, high = float(anomaly_map.min()), float(anomaly_map.max())
    return low, high if high > low else low + 1e-6


def heatmap(anomaly_map: MapLike, stretch: bool = False) -> Image.Image:
    """
    Color a map.

    Args:
        anomaly_map (`MapLike` of shape `(height, width)`): probabilities in [0, 1].
        stretch (`bool`, *optional*, defaults to `False`): use the map's own range instead of [0, 1].

    Returns:
        `PIL.Image.Image`: mode RGB, (width, height).
    """
    values = to_array(anomaly_map).astype(np.float32)
    low, high = _range_of(values, stretch)
    levels = ((values - low) / (high - low)).clip(0, 1) * 255
    return Image.fromarray(_COLORS[levels.round().astype(np.uint8)])


def overlay(
    image: Image.Image, anomaly_map: MapLike, mask: MapLike | None = None, alpha: float = 0.6, stretch: bool = False
) -> Image.Image:
    """
    Draw the heat map over the image, more opaque where values are higher, and the outline of the mask.

    Args:
        image (`PIL.Image.Image`): picture of any mode.
        anomaly_map (`MapLike` of shape `(height, width)`): map of the image's size, in [0, 1].
        mask (`MapLike` of shape `(height, width)`, *optional*): mask to outline in cyan.
        alpha (`float`, *optional*, defaults to 0.6): opacity where the map is 1.
        stretch (`bool`, *optional*, defaults to `False`): use the map's own range instead of [0, 1].

    Returns:
        `PIL.Image.Image`: mode RGB, of the image's size.

    Raises:
        ValueError: the sizes of map and image differ.
    """
    image, values = image.convert("RGB"), to_array(anomaly_map).astype(np.float32)
    if values.shape != (image.height, image.width):
        raise ValueError(f"The map is {values.shape}, the image ({image.height}, {image.width}) (height, width).")
    low, high = _range_of(values, stretch)
    opacity = ((values - low) / (high - low)).clip(0, 1) * (255 * alpha)
    picture = Image.composite(heatmap(values, stretch), image, Image.fromarray(opacity.astype(np.uint8)))
    return picture if mask is None else contour(picture, mask)


def contour(
    image: Image.Image, mask: MapLike, color: tuple[int, int, int] = _OUTLINE, width: int | None = None
) -> Image.Image:
    """
    Draw the outline of a mask, along the inner side of its border.

    Args:
        image (`PIL.Image.Image`): picture of any mode.
        mask (`MapLike` of shape `(height, width)`): mask of the image's size, non-zero inside.
        color (`tuple[int, int, int]`, *optional*, defaults to cyan): RGB color of the outline.
        width (`int`, *optional*): thickness in pixels; by default it follows the size of the mask.

    Returns:
        `PIL.Image.Image`: mode RGB.
    """
    inside = to_array(mask).astype(bool)
    width = width or max(1, round(min(inside.shape) / 300))
    inner = inside
    for _ in range(width):
        padded = np.pad(inner, 1, mode="edge")
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    pixels = np.asarray(image.convert("RGB")).copy()
    pixels[inside & ~inner] = color
    return Image.fromarray(pixels)


def draw_boxes(image: Image.Image, regions: Sequence[dict], color: tuple[int, int, int] = _OUTLINE) -> Image.Image:
    """
    Draw the box and the score of each region.

    Args:
        image (`PIL.Image.Image`): picture of any mode.
        regions (`Sequence[dict]`): regions from `find_regions`.
        color (`tuple[int, int, int]`, *optional*, defaults to cyan): RGB color.

    Returns:
        `PIL.Image.Image`: mode RGB.
    """
    picture = image.convert("RGB")
    draw, font = ImageDraw.Draw(picture), _font(max(10, min(picture.size) // 40))
    for region in regions:
        box = region["box"]
        corners = (box["xmin"], box["ymin"], box["xmax"], box["ymax"])
        draw.rectangle(corners, outline=color, width=max(1, min(picture.size) // 300))
        draw.text((corners[0] + 2, corners[1] + 2), f"{region['score']:.2f}", fill=color, font=font)
    return picture


def add_color_bar(picture: Image.Image, low: float = 0.0, high: float = 1.0, label: str = "") -> Image.Image:
    """
    Add a color bar on the right of a picture.

    Args:
        picture (`PIL.Image.Image`): picture of any mode.
        low, high (`float`, *optional*, defaults to 0 and 1): values of the lower and the upper end.
        label (`str`, *optional*): text under the bar.

    Returns:
        `PIL.Image.Image`: mode RGB, wider than the picture.
    """
    font_size = max(10, picture.height // 28)
    font = _font(font_size)
    bar, gap = max(8, picture.height // 30), font_size // 2
    margin = gap + bar + gap // 2 + int(font.getlength("0.00")) + gap
    framed = Image.new("RGB", (picture.width + margin, picture.height), "white")
    framed.paste(picture.convert("RGB"), (0, 0))
    top, bottom = font_size, picture.height - font_size
    ramp = np.linspace(255, 0, max(2, bottom - top)).round().astype(np.uint8)
    left = picture.width + gap
    framed.paste(Image.fromarray(np.repeat(_COLORS[ramp][:, None], bar, axis=1)), (left, top))
    draw = ImageDraw.Draw(framed)
    for part in (0.0, 0.5, 1.0):
        y = bottom - part * (bottom - top)
        text = f"{low + part * (high - low):.2f}".rstrip("0").rstrip(".") or "0"
        draw.text((left + bar + gap // 2, y), text, fill="black", font=font, anchor="lm")
    if label:
        draw.text((left, picture.height - 1), label, fill="black", font=_font(max(8, font_size // 2)), anchor="ls")
    return framed


def sheet(
    rows: Sequence[Sequence[tuple[str, Image.Image]]], height: int = 256, title: str = "", color_bar: bool = True
) -> Image.Image:
    """
    Arrange pictures in rows, with captions.

    Args:
        rows (`Sequence[Sequence[tuple[str, PIL.Image.Image]]]`): (caption, picture) pairs of each row; a caption is
            drawn above its picture.
        height (`int`, *optional*, defaults to 256): height of every picture in pixels; widths follow their ratios.
        title (`str`, *optional*): text above all rows.
        color_bar (`bool`, *optional*, defaults to `True`): draw the fixed scale on the right of each row.

    Returns:
        `PIL.Image.Image`: mode RGB.
    """
    gap, font = 8, _font(max(11, height // 18))
    line = int(font.size * 1.5)
    strips = []
    for row in rows:
        cells = []
        for caption, picture in row:
            width = max(1, round(picture.width * height / picture.height))
            cell = picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
            cells.append((caption, cell))
        if color_bar:
            caption, cell = cells[-1]
            cells[-1] = (caption, add_color_bar(cell))
        strip = Image.new("RGB", (sum(cell.width + gap for _, cell in cells) + gap, height + line + gap), "white")
        draw, left = ImageDraw.Draw(strip), gap
        for caption, cell in cells:
            strip.paste(cell, (left, line))
            draw.text((left, line // 2), _fit(caption, cell.width, font), fill="black", font=font, anchor="lm")
            left += cell.width + gap
        strips.append(strip)
    top = 2 * line if title else 0
    whole = Image.new(
        "RGB", (max(strip.width for strip in strips), top + sum(strip.height for strip in strips)), "white"
    )
    if title:
        ImageDraw.Draw(whole).text((gap, top // 2), title, fill="black", font=_font(font.size + 4), anchor="lm")
    for strip in strips:
        whole.paste(strip, (0, top))
        top += strip.height
    return whole


def _font(size: int) -> ImageFont.ImageFont:
    return ImageFont.load_default(size=int(size))


def _fit(text: str, width: int, font: ImageFont.ImageFont) -> str:
    """Shorten a text to a width in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
