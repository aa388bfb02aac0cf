"""What all verbs share: text that is safe to print, and the pipeline's device."""

from types import SimpleNamespace

import pytest
import torch

from tests.common import tiny_model
from vcp_clip_hf import VCPCLIPImageProcessor, prediction
from vcp_clip_hf.cli.common import WeightType, make_pipeline, printable


def test_no_terminal_obeys_a_file_name():
    assert printable("a\nb\r\x1b[31mred\x07\x9b\u202egnp.png") == r"a\nb\r\x1b[31mred\x07\x9b\u202egnp.png"
    assert printable("b\udcff.png") == r"b\udcff.png"
    for text in ("C:\\new\\x", "é日本💥.png", "50 % {0} <b>"):
        assert printable(text) == text


@pytest.mark.parametrize(
    ("num_processes", "device", "expected"),
    [(1, None, "cpu"), (2, None, "cpu:0"), (2, "cpu", "cpu")],
    ids=["one process", "its own device", "given"],
)
def test_each_launched_process_takes_its_own_device(num_processes, device, expected, monkeypatch, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    VCPCLIPImageProcessor.for_model(model.config).save_pretrained(tmp_path)
    own = torch.device("cpu", 0)  # stands for the GPU that Accelerate gives to this process
    monkeypatch.setattr(prediction, "process_state", lambda: SimpleNamespace(num_processes=num_processes, device=own))
    pipe = make_pipeline(str(tmp_path), device, WeightType.auto)
    assert str(pipe.device) == expected
