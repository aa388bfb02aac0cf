"""Surfaces of fabric, wood, stone, plastic and paper, and computed patterns."""

import math

import numpy as np

from ..fields import Dice, Grid, cells, gaussian_blur, lookup, noise, profile, smoothstep
from ..materials import (
    any_material,
    carpet,
    ceramic,
    color,
    concrete,
    fabric,
    foam,
    granite,
    leather,
    marble,
    mottled,
    paper,
    patchy,
    plastic,
    rubber,
    scaled_relief,
    sintered,
    wood,
)
from ..registry import Fault, product
from ..scene import Material, Scene
from ..shapes import box, coverage, disc
from ..staging import add_details, surface_scene


__all__: list[str] = []


@product("leather", ("leather", "leather hide", "leather upholstery"), "texture", "leather", gray=0.1)
def leather_hide(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build grained leather, sometimes with a stitched seam."""
    scene = surface_scene(dice, grid, leather(dice, grid), 0.0, 0.08)
    if dice.chance(0.25):
        seam = grid.posed(dice.angle(), 1.0, (dice.normal(0, 0.3), dice.normal(0, 0.3)))
        scene.emboss(-0.03 * smoothstep(0.06, 0.0, np.abs(seam.y)))
        pitch = dice.between(0.08, 0.16)
        stitch = np.abs(seam.y + np.float32(0.09)) - np.float32(0.014)
        gap = np.abs((seam.x / np.float32(pitch)) % 1 - 0.5) - 0.36
        thread = Material(color(dice, value=(0.3, 0.95), saturation=(0, 0.5)), 0.0, 0.1)
        scene.paint(coverage(np.maximum(stitch, gap * np.float32(pitch)), grid.pixel), thread, 0.01, add=True)
    return scene


@product("woven_fabric", ("woven fabric", "cloth", "textile"), "texture", "fabric", gray=0.2)
def woven_fabric(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a woven cloth, plain or striped."""
    angle = dice.pick((0.0, dice.angle()), (0.6, 0.4))
    board = grid.posed(angle, dice.between(0.8, 1.4))
    scene = surface_scene(dice, grid, fabric(dice, board), angle, 0.06, "seam", 0.08)
    if dice.chance(0.3):
        stripes = lookup(np.round(profile(dice, 64, 0.5, 0.05, 0.5)), board.y * 0.5)
        scene.tint(np.clip(np.abs(stripes), 0, 1), color(dice, value=(0.5, 1.2), saturation=(0, 0.5)))
    folds = noise(dice, grid.size, 1.0, 0.2, 3.0)
    scene.emboss(np.float32(dice.between(0, 0.02)) * folds)
    return scene


@product("denim", ("denim", "twill cloth", "jeans fabric"), "texture", "fabric", gray=0.1)
def denim(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build twill with a pale weft and uneven dye."""
    board = grid.posed(dice.normal(0, 0.2), dice.between(0.8, 1.3))
    scene = surface_scene(
        dice,
        grid,
        fabric(dice, board, "twill", dice.log_between(36, max(40, min(90, grid.size / 4)))),
        0.0,
        0.05,
        "seam",
        0.15,
    )
    wash = noise(dice, grid.size, 0.8, 0.02, 1.8, math.pi / 2, 2)
    scene.color *= (1 + np.float32(dice.between(0.02, 0.15)) * wash).clip(0.3)[..., None]
    return scene


@product("carpet", ("carpet", "felt", "carpet tile"), "texture", "fabric", gray=0.1)
def carpet_tile(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build pile or felt."""
    return surface_scene(dice, grid, carpet(dice, grid), 0.0, 0.06, "seam", 0.1)


@product("knit", ("knitted fabric", "knitwear", "jersey fabric"), "texture", "fabric", seen=False, gray=0.1)
def knit(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build columns of V-shaped stitches."""
    count = dice.log_between(12, 34)
    board = grid.posed(dice.normal(0, 0.15))
    x = board.x + np.float32(0.15 / count) * noise(dice, grid.size, 0.3, 0.02, 2.0)
    y = board.y + np.float32(0.15 / count) * noise(dice, grid.size, 0.3, 0.02, 2.0)
    u = x * np.float32(count / 2)
    column = np.floor(u)
    u = np.abs(u - column - 0.5) * 2
    v = y * np.float32(count / 2 * dice.between(1.0, 1.6)) - u * np.float32(dice.between(0.4, 0.8))
    row = np.floor(v)
    v = v - row - 0.5
    yarn = np.sqrt(np.maximum(1 - (v * 2) ** 2, 0)) * np.sqrt(np.maximum(1 - (u - 0.5) ** 2 * 3.4, 0))
    fuzz = noise(dice, grid.size, 0.02, 0.0, 0.3)
    tone = color(dice, saturation=(0, 0.7), value=(0.15, 0.85))
    if dice.chance(0.4):
        band = lookup(np.round(dice.uniform_array(16)), row / np.float32(dice.whole(24, 64)))[..., None]
        tone = tone * (1 - band) + band * color(dice, saturation=(0, 0.7), value=(0.15, 0.85))
    shade = (yarn - 0.6) * np.float32(dice.between(0.4, 1.0)) + fuzz * 0.08
    surface = Material(
        (np.float32(tone) * np.maximum(1 + shade, 0.05)[..., None]).astype(np.float32),
        scaled_relief(yarn.astype(np.float32) + 0.05 * fuzz, dice.between(0.2, 0.5)),
        0.02,
    )
    return surface_scene(dice, grid, surface, 0.0, 0.0)


@product("wood_board", ("wooden board", "wood panel", "plank"), "texture", "wood", gray=0.1)
def wood_board(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build one board, or several side by side."""
    angle = dice.pick((0.0, math.pi / 2)) + dice.normal(0, 0.05)
    scene = surface_scene(dice, grid, wood(dice, grid, angle), angle, 0.2, "holes print", 0.08)
    if dice.chance(0.3):
        board = grid.posed(angle)
        pitch, start = dice.between(0.4, 0.9), dice.between(0, 1)
        lane = board.y / np.float32(pitch) + np.float32(start)
        number = np.floor(lane).astype(np.int32)
        scene.color *= (0.8 + 0.4 * dice.uniform_array(64))[number % 64][..., None]
        joint = np.abs(lane - np.round(lane)) * np.float32(pitch)
        scene.tint(smoothstep(0.014, 0.004, joint), dice.between(0.15, 0.6))
    return scene


@product("concrete", ("concrete surface", "concrete wall", "cement slab"), "texture", "stone", gray=0.25)
def concrete_wall(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build fair-faced concrete or plaster."""
    return surface_scene(dice, grid, concrete(dice, grid), 0.0, 0.08, "seam grooves holes", 0.12)


@product("asphalt", ("asphalt road", "road surface", "pavement"), "texture", "stone", gray=0.3)
def asphalt(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build stones in bitumen, sometimes with a road marking."""
    count = dice.log_between(25, 70)
    near, _, tone = cells(dice, grid, count)
    stone = smoothstep(0.55, 0.2, near)
    sand = noise(dice, grid.size, 0.03, 0.0, 0.4)
    clouds = noise(dice, grid.size, 0.7, 0.03, 1.8)
    base = color(dice, (0.05, 0.65), (0.0, 0.1), (0.2, 0.55))
    shade = (
        stone * (tone - 0.4) * np.float32(dice.between(0.3, 1.4))
        + sand * 0.3
        + clouds * np.float32(dice.between(0.1, 0.5))
    )
    surface = Material(
        mottled(base, shade, dice.between(0.15, 0.45)), scaled_relief(stone + 0.3 * sand, dice.between(0.1, 0.5)), 0.05
    )
    scene = surface_scene(dice, grid, surface)
    if dice.chance(0.2):
        lane = grid.posed(dice.angle(), 1.0, (dice.normal(0, 0.4), dice.normal(0, 0.4)))
        worn = smoothstep(-1.5, -0.3, noise(dice, grid.size, 0.1, 0.0, 0.8))
        alpha = coverage(np.abs(lane.y) - np.float32(dice.between(0.08, 0.25)), grid.pixel * 2) * worn
        scene.paint(alpha, Material(np.float32([0.8, 0.8, 0.76]), surface.height, 0.03), None)
    return scene


@product("granite", ("granite slab", "stone slab", "polished stone"), "texture", "stone", gray=0.1)
def granite_slab(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build speckled polished stone."""
    return surface_scene(dice, grid, granite(dice, grid), 0.0, 0.12, "seam grooves", 0.1)


@product("marble", ("marble tile", "marble slab", "marble"), "texture", "stone", seen=False, gray=0.1)
def marble_slab(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build veined stone: dark branching lines are its normal state."""
    return surface_scene(dice, grid, marble(dice, grid), 0.0, 0.15, "seam", 0.1)


@product("ceramic_tile", ("ceramic tile", "glazed tile", "tile"), "texture", "ceramic", gray=0.15)
def ceramic_tile(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build one or many glazed tiles with joints, plain or patterned."""
    glaze = ceramic(dice, grid)
    if dice.chance(0.3):
        glaze.color = glaze.color * 0.55 + 0.45 * any_material(dice, grid).color
    scene = surface_scene(dice, grid, glaze)
    if dice.chance(0.55):
        board = grid.posed(dice.normal(0, 0.05), 1.0, (dice.between(-0.5, 0.5), dice.between(-0.5, 0.5)))
        pitch = dice.log_between(0.35, 1.6)
        offset = np.floor(board.y / np.float32(pitch)) * np.float32(dice.pick((0.0, 0.5)))
        u, v = board.x / np.float32(pitch) + offset, board.y / np.float32(pitch)
        tile_tone = dice.generator.random((32, 32), dtype=np.float32)
        scene.color *= (1 + 0.16 * (tile_tone[np.floor(u).astype(int) % 32, np.floor(v).astype(int) % 32] - 0.5))[
            ..., None
        ]
        joint = np.minimum(np.abs(u - np.round(u)), np.abs(v - np.round(v))) * np.float32(pitch)
        half = dice.between(0.012, 0.035)
        grout = Material(color(dice, (0, 1), (0, 0.1), (0.2, 0.8)), 0.0, 0.02)
        scene.emboss(-0.03 * smoothstep(half * 2.2, half, joint))
        scene.paint(coverage(joint - np.float32(half), grid.pixel * 1.5), grout, None)
        scene.height -= 0.01 * coverage(joint - np.float32(half), grid.pixel * 1.5)
    if dice.chance(0.25):
        motif = grid.posed(dice.angle(), dice.between(0.4, 0.9))
        rings = np.sin(motif.radius * np.float32(dice.between(6, 20))) + np.sin(motif.theta * dice.whole(4, 12))
        scene.tint(smoothstep(0.8, 1.0, rings), color(dice, value=(0.5, 1.0)))
    return scene


@product(
    "plastic_housing", ("plastic housing", "plastic cover", "moulded plastic part"), "texture", "plastic", gray=0.2
)
def plastic_housing(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build an injection-molded wall with ribs, holes and prints."""
    scene = surface_scene(dice, grid, plastic(dice, grid), 0.0, 0.35, "holes grooves print sticker seam", 0.25)
    if dice.chance(0.3):
        rib = grid.posed(dice.pick((0.0, math.pi / 2)))
        wave = np.sin(rib.y * np.float32(math.pi * dice.between(3, 14)))
        scene.emboss(np.float32(dice.between(0.005, 0.02)) * smoothstep(-0.3, 0.3, wave))
    return scene


@product("carbon_block", ("carbon block", "sintered part", "commutator surface"), "texture", "carbon", gray=0.9)
def carbon_block(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a fine-grained speckled block, sometimes with a bright border or a slot."""
    scene = surface_scene(dice, grid, sintered(dice, grid), 0.0, 0.25, "grooves", 0.1)
    scene.grain = math.pi / 2
    if dice.chance(0.35):  # overexposed copper along one side
        side, scallop = dice.sign(), lookup(profile(dice, 64, 0.4, 0.05, 1.0), grid.y * 0.5)
        edge = side * grid.x - np.float32(dice.between(0.86, 0.98)) - scallop * np.float32(dice.between(0.0, 0.03))
        scene.paint(coverage(-edge, 0.02), Material(np.float32([1.0, 1.0, 0.98]), 0.0, 0.3), None)
    return scene


@product("rubber_sheet", ("rubber sheet", "rubber mat", "seal surface"), "texture", "rubber", seen=False, gray=0.3)
def rubber_sheet(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build flat, ribbed or studded rubber."""
    scene = surface_scene(dice, grid, rubber(dice, grid), 0.0, 0.2, "print seam", 0.15)
    style = dice.pick(("flat", "ribs", "studs"))
    count = dice.between(5, 16)
    board = grid.posed(dice.angle())
    u, v = board.x * np.float32(count / 2), board.y * np.float32(count / 2)
    if style == "ribs":
        scene.emboss(np.float32(0.25 / count) * smoothstep(-0.4, 0.4, np.sin(u * 2 * math.pi)))
    elif style == "studs":
        around = np.sqrt((u - np.round(u)) ** 2 + (v - np.round(v)) ** 2)
        scene.emboss(np.float32(0.25 / count) * smoothstep(0.36, 0.24, around))
    return scene


@product("cardboard", ("cardboard", "corrugated board", "paper sheet"), "texture", "paper", seen=False, gray=0.1)
def cardboard(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build paper or board, printed or blank, with the flutes showing through."""
    scene = surface_scene(dice, grid, paper(dice, grid), 0.0, 0.2, "print sticker seam grooves", 0.2)
    if dice.chance(0.6):
        board = grid.posed(dice.pick((0.0, math.pi / 2)) + dice.normal(0, 0.03))
        flutes = np.sin(board.y * np.float32(math.pi * dice.between(10, 30)))
        scene.emboss(np.float32(dice.between(0.0005, 0.003)) * flutes)
    return scene


@product("foam_sponge", ("foam block", "sponge", "foam rubber"), "texture", "foam", seen=False, gray=0.1)
def foam_sponge(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build foam: bubbles and holes everywhere are its normal state."""
    return surface_scene(dice, grid, foam(dice, grid), 0.0, 0.15)


@product("glass_pane", ("glass pane", "display glass", "phone screen"), "texture", "glass", gray=0.2)
def glass_pane(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build dark or clear glass with soft reflections, prints, and sometimes visible pixels."""
    tone = color(dice, saturation=(0.0, 0.4), value=(0.02, 0.5))
    haze = noise(dice, grid.size, 1.0, 0.1, 2.6)
    surface = Material(
        mottled(tone, haze, dice.between(0.02, 0.15)), 0.0, dice.between(0.0, 0.3), 80.0, dice.between(0, 0.5)
    )
    scene = surface_scene(dice, grid, surface, 0.0, 0.35, "print hairlines", 0.15)
    for _ in range(dice.whole(0, 3)):  # reflections of windows and lamps
        spot = grid.posed(dice.angle(), dice.between(0.2, 0.9), (dice.between(-1, 1), dice.between(-1, 1)))
        shape = box(spot, 1, dice.between(0.2, 1), 0.1)
        scene.color += (np.float32(dice.between(0.02, 0.2)) * coverage(shape, dice.between(0.02, 0.5)))[..., None]
    if dice.chance(0.3):
        pitch = dice.between(4, 8) / grid.size * 2
        dots = np.sin(grid.x * np.float32(2 * math.pi / pitch)) * np.sin(grid.y * np.float32(2 * math.pi / pitch))
        scene.color *= (1 + np.float32(dice.between(0.02, 0.12)) * dots)[..., None]
    return scene


@product("streak_pattern", ("striped texture", "streaked surface", "textured surface"), "texture", "carbon", gray=0.9)
def streak_pattern(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build a statistical texture: strong anisotropic noise of high contrast."""
    angle = dice.angle() if dice.chance(0.5) else math.pi / 2 + dice.normal(0, 0.15)
    field = noise(
        dice, grid.size, dice.log_between(0.03, 0.2), 0.0, dice.between(0.2, 1.6), angle, dice.log_between(2, 14)
    )
    second = noise(
        dice, grid.size, dice.log_between(0.05, 0.4), 0.0, dice.between(0.5, 2.0), angle + dice.normal(0, 0.5), 3
    )
    shade = patchy(dice, field) + second * np.float32(dice.between(0, 0.8))
    tone = color(dice, saturation=(0.0, 0.15), value=(0.25, 0.65))
    return surface_scene(
        dice,
        grid,
        Material(mottled(tone, shade, dice.between(0.06, 0.35)), scaled_relief(shade, dice.between(0, 0.1)), 0.02),
        angle,
    )


@product("moire_pattern", ("patterned texture", "moire pattern", "textured pattern"), "texture", "carbon", gray=0.9)
def moire_pattern(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build interfering circles and gratings."""
    field = np.zeros_like(grid.x)
    for _ in range(dice.whole(2, 4)):
        wheel = grid.posed(dice.angle(), dice.between(0.7, 1.4), (dice.between(-1.2, 1.2), dice.between(-1.2, 1.2)))
        base = wheel.radius if dice.chance(0.6) else wheel.x
        field = field + np.sin(
            base * np.float32(dice.log_between(20, max(24, 0.35 * grid.size))) + np.float32(dice.angle())
        )
    fine = noise(dice, grid.size, 0.02, 0.0, 0.3)
    slow = noise(dice, grid.size, 1.0, 0.1, 2.4)
    tone = color(dice, saturation=(0.0, 0.1), value=(0.15, 0.6))
    shade = field * 0.6 + fine * np.float32(dice.between(0.1, 0.8)) + slow * np.float32(dice.between(0, 0.8))
    return surface_scene(dice, grid, Material(mottled(tone, shade, dice.between(0.06, 0.22)), 0.0, 0.02))


@product("radial_pattern", ("radial texture", "star pattern", "radially wrinkled sheet"), "texture", "paper", gray=0.8)
def radial_pattern(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build creases that run to one point."""
    wheel = grid.posed(dice.angle(), 1.0, (dice.normal(0, 0.15), dice.normal(0, 0.15)), dice.between(0.9, 1.1))
    bend = noise(dice, grid.size, 0.5, 0.05, 2.2) * np.float32(dice.between(0.001, 0.006))
    turn = wheel.theta / np.float32(2 * math.pi) + bend
    creases = lookup(profile(dice, 512, 0.2, 0.004, 0.8), turn) + 0.6 * lookup(
        profile(dice, 512, 0.1, 0.002, 0.4), turn * 2
    )
    depth = dice.between(0.003, 0.012)
    plain = noise(dice, grid.size, 0.05, 0.0, 0.8)
    fade = 1 + np.float32(dice.between(0, 2)) * np.exp(-wheel.radius * np.float32(dice.between(3, 9)))
    surface = Material(color(dice, saturation=(0.0, 0.2), value=(0.4, 0.85)), np.float32(depth) * creases * fade, 0.03)
    scene = surface_scene(dice, grid, surface)
    scene.emboss(scaled_relief(plain, 0.05))
    hub = dice.between(0.03, 0.12)
    scene.tint(smoothstep(hub, 0.3 * hub, wheel.radius + 0.15 * hub * creases), dice.between(0.2, 0.8))
    return scene


@product("ribbed_strip", ("ribbed surface", "corrugated strip", "lined texture"), "texture", "plastic", gray=0.5)
def ribbed_strip(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build parallel profiles: extrusions, heat sinks, decking."""
    angle = dice.pick((0.0, math.pi / 2)) + dice.normal(0, 0.1)
    board = grid.posed(angle)
    surface = any_material(dice, grid)
    scene = surface_scene(dice, grid, surface, angle, 0.1)
    count = dice.log_between(4, 30)
    shape = profile(dice, 64, 1.0, 0.15, 1.2)
    ribs = lookup(shape, board.y * np.float32(count / 2))
    scene.emboss(np.float32(dice.between(0.05, 0.2) / count) * ribs)
    lanes = lookup(dice.uniform_array(64), np.floor(board.y * np.float32(count / 2)) / 64)
    scene.color *= (1 + np.float32(dice.between(0, 0.15)) * (lanes - 0.5))[..., None]
    return scene


@product(
    "hex_tiling",
    ("honeycomb panel", "hexagonal pattern", "patterned panel"),
    "texture",
    "plastic",
    seen=False,
    gray=0.3,
)
def hex_tiling(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build regular hexagonal cells with thin walls."""
    board = grid.posed(dice.angle())
    count = dice.log_between(5, 18)
    u, v = board.x * np.float32(count / 2), board.y * np.float32(count / 2)
    high = np.float32(math.sqrt(3))
    # two rectangular lattices form a hexagonal one; a pixel belongs to the nearer center
    first = (u - np.round(u), v - np.round(v / high) * high)
    second = (u - np.floor(u) - 0.5, v - (np.floor(v / high) + 0.5) * high)
    nearer = first[0] ** 2 + first[1] ** 2 < second[0] ** 2 + second[1] ** 2
    x = np.abs(np.where(nearer, first[0], second[0]))
    y = np.abs(np.where(nearer, first[1], second[1]))
    inside = 0.5 - np.maximum(x, x * 0.5 + y * high * 0.5)
    wall = smoothstep(dice.between(0.06, 0.18), 0.02, inside)
    scene = surface_scene(dice, grid, any_material(dice, grid))
    scene.tint(1 - wall, dice.between(0.4, 1.0))
    scene.emboss(gaussian_blur(wall, 0.8) * np.float32(dice.between(0.01, 0.04)))
    return add_details(scene, dice, "seam", 0.1)


@product(
    "button_mat",
    ("button array", "studded mat", "dotted surface"),
    "texture",
    "rubber",
    seen=False,
    gray=0.3,
    faults={"missing_part": "button", "misplaced_part": "button"},
)
def button_mat(dice: Dice, grid: Grid, fault: Fault | None) -> Scene:
    """Build rows of equal buttons."""
    scene = surface_scene(dice, grid, any_material(dice, grid))
    count = dice.whole(3, 6)
    radius = dice.between(0.22, 0.36) * 2 / count
    material = any_material(dice, grid)
    square = dice.chance(0.4)
    target = fault.dice.whole(0, count * count - 1) if fault else -1
    for number in range(count * count):
        x = (number % count + 0.5) / count * 2 - 1
        y = (number // count + 0.5) / count * 2 - 1
        if number == target:
            if fault.name == "missing_part":
                continue
            x += fault.dice.sign() * radius * (0.25 + 0.5 * fault.strength)
            y += fault.dice.normal(0, radius * 0.3)
        part = grid.posed(0.0, radius, (x, y))
        shape = box(part, 1, 1, 0.2) if square else disc(part, 1)
        alpha = coverage(shape, part.pixel * 1.2)
        scene.cast_shadow(alpha, (0.01, 0.015), 0.015, 0.3)
        scene.remove_shadow(alpha)
        scene.paint(alpha, material, np.float32(radius * 0.3) * smoothstep(0.0, -0.5, shape))
    return scene
