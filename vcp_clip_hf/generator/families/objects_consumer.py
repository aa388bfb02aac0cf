"""Objects: food, medicine, packaging and household goods."""

import math

import numpy as np

from ..fields import Dice, Grid, gaussian_blur, lookup, noise, profile, smoothstep
from ..materials import (
    any_material,
    ceramic,
    color,
    fabric,
    metal,
    mottled,
    paper,
    plastic,
    scaled_relief,
    wood,
)
from ..registry import Fault, product
from ..scene import Material, Scene
from ..shapes import barcode, blob, box, coverage, disc, empty_shape, gear, lettering, random_text, ring, strokes
from ..staging import add_details, add_piece, object_scene, print_text, printing_ink, random_pose


__all__: list[str] = []


@product(
    "pill",
    ("pill", "tablet", "medicine tablet"),
    "object",
    "organic",
    gray=0.1,
    faults={"print_error": "imprint", "broken_part": "tablet"},
)
def pill(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a round, oblong or oval tablet with an imprint or a score line."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.5, 0.88), squash=(0.9, 1.1))
    style = dice.pick(("round", "oblong", "oval"))
    distance = {
        "round": disc(part, 0.95),
        "oblong": box(part, 1.0, 0.5, 0.5),
        "oval": (np.sqrt(part.x**2 + (part.y / 0.65) ** 2) - 1).astype(np.float32) * np.float32(0.65),
    }[style]
    if fault and fault.name == "broken_part":
        turn = fault.dice.angle()
        kept = (0.75 if style == "round" else 0.4) - 0.45 * fault.strength
        cut = part.x * math.cos(turn) + part.y * math.sin(turn) - np.float32(kept)
        crumble = noise(fault.dice, grid.size, 0.2, 0.015, 2.0) * np.float32(0.025)
        distance = np.maximum(distance, cut + crumble)
    tone = color(dice, saturation=(0.0, 0.5), value=(0.6, 0.95))
    grain = noise(dice, grid.size, 0.03, 0.0, 0.6)
    specks = np.clip(noise(dice, grid.size, 0.02, 0.006, 0.4) - 2.0, 0, 1)
    shade = grain * 0.5 - specks * np.float32(dice.pick((0.0, dice.between(2, 8))))
    tone = mottled(tone, shade, dice.between(0.01, 0.06))
    surface = Material(tone, scaled_relief(grain, dice.between(0.01, 0.08)), 0.1, 10.0)
    add_piece(scene, dice, part, distance, surface, dice.between(0.2, 0.5), dice.between(0.1, 0.25))
    if dice.chance(0.4):
        scene.emboss(-0.03 * smoothstep(0.06, 0.0, np.abs(part.x)) * scene.support)
    print_text(scene, dice, part, 0.0, 0.0, dice.between(0.12, 0.32), fault)
    return scene


@product(
    "capsule",
    ("capsule", "gel capsule", "medicine capsule"),
    "object",
    "plastic",
    gray=0.1,
    faults={"print_error": "print", "bent_part": "shell"},
)
def capsule(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a glossy printed capsule of two colors."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.65, 0.95), squash=(0.9, 1.15))
    shell = part.posed()
    if fault and fault.name == "bent_part":
        push = np.exp(-12 * (part.x - np.float32(fault.dice.between(-0.5, 0.5))) ** 2)
        if fault.dice.chance(0.5):
            shell.y = part.y * (1 + (0.15 + 0.5 * fault.strength) * push)
        else:
            shell.y = part.y + 0.3 * fault.strength * push
    half = dice.between(0.3, 0.42)
    distance = box(shell, 1.0, half, half)
    first, second = (color(dice, saturation=(0.0, 0.9), value=(0.25, 0.95)) for _ in range(2))
    border = dice.between(-0.1, 0.3)
    share = coverage(part.x - np.float32(border), part.pixel * 1.5)[..., None]
    body = Material((first * share + second * (1 - share)).astype(np.float32), 0.0, dice.between(0.3, 0.8), 60.0)
    add_piece(scene, dice, part, distance, body, half, half)
    step = smoothstep(border + 0.02, border - 0.02, part.x)
    scene.emboss(0.02 * step * scene.support)
    print_text(scene, dice, part, dice.pick((-0.4, 0.5)), 0.0, dice.between(0.08, 0.2), fault)
    return scene


@product("nut_kernel", ("hazelnut", "nut kernel", "acorn"), "object", "organic", gray=0.05)
def nut_kernel(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a round shell with ridges that run from a point to a rough base."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.55, 0.85), 0.0, (0.9, 1.2))
    outline = blob(dice, part, 0.95, 0.04, 0.0, 3)
    base = (dice.between(-1.0, 1.0), dice.between(0.4, 1.0))
    turn = part.local(-base[0] * 0.8, -base[1]).theta / np.float32(2 * math.pi)
    ridges = lookup(profile(dice, 512, 0.12, 0.008, 0.6), turn * np.float32(dice.between(1.0, 2.5)))
    fine = noise(dice, grid.size, 0.05, 0.0, 1.0)
    tone = color(dice, (0.02, 0.08), (0.35, 0.75), (0.25, 0.6))
    tone = mottled(tone, ridges * 0.8 + fine * 0.3, dice.between(0.08, 0.2))
    shell = Material(tone, scaled_relief(ridges, 0.04), dice.between(0.05, 0.3), 14.0)
    add_piece(scene, dice, part, outline, shell, 0.9, 0.55)
    seat = blob(dice, part.local(-base[0] * 0.45, base[1] * 0.6), dice.between(0.3, 0.5), 0.12, 0.08)
    scar = coverage(seat, 0.05) * scene.support
    woolly = noise(dice, grid.size, 0.03, 0.0, 0.5)
    tone = color(dice, (0.05, 0.1), (0.2, 0.5), (0.35, 0.65))
    scene.paint(scar, Material(mottled(tone, woolly, 0.15), scaled_relief(woolly, 0.3), 0.02), None)
    return scene


@product("cookie", ("cookie", "biscuit", "cracker"), "object", "organic", gray=0.05, faults={"broken_part": "edge"})
def cookie(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a baked biscuit with crumbs, chips or dots, and sometimes a wavy rim."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.55, 0.9), 0.1)
    outline = dice.pick((disc(part, 0.95), gear(part, dice.whole(14, 26), 1.0, 0.1, 0.0), box(part, 0.95, 0.7, 0.15)))
    if fault:
        edge = part.local(*_random_direction_point(fault.dice, 0.95))
        bite = blob(fault.dice, edge, 0.2 + 0.35 * fault.strength, 0.15, 0.05)
        outline = np.maximum(outline, -bite)
    crumbs = noise(dice, grid.size, 0.06, 0.0, 1.0)
    tone = color(dice, (0.06, 0.11), (0.4, 0.75), (0.3, 0.75))
    browner = smoothstep(0.45, 0.0, -outline)[..., None] * np.float32(dice.between(0.1, 0.5))
    base = mottled(tone, crumbs, dice.between(0.05, 0.15)) * (1 - browner * np.float32([0.4, 0.6, 0.8]))
    add_piece(
        scene, dice, part, outline, Material(base, scaled_relief(crumbs, dice.between(0.1, 0.4)), 0.03), 0.25, 0.15
    )
    if dice.chance(0.5):
        chips = color(dice, (0.03, 0.08), (0.3, 0.7), (0.05, 0.25))
        for _ in range(dice.whole(5, 14)):
            x, y = dice.between(-0.7, 0.7), dice.between(-0.6, 0.6)
            piece = disc(part, dice.between(0.05, 0.12), x, y)
            scene.paint(coverage(piece, part.pixel * 2) * scene.support, Material(chips, 0.0, 0.1), 0.02, add=True)
    else:
        count = dice.between(3, 6)
        u, v = part.x * np.float32(count), part.y * np.float32(count)
        dots = np.sqrt((u - np.round(u)) ** 2 + (v - np.round(v)) ** 2) - np.float32(0.14)
        zone = smoothstep(0.1, 0.2, -outline)
        scene.emboss(-0.02 * smoothstep(0.1, 0.0, dots) * zone)
        scene.tint(coverage(dots, 0.1) * zone, 0.6)
    return scene


def _random_direction_point(dice: Dice, radius: float) -> tuple[float, float]:
    """Return a point at this distance from the origin, in a random direction."""
    turn = dice.angle()
    return radius * math.cos(turn), radius * math.sin(turn)


@product(
    "candle_group",
    ("candles", "pasta pieces", "sweets"),
    "object",
    "organic",
    seen=False,
    gray=0.05,
    faults={"missing_part": "piece", "wrong_part": "piece"},
)
def candle_group(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build four or more equal pieces in rows."""
    scene = object_scene(dice, grid)
    rows, columns = dice.whole(2, 3), dice.whole(2, 3)
    tone = color(dice, saturation=(0.1, 0.7), value=(0.4, 0.95))
    style = dice.pick(("disc", "ring", "bar", "bow"))
    grain = noise(dice, grid.size, 0.08, 0.0, 1.4)
    faulty = fault.dice.whole(0, rows * columns - 1) if fault else -1
    size = 0.75 / max(rows, columns)
    for number in range(rows * columns):
        x = ((number % columns + 0.5) / columns * 2 - 1) * 0.92 + dice.normal(0, 0.02)
        y = ((number // columns + 0.5) / rows * 2 - 1) * 0.92 + dice.normal(0, 0.02)
        part = grid.posed(dice.angle(), size, (x, y))
        piece_tone, piece_dice = tone, dice.fork()
        if number == faulty:
            if fault.name == "missing_part":
                continue
            piece_tone = color(fault.dice, saturation=(0.1, 0.8), value=(0.2, 0.9))
        outline = {
            "disc": disc(part, 0.95),
            "ring": ring(part, 0.7, 0.5),
            "bar": box(part, 0.98, 0.4, 0.3),
            "bow": np.maximum(box(part, 1.0, 0.75, 0.1), np.abs(part.y) - 0.1 - 0.5 * np.abs(part.x)),
        }[style]
        add_piece(
            scene,
            piece_dice,
            part,
            outline,
            Material(mottled(piece_tone, grain, 0.07), scaled_relief(grain, 0.05), 0.15, 12.0),
            0.5,
            0.4,
        )
    return scene


@product(
    "bottle_top",
    ("bottle", "bottle mouth", "glass bottle"),
    "object",
    "glass",
    seen=False,
    gray=0.15,
    faults={"broken_part": "rim"},
)
def bottle_top(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a bottle seen from above: concentric rings of dark glass and light."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.75, 0.95), squash=(0.95, 1.05))
    tone = color(dice, (0.02, 0.4), (0.2, 0.8), (0.03, 0.35))
    add_piece(scene, dice, part, disc(part, 1), Material(tone, 0.0, 0.4, 40.0, 0.2), 0.2, 0.15)
    mouth = dice.between(0.3, 0.5)
    rim = ring(part, mouth + 0.1, 0.2)
    if fault:
        edge = part.local(*_random_direction_point(fault.dice, mouth + 0.15))
        rim = np.maximum(rim, -blob(fault.dice, edge, 0.06 + 0.15 * fault.strength, 0.25, 0.1))
    rings = lookup(profile(dice, 256, 0.5, 0.03, 1.4), part.radius * 0.7)
    scene.color *= (1 + np.float32(dice.between(0.05, 0.4)) * rings * scene.support)[..., None].clip(0.2)
    lip = Material(tone * np.float32(dice.between(1.0, 2.5)) + np.float32(0.05), 0.0, 0.7, 60.0)
    add_piece(scene, dice, part, rim, lip, 0.1, 0.1)
    scene.tint(coverage(disc(part, mouth), part.pixel), dice.between(0.02, 0.5))
    return scene


@product(
    "bottle_cap",
    ("bottle cap", "lid", "screw cap"),
    "object",
    "plastic",
    gray=0.1,
    faults={"print_error": "print", "bent_part": "edge"},
)
def bottle_cap(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a printed cap with a fluted or crimped rim."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.6, 0.92))
    edge = part.posed()
    if fault and fault.name == "bent_part":
        turn = fault.dice.angle()
        push = np.exp(-7 * ((part.x - math.cos(turn)) ** 2 + (part.y - math.sin(turn)) ** 2))
        edge.x = part.x + push * np.float32(math.cos(turn) * (0.08 + 0.25 * fault.strength))
        edge.y = part.y + push * np.float32(math.sin(turn) * (0.08 + 0.25 * fault.strength))
    outline = gear(edge, dice.whole(20, 48), 1.0, dice.between(0.03, 0.09), dice.between(0, 0.4))
    surface = plastic(dice, grid) if dice.chance(0.6) else metal(dice, grid, None, "brushed", dice.angle())
    add_piece(scene, dice, part, outline, surface, 0.25, 0.2)
    inner = dice.between(0.65, 0.8)
    scene.emboss(-0.03 * smoothstep(inner + 0.03, inner - 0.03, part.radius) * scene.support)
    motif = dice.pick(("text", "rings", "star", "text"))
    if motif == "rings":
        scene.paint(coverage(ring(part, 0.45, 0.08), part.pixel) * np.float32(0.9), printing_ink(dice), None)
    elif motif == "star":
        scene.paint(coverage(gear(part, dice.whole(3, 8), 0.5, 0.3, 0.0), part.pixel), printing_ink(dice), None)
    print_text(scene, dice, part, 0.0, 0.0, 0.22, fault)
    return scene


@product(
    "printed_label",
    ("label", "printed label", "package label"),
    "object",
    "paper",
    gray=0.1,
    faults={"print_error": "print"},
)
def printed_label(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a label with lines of text and a bar code on a package."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.75, 0.95), 0.85)
    add_piece(scene, dice, part, box(part, 0.98, 0.9, 0.05), any_material(dice, grid), 0.05, 0.05)
    height = dice.between(0.5, 0.75)
    add_piece(scene, dice, part, box(part, 0.8, height, 0.03), paper(dice, grid), 0.01, 0.006)
    dark = printing_ink(dice)
    if dice.chance(0.5):
        band = coverage(box(part, 0.8, 0.12, 0.0, 0.0, -height + 0.14), part.pixel)
        scene.paint(band, Material(color(dice, saturation=(0.3, 0.9), value=(0.2, 0.8)), 0.0, 0.1), None)
    bars = part.local(dice.between(-0.3, 0.3), height * 0.5, 0.0)
    pattern = barcode(dice, bars, 0.4, height * 0.3, dice.whole(24, 50))
    scene.paint(pattern, Material(np.float32([0.04, 0.04, 0.05]), 0.0, 0.1), None)
    print_text(scene, dice, part, 0.0, -height * 0.3, 0.2, fault)
    turn = part.angle
    for line in range(dice.whole(1, 3)):
        text = random_text(dice, 5, 12)
        mark = lettering(grid.size, text, part.position(0.0, -height * 0.06 + line * 0.07), 0.05 * part.scale, turn)
        scene.paint(mark, dark, None)
    return scene


@product(
    "zipper",
    ("zipper", "zip fastener", "zip"),
    "object",
    "fabric",
    seen=False,
    gray=0.2,
    faults={"missing_part": "tooth", "bent_part": "teeth", "broken_part": "teeth"},
)
def zipper(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build interlocking teeth between two tapes of cloth."""
    scene = Scene(grid)
    angle = dice.pick((0.0, math.pi / 2)) + dice.normal(0, 0.06)
    part = grid.posed(angle, 1.0, (dice.normal(0, 0.05), dice.normal(0, 0.05)))
    scene.fill(fabric(dice, part, None, dice.between(35, 60)))
    scene.under = scene.copy()
    scene.grain = angle
    teeth = dice.between(14, 26)
    half = dice.between(0.12, 0.2)
    scene.emboss(-0.03 * smoothstep(half * 2.2, half, np.abs(part.y)))
    surface = metal(dice, grid, None, "polished") if dice.chance(0.5) else plastic(dice, grid)
    shape = empty_shape(part)
    for side in (-1, 1):
        position = part.x * np.float32(teeth / 2) + np.float32(0.25 * side)
        number = np.floor(position)
        gap = (np.abs(position - number - 0.5) - 0.34) * np.float32(2 / teeth)
        middle = part.y * side
        if fault and side == 1:
            start = fault.dice.whole(-int(teeth / 4), int(teeth / 4))
            count = 1 if fault.name == "missing_part" else 2 + int(2 * fault.strength)
            chosen = (number >= start) & (number < start + count)
            if fault.name == "bent_part":
                middle = np.where(chosen, middle - np.float32(0.05 + 0.08 * fault.strength), middle)
                gap = np.where(chosen, gap + np.float32(0.15 / teeth), gap)
            else:
                gap = np.where(chosen, np.float32(1), gap)
        tooth = np.maximum(gap, np.maximum(-middle - np.float32(half * 0.25), middle - np.float32(half)))
        shape = np.minimum(shape, tooth.astype(np.float32))
    add_piece(scene, dice, part, shape, surface, 0.02, 0.02)
    scene.support[...] = 1
    return scene


@product(
    "brush",
    ("toothbrush", "brush", "brush head"),
    "object",
    "plastic",
    seen=False,
    gray=0.05,
    faults={"missing_part": "tuft", "bent_part": "bristles"},
)
def brush(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a brush head with tufts of bristles in several colors."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.8, 0.95), 0.7)
    add_piece(scene, dice, part, box(part, 0.9, 0.5, 0.45), plastic(dice, grid), 0.1, 0.08)
    tones = [color(dice, saturation=(0.0, 0.8), value=(0.5, 0.95)) for _ in range(3)]
    rows, columns = dice.whole(3, 5), dice.whole(6, 10)
    target = (fault.dice.whole(0, rows - 1), fault.dice.whole(1, columns - 2)) if fault else (-1, -1)
    bristles: list[tuple[list, list]] = [([], []) for _ in tones]
    for row in range(rows):
        for column in range(columns):
            x = ((column + 0.5) / columns * 2 - 1) * 0.78
            y = ((row + 0.5) / rows * 2 - 1) * 0.38
            draws, spread = dice.fork(), 0.085
            lean = (draws.normal(0, 0.03), draws.normal(0, 0.03))
            if (row, column) == target:
                if fault.name == "missing_part":
                    continue
                spread, lean = 0.16, (fault.dice.normal(0, 0.15), fault.dice.normal(0, 0.15))
            paths, inks = bristles[(row + column) % len(tones)]
            for _ in range(26):
                dx, dy = draws.normal(0, spread * 0.5), draws.normal(0, spread * 0.5)
                ends = part.position(x + dx * 0.5, y + dy * 0.5), part.position(x + dx + lean[0], y + dy + lean[1])
                paths.append(np.float32(ends))
                inks.append(draws.between(0.5, 1.0))
    for tone, (paths, inks) in zip(tones, bristles, strict=True):
        tufts = strokes(grid.size, paths, [0.018] * len(paths), inks)
        scene.tint(gaussian_blur(tufts, grid.size / 128), 0.6)
        scene.paint(tufts, Material(tone, 0.0, 0.2), 0.04 * tufts)
    return scene


@product(
    "button",
    ("button", "plastic button", "coin"),
    "object",
    "plastic",
    gray=0.15,
    faults={"broken_part": "edge", "missing_part": "hole"},
)
def button(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a disc with a rim and holes."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.5, 0.88))
    outline = disc(part, 1)
    if fault and fault.name == "broken_part":
        edge = part.local(*_random_direction_point(fault.dice, 1.0))
        outline = np.maximum(outline, -blob(fault.dice, edge, 0.15 + 0.3 * fault.strength, 0.3, 0.05))
    surface = dice.pick((plastic, metal, ceramic))(dice, grid)
    add_piece(scene, dice, part, outline, surface, 0.15, 0.12)
    rim = dice.between(0.6, 0.8)
    scene.emboss(-0.06 * smoothstep(rim, rim - 0.1, part.radius) * scene.support)
    count, distance = dice.pick((2, 4)), dice.between(0.18, 0.28)
    faulty = fault.dice.whole(0, count - 1) if fault and fault.name == "missing_part" else -1
    for number in range(count):
        if number == faulty:
            continue
        turn = 2 * math.pi * number / count
        hole = disc(part, 0.1, distance * math.cos(turn), distance * math.sin(turn))
        scene.emboss(-0.03 * smoothstep(0.05, 0, hole))
        scene.uncover(coverage(hole, part.pixel * 1.2))
    return scene


@product(
    "ceramic_dish",
    ("ceramic insulator", "porcelain plate", "ceramic dish"),
    "object",
    "ceramic",
    gray=0.1,
    faults={"broken_part": "rim"},
)
def ceramic_dish(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a round glazed dish with rings and a motif."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.65, 0.95))
    outline = disc(part, 1)
    if fault:
        edge = part.local(*_random_direction_point(fault.dice, 1.0))
        outline = np.maximum(outline, -blob(fault.dice, edge, 0.1 + 0.3 * fault.strength, 0.3, 0.06))
    add_piece(scene, dice, part, outline, ceramic(dice, grid), 0.1, 0.08)
    for _ in range(dice.whole(1, 3)):
        step = dice.between(0.3, 0.9)
        rise = np.float32(dice.normal(0, 0.04))
        scene.emboss(rise * smoothstep(step, step - 0.08, part.radius) * scene.support)
    if dice.chance(0.6):
        band = coverage(ring(part, dice.between(0.5, 0.92), dice.log_between(0.02, 0.15)), part.pixel)
        scene.paint(band * scene.support, Material(color(dice, value=(0.1, 0.8)), 0.0, 0.4, 50.0), None)
    if dice.chance(0.3):
        motif = coverage(gear(part, dice.whole(5, 9), 0.4, 0.25, 0.0), part.pixel)
        scene.paint(motif, Material(color(dice, value=(0.1, 0.8)), 0.0, 0.4, 50.0), None)
    return scene


@product(
    "wooden_part",
    ("wooden part", "wooden block", "wooden toy"),
    "object",
    "wood",
    gray=0.1,
    faults={"broken_part": "corner"},
)
def wooden_part(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a turned or sawn piece with holes."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.55, 0.9))
    outline = dice.pick((disc(part, 0.95), box(part, 0.95, dice.between(0.3, 0.9), 0.1), box(part, 0.95, 0.5, 0.5)))
    if fault:
        turn = fault.dice.angle()
        splinter = noise(fault.dice, grid.size, 0.2, 0.012, 1.8, turn, 3) * np.float32(0.04)
        cut = part.x * math.cos(turn) + part.y * math.sin(turn) - np.float32(0.75 - 0.4 * fault.strength)
        outline = np.maximum(outline, cut + splinter)
    add_piece(scene, dice, part, outline, wood(dice, grid, part.angle), 0.08, 0.08)
    for _ in range(dice.whole(0, 2)):
        hole = disc(part, dice.between(0.08, 0.18), dice.between(-0.5, 0.5), dice.between(-0.2, 0.2))
        scene.emboss(-0.03 * smoothstep(0.04, 0, hole))
        scene.tint(coverage(hole, part.pixel) * scene.support, dice.between(0.1, 0.35))
    return add_details(scene, dice, "print", 0.2)


@product(
    "sewn_patch",
    ("sewn patch", "textile badge", "seat belt"),
    "object",
    "fabric",
    gray=0.1,
    faults={"broken_part": "stitching", "misplaced_part": "stitching"},
)
def sewn_patch(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a piece of cloth or webbing with rows of stitches."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.7, 1.0), 0.6)
    half = (0.98, dice.between(0.4, 0.9))
    outline = box(part, *half, dice.between(0.02, 0.3))
    add_piece(scene, dice, part, outline, fabric(dice, part, None, dice.between(30, 60)), 0.08, 0.05)
    inset = box(part, half[0] - 0.12, half[1] - 0.12, 0.1)
    pitch = dice.between(0.06, 0.12)
    along = np.where(np.abs(part.x) > half[0] - 0.16, part.y, part.x)
    dash = (np.abs((along / np.float32(pitch)) % 1 - 0.5) - 0.32) * np.float32(pitch)
    line = np.abs(inset) - np.float32(0.015)
    if fault:
        x, reach = fault.dice.between(-0.6, 0.4), 0.1 + 0.5 * fault.strength
        chosen = (part.x > x) & (part.x < x + reach) & (part.y > 0)
        if fault.name == "broken_part":
            line = np.where(chosen, np.float32(1), line)
        else:
            line = np.where(chosen, np.abs(inset + np.float32(0.05 + 0.08 * fault.strength)) - np.float32(0.015), line)
    thread = Material(color(dice, value=(0.2, 0.95)), 0.0, 0.15)
    scene.paint(
        coverage(np.maximum(line, dash).astype(np.float32), part.pixel) * scene.support, thread, 0.01, add=True
    )
    return scene
