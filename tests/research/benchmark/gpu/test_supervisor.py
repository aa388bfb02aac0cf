"""Sections in a second process: real processes that crash, hang, and go on."""

import os
import time

import pytest

from examples.research.benchmark.gpu import supervisor
from examples.research.benchmark.gpu.supervisor import supervise


def worker(connection, limits, end, faults):
    """Run sections that do what `faults` says."""
    if faults.get("start"):
        os._exit(7)
    for name in limits:
        connection.send({"begin": name})
        fault = faults.get(name)
        connection.send({"row": name, "process": os.getpid()})
        if fault == "crash":
            os._exit(3)
        if fault == "hang":
            time.sleep(60)
        connection.send({"end": name})
        if fault == "last of its process":
            return


def run(limits, faults=None, seconds=60.0):
    """Return the messages, with processes numbered in the order of their appearance."""
    messages = []
    supervise(worker, [faults or {}], limits, time.time() + seconds, messages.append)
    processes = list(dict.fromkeys(each["process"] for each in messages if "process" in each))
    return [{**each, "process": processes.index(each["process"])} if "process" in each else each for each in messages]


def row(name, process=0):
    return {"row": name, "process": process}


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch):
    monkeypatch.setattr(supervisor, "GRACE_SECONDS", 0.5)


def test_all_sections_run_in_one_process():
    assert run({"a": 9, "b": 9}) == [row("a"), row("b")]


def test_after_a_crash_the_next_section_runs_in_a_new_process():
    assert run({"a": 9, "b": 9, "c": 9}, {"b": "crash"}) == [
        row("a"),
        row("b"),
        {"failed": "b", "why": "its process ended with exit code 3"},
        row("c", 1),
    ]


def test_a_section_that_does_not_return_is_ended():
    started = time.monotonic()
    assert run({"a": 0.1, "b": 9}, {"a": "hang"}) == [
        row("a"),
        {"failed": "a", "why": "its limit of time was over, and its process was ended"},
        row("b", 1),
    ]
    assert time.monotonic() - started < 30


def test_a_process_may_end_early():
    assert run({"a": 9, "b": 9}, {"a": "last of its process"}) == [row("a"), row("b", 1)]


def test_a_process_that_cannot_start_is_not_started_again():
    found = run({"a": 9, "b": 9}, {"start": True})
    assert [each["failed"] for each in found] == ["a", "b"]
    assert all("no section was begun" in each["why"] and "exit code 7" in each["why"] for each in found)


def test_what_has_no_time_is_left_out():
    assert run({"a": 9}, seconds=-1) == [{"left_out": "a", "why": "no time was left"}]


def test_the_end_of_all_ends_a_section():
    """The limit of the section itself is far."""
    found = run({"a": 60, "b": 60}, {"a": "hang"}, seconds=4.0)
    assert {"failed": "a", "why": "its limit of time was over, and its process was ended"} in found
    assert found[-1] == {"left_out": "b", "why": "no time was left"}
