"""A snapshot notices every way to change weights."""

import pytest
import torch
from torch import nn

from vcp_clip_hf.weight_snapshot import WeightSnapshot


def in_place(model):
    with torch.no_grad():
        model[0].weight.add_(1)


def other_memory(model):
    model.to(torch.float64)


def through_data(model):
    model[0].weight.data.add_(1)


def other_parameter(model):
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def other_module(model):
    model[1] = nn.LayerNorm(3)


def other_setting(model):
    model[1].eps = 1.0


def other_class(model):
    model[1].__class__ = type("Other", (nn.LayerNorm,), {})


def further_module(model):
    model[1].further = nn.Identity()


def further_tensor(model):
    model[1].further = torch.zeros(2)


def training_mode(model):
    model[1].train(not model[1].training)


def hook(model):
    model[1].register_forward_hook(lambda *_: None)


def hook_before(model):
    model[1].register_forward_pre_hook(lambda *_: None)


def replaced_forward(model):
    model[1].forward = lambda values: values


def other_strides(model):
    model[0].weight.data = model[0].weight.data.T


CHANGES = [in_place, other_memory, through_data, other_parameter, other_module, other_setting, other_class]
CHANGES += [further_module, further_tensor, training_mode, hook, hook_before, replaced_forward, other_strides]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(change):
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    former = WeightSnapshot([model], [model])
    model(torch.zeros(1, 3))
    assert former.holds([model]) and former.holds([model], values=False)
    change(model)
    assert not former.holds([model])
    assert former.holds([model], values=False) == (change is through_data)


def test_other_parts_are_noticed():
    model, other = nn.Linear(3, 3), nn.Linear(3, 3)
    former = WeightSnapshot([model], [model])
    assert not former.holds([other]) and not former.holds([model, other]) and not former.holds([])


def test_parameters_made_in_inference_mode_are_compared_by_their_values():
    with torch.inference_mode():
        model = nn.Linear(3, 3)
    former = WeightSnapshot([model], [model])
    assert former.holds([model])
    with torch.inference_mode():
        model.weight.add_(1)
    assert not former.holds([model])


def test_an_attribute_that_is_another_tensor_of_the_same_name_is_noticed():
    model = nn.Linear(3, 3)
    model.scales = torch.ones(2)
    former = WeightSnapshot([model], [model])
    assert former.holds([model])
    model.scales = torch.ones(2)
    assert not former.holds([model])


@pytest.mark.parametrize("layout", ["transposed", "expanded", "channels_last", "half"])
def test_changes_through_data_are_noticed_in_any_memory_layout(layout):
    made = {
        "transposed": lambda: torch.zeros(3, 5).T,
        "expanded": lambda: torch.zeros(1, 5).expand(3, 5),
        "channels_last": lambda: torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "half": lambda: torch.zeros(3, dtype=torch.float16),
    }
    module = nn.ParameterList([nn.Parameter(made[layout](), requires_grad=False), nn.Parameter(torch.zeros(()))])
    former = WeightSnapshot([module], [module])
    assert former.holds([module])
    module[0].data[:1] += 1
    assert not former.holds([module])
