"""All verbs over one folder of odd files: the table in the docs is what really happens."""

import re

import pytest

from tests import odd_files
from tests.processes import run_program


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("odd")


@pytest.fixture(scope="module")
def table(folder):
    """Write the files into the folder, and return the table of what happens to them."""
    return odd_files.make_table(folder)


def test_the_table_in_the_docs_is_what_happens(table):
    assert len(odd_files.FILES) >= 60
    documented = odd_files.DOCUMENT.read_text(encoding="utf-8")
    assert documented == odd_files.document() + table + "\n", "python -m tests.odd_files rewrites the table"
    for status in (odd_files.READ, odd_files.FAILED, odd_files.LEFT_OUT):
        assert f"**{status}**" in documented and f"| {status} |" in table


def test_evaluate_and_train_use_what_was_read(folder, table):
    odd_files.evaluate_and_train(folder)


def test_the_command_line_does_the_rest_and_lists_the_failures(folder, table):
    """A real process, whose terminal cannot print every name."""
    odd_files.make_pipe().save_pretrained(folder / "checkpoint")
    arguments = ["predict", folder / "parts" / "good", folder / "gone", "-o", folder / "parts" / "good" / "results"]
    arguments += ["-m", folder / "checkpoint", "--num-workers", "0", "--overwrite"]
    done = run_program("-m", "vcp_clip_hf.cli", *arguments)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    failures = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    num_failed = len(re.findall(rf"^\| `.*?` \| [^|]* \| {odd_files.FAILED} \|", table, re.MULTILINE))
    assert len(failures) == num_failed + 1 and "left out: 5 hidden" in done.stderr
