"""
Shapes: signed distances, strokes and lettering.

A signed distance is a float32 array of shape `(size, size)` in the units of the grid, negative inside of the shape.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .fields import Dice, Grid, gaussian_blur, noise


__all__ = [
    "barcode",
    "blob",
    "box",
    "coverage",
    "disc",
    "dome",
    "empty_shape",
    "gear",
    "lettering",
    "line_start",
    "polygon",
    "random_text",
    "ring",
    "segment",
    "strokes",
    "union",
    "wander",
]

_OVERSAMPLING = 4
_FAR = 9.0  # larger than any distance within a picture


def empty_shape(grid: Grid) -> np.ndarray:
    """Return a distance field without a shape; `np.minimum` joins shapes to it."""
    return np.full(grid.x.shape, _FAR, np.float32)


def disc(grid: Grid, radius: float, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """Return a filled circle."""
    dx, dy = grid.x - np.float32(x), grid.y - np.float32(y)
    return np.sqrt(dx * dx + dy * dy) - np.float32(radius)


def ring(grid: Grid, radius: float, width: float, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """Return a circular band of this width around the circle of this radius."""
    return np.abs(disc(grid, radius, x, y)) - np.float32(width / 2)


def box(grid: Grid, width: float, height: float, corner: float = 0.0, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """Return a rectangle of half width `width` and half height `height` with rounded corners."""
    corner = min(corner, width, height)
    dx = np.abs(grid.x - np.float32(x)) - np.float32(width - corner)
    dy = np.abs(grid.y - np.float32(y)) - np.float32(height - corner)
    outside = np.sqrt(np.maximum(dx, 0) ** 2 + np.maximum(dy, 0) ** 2)
    return outside + np.minimum(np.maximum(dx, dy), 0) - np.float32(corner)


def polygon(grid: Grid, sides: int, radius: float) -> np.ndarray:
    """Return a regular polygon; `radius` is the distance of its sides from the center."""
    distance = -empty_shape(grid)
    for side in range(sides):
        angle = 2 * math.pi * side / sides
        np.maximum(distance, grid.x * math.cos(angle) + grid.y * math.sin(angle), out=distance)
    return distance - np.float32(radius)


def gear(
    grid: Grid, teeth: int, radius: float, depth: float, flank: float = 0.5, keep: np.ndarray | None = None
) -> np.ndarray:
    """
    Return a toothed wheel.

    Args:
        depth (`float`): height of the teeth.
        flank (`float`): steepness of the teeth, from 0 (sine) to 1 (nearly rectangular).
        keep (`np.ndarray` of shape `(teeth,)`, *optional*): remaining share of each tooth, from 0 (broken off) to 1.

    Returns:
        `np.ndarray` of shape `(size, size)`, float32.
    """
    turn = (grid.theta / np.float32(2 * math.pi)) % 1
    wave = np.cos(turn * np.float32(2 * math.pi * teeth))
    wave = np.clip(wave * np.float32(0.7 + 3 * flank), -1, 1)
    tooth = (0.5 + 0.5 * wave) * np.float32(depth)
    if keep is not None:
        tooth = tooth * keep.astype(np.float32)[np.floor(turn * teeth + 0.5).astype(np.int32) % teeth]
    return grid.radius - np.float32(radius - depth) - tooth


def segment(grid: Grid, start: tuple[float, float], end: tuple[float, float], width: float) -> np.ndarray:
    """Return a straight bar with round ends."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    px, py = grid.x - np.float32(start[0]), grid.y - np.float32(start[1])
    along = np.clip((px * dx + py * dy) / max(dx * dx + dy * dy, 1e-9), 0, 1)
    return np.sqrt((px - along * dx) ** 2 + (py - along * dy) ** 2) - np.float32(width / 2)


def blob(
    dice: Dice, grid: Grid, radius: float, irregularity: float = 0.25, rough: float = 0.0, lobes: int = 6
) -> np.ndarray:
    """
    Return an irregular patch around the origin of the grid.

    Args:
        irregularity (`float`): deviation of the outline from a circle, as a share (0..1) of the radius.
        rough (`float`): fine noise on the outline, as a share (0..1) of the radius.
        lobes (`int`): number of harmonics in the outline.
    """
    theta = grid.theta
    outline = np.ones(theta.shape, np.float32)
    for lobe in range(2, lobes + 2):
        amplitude, phase = dice.normal(0, irregularity / lobe**0.8), dice.angle()
        outline += np.float32(amplitude) * np.cos(theta * np.float32(lobe) + np.float32(phase))
    distance = grid.radius - np.maximum(outline, 0.15) * np.float32(radius)
    if rough:
        share = radius * grid.scale / 2  # radius as a share of the image side
        distance = distance + np.float32(rough * radius) * noise(dice, grid.size, max(share, 0.03), 0.012, 1.6)
    return distance


