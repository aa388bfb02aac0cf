"""The clock of a step, on a CPU and on a GPU."""

import time

import pytest
import torch

from vcp_clip_hf.device_clock import DeviceClock


def test_on_a_cpu_the_time_between_start_and_stop():
    clock = DeviceClock(torch.device("cpu"))
    time.sleep(0.01)
    seconds = clock.stop()
    time.sleep(0.05)
    assert 0.01 <= seconds() < 0.05 and seconds() == seconds()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_time_of_its_kernels():
    values = torch.rand(2048, 2048, device="cuda")
    clock = DeviceClock(values.device)
    for _ in range(20):
        values = values @ values
    assert clock.stop()() > 0
