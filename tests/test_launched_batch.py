"""Results of a batch are collected from stacks of groups, in the order of the images."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vcp_clip_hf import host_copy
from vcp_clip_hf.launched_batch import LaunchedBatch


def test_results_are_in_the_order_of_the_images():
    maps = [torch.rand(2, 4, 5), torch.rand(1, 3, 3)]
    launched = LaunchedBatch(
        [[0, 2], [1]], {"score": [torch.tensor([0.5, 0.25]), torch.tensor([1.0])], "anomaly_map": maps}, [{"a": 1}] * 3
    )
    results = launched.results()
    assert [result["score"] for result in results] == [0.5, 1.0, 0.25]
    assert [result["anomaly_map"].shape for result in results] == [(4, 5), (3, 3), (4, 5)]
    assert torch.equal(results[2]["anomaly_map"], maps[0][1])
    results[0]["a"] = 2
    assert results[1]["a"] == 1 and launched.results()[0]["a"] == 1


def test_a_batch_of_one_size_takes_one_copy_for_each_field(monkeypatch):
    copied = []
    begin = host_copy._begin
    monkeypatch.setattr(host_copy, "_begin", lambda tensor: copied.append(tuple(tensor.shape)) or begin(tensor))
    monkeypatch.setattr(host_copy, "_event", lambda device: None)
    with FakeTensorMode():
        stacks = {"score": [torch.empty(16, device="cuda")], "anomaly_map": [torch.empty(16, 60, 80, device="cuda")]}
        LaunchedBatch([list(range(16))], stacks, [{}] * 16)
    assert copied == [(16,), (16, 60, 80)]
