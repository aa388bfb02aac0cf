"""The tests of results on this device, run as a section of the benchmark."""

import contextlib
import io
import os
from pathlib import Path

from .measurement import Measurement


__all__ = ["equality_on_the_device"]

TESTS = Path(__file__).parents[4] / "tests" / "test_on_gpu.py"


class _Results:
    """A plugin of pytest that reports each test when it ends."""

    def __init__(self, run: Measurement):
        self.run = run
        self.passed = self.failed = 0

    def pytest_runtest_logreport(self, report) -> None:
        if report.passed and report.when == "call":
            self.passed += 1
            measured = {name: value for name, value in report.user_properties if isinstance(value, float)}
            self.run.row("equality", {"check": _name(report.nodeid), "passed": True, **measured})
        elif report.failed:
            self.failed += 1
            crash = getattr(report.longrepr, "reprcrash", None)
            why = str(crash.message if crash else report.longrepr).strip().splitlines() or ["no reason"]
            self.run.row("equality", {"check": _name(report.nodeid), "passed": False, "why": why[0]})
        elif report.skipped:
            self.run.leave_out(_name(report.nodeid), report.longrepr[2])

    def pytest_runtest_protocol(self, item, nextitem) -> None:
        if self.run.time_left() < 0 and nextitem is not None:
            self.run.leave_out(f"checks from {_name(nextitem.nodeid)} on", "no time was left")
            item.session.shouldstop = "no time was left"


def equality_on_the_device(run: Measurement, tests: Path = TESTS) -> None:
    """Run the tests for this device, and report a row for each."""
    try:
        import pytest
    except ImportError:
        run.leave_out("all checks", "pytest is not installed (pip install pytest)")
        return
    # Plugins of other packages would take seconds, and the tests need none
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    results, printed = _Results(run), io.StringIO()
    options = ["--noconftest", "-p", "no:cacheprovider", "-s", "-W", "ignore"]
    # What is compiled takes seconds; a later section compares it
    options += ["-k", f"{run.device.type} and not compiled"]
    with contextlib.redirect_stdout(printed):
        pytest.main([*options, str(tests)], plugins=[results])
    if not results.passed + results.failed:
        errors = [line for line in printed.getvalue().splitlines() if line.startswith("E ")]
        raise RuntimeError(f"pytest ran no test: {' '.join(errors[-1:]) or 'none was found'}")


def _name(nodeid: str) -> str:
    return nodeid.split("::", 1)[-1]
