"""Noise, coordinates, outlines and light against what they say they are."""

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vcp_clip_hf.data.synthetic import shapes
from vcp_clip_hf.data.synthetic.fields import (
    Dice,
    Grid,
    cells,
    gaussian_blur,
    lookup,
    noise,
    profile,
    sample,
    smoothstep,
    zoomed,
)
from vcp_clip_hf.data.synthetic.scene import Camera, Light, Material, Scene


SIZE = 64


def test_dice_streams_are_independent_and_repeatable():
    first, second, other = Dice((1, 2)), Dice((1, 2)), Dice((1, 2), stream=1)
    draws = [first.between(0, 1) for _ in range(5)]
    assert draws == [second.between(0, 1) for _ in range(5)] != [other.between(0, 1) for _ in range(5)]
    assert type(first.whole(1, 3)) is int and type(first.normal()) is float and type(first.between(0, 1)) is float


def test_a_fork_costs_one_draw_whatever_is_done_with_it():
    first, second = Dice(5), Dice(5)
    first.fork()
    second.fork().gauss(10, 10)
    assert first.between(0, 1) == second.between(0, 1)


def test_pick_follows_its_weights():
    dice = Dice(1)
    counts = np.bincount([dice.pick((0, 1, 2), (0.7, 0.2, 0.1)) for _ in range(2000)]) / 2000
    assert counts == pytest.approx([0.7, 0.2, 0.1], abs=0.04)


@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_noise_has_unit_deviation_and_its_spectrum(beta):
    field = noise(Dice(1), 256, beta=beta)
    assert field.dtype == np.float32 and abs(field.mean()) < 1e-3 and field.std() == pytest.approx(1, abs=1e-3)
    power = np.abs(np.fft.rfft2(field)) ** 2
    fy, fx = np.meshgrid(np.fft.fftfreq(256) * 256, np.arange(129), indexing="ij")
    frequency = np.hypot(fx, fy)
    low, high = ((frequency > f) & (frequency < 1.3 * f) for f in (8, 64))
    measured = math.log(power[low].mean() / power[high].mean()) / math.log(8)
    assert measured == pytest.approx(beta, abs=0.15)


def test_noise_is_drawn_out_along_its_grain():
    field = noise(Dice(2), 128, coarsest=0.2, beta=1.0, angle=math.pi / 2, stretch=10)
    assert np.abs(np.diff(field, axis=0)).mean() * 2 < np.abs(np.diff(field, axis=1)).mean()


def test_profile_and_lookup_are_periodic():
    table = profile(Dice(3), 64)
    assert table.std() == pytest.approx(1, abs=1e-3)
    where = np.linspace(0, 1, 50, dtype=np.float32)
    np.testing.assert_allclose(lookup(table, where), lookup(table, where + 3), atol=1e-4)
    np.testing.assert_allclose(lookup(table, np.arange(64, dtype=np.float32) / 64), table, atol=1e-4)


def test_cells_are_nearest_distances():
    near, far, own = cells(Dice(4), Grid(SIZE), 8)
    assert (near <= far).all() and near.min() < 0.2 and far.max() < 2.5
    assert len(np.unique(own)) >= 50
    # a distance grows by at most one pixel per pixel
    assert np.abs(np.diff(near, axis=1)).max() <= 8 / SIZE + 1e-4


@pytest.mark.parametrize("sigma", [0.5, 1.7, 3.9])
def test_gaussian_blur_agrees_with_scipy(sigma):
    field = np.random.default_rng(0).normal(size=(40, 52)).astype(np.float32)
    np.testing.assert_allclose(gaussian_blur(field, sigma), gaussian_filter(field, sigma, mode="nearest"), atol=6e-3)
    color = np.stack([field, field * 2], axis=-1)
    np.testing.assert_allclose(gaussian_blur(color, sigma)[..., 1], 2 * gaussian_blur(field, sigma), atol=1e-5)


def test_wide_blurs_run_small_and_stay_close():
    field = noise(Dice(1), 128, beta=1.5)
    inside = np.s_[18:-18, 18:-18]  # at the border the small copy continues blocks, not pixels
    exact = gaussian_filter(field, 9)[inside]
    assert np.abs(gaussian_blur(field, 9.0)[inside] - exact).max() < 0.15 * np.abs(exact).max()


def test_sample_and_zoomed_read_in_between():
    grid = Grid(SIZE)
    np.testing.assert_allclose(sample(grid.x, grid.x, grid.y)[:, 1:-1], grid.x[:, 1:-1], atol=2e-3)
    half = zoomed(grid.x, (0.0, 0.0, 0.5, 1.0))
    assert half.shape == (SIZE, SIZE) and half.min() < -0.95 and abs(half.max()) < 0.05


def test_grids_know_where_they_are():
    grid = Grid(SIZE)
    posed = grid.posed(0.7, 0.6, (0.2, -0.1), 1.2)
    for point in ((0.0, 0.0), (0.5, -0.3)):
        x, y = posed.position(*point)
        column, row = round((x + 1) * SIZE / 2 - 0.5), round((y + 1) * SIZE / 2 - 0.5)
        assert (posed.x[row, column], posed.y[row, column]) == pytest.approx(point, abs=0.08)
    assert posed.position(0, 0) == pytest.approx((0.2, -0.1), abs=1e-5)
    assert grid.posed(0.7).angle == pytest.approx(0.7, abs=1e-4) and grid.posed(0.0, 0.5).scale == pytest.approx(0.5)
    local = posed.local(0.3, 0.1, 0.4)
    assert local.position(0, 0) == pytest.approx(posed.position(0.3, 0.1), abs=1e-4)


