"""Surfaces of metal, ferrite and silicon."""

import math

import numpy as np

from ..fields import Dice, Grid, cells, gaussian_blur, lookup, noise, profile, smoothstep
from ..materials import METALS, color, ground_arcs, metal, mottled, paint, plating, scaled_relief
from ..registry import Fault, product
from ..scene import Material, Scene
from ..shapes import box, coverage, disc
from ..staging import add_details, surface_scene


__all__: list[str] = []

_METAL_DETAILS = "holes grooves print seam hairlines"


def _grain_angle(dice: Dice) -> float:
    """Return the direction of a surface structure, often along an axis of the picture."""
    return dice.pick((0.0, math.pi / 2, dice.angle()), (0.35, 0.4, 0.25)) + dice.normal(0, 0.03)


@product("brushed_metal", ("brushed metal plate", "brushed steel sheet", "metal plate"), "texture", "metal", gray=0.4)
def brushed_metal(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a brushed plate of steel, aluminum, brass, ..."""
    angle = _grain_angle(dice)
    return surface_scene(dice, grid, metal(dice, grid, None, "brushed", angle), angle, 0.35, _METAL_DETAILS, 0.22)


@product("rolled_steel", ("hot rolled steel strip", "steel strip", "steel surface"), "texture", "metal", gray=0.85)
def rolled_steel(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a dull strip with scale and faint lanes along the rolling direction."""
    angle = dice.pick((0.0, math.pi / 2), (0.25, 0.75)) + dice.normal(0, 0.03)
    surface = metal(dice, grid, dice.pick(("steel", "iron")), "rolled", angle)
    scene = surface_scene(dice, grid, surface, angle, 0.12, "hairlines", 0.3)
    scale = noise(dice, grid.size, dice.log_between(0.02, 0.4), 0.0, dice.between(0.8, 2.0), angle, dice.between(1, 6))
    scene.color *= (1 + np.float32(dice.between(0.0, 0.14)) * scale)[..., None]
    lanes = lookup(profile(dice, 256, 0.6, 0.01, 1.4), grid.posed(angle).y * 0.5)
    scene.color *= (1 + np.float32(dice.between(0.0, 0.1)) * lanes)[..., None]
    scene.metal *= np.float32(dice.between(0, 1))
    return scene


@product("cast_iron", ("cast iron surface", "metal casting", "cast metal part"), "texture", "metal", gray=0.45)
def cast_iron(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a sand-cast skin: lumpy, dark, dull."""
    scene = surface_scene(dice, grid, metal(dice, grid, dice.pick(("iron", "steel", "aluminum")), "cast"), 0.0, 0.3)
    coarse = noise(dice, grid.size, dice.log_between(0.06, 0.3), 0.02, 1.8)
    scene.emboss(scaled_relief(coarse, dice.between(0.02, 0.12)))
    return add_details(scene, dice, "print holes seam", 0.2)


@product(
    "milled_metal", ("milled metal face", "machined metal block", "machined surface"), "texture", "metal", gray=0.4
)
def milled_metal(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a surface with the arcs of a face mill or the straight lines of a planer."""
    angle = _grain_angle(dice)
    board = grid.posed(angle, dice.between(0.7, 1.6), (dice.between(-1, 1), dice.between(-1, 1)))
    if dice.chance(0.7):
        surface = ground_arcs(dice, board, dice.pick(tuple(METALS)))
    else:
        surface = metal(dice, grid, None, "ground", angle)
    return surface_scene(dice, grid, surface, angle, 0.3, "holes grooves print hairlines", 0.25)


@product("turned_disc", ("turned metal disc", "lathe turned face", "brake disc"), "texture", "metal", gray=0.4)
def turned_disc(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build concentric tool marks around a center in or outside the picture, with a sheen that follows them."""
    center = (dice.between(-1.3, 1.3), dice.between(-1.3, 1.3))
    wheel = grid.posed(0.0, dice.between(0.8, 1.8), center, dice.between(0.85, 1.2))
    scene = surface_scene(dice, grid, metal(dice, wheel, None, "turned"), 0.0, 0.0)
    sheen = np.cos(2 * wheel.theta + np.float32(dice.angle())) ** 2
    scene.color *= (0.8 + np.float32(dice.between(0.1, 0.7)) * sheen)[..., None]
    radius = wheel.radius
    for _ in range(dice.whole(0, 4)):
        step = dice.between(0.1, 1.5)
        width = dice.log_between(0.005, 0.05)
        scene.emboss(np.float32(dice.normal(0, 0.02)) * smoothstep(step - width, step + width, radius))
    if dice.chance(0.5):
        hole = dice.between(0.12, 0.4)
        scene.tint(coverage(radius - hole, wheel.pixel * 1.5), dice.between(0.02, 0.25))
    return scene


@product(
    "galvanized_sheet", ("galvanized sheet", "zinc coated sheet", "galvanized steel"), "texture", "metal", gray=0.3
)
def galvanized_sheet(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a sheet with zinc spangle."""
    return surface_scene(dice, grid, plating(dice, grid), 0.0, 0.2, "holes seam print hairlines", 0.2)


@product("painted_panel", ("painted metal panel", "lacquered panel", "painted sheet"), "texture", "metal", gray=0.15)
def painted_panel(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a lacquered sheet with pressed beads and holes."""
    scene = surface_scene(dice, grid, paint(dice, grid), 0.0, 0.3, "holes grooves print sticker seam", 0.2)
    if dice.chance(0.4):
        bead = grid.posed(dice.angle())
        width = dice.between(0.08, 0.4)
        scene.emboss(np.float32(dice.normal(0, 0.03)) * smoothstep(width, 0, np.abs(bead.y - dice.between(-0.6, 0.6))))
    return scene


@product(
    "weathered_steel",
    ("weathered steel plate", "old metal plate", "oxidised metal sheet"),
    "texture",
    "metal",
    gray=0.25,
)
def weathered_steel(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build an oxidized but sound plate: blotches all over are its normal state."""
    angle = _grain_angle(dice)
    scene = surface_scene(
        dice, grid, metal(dice, grid, dice.pick(("steel", "iron", "copper")), "oxidized"), angle, 0.3
    )
    if dice.chance(0.5):
        warm = smoothstep(-0.5, 1.2, noise(dice, grid.size, 0.5, 0.0, 1.6))
        scene.tint(warm * np.float32(dice.between(0.2, 0.8)), np.float32([1.25, 0.85, 0.6]))
    return add_details(scene, dice, _METAL_DETAILS, 0.2)


@product("steel_rail", ("rail surface", "railway rail", "rail head"), "texture", "metal", gray=0.6)
def steel_rail(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a shiny running band between dull shoulders, streaked lengthwise."""
    angle = dice.pick((0.0, math.pi / 2)) + dice.normal(0, 0.03)
    scene = surface_scene(dice, grid, metal(dice, grid, "steel", "ground", angle), angle, 0.0, "hairlines", 0.4)
    rail = grid.posed(angle)
    center, half, soft = dice.normal(0, 0.2), dice.between(0.35, 0.9), dice.between(0.02, 0.25)
    wobble = lookup(profile(dice, 128, 1.0, 0.05, 2.0), rail.x * 0.25) * np.float32(dice.between(0, 0.02))
    across = np.abs(rail.y - np.float32(center) + wobble) - np.float32(half)
    dull = smoothstep(-soft, soft, across)
    rusty = np.float32([1.0, dice.between(0.75, 1), dice.between(0.55, 1)]) * np.float32(dice.between(0.15, 0.6))
    clouds = 1 + 0.2 * noise(dice, grid.size, 0.2, 0.0, 1.2, angle, 4)
    scene.tint(dull, rusty)
    scene.color *= (1 + dull * (clouds - 1))[..., None]
    scene.metal *= 1 - 0.9 * dull
    scene.emboss(-np.float32(dice.between(0.05, 0.4)) * np.maximum(across, 0))
    return scene


@product("ball_screw", ("ball screw", "threaded spindle", "lead screw"), "texture", "metal", gray=0.3)
def ball_screw(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build ground helical tracks on a shaft, seen close: bright lands, round grooves, a film of lubricant."""
    angle = dice.normal(0.0, 0.18) + (math.pi / 2 if dice.chance(0.25) else 0.0)
    shaft = grid.posed(angle)
    pitch = dice.log_between(0.35, 1.1)
    bend = np.float32(dice.normal(0, 0.12))
    turn = (shaft.y + bend * shaft.x * shaft.x) / np.float32(pitch) + np.float32(dice.between(0, 1))
    phase = (turn % 1) * 2 - 1
    land = dice.between(0.2, 0.5)
    groove = np.clip((1 - np.abs(phase)) / np.float32(1 - land), 0, 1)
    depth = np.float32(pitch * dice.between(0.15, 0.4))
    surface = metal(dice, grid, dice.pick(("steel", "stainless steel", "bronze")), "ground", angle)
    scene = Scene(grid).fill(surface)
    scene.grain = angle
    scene.height += depth * (np.sqrt(np.maximum(1 - groove * groove, 0)) - 1)
    scene.metal += (0.9 - scene.metal) * np.float32(dice.between(0.3, 1.0))
    lanes = lookup(profile(dice, 512, 0.3, 0.002, 0.8), turn)
    scene.color *= (1 + np.float32(dice.between(0.03, 0.12)) * lanes)[..., None]
    edge = smoothstep(0.06, 0.0, np.abs(np.abs(phase) - np.float32(land)))
    scene.color *= (1 + np.float32(dice.normal(0, 0.4)) * edge).clip(0.3, 1.8)[..., None]
    # light falls off toward both ends of the shaft
    ends = np.cos(np.clip(shaft.x * np.float32(dice.between(0.6, 1.25)), -1.55, 1.55))
    scene.shade *= np.float32(dice.between(0.2, 0.6)) * (1 - ends) * -1 + 1
    if dice.chance(0.7):  # every land mirrors the lamps and the gaps between them
        land_share = 1 - smoothstep(0.15, 0.4, groove)
        for _ in range(dice.whole(1, 3)):
            middle, half, soft = dice.between(-0.8, 0.8), dice.between(0.05, 0.25), dice.log_between(0.01, 0.2)
            column = smoothstep(half + soft, half - soft, np.abs(shaft.x - np.float32(middle)))
            scene.color *= (1 + np.float32(dice.between(-0.8, 0.7)) * column * land_share)[..., None]
    if dice.chance(0.5):
        film = smoothstep(-0.2, 1.5, noise(dice, grid.size, 0.4, 0.01, 1.8, angle, 4)) * groove
        scene.tint(film * np.float32(dice.between(0.1, 0.5)), np.float32([0.85, 0.7, 0.4]))
    return add_details(scene, dice, "hairlines", 0.5)


@product("ferrite_tile", ("magnetic tile", "ferrite tile", "magnet segment"), "texture", "ceramic", gray=0.95)
def ferrite_tile(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a curved, ground magnet: fine vertical lines, uneven sheen, chamfered ends, chalk marks."""
    angle = math.pi / 2 + dice.normal(0, 0.02)
    lines = noise(dice, grid.size, 0.2, 0.0, dice.between(0.3, 1.0), angle, dice.log_between(8, 40))
    specks = noise(dice, grid.size, 0.02, 0.0, 0.3)
    tone = color(dice, saturation=(0.0, 0.04), value=(0.15, 0.5))
    shade = lines * np.float32(dice.between(0.4, 1)) + specks * np.float32(dice.between(0.1, 0.6))
    surface = Material(mottled(tone, shade, dice.between(0.04, 0.16)), scaled_relief(specks, 0.04), 0.1, 5.0, 0.25)
    scene = surface_scene(dice, grid, surface, angle, 0.6, "chalk print hairlines", 0.3)
    bow = dice.between(0.0, 0.35)
    scene.emboss(-np.float32(bow) * grid.x * grid.x)
    sheen = noise(dice, grid.size, 1.0, 0.1, 2.6, angle, dice.between(1, 4))
    scene.color *= (1 + np.float32(dice.between(0.05, 0.3)) * sheen).clip(0.3)[..., None]
    if dice.chance(0.6):
        chamfer = dice.between(0.75, 0.95)
        for side in (-1, 1):
            strip = smoothstep(chamfer, chamfer + 0.02, side * grid.x)
            scene.tint(strip, dice.between(0.5, 1.7))
    return scene


@product("tread_plate", ("tread plate", "checker plate", "diamond plate"), "texture", "metal", seen=False, gray=0.3)
def tread_plate(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a plate with raised lozenges in two directions."""
    count = dice.between(3.5, 8)
    board = grid.posed(dice.angle())
    u, v = board.x * np.float32(count / 2), board.y * np.float32(count / 2)
    column, row = np.floor(u), np.floor(v)
    u, v = u - column - 0.5, v - row - 0.5
    flip = ((column + row) % 2 * 2 - 1).astype(np.float32)
    along, across = (u + flip * v) * np.float32(0.707), (u - flip * v) * np.float32(0.707)
    lens = np.abs(along) / np.float32(0.42) + np.abs(across) / np.float32(dice.between(0.1, 0.18))
    bump = smoothstep(1.1, dice.between(0.3, 0.8), lens)
    scene = surface_scene(dice, grid, metal(dice, grid, None, dice.pick(("rolled", "cast", "brushed")), 0.0), 0.0, 0.1)
    scene.emboss(np.float32(0.35 / count) * bump)
    scene.color *= (1 + np.float32(dice.between(0.0, 0.3)) * (bump - 0.5))[..., None]
    return scene


@product(
    "perforated_sheet",
    ("perforated sheet", "perforated metal", "hole grid"),
    "texture",
    "metal",
    seen=False,
    gray=0.3,
    faults={"missing_part": "hole"},
)
def perforated_sheet(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a sheet with rows of holes and a dark or light background behind them."""
    count = dice.between(5, 14)
    board = grid.posed(dice.pick((0.0, dice.angle())))
    v = board.y * np.float32(count / 2) * np.float32(1.155)
    row = np.floor(v)
    u = board.x * np.float32(count / 2) + np.float32(0.5 * dice.chance(0.7)) * (row % 2)
    column = np.floor(u)
    radius = dice.between(0.22, 0.4)
    inside = np.sqrt((u - column - 0.5) ** 2 + ((v - row - 0.5) / np.float32(1.155)) ** 2)
    if fault:
        middle = (fault.dice.whole(-2, 1), fault.dice.whole(-2, 1))
        closed = (column == middle[0]) & (row == middle[1])
        if fault.strength > 0.5:
            closed |= (column == middle[0] + 1) & (row == middle[1])
        inside = np.where(closed, np.float32(1), inside)
    hole = coverage(inside - np.float32(radius), 2.4 * count / 2 / grid.size)
    surface = metal(dice, grid, None, dice.pick(("brushed", "polished", "rolled", "blasted")), 0.0)
    if dice.chance(0.3):
        surface = paint(dice, grid)
    scene = surface_scene(dice, grid, surface, 0.0, 0.1)
    rim = smoothstep(radius * 1.35, radius, inside)
    scene.emboss(-np.float32(0.12 / count) * rim)
    behind = color(dice, saturation=(0, 0.3), value=(0.0, 0.15)) if dice.chance(0.75) else np.float32([0.9, 0.9, 0.88])
    scene.under = Scene(grid).fill(Material(behind, -0.1, 0.0))
    support = 1 - hole
    scene.paint(hole, Material(behind, -0.02, 0.0), 0.0)
    scene.support *= support
    return scene


@product(
    "wire_mesh",
    ("wire mesh", "metal grid", "steel grid"),
    "texture",
    "metal",
    gray=0.5,
    faults={"broken_part": "wire", "bent_part": "wire", "missing_part": "wire"},
)
def wire_mesh(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build woven or welded wires over a plain ground."""
    count = dice.between(4, 11)
    board = grid.posed(dice.pick((0.0, math.pi / 4, dice.angle())))
    thick = dice.between(0.1, 0.24)
    woven = dice.chance(0.6)
    ground = color(dice, saturation=(0, 0.3), value=(0.02, 0.9))
    scene = Scene(grid).fill(Material(mottled(ground, noise(dice, grid.size, 1.0, 0.02, 2.0), 0.04), 0.0, 0.02))
    scene.under = scene.copy()
    surface = metal(dice, grid, None, dice.pick(("polished", "rolled", "brushed")), 0.0)
    which = dice.pick((0, 1))
    x, y = board.x, board.y
    if fault and fault.name == "bent_part":
        x, y = _bent_wires(fault, x, y, count)
    scene.support[...] = 0
    for axis in (which, 1 - which):
        across, along = ((y, x), (x, y))[axis]
        position = across * np.float32(count / 2)
        line = np.floor(position)
        offset = np.abs(position - line - 0.5)
        shape = offset - np.float32(thick)
        if fault and fault.name in ("broken_part", "missing_part") and axis == which:
            shape = np.where(_wire_gap(fault, line, along, count), np.float32(0.5), shape)
        round_top = np.sqrt(np.maximum(1 - (offset / np.float32(thick)) ** 2, 0)) * np.float32(2 * thick / count)
        wave = np.cos(along * np.float32(count / 2 * math.pi)) * ((line % 2) * 2 - 1) if woven else 0.0
        level = round_top + np.float32(thick / count) * wave * (1 if axis == which else -1)
        alpha = coverage(shape, count / 2 * 2.4 / grid.size)
        if woven:  # the upper wire hides the lower one
            alpha = alpha * (level.astype(np.float32) >= scene.height - 1e-3) if axis != which else alpha
        scene.cast_shadow(alpha, (0.01, 0.015), 0.01, 0.4)
        scene.remove_shadow(alpha)
        scene.paint(alpha.astype(np.float32), surface, level.astype(np.float32))
        scene.support = np.maximum(scene.support, alpha.astype(np.float32))
    return scene


def _bent_wires(fault: Fault, x: np.ndarray, y: np.ndarray, count: float) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates pushed aside around one place, which bends the wires there."""
    hit = (fault.dice.between(-0.5, 0.5), fault.dice.between(-0.5, 0.5))
    push = np.exp(-((x - hit[0]) ** 2 + (y - hit[1]) ** 2) / np.float32(0.06 + 0.1 * fault.strength))
    amount = np.float32(fault.dice.sign() * (0.35 + 0.5 * fault.strength) / count)
    return x + push * amount, y + push * amount * np.float32(fault.dice.between(-1, 1))


def _wire_gap(fault: Fault, line: np.ndarray, along: np.ndarray, count: float) -> np.ndarray:
    """Return the pixels, boolean `(size, size)`, where one wire is interrupted or, with "missing_part", absent."""
    target = fault.dice.whole(-int(count / 4), int(count / 4))
    start = fault.dice.between(-0.5, 0.4)
    if fault.name == "missing_part":
        return line == target
    return (line == target) & (along > start) & (along < start + 0.08 + 0.5 * fault.strength)


@product("welded_joint", ("weld seam", "welded joint", "welded plate"), "texture", "metal", seen=False, gray=0.3)
def welded_joint(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build two sheets joined by a rippled bead, with temper colors beside it."""
    angle = dice.pick((0.0, math.pi / 2)) + dice.normal(0, 0.08)
    scene = surface_scene(
        dice,
        grid,
        metal(dice, grid, dice.pick(("steel", "stainless steel", "aluminum")), "brushed", angle),
        angle,
        0.0,
    )
    seam = grid.posed(angle, 1.0, (dice.normal(0, 0.2), dice.normal(0, 0.2)))
    edge = lookup(profile(dice, 256, 0.3, 0.01, 1.5), seam.x * 0.4) * np.float32(0.015)
    across = np.abs(seam.y + edge)
    half = dice.between(0.1, 0.3)
    heat = smoothstep(half * dice.between(2, 3.5), half, across)
    scene.tint(heat * np.float32(dice.between(0.2, 0.8)), np.float32([0.75, 0.6, dice.between(0.4, 0.9)]))
    inside = np.clip(1 - across / np.float32(half), 0, 1)
    scale = seam.x + np.float32(dice.between(0.15, 0.4)) * (across / half) ** 2
    ripples = np.sin(scale * np.float32(2 * math.pi / dice.between(0.05, 0.13)) + edge * 40)
    bead = np.sqrt(inside) * np.float32(half * dice.between(0.25, 0.6))
    scene.emboss(bead + ripples * inside * np.float32(0.006))
    scene.color *= (1 + 0.15 * (inside > 0) * ripples)[..., None].astype(np.float32)
    return scene


@product("stamped_bracket", ("stamped metal bracket", "metal bracket", "stamped plate"), "texture", "metal", gray=0.3)
def stamped_bracket(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a blank with bends, slots and holes that fills most of the picture."""
    angle = _grain_angle(dice)
    surface = metal(dice, grid, None, dice.pick(("brushed", "rolled", "ground")), angle)
    scene = surface_scene(dice, grid, surface, angle, 0.8, "print hairlines", 0.25)
    behind = scene.under
    if behind is None:
        behind = Scene(grid).fill(Material(color(dice, saturation=(0, 0.2), value=(0.02, 0.3)), -0.05, 0.0))
    openings = []
    for _ in range(dice.whole(1, 4)):
        part = grid.posed(dice.pick((0.0, math.pi / 2)), 1.0, (dice.between(-0.65, 0.65), dice.between(-0.65, 0.65)))
        slot = dice.chance(0.4)
        shape = box(part, dice.between(0.1, 0.3), 0.07, 0.07) if slot else disc(part, dice.between(0.06, 0.2))
        openings.append(shape)
    scene.under = behind
    for shape in openings:
        scene.emboss(-0.015 * smoothstep(0.03, 0.0, shape))
        scene.uncover(coverage(shape, grid.pixel * 1.2))
    if dice.chance(0.5):
        fold = grid.posed(dice.pick((0.0, math.pi / 2)))
        across = fold.y - np.float32(dice.between(-0.7, 0.7))
        scene.emboss(np.float32(dice.normal(0, 0.15)) * gaussian_blur(np.maximum(across, 0), grid.size / 80))
    return scene


@product(
    "silicon_cell",
    ("solar cell", "silicon wafer", "photovoltaic cell"),
    "texture",
    "glass",
    gray=0.3,
    faults={"missing_part": "finger", "broken_part": "busbar"},
)
def silicon_cell(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a solar cell: crystals under fine fingers and broad busbars."""
    _, _, crystal = cells(dice, grid.posed(dice.angle()), dice.log_between(3, 12))
    hue = dice.pick((0.6, 0.0))
    tone = color(dice, (hue - 0.04, hue + 0.06), (0.0, 0.2) if hue == 0 else (0.3, 0.8), (0.12, 0.45))
    clouds = noise(dice, grid.size, 0.6, 0.01, 1.8)
    scene = Scene(grid).fill(
        Material(mottled(tone, (crystal - 0.5) * dice.between(0, 2.5) + 0.3 * clouds, 0.16), 0.0, 0.1, 20.0, 0.1)
    )
    board = grid.posed(dice.pick((0.0, math.pi / 2)) + dice.normal(0, 0.01))
    silver = Material(np.float32([0.75, 0.75, 0.74]) * np.float32(dice.between(0.6, 1.1)), 0.0, 0.2, 10.0, 0.3)
    count = dice.between(14, 34)
    position = board.y * np.float32(count / 2)
    finger = np.abs(position - np.round(position)) - np.float32(dice.between(0.04, 0.1))
    if fault and fault.name == "missing_part":
        line, start = fault.dice.whole(-int(count / 3), int(count / 3)), fault.dice.between(-0.9, 0.2)
        gone = (np.round(position) == line) & (board.x > start) & (board.x < start + 0.2 + 1.2 * fault.strength)
        finger = np.where(gone, np.float32(1), finger)
    scene.paint(coverage(finger, count / grid.size) * np.float32(dice.between(0.3, 0.9)), silver, None)
    bars, wide = dice.whole(1, 4), dice.between(0.02, 0.06)
    for number in range(bars):
        place = (number + 0.5) / bars * 2 - 1 + dice.normal(0, 0.01)
        bar = np.abs(board.x - np.float32(place)) - np.float32(wide)
        if fault and fault.name == "broken_part" and number == bars // 2:
            start = fault.dice.between(-0.8, 0.5)
            bar = np.where((board.y > start) & (board.y < start + 0.1 + 0.5 * fault.strength), np.float32(1), bar)
        scene.paint(coverage(bar, grid.pixel), silver, 0.002)
    return scene
