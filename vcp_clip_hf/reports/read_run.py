"""Detect the kind of run that wrote a folder or a file."""

import json
import os
from dataclasses import dataclass
from pathlib import Path


__all__ = ["METHODS_FILE", "METHODS_FOLDER", "Run", "find_run"]

# A file that each kind of run writes, and how its content is known
_RESULTS, _LOG, _RECORDS, _PROCESSOR = "results.json", "log.jsonl", "predictions.jsonl", "preprocessor_config.json"
# Table of `evaluate --method`, and the folder with the results of each method
METHODS_FILE, METHODS_FOLDER = "methods.json", "methods"
_EXPECTED = (
    "Expected the output folder of `vcp-clip predict` (predictions.jsonl), `vcp-clip evaluate --output`"
    f" ({_RESULTS}), `vcp-clip train` ({_LOG}) or `vcp-clip calibrate --report` (calibration.json)."
)


@dataclass(frozen=True)
class Run:
    """
    A finished run.

    Args:
        kind (`str`): "predict", "calibrate", "evaluate", "methods" (`evaluate --method`) or "train".
        folder (`Path`): folder of the run.
    """

    kind: str
    folder: Path


def find_run(path: str | os.PathLike) -> Run:
    """
    Detect the kind of run that wrote a folder; a file stands for its folder.

    Args:
        path (`str` or `os.PathLike`): output folder of a run, or one of the files named above in it.

    Returns:
        [`Run`].

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: the folder was not written by one of these; the message has the expected files.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"No such folder: {str(path)!r}. {_EXPECTED}")
    folder = path if path.is_dir() else path.parent
    kinds = [kind for kind, is_kind in _KINDS.items() if is_kind(folder)]
    if path.is_file():
        kinds = [kind for kind in kinds if path.name in _FILES[kind]]
    if not kinds:
        raise ValueError(f"{str(path)!r} is not the folder of a run that can be reported. {_EXPECTED}")
    return Run(kinds[0], folder)


def _is_prediction(folder: Path) -> bool:
    return any(folder.glob("predictions*.jsonl"))


def _is_evaluation(folder: Path) -> bool:
    return (folder / _RESULTS).is_file()


def _is_method_comparison(folder: Path) -> bool:
    return (folder / METHODS_FILE).is_file()


def _is_training(folder: Path) -> bool:
    return (folder / _LOG).is_file()


def _is_calibration(folder: Path) -> bool:
    return (folder / "calibration.json").is_file() or bool(_content(folder / _PROCESSOR).get("calibration"))


def _content(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


_FILES = {
    "predict": (_RECORDS, "run.json"),
    "evaluate": (_RESULTS,),
    "methods": (METHODS_FILE,),
    "train": (_LOG,),
    "calibrate": ("calibration.json", _PROCESSOR),
}
_KINDS = {
    "predict": _is_prediction,
    "calibrate": _is_calibration,  # before evaluate: a checkpoint has a results.json too
    "evaluate": _is_evaluation,
    "methods": _is_method_comparison,
    "train": _is_training,
}
