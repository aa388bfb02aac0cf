"""Checkpoints of a training run: the state of the optimizer. Whole runs are resumed in test_training.py."""

import pytest
import torch

from tests.common import tiny_model
from vcp_clip_hf.training_checkpoints import TrainingState, load_checkpoint, save_checkpoint


def optimizer_of(model, fused):
    return torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=1e-3, fused=fused)


def step(model, optimizer):
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()


@pytest.mark.parametrize("fused", [None, True])
def test_the_optimizer_goes_on_as_it_was(tmp_path, fused):
    model = tiny_model()
    optimizer = optimizer_of(model, fused)
    step(model, optimizer)
    checkpoint = save_checkpoint(tmp_path, model, optimizer, TrainingState(step=1), keep=1)
    loaded = tiny_model()
    loaded.clip.load_state_dict(model.clip.state_dict())
    resumed = optimizer_of(loaded, fused)
    load_checkpoint(checkpoint, loaded, resumed, {})
    for each, its_optimizer in ((model, optimizer), (loaded, resumed)):
        step(each, its_optimizer)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*which is a no-op")
@pytest.mark.parametrize(("fused", "device"), [(None, "cpu"), (True, "meta")])
def test_the_step_count_is_where_the_optimizer_needs_it(tmp_path, fused, device):
    """On the CPU, or, for a fused optimizer, beside the parameters: here on a device without values."""
    model = tiny_model()
    optimizer = optimizer_of(model, None)
    step(model, optimizer)
    checkpoint = save_checkpoint(tmp_path, model, optimizer, TrainingState(step=1), keep=1)
    elsewhere = tiny_model().to("meta")
    # A fused optimizer of the meta device cannot be made; of its settings, one is read
    resumed = optimizer_of(elsewhere, None)
    resumed.defaults["fused"] = fused
    load_checkpoint(checkpoint, elsewhere, resumed, {})
    assert {entry["step"].device.type for entry in resumed.state.values()} == {device}
    assert {entry["exp_avg"].device.type for entry in resumed.state.values()} == {"meta"}
