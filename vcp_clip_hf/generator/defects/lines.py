"""
Damage along lines: cracks, scratches, cuts, fibers, folds, threads.

The signature of every function, `(scene, dice, place, size, strength) -> region`, is described in
[`vcp_clip_hf.generator.registry.DefectFamily`].
"""

import math

import numpy as np

from ..fields import Dice, cells, gaussian_blur, lookup, noise, profile, smoothstep
from ..materials import color
from ..registry import defect
from ..scene import Material, Scene
from ..shapes import blob, coverage, line_start, strokes, wander


__all__: list[str] = []

_SOFT = "fabric leather paper foam rubber"
_HARD = "metal ceramic stone glass plastic wood carbon organic electronic"


def _tapered_widths(dice: Dice, count: int, both: bool = True) -> np.ndarray:
    """Return relative widths along a line: thin at the ends (or at one end), uneven in between."""
    along = np.linspace(0, 1, count, dtype=np.float32)
    ends = np.minimum(along, 1 - along) * 4 if both else (1 - along) * 2
    uneven = 1 + 0.3 * lookup(profile(dice, 64, 0.5, 0.04, 1.0), along * np.float32(0.5))
    return np.clip(ends, 0.25, 1) * np.clip(uneven, 0.4, 1.6)


@defect(
    "crack",
    ("crack", "fracture", "fissure"),
    ("cracked", "fractured"),
    (0.08, 0.75),
    _HARD + " rubber leather",
    thin=True,
    weight=3,
)
def crack(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Add a dark, jagged, branching line of uneven width."""
    heading = dice.angle() if dice.chance(0.7) else scene.grain + math.pi / 2 + dice.normal(0, 0.2)
    width = dice.log_between(0.005, 0.022) * (0.6 + 0.8 * min(size, 0.5))
    step = 0.02
    main = wander(dice, line_start(place, heading, size), heading, 2 * size, dice.between(0.4, 1.3), step)
    one_sided = dice.chance(0.35)
    paths, widths = [main], [width * _tapered_widths(dice, len(main), not one_sided)]
    for _ in range(dice.pick((0, dice.whole(1, 4)))):
        start = dice.whole(len(main) // 6, len(main) - 2)
        lean = dice.sign() * dice.between(0.4, 1.2)
        length = size * dice.between(0.2, 0.9)
        branch = wander(dice, tuple(main[start].tolist()), heading + lean, length, dice.between(0.5, 1.4), step)
        paths.append(branch)
        widths.append(width * 0.7 * _tapered_widths(dice, len(branch), False))
    line = strokes(scene.grid.size, paths, widths) * scene.support
    if dice.chance(0.3):  # interruptions
        line = line * smoothstep(-1.4, -0.4, noise(dice, scene.grid.size, 0.12, 0.0, 1.5))
    if dice.chance(0.25):  # flanks that come loose
        flank = gaussian_blur(line, scene.grid.size * dice.between(0.004, 0.012))
        scene.shift_tone(np.minimum(flank * 1.5, 1), 0.2 * strength + 0.05, dice.sign())
    scene.shift_tone(line, 0.3 + 0.65 * strength, -1.0)
    scene.emboss(-np.float32(0.3 * width + 0.008 * strength) * line)
    scene.gloss *= 1 - line
    scene.metal *= 1 - 0.8 * line
    return line


@defect(
    "crazing",
    ("crazing", "crack network", "alligator cracks"),
    ("crazed", "cracked"),
    (0.15, 0.6),
    "ceramic stone leather wood rubber organic glass metal",
    seen=False,
)
def crazing(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Add a net of fine cracks within a patch."""
    grid = scene.grid
    net = grid.posed(dice.angle())
    net.x = net.x + np.float32(0.02) * noise(dice, grid.size, 0.15, 0.0, 1.8)
    net.y = net.y + np.float32(0.02) * noise(dice, grid.size, 0.15, 0.0, 1.8)
    count = dice.between(2.0, 5.0) / size
    near, far, _ = cells(dice, net, count)
    wide = dice.between(0.6, 1.6) * 2 * count / grid.size
    line = smoothstep(1.6 * wide, 0.6 * wide, far - near)
    patch = coverage(blob(dice, grid.posed(dice.angle(), 1.0, place), size, 0.3), 0.3 * size)
    line = line * patch * scene.support
    scene.shift_tone(line, 0.3 + 0.6 * strength, -1.0)
    scene.emboss(-np.float32(0.006) * line)
    return line


@defect("scratch", ("scratch", "scratches", "score mark"), ("scratched", "scored"), (0.06, 0.9), thin=True, weight=3)
def scratch(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Add one or several straight or bowed lines, bright or dark, interrupted at some places."""
    grid = scene.grid
    along_grain = dice.chance(0.35)
    heading = scene.grain + dice.normal(0, 0.1) if along_grain else dice.angle()
    count = dice.pick((1, dice.whole(2, 6)), (0.55, 0.45))
    width = dice.log_between(0.004, 0.032)
    bow = dice.pick((0.0, dice.normal(0, 1.2)))
    paths, widths, inks = [], [], []
    for number in range(count):
        length = size * (1.0 if number == 0 else dice.between(0.3, 1.0))
        offset = (0.0, 0.0) if number == 0 else (dice.normal(0, 0.25 * size), dice.normal(0, 0.25 * size))
        scratch_heading = heading + dice.normal(0, 0.06)
        start = line_start((place[0] + offset[0], place[1] + offset[1]), scratch_heading, length)
        path = wander(dice, start, scratch_heading, 2 * length, dice.between(0.0, 0.12), 0.03, bow)
        paths.append(path)
        widths.append(width * dice.between(0.6, 1.2) * _tapered_widths(dice, len(path), dice.chance(0.7)))
        inks.append(dice.between(0.5, 1.0))
    line = strokes(grid.size, paths, widths, inks)
    if dice.chance(0.4):
        gaps = noise(dice, grid.size, 0.08, 0.0, 1.2)
        line = line * smoothstep(-1.0, 0.2, gaps)
    line = np.minimum(line, 1) * scene.support
    sign = dice.pick((1.0, -1.0), (0.6, 0.4))
    scene.shift_tone(line, 0.2 + 0.75 * strength, sign)
    if dice.chance(0.5):  # a burr along one flank
        rows, columns = dice.pick(((0, 1), (1, 0), (1, 1)))
        burr = np.roll(line, (rows, columns), axis=(0, 1)) * scene.support
        scene.shift_tone(burr * (1 - line), 0.15 + 0.4 * strength, -sign)
        line = np.maximum(line, burr * 0.6)
    scene.emboss(-np.float32(0.006 * strength) * line)
    return line


@defect(
    "cut",
    ("cut", "slit", "gash"),
    ("cut", "slit"),
    (0.05, 0.4),
    _SOFT + " plastic organic wood electronic",
    thin=True,
    weight=1.5,
)
def cut(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Add a straight open slit with pale lips."""
    grid = scene.grid
    heading = dice.angle()
    path = wander(
        dice, line_start(place, heading, size), heading, 2 * size, dice.between(0.0, 0.15), 0.02, dice.normal(0, 0.3)
    )
    gape = (0.05 + 0.12 * dice.between(0, 1)) * size + 0.006
    along = np.linspace(-1, 1, len(path), dtype=np.float32)
    width = gape * np.sqrt(np.maximum(1 - along * along, 0.02))
    core = strokes(grid.size, [path], [width]) * scene.support
    lips = strokes(grid.size, [path], [width * 1.5 + 0.01]) * scene.support
    pale = color(dice, (0.05, 0.12), (0.05, 0.35), (0.6, 0.95))
    if dice.chance(0.6):
        edge = np.maximum(lips - core, 0)
        scene.paint(edge * np.float32(0.25 + 0.55 * strength), Material(pale, 0.0, 0.05), None)
    scene.shift_tone(core, 0.5 + 0.45 * strength, -1.0)
    scene.emboss(0.008 * lips - 0.03 * core)
    scene.gloss *= 1 - core
    return np.maximum(core, lips)


@defect("fiber", ("fiber", "hair", "thread"), ("contaminated", "dirty"), (0.06, 0.45), thin=True)
def fiber(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Add a hair or a piece of lint that lies on the surface and casts a thin shadow."""
    grid = scene.grid
    width = dice.log_between(0.004, 0.018)
    tone = color(dice, saturation=(0.0, 0.8), value=(0.02, 0.95))
    heading = dice.angle()
    path = wander(
        dice,
        line_start(place, heading, 0.6 * size),
        heading,
        2.2 * size,
        dice.between(0.6, 2.0),
        0.015,
        dice.normal(0, 3.0),
    )
    thread = strokes(grid.size, [path], [width]) * scene.support
    scene.cast_shadow(thread, (0.008, 0.01), 0.006, 0.2 + 0.3 * strength)
    opacity = thread * np.float32(0.45 + 0.55 * strength)
    scene.paint(opacity, Material(tone, 0.0, 0.2, 20.0), None)
    scene.emboss(np.float32(0.5 * width) * gaussian_blur(thread, 0.6))
    return thread


@defect(
    "loose_thread",
    ("loose thread", "fraying", "pulled thread"),
    ("frayed", "fraying"),
    (0.06, 0.3),
    "fabric leather paper",
    thin=True,
)
def loose_thread(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Add a tuft of threads that stand out of the cloth around a torn spot."""
    grid = scene.grid
    around = np.exp(-((grid.x - place[0]) ** 2 + (grid.y - place[1]) ** 2) / np.float32(2 * (0.5 * size) ** 2))
    local = (scene.color * around[..., None]).sum(axis=(0, 1)) / (around.sum() + 1e-6)
    tone = np.clip(local * np.float32(dice.pick((0.5, 1.6))) + np.float32(0.04), 0, 1).astype(np.float32)
    paths, widths = [], []
    for _ in range(dice.whole(3, 9)):
        start = (place[0] + dice.normal(0, 0.2 * size), place[1] + dice.normal(0, 0.2 * size))
        paths.append(wander(dice, start, dice.angle(), size * dice.between(0.5, 1.6), 1.5, 0.015, dice.normal(0, 3.0)))
        widths.append(dice.between(0.006, 0.014))
    threads = strokes(grid.size, paths, widths) * scene.support
    gap = coverage(blob(dice, grid.posed(dice.angle(), 1.0, place), 0.3 * size, 0.4, 0.2), 0.1 * size) * scene.support
    scene.shift_tone(gap, 0.3 + 0.5 * strength, -1.0)
    scene.cast_shadow(threads, (0.01, 0.012), 0.008, 0.3)
    scene.paint(threads * np.float32(0.5 + 0.5 * strength), Material(tone, 0.0, 0.05), None)
    scene.emboss(0.01 * gaussian_blur(threads, 0.6))
    return np.maximum(threads, gap)


@defect(
    "wrinkle",
    ("wrinkle", "fold", "crease"),
    ("wrinkled", "creased", "folded"),
    (0.15, 0.9),
    _SOFT + " metal plastic",
    seen=False,
)
def wrinkle(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Raise a ridge of the surface, visible mainly by its light and shade."""
    grid = scene.grid
    heading, width = dice.angle(), dice.between(0.02, 0.07)
    paths = [wander(dice, line_start(place, heading, size), heading, 2 * size, 0.25, 0.03, dice.normal(0, 0.6))]
    if dice.chance(0.5):
        lean = heading + dice.normal(0, 0.5)
        paths.append(wander(dice, tuple(paths[0][len(paths[0]) // 2].tolist()), lean, size, 0.25, 0.03))
    ridge = gaussian_blur(strokes(grid.size, paths, [width] * len(paths)), width * grid.size * 0.25) * scene.support
    scene.emboss(np.float32(dice.sign() * width * (0.4 + 1.2 * strength)) * ridge)
    scene.shift_tone(ridge, 0.05 + 0.15 * strength, dice.sign())
    return np.minimum(ridge * 2, 1)


@defect(
    "missing_thread",
    ("missing thread", "missing line", "run"),
    ("incomplete", "interrupted"),
    (0.3, 1.2),
    "fabric paper",
    kinds=("texture", "object"),
    thin=True,
)
def missing_thread(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Remove a thread along or across the weave, which leaves a line."""
    heading = scene.grain + dice.pick((0.0, math.pi / 2))
    path = wander(dice, line_start(place, heading, size), heading, 2 * size, 0.03, 0.05)
    width = dice.between(0.01, 0.03)
    line = strokes(scene.grid.size, [path], [width]) * scene.support
    scene.shift_tone(line, 0.3 + 0.55 * strength, dice.pick((-1.0, 1.0), (0.7, 0.3)))
    scene.emboss(-0.015 * line)
    return line


@defect(
    "wear_groove",
    ("wear groove", "drag mark", "roll mark"),
    ("worn", "grooved"),
    (0.3, 1.1),
    "metal plastic wood carbon rubber ceramic",
)
def wear_groove(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Rub or press a band along the grain."""
    grid = scene.grid
    heading = scene.grain + dice.normal(0, 0.05)
    band = grid.posed(heading, 1.0, place)
    half = dice.log_between(0.015, 0.09)
    ends = smoothstep(size, 0.6 * size, np.abs(band.x))
    across = np.abs(band.y) / np.float32(half)
    lines = lookup(profile(dice, 128, 0.5, 0.02, 0.6), band.y / np.float32(4 * half))
    alpha = smoothstep(1.2, 0.7, across) * ends * scene.support
    sign = dice.sign()
    scene.shift_tone(alpha, 0.08 + 0.4 * strength, sign)
    scene.color *= (1 + np.float32(0.06 + 0.12 * strength) * lines * alpha).clip(0.2)[..., None]
    scene.emboss(-np.float32(half * (0.1 + 0.4 * strength)) * alpha)
    return alpha


@defect(
    "spatter",
    ("weld spatter", "paint spatter", "splashes"),
    ("spattered", "splashed"),
    (0.1, 0.5),
    "metal plastic glass ceramic wood stone",
    seen=False,
    thin=True,
)
def spatter(scene: Scene, dice: Dice, place: tuple[float, float], size: float, strength: float) -> np.ndarray:
    """Add drops flung from one side, round or elongated."""
    heading = dice.angle()
    paths, widths = [], []
    for _ in range(dice.whole(5, 24)):
        reach = size * abs(dice.normal(0, 0.6))
        turn = heading + dice.normal(0, 0.5)
        spot = (place[0] + reach * math.cos(turn), place[1] + reach * math.sin(turn))
        length = dice.log_between(0.004, 0.03)
        paths.append(np.float32([spot, (spot[0] + length * math.cos(turn), spot[1] + length * math.sin(turn))]))
        widths.append(np.float32([1, 1]) * dice.log_between(0.01, 0.045))
    drops = strokes(scene.grid.size, paths, widths) * scene.support
    tone = color(dice, saturation=(0.0, 0.8), value=(0.05, 0.95))
    scene.paint(drops * np.float32(0.5 + 0.5 * strength), Material(tone, 0.0, 0.5, 30.0), None)
    scene.emboss(0.015 * gaussian_blur(drops, 0.8))
    return drops
