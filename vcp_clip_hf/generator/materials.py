"""Materials: color, relief and gloss of metals, plastics, fabrics, minerals, ..."""

import colorsys
import math
from collections.abc import Sequence

import numpy as np

from .fields import Dice, Grid, cells, lookup, noise, profile, smoothstep
from .scene import Material


__all__ = [
    "METALS",
    "any_material",
    "carpet",
    "ceramic",
    "color",
    "concrete",
    "fabric",
    "foam",
    "granite",
    "ground_arcs",
    "laminate",
    "leather",
    "marble",
    "metal",
    "mottled",
    "paint",
    "paper",
    "patchy",
    "plastic",
    "plating",
    "rubber",
    "scaled_relief",
    "sintered",
    "wood",
]

METALS = {
    "steel": (0.52, 0.53, 0.54),
    "stainless steel": (0.60, 0.60, 0.59),
    "aluminum": (0.68, 0.68, 0.69),
    "iron": (0.33, 0.33, 0.33),
    "zinc": (0.55, 0.57, 0.60),
    "brass": (0.66, 0.56, 0.36),
    "copper": (0.66, 0.47, 0.38),
    "bronze": (0.50, 0.42, 0.32),
}


def scaled_relief(field: np.ndarray, slope: float) -> np.ndarray:
    """Return a noise field scaled to a relief with this mean slope (root mean square), at any image size."""
    steepness = math.sqrt(float(np.mean(np.diff(field, axis=0) ** 2) + np.mean(np.diff(field, axis=1) ** 2)))
    return field * np.float32(slope / max(steepness * field.shape[0] / 2, 1e-9))


def mottled(base: np.ndarray | Sequence[float], field: np.ndarray, contrast: float) -> np.ndarray:
    """Return a color that varies in brightness with `field`: `(size, size, 3)` float32."""
    return np.asarray(base, np.float32) * np.maximum(1 + np.float32(contrast) * field, 0.05)[..., None]


def patchy(dice: Dice, field: np.ndarray) -> np.ndarray:
    """Return a noise field with more contrast in some regions than in others, as on most real surfaces."""
    slow = noise(dice, field.shape[0], 1.0, 0.15, 2.4)
    return field * np.maximum(1 + np.float32(dice.between(0.0, 0.5)) * slow, 0.2)


def color(
    dice: Dice,
    hue: tuple[float, float] = (0.0, 1.0),
    saturation: tuple[float, float] = (0.1, 0.8),
    value: tuple[float, float] = (0.1, 0.8),
) -> np.ndarray:
    """Draw a color within limits, each 0..1: `(3,)` float32. Pale colors are more frequent, as in factories."""
    strength = saturation[0] + (saturation[1] - saturation[0]) * dice.between(0, 1) ** 1.7
    return np.float32(colorsys.hsv_to_rgb(dice.between(*hue) % 1, strength, dice.between(*value)))


def metal(
    dice: Dice,
    grid: Grid,
    kind: str | None = None,
    finish: str | None = None,
    angle: float = 0.0,
) -> Material:
    """
    Return a metal surface.

    Args:
        kind (`str`, *optional*): one of [`METALS`]; random by default.
        finish (`str`, *optional*): brushed, rolled, cast, ground, polished, blasted, turned or oxidized; random by
            default.
        angle (`float`): direction of the grain in radians.

    Raises:
        ValueError: unknown finish.
    """
    kind = kind or dice.pick(tuple(METALS), (5, 4, 4, 3, 3, 2, 2, 1))
    finish = finish or dice.pick(("brushed", "rolled", "cast", "ground", "polished", "blasted", "oxidized"))
    base = np.float32(METALS[kind]) * np.float32(dice.between(0.75, 1.2))
    if finish not in _FINISHES:
        raise ValueError(f"Unknown metal finish {finish!r}; expected one of {', '.join(_FINISHES)}.")
    return _FINISHES[finish](dice, grid, base, angle)


def _brushed(dice: Dice, grid: Grid, base: np.ndarray, angle: float) -> Material:
    """Return metal with long fine streaks."""
    streaks = noise(dice, grid.size, 0.3, 0.0, dice.between(0.2, 1.0), angle, dice.log_between(15, 90))
    return Material(
        mottled(base, streaks, dice.between(0.02, 0.09)),
        scaled_relief(streaks, dice.between(0.03, 0.12)),
        0.25,
        8.0,
        0.6,
    )


