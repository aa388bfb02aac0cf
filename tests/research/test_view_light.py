"""Turn, light and camera of a view: the same turn for picture and mask, and light that stays in range."""

from dataclasses import replace

import numpy as np
import pytest

from examples.research.view_light import ViewLight


SIZE = 32
PLAIN = ViewLight(SIZE, 0, False, False, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, None)


def noisy(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(40, 200, (SIZE, SIZE, 3), dtype=np.uint8)


def drawn(count: int = 60) -> list[ViewLight]:
    return [ViewLight.draw(SIZE, np.random.default_rng(seed)) for seed in range(count)]


def test_light_that_changes_nothing():
    assert np.array_equal(PLAIN.picture(noisy()), noisy().astype(np.float32))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turn", range(4))
def test_pictures_and_masks_are_turned_alike(turn, flip):
    light, mask = replace(PLAIN, turn=turn, flip=flip), noisy()[..., 0] > 150
    picture = np.where(mask[..., None], np.uint8(255), np.uint8([0, 0, 0]))
    assert np.array_equal(light.picture(picture)[..., 0] > 128, light.turned(mask))
    assert np.array_equal(light.turned(mask), mask) == (turn == 0 and not flip)


def test_a_drawn_light_shows_a_mark_where_the_turned_mask_has_it():
    """Through blur, noise, one-sided light and compression: the mark is the brightest part of every picture."""
    mask = np.zeros((SIZE, SIZE), bool)
    mask[2:14, 18:30] = True
    picture = np.where(mask[..., None], np.uint8(210), np.full(3, 70, np.uint8))
    for light in drawn():
        shown, turned = light.picture(picture).mean(axis=2), light.turned(mask)
        assert shown[turned].mean() > shown[~turned].mean() + 40


def test_draws_depend_on_the_seed_alone_and_have_every_variation():
    lights = drawn()
    again = ViewLight.draw(SIZE, np.random.default_rng(7))
    assert np.array_equal(again.picture(noisy()), lights[7].picture(noisy()))
    assert {(light.turn, light.flip) for light in lights} == {(turn, flip) for turn in range(4) for flip in (0, 1)}
    for varied in (
        lambda light: light.gray,
        lambda light: light.gamma != 1,
        lambda light: light.blur > 0,
        lambda light: isinstance(light.slope, np.ndarray),
        lambda light: isinstance(light.noise, np.ndarray),
        lambda light: light.quality is not None,
    ):
        assert 0.1 < np.mean([varied(light) for light in lights]) < 0.6, "some views, not all"


def test_pictures_stay_in_range_at_the_requested_size():
    crop = np.random.default_rng(0).integers(0, 256, (57, 57, 3), dtype=np.uint8)
    for light in drawn(20):
        picture = light.picture(crop)
        assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.float32
        assert picture.min() >= 0 and picture.max() <= 255
        assert light.turned(np.zeros((57, 57), bool)).shape == (57, 57)


def test_each_part_of_the_light():
    picture = noisy()
    plain = PLAIN.picture(picture)
    gray = replace(PLAIN, gray=True).picture(picture)
    assert np.ptp(gray, axis=2).max() == 0 and np.ptp(plain, axis=2).max() > 50
    assert replace(PLAIN, contrast=0.5).picture(picture).std() == pytest.approx(plain.std() / 2, rel=1e-3)
    np.testing.assert_allclose(replace(PLAIN, brightness=20.0).picture(picture), plain + 20, atol=1e-4)
    np.testing.assert_allclose(replace(PLAIN, gamma=2.0).picture(picture), 255 * (plain / 255) ** 2, atol=1e-3)
    assert np.abs(np.diff(replace(PLAIN, blur=1.0).picture(picture), axis=0)).mean() < 30
    half = np.linspace(0.5, 1, SIZE, dtype=np.float32)[None, :, None]
    np.testing.assert_allclose(replace(PLAIN, slope=half).picture(picture), plain * half, atol=1e-4)
    compressed = replace(PLAIN, quality=40).picture(picture)
    assert 2 < np.abs(compressed - plain).mean() < 40
