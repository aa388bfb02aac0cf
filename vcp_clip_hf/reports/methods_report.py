"""The report of `vcp-clip evaluate --method`: the comparison of its methods, beside their published numbers."""

import json
from pathlib import Path

from .accuracy_comparison import Published, report_evaluations
from .parts import Section
from .read_run import METHODS_FILE, METHODS_FOLDER, Run


__all__ = ["report_methods"]


def report_methods(
    run: Run, page: Path, figures: Path | None = None, progress: bool = False
) -> tuple[str, str, list[Section]]:
    """
    Return title, subtitle and sections of the report of a comparison of methods.

    Args:
        run ([`Run`]): the comparison, with a folder for each method.
        page (`Path`): HTML file that the sections are for.
        figures (`Path`, *optional*): folder for the charts as SVG and PDF files.
        progress (`bool`, *optional*, defaults to `False`): no effect.

    Raises:
        ValueError: the comparison was made without `--report`, or a file is damaged.
    """
    file = run.folder / METHODS_FILE
    try:
        methods = json.loads(file.read_text(encoding="utf-8"))["methods"]
        published, sources = _published(methods)
        notes = [f"{method['title']}: {note}" for method in methods.values() for note in method["notes"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not a table of methods ({error!r}). Evaluate again.") from error
    runs = [Run("evaluate", run.folder / METHODS_FOLDER / Path(name).name) for name in methods]
    if not all(each.folder.is_dir() for each in runs):
        raise ValueError(
            f"{run.folder} has no results of the single methods. Evaluate again with --report, which keeps them."
        )
    _, _, sections = report_evaluations(runs, page, figures, progress, (published, sources))
    return f"Comparison of {len(runs)} methods", " ".join(notes), sections


def _published(methods: dict) -> tuple[Published, list[str]]:
    numbers: dict[tuple[str, str, str], dict[str, float]] = {}
    for name, method in methods.items():
        for each in method["published"]:
            key = (name, each["dataset"], each["product"])
            numbers.setdefault(key, {})[each["metric"]] = each["value"]
    sources = {each["source"]: None for method in methods.values() for each in method["published"]}
    return numbers, list(sources)
