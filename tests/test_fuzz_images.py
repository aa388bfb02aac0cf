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
    outcomes = report["outcomes"]  # TooManyPixels is a documented ValueError, from a damaged header
    assert sum(outcomes.values()) == FILES and set(outcomes) <= {"read", "ValueError", "TooManyPixels"}
    assert min(outcomes["read"], outcomes["ValueError"]) > FILES // 10, "both must occur to prove anything"
    assert report["grown_mib"] < 400
