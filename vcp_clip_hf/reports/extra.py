"""The packages that reports need beside those of this package."""

from importlib.util import find_spec


__all__ = ["INSTALL", "check_report_extra"]

INSTALL = 'Reports need matplotlib and Jinja2: pip install "vcp-clip-hf[report]"'


def check_report_extra() -> None:
    """
    Check that a report can be written, before a run that ends with one.

    Raises:
        ImportError: the extra `report` is not installed.
    """
    if any(find_spec(name) is None for name in ("jinja2", "matplotlib")):
        raise ImportError(INSTALL)
