"""The kinds of painted anomalies: exact masks on every kind of image, and what each kind looks like."""

import numpy as np
import pytest
from PIL import Image

from tests.data.painted_pictures import HEIGHT, WIDTH, foreground, picture
from vcp_clip_hf.data.anomaly_painters import ANOMALY_KINDS, PAINTERS, perlin_noise
from vcp_clip_hf.data.painted_anomalies import add_anomaly
from vcp_clip_hf.generator.fields import Dice


# Least share of the mask that changes: pits leave the surface between them, displaced pixels may look alike
CHANGED = {"rough": 0.3, "warp": 0.3}


def paint(image: Image.Image, seed: int, kind: str, **options) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pixels before and after, and the mask, of one anomaly of this kind."""
    after, mask, made = add_anomaly(image, seed, kind, **options)
    assert made == kind and after.mode == "RGB" and mask.mode == "L" and mask.size == after.size == image.size
    assert set(np.unique(np.asarray(mask))) <= {0, 255}
    return np.asarray(image.convert("RGB"), np.int64), np.asarray(after, np.int64), np.asarray(mask) > 0


@pytest.mark.parametrize("kind", ANOMALY_KINDS)
def test_only_masked_pixels_change(kind):
    image, areas = picture(), []
    kept = image.tobytes()
    for seed in range(12):
        before, after, marked = paint(image, seed, kind)
        difference = np.abs(after - before).max(axis=2)
        assert (difference[~marked] == 0).all()
        # visible: by four levels, and by a third of the deviation of the surface
        assert difference[marked].mean() >= max(4, 0.35 * before[marked].std(axis=0).max() - 0.01)
        assert (difference[marked] > 0).mean() > CHANGED.get(kind, 0.6)
        areas.append(marked.mean())
    assert len(set(areas)) > 4
    assert image.tobytes() == kept


@pytest.mark.parametrize("kind", ANOMALY_KINDS)
def test_same_seed_same_bytes(kind):
    first, second = add_anomaly(picture(), (3, 1), kind), add_anomaly(picture(), (3, 1), kind)
    assert first[0].tobytes() == second[0].tobytes() and first[1].tobytes() == second[1].tobytes()
    assert add_anomaly(picture(), (3, 2), kind)[1].tobytes() != first[1].tobytes()


@pytest.mark.parametrize("kind", ANOMALY_KINDS)
def test_anomalies_stay_on_the_foreground(kind):
    solid = foreground()
    for seed in range(6):
        before, after, marked = paint(picture(), seed, kind, foreground=solid)
        assert marked.any() and not marked[solid == 0].any()
        assert np.array_equal(after[solid == 0], before[solid == 0])


@pytest.mark.parametrize("size", [(1, 40), (40, 1), (12, 9), (16, 160), (160, 16)], ids=str)
@pytest.mark.parametrize("kind", ANOMALY_KINDS)
def test_narrow_small_and_long_images(kind, size):
    before, after, marked = paint(picture(*size), 1, kind, attempts=200)
    assert marked.any() and np.array_equal(after[~marked], before[~marked])


@pytest.mark.parametrize("kind", ANOMALY_KINDS)
@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_other_modes_are_painted_as_rgb(kind, mode):
    image = picture().convert(mode)
    before, after, marked = paint(image, 2, kind)
    assert marked.any() and np.array_equal(after[~marked], before[~marked])


@pytest.mark.parametrize("kind", [kind for kind in ANOMALY_KINDS if kind not in ("cut_paste", "scar", "blur", "warp")])
@pytest.mark.parametrize("level", [0, 3, 128, 255])
def test_kinds_that_add_something_show_on_flat_images(kind, level):
    before, after, marked = paint(Image.new("RGB", (64, 64), (level, level, level)), 0, kind)
    assert np.abs(after - before).max(axis=2)[marked].mean() >= 4


@pytest.mark.parametrize("kind", ["blur", "warp"])
def test_kinds_that_move_or_smooth_pixels_cannot_show_on_black(kind):
    with pytest.raises(ValueError, match=f"No visible anomaly of the kinds {kind} after 24 attempts"):
        add_anomaly(Image.new("RGB", (64, 64)), 0, kind)


# --- what each kind looks like ---------------------------------------------------------------------------------------


def painted_with(kind: str, seed: int, image: Image.Image, solid: np.ndarray | None = None, textures=None):
    """Return the pixels (float32), and the painter's own changed pixels and opacity."""
    pixels = np.asarray(image, np.float32)
    solid = np.ones(pixels.shape[:2], np.float32) if solid is None else solid.astype(np.float32)
    changed, opacity = PAINTERS[kind](pixels, Dice(seed), solid, textures)
    assert changed.shape == pixels.shape and opacity.shape == pixels.shape[:2]
    assert opacity.dtype == np.float32 and opacity.min() >= 0 and opacity.max() <= 1
    return pixels, changed, opacity


@pytest.mark.parametrize("kind", ANOMALY_KINDS)
def test_painters_return_changed_pixels_and_an_opacity(kind):
    for seed in range(8):
        painted_with(kind, seed, picture())


def test_lines_are_thin():
    """Their width, twice the area per pixel of their border, ranges from hairlines to 9 pixels."""
    widths = []
    for seed in range(20):
        _, _, opacity = painted_with("line", seed, picture(224, 224))
        mark = opacity > 0.12
        inner = mark[1:-1, 1:-1] & mark[:-2, 1:-1] & mark[2:, 1:-1] & mark[1:-1, :-2] & mark[1:-1, 2:]
        widths.append(2 * mark.sum() / (mark.sum() - inner.sum()))
    assert min(widths) < 2.5 and 5 < max(widths) < 10


