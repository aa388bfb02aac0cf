"""Normal structure that many products share: backgrounds, poses, edges, shadows, screws, prints, grooves."""

import math

import numpy as np

from .fields import Dice, Grid, gaussian_blur, noise, smoothstep
from .materials import any_material, color, mottled, paper
from .registry import Fault
from .scene import Material, Scene
from .shapes import barcode, box, coverage, disc, dome, lettering, polygon, random_text, strokes, wander


__all__ = [
    "add_details",
    "add_piece",
    "add_screw",
    "background",
    "object_scene",
    "print_text",
    "printing_ink",
    "random_pose",
    "surface_scene",
    "write_text",
]


def background(dice: Dice, grid: Grid) -> Scene:
    """Return a background for an object: dark, plain, light, cloudy, a material, or clutter out of focus."""
    scene = Scene(grid)
    style = dice.pick(("dark", "plain", "light", "cloudy", "material", "clutter"), (0.2, 0.2, 0.15, 0.15, 0.2, 0.1))
    if style == "dark":
        tone = color(dice, saturation=(0.0, 0.4), value=(0.01, 0.12))
    elif style == "light":
        tone = color(dice, saturation=(0.0, 0.08), value=(0.75, 1.0))
    else:
        tone = color(dice, saturation=(0.0, 0.35), value=(0.12, 0.8))
    if style == "material":
        scene.fill(any_material(dice, grid))
    else:
        spread = 0.03 if style in ("dark", "plain", "light") else 0.18
        field = noise(dice, grid.size, 1.0, dice.log_between(0.005, 0.2), 2.2)
        scene.fill(Material(mottled(tone, field, spread * dice.between(0.2, 1)), 0.0, 0.05))
    if style == "clutter":
        for _ in range(dice.whole(3, 7)):
            part = grid.posed(dice.angle(), dice.between(0.2, 0.7), (dice.between(-1.1, 1.1), dice.between(-1.1, 1.1)))
            shape = box(part, 1, dice.between(0.2, 1), dice.between(0, 0.4)) if dice.chance(0.6) else disc(part, 0.8)
            soft = dice.between(0.02, 0.12)
            scene.tint(
                coverage(shape, soft / dice.between(0.3, 0.7)), color(dice, value=(0.3, 1.2), saturation=(0, 0.4))
            )
    if dice.chance(0.12):  # a tray or a table edge behind the object
        heading, offset = dice.angle(), dice.between(0.5, 0.95)
        edge = grid.x * math.cos(heading) + grid.y * math.sin(heading) - np.float32(offset)
        scene.tint(coverage(-edge, dice.between(0.005, 0.05)), dice.between(0.3, 0.9))
    scene.support[...] = 0
    return scene


def object_scene(dice: Dice, grid: Grid) -> Scene:
    """Return a [`background`] that is also kept as `under`, for defects that take a piece of the object away."""
    scene = background(dice, grid)
    scene.under = scene.copy()
    return scene


def random_pose(
    dice: Dice,
    grid: Grid,
    scale: tuple[float, float] = (0.5, 0.85),
    upright: float = 0.3,
    squash: tuple[float, float] = (0.8, 1.25),
) -> Grid:
    """
    Return the grid of an object of half size 1, at a random place, angle and scale.

    Args:
        scale (`tuple[float, float]`): smallest and largest half size, in half image sides.
        upright (`float`): share of pictures in which the object is nearly straight, 0..1.
        squash (`tuple[float, float]`): smallest and largest height relative to the width.
    """
    angle = dice.normal(0, 0.06) if dice.chance(upright) else dice.angle()
    size = dice.between(*scale)
    room = max(0.06, 0.9 - size)
    shift = (dice.between(-room, room) * 0.7, dice.between(-room, room) * 0.7)
    stretch = dice.between(*squash) if dice.chance(0.5) else 1.0
    return grid.posed(angle, size, shift, stretch)


def add_piece(
    scene: Scene,
    dice: Dice,
    part: Grid,
    distance: np.ndarray,
    material: Material,
    bevel: float = 0.08,
    rise: float = 0.05,
    shadow: bool = True,
    product: bool = True,
) -> np.ndarray:
    """
    Lay a solid piece on the scene.

    Args:
        part (`Grid`): coordinates of the piece.
        distance (`(size, size)`): signed distance to the outline, in the units of `part`.
        bevel, rise (`float`): width and height of the rounded edge, in the units of `part`.
        shadow (`bool`): whether the piece casts a shadow.
        product (`bool`): whether the piece belongs to the product, so that defects may lie on it.

    Returns:
        `np.ndarray` of shape `(size, size)`: opacity of the piece.
    """
    alpha = coverage(distance, part.pixel * 1.2)
    offset = (dice.normal(0, 0.02), dice.normal(0.015, 0.02))
    softness, strength = dice.log_between(0.008, 0.06), dice.between(0.15, 0.65)
    if shadow:
        scene.cast_shadow(alpha, offset, softness, strength)
        scene.remove_shadow(alpha)
    scene.paint(alpha, material, dome(distance, bevel, rise * part.scale))
    if product:
        scene.support = np.maximum(scene.support, alpha)
    return alpha