def _rolled(dice: Dice, grid: Grid, base: np.ndarray, angle: float) -> Material:
    """Return metal with lanes and a fine grain along the rolling direction."""
    streaks = noise(dice, grid.size, 1.0, 0.01, 1.2, angle, dice.log_between(5, 25))
    grain = noise(dice, grid.size, 0.05, 0.0, 0.6, angle, dice.between(1, 3))
    tone = mottled(base, streaks * 0.6 + patchy(dice, grain) * 0.5, dice.between(0.02, 0.14))
    return Material(tone, scaled_relief(grain, dice.between(0.01, 0.08)), 0.12, 5.0, 0.3)


def _cast(dice: Dice, grid: Grid, base: np.ndarray, angle: float) -> Material:
    """Return lumpy metal."""
    lumps = noise(dice, grid.size, dice.log_between(0.03, 0.15), 0.0, dice.between(0.8, 2.0))
    lumps = patchy(dice, lumps)
    tone = mottled(base, lumps, dice.between(0.02, 0.14))
    return Material(tone, scaled_relief(lumps, dice.between(0.08, 0.3)), 0.12, 6.0, 0.15)


def _ground(dice: Dice, grid: Grid, base: np.ndarray, angle: float) -> Material:
    """Return metal with short lines in one direction."""
    lines = patchy(dice, noise(dice, grid.size, 0.1, 0.0, 0.4, angle, dice.log_between(6, 30)))
    return Material(
        mottled(base, lines, dice.between(0.03, 0.1)), scaled_relief(lines, dice.between(0.04, 0.15)), 0.3, 10.0, 0.45
    )


def _polished(dice: Dice, grid: Grid, base: np.ndarray, angle: float) -> Material:
    """Return metal that is nearly a mirror."""
    haze = noise(dice, grid.size, 1.0, 0.05, 2.5)
    return Material(
        mottled(base, haze, dice.between(0.0, 0.04)), scaled_relief(haze, dice.between(0.0, 0.03)), 0.6, 60, 0.85
    )


def _blasted(dice: Dice, grid: Grid, base: np.ndarray, angle: float) -> Material:
    """Return metal with fine even grains."""
    grains = noise(dice, grid.size, 0.03, 0.0, 0.3)
    return Material(mottled(base, grains, 0.05), scaled_relief(grains, dice.between(0.1, 0.35)), 0.15, 4.0, 0.3)


def _turned(dice: Dice, grid: Grid, base: np.ndarray, angle: float) -> Material:
    """Return metal with concentric grooves around the origin of the grid."""
    rings = lookup(profile(dice, 512, 0.3, 0.0, dice.between(0.3, 1.2)), grid.radius * 0.5)
    return Material(
        mottled(base, rings, dice.between(0.03, 0.1)), scaled_relief(rings, dice.between(0.05, 0.2)), 0.3, 10.0, 0.6
    )


def _oxidized(dice: Dice, grid: Grid, base: np.ndarray, angle: float) -> Material:
    """Return dark cloudy metal with a dull grain."""
    clouds = noise(dice, grid.size, 0.6, 0.01, 1.8)
    grains = noise(dice, grid.size, 0.04, 0.0, 0.6)
    tone = mottled(base * np.float32(0.55), clouds * 0.7 + grains * 0.4, dice.between(0.05, 0.18))
    return Material(tone, scaled_relief(grains, dice.between(0.03, 0.15)), 0.08, 6.0, 0.1)


_FINISHES = {
    "brushed": _brushed,
    "rolled": _rolled,
    "cast": _cast,
    "ground": _ground,
    "polished": _polished,
    "blasted": _blasted,
    "turned": _turned,
    "oxidized": _oxidized,
}


def ground_arcs(dice: Dice, grid: Grid, kind: str = "steel") -> Material:
    """Return face-milled metal with the arcs of the cutter, one pass beside the other."""
    reach = dice.log_between(0.3, 1.5)
    passes = grid.y / np.float32(reach)
    inside = (passes - np.round(passes)) * 2
    crossing = grid.x + np.float32(reach * dice.between(0.5, 1.0)) * np.sqrt(np.maximum(1 - 0.8 * inside * inside, 0))
    arcs = lookup(profile(dice, 256, 0.4, 0.0, 0.4), crossing * np.float32(dice.between(0.6, 2.0)))
    arcs += np.float32(dice.between(0.5, 1.5)) * np.sin(
        crossing * np.float32(2 * math.pi / dice.log_between(0.03, 0.12))
    )
    fine = noise(dice, grid.size, 0.05, 0.0, 0.5, 0.0, 2.0)
    base = np.float32(METALS[kind]) * np.float32(dice.between(0.8, 1.2))
    tone = mottled(base, arcs * 0.6 + fine * 0.4, dice.between(0.03, 0.1))
    return Material(tone, scaled_relief(arcs, dice.between(0.04, 0.15)), 0.3, 10.0, 0.5)