def test_lines_are_darker_or_lighter():
    differences = []
    for seed in range(12):
        pixels, changed, opacity = painted_with("line", seed, picture())
        differences.append((changed - pixels)[opacity > 0.12].mean())
    assert min(differences) < -20 and max(differences) > 20


def test_specks_are_a_few_or_many_small_dots():
    shares = [(painted_with("specks", seed, picture())[2] > 0.12).mean() for seed in range(40)]
    assert 0 < min(shares) < 0.002 and 0.02 < max(shares) < 0.2
    _, changed, _ = painted_with("specks", 0, picture())
    assert len(np.unique(changed.reshape(-1, 3), axis=0)) == 1


def test_the_surface_shows_through_a_stain():
    for seed in range(8):
        pixels, changed, opacity = painted_with("stain", seed, picture())
        inside = opacity > 0.9
        if inside.sum() < 50 or np.abs(changed - pixels)[inside].mean() > 60:
            continue
        # the grain of the surface is still there
        grain, kept = (values[inside][:, 1] - values[inside][:, 1].mean() for values in (pixels, changed))
        assert np.corrcoef(grain, kept)[0, 1] > 0.5


def test_a_blurred_region_has_less_texture():
    for seed in range(8):
        pixels, changed, opacity = painted_with("blur", seed, picture(200, 200))
        steps, smooth = (np.abs(np.diff(values, axis=1)).mean() for values in (pixels, changed))
        assert smooth < 0.5 * steps and (opacity > 0.5).any()


def test_a_dent_is_light_on_one_side_and_dark_on_the_other():
    solid = np.zeros((100, 100))
    solid[50, 50] = 1  # its center, so that no part of the dent lies outside the image
    for seed in range(8):
        pixels, changed, opacity = painted_with("dent", seed, Image.new("RGB", (100, 100), (120, 120, 120)), solid)
        change = (changed - pixels)[..., 0]
        assert change[opacity > 0].max() > 2 and change[opacity > 0].min() < -2
        assert np.abs(change[opacity == 0]).max() < 1e-3


def test_a_missing_piece_shows_the_background():
    """With much background in view, most holes have its color."""
    solid = foreground()
    pixels = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    pixels[solid == 0] = (10, 90, 30)
    near = 0
    for seed in range(20):
        _, after, marked = paint(Image.fromarray(pixels), seed, "missing", foreground=solid)
        near += np.abs(np.median(after[marked], axis=0) - (10, 90, 30)).max() < 25
    assert 8 <= near < 20


def test_a_missing_piece_or_foreign_texture_may_be_a_given_one():
    red = Image.new("RGB", (20, 30), (255, 0, 0))
    image = Image.new("RGB", (64, 64), (100, 100, 100))
    _, after, marked = paint(image, 1, "perlin", textures=[red])
    changed = after[marked]
    assert (changed[:, 0] > 100).all() and (changed[:, 1] < 100).all()
    holes = [paint(image, seed, "missing", textures=[red]) for seed in range(12)]
    share = np.mean([after[marked][:, 1].mean() < 30 < after[marked][:, 0].mean() for _, after, marked in holes])
    assert 0.1 < share < 0.9, "some holes show the texture, others a color"


def test_a_warp_shows_other_pixels_of_the_image():
    numbered = np.arange(64 * 64, dtype=np.int64).reshape(64, 64)
    image = Image.fromarray(np.stack([numbered >> 8, numbered & 255, 0 * numbered], axis=-1).astype(np.uint8))
    farthest = []
    for seed in range(12):
        _, changed, opacity = painted_with("warp", seed, image)
        rows, columns = np.divmod(changed[..., 0] * 256 + changed[..., 1], 64)
        far = np.hypot(rows - np.arange(64)[:, None], columns - np.arange(64)[None])
        farthest.append(far.max())
        assert far[opacity == 0].max() < 2
    assert 2 < max(farthest) < 0.12 * 64, "at most 12 % of the image"


def test_a_rough_region_has_more_texture():
    for seed in range(8):
        pixels, changed, opacity = painted_with("rough", seed, Image.new("RGB", (96, 96), (120, 120, 120)))
        assert pixels.std() == 0 and changed[opacity > 0.5].std() > 3


def test_pasted_pieces_come_from_the_image():
    """On an image of two colors, rectangles have about these colors, since brightness and color change by 10 %."""
    pixels = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    pixels[:, WIDTH // 2 :] = 180
    for kind in ("cut_paste", "scar"):
        for seed in range(6):
            _, after, marked = paint(Image.fromarray(pixels), seed, kind)
            levels = after[marked].astype(float)
            assert (np.minimum(np.abs(levels / 60 - 1), np.abs(levels / 180 - 1)) < 0.6).all()


def test_perlin_noise_is_smooth_and_vanishes_on_the_lattice():
    field = perlin_noise(Dice(0), (64, 96), (4, 3))
    assert field.shape == (64, 96) and field.dtype == np.float32
    assert np.abs(field[::16, ::32]).max() < 1e-6
    assert 0.3 < np.abs(field).max() < 1.5
    assert np.abs(np.diff(field, axis=0)).max() < 0.3
