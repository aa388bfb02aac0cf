"""The commands that the page prints are run by bash and curl."""

import json
import os
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from curl_commands import SERVER, TOKEN_FILE, request_commands, start_commands
from inspection import Inspector
from PIL import Image
from transformers import pipeline

from tests.server.serving import ROOT, embedded_engine, server_process
from vcp_clip_hf import EMBEDDED_CHECKPOINT, VCPCLIPImageProcessor
from vcp_clip_hf.generator import render_sample
from vcp_clip_hf.server.app import create_app
from vcp_clip_hf.server.authorization import read_token
from vcp_clip_hf.server.process import bind
from vcp_clip_hf.server.recipes import RecipeStore
from vcp_clip_hf.server.settings import ServerSettings


HOSTILE = (
    "part 17.png",
    'it\'s "new".png',
    "$(touch stolen) `touch stolen`.png",
    "a;type=text;filename=x,b.png",
    "@part.png",
    "-part.png",
    "-",
    "--output.png",
    'back\\slash\\".png',
    "&& touch stolen #!.png",
    "*?[a]~ %41.png",
    "Überzug.png",
    "overlay.png",
)


def bash(script: str, folder) -> str:
    """Run a script; return its output."""
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (script, done.stdout, done.stderr)
    return done.stdout


def documents(text: str) -> list:
    """Return JSON documents that follow each other without a separator."""
    found, decoder = [], json.JSONDecoder()
    while text:
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:].lstrip()
    return found


class Site:
    """A page and a server with the same checkpoint."""

    def __init__(self, folder: Path, model: str, address: str):
        self.folder, self.address = folder, address
        self.inspector = Inspector(pipeline("anomaly-segmentation", model=model, device="cpu"))
        render_sample("perforated_sheet", 7, 0, 192, "auto").image.save(folder / "part 1.png")

    def run(self, commands: str) -> tuple[list, list[str]]:
        """Run commands; return their answers and the names of the files that they made."""
        before = set(os.listdir(self.folder))
        answers = documents(bash(commands.replace(SERVER, self.address), self.folder))
        return answers, sorted(set(os.listdir(self.folder)) - before)

    def show(self, name: str, **settings):
        """Segment the file of a visitor on the page; return its session and commands."""
        session = self.inspector.new_session()
        *_, commands = self.inspector.segment(session, str(self.folder / name), name)
        if settings:
            *_, commands = self.inspector.set_threshold(session, **settings)
        return session, commands


@contextmanager
def embedded_server(folder: Path) -> Iterator[str]:
    """Serve the embedded checkpoint in a thread; yield the address."""
    bash(start_commands(EMBEDDED_CHECKPOINT).splitlines()[0], folder)
    engine, settings = embedded_engine(), ServerSettings(token=read_token(folder / TOKEN_FILE, {}))
    app = create_app(lambda: (engine, RecipeStore(folder / "recipes", engine)), settings)
    server, listener = uvicorn.Server(uvicorn.Config(app, log_config=None)), bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        bash(f"curl --fail --silent --retry 100 --retry-delay 1 {address}/health/ready", folder)
        yield address
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def started_server(folder: Path, model: str) -> Iterator[str]:
    """Run the commands that start a server; yield its address."""
    make_token, serve = start_commands(model).splitlines()
    bash(make_token, folder)
    program, verb, *arguments = shlex.split(serve)
    assert (program, verb) == ("vcp-clip", "serve")
    with server_process(folder, *arguments, directory=folder, PYTHONPATH=str(ROOT), VCP_CLIP_TOKEN="") as process:
        yield f"http://127.0.0.1:{process.port}"


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """Two checkpoints: the embedded one, and one with other scores, no thresholds, and a folder with a bad name."""
    first, second = tmp_path_factory.mktemp("embedded"), tmp_path_factory.mktemp("other")
    model = second / "-it's; $(touch stolen) a model"
    shutil.copytree(EMBEDDED_CHECKPOINT, model)
    processor = VCPCLIPImageProcessor.from_pretrained(EMBEDDED_CHECKPOINT).without_thresholds()
    processor.score_mode = "top_k"
    processor.save_pretrained(model)
    with embedded_server(first) as here, started_server(second, str(model)) as there:
        yield {"embedded": Site(first, EMBEDDED_CHECKPOINT, here), "top_k": Site(second, str(model), there)}