def printing_ink(dice: Dice) -> Material:
    """Draw a printing ink: black, white or colored."""
    tone = dice.pick(("black", "white", "colored"), (0.45, 0.3, 0.25))
    if tone == "black":
        shade = color(dice, saturation=(0, 0.2), value=(0.03, 0.2))
    elif tone == "white":
        shade = color(dice, saturation=(0, 0.1), value=(0.75, 0.95))
    else:
        shade = color(dice, saturation=(0.4, 0.9), value=(0.2, 0.8))
    return Material(shade, 0.0, 0.1)


def write_text(
    scene: Scene, dice: Dice, text: str, center: tuple[float, float], height: float, angle: float, style: str = "ink"
) -> np.ndarray:
    """Print ("ink") or engrave ("relief") text on the product and return its opacity."""
    letters = lettering(
        scene.grid.size,
        text,
        center,
        height,
        angle,
        dice.between(0.1, 0.24),
        dice.pick((0.0, dice.between(-0.1, 0.3))),
    )
    letters = letters * np.minimum(scene.support, 1)
    material, fade, depth = printing_ink(dice), dice.between(0.55, 1.0), dice.sign() * dice.between(0.005, 0.015)
    if style == "ink":
        scene.paint(letters * np.float32(fade), material, None)
    else:
        scene.emboss(gaussian_blur(letters, 0.5) * np.float32(depth))
        scene.tint(letters, 0.85)
    return letters


