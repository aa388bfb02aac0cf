"""A few thousand damaged image files: documented errors only, no file lost, memory bounded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


FILES = 3000


@pytest.mark.slow
def test_damaged_files_end_in_a_picture_or_a_documented_error(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "tests.fuzz_run", str(FILES), str(tmp_path)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    report = json.loads(result.stdout.splitlines()[-1])
    assert not report["problems"], "\n".join(report["problems"][:20])
    assert sum(report["outcomes"].values()) == FILES and set(report["outcomes"]) <= {"read", "ValueError"}
    assert min(report["outcomes"].values()) > FILES // 10, "both outcomes must occur for the test to prove anything"
    assert report["grown_mib"] < 400
