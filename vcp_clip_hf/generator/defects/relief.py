"""
Damage to the shape of a surface: holes, dents, pits, chips, missing pieces.

The signature of every function, `(scene, dice, place, size, strength) -> region`, is described in
[`vcp_clip_hf.generator.registry.DefectFamily`].
"""

import math

import numpy as np

from ..fields import Dice, Grid, cells, gaussian_blur, noise, smoothstep
from ..materials import color, mottled, scaled_relief
from ..registry import defect
from ..scene import Material, Scene
from ..shapes import blob, coverage, disc, line_start, strokes, union


__all__: list[str] = []


def _patch_grid(scene: Scene, dice: Dice, place: tuple[float, float], aspect: float = 1.0) -> Grid:
    """Return the grid around `place`, turned at random, with a ratio `aspect` of the shorter to the longer axis."""
    return scene.grid.posed(dice.angle(), 1.0, place, 1.0 / aspect)


@defect("hole", ("hole", "puncture", "perforation"), ("punctured", "perforated"), (0.015, 0.16), weight=2)
def hole(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Punch a dark opening, round or torn, with a lit rim."""
    part = _patch_grid(scene, dice, place, dice.between(0.6, 1.0))
    torn = dice.chance(0.5)
    shape = blob(dice, part, size, 0.25 if torn else 0.06, 0.15 if torn else 0.0)
    inside = coverage(shape, scene.grid.pixel * 1.5) * scene.support
    rim = smoothstep(0.45 * size, 0.0, shape) * scene.support
    deep = Material(color(dice, saturation=(0, 0.4), value=(0.0, 0.12)), -0.08, 0.0)
    if dice.chance(0.4):
        scene.shift_tone(np.maximum(rim - inside, 0), 0.15 + 0.4 * strength, dice.sign())
    scene.emboss(np.float32(dice.sign() * size * 0.12) * rim)
    if scene.under is not None and dice.chance(0.4):
        scene.uncover(inside)
        scene.shade *= 1 - 0.5 * inside
    else:
        scene.paint(inside * np.float32(0.6 + 0.4 * strength), deep, -0.02)
    return np.maximum(inside, 0.6 * rim)


@defect(
    "poke",
    ("poke mark", "prick", "pinhole"),
    ("pricked", "poked"),
    (0.012, 0.05),
    "leather fabric plastic organic paper foam rubber",
    seen=False,
)
def poke(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Prick the surface: a small pit with a raised edge."""
    shape = blob(dice, _patch_grid(scene, dice, place), size, 0.15)
    core = coverage(shape + 0.4 * size, size * 0.5) * scene.support
    rim = np.exp(-((shape / np.float32(0.5 * size)) ** 2)) * scene.support
    scene.shift_tone(core, 0.5 + 0.45 * strength, -1.0)
    scene.emboss(np.float32(0.35 * size) * rim - np.float32(0.6 * size) * core)
    return np.maximum(coverage(shape - 0.3 * size, size * 0.4) * scene.support, core)


@defect(
    "dent",
    ("dent", "impression", "dint"),
    ("dented", "pressed in"),
    (0.05, 0.3),
    "metal plastic paper wood foam leather carbon organic electronic",
    weight=1.5,
)
def dent(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Press a hollow, visible mainly by its light and shade."""
    shape = blob(dice, _patch_grid(scene, dice, place, dice.between(0.4, 1.0)), size, 0.12)
    bowl = smoothstep(0.15 * size, -dice.between(0.4, 1.0) * size, shape) * scene.support
    scene.emboss(-np.float32(size * (0.15 + 0.5 * strength)) * bowl)
    if dice.chance(0.4):
        scene.shift_tone(bowl, 0.05 + 0.15 * strength, -1.0)
    return coverage(shape - 0.1 * size, 0.1 * size) * scene.support


@defect(
    "bump",
    ("bump", "bulge", "blister"),
    ("bulged", "blistered"),
    (0.03, 0.22),
    "metal plastic paper wood leather rubber glass ceramic organic electronic",
)
def bump(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Raise one or several swellings."""
    region = np.zeros_like(scene.support)
    for number in range(dice.pick((1, dice.whole(2, 6)))):
        spot = place if number == 0 else (place[0] + dice.normal(0, size), place[1] + dice.normal(0, size))
        radius = size * (1.0 if number == 0 else dice.between(0.2, 0.8))
        shape = blob(dice, _patch_grid(scene, dice, spot, dice.between(0.6, 1.0)), radius, 0.1)
        swell = np.sqrt(np.clip(-shape / np.float32(radius), 0, 1)) * scene.support
        scene.emboss(np.float32(radius * (0.2 + 0.6 * strength)) * gaussian_blur(swell, 0.7))
        region = np.maximum(region, coverage(shape, scene.grid.pixel * 2) * scene.support)
    return region


@defect(
    "pitting",
    ("pitting", "pits", "pitting corrosion"),
    ("pitted", "corroded"),
    (0.04, 0.3),
    "metal ceramic stone carbon plastic glass",
    weight=2.5,
)
def pitting(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Add a cluster of small ragged pits, dense in the middle, elongated along the grain."""
    grid = scene.grid
    stretch = dice.between(0.35, 1.0)
    part = grid.posed(scene.grain + dice.normal(0, 0.3), 1.0, place, stretch)
    spread = np.exp(-((part.x / np.float32(size)) ** 2 + (part.y / np.float32(size)) ** 2) * 1.6)
    scale = dice.log_between(0.02, 0.09)
    ragged = noise(dice, grid.size, scale, 0.0, dice.between(1.0, 2.0), scene.grain, dice.between(1.0, 2.5))
    level = ragged + np.float32(2.6) * spread
    threshold = dice.between(2.2, 3.0)
    pits = smoothstep(threshold - 0.25, threshold + 0.25, level) * smoothstep(0.12, 0.2, spread) * scene.support
    scene.shift_tone(pits, 0.35 + 0.55 * strength, -1.0)
    scene.emboss(-np.float32(0.012 + 0.03 * scale) * pits)
    if dice.chance(0.5):
        stain = smoothstep(0.2, 0.8, spread) * scene.support
        scene.tint(stain * np.float32(0.1 + 0.3 * strength), np.float32([0.9, 0.8, 0.65]))
    grains = noise(dice, grid.size, 0.03, 0.0, 0.3)
    scene.color *= (1 + 0.3 * grains * pits).clip(0.2)[..., None]
    scene.gloss *= 1 - 0.7 * pits
    scene.metal *= 1 - 0.7 * pits
    return pits


@defect(
    "inclusion",
    ("inclusion", "slag inclusion", "sliver"),
    ("flawed", "impure"),
    (0.08, 0.6),
    "metal ceramic stone wood carbon glass plastic",
    weight=2,
)
def inclusion(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Add tapered streaks of foreign matter along the grain."""
    grid = scene.grid
    paths, widths = [], []
    for number in range(dice.whole(1, 6)):
        length = size * (1.0 if number == 0 else dice.between(0.15, 0.8))
        spot = place if number == 0 else (place[0] + dice.normal(0, 0.5 * size), place[1] + dice.normal(0, 0.5 * size))
        heading = scene.grain + dice.normal(0, 0.05)
        start = line_start(spot, heading, length)
        count = 24
        along = np.linspace(0, 1, count, dtype=np.float32)
        wave = dice.normal(0, 0.02) * np.sin(along * dice.between(2, 8))
        x = start[0] + 2 * length * along * math.cos(heading) - wave * math.sin(heading)
        y = start[1] + 2 * length * along * math.sin(heading) + wave * math.cos(heading)
        paths.append(np.stack([x, y], axis=1).astype(np.float32))
        peak = dice.between(0.2, 0.8)
        form = np.where(along < peak, along / peak, (1 - along) / (1 - peak)) ** dice.between(0.5, 1.2)
        uneven = 1 + 0.25 * np.interp(along, np.linspace(0, 1, 9), dice.generator.normal(0, 1, 9))
        widths.append((length * dice.between(0.06, 0.2) + 0.008) * form * np.clip(uneven, 0.3, 1.7))
    streaks = strokes(grid.size, paths, widths)
    streaks = gaussian_blur(streaks, dice.between(0.3, 2.0) * grid.size / 256) * scene.support
    ragged = smoothstep(-1.6, 0.0, noise(dice, grid.size, 0.06, 0.0, 1.0, scene.grain, 4))
    streaks = streaks * ragged
    scene.shift_tone(streaks, 0.12 + 0.6 * strength, dice.pick((-1.0, 1.0), (0.75, 0.25)))
    scene.metal *= 1 - 0.6 * streaks
    return streaks


@defect(
    "blowhole",
    ("blowhole", "pore", "air bubble"),
    ("porous", "flawed"),
    (0.015, 0.09),
    "metal ceramic stone carbon plastic glass rubber organic",
    weight=2,
)
def blowhole(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Add one to five smooth dark cavities, oval or crescent-shaped."""
    grid = scene.grid
    region = np.zeros_like(scene.support)
    for number in range(dice.pick((1, dice.whole(2, 5)), (0.6, 0.4))):
        radius = size * (1.0 if number == 0 else dice.between(0.2, 0.8))
        spot = place if number == 0 else (place[0] + dice.normal(0, 0.25), place[1] + dice.normal(0, 0.25))
        part = _patch_grid(scene, dice, spot, dice.between(0.35, 1.0))
        shape = blob(dice, part, radius, 0.15, 0.05)
        pit = coverage(shape, max(grid.pixel * 1.5, 0.35 * radius)) * scene.support
        lit = (
            coverage(np.maximum(shape, -disc(part, radius, 0.3 * radius, 0.3 * radius)), grid.pixel * 2)
            * scene.support
        )
        scene.shift_tone(pit, 0.3 + 0.6 * strength, -1.0)
        if dice.chance(0.5):
            scene.shift_tone(lit * 0.6, 0.3 * strength, 1.0)
        scene.emboss(-np.float32(0.5 * radius) * pit)
        scene.metal *= 1 - 0.7 * pit
        region = np.maximum(region, pit)
    return region


def _paint_fracture(scene: Scene, dice: Dice, opacity: np.ndarray) -> None:
    """Paint a broken face: rough, of another tone, below the surface."""
    grains = noise(dice, scene.grid.size, dice.log_between(0.02, 0.1), 0.0, dice.between(0.8, 1.8))
    weight = float(opacity.sum()) + 1e-6
    local = (scene.color * opacity[..., None]).sum(axis=(0, 1)) / weight
    if dice.chance(0.5):
        tone = np.clip(local * np.float32(dice.between(0.3, 0.75)), 0.02, 1)
    else:
        tone = np.clip(local + np.float32(dice.between(0.12, 0.4)), 0, 1)
    broken = Material(
        mottled(tone, grains, dice.between(0.08, 0.25)), scaled_relief(grains, dice.between(0.15, 0.6)), 0.05, 5.0
    )
    scene.paint(opacity, broken, -0.03)


@defect(
    "chip",
    ("chip", "chipped edge", "spall"),
    ("chipped", "spalled"),
    (0.03, 0.2),
    "metal ceramic stone glass plastic wood carbon organic electronic",
    weight=2,
)
def chip(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Break a shell-shaped flake off the surface, usually at an edge of the product."""
    place = _nearest_edge(scene, dice, place)
    grid = scene.grid
    shape = blob(dice, _patch_grid(scene, dice, place, dice.between(0.5, 1.0)), size, 0.35, 0.1, 5)
    # flat facets instead of a round outline
    for _ in range(dice.whole(1, 3)):
        turn = dice.angle()
        facet = (
            (grid.x - place[0]) * math.cos(turn) + (grid.y - place[1]) * math.sin(turn) - dice.between(0.2, 0.8) * size
        )
        shape = np.maximum(shape, facet.astype(np.float32))
    gone = coverage(shape, grid.pixel * 1.5) * scene.support
    if dice.chance(0.25):  # loose but in place: a dark, interrupted border
        width = dice.between(0.004, 0.014)
        border = np.exp(-((shape / np.float32(width)) ** 2)) * scene.support
        border = border * smoothstep(-1.2, 0.3, noise(dice, grid.size, 0.15, 0.0, 1.5))
        scene.shift_tone(border, 0.35 + 0.6 * strength, -1.0)
        scene.shift_tone(gone, 0.05 + 0.25 * strength, dice.sign())
        scene.emboss(np.float32(0.1 * size) * smoothstep(0.0, -size, shape) * scene.support)
        return np.maximum(gone, border)
    if scene.under is not None and dice.chance(0.5):
        face = gone * smoothstep(-0.2 * size, -0.6 * size, shape)
        _paint_fracture(scene, dice, gone)
        scene.uncover(face * (dice.chance(0.5) * 1.0))
    else:
        _paint_fracture(scene, dice, gone * np.float32(0.5 + 0.5 * strength))
    return gone


def _nearest_edge(scene: Scene, dice: Dice, place: tuple[float, float]) -> tuple[float, float]:
    """
    Return the point of the product's outline nearest to `place`; sometimes, and without a visible outline, `place`
    itself.
    """
    solid = scene.support > 0.5
    outline = np.zeros_like(solid)
    outline[:, 1:] |= solid[:, 1:] != solid[:, :-1]
    outline[1:] |= solid[1:] != solid[:-1]
    rows, columns = np.nonzero(outline)
    if len(rows) < 20 or dice.chance(0.12):
        return place
    grid = scene.grid
    x, y = grid.x[0, columns], grid.y[rows, 0]
    nearest = int(np.argmin((x - place[0]) ** 2 + (y - place[1]) ** 2))
    return float(x[nearest]), float(y[nearest])


@defect(
    "broken_edge",
    ("broken edge", "missing corner", "breakage"),
    ("broken", "broken off"),
    (0.12, 0.5),
    "metal ceramic stone glass plastic wood carbon organic electronic paper foam rubber",
    weight=1.5,
)
def broken_edge(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Break a piece off: the background shows, with a rough face along the break."""
    place = _nearest_edge(scene, dice, place)
    grid = scene.grid
    crumble = noise(dice, grid.size, dice.between(0.1, 0.4), 0.0, dice.between(1.5, 2.4)) * np.float32(
        dice.between(0.02, 0.15) * size
    )
    shape = blob(dice, grid.posed(dice.angle(), 1.0, place), size, 0.25) + crumble
    solid = scene.support.copy()
    gone = coverage(shape, grid.pixel * 1.5) * solid
    face_width = dice.between(0.02, 0.35) * size
    face = coverage(shape - np.float32(face_width), grid.pixel * 1.5) * solid
    _paint_fracture(scene, dice, np.maximum(face - gone, 0))
    if scene.under is not None:
        scene.uncover(gone)
    else:
        _paint_fracture(scene, dice, gone)
        scene.shift_tone(gone, 0.2 + 0.4 * strength, -1.0)
    return np.maximum(gone, face)


@defect(
    "crush",
    ("crushed area", "rough patch", "hammer marks"),
    ("crushed", "roughened"),
    (0.06, 0.35),
    "metal plastic wood paper leather foam carbon stone organic electronic",
)
def crush(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Roughen or hammer the surface within a patch."""
    grid = scene.grid
    shape = blob(dice, _patch_grid(scene, dice, place, dice.between(0.5, 1.0)), size, 0.3, 0.1)
    patch = coverage(shape, 0.2 * size) * scene.support
    if dice.chance(0.5):
        near, _, _ = cells(dice, grid, dice.between(2, 5) / size)
        relief = scaled_relief(smoothstep(0.0, 0.7, near), 0.3 + 0.7 * strength)
    else:
        relief = scaled_relief(noise(dice, grid.size, 0.5 * size, 0.0, dice.between(0.8, 2.0)), 0.25 + 0.7 * strength)
    scene.emboss(relief * patch)
    scene.shift_tone(patch, 0.04 + 0.2 * strength, dice.sign())
    scene.gloss *= 1 - 0.6 * patch
    return patch


@defect(
    "flaking",
    ("flaking", "peeling coating", "delamination"),
    ("flaked", "peeling"),
    (0.06, 0.35),
    "metal plastic wood ceramic leather paper glass electronic",
)
def flaking(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Remove a coating in angular islands; the ground below lies deeper and has another color."""
    grid = scene.grid
    bent = grid.posed(dice.angle())
    bent.x = bent.x + np.float32(0.15 * size) * noise(dice, grid.size, 0.5 * size, 0.0, 2.0)
    _, _, island = cells(dice, bent, dice.between(4, 9) / size)
    fall_off = blob(dice, _patch_grid(scene, dice, place, dice.between(0.5, 1.0)), size, 0.3) / np.float32(size)
    gone = (
        gaussian_blur(((island - 0.5) * 1.2 + fall_off < -0.15).astype(np.float32), 0.6 * grid.size / 256)
        * scene.support
    )
    ground = noise(dice, grid.size, 0.2, 0.0, 1.4)
    tone = color(dice, saturation=(0.0, 0.5), value=(0.1, 0.9))
    under = Material(mottled(tone, ground, dice.between(0.03, 0.15)), scaled_relief(ground, 0.08), 0.1)
    scene.paint(gone * np.float32(0.35 + 0.65 * strength), under, -np.float32(dice.between(0.004, 0.02)), add=True)
    return gone


@defect(
    "missing_material",
    ("missing material", "void", "unfilled area"),
    ("incomplete", "underfilled"),
    (0.05, 0.25),
    "plastic organic foam rubber ceramic paper",
    seen=False,
)
def missing_material(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Leave a bay with rounded lips unfilled at an edge."""
    place = _nearest_edge(scene, dice, place)
    shape = union(
        blob(dice, scene.grid.posed(dice.angle(), 1.0, place), size, 0.2),
        blob(dice, scene.grid.posed(dice.angle(), 1.0, (place[0] + 0.5 * size, place[1])), 0.6 * size, 0.2),
    )
    gone = coverage(shape, scene.grid.pixel * 1.5) * scene.support
    scene.emboss(-np.float32(0.25 * size) * smoothstep(0.4 * size, 0.0, shape) * scene.support)
    if scene.under is not None:
        scene.uncover(gone)
    else:
        scene.shift_tone(gone, 0.4 + 0.5 * strength, -1.0)
    return np.maximum(gone, 0.6 * smoothstep(0.3 * size, 0.0, shape) * scene.support)