def print_text(
    scene: Scene, dice: Dice, part: Grid, x: float, y: float, height: float, fault: Fault | None = None, text: str = ""
) -> None:
    """
    Print text at the point (x, y) of `part`.

    Args:
        height (`float`): height of a letter, in the units of `part`.
        fault ([`Fault`], *optional*): a "print_error" doubles, fades or smears the print; other faults leave it as it
            is.
        text (`str`): the text; random by default.
    """
    size, height = scene.grid.size, height * part.scale
    text = text or random_text(dice, 2, 5)
    center, turn, weight, material = part.position(x, y), part.angle, dice.between(0.12, 0.22), printing_ink(dice)
    mark = lettering(size, text, center, height, turn, weight) * scene.support
    if fault and fault.name == "print_error":
        kind = fault.dice.pick(("double", "faded", "smeared"))
        if kind == "double":
            push = (0.2 + 0.6 * fault.strength) * height * fault.dice.sign()
            place = (center[0] + push, center[1] + fault.dice.normal(0, 0.3) * height)
            mark = np.maximum(mark, lettering(size, text, place, height, turn, weight) * scene.support)
        elif kind == "faded":
            wear = noise(fault.dice, size, 0.15, 0.0, 1.0) + np.float32(0.4 - 0.8 * fault.strength)
            mark = mark * smoothstep(-0.3, 0.9, wear)
        else:
            reach = max(3, int(height * size * (0.15 + 0.3 * fault.strength)))
            trail = np.zeros_like(mark)
            for step in range(0, reach, max(1, reach // 12)):
                trail = np.maximum(trail, np.roll(mark, step, axis=1) * np.float32(1 - 0.8 * step / reach))
            mark = gaussian_blur(trail, 0.7) * scene.support
    scene.paint(mark, material, None)


def add_screw(scene: Scene, dice: Dice, x: float, y: float, radius: float, kind: str | None = None) -> None:
    """Add a screw head, a rivet or an empty drilled hole; `kind` is random by default."""
    kind = kind or dice.pick(("cross", "slot", "hex", "rivet", "hole"))
    part = scene.grid.posed(dice.angle(), radius, (x, y))
    around = part.radius
    scene.shade *= 1 - 0.5 * smoothstep(1.25, 0.95, around)
    if kind == "hole":
        scene.paint(
            coverage(around - 1, part.pixel), Material(color(dice, (0, 1), (0, 0.3), (0.01, 0.1)), -0.1, 0.0), 0.0
        )
        scene.emboss(-np.float32(0.25 * radius) * smoothstep(1.35, 1.0, around) * (around > 1))
        scene.color *= (1 + 0.35 * ((around > 1) & (around < 1.2)))[..., None].astype(np.float32)
        return
    tone = np.float32(dice.between(0.25, 0.75)) * np.float32([1, 1, dice.between(0.8, 1.0)])
    head = add_piece(scene, dice, part, around - 1, Material(tone, 0.0, 0.4, 20.0, 0.5), 0.7, 0.25, False)
    if kind == "cross":
        recess = np.minimum(box(part, 0.6, 0.13), box(part, 0.13, 0.6))
    elif kind == "slot":
        recess = box(part, 1.2, 0.13)
    elif kind == "hex":
        recess = polygon(part, 6, 0.45)
    else:
        return
    scene.tint(coverage(recess, part.pixel) * head, dice.between(0.15, 0.45))


def _holes(scene: Scene, dice: Dice) -> None:
    """Add one, two or four equal screws, rivets or holes."""
    radius, kind = dice.log_between(0.03, 0.13), dice.pick(("cross", "slot", "hex", "rivet", "hole", "hole"))
    x, y = dice.between(0.35, 0.85), dice.between(0.35, 0.85)
    places = dice.pick((((1, 1),), ((1, 1), (-1, 1)), ((1, 1), (-1, -1)), ((1, 1), (1, -1), (-1, 1), (-1, -1))))
    for right, down in places:
        add_screw(scene, dice, right * x, down * y, radius, kind)


def _grooves(scene: Scene, dice: Dice) -> None:
    """Add parallel grooves along an axis of the picture."""
    angle = dice.pick((0.0, math.pi / 2)) + dice.normal(0, 0.05)
    board = scene.grid.posed(angle)
    width, depth, gap = dice.log_between(0.006, 0.05), dice.between(0.2, 1.0), dice.between(0.08, 0.7)
    first, sharp = dice.between(-0.9, 0.6), dice.between(0.15, 0.9)
    for number in range(dice.whole(1, 4)):
        across = np.abs(board.y - np.float32(first + number * gap))
        scene.emboss(-np.float32(depth * width) * smoothstep(width, width * (1 - sharp), across))
        scene.tint(smoothstep(width, width * 0.5, across), dice.between(0.6, 0.95))


def _print(scene: Scene, dice: Dice) -> None:
    """Add one or two lines of printed or engraved text."""
    style = dice.pick(("ink", "ink", "relief"))
    angle = dice.pick((0.0, math.pi / 2)) + dice.normal(0, 0.1)
    height = dice.log_between(0.06, 0.25)
    text = random_text(dice, 1, 7)
    center = (dice.between(-0.5, 0.5), dice.between(-0.8, 0.8))
    write_text(scene, dice, text, center, height, angle, style)
    if dice.chance(0.4):
        down = height * 1.6
        second = (center[0] - down * math.sin(angle), center[1] + down * math.cos(angle))
        write_text(scene, dice, random_text(dice, 2, 9), second, height * dice.between(0.5, 1), angle, style)


def _chalk(scene: Scene, dice: Dice) -> None:
    """Add marks of chalk."""
    paths = [
        wander(
            dice,
            (dice.between(-0.6, 0.6), dice.between(-0.6, 0.6)),
            dice.angle(),
            dice.between(0.2, 0.7),
            0.5,
            0.02,
            4.0,
        )
        for _ in range(dice.whole(1, 3))
    ]
    mark = gaussian_blur(strokes(scene.grid.size, paths, [dice.log_between(0.008, 0.03)] * len(paths)), 0.8)
    crumbs = smoothstep(-0.8, 0.8, noise(dice, scene.grid.size, 0.03, 0.0, 0.3))
    scene.paint(mark * crumbs * np.float32(dice.between(0.1, 0.5)), printing_ink(dice), None)


def _sticker(scene: Scene, dice: Dice) -> None:
    """Add a sticker with a bar code."""
    half = (dice.between(0.12, 0.35), dice.between(0.08, 0.22))
    part = scene.grid.posed(dice.normal(0, 0.1), 1.0, (dice.between(-0.6, 0.6), dice.between(-0.6, 0.6)))
    add_piece(scene, dice, part, box(part, *half, 0.02), paper(dice, scene.grid), 0.01, 0.004)
    bars = barcode(dice, part, half[0] * 0.8, half[1] * 0.5, dice.whole(16, 40))
    scene.paint(bars, Material(np.float32([0.05, 0.05, 0.05]), 0.0, 0.05), None)


def _seam(scene: Scene, dice: Dice) -> None:
    """Add a straight seam between two areas of slightly different tone."""
    board = scene.grid.posed(dice.pick((0.0, math.pi / 2)) + dice.normal(0, 0.04))
    edge = board.y - np.float32(dice.between(-0.8, 0.8))
    side = coverage(edge, board.pixel * dice.between(1, 4))
    scene.tint(side, np.float32(dice.between(0.75, 1.2)) * (1 + dice.generator.normal(0, 0.02, 3).astype(np.float32)))
    scene.emboss(np.float32(dice.normal(0, 0.01)) * gaussian_blur(side, 1.0))
    line = smoothstep(dice.between(0.006, 0.02), 0.0, np.abs(edge))
    scene.tint(line, dice.between(0.3, 1.1))


def _hairlines(scene: Scene, dice: Dice) -> None:
    """Add handling marks along the grain that are too faint and too fine to be defects."""
    paths, widths, inks = [], [], []
    for _ in range(dice.whole(3, 18)):
        start = (dice.between(-1.1, 1.1), dice.between(-1.1, 1.1))
        paths.append(wander(dice, start, scene.grain + dice.normal(0, 0.12), dice.between(0.1, 1.2), 0.05, 0.05))
        widths.append(scene.grid.pixel * 0.6)
        inks.append(dice.between(0.2, 0.9))
    faint = strokes(scene.grid.size, paths, widths, inks)
    scene.tint(faint, 1 + dice.sign() * dice.between(0.05, 0.22))


_FURNITURE = {
    "holes": _holes,
    "grooves": _grooves,
    "print": _print,
    "chalk": _chalk,
    "sticker": _sticker,
    "seam": _seam,
    "hairlines": _hairlines,
}


def add_details(scene: Scene, dice: Dice, pieces: str, share: float = 0.5) -> Scene:
    """
    Add conspicuous but normal structure.

    Args:
        details (`str`): names separated by spaces: holes, grooves, print, chalk, sticker, seam, hairlines.
        share (`float`): probability of each detail, 0..1.
    """
    for name in pieces.split():
        if dice.chance(share):
            _FURNITURE[name](scene, dice)
    return scene


def surface_scene(
    dice: Dice,
    grid: Grid,
    material: Material,
    grain: float = 0.0,
    framing: float = 0.3,
    pieces: str = "",
    share: float = 0.3,
) -> Scene:
    """
    Return a scene with a surface that fills the picture or ends near its border.

    Args:
        grain (`float`): direction of the surface structure in radians.
        framing (`float`): probability, 0..1, that edges of the surface and a background behind it are visible.
        details, share: see [`add_details`].
    """
    scene = Scene(grid).fill(material)
    scene.grain = grain
    add_details(scene, dice, pieces, share)
    shown = dice.chance(framing)
    sides = dice.pick(("one", "two", "four", "corner"), (0.35, 0.35, 0.15, 0.15))
    if shown:
        _end_before_border(scene, dice, sides)
    return scene


def _end_before_border(scene: Scene, dice: Dice, sides: str) -> None:
    """Let the surface end near the border of the picture, on one, two or four sides or at a corner."""
    grid = scene.grid
    board = grid.posed(dice.pick((0.0, math.pi / 2, math.pi, -math.pi / 2)) + dice.normal(0, 0.03))
    near, far = dice.between(0.72, 0.97), dice.between(0.72, 0.97)
    outside = board.x - np.float32(near)
    if sides in ("two", "four"):
        outside = np.maximum(outside, -board.x - np.float32(far))
    if sides in ("four", "corner"):
        outside = np.maximum(outside, board.y - np.float32(dice.between(0.75, 0.97)))
    if sides == "four":
        outside = np.maximum(outside, -board.y - np.float32(dice.between(0.75, 0.97)))
    raggedness = np.float32(dice.pick((0.0, dice.between(0, 0.006))))
    outside = outside + raggedness * noise(dice, grid.size, 0.1, 0.0, 1.5)
    behind = background(dice, grid)
    alpha = coverage(outside, grid.pixel * dice.between(1, 3))
    width = dice.log_between(0.01, 0.12)
    scene.emboss(dome(outside, width, width * dice.between(0, 0.7)))
    rim = smoothstep(-width * 1.2, 0, outside)
    scene.tint(rim, dice.between(0.6, 1.3))
    behind.cast_shadow(alpha, (dice.normal(0, 0.02), dice.normal(0, 0.02)), 0.03, 0.5)
    scene.under = behind.copy()
    scene.blend(1 - alpha, behind)
    scene.support *= alpha