def assert_same(site: Site, session, answer: dict) -> None:
    """Compare an answer and the overlay with what the page shows."""
    shown = site.inspector.read(session)
    # the server uses another number of threads
    assert answer["score"] == pytest.approx(shown["score"], abs=1e-6)
    assert [answer[name] for name in ("label", "threshold", "image_threshold")] == [
        shown[name] for name in ("label", "threshold", "image_threshold")
    ]
    assert ("regions" in answer) == ("regions" in shown)
    scores = [[region.pop("score") for region in each.get("regions", ())] for each in (answer, shown)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert answer.get("regions") == shown.get("regions")
    overlay = np.asarray(Image.open(site.folder / "overlay.png")).astype(int)
    assert np.abs(overlay - np.asarray(shown["heatmap"]).astype(int)).max() <= 1


@pytest.mark.parametrize("checkpoint", ["embedded", "top_k"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"threshold": 0.2, "min_area": 30},
        {"threshold": 0.2, "min_area": 10_000},
        {"threshold": 1.0, "min_area": 0},
    ],
    ids=str,
)
def test_the_commands_give_what_the_page_shows(sites, checkpoint, settings):
    site = sites[checkpoint]
    session, commands = site.show("part 1.png", **settings)
    answers, _ = site.run(commands)
    assert answers[-1]["name"] == "part 1.png" and str(site.folder) not in commands
    assert_same(site, session, answers[-1])


@pytest.mark.parametrize("checkpoint", ["embedded", "top_k"])
def test_a_calibration_is_repeated_exactly(sites, checkpoint):
    site = sites[checkpoint]
    session, former = site.show("part 1.png")
    normals = []
    for seed in range(4):
        normals.append(str(site.folder / f"normal {seed}.png"))
        render_sample("perforated_sheet", seed, 1, 96, None).image.save(normals[-1])
    site.inspector.calibrate(session, normals, 0.5)
    *_, commands = site.inspector.view(session)
    assert commands != former
    answers, _ = site.run(commands)
    assert answers[-1]["label"] is not None
    assert_same(site, session, answers[-1])


def test_a_recipe_is_stored_only_where_it_is_needed(pipe, files):
    path = str(files / "part 0.png")
    for calibration in (None, {"settings": {"region_of_interest": True}}):
        pipe.image_processor.threshold, pipe.image_processor.calibration = 0.25, calibration
        inspector = Inspector(pipe)
        session = inspector.new_session()
        *_, commands = inspector.segment(session, path)
        assert ("PUT" in commands) == (calibration is not None), "the server may leave out calibrated thresholds"
        *_, commands = inspector.set_min_area(session, 12)
        assert '{"threshold": 0.25, "image_threshold": 0.25, "min_area": 12}' in commands
        *_, commands = inspector.set_threshold(session, 0.5, 0)
        assert '{"threshold": 0.5, "image_threshold": 0.5, "min_area": 0}' in commands


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_files_are_only_names(sites, name):
    site = sites["embedded"]
    (site.folder / "overlay.png").unlink(missing_ok=True)
    content = (site.folder / "part 1.png").read_bytes()
    (site.folder / name).write_bytes(content)
    try:
        session, commands = site.show(name)
        answers, made = site.run(commands)
        assert answers[-1]["score"] == pytest.approx(session.segmented.score, abs=1e-6)
        assert (site.folder / name).read_bytes() == content
        assert made == ["overlay-of-overlay.png" if name == "overlay.png" else "overlay.png"]
    finally:
        (site.folder / name).unlink()


def test_control_characters_are_not_pasted():
    for name in ("a\nrm b.png", "a\x1b[2J.png", "a\u202egnp.exe", "a\x03.png"):
        commands = request_commands(name, None, False)
        assert all(line.isprintable() for line in commands.splitlines()) and "PICTURE" in commands


def test_a_refused_recipe_is_followed_by_no_result(sites):
    site = sites["embedded"]
    _, commands = site.show("part 1.png", threshold=0.31, min_area=0)
    script = commands.replace(SERVER, site.address).replace("$(cat token)", "a-wrong-token")
    done = subprocess.run(["bash", "-c", script], cwd=site.folder, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "token" in done.stdout and "score" not in done.stdout


def test_checkpoints_are_named_as_the_server_finds_them(tmp_path):
    def serve(*arguments):
        return shlex.split(start_commands(*arguments).splitlines()[-1])

    token = ["--token-file", "token"]
    assert serve(EMBEDDED_CHECKPOINT) == ["vcp-clip", "serve", *token]
    assert serve("owner/it's", "bfloat16") == [
        "vcp-clip",
        "serve",
        "--dtype",
        "bfloat16",
        "--model",
        "owner/it's",
        *token,
    ]
    assert serve(str(tmp_path)) == ["vcp-clip", "serve", "--model", f"./{tmp_path.name}", *token]
    assert serve("") == ["vcp-clip", "serve", "--model", "FOLDER", *token]
