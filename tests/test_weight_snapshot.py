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


@pytest.mark.parametrize(
    "change", [in_place, other_memory, through_data, other_parameter, other_module, other_setting]
)
def test_changes_are_noticed(change):
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    former = WeightSnapshot([model], [model])
    assert former == WeightSnapshot([model], [model]) and former.holds([model])
    change(model)
    assert former != WeightSnapshot([model], [model]) and not former.holds([model])


def test_parameters_made_in_inference_mode_are_compared_by_their_values():
    with torch.inference_mode():
        model = nn.Linear(3, 3)
    assert WeightSnapshot([model], [model]) == WeightSnapshot([model], [model])


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
    assert not former.holds([module]) and former != WeightSnapshot([module], [module])
