"""
Paint kinds of anomalies: for each, a function that returns changed pixels and their opacity.

- "perlin": another texture, blended in where Perlin noise is high (DRAEM, Zavrtanik et al., ICCV 2021). The texture is
  procedural, or comes from images given by the caller;
- "cut_paste": a rectangle of the image, with jittered color, pasted elsewhere (CutPaste, Li et al., CVPR 2021);
- "scar": the same with a long, thin, rotated rectangle (the "scar" of that paper);
- "line": scratches and branching cracks, about 1 to 8 pixels wide in an image of 224 pixels, faint or strong;
- "specks": pits, inclusions and splashes;
- "stain": a smooth spot of another brightness or color, through which the surface shows;
- "blur": a region that lost its texture, for example by wear;
- "dent": a relief, visible by its shading only;
- "missing": a region without the product: the background, or another material, shows there;
- "warp": a region whose pixels are displaced;
- "rough": a region with grain, pits or bumps.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from ..generator.fields import Dice, Grid, gaussian_blur, smoothstep
from ..generator.materials import any_material
from ..generator.shapes import strokes, wander
from ..image_loading import load_image


__all__ = ["ANOMALY_KINDS", "PAINTERS", "perlin_noise"]

# Painted pixels (height, width, 3) in 0..255, and their opacity (height, width) in 0..1
_Painted = tuple[np.ndarray, np.ndarray]

_SMALLEST_RADIUS, _LARGEST_RADIUS = 0.015, 0.3  # of a region, as a share of the image's larger side


def perlin_noise(dice: Dice, shape: tuple[int, int], periods: tuple[int, int]) -> np.ndarray:
    """
    Draw gradient noise (Perlin 1985).

    Args:
        dice (`Dice`): source of random numbers.
        shape (`tuple[int, int]`): height and width.
        periods (`tuple[int, int]`): number of lattice cells, vertically and horizontally.

    Returns:
        `np.ndarray` of shape `(height, width)`, float32, about -1..1.
    """
    down = np.linspace(0, periods[0], shape[0], endpoint=False, dtype=np.float32)
    across = np.linspace(0, periods[1], shape[1], endpoint=False, dtype=np.float32)
    angles = dice.uniform_array((periods[0] + 1) * (periods[1] + 1), 0, 2 * math.pi).reshape(
        periods[0] + 1, periods[1] + 1
    )
    row, column = down.astype(np.int32)[:, None], across.astype(np.int32)[None, :]
    y, x = down[:, None] - row, across[None, :] - column

    def corner(below: int, right: int) -> np.ndarray:
        angle = angles[row + below, column + right]
        return np.cos(angle) * (x - right) + np.sin(angle) * (y - below)

    def fade(t: np.ndarray) -> np.ndarray:
        return t * t * t * (t * (t * 6 - 15) + 10)

    u, v = fade(x), fade(y)
    top = corner(0, 0) * (1 - u) + corner(0, 1) * u
    bottom = corner(1, 0) * (1 - u) + corner(1, 1) * u
    return ((top * (1 - v) + bottom * v) * np.float32(math.sqrt(2))).astype(np.float32)


# --- regions ---------------------------------------------------------------------------------------------------------


def _somewhere(dice: Dice, solid: np.ndarray) -> tuple[int, int]:
    """Draw the row and column of a foreground pixel."""
    rows, columns = np.nonzero(solid)
    chosen = dice.whole(0, len(rows) - 1)
    return int(rows[chosen]), int(columns[chosen])


def _region(
    dice: Dice, solid: np.ndarray, low: float = _SMALLEST_RADIUS, high: float = _LARGEST_RADIUS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Draw an irregular region on the product.

    Args:
        dice (`Dice`): source of random numbers.
        solid (`np.ndarray` of shape `(height, width)`): 1 on the product.
        low, high (`float`): range of its radius, as a share of the larger side.

    Returns:
        `tuple` of three `np.ndarray` of shape `(height, width)`, float32: distance from the center over the radius in
        each direction (below 1: inside), and the coordinates right and down from the center over the radius.
    """
    height, width = solid.shape
    row, column = _somewhere(dice, solid)
    radius = max(1.5, dice.log_between(low, high) * max(height, width))
    aspect, turn = dice.log_between(0.4, 1.0), dice.angle()
    y = ((np.arange(height, dtype=np.float32) - np.float32(row)) / np.float32(radius))[:, None]
    x = ((np.arange(width, dtype=np.float32) - np.float32(column)) / np.float32(radius))[None, :]
    along = x * np.float32(math.cos(turn)) + y * np.float32(math.sin(turn))
    across = (y * np.float32(math.cos(turn)) - x * np.float32(math.sin(turn))) / np.float32(aspect)
    angle = np.arctan2(across, along)
    outline = np.ones((height, width), np.float32)
    rough = dice.between(0.0, 0.45)
    for wave in (2, 3, 5, 8):
        outline += np.float32(rough / wave * dice.normal()) * np.cos(wave * angle + np.float32(dice.angle()))
    distance = np.hypot(along, across) / np.maximum(outline, 0.3)
    return distance, np.broadcast_to(x, distance.shape), np.broadcast_to(y, distance.shape)