def test_outlines_are_distances():
    grid = Grid(256)
    for distance, area in (
        (shapes.disc(grid, 0.5), math.pi * 0.25),
        (shapes.box(grid, 0.5, 0.25), 0.5),
        (shapes.ring(grid, 0.5, 0.2), 2 * math.pi * 0.5 * 0.2),
        (shapes.polygon(grid, 6, 0.5), 6 * 0.25 * math.tan(math.pi / 6)),
        (shapes.segment(grid, (-0.4, 0.0), (0.4, 0.0), 0.2), 0.16 + math.pi * 0.01),
    ):
        assert shapes.cover(distance, grid.pixel).mean() * 4 == pytest.approx(area, rel=0.01)
    teeth = shapes.gear(grid, 12, 0.8, 0.2, keep=np.r_[0.0, np.ones(11)])
    whole = shapes.gear(grid, 12, 0.8, 0.2)
    lost = (whole < 0) & (teeth >= 0)
    assert lost.any() and not ((whole >= 0) & (teeth < 0)).any()
    assert grid.radius[lost].min() > 0.58 and np.abs(grid.theta[lost]).max() < 0.3


@pytest.mark.parametrize("width", [0.004, 0.02, 0.1])
def test_strokes_are_as_wide_as_asked(width):
    size = 256
    path = np.float32([(-0.5, 0.1), (0.0, 0.1), (0.5, 0.1)])
    for widths in ([width], [np.float32([width, width * 1.001, width])]):
        line = shapes.strokes(size, [path], widths)
        assert line.min() >= 0 and line.max() <= 1
        assert line[:, 128].sum() == pytest.approx(width * size / 2, rel=0.2, abs=0.15)
        assert line[:, 20].max() == 0
    assert not shapes.strokes(size, [], []).any()
    assert not shapes.strokes(size, [path + 5], [width]).any()


def test_every_letter_is_drawn():
    for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-+./:":
        marks = shapes.lettering(SIZE, letter, (0.0, 0.0), 1.0)
        assert 2 < marks.sum() < SIZE * SIZE / 3, letter
    assert set(shapes.random_text(Dice(1), 40, 40)) <= set(shapes._GLYPHS)


def test_blobs_are_about_as_large_as_asked():
    areas = [shapes.cover(shapes.blob(Dice(i), Grid(SIZE), 0.5, 0.2, 0.05), 0.02).mean() * 4 for i in range(20)]
    assert np.median(areas) == pytest.approx(math.pi * 0.25, rel=0.25)


def flat_light(direction=(0.6, 0.0, 0.8)) -> Light:
    ones = np.ones((SIZE, SIZE), np.float32)
    return Light(direction, 0.4, np.ones(3, np.float32), np.full(8, 0.5, np.float32), (1.0, 0.0), ones)


def test_light_brightens_the_side_that_faces_it():
    grid = Grid(SIZE)
    dome = Material(np.float32([0.5, 0.5, 0.5]), np.sqrt(np.maximum(0.5 - grid.radius**2, 0)), 0.0, 5.0)
    picture = flat_light().render(Scene(grid).fill(dome)).mean(axis=2)
    assert picture[32, 44] > picture[32, 20] * 1.2
    flat = flat_light().render(Scene(grid).fill(Material(np.float32([0.5, 0.5, 0.5]), 0.0, 0.0, 5.0)))
    assert flat == pytest.approx(0.5, abs=1e-4)


def test_layers_cover_and_uncover():
    scene = Scene(Grid(SIZE)).fill(Material(np.float32([0.2, 0.2, 0.2])))
    scene.under = scene.copy()
    patch = shapes.cover(shapes.disc(scene.grid, 0.5), 0.01)
    scene.paint(patch, Material(np.float32([0.9, 0.1, 0.1]), 0.0, 0.3), 0.1)
    assert scene.color[32, 32] == pytest.approx([0.9, 0.1, 0.1]) and scene.height[32, 32] == pytest.approx(0.1)
    kept = scene.copy()
    scene.uncover(patch)
    assert scene.color[32, 32] == pytest.approx([0.2] * 3) and scene.support[32, 32] == pytest.approx(0)
    assert kept.color[32, 32] == pytest.approx([0.9, 0.1, 0.1]) and kept.support[32, 32] == 1


def test_camera_records_the_same_noise_twice_and_shows_its_window():
    camera = Camera.draw(Dice(3), SIZE, 0.0, 1.0)
    camera.grain, camera.quality, camera.blur = 0.02, None, 0.0
    gray = np.full((SIZE, SIZE, 3), 0.5, np.float32)
    first, second = np.asarray(camera.record(gray)), np.asarray(camera.record(gray))
    assert np.array_equal(first, second) and 2 < first.astype(float).std() < 10
    shown = camera.frame(Grid(SIZE).x)
    left, _, right, _ = camera.window
    assert shown[0, 0] == pytest.approx(2 * left - 1, abs=0.05) and shown[0, -1] == pytest.approx(
        2 * right - 1, abs=0.05
    )


def test_smoothstep_turns_round():
    values = np.linspace(-1, 2, 7)
    np.testing.assert_allclose(smoothstep(0, 1, values), 1 - smoothstep(1, 0, values))