def plating(dice: Dice, grid: Grid) -> Material:
    """Return hot-dip galvanized sheet: crystals (spangle) of different brightness."""
    _, _, tone = cells(dice, _warped(dice, grid, 0.03), dice.log_between(5, 24))
    _, _, fine = cells(dice, grid, dice.log_between(30, 60))
    streaks = noise(dice, grid.size, 0.2, 0.0, 0.8, dice.angle(), 6)
    base = np.float32(METALS["zinc"]) * np.float32(dice.between(0.8, 1.2))
    field = (tone - 0.5) * 2 + (fine - 0.5) * 0.6 + streaks * 0.25
    return Material(mottled(base, field, dice.between(0.06, 0.22)), scaled_relief(streaks, 0.03), 0.2, 8.0, 0.35)


def _warped(dice: Dice, grid: Grid, strength: float, coarsest: float = 0.3) -> Grid:
    """Return coordinates bent by noise, so that no line is straight."""
    bent = grid.posed()
    bent.x = bent.x + np.float32(strength) * noise(dice, grid.size, coarsest, 0.02, 2.5)
    bent.y = bent.y + np.float32(strength) * noise(dice, grid.size, coarsest, 0.02, 2.5)
    return bent


def plastic(dice: Dice, grid: Grid, tone: np.ndarray | None = None) -> Material:
    """Return molded plastic, smooth or with an eroded grain."""
    tone = color(dice, value=(0.06, 0.85), saturation=(0.0, 0.85)) if tone is None else tone
    grain = noise(dice, grid.size, dice.log_between(0.008, 0.05), 0.0, dice.between(0.2, 1.2))
    shiny = dice.chance(0.5)
    slope = dice.between(0.0, 0.03) if shiny else dice.between(0.03, 0.22)
    return Material(
        mottled(tone, grain, dice.between(0.0, 0.04)),
        scaled_relief(grain, slope),
        dice.between(0.15, 0.5) if shiny else dice.between(0.03, 0.15),
        dice.between(20, 80) if shiny else 6.0,
    )


def rubber(dice: Dice, grid: Grid) -> Material:
    """Return dark, dull, finely speckled rubber."""
    grain = noise(dice, grid.size, 0.03, 0.0, 0.4)
    dust = np.maximum(noise(dice, grid.size, 0.02, 0.0, 0.2) - 2.3, 0)
    tone = mottled(
        color(dice, saturation=(0.0, 0.12), value=(0.07, 0.25)), grain * 0.5 + dust, dice.between(0.03, 0.15)
    )
    return Material(tone, scaled_relief(grain, dice.between(0.02, 0.15)), 0.05, 5.0)


def paint(dice: Dice, grid: Grid, tone: np.ndarray | None = None) -> Material:
    """Return lacquer with orange peel, sometimes with metal flakes."""
    tone = color(dice, value=(0.08, 0.85), saturation=(0.0, 0.85)) if tone is None else tone
    peel = noise(dice, grid.size, dice.log_between(0.02, 0.08), 0.01, 1.5)
    flakes = noise(dice, grid.size, 0.01, 0.0, 0.0)
    return Material(
        mottled(tone, flakes, dice.pick((0.0, dice.between(0.02, 0.1)))),
        scaled_relief(peel, dice.between(0.0, 0.08)),
        dice.between(0.1, 0.6),
        dice.log_between(15, 120),
    )


def ceramic(dice: Dice, grid: Grid, tone: np.ndarray | None = None) -> Material:
    """Return a glaze, pale or colored, a little uneven, sometimes speckled."""
    tone = color(dice, saturation=(0.0, 0.35), value=(0.45, 0.92)) if tone is None else tone
    wave = noise(dice, grid.size, 0.4, 0.03, 2.5)
    specks = np.clip(noise(dice, grid.size, 0.02, 0.006, 0.5) - 1.7, 0, 1)
    shade = wave * np.float32(dice.between(0.2, 1)) - specks * np.float32(dice.pick((0.0, dice.between(1, 6))))
    return Material(
        mottled(tone, shade, 0.04), scaled_relief(wave, dice.between(0, 0.04)), dice.between(0.1, 0.6), 50.0
    )


