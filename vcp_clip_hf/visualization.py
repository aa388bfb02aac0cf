"""Pictures of results: heat maps on one fixed color scale, overlays, outlines, sheets.

A color has the same value in every picture of a kind: 0 is the dark end of the scale and 1 the bright end. Stretching
a map to its own range makes noise look like defects. It is therefore optional, and the color bar must then show the
range.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Union

import numpy as np
from PIL import Image, ImageDraw, ImageFont


if TYPE_CHECKING:
    import torch


__all__ = [
    "MapLike",
    "add_color_bar",
    "contour",
    "draw_boxes",
    "heatmap",
    "overlay",
    "overlay_with_scale",
    "sheet",
    "to_array",
]

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
# Overlays use the upper two thirds of the scale: its lower third cannot be seen on dark parts of an image
_OVERLAY_COLORS = _COLORS[np.linspace(85, 255, 256).round().astype(int)]

_OUTLINE = (0, 255, 255)
# Around every outline, so that it is visible on bright parts and on the bright end of the scale
_HALO = (0, 0, 0)
# Between the pictures of a sheet, in pixels
_GAP = 8
# Longer side of an overlay in a file, in pixels
_SMALLEST_OVERLAY = 160
_WIDEST_JPEG = 65500


def to_array(values: MapLike) -> np.ndarray:
    """Convert a map or a mask to a NumPy array of shape (height, width)."""
    if hasattr(values, "detach"):  # a torch tensor, recognized without importing torch
        values = values.detach().cpu().numpy()
    return np.asarray(values)


def _levels(values: np.ndarray, stretch: bool) -> np.ndarray:
    """Return the place of each value on the color scale, uint8."""
    low, high = 0.0, 1.0
    if stretch:
        low, high = float(values.min()), float(values.max())
        high = high if high > low else low + 1e-6
    return (((values - low) / (high - low)).clip(0, 1) * 255).round().astype(np.uint8)


def heatmap(anomaly_map: MapLike, stretch: bool = False) -> Image.Image:
    """
    Color a map.

    Args:
        anomaly_map (`MapLike` of shape `(height, width)`): probabilities in [0, 1].
        stretch (`bool`, *optional*, defaults to `False`): whether to use the map's own range instead of [0, 1].

    Returns:
        `PIL.Image.Image`: mode RGB, (width, height).
    """
    return Image.fromarray(_COLORS[_levels(to_array(anomaly_map).astype(np.float32), stretch)])


def overlay(
    image: Image.Image, anomaly_map: MapLike, mask: MapLike | None = None, alpha: float = 0.6, stretch: bool = False
) -> Image.Image:
    """
    Draw the heat map over the image, more opaque where values are higher, and the outline of the mask.

    The colors are those of `add_color_bar(..., overlay=True)`.

    Args:
        image (`PIL.Image.Image`): picture of any mode.
        anomaly_map (`MapLike` of shape `(height, width)`): map of the image's size, in [0, 1].
        mask (`MapLike` of shape `(height, width)`, *optional*): mask to outline in cyan.
        alpha (`float`, *optional*, defaults to 0.6): opacity where the map is 1.
        stretch (`bool`, *optional*, defaults to `False`): whether to use the map's own range instead of [0, 1].

    Returns:
        `PIL.Image.Image`: mode RGB, of the image's size.

    Raises:
        ValueError: the sizes of map and image differ.
    """
    image, values = image.convert("RGB"), to_array(anomaly_map).astype(np.float32)
    if values.shape != (image.height, image.width):
        raise ValueError(f"The map is {values.shape}, the image ({image.height}, {image.width}) (height, width).")
    levels = _levels(values, stretch)
    colors, opacity = Image.fromarray(_OVERLAY_COLORS[levels]), Image.fromarray(_opacities(alpha)[levels])
    picture = Image.composite(colors, image, opacity)
    return picture if mask is None else contour(picture, mask)


def _opacities(alpha: float) -> np.ndarray:
    """Return the opacity of each of the 256 levels, uint8."""
    return (255 * alpha * np.linspace(0, 1, 256) ** 0.6).round().astype(np.uint8)


def overlay_with_scale(
    image: Image.Image, anomaly_map: MapLike, mask: MapLike | None = None, threshold: float | None = None
) -> Image.Image:
    """
    Draw an overlay beside its color bar, as it is written to files.

    Args:
        image (`PIL.Image.Image`): picture of any mode; a tiny one is enlarged by a whole number.
        anomaly_map (`MapLike` of shape `(height, width)`): map of the image's size, in [0, 1].
        mask (`MapLike` of shape `(height, width)`, *optional*): mask to outline in cyan.
        threshold (`float`, *optional*): threshold of the mask, marked on the color bar.

    Returns:
        `PIL.Image.Image`: mode RGB; the overlay is in the upper left corner. It has no color bar if a JPEG would be
        too wide with one.

    Raises:
        ValueError: the sizes of map and image differ.
    """
    factor = max(1, _SMALLEST_OVERLAY // max(image.size))
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        anomaly_map = _enlarged(anomaly_map, factor)
        mask = None if mask is None else _enlarged(mask, factor)
    drawn = overlay(image, anomaly_map, mask)
    framed = add_color_bar(drawn, threshold=threshold, overlay=True)
    return framed if framed.width <= _WIDEST_JPEG else drawn


def _enlarged(values: MapLike, factor: int) -> np.ndarray:
    return to_array(values).repeat(factor, axis=0).repeat(factor, axis=1)


def contour(
    image: Image.Image, mask: MapLike, color: tuple[int, int, int] = _OUTLINE, width: int | None = None
) -> Image.Image:
    """
    Draw a line around a mask, with a dark line around it. Where the mask reaches the border of the image, the line is
    drawn inside the mask, so that every mask that is not empty has one.

    Args:
        image (`PIL.Image.Image`): picture of any mode.
        mask (`MapLike` of shape `(height, width)`): mask of the image's size, non-zero inside.
        color (`tuple[int, int, int]`, *optional*, defaults to cyan): RGB color of the line.
        width (`int`, *optional*): thickness in pixels; by default it follows the size of the mask.

    Returns:
        `PIL.Image.Image`: mode RGB.

    Raises:
        ValueError: the sizes of mask and image differ.
    """
    inside = to_array(mask).astype(bool)
    if inside.shape != (image.height, image.width):
        raise ValueError(f"The mask is {inside.shape}, the image ({image.height}, {image.width}) (height, width).")
    if not inside.any():
        return image.convert("RGB")
    width = width or max(1, round(min(inside.shape) / 300))
    halo = (width + 1) // 2
    part = _surroundings(inside, width + halo)
    pixels = np.asarray(image.convert("RGB")).copy()
    border = np.ones_like(inside)
    border[width:-width, width:-width] = False
    inside, border = inside[part], border[part]
    wide = _grown(inside, width)
    pixels[part][_grown(wide, halo) & ~wide] = _HALO
    pixels[part][wide & (~inside | border)] = color
    return Image.fromarray(pixels)


def _surroundings(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    """Return the smallest rectangle that contains a mask and a margin, cut at the border of the image."""
    found = []
    for axis in (1, 0):
        places = np.flatnonzero(mask.any(axis=axis))
        found.append(slice(max(0, places[0] - margin), places[-1] + 1 + margin))
    return found[0], found[1]


def _grown(mask: np.ndarray, radius: int) -> np.ndarray:
    """Return the pixels within `radius` rows and columns of a mask."""
    grown = mask.copy()
    for axis in (0, 1):
        lines, reach = np.moveaxis(grown, axis, 0), 0
        while reach < radius:
            # `lines` holds each place's surroundings up to `reach`; two shifted copies triple that
            step = min(radius - reach, 2 * reach + 1)
            former = lines.copy()
            lines[step:] |= former[:-step]
            lines[:-step] |= former[step:]
            reach += step
    return grown


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
        box, text = region["box"], f"{region['score']:.2f}"
        left, top, right, bottom = box["xmin"], box["ymin"], box["xmax"] - 1, box["ymax"] - 1
        draw.rectangle((left, top, right, bottom), outline=color, width=max(1, min(picture.size) // 300))
        # a label of a box at the right or lower border stays inside the picture
        place = (
            max(0, min(left + 2, picture.width - int(font.getlength(text)) - 2)),
            max(0, min(top + 2, picture.height - int(1.3 * font.size))),
        )
        draw.text(place, text, fill=color, font=font, stroke_width=1, stroke_fill=_HALO)
    return picture


def add_color_bar(
    picture: Image.Image,
    low: float = 0.0,
    high: float = 1.0,
    label: str = "",
    threshold: float | None = None,
    overlay: bool = False,
) -> Image.Image:
    """
    Add a color bar on the right of a picture.

    Args:
        picture (`PIL.Image.Image`): picture of any mode.
        low, high (`float`, *optional*, defaults to 0 and 1): values of the lower and the upper end.
        label (`str`, *optional*): text under the bar.
        threshold (`float`, *optional*): value to mark, in the color of outlines.
        overlay (`bool`, *optional*, defaults to `False`): show the colors of `overlay` instead of those of `heatmap`.

    Returns:
        `PIL.Image.Image`: mode RGB, wider than the picture, and higher if the picture is too low for a bar. The
        picture is in the upper left corner.
    """
    # not by the longer side: beside a tall, narrow picture the bar must stay narrow, too
    font_size = max(10, min(picture.height, 2 * picture.width) // 28)
    font, gap, bar = _font(font_size), font_size // 2, max(8, font_size)
    texts = {part: _short(low + part * (high - low)) for part in (0.0, 0.5, 1.0)}
    if threshold is not None:
        marked = min(1.0, max(0.0, (threshold - low) / (high - low)))
        # The mark must not lie on top of a number
        texts = {part: text for part, text in texts.items() if abs(part - marked) > 0.12}
        texts[marked] = _short(threshold)
    height = max(picture.height, 10 * font_size)
    top, bottom = font_size, min(height, 30 * font_size) - font_size
    label_font = _font(max(8, font_size // 2))
    room = max(bar + gap + max(map(font.getlength, texts.values())), label_font.getlength(label))
    framed = Image.new("RGB", (picture.width + 2 * gap + int(room) + 1, height), "white")
    framed.paste(picture.convert("RGB"), (0, 0))
    colors = (_OVERLAY_COLORS if overlay else _COLORS)[np.linspace(255, 0, bottom - top).round().astype(np.uint8)]
    left = picture.width + gap
    framed.paste(Image.fromarray(np.repeat(colors[:, None], bar, axis=1)), (left, top))
    draw = ImageDraw.Draw(framed)
    for part, text in texts.items():
        y = bottom - part * (bottom - top)
        draw.text((left + bar + gap, y), text, fill="black", font=font, anchor="lm")
    if threshold is not None:
        y, thickness = bottom - round(marked * (bottom - top)), max(1, font_size // 10)
        draw.rectangle((left - 2, y - 2 * thickness, left + bar + 1, y + 2 * thickness), fill=_HALO)
        draw.rectangle((left - 2, y - thickness, left + bar + 1, y + thickness), fill=_OUTLINE)
    if label:
        draw.text((left, bottom + font_size), label, fill="black", font=label_font, anchor="ls")
    return framed


def _short(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"


def sheet(
    rows: Sequence[Sequence[tuple[str, Image.Image]]], height: int = 256, title: str = "", color_bar: bool = True
) -> Image.Image:
    """
    Arrange pictures in rows, with captions.

    Every picture keeps its ratio and is scaled to fit into `height` rows and twice as many columns.

    Args:
        rows (`Sequence[Sequence[tuple[str, PIL.Image.Image]]]`): (caption, picture) pairs of each row; a caption is
            drawn above its picture, shortened in the middle where it is too long.
        height (`int`, *optional*, defaults to 256): largest height of a picture in pixels.
        title (`str`, *optional*): text above all rows, in as many lines as it needs.
        color_bar (`bool`, *optional*, defaults to `True`): whether to draw the fixed scale on the right of each row.

    Returns:
        `PIL.Image.Image`: mode RGB.
    """
    font = _font(max(11, height // 18))
    strips = [_strip(row, height, font, color_bar) for row in rows]
    width = max(strip.width for strip in strips)
    title_font = _font(font.size + 4)
    lines = _wrapped(_printable(title), width - 2 * _GAP, title_font) if title else []
    line_height = int(1.5 * title_font.size)
    top = len(lines) * line_height
    whole = Image.new("RGB", (width, top + sum(strip.height for strip in strips)), "white")
    for number, line in enumerate(lines):
        place = (_GAP, number * line_height + line_height // 2)
        ImageDraw.Draw(whole).text(place, line, fill="black", font=title_font, anchor="lm")
    for strip in strips:
        whole.paste(strip, (0, top))
        top += strip.height
    return whole


def _strip(
    row: Sequence[tuple[str, Image.Image]], height: int, font: ImageFont.FreeTypeFont, color_bar: bool
) -> Image.Image:
    """Return one row of a sheet: pictures of equal scale under their captions."""
    cells = [(_printable(caption), _fitted(picture, height)) for caption, picture in row]
    # a caption above a narrow picture needs more room than the picture
    widths = [max(cell.width, 2 * height // 3) for _, cell in cells]
    if color_bar:
        caption, cell = cells[-1]
        cells[-1] = (caption, add_color_bar(cell))
        widths[-1] = max(widths[-1], cells[-1][1].width)
    line = int(font.size * 1.5)
    strip_height = line + max(cell.height for _, cell in cells) + _GAP
    strip = Image.new("RGB", (sum(widths) + _GAP * (len(cells) + 1), strip_height), "white")
    draw, left = ImageDraw.Draw(strip), _GAP
    for (caption, cell), width in zip(cells, widths, strict=True):
        strip.paste(cell, (left, line))
        draw.text((left, line // 2), _shortened(caption, width, font), fill="black", font=font, anchor="lm")
        left += width + _GAP
    return strip


def _fitted(picture: Image.Image, height: int) -> Image.Image:
    """Scale a picture to a height, or, if it is very wide, to twice that width."""
    scale = min(height / picture.height, 2 * height / picture.width)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    # small pictures are enlarged with sharp pixels
    sampling = Image.Resampling.NEAREST if scale >= 4 else Image.Resampling.BILINEAR
    return picture.convert("RGB").resize(size, sampling)


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=int(size))


def _printable(text: str) -> str:
    """Return the text on one line, with "?" for what no font can draw."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(each if each.isprintable() else " " for each in text)


def _shortened(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """Shorten a text in the middle, so that it fits into a width in pixels; names often differ at the end only."""
    if font.getlength(text) <= width:
        return text
    kept = max(0, len(text) - 1)
    while kept and font.getlength(_without_middle(text, kept)) > width:
        kept -= 1
    return _without_middle(text, kept)


def _without_middle(text: str, kept: int) -> str:
    return f"{text[: kept // 3]}...{text[len(text) - (kept - kept // 3) :]}"


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """Divide a text into lines of at most a width in pixels, at spaces where there are any."""
    lines = []
    while text:
        end = len(text)
        while end > 1 and font.getlength(text[:end]) > width:
            end -= 1
        space = text.rfind(" ", 1, end + 1)
        if end < len(text) and space > 0:
            end = space
        lines.append(text[:end])
        text = text[end:].lstrip()
    return lines
