"""Names of runs, and the settings in which they differ."""

from pathlib import Path

import pytest

from vcp_clip_hf.reports.several_runs import named_runs, runs_and_settings


def test_names_are_as_short_as_they_can_be():
    assert named_runs([Path("a/x"), Path("a/y")]) == ["x", "y"]
    assert named_runs([Path("a/x"), Path("b/x"), Path("b/y")]) == ["a/x", "b/x", "b/y"]
    with pytest.raises(ValueError, match="a/x is given twice"):
        named_runs([Path("a/x"), Path("b/x"), Path("a/x")])


def test_only_settings_that_differ_are_listed():
    settings = [
        {"model": "m", "size": [4, 4], "nested": {"a": 1, "b": 2}},
        {"model": "m", "size": [4, 4], "nested": {"a": 1}},
    ]
    table, text = runs_and_settings(["x", "y"], [Path("p/x"), Path("p/y")], settings)
    assert table.rows == [["folder", "p/x", "p/y"], ["nested: b", "2", "not set"]]
    assert text.text == "The other 3 settings are equal."
