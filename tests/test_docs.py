"""Every code block of the documentation runs, or is marked with why it cannot; every link leads somewhere.

A block is marked by an HTML comment on the line before it, such as `<!-- needs the data -->`.
"""

import os
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from vcp_clip_hf.cli import main as vcp_clip
from vcp_clip_hf.generator import DEFECTS, PRODUCTS, render_sample, select_products
from vcp_clip_hf.training_config import TrainingConfig


ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "MODEL_CARD.md", "BENCHMARKS.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
REASONS = (
    "needs the data",
    "needs the network",
    "needs several devices",
    "takes hours",
    "needs a token",
    "needs torchao",
)
FENCE = re.compile(r"(?:<!-- (?P<mark>[^>]*) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)```", re.S)
RUN_BLOCKS = ("python", "bash")


def blocks(page: Path) -> list[tuple[str | None, str, str]]:
    """(mark, language, code) of each block of a page."""
    return [
        (found["mark"], found["language"], found["code"])
        for found in FENCE.finditer(page.read_text(encoding="utf-8"))
        if found["language"] in RUN_BLOCKS
    ]


def commands(code: str) -> list[list[str]]:
    """The commands of a shell block, without comments and loops."""
    lines = code.replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [words for words in found if words and words[0] not in ("for", "done", "do")]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """The files that the pages speak of: images, normal and defective ones, sorted ones, a large one."""
    folder = tmp_path_factory.mktemp("docs")
    products = select_products("unseen")
    for index in range(12):
        good = render_sample(products[0], 1, index, 96)
        bad = render_sample(products[0], 1, 100 + index, 96, "auto")
        for kind, sample, count in (("normal", good, 12), ("defective", bad, 4), ("images", bad, 3)):
            if index < count:
                (folder / kind).mkdir(exist_ok=True)
                sample.image.save(folder / kind / f"{index:03d}.png")
        if index < 4:
            for kind, sample in (("good", good), ("broken", bad)):
                path = folder / "sorted" / "part" / "test" / kind / f"{index:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                sample.image.save(path)
            path = folder / "sorted" / "part" / "ground_truth" / "broken" / f"{index:03d}_mask.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            bad.mask.save(path)
    shutil.copyfile(folder / "images" / "000.png", folder / "part.png")
    Image.fromarray(np.full((96, 96), 255, np.uint8)).save(folder / "roi.png")
    render_sample(products[1], 1, 0, 400, "auto").image.save(folder / "large.png")
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


@pytest.mark.usefixtures("registered_families")
@pytest.mark.parametrize("page", [page for page in PAGES if any(not mark for mark, _, _ in blocks(page))], ids=str)
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
    for name in set(sys.modules) - modules:  # an exported folder's own copies must not outlive it
        if str(workplace) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def run(words: list[str], monkeypatch) -> None:
    """One command, in this process: starting Python anew takes seconds."""
    AcceleratorState._reset_state()  # a process keeps its first mixed precision; each command is a process of its own
    program, *arguments = words
    if program == "python":
        # what the shell would have expanded
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
def test_marked_blocks_say_why_and_name_what_exists(page):
    for mark, language, code in blocks(page):
        if not mark:
            continue
        assert mark in REASONS, f"{page.name}: {mark!r} is none of {REASONS}"
        if language != "bash":
            compile(code, page.name, "exec")
            continue
        for words in commands(code):
            for word in words:
                if word.startswith(("examples/", "hub_configs/")) and "$" not in word and "*" not in word:
                    assert (ROOT / word).exists(), f"{page.name}: {word}"
            if "examples/train.py" in words and "$" not in " ".join(words):
                config = TrainingConfig.from_arguments(words[words.index("examples/train.py") + 1 :])
                assert config.data_dir is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
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
