"""The peak memory of a process, where the operating system tells it."""

import sys

import torch

from vcp_clip_hf.peak_memory import peak_memory, resident_bytes


def test_the_peak_is_counted_in_bytes():
    held = torch.ones(12_500_000)  # 50 MB: more than the number of kilobytes of any test process
    assert peak_memory(torch.device("cpu")) > held.nbytes


def test_units_of_the_operating_systems():
    assert resident_bytes(3000, "linux") == 3000 * 1024
    assert resident_bytes(3_072_000, "darwin") == 3_072_000


def test_it_is_unknown_on_windows(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # as where the module does not exist: importing it fails
    assert peak_memory(torch.device("cpu")) is None
