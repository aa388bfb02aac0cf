"""Every code block of the documentation runs, or has valid commands and a mark that says why it cannot run.

A block is marked by an HTML comment on the line before it, such as `<!-- needs the data -->`.
"""

import ast
import importlib
import inspect
import itertools
import os
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState
from PIL import Image

from tests.video.clips import write_clip
from vcp_clip_hf.cli import app as vcp_clip_app
from vcp_clip_hf.cli import main as vcp_clip
from vcp_clip_hf.convert_vcp_clip_to_hf import main as convert
from vcp_clip_hf.generator import DEFECTS, PRODUCTS, render_sample, select_products
from vcp_clip_hf.training_config import TrainingConfig


ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "MODEL_CARD.md", "BENCHMARKS.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
SLOW_PAGES = ("export.md", "reports.md")
REASONS = (
    "needs the data",
    "needs the network",
    "needs several devices",
    "needs a GPU",
    "takes hours",
    "needs a token",
    "needs torchao",
    "needs a camera",
)
FENCE = re.compile(r"(?:<!-- (?P<mark>[^>]*) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)```", re.S)
RUN_BLOCKS = ("python", "bash")


def blocks(page: Path) -> list[tuple[str | None, str, str]]:
    """Return (mark, language, code) of each block of a page."""
    return [
        (found["mark"], found["language"], found["code"])
        for found in FENCE.finditer(page.read_text(encoding="utf-8"))
        if found["language"] in RUN_BLOCKS
    ]


