"""Servers for tests: in this process, or as a process of its own on loopback."""

import contextlib
import http.client
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from fastapi.testclient import TestClient
from PIL import Image

from tests.processes import Program
from vcp_clip_hf.server.app import create_app
from vcp_clip_hf.server.engine import SegmentationEngine, open_engine
from vcp_clip_hf.server.recipes import RecipeStore
from vcp_clip_hf.server.settings import ServerSettings
from vcp_clip_hf.version import EMBEDDED_CHECKPOINT


ROOT = Path(__file__).parent.parent.parent
TOKEN = "a-token-for-tests-only"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
PNG = {"Content-Type": "image/png"}
# A first answer needs torch and the model
SECONDS_TO_START = 60


@lru_cache
def embedded_engine() -> SegmentationEngine:
    """Load the embedded checkpoint once for all tests of a process."""
    return open_engine(EMBEDDED_CHECKPOINT, device="cpu")


def picture(seed: int = 0, width: int = 80, height: int = 60) -> Image.Image:
    """Make a gray picture with a bright stripe, different for each seed."""
    values = np.random.default_rng(seed).normal(128, 4, (height, width, 3))
    values[height // 3 : height // 2, width // 4 : width // 2] += 90
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def png(image: Image.Image | None = None, **options) -> bytes:
    """Return the content of a PNG file, by default of a `picture`."""
    file = io.BytesIO()
    (picture(**options) if image is None else image).save(file, "PNG")
    return file.getvalue()


@contextlib.contextmanager
def serving(folder: Path, **settings) -> Iterator[TestClient]:
    """Yield a client of a server in this process, with the embedded checkpoint and the test's token."""
    engine = embedded_engine()
    app = create_app(lambda: (engine, RecipeStore(folder, engine)), ServerSettings(**{"token": TOKEN, **settings}))
    with TestClient(app) as client:
        end = time.monotonic() + SECONDS_TO_START
        while client.get("/health/ready").status_code != 200:
            assert app.state.server.failure is None and time.monotonic() < end
            time.sleep(0.01)
        yield client


@dataclass
class Answer:
    """Status, headers (names in lower case) and body of an answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self):
        return json.loads(self.body)


@dataclass
class ServerProcess:
    """A server as a process of its own."""

    process: Program | subprocess.Popen
    port: int
    log: Path
    arguments: list[str] = field(default_factory=list)

    def connect(self, timeout: float = 30) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict | None = None, **options) -> Answer:
        """Send one request on a connection of its own."""
        with contextlib.closing(self.connect(**options)) as connection:
            connection.request(method, path, body, headers or {})
            return read_answer(connection)

    def segment(self, content: bytes, query: str = "", **options) -> Answer:
        return self.ask("POST", f"/v1/segment{query}", content, PNG, **options)

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        lines = self.ask("GET", "/metrics").body.decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}(\{{| )", line))


def read_answer(connection: http.client.HTTPConnection) -> Answer:
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


@contextlib.contextmanager
def server_process(
    folder: Path,
    *arguments: str,
    settings: dict | None = None,
    program: tuple[str, ...] = (),
    directory: Path = ROOT,
    new_python: bool = False,
    **environment: str,
) -> Iterator[ServerProcess]:
    """
    Start a server on a free port, wait until it is ready, and kill it at the end if it is still there.

    Args:
        folder: place for recipes and log.
        arguments: options of `vcp-clip serve`.
        settings: fields of ServerSettings that the command line has no option for.
        program: what Python runs instead of the command line.
        directory: working directory of the process.
        new_python: whether a new Python imports everything, in place of a fork that has imported it (`Program`).
    """
    if settings is not None:
        program = ("-m", "tests.server.serve_run", json.dumps({"token": TOKEN, **settings}), str(folder / "recipes"))
        options = []
    else:
        program = program or ("-m", "vcp_clip_hf.cli", "serve")
        options = ["--port", "0", "--recipes", str(folder / "recipes"), *arguments]
    log = folder / "log.txt"
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "VCP_CLIP_TOKEN": TOKEN, **environment}
    if new_python:
        with open(log, "w") as file:
            words = [sys.executable, *program, *options]
            process = subprocess.Popen(words, stderr=file, stdout=file, cwd=directory, env=variables)
    else:
        log.touch()
        process = Program(*program, *options, cwd=directory, env=variables, output=log)
    try:
        server = ServerProcess(process, _wait_for_port(process, log), log, list(arguments))
        _wait_until_ready(server)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _wait_for_port(process: Program | subprocess.Popen, log: Path) -> int:
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end and process.poll() is None:
        found = re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())
        if found:
            return int(found[1])
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def _wait_until_ready(server: ServerProcess) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end and server.process.poll() is None:
        if server.ask("GET", "/health/ready").status == 200:
            return
        time.sleep(0.05)
    raise AssertionError(server.log.read_text())