def _inside(dice: Dice, distance: np.ndarray, softest: float = 0.5) -> np.ndarray:
    """Return the opacity of a region with a sharp or soft edge."""
    softness = dice.between(0.02, softest)
    return smoothstep(1 + softness / 2, 1 - softness / 2, distance)


def _grain(dice: Dice, shape: tuple[int, int], scale: float) -> np.ndarray:
    """Return noise with about unit deviation, whose grains have `scale` pixels; (height, width) float32."""
    small = tuple(max(2, round(side / max(scale, 1.0))) for side in shape)
    field = Image.fromarray(dice.normal_array(*small)).resize(shape[::-1], Image.Resampling.BICUBIC)
    return np.asarray(field, np.float32)


def _color(dice: Dice, around: np.ndarray) -> np.ndarray:
    """Draw a color that differs from that around, (3,) in 0..255: darker, lighter, or any."""
    kind = dice.whole(0, 2)
    if kind == 0:
        color = around * dice.between(0.0, 0.8)
    elif kind == 1:
        color = around + (255 - around) * dice.between(0.2, 1.0)
    else:
        color = dice.uniform_array(3, 0, 255)
    if np.abs(color - around).max() < 25:  # dark on black or light on white would be invisible
        color = around + (80 if around.mean() < 128 else -80)
    return color.astype(np.float32).clip(0, 255)