def wood(dice: Dice, grid: Grid, angle: float = 0.0) -> Material:
    """Return wood with annual rings cut lengthwise, pores and fibers."""
    board = grid.posed(angle)
    knot = (dice.between(-1.5, 1.5), dice.between(-0.8, 0.8))
    bend = np.exp(-((board.x - knot[0]) ** 2) * dice.between(1, 4) - ((board.y - knot[1]) ** 2) * 4)
    rings = board.y + np.float32(dice.between(0.0, 0.3)) * bend
    rings += np.float32(dice.between(0.01, 0.05)) * noise(dice, grid.size, 1.0, 0.1, 3.0, angle, 4)
    spread = dice.log_between(0.25, 1.0)
    early = lookup(profile(dice, 512, 0.5, 0.004, dice.between(0.4, 1.2)), rings * np.float32(spread))
    fibers = noise(dice, grid.size, 0.1, 0.0, 0.6, angle, dice.log_between(15, 50))
    pores = np.clip(-noise(dice, grid.size, 0.03, 0.0, 0.4, angle, 14) - 1.5, 0, 1)
    tone = color(dice, (0.05, 0.11), (0.3, 0.65), (0.3, 0.8))
    shade = early * 0.6 + fibers * 0.4 - pores * np.float32(dice.between(0, 2))
    return Material(
        mottled(tone, shade, dice.between(0.06, 0.2)),
        scaled_relief(fibers - pores, dice.between(0.02, 0.12)),
        dice.between(0.02, 0.2),
        10.0,
    )


def concrete(dice: Dice, grid: Grid) -> Material:
    """Return concrete or plaster: grains of sand and stone, clouds, air holes."""
    clouds = noise(dice, grid.size, 0.8, 0.02, dice.between(1.4, 2.2))
    sand = noise(dice, grid.size, dice.log_between(0.01, 0.05), 0.0, dice.between(0.0, 0.8))
    tone = color(dice, (0.05, 0.65), (0.0, 0.14), (0.2, 0.75))
    shade = clouds * np.float32(dice.between(0.3, 1)) + sand * np.float32(dice.between(0.3, 1.3))
    holes = np.clip(noise(dice, grid.size, 0.04, 0.008, 0.8) - dice.between(2.2, 3.0), 0, 1)
    shade -= holes * 4
    return Material(
        mottled(tone, shade, dice.between(0.05, 0.16)), scaled_relief(sand, dice.between(0.05, 0.5)), 0.03, 4.0
    )


def granite(dice: Dice, grid: Grid) -> Material:
    """Return polished stone of several minerals."""
    count = dice.log_between(18, 60)
    _, _, mineral = cells(dice, _warped(dice, grid, 0.5 / count, 2 / count), count)
    _, _, fine = cells(dice, grid, count * 2.2)
    palette = np.stack([color(dice, saturation=(0.0, 0.3), value=(0.1, 0.85)) for _ in range(4)])
    kind = np.minimum((mineral * 4).astype(np.int32), 3)
    blend = palette[kind] * np.float32(0.75) + palette.mean(axis=0) * np.float32(0.25)
    veil = noise(dice, grid.size, 0.5, 0.0, 1.6)
    return Material(
        blend * (1 + 0.12 * (fine - 0.5) + 0.05 * veil)[..., None].astype(np.float32),
        scaled_relief(veil, 0.02),
        0.3,
        40.0,
    )


def marble(dice: Dice, grid: Grid) -> Material:
    """Return pale or dark stone with veins."""
    stretch, angle = dice.between(1, 4), dice.angle()
    shade = noise(dice, grid.size, 0.6, 0.01, 2.0) * np.float32(dice.between(0.2, 0.6))
    for _ in range(dice.whole(1, 3)):
        ridge = np.abs(noise(dice, grid.size, dice.between(0.3, 1.0), 0.015, dice.between(2.2, 3.2), angle, stretch))
        thick = noise(dice, grid.size, 0.5, 0.1, 2.0)
        veins = np.exp(-ridge * np.float32(dice.log_between(8, 45))) * smoothstep(-0.8, 1.2, thick)
        shade += veins * np.float32(dice.sign() * dice.between(2, 6))
    tone = color(dice, saturation=(0.0, 0.25), value=(0.25, 0.85))
    return Material(mottled(tone, shade, dice.between(0.06, 0.14)), 0.0, 0.3, 50.0)


