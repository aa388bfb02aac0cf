"""
Damage to the look of a surface: stains, foreign matter, corrosion, wear, disturbed texture.

The signature of every function, `(scene, dice, place, size, strength) -> region`, is described in
[`vcp_clip_hf.generator.registry.DefectFamily`].
"""

import math

import numpy as np

from ..fields import Dice, gaussian_blur, noise, sample, smoothstep
from ..materials import any_material, color, mottled, scaled_relief
from ..registry import defect
from ..scene import Material, Scene
from ..shapes import blob, box, coverage, lettering, line_start, random_text, strokes, wander


__all__: list[str] = []


def _patch_opacity(
    scene: Scene, dice: Dice, place: tuple[float, float], size: float, edge: float, ragged: float = 0.0
) -> np.ndarray:
    """Return the opacity of an irregular patch. `edge` is the width of its edge as a share of `size`."""
    part = scene.grid.posed(dice.angle(), 1.0, place, 1.0 / dice.between(0.45, 1.0))
    shape = blob(dice, part, size, dice.between(0.1, 0.35), ragged)
    return coverage(shape, max(edge * size, scene.grid.pixel)) * scene.support


def _cloud_opacity(scene: Scene, dice: Dice, place: tuple[float, float], size: float, sharp: float) -> np.ndarray:
    """Return the opacity of ragged islands: noise above a threshold that rises with the distance from `place`."""
    grid = scene.grid
    part = grid.posed(scene.grain + dice.normal(0, 0.4), 1.0, place, dice.between(0.5, 1.0))
    bell = np.exp(-(part.x**2 + part.y**2) / np.float32(1.2 * size * size))
    field = noise(
        dice, grid.size, min(1.0, 1.5 * size), 0.0, dice.between(1.6, 2.6), scene.grain, dice.between(1.0, 2.0)
    )
    level = field * np.float32(0.55) + bell * np.float32(2.2)
    start = dice.between(0.9, 1.4)
    return smoothstep(start - sharp, start + sharp, level) * smoothstep(0.05, 0.15, bell) * scene.support