def commands(code: str) -> list[list[str]]:
    """Return the commands of a shell block, without comments and loops."""
    lines = code.replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [words for words in found if words and words[0] not in ("for", "done", "do")]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """Make the files that the pages use: normal and defective images, sorted images, a large image, a video."""
    folder = tmp_path_factory.mktemp("docs")
    products = select_products("unseen")
    for index in range(9):  # as many as a false-alarm rate of 0.1 needs
        good = render_sample(products[0], 1, index, 96)
        bad = render_sample(products[0], 1, 100 + index, 96, "auto")
        for kind, sample, count in (("normal", good, 9), ("defective", bad, 2), ("images", bad, 3)):
            if index < count:
                (folder / kind).mkdir(exist_ok=True)
                sample.image.save(folder / kind / f"{index:03d}.png")
        if index < 2:
            for kind, sample in (("good", good), ("broken", bad)):
                path = folder / "sorted" / "part" / "test" / kind / f"{index:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                sample.image.save(path)
            # another picture for training, since references are drawn from the training images
            path = folder / "sorted" / "part" / "train" / "good" / f"{index:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            render_sample(products[0], 1, 200 + index, 96).image.save(path)
            path = folder / "sorted" / "part" / "ground_truth" / "broken" / f"{index:03d}_mask.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            bad.mask.save(path)
    shutil.copyfile(folder / "images" / "000.png", folder / "part.png")
    Image.fromarray(np.full((96, 96), 255, np.uint8)).save(folder / "roi.png")
    render_sample(products[1], 1, 0, 400, "auto").image.save(folder / "large.png")
    write_clip(folder / "clip.mp4")
    for name in ("hub_configs", "examples"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture
def registered_families():
    """Remove the products and defects that a page registers."""
    saved = [(table, dict(table)) for table in (PRODUCTS, DEFECTS)]
    yield
    for table, families in saved:
        table.clear()
        table.update(families)


def _running_pages() -> list:
    """Return the pages with blocks that run; those that take minutes are marked."""
    pages = [page for page in PAGES if any(not mark for mark, _, _ in blocks(page))]
    return [
        pytest.param(page, marks=pytest.mark.slow if page.name in SLOW_PAGES else (), id=page.name) for page in pages
    ]


@pytest.mark.usefixtures("registered_families")
@pytest.mark.parametrize("page", _running_pages())
def test_the_blocks_of_a_page_run_in_order(page, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)
    variables = {"__name__": "__page__"}
    for mark, language, code in blocks(page):
        if mark:
            continue
        if language == "python":
            exec(compile(code, f"{page.name}: {code[:40]!r}", "exec"), variables)
        else:
            for words in commands(code):
                run(words, monkeypatch)
    for name in set(sys.modules) - modules:  # modules of an exported folder must not outlive it
        if str(workplace) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def run(words: list[str], monkeypatch) -> None:
    """Run one command in this process: starting a new Python takes seconds."""
    AcceleratorState._reset_state()  # a process keeps its first mixed precision; each command is a process of its own
    program, *arguments = words
    if program == "python":
        # patterns that a shell would expand
        arguments = [each for word in arguments for each in (sorted(map(str, Path().glob(word))) or [word])]
        monkeypatch.setattr(sys, "argv", arguments)
        run_program = lambda: runpy.run_path(arguments[0], run_name="__main__")  # noqa: E731
    elif program == "vcp-clip":
        run_program = lambda: vcp_clip(arguments)  # noqa: E731
    else:
        raise AssertionError(f"this test does not know how to run {program!r}")
    try:
        run_program()
    except SystemExit as end:
        assert end.code in (None, 0), f"{words} ended with {end.code}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_marked_blocks_say_why_and_have_valid_commands(page, tmp_path, monkeypatch):
    for mark, language, code in blocks(page):
        if not mark:
            continue
        assert mark in REASONS, f"{page.name}: {mark!r} is not one of {REASONS}"
        if language != "bash":
            compile(code, page.name, "exec")
            continue
        for words in commands(code):
            parse(words, tmp_path, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_text_are_valid(page, tmp_path, monkeypatch):
    """Indented blocks, and examples quoted within a line."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    indented = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    quoted = re.findall(r"`(python -m examples[^`]+)`", text.replace("\n", " "))
    for words in [*commands(indented), *map(shlex.split, quoted)]:
        if words[0] in PROGRAMS:
            parse(words, tmp_path, monkeypatch)


EXAMPLES = sorted(path for path in (ROOT / "examples").rglob("*.py") if "__pycache__" not in path.parts)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_the_docstring_of_an_example_are_valid(path, tmp_path, monkeypatch):
    lines = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()
    for words in commands("\n".join(line.strip() for line in lines if line.startswith("    "))):
        if words[0] in PROGRAMS and "space/app.py" not in " ".join(words):  # needs Gradio
            parse(words, tmp_path, monkeypatch)


def test_a_wrong_command_is_noticed(tmp_path, monkeypatch):
    for line in (
        "python -m examples.research.contact_sheet --dataset mvtec_ad=datasets/mvtec",
        "accelerate launch examples/train.py --config hub_configs/vcp-clip-baseline/train.yaml --sed 1",
        "accelerate launch examples/train.py --config hub_configs/no-such-folder/train.yaml",
        "python examples/predict.py images results further",
        "python examples/no_such_example.py",
        "vcp-clip predict images --output results --no-such-option",
        "vcp-clip train --ablation head-4 --data_dir D/visa",
        "vcp-clip convert --checkpoint a.pth",
        "vcp-clip no-such-verb",
        "unknown-program x",
    ):
        with pytest.raises((Exception, SystemExit)):
            parse(shlex.split(line), tmp_path, monkeypatch)


# What parse() knows; `hf` is the Hub's own program
PROGRAMS = ("python", "accelerate", "vcp-clip", "hf")


def parse(words: list[str], folder: Path, monkeypatch) -> None:
    """Parse a command with the parser of its program, and run nothing; a mistake raises an exception."""
    words = list(itertools.dropwhile(lambda word: re.fullmatch(r"[A-Z_]+=\S*", word), words))
    monkeypatch.chdir(folder)
    for name in ("hub_configs", "examples"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    program, *arguments = words
    if words[:2] == ["accelerate", "launch"]:
        options, program, arguments = _split_launch(arguments)
        launch_command_parser().parse_args([*options, program])
    elif program == "python":
        program, arguments = (arguments[1], arguments[2:]) if arguments[0] == "-m" else (arguments[0], arguments[1:])
    arguments = [word.replace("$name", "heads-4") for word in arguments]
    if program in ("vcp-clip", "vcp_clip_hf.cli"):
        _parse_vcp_clip(arguments)
    elif program == "examples/train.py":
        TrainingConfig.from_arguments(arguments)
    elif program.startswith("examples.research."):
        _parse_research(program, arguments)
    elif program.startswith("examples."):
        inspect.signature(importlib.import_module(program).main).bind(*arguments)
    elif program.startswith("examples/"):
        main = runpy.run_path(program)["main"]
        inspect.signature(main).bind(*arguments)
    elif program == "hf":
        assert arguments[0] in ("auth", "upload", "repos"), f"{words}: no such command of hf"
    else:
        raise AssertionError(f"this test does not know how to parse {words}")


def _split_launch(arguments: list[str]) -> tuple[list[str], str, list[str]]:
    """Split arguments of `accelerate launch` into its options, the program, and the program's arguments."""
    for index, word in enumerate(arguments):
        if word.startswith("examples/") or word == "vcp_clip_hf.cli":
            return arguments[:index], word, arguments[index + 1 :]
    raise AssertionError(f"accelerate launch {arguments}: no program of this repository")


def _parse_vcp_clip(arguments: list[str]) -> None:
    verb, *rest = arguments
    if verb == "train":
        TrainingConfig.from_arguments(rest)
    elif verb == "convert":
        with pytest.raises(SystemExit) as end:
            convert(rest)
        assert end.value.code == 1, f"{arguments}: only the missing file may be wrong"
    else:
        if verb == "card":
            Path(rest[rest.index("--model") + 1]).mkdir(parents=True, exist_ok=True)
        group = typer.main.get_command(vcp_clip_app)
        group.commands[verb].make_context(
            verb, rest, parent=group.make_context("vcp-clip", [], resilient_parsing=True)
        )


def _parse_research(program: str, arguments: list[str]) -> None:
    module = importlib.import_module(program)
    if hasattr(module, "__path__"):  # a package, run by its __main__
        module = importlib.import_module(f"{program}.__main__")
    if arguments:  # without, the text only names the program
        module.make_parser().parse_args(arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_have_a_target(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}, target


def test_make_targets_that_pages_name_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        for name in re.findall(
            r"`?make ([a-z-]+)`?", "\n".join(re.findall(r"`make [^`]+`|^    make .+$", page.read_text(), re.M))
        ):
            assert name in targets, f"{page.name}: make {name}"
    assert os.path.isfile(ROOT / ".ci" / "run")
