"""Copies between host and device: what waits for a GPU, seen on CUDA tensors without values."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.imitated_gpu import imitated_gpu
from vcp_clip_hf import host_copy
from vcp_clip_hf.host_copy import HostCopy, as_array, to_device


class Copies(TorchDispatchMode):
    """Record the target device of each copy, and whether it blocks."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operator is torch.ops.aten._to_copy.default:
            self.seen.append((str(kwargs.get("device")), kwargs.get("non_blocking", False)))
        return operator(*args, **kwargs)


def test_tensors_of_the_host_stay_where_they_are():
    tensors = [torch.rand(2, 3), torch.rand(4)]
    assert all(each is own for each, own in zip(HostCopy(tensors).tensors(), tensors, strict=True))
    assert HostCopy([]).tensors() == []
    assert np.shares_memory(as_array(tensors[0]), tensors[0].numpy())
    assert to_device(tensors[0], torch.device("cpu")) is tensors[0]


def test_copies_from_a_gpu_wait_only_when_they_are_read_or_too_large_for_pinned_memory(monkeypatch):
    waited = []

    class Event:
        def synchronize(self):
            waited.append(True)

    monkeypatch.setattr(host_copy, "_event", lambda device: Event())
    monkeypatch.setattr(host_copy, "_PINNED_BYTES", 64)
    with FakeTensorMode(), Copies() as copies:
        copy = HostCopy([torch.empty(16, device="cuda"), torch.empty(17, device="cuda")])
        assert copies.seen == [("cpu", True), ("cpu", False)] and not waited
        assert [each.device.type for each in copy.tensors()] == ["cpu", "cpu"] and waited


def test_copies_from_several_gpus_wait_for_each_of_them(monkeypatch):
    waited = []

    class Event:
        def __init__(self, device):
            self.device = device

        def synchronize(self):
            waited.append(str(self.device))

    monkeypatch.setattr(host_copy, "_event", Event)
    with FakeTensorMode():
        HostCopy([torch.empty(16, device=f"cuda:{index}") for index in (0, 1, 0)]).tensors()
    assert sorted(waited) == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize(("capturing", "expected"), [(False, 1), (True, 0)])
def test_memory_of_one_copy_is_pinned_outside_of_captures_only(monkeypatch, capturing, expected):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    with imitated_gpu(), Copies() as copies:
        to_device(torch.empty(3), torch.device("cuda:0"))
    assert len(pinned) == expected and copies.seen == [("cuda:0", True)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_values_survive_the_way_to_a_gpu_and_back():
    device, values = torch.device("cuda"), torch.rand(50, 50)
    there = to_device(values, device)
    (back,) = HostCopy([there]).tensors()
    assert back.is_pinned() and torch.equal(back, values)
    array = as_array(back)
    assert not np.shares_memory(array, back.numpy())
