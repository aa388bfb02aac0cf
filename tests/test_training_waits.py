"""
A training step never waits for the device.

Tensors on the meta device have no values, so that reading one fails, and every copy to it is seen.
"""

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.common import tiny_model, tiny_model_with_head
from tests.training_run import settings
from vcp_clip_hf.image_head import image_head_loss
from vcp_clip_hf.training import make_accelerator
from vcp_clip_hf.training_loss import training_loss


class BlockingCopies(TorchDispatchMode):
    """Collects copies from the CPU to the device that wait for it."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        is_copy = func.overloadpacket is torch.ops.aten._to_copy and args[0].device != result.device
        if is_copy and not (kwargs or {}).get("non_blocking"):
            self.found.append(tuple(result.shape))
        return result


class TensorsOfValues(TorchFunctionMode):
    """Refuses `torch.tensor(values, device=...)`, whose copy waits for the device and is not dispatched."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        device = (kwargs or {}).get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None:
            assert torch.device(device).type == "cpu", f"{args} is copied to {device}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("has_mask", [[True, True, True], [True, False, True], [False, False, False]])
@pytest.mark.parametrize("kind", ["plain", "image head"])
def test_a_step_reads_no_value_and_waits_for_no_copy(kind, has_mask):
    model = (tiny_model() if kind == "plain" else tiny_model_with_head()).to("meta").train()
    images, labels = torch.empty(3, 3, 48, 48, device="meta"), torch.empty(3, 48, 48, dtype=torch.uint8, device="meta")
    with TensorsOfValues(), BlockingCopies() as copies:
        outputs = model(images, output_layer_maps=True)
        loss = training_loss(outputs, labels, torch.tensor(has_mask))
        if outputs.image_logits is not None:
            loss = loss + image_head_loss(outputs.image_logits, torch.empty(3, dtype=torch.bool, device="meta"))
        loss.backward()
    assert copies.found == []
    assert all(each.grad is not None for each in model.pre_vcp.parameters())


def test_the_checks_of_this_test_can_fail():
    with BlockingCopies() as copies:
        torch.ones(2).to("meta")
        torch.ones(3).to("meta", non_blocking=True)
    assert copies.found == [(2,)]
    with pytest.raises(AssertionError, match="copied to meta"), TensorsOfValues():
        torch.tensor([1, 2], device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(1, device="meta").item()


def test_batches_are_sent_without_waiting(tmp_path):
    assert make_accelerator(settings(tmp_path)).non_blocking
