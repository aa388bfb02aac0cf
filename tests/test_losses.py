"""Focal and dice loss against the authors' values and closed forms."""

import math

import pytest
import torch

from tests.common import golden
from vcp_clip_hf import dice_loss, focal_loss, segmentation_loss


@pytest.mark.parametrize("name", ["official_a", "official_b"])
def test_equal_to_the_authors(name):
    expected = golden(name).expected
    mask, base, vcp = expected["mask"], expected["maps_raw"], expected["maps_new"]
    torch.testing.assert_close(focal_loss(base[0], mask), expected["focal_layer0_raw"], atol=1e-6, rtol=0)
    torch.testing.assert_close(dice_loss(base[0], mask), expected["dice_layer0_raw"], atol=1e-6, rtol=0)
    for maps, loss in ((base, expected["loss_base"]), (vcp, expected["loss_vcp"])):
        torch.testing.assert_close(segmentation_loss(maps.transpose(0, 1), mask), loss, atol=1e-6, rtol=1e-6)


def test_closed_forms():
    target = torch.zeros(2, 4, 4)
    target[0, :2] = 1
    assert dice_loss(target, target) == 0
    assert dice_loss(1 - target, target).item() == pytest.approx((1 - 1 / 17 + 1 - 1 / 17) / 2)
    half = torch.full_like(target, 0.5)
    assert focal_loss(half, target).item() == pytest.approx(-(0.5**2) * math.log(0.5), rel=1e-4)
    assert focal_loss(target, target).item() == pytest.approx(0, abs=1e-6)


def test_finite_at_certainty_and_with_any_label_type():
    wrong = torch.tensor([[[0.0, 1.0]]], requires_grad=True)
    for dtype in (torch.bool, torch.uint8, torch.long, torch.float32):
        target = torch.tensor([[[1, 0]]]).to(dtype)
        loss = focal_loss(wrong, target) + dice_loss(wrong, target)
        loss.backward()
        assert loss.isfinite() and wrong.grad.isfinite().all()


def test_dice_is_per_image():
    """One image's defect must not lend its overlap to another."""
    target = torch.zeros(2, 8, 8)
    target[0, :4] = 1
    maps = torch.stack([target[0], torch.zeros(8, 8)])
    each = [dice_loss(maps[i : i + 1], target[i : i + 1]) for i in range(2)]
    assert dice_loss(maps, target) == sum(each) / 2


def test_the_gradient_of_the_focal_loss_is_that_of_its_formula():
    maps = torch.rand(2, 3, 6, 6, dtype=torch.float64).mul(0.98).add(0.01).requires_grad_()
    target = (torch.rand(2, 1, 6, 6) < 0.3).to(torch.uint8)
    assert torch.autograd.gradcheck(lambda maps: focal_loss(maps, target), maps)
    smooth = target.double().clamp(1e-5, 1 - 1e-5)
    p_target = smooth * maps + (1 - smooth) * (1 - maps) + 1e-5
    (expected,) = torch.autograd.grad(-((1 - p_target).square() * p_target.log()).mean(), maps)
    (found,) = torch.autograd.grad(focal_loss(maps, target), maps)
    torch.testing.assert_close(found, expected)


def test_the_loss_keeps_the_maps_only():
    maps, target = torch.rand(2, 4, 50, 50, requires_grad=True), torch.zeros(2, 50, 50, dtype=torch.bool)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.setdefault(tensor.data_ptr(), tensor.untyped_storage().nbytes()), lambda size: size
    ):
        segmentation_loss(maps, target)
    assert kept.pop(maps.data_ptr()) == 4 * maps.numel()
    assert sum(kept.values()) <= 3 * 4 * target.numel()
