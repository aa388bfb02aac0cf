"""The 22 views of an image."""

import math

import pytest
import torch

from tests.common import pixels
from vcp_clip_hf.methods.image_views import augmented_views


def test_views_that_need_no_interpolation():
    images = pixels(2, 17, 17)
    views = augmented_views(images)
    assert views.shape == (2, 22, 3, 17, 17)
    assert torch.equal(views[:, 0], images) and torch.equal(views[:, 17], images.flip(3))
    gray = 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]
    torch.testing.assert_close(views[:, 18], gray[:, None].expand(-1, 3, -1, -1))
    for number, times in ((19, 1), (20, 2), (21, 3)):
        assert torch.equal(views[:, number], images.rot90(times, (2, 3)))


def sampled(image, x, y):
    """The bilinear value at a place, in pixels, reflected at the centers of the border's pixels."""
    x, y = ((each if 0 <= each <= 16 else -each if each < 0 else 32 - each) for each in (x, y))
    left, top = min(int(x), 15), min(int(y), 15)
    a, b = x - left, y - top
    upper = (1 - a) * image[:, top, left] + a * image[:, top, left + 1]
    lower = (1 - a) * image[:, top + 1, left] + a * image[:, top + 1, left + 1]
    return (1 - b) * upper + b * lower


@pytest.mark.parametrize(
    ("view", "angle", "shift"),
    [
        (1, -math.pi / 4, (0, 0)),
        (4, -math.pi / 16, (0, 0)),
        (5, math.pi / 16, (0, 0)),
        (8, math.pi / 4, (0, 0)),
        (9, 0, (0.2, 0.2)),
        (10, 0, (-0.2, 0.2)),
        (11, 0, (-0.2, -0.2)),
        (12, 0, (0.2, -0.2)),
        (16, 0, (0.1, -0.1)),
    ],
)
def test_rotations_and_shifts(view, angle, shift):
    image = pixels(1, 17, 17)[0]
    result = augmented_views(image[None])[0, view]
    for row, column in ((0, 0), (3, 12), (8, 8), (16, 5)):
        x, y = column / 8 - 1, row / 8 - 1
        there = (
            math.cos(angle) * x - math.sin(angle) * y + shift[0],
            math.sin(angle) * x + math.cos(angle) * y + shift[1],
        )
        expected = sampled(image, *((each + 1) * 8 for each in there))
        torch.testing.assert_close(result[:, row, column], expected, atol=1e-5, rtol=0)


def test_images_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match="square"):
        augmented_views(pixels(1, 16, 24))


def test_half_precision_moves_no_sample():
    images = pixels(1, 224, 224)
    views = augmented_views(images.bfloat16())
    assert views.dtype == torch.bfloat16
    torch.testing.assert_close(views.float(), augmented_views(images), atol=0.05, rtol=0)
