"""All imports of the package follow the table of floors in docs/design.md."""

import ast
import re
from dataclasses import dataclass, field
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vcp_clip_hf"
DESIGN = ROOT / "docs" / "design.md"

# A Hub repository holds copies of these files and of what they import
TRAVELING = (
    "configuration_vcp_clip.py",
    "modeling_vcp_clip.py",
    "image_processing_vcp_clip.py",
    "pipeline_anomaly_segmentation.py",
)


@dataclass(frozen=True)
class Row:
    """A row of the table: files of one floor that may import each other."""

    floor: int
    patterns: tuple[str, ...]

    def holds(self, file: str) -> bool:
        return any(fnmatch(file, f"{each}*" if each.endswith("/") else each) for each in self.patterns)


@dataclass
class SourceFile:
    """The imports of one file: files of the package with line numbers, and names that it imports by a string."""

    imports: dict[str, int] = field(default_factory=dict)  # file -> line
    by_string: list[str] = field(default_factory=list)


def read_table(text: str) -> list[Row]:
    """Return the rows `| 2 | `name.py`, `folder/` | ... |` of the first table with a column "floor"."""
    table = text[text.index("| floor |") :].split("\n\n")[0]
    rows = [re.match(r"\| (\d+) \| ([^|]+) \|", line) for line in table.splitlines()[2:]]
    return [Row(int(row[1]), tuple(re.findall(r"`([^`]+)`", row[2]))) for row in rows]


def read_package(package: Path) -> dict[str, SourceFile]:
    """Return path inside the package -> imports of that file, including those inside functions."""
    paths = {path.relative_to(package).as_posix(): path for path in sorted(package.rglob("*.py"))}
    return {name: _read_file(path, package) for name, path in paths.items()}


def _read_file(path: Path, package: Path) -> SourceFile:
    found = SourceFile()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, path, package)
            modules = [(base, alias.name) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            found.by_string += [each.value for each in node.args if isinstance(each, ast.Constant)]
            continue
        else:
            continue
        for module, name in modules:
            target = _file_of(module, name, package)
            if target is not None and target != path.relative_to(package).as_posix():
                found.imports.setdefault(target, node.lineno)
    return found


def _absolute(node: ast.ImportFrom, path: Path, package: Path) -> str:
    """Return the full dotted name of the module in a `from ... import`."""
    if not node.level:
        return node.module
    parents = [package.name, *path.relative_to(package).parent.parts]
    parents = parents[: len(parents) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _file_of(module: str, name: str | None, package: Path) -> str | None:
    """Return the package's file that `import module` or `from module import name` reads; None for other modules."""
    first, *rest = module.split(".")
    if first != package.name:
        return None
    for parts in ([*rest, name], rest):
        if None in parts:
            continue
        for candidate in (Path(*parts, "__init__.py"), Path(*parts).with_suffix(".py") if parts else None):
            if candidate is not None and (package / candidate).is_file():
                return candidate.as_posix()
    return None


def find_problems(package: Path, rows: list[Row]) -> list[str]:
    """Return everything that contradicts the table."""
    files = read_package(package)
    everything = [path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()]
    problems = [
        f"{pattern}: in the table, but there is no such file"
        for row in rows
        for pattern in row.patterns
        if not any(Row(0, (pattern,)).holds(file) for file in everything)
    ]
    homes = {file: [row for row in rows if row.holds(file)] for file in files}
    problems += [f"{file}: in {len(home)} rows of the table" for file, home in homes.items() if len(home) != 1]
    if problems:
        return problems
    for file, source in files.items():
        (row,) = homes[file]
        for target, line in source.imports.items():
            (below,) = homes[target]
            if below is not row and below.floor >= row.floor:
                problems.append(f"{file}:{line}: floor {row.floor} imports {target} of floor {below.floor}")
        problems += [
            f"{file}: imports {name!r} by a string"
            for name in source.by_string
            if str(name).startswith((".", package.name))
        ]
    try:
        TopologicalSorter({file: source.imports.keys() for file, source in files.items()}).prepare()
    except CycleError as error:
        problems.append(f"circle: {' <- '.join(error.args[1])}")
    return problems


def test_every_file_imports_from_the_floors_below():
    problems = find_problems(PACKAGE, read_table(DESIGN.read_text(encoding="utf-8")))
    assert not problems, "\n".join(problems)


def test_files_that_travel_find_each_other_in_one_folder():
    """transformers follows `from .name import x` only, and skips imports inside `try`."""
    reached, waiting = set(), list(TRAVELING)
    while waiting:
        file = waiting.pop()
        reached.add(file)
        tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
        tried = {id(node) for each in ast.walk(tree) if isinstance(each, ast.Try) for node in ast.walk(each)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or id(node) in tried:
                continue
            if node.level:
                assert (PACKAGE / f"{node.module}.py").is_file() and node.level == 1, f"{file}:{node.lineno}"
                waiting += {f"{node.module}.py"} - reached
            else:
                assert node.module.split(".")[0] != PACKAGE.name, f"{file}:{node.lineno} needs the package"
    assert {"prompts.py", "image_loading.py"} < reached and "checkpoint_folder.py" not in reached


TABLE = """
| floor | files | what they know |
|---|---|---|
| 1 | `low.py` | nothing |
| 2 | `middle.py`, `beside.py` | a little |
| 3 | `top/`, `__init__.py` | all |

| floor | another table |
"""


@pytest.fixture
def package(tmp_path):
    """A package of six files without problems."""
    files = {
        "__init__.py": "from .top import name",
        "low.py": "import os",
        "middle.py": "from .beside import x\nfrom .low import y",
        "beside.py": "",
        "top/__init__.py": "from .inner import name",
        "top/inner.py": "def f():\n    from ..middle import x\n    import some.low",
    }
    for name, text in files.items():
        (tmp_path / "some" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "some" / name).write_text(text)
    return tmp_path / "some"


def test_a_package_in_order_has_no_problems(package):
    assert find_problems(package, read_table(TABLE)) == []


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("new.py", "", "new.py: in 0 rows of the table"),
        ("low.py", None, "low.py: in the table, but there is no such file"),
        ("low.py", "def f():\n    from .middle import x", "low.py:2: floor 1 imports middle.py of floor 2"),
        ("low.py", "from some.middle import x", "low.py:1: floor 1 imports middle.py of floor 2"),
        ("low.py", "from . import name", "low.py:1: floor 1 imports __init__.py of floor 3"),
        ("middle.py", "from . import top", "middle.py:1: floor 2 imports top/__init__.py of floor 3"),
        ("beside.py", "from .middle import x", "circle: beside.py <- middle.py <- beside.py"),
        ("low.py", "import_module('some.middle')", "low.py: imports 'some.middle' by a string"),
        ("low.py", "importlib.import_module('.middle', 'some')", "low.py: imports '.middle' by a string"),
    ],
)
def test_each_kind_of_problem_is_found(package, file, text, problem):
    if text is None:
        (package / file).unlink()
    else:
        (package / file).write_text(text)
    assert problem in find_problems(package, read_table(TABLE))
