"""The load test: a server of an exported folder, and the numbers of its table."""

import json
import os
import re

import pytest

from examples.research import load_test
from tests.export_run import exported
from vcp_clip_hf.server.process import bind


def test_the_table_has_the_numbers_of_a_run(tmp_path, capsys):
    folder = str(exported().folder)
    arguments = ["--model", folder, "--requests", "40", "--clients", "6", "--own_images", "8", "--image_size", "64"]
    load_test.main([*arguments, "--output_file", str(tmp_path / "load.json")])
    numbers = json.loads((tmp_path / "load.json").read_text())
    assert len(numbers["latencies"]) == 40 and len(numbers["memory"]) == 10
    assert numbers["processor_seconds"] > 0 and min(numbers["memory"]) > 10 * 2**20
    rate, before, after = 40 / numbers["seconds"], *(own for own, _ in numbers["own"])
    table = capsys.readouterr().out
    assert f"| server, 6 clients, 40 requests | {rate:.1f} images / s |" in table
    share = int(re.search(r"own rate \| (\d+) %", table)[1])
    assert share == pytest.approx(100 * rate / ((before + after) / 2), abs=0.51)


def test_a_server_that_is_not_there_is_an_error():
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        load_test.load_server(port, os.getpid(), [b""], 2, clients=2)