def union(*distances: np.ndarray) -> np.ndarray:
    """Return the union of shapes."""
    together = distances[0]
    for distance in distances[1:]:
        together = np.minimum(together, distance)
    return together


def coverage(distance: np.ndarray, softness: float) -> np.ndarray:
    """Return the opacity, 0..1, of a shape whose edge is `softness` wide; with one pixel it is anti-aliased."""
    return np.clip(np.float32(0.5) - distance / np.float32(softness), 0, 1)


def dome(distance: np.ndarray, width: float, height: float) -> np.ndarray:
    """Return the height of a rounded edge: 0 at the outline, `height` at distances of `width` and more inside."""
    inside = np.clip(-distance / np.float32(width), 0, 1)
    return np.float32(height) * np.sqrt(np.maximum(1 - (1 - inside) ** 2, 0))


def line_start(middle: tuple[float, float], heading: float, half_length: float) -> tuple[float, float]:
    """Return the start of a straight line from its middle and direction."""
    return middle[0] - half_length * math.cos(heading), middle[1] - half_length * math.sin(heading)


def wander(
    dice: Dice,
    start: tuple[float, float],
    heading: float,
    length: float,
    restlessness: float = 0.5,
    step: float = 0.02,
    drift: float = 0.0,
) -> np.ndarray:
    """
    Return a random walk that roughly keeps its direction.

    Args:
        restlessness (`float`): strength of the turns, 0 or more; 0 gives a straight line, 1 about one radian per
            tenth of the picture.
        step (`float`): distance between points.
        drift (`float`): steady turn over the whole length, in radians.

    Returns:
        `np.ndarray` of shape `(points, 2)`: x and y in the frame of the picture.
    """
    count = max(3, round(length / step) + 1)
    turns = dice.normal_array(count) * np.float32(restlessness * math.sqrt(length / count) * 2.0)
    pull = np.zeros(count, np.float32)
    bend = 0.0
    for index in range(count):  # turns decay back to the heading; otherwise the path curls up
        bend = 0.92 * bend + float(turns[index])
        pull[index] = bend
    directions = heading + pull + np.linspace(0, drift, count, dtype=np.float32)
    advance = np.float32(length / count)
    x = start[0] + np.cumsum(np.cos(directions)) * advance
    y = start[1] + np.cumsum(np.sin(directions)) * advance
    return np.stack([np.concatenate([[start[0]], x]), np.concatenate([[start[1]], y])], axis=1).astype(np.float32)


def strokes(
    size: int,
    paths: Sequence[np.ndarray],
    widths: Sequence[float | np.ndarray],
    opacities: Sequence[float] | None = None,
) -> np.ndarray:
    """
    Return lines drawn with a round pen.

    Args:
        paths (sequence of `np.ndarray` of shape `(points, 2)`): lines in the frame of the picture.
        widths (sequence of `float` or `np.ndarray` of shape `(points,)`): widths in the same units.
        opacities (sequence of `float`, *optional*): opacity of each path, 0..1; 1 by default.

    Returns:
        `np.ndarray` of shape `(size, size)`, float32 in [0, 1].
    """
    canvas = np.zeros((size, size), np.float32)
    drawn_paths = [path for path in paths if len(path) > 1]
    if not drawn_paths:
        return canvas
    reach = max(float(np.max(width)) for width in widths)
    low = np.floor((np.concatenate(drawn_paths).min(axis=0) - reach + 1) * size / 2).astype(int) - 2
    high = np.ceil((np.concatenate(drawn_paths).max(axis=0) + reach + 1) * size / 2).astype(int) + 2
    low, high = np.clip(low, 0, size), np.clip(high, 0, size)
    columns, rows = int(high[0] - low[0]), int(high[1] - low[1])
    if columns < 1 or rows < 1:
        return canvas
    scale = _OVERSAMPLING
    pen = Image.new("L", (columns * scale, rows * scale))
    draw = ImageDraw.Draw(pen)
    for number, path in enumerate(paths):
        if len(path) < 2:
            continue
        opacity = 255 if opacities is None else round(255 * min(1.0, float(opacities[number])))
        points = ((path + 1) * (size / 2) - low) * scale
        width = np.broadcast_to(np.asarray(widths[number], np.float32), (len(path),)) * (size / 2 * scale)
        _draw_path(draw, points, width, opacity)
    small = np.asarray(pen.reduce(scale), np.float32) / 255
    canvas[low[1] : high[1], low[0] : high[0]] = small
    # Pillow draws lines at least one oversampled pixel wide: make up for thinner lines with less opacity
    widest = max(float(np.max(width)) for width in widths) * size / 2 * scale
    return canvas * np.float32(min(1.0, widest)) if widest < 1 else canvas


