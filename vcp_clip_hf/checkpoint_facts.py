"""What is known of a saved checkpoint: its own files, and three more that runs and people leave beside them.

- `training.json`: how the learned part was trained; written by `train`.
- `results.json`: what was measured with it, a list of evaluation reports; written by [`add_results`].
- `card.json`: what only a person can say, such as the licence of the weights; written by [`set_statements`].

The first two carry the fingerprint of the learned weights they are about: facts of other weights are left out.
"""

import difflib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils import cached_file, logging

from .backbone_loading import BACKBONE_PREFIX
from .configuration_vcp_clip import VCPCLIPConfig
from .evaluation_report import EvaluationReport
from .image_processing_vcp_clip import VCPCLIPImageProcessor


__all__ = [
    "FACTS_FILES",
    "RESULTS_FILE",
    "STATEMENTS",
    "STATEMENTS_FILE",
    "TRAINING_FILE",
    "CheckpointFacts",
    "WeightFacts",
    "add_results",
    "carry_facts",
    "learned_fingerprint",
    "set_statements",
    "write_training_facts",
]

logger = logging.get_logger(__name__)

TRAINING_FILE, RESULTS_FILE, STATEMENTS_FILE = "training.json", "results.json", "card.json"
FACTS_FILES = (TRAINING_FILE, RESULTS_FILE, STATEMENTS_FILE)
# What card.json may say, and what it is for
STATEMENTS = {
    "name": "of the checkpoint, the title of its card",
    "description": "a sentence or two below the title",
    "license": "of the weights, as the Hub spells it: apache-2.0, mit, cc-by-nc-4.0, other, ...",
    "license_link": "where that licence can be read",
    "license_note": "what else there is to say on the licence of the weights",
    "backbone": "where the CLIP weights come from, if they are not a Hub repository's",
    "repository": "address of the code",
}


@dataclass(frozen=True)
class WeightFacts:
    """
    What the headers of the weight files say.

    Args:
        learned (`int`): numbers in the learned part.
        backbone (`int`): numbers in CLIP; 0 where it is left out.
        dtypes (`tuple[str, ...]`): as safetensors names them, such as "F16".
        num_bytes (`int`): of the files.
    """

    learned: int
    backbone: int
    dtypes: tuple[str, ...]
    num_bytes: int


@dataclass(frozen=True)
class CheckpointFacts:
    """
    All of it.

    Args:
        folder (`Path`): of the checkpoint.
        config ([`VCPCLIPConfig`]), image_processor ([`VCPCLIPImageProcessor`]): as saved.
        weights (`WeightFacts`): as saved.
        has_code (`bool`): whether the folder works without this package.
        training (`dict`, *optional*): `training.json`, if it is about these weights.
        reports (`list[EvaluationReport]`): `results.json`, those about these weights.
        statements (`dict[str, str]`): `card.json`.
    """

    folder: Path
    config: VCPCLIPConfig
    image_processor: VCPCLIPImageProcessor
    weights: WeightFacts
    has_code: bool = False
    training: dict[str, Any] | None = None
    reports: list[EvaluationReport] = field(default_factory=list)
    statements: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike) -> "CheckpointFacts":
        """
        Read them.

        Raises:
            OSError: not the folder of a checkpoint.
            ValueError: one of the three files is not what it should be.
        """
        folder = Path(folder)
        missing = [name for name in ("config.json", "preprocessor_config.json") if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{folder} is no saved checkpoint: {' and '.join(missing)} not there. Save model and image processor"
                " into it first."
            )
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        files = {name: _read(folder / name) for name in FACTS_FILES}
        training, reports = files[TRAINING_FILE], files[RESULTS_FILE] or []
        reports = [reports] if isinstance(reports, dict) else reports
        # hashing takes a moment; nothing to compare, nothing to hash
        stated = [facts.get("fingerprint") for facts in (training or {}, *(each["settings"] for each in reports))]
        fingerprint = learned_fingerprint(folder) if any(stated) else None

        def is_about_these(facts: Mapping[str, Any], file: str) -> bool:
            if facts.get("fingerprint") in (None, fingerprint):
                return True
            logger.warning(f"{folder / file} is about other weights than those beside it; left out of the card.")
            return False

        return cls(
            folder=folder,
            config=VCPCLIPConfig.from_pretrained(folder),
            image_processor=VCPCLIPImageProcessor.from_pretrained(folder),
            weights=_weights(folder),
            has_code="custom_pipelines" in values,
            training=training if training and is_about_these(training, TRAINING_FILE) else None,
            reports=[
                EvaluationReport.from_dict(each) for each in reports if is_about_these(each["settings"], RESULTS_FILE)
            ],
            statements=_checked(files[STATEMENTS_FILE] or {}),
        )