def _mean_at(pixels: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Return the mean color of a region, (3,)."""
    weights = opacity[..., None]
    return (pixels * weights).sum(axis=(0, 1)) / max(float(opacity.sum()), 1e-3)


def _mean_around(pixels: np.ndarray, row: int, column: int) -> np.ndarray:
    """Return the mean color of the 17 x 17 pixels around a place, (3,)."""
    return pixels[max(0, row - 8) : row + 9, max(0, column - 8) : column + 9].mean(axis=(0, 1))


def _texture(dice: Dice, shape: tuple[int, int], textures: Sequence | None) -> np.ndarray:
    """Return the pixels of another material, (height, width, 3) in 0..255."""
    height, width = shape
    if textures is None:
        grid = Grid(max(height, width, 32))
        texture = np.broadcast_to(any_material(dice, grid).color, (grid.size, grid.size, 3))[:height, :width] * 255
    else:
        chosen = load_image(textures[dice.whole(0, len(textures) - 1)])
        texture = np.asarray(chosen.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    return texture.clip(0, 255)


# --- painters --------------------------------------------------------------------------------------------------------


def _perlin(pixels: np.ndarray, dice: Dice, solid: np.ndarray, textures: Sequence | None) -> _Painted:
    periods = (2 ** dice.whole(0, 5), 2 ** dice.whole(0, 5))
    field = perlin_noise(dice, pixels.shape[:2], periods)
    if dice.chance(0.5):
        field = field[:, ::-1]
    region = (field > 0.5).astype(np.float32)
    texture = _texture(dice, pixels.shape[:2], textures)
    kept = dice.between(0.0, 0.8)
    return pixels * np.float32(kept) + texture * np.float32(1 - kept), region


def _jittered(patch: np.ndarray, dice: Dice, amount: float = 0.1) -> np.ndarray:
    """Change brightness, contrast and the balance of the channels, each by up to `amount`."""
    mean = patch.mean(axis=(0, 1), keepdims=True)
    patch = mean + (patch - mean) * np.float32(1 + dice.between(-amount, amount))
    return patch * (1 + dice.uniform_array(3, -amount, amount)) * np.float32(1 + dice.between(-amount, amount))


def _paste(pixels: np.ndarray, dice: Dice, solid: np.ndarray, high: int, wide: int, turn: float) -> _Painted:
    """Rotate a rectangle from a random place on the product, and paste it at another place."""
    height, width = pixels.shape[:2]
    high, wide = min(high, height), min(wide, width)
    row, column = _somewhere(dice, solid)
    top, left = min(max(row - high // 2, 0), height - high), min(max(column - wide // 2, 0), width - wide)
    patch = _jittered(pixels[top : top + high, left : left + wide], dice)
    piece = Image.fromarray(patch.clip(0, 255).astype(np.uint8))
    stencil = Image.new("L", piece.size, 255)
    if turn:
        piece = piece.rotate(turn, Image.Resampling.BILINEAR, expand=True)
        stencil = stencil.rotate(turn, Image.Resampling.BILINEAR, expand=True)
    row, column = _somewhere(dice, solid)
    corner = (column - piece.width // 2, row - piece.height // 2)
    canvas, cover = Image.new("RGB", (width, height)), Image.new("L", (width, height))
    canvas.paste(piece, corner)
    cover.paste(stencil, corner)
    # rotated edges mix with the black around the piece: only fully covered pixels count
    return np.asarray(canvas, np.float32), (np.asarray(cover) > 250).astype(np.float32)


def _cut_paste(pixels: np.ndarray, dice: Dice, solid: np.ndarray, textures: Sequence | None) -> _Painted:
    area = dice.between(0.02, 0.15) * float(solid.mean()) * pixels.shape[0] * pixels.shape[1]
    aspect = dice.between(0.3, 1.0) if dice.chance(0.5) else dice.between(1.0, 3.3)
    high, wide = max(2, round(math.sqrt(area / aspect))), max(2, round(math.sqrt(area * aspect)))
    return _paste(pixels, dice, solid, high, wide, 0.0)


def _scar(pixels: np.ndarray, dice: Dice, solid: np.ndarray, textures: Sequence | None) -> _Painted:
    unit = max(pixels.shape[:2]) / 256
    wide, high = max(2, round(dice.between(2, 16) * unit)), max(3, round(dice.between(10, 25) * unit))
    return _paste(pixels, dice, solid, high, wide, dice.between(-45, 45))


def _line(pixels: np.ndarray, dice: Dice, solid: np.ndarray, textures: Sequence | None) -> _Painted:
    height, width = pixels.shape[:2]
    side = max(height, width)
    cracked = dice.chance(0.5)
    thick = dice.log_between(0.006, 0.07)
    paths: list[np.ndarray] = []
    widths: list[np.ndarray] = []
    for _ in range(round(dice.log_between(2, 20)) if dice.chance(0.25) else 1):
        row, column = _somewhere(dice, solid)
        place = ((column + 0.5) * 2 / side - 1, (row + 0.5) * 2 / side - 1)
        for path, width_along in _crack(dice, place, thick) if cracked else [_scratch(dice, place, thick)]:
            paths.append(path)
            widths.append(width_along)
    opacity = strokes(side, paths, widths)[:height, :width]
    dark = cracked or dice.chance(0.4)
    near = _mean_around(pixels, row, column)
    if dark and near.mean() < 40:
        dark = False
    tone = near * dice.between(0.1, 0.85) if dark else near + (255 - near) * dice.between(0.12, 0.9)
    return np.broadcast_to(tone.astype(np.float32), pixels.shape), opacity


def _scratch(dice: Dice, place: tuple[float, float], thick: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw a slightly bent line through a place: its points (points, 2), and its width at each, (points,)."""
    length, heading = dice.log_between(0.08, 0.9), dice.angle()
    restless, drift = dice.between(0.0, 0.12), dice.normal(0, 0.8)
    path = wander(dice, _back_from(place, heading, length), heading, 2 * length, restless, 0.02, drift)
    return path, thick * _uneven(dice, len(path))


def _crack(dice: Dice, place: tuple[float, float], thick: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw a restless line through a place, and up to three thinner branches; each as in `_scratch`."""
    length, heading = dice.log_between(0.08, 0.9), dice.angle()
    restless = dice.between(0.4, 1.3)
    trunk = wander(dice, _back_from(place, heading, length), heading, 2 * length, restless, 0.02)
    lines = [(trunk, thick * _uneven(dice, len(trunk)))]
    for _ in range(dice.whole(0, 3)):
        spot = tuple(trunk[dice.whole(0, len(trunk) - 2)].tolist())
        lean = dice.sign() * dice.between(0.4, 1.2)
        branch = wander(dice, spot, heading + lean, 0.6 * length, restless, 0.02)
        lines.append((branch, 0.7 * thick * _uneven(dice, len(branch))))
    return lines


def _back_from(place: tuple[float, float], heading: float, length: float) -> tuple[float, float]:
    """Return the point from which a line reaches a place after `length`."""
    return place[0] - length * math.cos(heading), place[1] - length * math.sin(heading)


def _uneven(dice: Dice, count: int) -> np.ndarray:
    """Draw relative widths along a line, thinner at its ends, (count,) float32."""
    along = np.linspace(0, 1, count, dtype=np.float32)
    ends = smoothstep(0, 0.3, along) * smoothstep(1, 0.7, along)
    return np.clip(ends, 0.3, 1) * dice.uniform_array(count, 0.7, 1.3)


def _specks(pixels: np.ndarray, dice: Dice, solid: np.ndarray, textures: Sequence | None) -> _Painted:
    side = max(solid.shape)
    row, column = _somewhere(dice, solid)
    spread, size = dice.log_between(0.02, 0.5) * side, dice.log_between(0.004, 0.025) * side
    opacity = np.zeros(solid.shape, np.float32)
    for _ in range(round(dice.log_between(1, 60))):
        radius = max(0.7, size * dice.log_between(0.5, 2.0))
        middle = (row + dice.normal() * spread / 2, column + dice.normal() * spread / 2)
        _add_speck(opacity, dice, middle, radius)
    color = _color(dice, _mean_around(pixels, row, column))
    return np.broadcast_to(color, pixels.shape), opacity * np.float32(dice.between(0.5, 1.0))


def _add_speck(opacity: np.ndarray, dice: Dice, middle: tuple[float, float], radius: float) -> None:
    """Draw an ellipse around a row and column into an opacity; outside the image, draw nothing."""
    height, width = opacity.shape
    reach = math.ceil(2 * radius) + 1
    top, left = max(0, int(middle[0]) - reach), max(0, int(middle[1]) - reach)
    bottom, right = min(height, int(middle[0]) + reach + 1), min(width, int(middle[1]) + reach + 1)
    if top >= bottom or left >= right:
        return
    y, x = np.mgrid[top:bottom, left:right].astype(np.float32)
    turn, aspect = dice.angle(), dice.log_between(0.5, 1.0)
    y, x = y - np.float32(middle[0]), x - np.float32(middle[1])
    along = x * math.cos(turn) + y * math.sin(turn)
    across = (y * math.cos(turn) - x * math.sin(turn)) / aspect
    disc = np.clip(radius + 0.5 - np.hypot(along, across), 0, 1).astype(np.float32)
    opacity[top:bottom, left:right] = np.maximum(opacity[top:bottom, left:right], disc)


def _stain(pixels: np.ndarray, dice: Dice, solid: np.ndarray, textures: Sequence | None) -> _Painted:
    distance, _, _ = _region(dice, solid)
    opacity = _inside(dice, distance, 0.9)
    color = _color(dice, _mean_at(pixels, opacity))
    strength = dice.log_between(0.12, 0.9)
    cloudy = 1 + np.float32(dice.between(0, 0.4)) * _grain(dice, solid.shape, 0.05 * max(solid.shape))
    share = (np.float32(strength) * cloudy).clip(0, 1)[..., None]
    if dice.chance(0.5):  # a film multiplies, a coat covers
        return pixels * (1 + share * (color / 255 - 1)), opacity
    return pixels + share * (color - pixels), opacity


def _blur(pixels: np.ndarray, dice: Dice, solid: np.ndarray, textures: Sequence | None) -> _Painted:
    distance, _, _ = _region(dice, solid, 0.03)
    sigma = dice.log_between(0.006, 0.05) * max(solid.shape)
    smooth = np.stack([gaussian_blur(pixels[..., channel], sigma) for channel in range(3)], axis=-1)
    gain = np.float32(dice.between(0.85, 1.15))
    return smooth * gain, _inside(dice, distance, 0.3)


def _dent(pixels: np.ndarray, dice: Dice, solid: np.ndarray, textures: Sequence | None) -> _Painted:
    distance, x, y = _region(dice, solid, 0.02, 0.2)
    # the shading of a bump: the slope of (1 - distance^2)^2 towards the light
    slope = np.maximum(1 - distance * distance, 0)
    light = dice.angle()
    shade = slope * (x * np.float32(math.cos(light)) + y * np.float32(math.sin(light)))
    strength = dice.log_between(40, 250)
    gloss = np.float32(dice.between(0, 60)) * slope**4 if dice.chance(0.3) else np.float32(0)
    return pixels + (np.float32(strength) * shade + gloss)[..., None], (distance < 1).astype(np.float32)


def _missing(pixels: np.ndarray, dice: Dice, solid: np.ndarray, textures: Sequence | None) -> _Painted:
    distance, _, _ = _region(dice, solid, 0.015, 0.2)
    opacity = _inside(dice, distance, 0.1)
    outside = 1 - solid
    if outside.mean() > 0.02 and dice.chance(0.6):
        fill = np.broadcast_to(_mean_at(pixels, outside), pixels.shape)
    elif dice.chance(0.5):
        fill = np.broadcast_to(_color(dice, _mean_at(pixels, opacity)), pixels.shape)
    else:
        fill = _texture(dice, solid.shape, textures)
    fill = fill + np.float32(dice.between(0, 8)) * _grain(dice, solid.shape, 1)[..., None]
    if dice.chance(0.5):  # the edge throws a shadow
        edge = np.maximum(1 - np.abs(distance - 0.9) * 6, 0)
        fill = fill * (1 - np.float32(dice.between(0.2, 0.7)) * edge)[..., None]
    return fill, opacity


def _warp(pixels: np.ndarray, dice: Dice, solid: np.ndarray, textures: Sequence | None) -> _Painted:
    height, width = solid.shape
    distance, x, y = _region(dice, solid, 0.04, 0.25)
    fade = np.maximum(1 - distance * distance, 0)
    reach = np.float32(dice.log_between(0.02, 0.12) * max(height, width) * dice.sign())
    if dice.chance(0.5):  # a swirl, or a pinch
        down, right = reach * x * fade, -reach * y * fade
    else:
        down, right = reach * y * fade, reach * x * fade
    rows, columns = np.mgrid[0:height, 0:width]
    rows = np.rint(rows + down).astype(np.int32).clip(0, height - 1)
    columns = np.rint(columns + right).astype(np.int32).clip(0, width - 1)
    return pixels[rows, columns], (distance < 0.95).astype(np.float32)


def _rough(pixels: np.ndarray, dice: Dice, solid: np.ndarray, textures: Sequence | None) -> _Painted:
    distance, _, _ = _region(dice, solid, 0.03)
    grain = _grain(dice, solid.shape, dice.log_between(0.004, 0.03) * max(solid.shape))
    if dice.chance(0.5):  # pits only, or bumps only
        grain = dice.sign() * np.maximum(grain, 0)
    color = np.float32(1) + np.float32(0.3) * dice.normal_array(3) if dice.chance(0.4) else np.ones(3, np.float32)
    return pixels + np.float32(dice.log_between(12, 60)) * grain[..., None] * color, _inside(dice, distance, 0.4)


# Each takes pixels (height, width, 3) in 0..255, dice, a foreground (height, width) of 0 and 1, and textures or None
PAINTERS: dict[str, Callable[[np.ndarray, Dice, np.ndarray, Sequence | None], _Painted]] = {
    "perlin": _perlin,
    "cut_paste": _cut_paste,
    "scar": _scar,
    "line": _line,
    "specks": _specks,
    "stain": _stain,
    "blur": _blur,
    "dent": _dent,
    "missing": _missing,
    "warp": _warp,
    "rough": _rough,
}
ANOMALY_KINDS = tuple(PAINTERS)
