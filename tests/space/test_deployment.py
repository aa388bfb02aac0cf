"""The folder of the Space: its card has the fields that the Hub needs, its requirements are those of the package."""

import ast
import sys
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard


ROOT = Path(__file__).parents[2]
SPACE = ROOT / "examples" / "space"


def setup_constant(name: str):
    """Return a list or dict at the top of setup.py, without running it."""
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    pytest.fail(f"setup.py has no {name}")


def test_the_card_is_what_a_space_needs():
    data = SpaceCard.load(SPACE / "README.md").data
    assert (data.sdk, data.app_file, data.license) == ("gradio", "app.py", "apache-2.0")
    assert data.title and len(data.to_dict()["short_description"]) <= 60
    colors = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {data.colorFrom, data.colorTo} <= colors
    (gradio,) = setup_constant("EXTRAS")["demo"]
    assert gradio == "gradio>=6.0" and int(data.sdk_version.split(".")[0]) == 6


def test_its_requirements_are_the_packages():
    lines = (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    requirements = [line for line in lines if line and not line.startswith(("#", "--"))]
    assert requirements == setup_constant("INSTALL_REQUIRES")


def test_the_files_it_is_made_from_are_there():
    text = (SPACE / "README.md").read_text(encoding="utf-8")
    uploads = [line.split() for line in text.splitlines() if line.strip().startswith("hf upload")]
    assert [words[4] for words in uploads] == [".", "vcp_clip_hf"]
    for words in uploads:
        assert (ROOT / words[3]).exists(), words


def test_its_files_import_only_each_other_and_what_a_space_installs():
    imported = set()
    for path in SPACE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.name}: a Space runs app.py as a program, without a package around it"
                imported.add(node.module.split(".")[0])
            elif isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
    own = {path.stem for path in SPACE.glob("*.py")} - {"app"}
    installed = {"gradio", "numpy", "PIL", "transformers", "vcp_clip_hf"}
    assert imported - sys.stdlib_module_names == own | installed
