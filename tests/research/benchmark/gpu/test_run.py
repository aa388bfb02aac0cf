"""The whole command: its files, and what it needs."""

import json
import subprocess
import sys

import pytest

from examples.research.benchmark.__main__ import main


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "results"


@pytest.mark.slow
def test_rows_are_printed_and_written(folder, capsys):
    arguments = ["--what", "gpu", "--quick", "--devices", "cpu", "--batch_sizes", "1", "--output_dir", str(folder)]
    rows = main([*arguments, "--sections", "parts", "graphs"])
    assert [row["table"] for row in rows] == ["parts"]
    content = json.loads((folder / "benchmark.json").read_text())
    assert content["rows"] == rows and content["goals"] == [] and content["machine"]["torch"]
    assert content["command"].startswith("python -m examples.research.benchmark --what gpu --quick")
    assert content["missing"] == [{"left_out": "graphs: time to capture, and memory", "why": "it needs a GPU"}]
    lines = [json.loads(line) for line in (folder / "benchmark.jsonl").read_text().splitlines()]
    assert lines == [{"machine": content["machine"]}, *rows, *content["missing"]]
    report = (folder / "benchmark.md").read_text()
    assert report.startswith("tiny model with random weights, 48 x 48 pixels, bfloat16, measured on ")
    assert "| 1 |" in report and "- left out: graphs" in report
    printed = capsys.readouterr().out
    assert printed.endswith(report + "\n") and printed.index("parts | batch: 1") < printed.index("measured on")


def test_without_time_everything_is_left_out(folder):
    arguments = ["--what", "gpu", "--devices", "cpu", "--output_dir", str(folder), "--sections", "float8"]
    assert main([*arguments, "--seconds", "0"]) == []
    (line,) = (folder / "benchmark.jsonl").read_text().splitlines()
    assert json.loads(line) == {"left_out": "float8", "why": "no time was left"}


NEEDED = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {missing} else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
import examples.research.benchmark.gpu.sections, examples.research.benchmark.__main__, tests.test_on_gpu
"""


def test_the_packages_are_few():
    """A machine with a GPU may have no others, and no network."""
    missing = "datasets evaluate typer matplotlib jinja2 sklearn skimage scipy av onnx onnxruntime fastapi watchfiles"
    missing += " tenacity peft gradio pycocotools torchao pandas"
    code = NEEDED.format(missing=set(missing.split()))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-1000:]
