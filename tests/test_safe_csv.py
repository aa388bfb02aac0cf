"""Cells of CSV tables: no formulas."""

import csv
import io

import pytest

from vcp_clip_hf.safe_csv import safe_cell


@pytest.mark.parametrize("text", ["=cmd|' -C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_formulas_become_text(text):
    stream = io.StringIO()
    csv.writer(stream).writerow([safe_cell(text), "next"])
    ((cell, following),) = csv.reader(io.StringIO(stream.getvalue()))
    assert cell == "'" + text.replace("\r", "\\r") and following == "next"


@pytest.mark.parametrize("value", ["part.png", "a=b", "", 0.5, -1, None])
def test_other_values_stay_unchanged(value):
    assert safe_cell(value) == value
