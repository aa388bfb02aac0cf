"""Random draws, coordinates and noise."""

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vcp_clip_hf.generator.fields import (
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


SIZE = 64


def test_dice_streams_are_independent_and_repeatable():
    first, second, other = Dice((1, 2)), Dice((1, 2)), Dice((1, 2), stream=1)
    draws = [first.between(0, 1) for _ in range(5)]
    assert draws == [second.between(0, 1) for _ in range(5)] != [other.between(0, 1) for _ in range(5)]
    assert type(first.whole(1, 3)) is int and type(first.normal()) is float and type(first.between(0, 1)) is float


def test_a_fork_costs_one_draw_however_it_is_used():
    first, second = Dice(5), Dice(5)
    first.fork()
    second.fork().normal_array(10, 10)
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


def test_noise_is_elongated_along_its_grain():
    field = noise(Dice(2), 128, coarsest=0.2, beta=1.0, angle=math.pi / 2, stretch=10)
    assert np.abs(np.diff(field, axis=0)).mean() * 2 < np.abs(np.diff(field, axis=1)).mean()


def test_profile_and_lookup_are_periodic():
    table = profile(Dice(3), 64)
    assert table.std() == pytest.approx(1, abs=1e-3)
    where = np.linspace(0, 1, 50, dtype=np.float32)
    np.testing.assert_allclose(lookup(table, where), lookup(table, where + 3), atol=1e-4)
    np.testing.assert_allclose(lookup(table, np.arange(64, dtype=np.float32) / 64), table, atol=1e-4)


def test_cells_give_distances_to_the_nearest_seeds():
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


def test_wide_blurs_are_close_to_exact():
    field = noise(Dice(1), 128, beta=1.5)
    inside = np.s_[18:-18, 18:-18]  # at the border, the smaller copy continues whole blocks of pixels
    exact = gaussian_filter(field, 9)[inside]
    assert np.abs(gaussian_blur(field, 9.0)[inside] - exact).max() < 0.15 * np.abs(exact).max()


def test_sample_and_zoomed_interpolate():
    grid = Grid(SIZE)
    np.testing.assert_allclose(sample(grid.x, grid.x, grid.y)[:, 1:-1], grid.x[:, 1:-1], atol=2e-3)
    half = zoomed(grid.x, (0.0, 0.0, 0.5, 1.0))
    assert half.shape == (SIZE, SIZE) and half.min() < -0.95 and abs(half.max()) < 0.05


def test_posed_grids_give_position_angle_and_scale():
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


def test_smoothstep_falls_with_swapped_limits():
    values = np.linspace(-1, 2, 7)
    np.testing.assert_allclose(smoothstep(0, 1, values), 1 - smoothstep(1, 0, values))