def _draw_path(draw: ImageDraw.ImageDraw, points: np.ndarray, width: np.ndarray, opacity: int) -> None:
    """Draw a polyline with round ends. `points` of shape `(n, 2)` and `width` of shape `(n,)` are in pixels."""
    if float(width.max() - width.min()) < 0.5:
        line = [tuple(point) for point in points.tolist()]
        half = float(width[0]) / 2
        draw.line(line, fill=opacity, width=max(1, round(2 * half)), joint="curve")
        for x, y in (line[0], line[-1]) if half > 1.5 else ():
            draw.ellipse([x - half, y - half, x + half, y + half], fill=opacity)
        return
    for (x0, y0), (x1, y1), thickness in zip(points[:-1].tolist(), points[1:].tolist(), width[:-1], strict=True):
        if thickness > 0.3:
            draw.line([x0, y0, x1, y1], fill=opacity, width=max(1, round(float(thickness))))
        if thickness > 3:
            half = float(thickness) / 2
            draw.ellipse([x1 - half, y1 - half, x1 + half, y1 + half], fill=opacity)


# Letters as polylines over three columns and five rows of points: a b c / d e f / g h i / j k l / m n o.
# Strokes instead of a font file look the same on every platform and at every size.
_GLYPHS = {
    "0": "acoma", "1": "dbn mo", "2": "acigmo", "3": "acom gi", "4": "agi co", "5": "cagiom", "6": "camoig",
    "7": "acn", "8": "acomagi", "9": "igacom", "A": "mdbfo gi", "B": "ambfhlnm gh", "C": "camo", "D": "amnlfba",
    "E": "camo gh", "F": "cam gh", "G": "camoih", "H": "am co gi", "I": "bn", "J": "comj", "K": "am cgo", "L": "amo",
    "M": "maeco", "N": "maoc", "O": "bdjnlfb", "P": "macig", "Q": "bdjnlfb ko", "R": "macigo", "S": "cagiom",
    "T": "ac bn", "U": "amoc", "V": "anc", "W": "amkoc", "X": "ao cm", "Y": "ahc hn", "Z": "acmo", "-": "gi",
    "+": "gi ek", ".": "nn", "/": "cm", ":": "ee kk",
}  # fmt: skip


def random_text(dice: Dice, low: int = 2, high: int = 8) -> str:
    """Return random characters that look like a serial number, a date or a word."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    style = dice.pick(("digits", "word", "mixed", "code"))
    alphabet = {"digits": "0123456789", "word": letters, "mixed": letters + "0123456789", "code": "ABCX0123456789-/."}
    return "".join(dice.pick(alphabet[style]) for _ in range(dice.whole(low, high)))


def lettering(
    size: int,
    text: str,
    center: tuple[float, float],
    height: float,
    angle: float = 0.0,
    weight: float = 0.16,
    slant: float = 0.0,
) -> np.ndarray:
    """
    Return text along a straight line.

    Args:
        center (`tuple[float, float]`): middle of the text, in the frame of the picture.
        height (`float`): height of a letter.
        angle (`float`): direction of the line in radians.
        weight (`float`): width of the strokes as a share of the height.
        slant (`float`): horizontal shift per unit of height, for italics.

    Returns:
        `np.ndarray` of shape `(size, size)`, float32: opacity.
    """
    advance = 0.78  # width of a letter with its spacing, as a share of the height
    cos, sin = math.cos(angle), math.sin(angle)
    paths = []
    for position, letter in enumerate(text):
        left = (position - (len(text) - 1) / 2) * advance
        for polyline in _GLYPHS.get(letter, "").split():
            index = np.array([ord(point) - ord("a") for point in polyline])
            x = (index % 3 - 1) * 0.26 + left
            y = (index // 3 - 2) / 4
            x = x - slant * y
            x, y = x * height, y * height
            paths.append(np.stack([center[0] + x * cos - y * sin, center[1] + x * sin + y * cos], axis=1))
            paths[-1][-1] += 1e-4  # gives a dot, whose points coincide, a length
    return strokes(size, paths, [weight * height] * len(paths))


def barcode(dice: Dice, grid: Grid, width: float, height: float, bars: int = 40) -> np.ndarray:
    """Return the opacity of random bars inside a rectangle of half width `width` and half height `height`."""
    pattern = (dice.uniform_array(bars) > 0.5).astype(np.float32)
    pattern[0] = pattern[-1] = 1
    index = np.clip((grid.x / np.float32(2 * width) + np.float32(0.5)) * bars, 0, bars - 1).astype(np.int32)
    return gaussian_blur(pattern[index] * coverage(box(grid, width, height), grid.pixel), 0.4)
