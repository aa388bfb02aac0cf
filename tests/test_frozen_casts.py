"""Frozen weights that are cast once: the same results, bit by bit, with fewer casts."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.common import pixels, tiny_model
from vcp_clip_hf.frozen_casts import frozen_weights_cast


class CastsOfWeights(TorchDispatchMode):
    """Counts casts of the given tensors."""

    def __init__(self, weights):
        super().__init__()
        self.addresses, self.count = {each.data_ptr() for each in weights}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket is torch.ops.aten._to_copy and args[0].data_ptr() in self.addresses
        return func(*args, **(kwargs or {}))


def gradients(model, images, dtype=torch.bfloat16):
    model.zero_grad()
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype):
        loss = model(images, labels=torch.ones(images[:, 0].shape, dtype=torch.bool)).loss
    loss.backward()
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def test_a_training_step_casts_no_frozen_linear_layer_and_has_the_same_gradients():
    model, images = tiny_model().train(), pixels()
    frozen = [value for each in model.clip.modules() if type(each) is torch.nn.Linear for value in each.parameters()]
    with CastsOfWeights(frozen) as before:
        expected = gradients(model, images)
    assert before.count > 60
    with frozen_weights_cast(model, torch.bfloat16):
        with CastsOfWeights(frozen) as during:
            found = gradients(model, images)
        other = gradients(model, images, torch.float16)
        plain = model.eval()(images).anomaly_map  # without autocast
    assert during.count == 0
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in found)
    assert torch.equal(plain, model(images).anomaly_map)
    again = gradients(model.train(), images, torch.float16)
    assert all(torch.equal(other[name], again[name]) for name in again)
    assert not any("forward" in vars(each) for each in model.modules())


def test_what_is_trained_is_left_alone():
    model, images = tiny_model().train(), pixels()
    model.clip.text_model.requires_grad_(True)
    with frozen_weights_cast(model, torch.bfloat16):
        patched = {name for name, each in model.named_modules() if "forward" in vars(each)}
        found = gradients(model, images)
    assert patched and all(
        name.startswith(("clip.vision_model", "clip.visual_", "clip.text_proj")) for name in patched
    )
    assert "clip.text_model.encoder.layers.0.mlp.fc1.weight" in found


def test_nothing_happens_without_autocast():
    model = tiny_model()
    with frozen_weights_cast(model, None):
        assert not any("forward" in vars(each) for each in model.modules())
