"""`vcp-clip serve`: what is refused before anything is loaded, and a server without torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.export_run import exported
from tests.server.serving import AUTHORIZED, TOKEN, png, server_process
from vcp_clip_hf.cli import main
from vcp_clip_hf.server.process import bind


ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def _no_token(monkeypatch):
    monkeypatch.delenv("VCP_CLIP_TOKEN", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


def refusal(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(["serve", *arguments])
    assert end.value.code in (1, 2)
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "factory.example"])
def test_other_machines_need_a_token_or_a_confirmation(capsys, host):
    assert f"{host} can be reached by other machines. Give a token" in refusal(capsys, "--host", host)


def test_a_token_that_is_too_short(capsys, tmp_path):
    (tmp_path / "token").write_text("short")
    assert "expected 16 or more" in refusal(capsys, "--token-file", str(tmp_path / "token"))
    assert "No such file" in refusal(capsys, "--token-file", str(tmp_path / "missing"))


def test_a_port_in_use(capsys):
    with bind("127.0.0.1", 0) as listener:
        port = str(listener.getsockname()[1])
        assert f"error: Port {port} of 127.0.0.1 cannot be opened" in refusal(capsys, "--port", port)


def test_a_model_that_is_not_there(capsys, tmp_path):
    said = refusal(capsys, "--port", "0", "--recipes", str(tmp_path / "recipes"), "--model", str(tmp_path / "missing"))
    assert "error: There is no folder" in said and "Listening" not in said


def test_a_model_option_that_fails(capsys, tmp_path):
    options = ("--port", "0", "--recipes", str(tmp_path / "recipes"), "--device", "cpu", "--dtype", "float8")
    said = refusal(capsys, *options)
    assert "float8" in said and "Listening" not in said


@pytest.mark.parametrize(("module", "named"), [("fastapi", "fastapi"), ("prometheus_client", "prometheus_client")])
def test_an_extra_that_is_not_installed(module, named):
    code = f"import sys; sys.modules[{module!r}] = None; from vcp_clip_hf.cli import main; main(['serve'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "VCP_CLIP_IMPORT_ON_USE": "1"},
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.strip() == f'error: The server needs {named}: pip install "vcp-clip-hf[serve]"'


def test_an_exported_folder_is_served_without_torch(tmp_path):
    folder = str(exported().folder)
    program = ("-c", "import sys, vcp_clip_cli; sys.argv[1:1] = ['serve']; vcp_clip_cli.main()")
    with server_process(tmp_path, "--model", folder, "--threads", "1", program=program, new_python=True) as server:
        answer = server.segment(png())
        assert answer.status == 200 and 0 <= answer.json()["score"] <= 1
        facts = server.ask("GET", "/health/ready").json()["model"]
        assert facts["format"] == "onnx" and not facts["takes_references"]
        maps = Path(f"/proc/{server.process.pid}/maps").read_text()
        assert "onnxruntime" in maps and "libtorch" not in maps
        refused = server.ask("PUT", "/v1/recipes/a/references", png(), {**AUTHORIZED, "Content-Type": "image/png"})
        assert refused.status == 422, refused
        assert TOKEN not in server.log.read_text()
