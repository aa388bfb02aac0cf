"""Objects: electronic parts."""

import math

import numpy as np

from ..fields import Dice, Grid, noise, smoothstep
from ..materials import (
    METALS,
    color,
    laminate,
    metal,
    mottled,
    plastic,
)
from ..registry import Fault, product
from ..scene import Material, Scene
from ..shapes import box, coverage, disc, dome, empty_shape, lettering, random_text, segment, strokes
from ..staging import add_piece, object_scene, print_text, random_pose


__all__: list[str] = []


@product(
    "circuit_board",
    ("circuit board", "printed circuit board", "pcb"),
    "object",
    "electronic",
    gray=0.1,
    faults={
        "missing_part": "component",
        "misplaced_part": "component",
        "broken_part": "trace",
        "wrong_part": "component",
    },
)
def circuit_board(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a circuit board with traces, vias, components and prints."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.85, 1.2), 0.8, (0.9, 1.1))
    base = laminate(dice, grid)
    add_piece(scene, dice, part, box(part, 0.98, dice.between(0.7, 0.98), 0.03), base, 0.02, 0.02)
    board = scene.support.copy()
    broken_trace = fault if fault and fault.name == "broken_part" else None
    pads = _add_traces(scene, dice, part, board, base, broken_trace)
    solder = Material(np.float32(dice.pick((METALS["zinc"], (0.75, 0.62, 0.35)))), 0.0, 0.5, 20.0, 0.4)
    _add_vias(scene, part, board, pads, solder)
    _add_components(scene, dice, part, board, solder, None if broken_trace else fault)
    return scene


def _add_traces(
    scene: Scene, dice: Dice, part: Grid, board: np.ndarray, base: Material, fault: Fault | None
) -> list[tuple[float, float]]:
    """Draw copper traces at right angles and diagonals, one interrupted by a fault. Return the ends of all traces."""
    paths, widths, ends = [], [], []
    for _ in range(dice.whole(8, 18)):
        x, y = dice.between(-0.9, 0.9), dice.between(-0.8, 0.8)
        points = [(x, y)]
        for _ in range(dice.whole(1, 4)):
            heading, reach = dice.whole(0, 7) * math.pi / 4, dice.between(0.1, 0.5)
            x, y = x + reach * math.cos(heading), y + reach * math.sin(heading)
            points.append((x, y))
        paths.append(np.float32([part.position(*point) for point in points]))
        widths.append(dice.between(0.015, 0.035) * part.scale)
        ends += [points[0], points[-1]]
    traces = strokes(scene.grid.size, paths, widths) * board
    tone = np.clip(base.color * np.float32(dice.pick((0.7, 1.5))) + np.float32([0.04, 0.05, 0.03]), 0, 1)
    if fault:
        path = paths[fault.dice.whole(0, len(paths) - 1)]
        middle = (path[0] + path[1]) / 2
        gap = disc(scene.grid, (0.02 + 0.06 * fault.strength) * part.scale, *middle.tolist())
        traces = traces * (1 - coverage(gap, scene.grid.pixel))
    scene.paint(traces, Material(tone, 0.0, 0.2, 30.0), 0.002, add=True)
    return ends


def _add_vias(
    scene: Scene, part: Grid, board: np.ndarray, places: list[tuple[float, float]], solder: Material
) -> None:
    """Draw a ring of solder with a drilled hole at every place."""
    rings, holes = empty_shape(part), empty_shape(part)
    for x, y in places:
        rings = np.minimum(rings, disc(part, 0.035, x, y))
        holes = np.minimum(holes, disc(part, 0.015, x, y))
    scene.paint(coverage(rings, part.pixel) * board, solder, 0.004, add=True)
    scene.tint(coverage(holes, part.pixel) * board, 0.1)


def _add_components(
    scene: Scene, dice: Dice, part: Grid, board: np.ndarray, solder: Material, fault: Fault | None
) -> None:
    """Place components with printed names; a fault concerns one of them."""
    print_white = Material(np.float32([0.85, 0.86, 0.82]), 0.0, 0.05)
    count = dice.whole(5, 12)
    faulty = fault.dice.whole(0, count - 1) if fault else -1
    for number in range(count):
        x, y = dice.between(-0.8, 0.8), dice.between(-0.65, 0.65)
        kind = dice.pick(("chip", "resistor", "capacitor", "can", "led"), (0.3, 0.3, 0.2, 0.1, 0.1))
        lean, length = (math.pi / 2 if dice.chance(0.5) else 0.0), dice.between(0.8, 1.2)
        own_dice = dice.fork()
        text = random_text(own_dice, 1, 4)
        name = lettering(scene.grid.size, text[:2], part.position(x, y - 0.16), 0.05 * part.scale, part.angle)
        scene.paint(name * board, print_white, None)
        if number != faulty:
            _add_component(scene, own_dice, part.local(x, y, lean), kind, length, text, solder)
        elif fault.name == "missing_part":
            for side in (-1, 1):
                bare_pad = box(part, 0.03, 0.035, 0.01, x + side * 0.07, y)
                scene.paint(coverage(bare_pad, part.pixel) * board, solder, 0.004, add=True)
        elif fault.name == "wrong_part":
            other = "can" if kind == "chip" else "chip"
            _add_component(scene, own_dice, part.local(x, y, lean), other, length, text, solder)
        else:
            x += fault.dice.sign() * (0.04 + 0.08 * fault.strength)
            y += fault.dice.normal(0, 0.04)
            lean += fault.dice.sign() * (0.15 + 0.6 * fault.strength)
            before = scene.color.copy()
            _add_component(scene, own_dice, part.local(x, y, lean), kind, length, text, solder)
            scene.fault_region = (np.abs(scene.color - before).max(axis=2) > 0.02).astype(np.float32)


def _add_component(
    scene: Scene, dice: Dice, part: Grid, kind: str, length: float, text: str, solder: Material
) -> None:
    """Add one electronic component at the origin of `part`."""
    if kind == "chip":
        half = (0.16 * length, dice.between(0.08, 0.14))
        legs = dice.whole(3, 7)
        row = np.abs((part.x / np.float32(half[0]) * legs / 2) % 1 - 0.5) - 0.22
        comb = np.maximum(
            np.maximum(row * np.float32(2 * half[0] / legs), np.abs(part.x) - np.float32(half[0])),
            np.abs(part.y) - np.float32(half[1] + 0.04),
        )
        add_piece(scene, dice, part, comb, solder, 0.01, 0.01, False)
        body = plastic(dice, scene.grid, color(dice, saturation=(0, 0.1), value=(0.05, 0.14)))
        add_piece(scene, dice, part, box(part, *half, 0.01), body, 0.015, 0.02)
        mark = lettering(scene.grid.size, text, part.position(0, 0), min(0.06, half[1]) * part.scale, part.angle)
        scene.paint(mark * np.float32(0.7), Material(np.float32([0.7, 0.7, 0.7]), 0.0, 0.1), None)
    elif kind in ("resistor", "capacitor"):
        half = (0.07 * length, 0.035 * length)
        add_piece(scene, dice, part, box(part, half[0], half[1], 0.005), solder, 0.01, 0.012, False)
        tone = np.float32([0.06, 0.06, 0.07])
        if kind == "capacitor":
            tone = color(dice, (0.05, 0.1), (0.3, 0.6), (0.35, 0.7))
        body = box(part, half[0] * 0.65, half[1], 0.003)
        add_piece(scene, dice, part, body, Material(tone, 0.0, 0.1), 0.008, 0.015, False)
    elif kind == "can":
        radius, can = 0.1 * length, Material(np.float32([0.62, 0.62, 0.64]), 0.0, 0.4, 30.0, 0.5)
        add_piece(scene, dice, part, disc(part, radius), can, 0.02, 0.05)
        polarity = np.maximum(disc(part, radius * 0.92), part.x + np.float32(radius * 0.35))
        scene.tint(coverage(polarity, part.pixel), 0.2)
    else:
        tone = color(dice, saturation=(0.5, 0.9), value=(0.5, 0.95))
        add_piece(scene, dice, part, box(part, 0.06 * length, 0.045, 0.02), Material(tone, 0.0, 0.5, 40.0), 0.03, 0.03)


@product(
    "transistor",
    ("transistor", "electronic component", "voltage regulator"),
    "object",
    "electronic",
    gray=0.05,
    faults={"bent_part": "lead", "missing_part": "lead", "misplaced_part": "component"},
)
def transistor(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a black body with two to four leads, on a strip board or another background."""
    scene = object_scene(dice, grid)
    if dice.chance(0.5):
        _fill_with_strip_board(scene, dice)
    part = random_pose(dice, grid, (0.75, 0.95), 0.9, (0.9, 1.1))
    if fault and fault.name == "misplaced_part":
        part = part.posed()
        lean = fault.dice.sign() * (0.12 + 0.5 * fault.strength)
        part = part.local(fault.dice.normal(0, 0.12), fault.dice.normal(0, 0.08), lean)
    silver = Material(mottled([0.72, 0.72, 0.72], noise(dice, grid.size, 0.1, 0.0, 1.0), 0.15), 0.0, 0.6, 20.0, 0.5)
    legs, spread, width = dice.whole(2, 4), dice.between(0.05, 0.25), dice.between(0.055, 0.09)
    faulty = fault.dice.whole(0, legs - 1) if fault else -1
    for leg in range(legs):
        across = leg - (legs - 1) / 2
        knee, foot = (across * 0.2, 0.25), (across * (0.2 + spread), 0.5)
        tip = (foot[0], dice.between(0.82, 0.95))
        if leg == faulty:
            knee, foot, tip = _faulty_lead(fault, knee, foot, tip)
        lead = np.minimum(segment(part, (across * 0.2, -0.05), knee, width), segment(part, knee, foot, width))
        lead = np.minimum(lead, segment(part, foot, tip, width))
        add_piece(scene, dice.fork(), part, lead, silver, width / 2, width / 2)
    tone = color(dice, saturation=(0, 0.15), value=(0.03, 0.12))
    flat = dice.between(0.32, 0.5)
    top = dice.between(-0.75, -0.55)
    body = box(part, flat, -top / 2 + 0.05, dice.between(0.01, 0.08), 0.0, top / 2)
    add_piece(scene, dice, part, body, plastic(dice, grid, tone), 0.05, 0.08)
    if fault and fault.name == "misplaced_part":
        scene.fault_region = scene.support.copy()
    if dice.chance(0.6):
        print_text(scene, dice, part, 0.0, top / 2, dice.between(0.08, 0.16), None)
    elif dice.chance(0.6):
        scene.emboss(-0.02 * smoothstep(0.03, 0.0, np.abs(disc(part, 0.12, 0, top / 2))) * scene.support)
    return scene


def _fill_with_strip_board(scene: Scene, dice: Dice) -> None:
    """Replace the background by a perforated board with copper strips."""
    grid = scene.grid
    count = dice.between(5, 8)
    scene.fill(metal(dice, grid, "copper", "rolled"))
    scene.color *= np.float32(dice.between(0.8, 1.3))
    u, v = grid.x * np.float32(count / 2), grid.y * np.float32(count / 2)
    holes = np.sqrt((u - np.round(u)) ** 2 + (v - np.round(v)) ** 2) - 0.2
    scene.tint(coverage(holes, count / grid.size), 0.05)
    scene.tint(smoothstep(0.12, 0.07, np.abs(u - np.floor(u) - 0.5)), 0.15)
    scene.under = scene.copy()
    scene.support[...] = 0


_Point = tuple[float, float]


def _faulty_lead(fault: Fault, knee: _Point, foot: _Point, tip: _Point) -> tuple[_Point, _Point, _Point]:
    """Return the corners of a transistor's lead after a fault: cut short, or bent aside."""
    if fault.name == "missing_part":
        if fault.strength > 0.6:
            return knee, knee, knee
        kept = 0.5 * (0.15 + 0.6 * (1 - fault.strength))
        return knee, foot, (foot[0], foot[1] + (tip[1] - foot[1]) * kept)
    if fault.name == "bent_part":
        swing = fault.dice.sign() * (0.1 + 0.25 * fault.strength)
        return knee, (foot[0] + swing * 0.4, foot[1]), (tip[0] + swing, tip[1] - abs(swing) * 0.4)
    return knee, foot, tip


@product(
    "chip",
    ("integrated circuit", "microchip", "chip package"),
    "object",
    "electronic",
    gray=0.25,
    faults={"bent_part": "pin", "missing_part": "pin", "print_error": "marking"},
)
def chip(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a chip package with pins on two or four sides and a marking."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.65, 0.92), 0.7)
    pins, four = dice.whole(4, 9), dice.chance(0.4)
    half = (0.72, 0.72) if four else (0.8, dice.between(0.3, 0.55))
    silver = Material(np.float32([0.68, 0.68, 0.67]), 0.0, 0.5, 20.0, 0.4)
    width, length = half[0] / pins * dice.between(0.35, 0.6), dice.between(0.12, 0.25)
    target = (fault.dice.whole(0, 1), fault.dice.whole(0, pins - 1)) if fault else (-1, -1)
    shape = empty_shape(part)
    for side in range(4 if four else 2):
        for pin in range(pins):
            along = ((pin + 0.5) / pins * 2 - 1) * half[0] * 0.93
            sign = 1 if side % 2 else -1
            reach, lean = length, 0.0
            if (side, pin) == target and fault.name == "missing_part":
                reach = 0.0 if fault.strength > 0.4 else length * 0.4
            elif (side, pin) == target and fault.name == "bent_part":
                lean = fault.dice.sign() * (0.6 + 0.9 * fault.strength) * half[0] / pins
            if not reach:
                continue
            edge = half[1] if side < 2 else half[0]
            start, end = (along, sign * (edge - 0.05)), (along + lean, sign * (edge + reach))
            if side > 1:
                start, end = start[::-1], end[::-1]
            shape = np.minimum(shape, segment(part, start, end, width))
    add_piece(scene, dice, part, shape, silver, width / 2, width / 2)
    tone = color(dice, saturation=(0, 0.15), value=(0.04, 0.2))
    add_piece(scene, dice, part, box(part, *half, 0.03), plastic(dice, grid, tone), 0.05, 0.08)
    print_text(scene, dice, part, 0.0, -0.1, 0.16, fault, random_text(dice, 4, 7))
    if dice.chance(0.7):
        scene.emboss(-0.03 * smoothstep(0.02, 0.0, disc(part, 0.07, -half[0] * 0.8, half[1] * 0.65)))
    return scene


@product(
    "connector",
    ("connector", "pin header", "plug connector"),
    "object",
    "plastic",
    gray=0.15,
    faults={"missing_part": "pin", "bent_part": "pin"},
)
def connector(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a housing with rows of metal pins or sockets."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.7, 0.95), 0.7)
    rows, columns = dice.whole(1, 3), dice.whole(4, 9)
    add_piece(
        scene,
        dice,
        part,
        box(part, 0.98, 0.2 + 0.17 * rows, dice.between(0.02, 0.15)),
        plastic(dice, grid),
        0.06,
        0.08,
    )
    cavity = box(part, 0.88, 0.1 + 0.17 * rows, 0.04)
    scene.emboss(-0.06 * smoothstep(0.03, 0.0, cavity) * scene.support)
    scene.tint(coverage(cavity, part.pixel) * scene.support, dice.between(0.35, 0.9))
    gold = Material(np.float32(dice.pick(((0.72, 0.58, 0.3), METALS["zinc"]))), 0.0, 0.5, 20.0, 0.5)
    target = (fault.dice.whole(0, rows - 1), fault.dice.whole(0, columns - 1)) if fault else (-1, -1)
    size, square = 0.6 / columns, dice.chance(0.5)
    for row in range(rows):
        for column in range(columns):
            x, y = ((column + 0.5) / columns * 2 - 1) * 0.82, (row - (rows - 1) / 2) * 0.34
            socket = box(part, size, size, 0.01, x, y) if square else disc(part, size, x, y)
            scene.tint(coverage(socket, part.pixel), 0.35)
            if (row, column) == target:
                if fault.name == "missing_part":
                    continue
                x += fault.dice.sign() * size * (0.5 + 0.8 * fault.strength)
                y += fault.dice.normal(0, size * 0.5)
            pin = box(part, size * 0.55, size * 0.55, 0.01, x, y) if square else disc(part, size * 0.55, x, y)
            scene.paint(coverage(pin, part.pixel), gold, dome(pin, size * 0.4, size * 0.3) + np.float32(0.05))
    return scene


@product(
    "cable",
    ("cable cross section", "electric cable", "cable"),
    "object",
    "electronic",
    seen=False,
    gray=0.05,
    faults={"missing_part": "wire", "wrong_part": "wire", "misplaced_part": "strand"},
)
def cable(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build the cross section of a cable: a sheath, insulated cores, strands of copper."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.7, 0.92))
    add_piece(scene, dice, part, disc(part, 1), plastic(dice, grid), 0.08, 0.06)
    scene.tint(coverage(disc(part, 0.85), part.pixel), dice.between(0.4, 0.9))
    cores = dice.whole(2, 4)
    radius = {2: 0.4, 3: 0.37, 4: 0.33}[cores]
    faulty = fault.dice.whole(0, cores - 1) if fault else -1
    for core in range(cores):
        turn = 2 * math.pi * core / cores
        local = part.local(0.46 * math.cos(turn), 0.46 * math.sin(turn), turn)
        tone = color(dice, saturation=(0.3, 0.9), value=(0.2, 0.85))
        core_dice = dice.fork()
        if core == faulty and fault.name == "missing_part":
            continue
        if core == faulty and fault.name == "wrong_part":
            tone = color(fault.dice, saturation=(0.3, 0.9), value=(0.2, 0.85))
        add_piece(scene, core_dice, local, disc(local, radius), Material(tone, 0.0, 0.2), 0.08, 0.05)
        copper = Material(np.float32(METALS["copper"]), 0.0, 0.4, 20.0, 0.5)
        strands = empty_shape(part)
        for strand in range(19):
            ringed = 0 if strand == 0 else (1 if strand < 7 else 2)
            around = 0.0 if ringed == 0 else 2 * math.pi * strand / (6 * ringed)
            reach = ringed * radius * 0.27
            if core == faulty and fault.name == "misplaced_part" and strand == 12:
                reach += radius * (0.35 + 0.4 * fault.strength)
            strands = np.minimum(
                strands, disc(local, radius * 0.135, reach * math.cos(around), reach * math.sin(around))
            )
        add_piece(scene, core_dice, local, strands, copper, radius * 0.13, radius * 0.1)
    return scene


@product(
    "display",
    ("phone screen", "display panel", "screen"),
    "object",
    "glass",
    gray=0.1,
    faults={"broken_part": "pixel line"},
)
def display(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a framed screen, dark or lit, with icons."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.75, 0.98), 0.85)
    height = dice.between(0.55, 0.98)
    add_piece(scene, dice, part, box(part, 0.98, height, 0.12), plastic(dice, grid), 0.05, 0.05)
    inner = box(part, 0.88, height - 0.1, 0.04)
    glass = coverage(inner, part.pixel)
    lit = dice.chance(0.5)
    tone = (
        color(dice, saturation=(0, 0.8), value=(0.35, 0.9))
        if lit
        else color(dice, saturation=(0, 0.3), value=(0.01, 0.1))
    )
    fade = 1 + np.float32(dice.normal(0, 0.2)) * part.y
    scene.paint(glass, Material(mottled(tone, fade - 1, 1.0), 0.0, dice.between(0.1, 0.6), 100.0, 0.1), None)
    if lit and dice.chance(0.7):
        icons = color(dice, value=(0.2, 1.0))
        u, v = part.x * 4, part.y * 4
        icon = np.maximum(np.abs(u - np.round(u)), np.abs(v - np.round(v))) - 0.3
        zone = coverage(box(part, 0.8, height - 0.25), 0.02)
        scene.paint(coverage(icon, 0.05) * zone * np.float32(0.8), Material(icons, 0.0, 0.1), None)
    if fault:
        across = part.x if fault.dice.chance(0.6) else part.y
        line = np.abs(across - np.float32(fault.dice.between(-0.5, 0.5))) - np.float32(0.004 + 0.02 * fault.strength)
        bright = color(fault.dice, value=(0.4, 1.0)) if fault.dice.chance(0.6) else np.float32([0.0, 0.0, 0.0])
        scene.paint(coverage(line, part.pixel * 1.5) * glass, Material(bright, 0.0, 0.1), None)
    if dice.chance(0.4):
        streak = np.abs(part.x * 0.8 + part.y * 0.5 - np.float32(dice.normal(0, 0.4)))
        scene.color += (np.float32(dice.between(0.03, 0.12)) * smoothstep(0.4, 0.1, streak) * glass)[..., None]
    return scene


@product(
    "battery",
    ("battery", "battery cell", "cylindrical cell"),
    "object",
    "metal",
    seen=False,
    gray=0.1,
    faults={"print_error": "print"},
)
def battery(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a wrapped cylinder with caps and a print."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.75, 0.95), 0.4)
    half = dice.between(0.25, 0.42)
    can = Material(np.float32([0.68, 0.68, 0.68]), 0.0, 0.5, 30.0, 0.6)
    add_piece(scene, dice, part, box(part, 0.07, half * 0.35, 0.02, 0.98, 0.0), can, 0.05, 0.05)
    add_piece(scene, dice, part, box(part, 0.95, half, 0.05), can, 0.03, 0.03)
    wrap = coverage(box(part, dice.between(0.84, 0.92), half, 0.01), part.pixel)
    tone = color(dice, saturation=(0.1, 0.9), value=(0.1, 0.8))
    scene.paint(wrap, Material(tone, 0.0, 0.4, 40.0), None)
    if dice.chance(0.6):
        band = coverage(
            np.abs(part.x - np.float32(dice.between(-0.6, 0.6))) - np.float32(dice.between(0.1, 0.3)), part.pixel
        )
        scene.paint(band * wrap, Material(color(dice, value=(0.1, 0.9)), 0.0, 0.4, 40.0), None)
    round_shape = np.sqrt(np.maximum(half * half - part.y**2, 0)) * part.scale * (np.abs(part.x) < 0.95)
    scene.emboss(round_shape * scene.support)
    print_text(scene, dice, part, -0.1, 0.0, half * 0.6, fault, random_text(dice, 4, 7))
    return scene
