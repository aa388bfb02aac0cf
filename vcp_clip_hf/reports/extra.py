"""The extra `report`: matplotlib and Jinja2."""

from importlib.util import find_spec


__all__ = ["require_extra"]


def require_extra() -> None:
    """
    Check that the packages that reports need are installed.

    Raises:
        ImportError: a sentence with the line for pip.
    """
    missing = [name for module, name in (("matplotlib", "matplotlib"), ("jinja2", "Jinja2")) if not find_spec(module)]
    if missing:
        raise ImportError(f'Reports need {" and ".join(missing)}: pip install "vcp-clip-hf[report]"')
