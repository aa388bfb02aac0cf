"""Cells of CSV tables that spreadsheets show as text."""

from typing import Any


__all__ = ["safe_cell"]

# Spreadsheets run a cell that begins with one of these as a formula (OWASP, "CSV Injection")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def safe_cell(value: Any) -> Any:
    """
    Return a value for the csv module. A text that a spreadsheet would take for a formula gets an apostrophe before it,
    as OWASP recommends; other values stay unchanged.
    """
    if not isinstance(value, str):
        return value
    prefix = "'" if value.startswith(_FORMULA_STARTS) else ""
    return prefix + value.replace("\r", "\\r")  # the csv module does not quote a lone carriage return