def leather(dice: Dice, grid: Grid) -> Material:
    """Return pebbled skin with creases."""
    count = dice.log_between(16, 50)
    near, far, cell_value = cells(dice, _warped(dice, grid, 0.7 / count, 3 / count), count)
    creases = smoothstep(0.0, dice.between(0.2, 0.5), far - near)
    folds = noise(dice, grid.size, 0.5, 0.02, 2.2)
    fine = noise(dice, grid.size, 0.02, 0.0, 0.5)
    tone = color(dice, (0.98, 1.12), (0.15, 0.75), (0.1, 0.7))
    relief = scaled_relief(creases + 0.4 * cell_value + 0.1 * folds + 0.06 * fine, dice.between(0.1, 0.35))
    shade = (creases - 0.6) * 1.4 + folds * 0.3 + fine * 0.15
    return Material(mottled(tone, shade, dice.between(0.05, 0.16)), relief, dice.between(0.03, 0.2), 10.0)


def fabric(dice: Dice, grid: Grid, pattern: str | None = None, threads: float | None = None) -> Material:
    """
    Return woven cloth.

    Args:
        pattern (`str`, *optional*): plain, twill, basket or satin; random by default.
        threads (`float`, *optional*): number of threads per image side; random by default.
    """
    pattern = pattern or dice.pick(("plain", "twill", "basket", "satin"))
    threads = threads or dice.log_between(18, max(20.0, min(75.0, grid.size / 4)))
    bent = _warped(dice, grid, dice.between(0.1, 0.35) / threads, 0.5)
    u, v = bent.x * np.float32(threads / 2), bent.y * np.float32(threads / 2)
    column, row = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    float_up = {
        "plain": (column + row) % 2 == 0,
        "twill": (column + row) % 4 < 2,
        "basket": (column // 2 + row // 2) % 2 == 0,
        "satin": (column * 2 + row) % 5 == 0,
    }[pattern]
    across, along = u - column - 0.5, v - row - 0.5
    bulge_warp, bulge_weft = np.cos(across * math.pi), np.cos(along * math.pi)
    top = np.where(float_up, bulge_warp * (0.75 + 0.25 * bulge_weft), bulge_weft * (0.75 + 0.25 * bulge_warp))
    wobble = noise(dice, grid.size, 0.03, 0.0, 0.5)
    first = color(dice, saturation=(0.0, 0.7), value=(0.12, 0.85))
    second = first * np.float32(dice.between(0.7, 1.2)) if dice.chance(0.7) else color(dice, value=(0.12, 0.85))
    yarn = dice.generator.random((2, 256), dtype=np.float32) - 0.5
    yarn_tone = np.where(float_up, yarn[0][column % 256], yarn[1][row % 256])
    tone = np.where(float_up[..., None], first, second).astype(np.float32)
    shade = (top - 0.7) * np.float32(dice.between(0.3, 1.0)) + yarn_tone * 0.25 + wobble * 0.1
    relief = scaled_relief(top.astype(np.float32) + 0.1 * wobble, dice.between(0.15, 0.5))
    return Material(np.clip(tone * (1 + shade)[..., None], 0, 1).astype(np.float32), relief, 0.04, 4.0)


def carpet(dice: Dice, grid: Grid) -> Material:
    """Return pile or felt: short fibers in all directions."""
    tufts = noise(dice, grid.size, dice.log_between(0.015, 0.05), 0.0, dice.between(0.0, 1.0))
    lanes = lookup(profile(dice, 256, 0.1, 0.005, 0.3), grid.posed(dice.pick((0.0, math.pi / 2))).y * 0.5)
    clouds = noise(dice, grid.size, 0.5, 0.05, 2.0)
    tone = color(dice, saturation=(0.0, 0.6), value=(0.1, 0.75))
    melange = noise(dice, grid.size, 0.02, 0.0, 0.2)
    accent = color(dice, saturation=(0.0, 0.6), value=(0.1, 0.8))
    share = (smoothstep(0.6, 1.6, melange) * np.float32(dice.pick((0.0, dice.between(0.2, 0.9)))))[..., None]
    base = mottled(tone, tufts + lanes * np.float32(dice.between(0, 0.6)) + clouds * 0.2, dice.between(0.08, 0.25))
    return Material(base * (1 - share) + accent * share, scaled_relief(tufts, dice.between(0.2, 0.7)), 0.02, 3.0)


def paper(dice: Dice, grid: Grid) -> Material:
    """Return paper or board with pulp clouds and fibers."""
    pulp = noise(dice, grid.size, 0.06, 0.0, 1.0)
    fibers = noise(dice, grid.size, 0.1, 0.0, 0.6, dice.angle(), 8)
    brown = dice.chance(0.4)
    tone = (
        color(dice, (0.06, 0.11), (0.25, 0.5), (0.4, 0.7))
        if brown
        else color(dice, (0.0, 1.0), (0, 0.12), (0.6, 0.95))
    )
    shade = pulp * 0.6 + fibers * 0.4
    return Material(
        mottled(tone, shade, dice.between(0.01, 0.06)), scaled_relief(shade, dice.between(0.01, 0.08)), 0.03, 4.0
    )


def foam(dice: Dice, grid: Grid) -> Material:
    """Return sponge, foam or aerated material with bubbles of two sizes."""
    count = dice.log_between(14, 45)
    near, far, cell_value = cells(dice, grid, count)
    small, _, _ = cells(dice, grid, count * 2.3)
    pores = smoothstep(0.15 + 0.25 * float(dice.between(0, 1)), 0.6, near + 0.25 * (cell_value - 0.5))
    fine = smoothstep(0.1, 0.5, small)
    tone = color(dice, saturation=(0.0, 0.65), value=(0.2, 0.85))
    shade = (pores - 0.6) * 1.2 + (fine - 0.6) * 0.5 + np.minimum(far - near, 0.5) * 0.3
    return Material(
        mottled(tone, shade, dice.between(0.12, 0.4)), scaled_relief(pores + 0.4 * fine, dice.between(0.15, 0.5)), 0.03
    )


def laminate(dice: Dice, grid: Grid) -> Material:
    """Return the base of a circuit board: solder resist over a faint weave."""
    hues = {
        "green": (0.30, 0.42),
        "blue": (0.55, 0.66),
        "red": (0.96, 1.02),
        "black": (0.0, 1.0),
        "amber": (0.02, 0.09),
    }
    name = dice.pick(tuple(hues), (0.4, 0.2, 0.12, 0.13, 0.15))
    value = (0.05, 0.14) if name == "black" else ((0.45, 0.75) if name == "amber" else (0.18, 0.5))
    tone = color(dice, hues[name], (0.0, 0.2) if name == "black" else (0.35, 0.85), value)
    pitch = dice.between(60, 110)
    weave = np.sin(grid.x * np.float32(pitch)) + np.sin(grid.y * np.float32(pitch))
    clouds = noise(dice, grid.size, 0.4, 0.01, 1.6)
    return Material(
        mottled(tone, weave * 0.3 + clouds * 0.5, dice.between(0.0, 0.07)), 0.0, dice.between(0.05, 0.3), 30.0
    )


def sintered(dice: Dice, grid: Grid) -> Material:
    """Return carbon, ferrite or sintered metal: slightly elongated speckles of all sizes, the dark ones deeper."""
    angle = dice.pick((0.0, math.pi / 2))
    specks = noise(
        dice, grid.size, dice.log_between(0.012, 0.1), 0.0, dice.between(0.2, 1.4), angle, dice.between(1, 4)
    )
    specks = patchy(dice, specks) - np.float32(dice.between(0, 1.2)) * np.maximum(-specks - 1, 0)
    clouds = noise(dice, grid.size, 0.6, 0.03, 1.8, math.pi / 2, dice.between(1, 4))
    tone = color(dice, (0.0, 1.0), (0.0, 0.06), (0.2, 0.8))
    shade = specks + clouds * np.float32(dice.between(0.1, 0.5))
    return Material(
        mottled(tone, shade, dice.between(0.04, 0.24)), scaled_relief(specks, dice.between(0.02, 0.2)), 0.05, 5.0
    )


_ANY = (plastic, rubber, paint, ceramic, concrete, wood, fabric, carpet, paper, metal, sintered, laminate)


def any_material(dice: Dice, grid: Grid) -> Material:
    """Return a material of a random kind, for backgrounds and foreign matter."""
    return dice.pick(_ANY)(dice, grid)