def write_training_facts(folder: str | os.PathLike, facts: Mapping[str, Any]) -> None:
    """Write `training.json` beside the weights it is about."""
    _write(Path(folder) / TRAINING_FILE, {**facts, "fingerprint": learned_fingerprint(folder)})


def add_results(folder: str | os.PathLike, report: EvaluationReport | Mapping[str, Any]) -> None:
    """
    Keep an evaluation beside the weights it was made with. One of the same datasets by the same protocol is replaced.

    Args:
        folder (`str` or `os.PathLike`): of the checkpoint.
        report (`EvaluationReport` or `dict`): what `evaluate` returned, or the `results.json` that it saved.
    """
    path = Path(folder) / RESULTS_FILE
    values = report.to_dict() if isinstance(report, EvaluationReport) else dict(report)
    try:
        EvaluationReport.from_dict(values).rows()
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"These results are not an evaluation report ({error!r}). Give the results.json that `vcp-clip evaluate"
            " --output` writes."
        ) from error
    # the model was wherever it was; from now on it is here
    settings = {name: value for name, value in values["settings"].items() if name != "model"}
    values["settings"] = {**settings, "fingerprint": learned_fingerprint(folder)}
    kept = _read(path) or []
    kept = [each for each in ([kept] if isinstance(kept, dict) else kept) if _subject(each) != _subject(values)]
    _write(path, [*kept, values])


def set_statements(folder: str | os.PathLike, **statements: str | None) -> None:
    """Say what only a person can say of a checkpoint; names as in `STATEMENTS`, `None` leaves what was said."""
    given = _checked({name: value for name, value in statements.items() if value is not None})
    path = Path(folder) / STATEMENTS_FILE
    if given:
        _write(path, {**(_read(path) or {}), **given})


def carry_facts(source: str | os.PathLike, folder: str | os.PathLike, download: bool = False) -> None:
    """
    Copy the three files from one checkpoint to another, where they are missing.

    Args:
        source (`str` or `os.PathLike`): folder, or Hub repository.
        folder (`str` or `os.PathLike`): to copy to.
        download (`bool`, *optional*, defaults to `False`): look on the Hub if `source` is not a folder.
    """
    for name in FACTS_FILES:
        found = Path(source) / name
        if not os.path.isdir(source):
            if not download:
                return
            try:
                found = cached_file(str(source), name, _raise_exceptions_for_missing_entries=False)
            except (OSError, ValueError):  # nothing's name: of a model made in memory, say
                return
        target = Path(folder) / name
        if found is not None and os.path.isfile(found) and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found, target)


def learned_fingerprint(folder: str | os.PathLike) -> str:
    """
    Names the learned tensors of a checkpoint, in half precision: with or without CLIP, in float32 or float16, the
    same training has the same fingerprint.
    """
    import torch

    digest = hashlib.sha256()
    places = {name: file for file in _files(folder) for name in _names(file) if not name.startswith(BACKBONE_PREFIX)}
    for name in sorted(places):
        with _opened(places[name]) as weights:
            values = weights.get_tensor(name).to(torch.float16).contiguous()
        digest.update(f"{name}{list(values.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _weights(folder: Path) -> WeightFacts:
    counts, dtypes, files = {True: 0, False: 0}, set(), _files(folder)
    for file in files:
        with _opened(file) as weights:
            for name in weights.keys():  # noqa: SIM118 -- not a dict
                piece = weights.get_slice(name)
                size = 1
                for side in piece.get_shape():
                    size *= side
                counts[name.startswith(BACKBONE_PREFIX)] += size
                dtypes.add(piece.get_dtype())
    return WeightFacts(counts[False], counts[True], tuple(sorted(dtypes)), sum(file.stat().st_size for file in files))


def _files(folder: str | os.PathLike) -> list[Path]:
    found = sorted(Path(folder).glob("model*.safetensors"))
    if not found:
        raise FileNotFoundError(f"{folder} has no weights (model.safetensors). Save the model into it first.")
    return found


def _opened(file: Path):
    from safetensors import safe_open

    return safe_open(file, framework="pt")


def _names(file: Path) -> list[str]:
    with _opened(file) as weights:
        return list(weights.keys())


def _subject(report: Mapping[str, Any]) -> tuple:
    return tuple(sorted(report["results"])), json.dumps(report["protocol"], sort_keys=True)


def _checked(statements: Mapping[str, Any]) -> dict[str, str]:
    for name, value in statements.items():
        if name not in STATEMENTS:
            close = difflib.get_close_matches(name, STATEMENTS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(STATEMENTS)}."
            raise ValueError(f"{STATEMENTS_FILE} cannot say {name!r}; {hint}")
        if not isinstance(value, str):
            raise ValueError(f"{name}={value!r} of {STATEMENTS_FILE} must be a string.")
    return dict(statements)


def _read(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error


def _write(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
