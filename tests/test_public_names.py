"""Public names of the package, and what importing it and `vcp-clip --version` load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vcp_clip_hf


ROOT = Path(__file__).parent.parent


def run_fresh(program: str) -> str:
    """Run a program in a new process; return what it prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_public_name_can_be_imported():
    for name in vcp_clip_hf.__all__:
        assert getattr(vcp_clip_hf, name) is not None and name in dir(vcp_clip_hf)
    assert vcp_clip_hf.train.__module__ == "vcp_clip_hf.training"
    with pytest.raises(AttributeError, match=r"module 'vcp_clip_hf' has no attribute 'trane'"):
        _ = vcp_clip_hf.trane


def test_type_checkers_see_the_names_that_are_imported_on_first_use():
    (block,) = [node for node in ast.parse(Path(vcp_clip_hf.__file__).read_text()).body if isinstance(node, ast.If)][
        :1
    ]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == vcp_clip_hf._ON_FIRST_USE and seen.keys() < set(vcp_clip_hf.__all__)
    assert (Path(vcp_clip_hf.__file__).parent / "py.typed").is_file()


def test_importing_the_package_registers_it_and_loads_no_more_than_the_model():
    program = """
import sys
import vcp_clip_hf
from transformers import AutoConfig, pipeline
own = {name.removeprefix("vcp_clip_hf.") for name in sys.modules if name.startswith("vcp_clip_hf.")}
modules = set(vcp_clip_hf._ON_FIRST_USE.values())
assert not own & {*modules, "checkpoint_folder", "model_card", "cli"}, own
assert not {"datasets", "evaluate", "typer", "onnxruntime"} & sys.modules.keys()
assert type(AutoConfig.from_pretrained(vcp_clip_hf.EMBEDDED_CHECKPOINT)) is vcp_clip_hf.VCPCLIPConfig
assert type(pipeline("anomaly-segmentation")) is vcp_clip_hf.AnomalySegmentationPipeline
from vcp_clip_hf import load_anomaly_dataset
assert "datasets" in sys.modules
"""
    run_fresh(program)


def test_with_a_variable_the_package_imports_and_registers_the_model_on_first_use():
    program = """
import os, sys
os.environ["VCP_CLIP_IMPORT_ON_USE"] = "1"
import vcp_clip_hf
assert not {"torch", "transformers", "numpy"} & sys.modules.keys()
assert all(getattr(vcp_clip_hf, name) is not None for name in vcp_clip_hf.__all__)
from transformers import pipeline
assert type(pipeline("anomaly-segmentation")) is vcp_clip_hf.AnomalySegmentationPipeline
"""
    run_fresh(program)


def test_the_command_serve_imports_the_model_on_use_and_other_verbs_do_not():
    program = """
import sys
import vcp_clip_cli
sys.argv = ["vcp-clip", *sys.argv[1:], "--help"]
try:
    vcp_clip_cli.main()
except SystemExit:
    pass
print("torch" in sys.modules)
"""
    for verb, expected in (("serve", "False"), ("predict", "True")):
        done = subprocess.run([sys.executable, "-c", program, verb], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.splitlines()[-1] == expected, done.stderr


def test_the_version_is_printed_without_torch():
    program = """
import sys
import vcp_clip_cli
sys.argv = ["vcp-clip", "--version"]
vcp_clip_cli.main()
assert not {"torch", "transformers", "numpy", "typer", "vcp_clip_hf"} & sys.modules.keys()
"""
    assert run_fresh(program) == f"{vcp_clip_hf.__version__}\n"


def test_the_command_passes_everything_else_on():
    done = subprocess.run(
        [sys.executable, "-m", "vcp_clip_cli", "info", "--model", "no/such/folder"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert done.returncode == 1 and "no/such/folder" in done.stderr and "Traceback" not in done.stderr
