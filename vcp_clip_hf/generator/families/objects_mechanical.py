"""Objects: machine parts."""

import math

import numpy as np

from ..fields import Dice, Grid, gaussian_blur, lookup, noise, profile, smoothstep
from ..materials import (
    METALS,
    any_material,
    color,
    ground_arcs,
    metal,
    mottled,
    paint,
    plastic,
    rubber,
    scaled_relief,
    sintered,
)
from ..registry import Fault, product
from ..scene import Material, Scene
from ..shapes import blob, box, coverage, disc, empty_shape, gear, polygon, random_text, ring, segment, strokes
from ..staging import add_details, add_piece, add_screw, object_scene, random_pose, write_text


__all__: list[str] = []


def _random_metal(
    dice: Dice, grid: Grid, finishes: tuple[str, ...] = ("ground", "polished", "blasted", "rolled", "cast")
) -> Material:
    """Return a random metal with one of these finishes."""
    return metal(dice, grid, None, dice.pick(finishes), dice.angle())


def _cylinder_height(grid: Grid, half: float) -> np.ndarray:
    """Return the height of a rod of this half width that lies along x."""
    return np.sqrt(np.maximum(half * half - grid.y * grid.y, 0)).astype(np.float32)


@product("nut", ("metal nut", "hex nut", "nut"), "object", "metal", faults={"broken_part": "corner"})
def nut(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a hexagonal, square or flanged nut with a threaded hole."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.5, 0.88))
    outer = (
        polygon(part, dice.pick((6, 6, 4, 8)), 0.86)
        if dice.chance(0.8)
        else gear(part, dice.whole(4, 6), 0.98, 0.25, 0.1)
    )
    outer = np.maximum(outer, part.radius - np.float32(dice.between(0.93, 1.0)))
    if fault:
        corner = fault.dice.angle()
        cut = part.x * math.cos(corner) + part.y * math.sin(corner) - np.float32(0.86 - 0.35 * fault.strength)
        outer = np.maximum(outer, cut + np.float32(0.03) * np.sin(part.x * 31) * np.cos(part.y * 27))
    hole = dice.between(0.38, 0.58)
    add_piece(scene, dice, part, np.maximum(outer, hole - part.radius), _random_metal(dice, grid), 0.12, 0.1)
    thread = np.sin(part.radius * np.float32(2 * math.pi / dice.between(0.03, 0.07)))
    inner = smoothstep(hole - 0.1, hole - 0.02, part.radius) * (part.radius < hole)
    scene.paint((inner * 0.8).astype(np.float32), Material(mottled([0.28, 0.28, 0.28], thread, 0.5), 0.0, 0.2), None)
    return scene


@product("washer", ("washer", "steel washer", "metal ring"), "object", "metal", faults={"broken_part": "ring"})
def washer(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a flat or toothed ring."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.45, 0.88))
    hole = dice.between(0.35, 0.7)
    outer = disc(part, 1.0) if dice.chance(0.7) else gear(part, dice.whole(8, 18), 1.0, 0.2, 0.4)
    distance = np.maximum(outer, hole - part.radius)
    if fault:
        turn, half = fault.dice.angle(), 0.04 + 0.3 * fault.strength
        wedge = np.abs((part.theta - turn + math.pi) % (2 * math.pi) - math.pi) - np.float32(half)
        distance = np.maximum(distance, -wedge * part.radius)
    material = _random_metal(dice, grid, ("ground", "polished", "rolled", "brushed"))
    if dice.chance(0.3):
        material = metal(dice, part, None, "turned")
    add_piece(scene, dice, part, distance, material, dice.between(0.03, 0.15), dice.between(0.02, 0.08))
    return scene


@product(
    "gear",
    ("gear", "gear wheel", "cogwheel"),
    "object",
    "metal",
    faults={"missing_part": "tooth", "broken_part": "tooth"},
)
def gear_wheel(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a spur gear with a hub, a keyway and holes."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.55, 0.92), squash=(0.92, 1.08))
    teeth = dice.whole(12, 32)
    keep = np.ones(teeth, np.float32)
    if fault:
        tooth = fault.dice.whole(0, teeth - 1)
        count = 1 + int(fault.strength * 2.5)
        keep[[(tooth + offset) % teeth for offset in range(count)]] = (
            0.0 if fault.name == "missing_part" else 0.25 + 0.3 * fault.dice.between(0, 1)
        )
    depth = dice.between(1.6, 3.0) / teeth
    distance = gear(part, teeth, 1.0, depth, dice.between(0.1, 0.8), keep)
    bore = dice.between(0.12, 0.3)
    distance = np.maximum(distance, bore - part.radius)
    if dice.chance(0.5):
        distance = np.maximum(distance, -box(part, 0.06, 0.07, 0, 0, bore))
    holes, around = dice.whole(3, 6), dice.between(0.48, 0.58)
    if dice.chance(0.5):
        sector = 2 * math.pi / holes
        turn = (part.theta + np.float32(sector / 2)) % np.float32(sector) - np.float32(sector / 2)
        local = np.sqrt((part.radius * np.cos(turn) - np.float32(around)) ** 2 + (part.radius * np.sin(turn)) ** 2)
        distance = np.maximum(distance, dice.between(0.08, 0.14) - local)
    add_piece(scene, dice, part, distance, _random_metal(dice, grid), 0.05, 0.06)
    if dice.chance(0.7):
        rim = dice.between(0.7, 0.8)
        scene.emboss(-0.06 * smoothstep(rim, rim - 0.04, part.radius) * scene.support)
    return scene


@product(
    "screw",
    ("screw", "bolt", "threaded bolt"),
    "object",
    "metal",
    faults={"bent_part": "shaft", "broken_part": "thread", "missing_part": "tip"},
)
def screw(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a screw seen from the side: head, shank, thread, point."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.7, 0.95), squash=(0.9, 1.1))
    half, head, length = dice.between(0.1, 0.2), dice.between(0.24, 0.38), dice.between(0.55, 0.95)
    x, y = part.x, part.y
    if fault and fault.name == "bent_part":
        y = y - np.float32(fault.dice.sign() * (0.12 + 0.4 * fault.strength)) * np.maximum(x + 0.1, 0) ** 2
    bent = part.posed()
    bent.y = y
    pitch = dice.between(0.06, 0.13)
    start = dice.between(-0.4, 0.1)
    phase = np.abs(((x + y * np.float32(dice.between(0.1, 0.35))) / np.float32(pitch)) % 1 - 0.5) * 2
    threaded = smoothstep(start, start + 0.02, x)
    depth = np.float32(pitch * 0.45)
    if fault and fault.name == "broken_part":
        place, wide = fault.dice.between(start + 0.1, length - 0.2), 0.06 + 0.2 * fault.strength
        threaded = threaded * (1 - smoothstep(wide, wide * 0.7, np.abs(x - np.float32(place))))
    edge = np.float32(half) - threaded * depth * phase
    tip = length
    if fault and fault.name == "missing_part":
        tip = length - 0.15 - 0.35 * fault.strength
    point = dice.between(0.05, 0.45)
    taper = np.clip((np.float32(length) - x) / np.float32(point), 0, 1)
    shank = np.maximum(np.maximum(np.abs(y) - edge * taper, x - np.float32(tip)), -x - np.float32(0.72))
    flat = dice.chance(0.5)
    top = box(part, 0.12, head, 0.04, -0.8, 0.0)
    if flat:
        top = np.maximum(top, np.abs(part.y) - np.float32(head) * (0.4 + (-0.62 - part.x) * 3).clip(0.3, 1))
    material = _random_metal(dice, grid, ("polished", "blasted", "rolled"))
    distance = np.minimum(shank, top)
    round_shape = np.sqrt(np.maximum(edge * edge * taper * taper - y * y, 0)) * (x > -0.7)
    round_shape = np.maximum(round_shape, np.sqrt(np.maximum(head**2 - part.y**2, 0)) * (top < 0) * 0.8)
    add_piece(scene, dice, part, distance, material, 0.02, 0.01)
    scene.emboss(
        (gaussian_blur(round_shape.astype(np.float32), 0.5) * np.float32(part.scale) * scene.support).astype(
            np.float32
        )
    )
    return scene


@product(
    "bearing",
    ("ball bearing", "bearing", "roller bearing"),
    "object",
    "metal",
    faults={"missing_part": "ball", "misplaced_part": "ball"},
)
def bearing(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build two rings, balls and a cage."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.6, 0.92), squash=(0.94, 1.06))
    inner, outer = dice.between(0.4, 0.5), dice.between(0.7, 0.78)
    material = _random_metal(dice, grid, ("polished", "ground"))
    dark = Material(color(dice, saturation=(0, 0.3), value=(0.03, 0.2)), 0.0, 0.1)
    add_piece(scene, dice, part, np.maximum(disc(part, 0.98), np.float32(inner) - part.radius), dark, 0.02, 0.0)
    middle, radius = (inner + outer) / 2, (outer - inner) * dice.between(0.4, 0.52)
    count = dice.whole(7, min(14, int(math.pi * middle / radius * 0.95)))
    start, faulty = dice.between(0, 1), -1
    if fault:
        faulty = fault.dice.whole(0, count - 1)
    balls = empty_shape(part)
    for number in range(count):
        turn = (number + start) / count * 2 * math.pi
        if number == faulty:
            if fault.name == "missing_part":
                continue
            turn += (0.25 + 0.2 * fault.strength) * 2 * math.pi / count
        balls = np.minimum(balls, disc(part, radius, middle * math.cos(turn), middle * math.sin(turn)))
    if dice.chance(0.5):
        cage = color(dice, (0.05, 0.15), (0.2, 0.7), (0.3, 0.7)) if dice.chance(0.6) else np.float32([0.4, 0.4, 0.42])
        add_piece(scene, dice, part, ring(part, middle, radius * 1.1), Material(cage, 0.0, 0.2), 0.03, 0.02, False)
    add_piece(
        scene, dice, part, balls, Material(np.float32([0.7, 0.7, 0.72]), 0.0, 0.6, 60.0, 0.8), radius, radius, False
    )
    hole = dice.between(0.22, 0.34)
    rings = np.minimum(
        np.maximum(disc(part, 1.0), np.float32(outer) - part.radius),
        np.maximum(disc(part, inner), np.float32(hole) - part.radius),
    )
    add_piece(scene, dice, part, rings, material, 0.04, 0.06, False)
    return scene


@product("shaft", ("shaft", "steel shaft", "turned part"), "object", "metal")
def shaft(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a stepped turned rod, sometimes with a keyway."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.8, 1.25), 0.6)
    height = np.zeros_like(part.x)
    distance = empty_shape(part)
    position = -1.0
    while position < 1.0:
        length, half = dice.between(0.15, 0.7), dice.between(0.18, 0.42)
        piece = box(part, length / 2, half, 0.01, position + length / 2, 0.0)
        height = np.where(piece < 0, _cylinder_height(part, half), height)
        distance = np.minimum(distance, piece)
        position += length
    distance = np.maximum(distance, np.abs(part.x) - 1)
    lanes = lookup(profile(dice, 512, 0.2, 0.0, 0.5), part.x * 0.5)
    base = np.float32(METALS[dice.pick(("steel", "stainless steel", "aluminum", "brass"))])
    material = Material(mottled(base, lanes, dice.between(0.02, 0.08)), 0.0, 0.35, 12.0, dice.between(0.4, 0.9))
    add_piece(scene, dice, part, distance, material, 0.01, 0.01)
    scene.emboss(height * np.float32(0.5 * part.scale) * scene.support)
    scene.grain = math.pi / 2
    if dice.chance(0.4):
        key = box(part, dice.between(0.1, 0.25), 0.05, 0.05, dice.between(-0.5, 0.5), dice.between(-0.08, 0.08))
        scene.tint(coverage(key, part.pixel) * scene.support, dice.between(0.15, 0.5))
    return scene


@product(
    "spring",
    ("spring", "coil spring", "metal spring"),
    "object",
    "metal",
    seen=False,
    faults={"bent_part": "coil", "missing_part": "coil"},
)
def spring(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a helical spring seen from the side."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.75, 0.95), squash=(0.9, 1.1))
    turns, half = dice.whole(6, 13), dice.between(0.25, 0.42)
    wire = dice.between(0.035, 0.06)
    material = _random_metal(dice, grid, ("polished", "rolled"))
    faulty = fault.dice.whole(2, turns - 3) if fault else -1
    push = fault.dice.sign() * (0.4 + 0.6 * fault.strength) / turns if fault else 0.0
    for layer in (0, 1):  # the rear half of every coil first
        for number in range(turns):
            left = (number / turns * 2 - 1) * 0.9
            step = 1.8 / turns
            piece_dice = dice.fork()
            if number == faulty:
                if fault.name == "missing_part":
                    continue
                left += push
            lean = step / 2
            start, end = ((left, half), (left + lean, -half)) if layer else ((left + lean, -half), (left + step, half))
            piece = segment(part, start, end, wire * 2)
            shade = 1.0 if layer else 0.55
            coil = Material(material.color * np.float32(shade), 0.0, 0.4 * shade, 20.0, 0.6 * shade)
            add_piece(scene, piece_dice, part, piece, coil, wire, wire, layer == 1)
    return scene


@product("pipe_end", ("pipe", "tube end", "metal tube"), "object", "metal", seen=False)
def pipe_end(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a tube seen from the front, with depth inside."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.55, 0.9))
    wall = dice.between(0.1, 0.3)
    bore = 1 - wall
    add_piece(scene, dice, part, disc(part, 1), _random_metal(dice, grid, ("ground", "rolled", "blasted")), 0.05, 0.05)
    inside = coverage(part.radius - np.float32(bore), part.pixel)
    deep = smoothstep(0.0, bore, np.sqrt((part.x - dice.normal(0, 0.15)) ** 2 + (part.y - dice.normal(0, 0.15)) ** 2))
    lanes = lookup(profile(dice, 256, 0.3, 0.01, 1.0), part.theta / np.float32(2 * math.pi))
    scene.paint(inside, Material(mottled([0.35, 0.35, 0.36], lanes, 0.15) * (deep * deep)[..., None], -0.05, 0.1), 0.0)
    return scene


@product(
    "commutator",
    ("commutator", "electric motor commutator", "commutator ring"),
    "object",
    "metal",
    faults={"missing_part": "bar", "wrong_part": "bar"},
)
def commutator(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build copper bars with dark gaps, seen from the front or from the side."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.6, 0.95), 0.7)
    bars = dice.whole(10, 30)
    side = dice.chance(0.5)
    tones = 1 + dice.normal_array(bars) * np.float32(0.06)
    if fault:
        bar = fault.dice.whole(bars // 3, 2 * bars // 3)
        tones[bar] = 0.15 if fault.name == "missing_part" else 0.4 + 0.25 * (1 - fault.strength)
    if side:
        distance = box(part, 1.0, dice.between(0.55, 0.95), 0.03)
        position = (np.arcsin(np.clip(part.y, -0.99, 0.99)) / np.float32(math.pi) + 0.5) * bars
        grain = 0.0
    else:
        distance = np.maximum(disc(part, 1), np.float32(dice.between(0.3, 0.5)) - part.radius)
        position = (part.theta / np.float32(2 * math.pi) + 0.5) * bars
        grain = math.pi / 2
    number = np.floor(position).astype(np.int32) % bars
    gap = np.abs(position - np.round(position)) * (1 if side else part.radius)
    lines = noise(dice, grid.size, 0.2, 0.0, 0.5, grain, 12)
    base = (
        np.float32(METALS[dice.pick(("copper", "bronze", "steel"))]) * (tones[number] * (1 + 0.06 * lines))[..., None]
    )
    add_piece(scene, dice, part, distance, Material(base.astype(np.float32), 0.0, 0.3, 12.0, 0.5), 0.04, 0.04)
    scene.tint(
        coverage(gap - np.float32(dice.between(0.05, 0.12)), part.pixel * bars / 6) * scene.support,
        dice.between(0.05, 0.3),
    )
    scene.grain = grain
    return scene


@product(
    "machined_plate", ("machined part", "drilled plate", "flange"), "object", "metal", faults={"missing_part": "hole"}
)
def machined_plate(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a milled block or flange with bolt holes around a bore."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.6, 0.9), 0.6)
    round_shape = dice.chance(0.5)
    outline = disc(part, 1) if round_shape else box(part, 1, dice.between(0.5, 0.95), dice.between(0.02, 0.3))
    surface = ground_arcs(dice, part, dice.pick(tuple(METALS))) if dice.chance(0.4) else _random_metal(dice, grid)
    add_piece(scene, dice, part, outline, surface, 0.05, 0.06)
    bore = dice.pick((0.0, dice.between(0.15, 0.35)))
    count, distance, size = dice.whole(3, 6), dice.between(0.6, 0.75), dice.between(0.07, 0.13)
    openings = [disc(part, bore)] if bore else []
    for number in range(count):
        turn = 2 * math.pi * number / count + (math.pi / 4 if count == 4 else 0)
        x, y = distance * math.cos(turn), distance * math.sin(turn) * (1 if round_shape else 0.6)
        openings.append(disc(part, size, x, y))
    if fault:
        del openings[
            fault.dice.whole(len(openings) - count, len(openings) - 1)
        ]  # never the bore, which many plates lack
    for shape in openings:
        scene.emboss(-0.03 * smoothstep(0.05, 0.0, shape) * scene.support)
        scene.uncover(coverage(shape, part.pixel * 1.2))
        scene.shade *= 1 - np.float32(0.6) * coverage(shape, part.pixel)
    return add_details(scene, dice, "hairlines", 0.3)


@product("cast_block", ("metal casting", "cast part", "foundry part"), "object", "metal", seen=False)
def cast_block(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a rounded irregular casting with bosses and ribs."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.6, 0.9))
    outline = blob(dice, part, 0.85, 0.12, 0.0, 4) if dice.chance(0.5) else box(part, 0.95, 0.75, 0.3)
    add_piece(scene, dice, part, outline, _random_metal(dice, grid, ("cast", "blasted")), 0.25, 0.2)
    for _ in range(dice.whole(1, 3)):
        boss = disc(part, dice.between(0.12, 0.3), dice.between(-0.45, 0.45), dice.between(-0.4, 0.4))
        scene.emboss(np.float32(0.06) * smoothstep(0.06, 0.0, boss) * scene.support)
        if dice.chance(0.5):
            scene.tint(coverage(boss + 0.08, part.pixel) * scene.support, dice.between(0.1, 0.5))
    if dice.chance(0.6):
        rib = np.abs(part.x * math.cos(1) + part.y * math.sin(1) - np.float32(dice.normal(0, 0.2))) - 0.05
        scene.emboss(np.float32(0.05) * smoothstep(0.05, 0.0, rib) * scene.support)
    return scene


@product(
    "saw_blade",
    ("saw blade", "cutting blade", "circular saw blade"),
    "object",
    "metal",
    seen=False,
    faults={"missing_part": "tooth", "broken_part": "tooth"},
)
def saw_blade(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build hooked teeth on a disc or a straight blade."""
    scene = object_scene(dice, grid)
    straight = dice.chance(0.4)
    part = random_pose(dice, grid, (0.75, 1.1) if straight else (0.6, 0.9), squash=(0.95, 1.05))
    teeth = dice.whole(10, 22) if straight else dice.whole(16, 40)
    position = (part.x + 1) / 2 * teeth if straight else (part.theta / np.float32(2 * math.pi) + 0.5) * teeth
    number = np.floor(position).astype(np.int32) % teeth
    keep = np.ones(teeth, np.float32)
    if fault:
        first = fault.dice.whole(teeth // 5, 4 * teeth // 5)
        keep[first : first + 1 + int(2 * fault.strength)] = 0.0 if fault.name == "missing_part" else 0.45
    hook = (position % 1) * keep[number] * np.float32(2.6 / teeth)
    if straight:
        outline = np.maximum(np.abs(part.x) - 1, np.abs(part.y + hook / 2) - np.float32(0.35) - hook / 2)
    else:
        outline = np.maximum(part.radius - np.float32(0.86) - hook, np.float32(dice.between(0.1, 0.25)) - part.radius)
    add_piece(
        scene,
        dice,
        part,
        outline.astype(np.float32),
        _random_metal(dice, grid, ("brushed", "ground", "polished")),
        0.03,
        0.02,
    )
    if dice.chance(0.6):
        write_text(
            scene,
            dice,
            random_text(dice, 3, 7),
            (dice.normal(0, 0.1), dice.normal(0.25, 0.1)),
            0.12,
            dice.normal(0, 0.1),
        )
    return scene


@product(
    "motor_housing",
    ("metal housing", "pump housing", "machine cover"),
    "object",
    "metal",
    faults={"missing_part": "screw"},
)
def motor_housing(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a painted or bare cover held by screws, with fins and a plate."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.7, 0.95), 0.9, (0.85, 1.15))
    outline = (
        box(part, 0.95, dice.between(0.6, 0.95), dice.between(0.05, 0.4)) if dice.chance(0.7) else disc(part, 0.95)
    )
    add_piece(
        scene, dice, part, outline, paint(dice, grid) if dice.chance(0.5) else _random_metal(dice, grid), 0.12, 0.1
    )
    if dice.chance(0.5):
        fins = np.sin(part.x * np.float32(math.pi * dice.between(6, 16)))
        zone = coverage(box(part, 0.55, 0.3, 0.05), 0.02)
        scene.emboss(np.float32(0.012) * smoothstep(-0.4, 0.4, fins) * zone)
    plate = dice.chance(0.5)
    window = box(part, 0.3, 0.18, 0.03, dice.between(-0.2, 0.2), dice.between(-0.15, 0.15))
    if plate:
        add_piece(scene, dice, part, window, any_material(dice, grid), 0.01, 0.01, False)
    faulty = fault.dice.whole(0, 3) if fault else -1
    kind = dice.pick(("cross", "slot", "hex"))
    corner, seat = dice.between(0.55, 0.7), dice.between(0.35, 0.5)
    for number, (right, down) in enumerate(((1, 1), (1, -1), (-1, 1), (-1, -1))):
        x, y = part.position(right * corner, down * seat)
        piece_dice = dice.fork()  # a missing screw must not change the other draws
        add_screw(scene, piece_dice, x, y, 0.08 * part.scale, "hole" if number == faulty else kind)
    return scene


@product(
    "o_ring",
    ("rubber seal", "o-ring", "gasket"),
    "object",
    "rubber",
    faults={"bent_part": "ring", "broken_part": "ring"},
)
def o_ring(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a round or shaped seal of rubber or plastic."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.55, 0.9))
    bent = part.posed()
    if fault and fault.name == "bent_part":
        turn = fault.dice.angle()
        push = np.exp(-4 * ((part.x - math.cos(turn)) ** 2 + (part.y - math.sin(turn)) ** 2))
        amount = np.float32(fault.dice.sign() * (0.12 + 0.25 * fault.strength))
        bent.x = part.x - push * amount * math.cos(turn)
        bent.y = part.y - push * amount * math.sin(turn)
    wide = dice.between(0.12, 0.3)
    shape = ring(bent, 0.85, wide) if dice.chance(0.7) else np.abs(box(bent, 0.8, 0.55, 0.4)) - np.float32(wide / 2)
    if fault and fault.name == "broken_part":
        turn = fault.dice.angle()
        away = np.abs(np.mod(part.theta - turn + math.pi, 2 * math.pi) - math.pi) * part.radius
        shape = np.maximum(shape, np.float32(0.02 + 0.2 * fault.strength) - away)
    add_piece(
        scene, dice, part, shape, rubber(dice, grid) if dice.chance(0.7) else plastic(dice, grid), wide / 2, wide / 2
    )
    return scene


@product("brake_pad", ("friction pad", "carbon brush", "sintered pad"), "object", "carbon", gray=0.5)
def brake_pad(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a block of sintered material with slots, sometimes with a wire."""
    scene = object_scene(dice, grid)
    part = random_pose(dice, grid, (0.55, 0.9), 0.5)
    if dice.chance(0.4):
        paths = [np.stack([np.linspace(0, 1.3, 20), 0.2 * np.sin(np.linspace(0, dice.between(2, 6), 20))], axis=1)]
        wire = strokes(grid.size, paths, [0.06])
        scene.paint(wire, Material(np.float32([0.6, 0.4, 0.28]), 0.0, 0.3), 0.02)
    outline = box(part, 0.95, dice.between(0.4, 0.85), dice.between(0.02, 0.2))
    add_piece(scene, dice, part, outline, sintered(dice, grid), 0.05, 0.06)
    for _ in range(dice.whole(0, 2)):
        slot = np.abs(part.x - np.float32(dice.between(-0.6, 0.6))) - np.float32(dice.between(0.015, 0.04))
        scene.tint(coverage(slot, part.pixel) * scene.support, dice.between(0.15, 0.6))
        scene.emboss(-0.02 * coverage(slot, part.pixel * 3) * scene.support)
    scene.emboss(scaled_relief(noise(dice, grid.size, 0.05, 0.0, 1.0), 0.04) * scene.support)
    return scene
