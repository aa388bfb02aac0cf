"""Pictures of results: heat maps on one fixed colour scale, overlays, outlines, sheets.

A colour always means the same value: 0 is the dark end of the scale and 1 the bright end, in every picture. Stretching
a map to its own range makes noise look like defects; it has to be asked for, and the colour bar must then say so.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont


__all__ = ["add_color_bar", "contour", "draw_boxes", "heatmap", "overlay", "sheet", "to_array"]

# Eleven stations of matplotlib's "inferno" (CC0): perceptually even, readable in grey and by the colour-blind
_STATIONS = np.array(
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
        [np.interp(np.linspace(0, 1, 256), np.linspace(0, 1, len(_STATIONS)), _STATIONS[:, c]) for c in range(3)],
        axis=-1,
    )
    .round()
    .astype(np.uint8)
)

_OUTLINE = (0, 255, 255)
_TRUTH = (0, 255, 0)


def to_array(values) -> np.ndarray:
    """A map or a mask as a NumPy array of shape (height, width): from torch, PIL or NumPy."""
    if hasattr(values, "detach"):  # a torch tensor; this module does without torch
        values = values.detach().cpu().numpy()
    return np.asarray(values)


def _range_of(anomaly_map: np.ndarray, stretch: bool) -> tuple[float, float]:
    if not stretch:
        return 0.0, 1.0
    low, high = float(anomaly_map.min()), float(anomaly_map.max())
    return low, high if high > low else low + 1e-6


def heatmap(anomaly_map, stretch: bool = False) -> Image.Image:
    """
    A map as colours.

    Args:
        anomaly_map (array of shape `(height, width)`): probabilities in [0, 1].
        stretch (`bool`, *optional*, defaults to `False`): use the map's own range instead of [0, 1].

    Returns:
        `PIL.Image.Image`: mode RGB, (width, height).
    """
    values = to_array(anomaly_map).astype(np.float32)
    low, high = _range_of(values, stretch)
    levels = ((values - low) / (high - low)).clip(0, 1) * 255
    return Image.fromarray(_COLORS[levels.round().astype(np.uint8)])


def overlay(image: Image.Image, anomaly_map, mask=None, alpha: float = 0.6, stretch: bool = False) -> Image.Image:
    """
    The image with the heat map over it, the more opaque the higher the value, and the mask's outline.

    Args:
        image (`PIL.Image.Image`): the picture.
        anomaly_map (array of shape `(height, width)`): of the image's size, in [0, 1].
        mask (array of shape `(height, width)`, *optional*): outlined in cyan.
        alpha (`float`, *optional*, defaults to 0.6): opacity where the map is 1.
        stretch (`bool`, *optional*, defaults to `False`): colours over the map's own range.

    Returns:
        `PIL.Image.Image`: mode RGB, of the image's size.
    """
    image, values = image.convert("RGB"), to_array(anomaly_map).astype(np.float32)
    if values.shape != (image.height, image.width):
        raise ValueError(f"The map is {values.shape}, the image ({image.height}, {image.width}) (height, width).")
    low, high = _range_of(values, stretch)
    opacity = ((values - low) / (high - low)).clip(0, 1) * (255 * alpha)
    picture = Image.composite(heatmap(values, stretch), image, Image.fromarray(opacity.astype(np.uint8)))
    return picture if mask is None else contour(picture, mask)


def contour(image: Image.Image, mask, color: tuple[int, int, int] = _OUTLINE, width: int | None = None) -> Image.Image:
    """The image with the outline of a binary mask drawn inside it, `width` pixels thick (default: by the size)."""
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
    """The image with each region's box and score; regions as the pipeline returns them."""
    picture = image.convert("RGB")
    draw, font = ImageDraw.Draw(picture), _font(max(10, min(picture.size) // 40))
    for region in regions:
        box = region["box"]
        corners = (box["xmin"], box["ymin"], box["xmax"], box["ymax"])
        draw.rectangle(corners, outline=color, width=max(1, min(picture.size) // 300))
        draw.text((corners[0] + 2, corners[1] + 2), f"{region['score']:.2f}", fill=color, font=font)
    return picture


def add_color_bar(picture: Image.Image, low: float = 0.0, high: float = 1.0, label: str = "") -> Image.Image:
    """The picture with a colour bar on its right: what values the colours stand for."""
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
    Pictures side by side, each with its caption; one row for each image.

    Args:
        rows: for each row its (caption, picture) pairs; captions are drawn above the pictures.
        height (`int`, *optional*, defaults to 256): pixels of every picture; widths follow their ratios.
        title (`str`, *optional*): above everything.
        color_bar (`bool`, *optional*, defaults to `True`): the fixed scale, on the right of each row.

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


def _fit(text: str, width: int, font) -> str:
    """The text, cut where it would run into the next picture."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