@defect("stain", ("stain", "spot", "blot"), ("stained", "spotted"), (0.04, 0.45), weight=2)
def stain(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Add a dried liquid: a tint, often with a darker border."""
    alpha = _patch_opacity(scene, dice, place, size, dice.log_between(0.05, 0.8), dice.pick((0.0, 0.1)))
    tone = color(dice, saturation=(0.0, 0.6), value=(0.3, 0.9))
    amount = np.float32(0.15 + 0.7 * strength)
    uneven = 1 + 0.2 * noise(dice, scene.grid.size, size, 0.0, 1.8)
    ink = np.clip(alpha * uneven, 0, 1) * amount
    if dice.chance(0.4):
        ink = np.clip(ink + amount * 0.7 * (alpha * (1 - alpha) * 4) ** 2, 0, 1)
    if dice.chance(0.75):
        scene.tint(ink, tone * np.float32(dice.between(0.3, 0.9)))
    else:
        scene.paint(ink * 0.7, Material(np.clip(tone * 1.2, 0, 1), 0.0, 0.1), None)
    return alpha


@defect(
    "oil",
    ("oil spot", "grease stain", "oil stain"),
    ("oily", "greasy"),
    (0.05, 0.4),
    "metal plastic fabric paper stone glass ceramic wood carbon rubber electronic leather",
)
def oil(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Add a film that darkens, smooths and shines, with drops beside it."""
    alpha = _patch_opacity(scene, dice, place, size, dice.log_between(0.03, 0.3))
    for _ in range(dice.whole(0, 4)):
        spot = (place[0] + dice.normal(0, size), place[1] + dice.normal(0, size))
        alpha = np.maximum(alpha, _patch_opacity(scene, dice, spot, size * dice.between(0.1, 0.3), 0.1))
    amount = np.float32(0.12 + 0.5 * strength)
    scene.tint(alpha * amount, color(dice, (0.05, 0.14), (0.1, 0.6), (0.3, 0.7)))
    scene.gloss += alpha * np.float32(0.1 + 0.4 * strength)
    scene.sharpness += alpha * (60 - scene.sharpness)
    smooth = gaussian_blur(scene.height, 1.5)
    scene.height += alpha * np.float32(0.7) * (smooth - scene.height)
    scene.emboss(np.float32(0.012) * smoothstep(0.0, 1.0, gaussian_blur(alpha, 1.5)))
    return alpha


@defect(
    "water_mark", ("water mark", "water stain", "drying ring"), ("water stained", "marked"), (0.06, 0.4), seen=False
)
def water_mark(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Add the faint rings of a dried drop."""
    grid = scene.grid
    shape = blob(dice, grid.posed(dice.angle(), 1.0, place), size, 0.15)
    width = dice.between(0.04, 0.12) * size + grid.pixel
    ring = np.exp(-((shape / np.float32(width)) ** 2))
    for _ in range(dice.whole(0, 2)):
        ring = np.maximum(ring, 0.6 * np.exp(-(((shape + dice.between(0.15, 0.6) * size) / np.float32(width)) ** 2)))
    inner = coverage(shape, 0.1 * size) * np.float32(dice.between(0.05, 0.35))
    alpha = np.maximum(ring, inner).astype(np.float32) * scene.support
    scene.shift_tone(alpha, 0.15 + 0.5 * strength, dice.pick((1.0, -1.0)))
    return coverage(shape - width, width) * scene.support


@defect(
    "contamination", ("contamination", "foreign particles", "dirt"), ("contaminated", "dirty"), (0.03, 0.3), weight=2
)
def contamination(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Add chips, crumbs or dust with shadows."""
    grid = scene.grid
    region = np.zeros_like(scene.support)
    tone = color(dice, saturation=(0.0, 0.9), value=(0.03, 0.95))
    for number in range(dice.pick((1, dice.whole(2, 9)))):
        spot = place if number == 0 else (place[0] + dice.normal(0, 0.8 * size), place[1] + dice.normal(0, 0.8 * size))
        radius = max(0.012, size * dice.between(0.12, 0.4))
        part = grid.posed(dice.angle(), 1.0, spot, 1.0 / dice.between(0.3, 1.0))
        shape = (
            blob(dice, part, radius, 0.4, 0.15)
            if dice.chance(0.6)
            else box(part, radius, radius * dice.between(0.3, 1))
        )
        alpha = coverage(shape, grid.pixel * 1.5) * (scene.support > 0.3)
        scene.cast_shadow(alpha, (dice.normal(0, 0.01), 0.012), 0.01, 0.2 + 0.3 * strength)
        grains = noise(dice, grid.size, 0.06, 0.0, 1.2)
        bulk = Material(
            mottled(tone * np.float32(dice.between(0.7, 1.2)), grains, 0.12), scaled_relief(grains, 0.15), 0.15
        )
        scene.paint(
            alpha * np.float32(0.45 + 0.55 * strength),
            bulk,
            np.float32(0.3 * radius) * smoothstep(0.0, -radius, shape),
            add=True,
        )
        region = np.maximum(region, alpha)
    return region


@defect(
    "discoloration", ("discoloration", "faded area", "color spot"), ("discolored", "faded"), (0.08, 0.6), weight=1.5
)
def discoloration(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Shift hue or brightness within a soft edge; the structure stays."""
    alpha = (
        _patch_opacity(scene, dice, place, size, dice.between(0.15, 0.9))
        if dice.chance(0.6)
        else _cloud_opacity(scene, dice, place, size, 0.35)
    )
    amount = np.float32(0.12 + 0.6 * strength)
    if dice.chance(0.5):
        scene.shift_tone(alpha, float(amount) * 0.8, dice.sign())
    else:
        tone = color(dice, saturation=(0.2, 0.9), value=(0.7, 1.0))
        scene.color *= 1 + alpha[..., None] * amount * (tone * np.float32(1.3 / max(float(tone.mean()), 0.2)) - 1)
    return alpha


@defect("rust", ("rust", "rust spot", "rust stain"), ("rusty", "rusted"), (0.04, 0.4), "metal electronic")
def rust(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Add an orange to dark brown crust in ragged islands."""
    alpha = _cloud_opacity(scene, dice, place, size, dice.between(0.1, 0.3))
    grains = noise(dice, scene.grid.size, 0.05, 0.0, 0.8)
    tone = color(dice, (0.02, 0.09), (0.5, 0.9), (0.2, 0.6))
    crust = Material(mottled(tone, grains, 0.2), scaled_relief(grains, 0.35), 0.02, 4.0)
    scene.paint(alpha * np.float32(0.3 + 0.7 * strength), crust, np.float32(0.004), add=True)
    halo = np.clip(gaussian_blur(alpha, 0.02 * scene.grid.size) * 1.5, 0, 1) * scene.support
    scene.tint(halo * np.float32(0.25 * strength), np.float32([1.0, 0.8, 0.6]))
    return alpha


@defect(
    "corrosion",
    ("corrosion", "dark patch", "scale patch"),
    ("corroded", "patchy"),
    (0.08, 0.6),
    "metal ceramic stone carbon electronic",
    weight=2.5,
)
def corrosion(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Add dark or pale rough islands of oxide or scale with a blurred edge."""
    alpha = _cloud_opacity(scene, dice, place, size, dice.between(0.12, 0.45))
    grains = noise(dice, scene.grid.size, 0.05, 0.0, 0.6)
    sign = dice.pick((-1.0, 1.0), (0.75, 0.25))
    scene.shift_tone(alpha, 0.2 + 0.65 * strength, sign)
    scene.color *= (1 + np.float32(0.12) * grains * alpha).clip(0.2)[..., None]
    if dice.chance(0.2):
        scene.tint(alpha * np.float32(0.6), color(dice, (0.3, 0.55), (0.1, 0.5), (0.7, 1.0)))  # verdigris
    scene.emboss(scaled_relief(grains, 0.15 * strength) * alpha)
    scene.gloss *= 1 - 0.8 * alpha
    scene.metal *= 1 - 0.8 * alpha
    return alpha


@defect(
    "burn",
    ("burn mark", "scorch mark", "burn"),
    ("burnt", "scorched"),
    (0.06, 0.35),
    "wood plastic fabric leather paper foam organic rubber electronic metal",
    seen=False,
)
def burn(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Blacken the middle of a patch and brown its surroundings."""
    grid = scene.grid
    shape = blob(dice, grid.posed(dice.angle(), 1.0, place, 1.0 / dice.between(0.5, 1.0)), size, 0.2, 0.1)
    halo = smoothstep(0.2 * size, -0.5 * size, shape) * scene.support
    core = smoothstep(-0.2 * size, -0.8 * size, shape) * scene.support
    scene.tint(halo * np.float32(0.4 + 0.5 * strength), np.float32([0.5, 0.33, 0.2]))
    char = noise(dice, grid.size, 0.06, 0.0, 1.0)
    scene.paint(
        core * np.float32(0.4 + 0.6 * strength),
        Material(mottled([0.05, 0.045, 0.04], char, 0.3), scaled_relief(char, 0.3), 0.02),
        None,
    )
    return halo


@defect("smear", ("smear", "smudge", "streak"), ("smeared", "smudged"), (0.08, 0.5))
def smear(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Add a wiped streak: lines in one direction that fade out."""
    grid = scene.grid
    heading = dice.angle()
    part = grid.posed(heading, 1.0, place)
    width = size * dice.between(0.12, 0.4)
    streaks = noise(dice, grid.size, 0.15, 0.0, 1.0, heading, 25)
    along = part.x / np.float32(size)
    body = smoothstep(-1.0, -0.85, along) * smoothstep(1.0, dice.between(-0.8, 0.5), along)
    body = body * smoothstep(1.0, 0.6, np.abs(part.y + 0.15 * part.x * part.x) / np.float32(width))
    alpha = body * np.clip(0.65 + 0.4 * streaks, 0, 1) * scene.support
    if dice.chance(0.5):
        scene.shift_tone(alpha, 0.15 + 0.5 * strength, dice.sign())
    else:
        tone = color(dice, saturation=(0.0, 0.7), value=(0.1, 0.95))
        scene.paint(alpha * np.float32(0.2 + 0.6 * strength), Material(tone, 0.0, 0.15), None)
    return np.minimum(body * scene.support * 1.2, 1)


@defect(
    "abrasion",
    ("abrasion", "worn area", "rubbed area"),
    ("worn", "abraded"),
    (0.08, 0.4),
    "metal plastic leather wood paper glass ceramic rubber electronic",
)
def abrasion(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Add many fine, nearly parallel scratches close together."""
    grid = scene.grid
    heading = dice.angle()
    paths, widths, inks = [], [], []
    for _ in range(dice.whole(14, 50)):
        spot = (place[0] + dice.normal(0, 0.45 * size), place[1] + dice.normal(0, 0.45 * size))
        scratch_heading, length = heading + dice.normal(0, 0.08), size * dice.between(0.2, 0.7)
        start = line_start(spot, scratch_heading, length)
        paths.append(wander(dice, start, scratch_heading, 2 * length, 0.05, 0.06))
        widths.append(dice.between(0.004, 0.01))
        inks.append(dice.between(0.3, 1.0))
    lines = strokes(grid.size, paths, widths, inks)
    haze = np.clip(gaussian_blur(lines, 0.02 * grid.size) * 1.6, 0, 1) * scene.support
    lines = lines * scene.support
    sign = dice.pick((1.0, -1.0), (0.7, 0.3))
    scene.shift_tone(lines, 0.15 + 0.5 * strength, sign)
    scene.shift_tone(haze, 0.05 + 0.2 * strength, sign)
    scene.emboss(-0.003 * lines)
    return np.maximum(lines, haze)


@defect(
    "glue", ("glue residue", "glue strip", "adhesive residue"), ("glue stained", "sticky"), (0.06, 0.4), seen=False
)
def glue(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Add clear or milky beads and strings with sharp highlights."""
    grid = scene.grid
    heading = dice.angle()
    start = line_start(place, heading, size)
    path = wander(dice, start, heading, 2 * size, 0.4, 0.03, dice.normal(0, 1.0))
    width = dice.between(0.03, 0.09) * (1 + 0.5 * np.sin(np.linspace(0, dice.between(3, 12), len(path))))
    string = gaussian_blur(strokes(grid.size, [path], [width.astype(np.float32)]), 0.006 * grid.size)
    drop = _patch_opacity(scene, dice, place, 0.35 * size, 0.15)
    body = np.clip(np.maximum(smoothstep(0.2, 0.6, string), drop), 0, 1) * scene.support
    tone = color(dice, (0.08, 0.16), (0.0, 0.35), (0.7, 0.98))
    scene.paint(body * np.float32(0.08 + 0.4 * strength), Material(tone, 0.0, 0.6, 60.0), None)
    scene.gloss += body * 0.4
    scene.sharpness += body * (60 - scene.sharpness)
    scene.emboss(0.035 * gaussian_blur(body, 0.01 * grid.size))
    return body


@defect("paint_drop", ("paint drop", "ink blot", "splash of paint"), ("splashed", "blotted"), (0.03, 0.2))
def paint_drop(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Add an opaque drop with lobes and satellites."""
    tone = color(dice, saturation=(0.1, 0.95), value=(0.03, 0.95))
    alpha = _patch_opacity(scene, dice, place, size, 0.05, 0.0)
    for _ in range(dice.whole(0, 6)):
        turn, reach = dice.angle(), size * dice.between(1.0, 2.2)
        spot = (place[0] + reach * math.cos(turn), place[1] + reach * math.sin(turn))
        alpha = np.maximum(alpha, _patch_opacity(scene, dice, spot, size * dice.between(0.05, 0.25), 0.1))
    scene.paint(alpha * np.float32(0.4 + 0.6 * strength), Material(tone, 0.0, 0.4, 40.0), None)
    scene.emboss(0.01 * gaussian_blur(alpha, 1.2))
    return alpha


@defect("stray_print", ("stray print", "ink mark", "pen mark"), ("marked", "scribbled"), (0.08, 0.4), thin=True)
def stray_print(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Add half-transferred letters or a pen stroke in the wrong place."""
    grid = scene.grid
    if dice.chance(0.5):
        text = random_text(dice, 1, 4)
        mark = lettering(grid.size, text, place, size * dice.between(0.4, 0.9), dice.angle(), dice.between(0.1, 0.25))
        mark = mark * smoothstep(-1.2, 0.0, noise(dice, grid.size, 0.06, 0.0, 0.8))
    else:
        path = wander(dice, place, dice.angle(), 3 * size, dice.between(0.5, 1.5), 0.02, dice.normal(0, 6))
        mark = strokes(grid.size, [path], [dice.between(0.012, 0.03)])
    mark = mark * scene.support
    tone = color(dice, saturation=(0.0, 0.9), value=(0.02, 0.95))
    scene.paint(mark * np.float32(0.4 + 0.6 * strength), Material(tone, 0.0, 0.15), None)
    return mark


@defect(
    "heat_tint",
    ("heat tint", "temper color", "thermal discoloration"),
    ("overheated", "heat marked"),
    (0.1, 0.5),
    "metal",
    seen=False,
)
def heat_tint(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Tint bands of straw, purple and blue around a hot spot."""
    grid = scene.grid
    shape = blob(dice, grid.posed(dice.angle(), 1.0, place, 1.0 / dice.between(0.4, 1.0)), size, 0.2) / np.float32(
        size
    )
    alpha = smoothstep(0.15, -0.3, shape) * scene.support
    heat = np.clip(-shape * np.float32(dice.between(1.0, 2.2)), 0, 1.2)[..., None] * np.float32(4.5)
    film = 0.6 + 0.4 * np.cos(heat * np.float32([0.75, 1.0, 1.35]) + np.float32([0.0, 0.2, 0.5]))
    scene.color *= 1 + alpha[..., None] * np.float32(0.35 + 0.6 * strength) * (film.astype(np.float32) - 1)
    return alpha


@defect(
    "uneven",
    ("uneven area", "uneven finish", "shaded area"),
    ("uneven", "unevenly ground"),
    (0.3, 0.9),
    "metal ceramic stone carbon wood plastic",
)
def uneven(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """
    Make one side of a crooked border darker or brighter, with a finish of its own. The change fades with the distance
    from the border.
    """
    grid = scene.grid
    part = grid.posed(dice.angle(), 1.0, place)
    border = part.y + np.float32(dice.between(0.02, 0.15)) * noise(dice, grid.size, 0.6, 0.02, 2.4)
    border += np.float32(dice.normal(0, 0.3)) * part.x * part.x
    sharp = dice.log_between(0.01, 0.15)
    alpha = smoothstep(-sharp, sharp, border) * smoothstep(size, 0.2 * size, border)
    alpha = alpha * smoothstep(1.3 * size, 0.7 * size, np.abs(part.x)) * scene.support
    finish = noise(dice, grid.size, 0.15, 0.0, 0.6, dice.angle(), 10)
    scene.shift_tone(alpha, 0.15 + 0.45 * strength, dice.pick((-1.0, 1.0), (0.7, 0.3)))
    scene.color *= (1 + np.float32(0.02 + 0.08 * strength) * finish * alpha).clip(0.2)[..., None]
    return alpha


def _replace_by_resampled(scene: Scene, alpha: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    """Replace a patch by the same scene sampled at the coordinates `x` and `y`."""
    before = scene.copy()
    for name in ("color", "height", "gloss", "metal"):
        plane, source = getattr(scene, name), getattr(before, name)
        weight = alpha[..., None] if plane.ndim == 3 else alpha
        plane += weight * (sample(source, x, y) - plane)


@defect(
    "misaligned_patch",
    ("misaligned texture", "wrong pattern", "displaced patch"),
    ("misaligned", "irregular"),
    (0.08, 0.4),
    "fabric wood carbon paper metal plastic stone leather rubber glass",
)
def misaligned_patch(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Turn or shift a patch of the surface, so that only the regularity is broken."""
    grid = scene.grid
    part = grid.posed(dice.angle(), 1.0, place)
    shape = (
        box(part, size, size * dice.between(0.4, 1.0), 0.1 * size)
        if dice.chance(0.5)
        else blob(dice, part, size, 0.25)
    )
    alpha = coverage(shape, grid.pixel * dice.between(1.5, 6)) * scene.support
    turn = dice.pick((0.0, math.pi / 2, dice.angle()))
    shift = (dice.normal(0, 0.3), dice.normal(0, 0.3))
    cos, sin = math.cos(turn), math.sin(turn)
    dx, dy = grid.x - place[0], grid.y - place[1]
    _replace_by_resampled(
        scene, alpha, dx * cos + dy * sin + place[0] + shift[0], dy * cos - dx * sin + place[1] + shift[1]
    )
    return alpha


@defect("foreign_patch", ("foreign material", "wrong material", "patch"), ("patched", "irregular"), (0.06, 0.35))
def foreign_patch(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Set a piece of another material into the surface."""
    alpha = _patch_opacity(scene, dice, place, size, dice.log_between(0.03, 0.4), dice.pick((0.0, 0.15)))
    scene.paint(
        alpha * np.float32(0.35 + 0.65 * strength),
        any_material(dice, scene.grid),
        np.float32(dice.normal(0, 0.006)),
        add=True,
    )
    return alpha


@defect(
    "blurred_texture",
    ("smooth spot", "flattened area", "missing texture"),
    ("smoothed", "flattened"),
    (0.08, 0.4),
    "fabric leather stone wood carbon foam rubber paper",
)
def blurred_texture(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Wash out the structure within a patch."""
    alpha = _patch_opacity(scene, dice, place, size, dice.between(0.1, 0.5))
    sigma = (0.01 + 0.02 * strength) * scene.grid.size
    weight = alpha * np.float32(0.6 + 0.4 * strength)
    scene.color += weight[..., None] * (gaussian_blur(scene.color, sigma) - scene.color)
    scene.height += weight * (gaussian_blur(scene.height, sigma) - scene.height)
    scene.shift_tone(alpha, 0.05 + 0.15 * strength, dice.sign())
    return alpha


@defect(
    "distortion",
    ("distortion", "warped area", "swirl"),
    ("distorted", "warped"),
    (0.1, 0.4),
    "fabric wood paper carbon leather rubber",
)
def distortion(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Pull or twist the structure around a point."""
    grid = scene.grid
    dx, dy = grid.x - np.float32(place[0]), grid.y - np.float32(place[1])
    bell = np.exp(-(dx * dx + dy * dy) / np.float32(0.35 * size * size))
    turn = bell * np.float32(dice.sign() * (0.4 + 1.6 * strength))
    pull = bell * np.float32(dice.sign() * dice.between(0.2, 0.6) * size)
    cos, sin = np.cos(turn), np.sin(turn)
    alpha = (smoothstep(0.08, 0.2, bell) * scene.support).astype(np.float32)
    _replace_by_resampled(
        scene, alpha, dx * cos - dy * sin + place[0] + pull, dx * sin + dy * cos + place[1] + pull * 0.5
    )
    return alpha


@defect("speckles", ("speckles", "mold", "dirt specks"), ("speckled", "moldy"), (0.1, 0.6), thin=True)
def speckles(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Scatter small dots of one kind."""
    grid = scene.grid
    part = grid.posed(dice.angle(), 1.0, place, dice.between(0.5, 1.0))
    bell = np.exp(-(part.x**2 + part.y**2) / np.float32(0.6 * size * size))
    dots = noise(dice, grid.size, dice.log_between(0.02, 0.05), 0.012, 1.2)
    threshold = dice.between(1.0, 2.0)
    alpha = smoothstep(threshold, threshold + 0.35, dots) * smoothstep(0.25, 0.55, bell) * scene.support
    if dice.chance(0.5):
        scene.shift_tone(alpha, 0.3 + 0.6 * strength, dice.sign())
    else:
        scene.paint(
            alpha * np.float32(0.35 + 0.65 * strength), Material(color(dice, value=(0.05, 0.9)), 0.0, 0.05), None
        )
    return alpha
