"""Facts about a saved checkpoint: its own files, and three more files beside them.

- `training.json`: how the learned part was trained; written by [`write_training_facts`].
- `results.json`: a list of evaluation reports; written by [`add_results`].
- `card.json`: statements that only a person can make, such as the license; written by [`set_statements`].

The first two carry the fingerprint of the learned weights that they describe. Facts about other weights are ignored.
"""

import difflib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import cached_file, logging

from .atomic_write import atomic_file
from .backbone_loading import FROZEN_PREFIXES, segmenter_config_class
from .checkpoint_errors import explained, read_config_values
from .configuration_frozen_clip import FrozenCLIPConfig
from .evaluation_report import EvaluationReport
from .image_processing_vcp_clip import VCPCLIPImageProcessor
from .markdown_text import escaped
from .reference_pictures import load_references
from .references import ReferenceMemory


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
    "overlap",
    "read_training_facts",
    "set_statements",
    "write_training_facts",
]

logger = logging.get_logger(__name__)

TRAINING_FILE, RESULTS_FILE, STATEMENTS_FILE = "training.json", "results.json", "card.json"
FACTS_FILES = (TRAINING_FILE, RESULTS_FILE, STATEMENTS_FILE)
# Allowed keys of card.json, and what they describe
STATEMENTS = {
    "name": "name of the checkpoint, the title of its card",
    "description": "a sentence or two below the title",
    "license": "license of the weights, as the Hub spells it: apache-2.0, mit, cc-by-nc-4.0, other, ...",
    "license_link": "address of the license text",
    "license_note": "a remark on the license of the weights",
    "backbone": "origin of the CLIP weights, if they do not come from a Hub repository",
    "repository": "address of the code",
}


@dataclass(frozen=True)
class WeightFacts:
    """
    Sizes and dtypes from the headers of the weight files.

    Args:
        learned (`int`): number of parameters in the learned part.
        backbone (`int`): number of parameters in CLIP or other frozen networks; 0 if the checkpoint does not include
            them.
        dtypes (`tuple[str, ...]`): dtypes in the notation of safetensors, such as "F16".
        num_bytes (`int`): size of the files.
    """

    learned: int
    backbone: int
    dtypes: tuple[str, ...]
    num_bytes: int


@dataclass(frozen=True)
class CheckpointFacts:
    """
    Everything known about a saved checkpoint.

    Args:
        folder (`Path`): folder of the checkpoint.
        config ([`FrozenCLIPConfig`]): its configuration.
        image_processor ([`VCPCLIPImageProcessor`]): its image processor.
        weights (`WeightFacts`): sizes and dtypes of its weights.
        has_code (`bool`): whether the folder includes the code, so that it works without this package.
        training (`dict`, *optional*): contents of `training.json`, if it describes these weights.
        reports (`list[EvaluationReport]`): reports of `results.json` that describe these weights.
        statements (`dict[str, str]`): contents of `card.json`.
        references ([`ReferenceMemory`], *optional*): contents of `references.safetensors`.
    """

    folder: Path
    config: FrozenCLIPConfig
    image_processor: VCPCLIPImageProcessor
    weights: WeightFacts
    has_code: bool = False
    training: dict[str, Any] | None = None
    reports: list[EvaluationReport] = field(default_factory=list)
    statements: dict[str, str] = field(default_factory=dict)
    references: ReferenceMemory | None = None

    @classmethod
    def from_folder(cls, folder: str | os.PathLike) -> "CheckpointFacts":
        """
        Read the facts of a checkpoint.

        Args:
            folder (`str` or `os.PathLike`): folder of the checkpoint.

        Raises:
            OSError: the folder does not hold a checkpoint.
            ValueError: one of the files of facts, or that of the references, has unexpected contents.
        """
        folder = Path(folder)
        missing = [name for name in ("config.json", "preprocessor_config.json") if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{folder} is not a saved checkpoint: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'}"
                " missing. Save model and image processor into it first."
            )
        values = read_config_values(folder)
        config_class = segmenter_config_class(values, folder)
        files = {name: _read(folder / name) for name in FACTS_FILES}
        training, reports = files[TRAINING_FILE], files[RESULTS_FILE] or []
        reports = [reports] if isinstance(reports, dict) else reports
        # hash the weights only if there is a fingerprint to compare with
        stated = [facts.get("fingerprint") for facts in (training or {}, *(each["settings"] for each in reports))]
        fingerprint = learned_fingerprint(folder) if any(stated) else None

        def is_current(facts: Mapping[str, Any], file: str) -> bool:
            if facts.get("fingerprint") in (None, fingerprint):
                return True
            logger.warning(
                f"{folder / file} describes other weights than those beside it; it is left out of the card."
            )
            return False

        return cls(
            folder=folder,
            config=config_class.from_pretrained(folder),
            image_processor=VCPCLIPImageProcessor.from_pretrained(folder),
            weights=_weights(folder),
            has_code="custom_pipelines" in values,
            training=training if training and is_current(training, TRAINING_FILE) else None,
            reports=[
                EvaluationReport.from_dict(each) for each in reports if is_current(each["settings"], RESULTS_FILE)
            ],
            statements=_check_statements(files[STATEMENTS_FILE] or {}),
            references=load_references(folder),
        )


def write_training_facts(folder: str | os.PathLike, facts: Mapping[str, Any]) -> None:
    """
    Write `training.json` beside the weights that it describes.

    Args:
        folder (`str` or `os.PathLike`): folder of the checkpoint, with the weights.
        facts (`Mapping`): contents of the file; the fingerprint of the weights is added.
    """
    _write(Path(folder) / TRAINING_FILE, {**facts, "fingerprint": learned_fingerprint(folder)})


def read_training_facts(source: str | os.PathLike) -> dict[str, Any]:
    """
    Return the contents of `training.json` of a checkpoint, without the fingerprint of the weights.

    Args:
        source (`str` or `os.PathLike`): folder or Hub repository.

    Returns:
        `dict[str, Any]`: empty without such a file, or if it describes other weights than those beside it.
    """
    path = _facts_file(source, TRAINING_FILE, download=True)
    facts = (None if path is None else _read(path)) or {}
    fingerprint = facts.pop("fingerprint", None)
    if fingerprint is not None and os.path.isdir(source) and fingerprint != learned_fingerprint(source):
        return {}
    return facts


def add_results(folder: str | os.PathLike, report: EvaluationReport | Mapping[str, Any]) -> None:
    """
    Add an evaluation report to `results.json`. A report on the same datasets by the same protocol is replaced.

    Args:
        folder (`str` or `os.PathLike`): folder of the checkpoint that was evaluated.
        report (`EvaluationReport` or `dict`): result of `evaluate`, or contents of the `results.json` that it saved.

    Raises:
        ValueError: `report` is not an evaluation report.
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
    # the path of the evaluated model is of no use to others
    settings = {name: value for name, value in values["settings"].items() if name != "model"}
    values["settings"] = {**settings, "fingerprint": learned_fingerprint(folder)}
    kept = _read(path) or []
    kept = [each for each in ([kept] if isinstance(kept, dict) else kept) if _subject(each) != _subject(values)]
    _write(path, [*kept, values])


def set_statements(folder: str | os.PathLike, **statements: str | None) -> None:
    """
    Set statements in `card.json`.

    Args:
        folder (`str` or `os.PathLike`): folder of the checkpoint.
        statements (`str`, *optional*): keys as in `STATEMENTS`; `None` keeps the existing statement.

    Raises:
        ValueError: an unknown key, or a value that is not a string.
    """
    given = _check_statements({name: value for name, value in statements.items() if value is not None})
    path = Path(folder) / STATEMENTS_FILE
    if given:
        _write(path, {**(_read(path) or {}), **given})


def carry_facts(source: str | os.PathLike, folder: str | os.PathLike, download: bool = False) -> None:
    """
    Copy the files of facts from one checkpoint to another. Existing files are kept.

    Args:
        source (`str` or `os.PathLike`): folder or Hub repository to copy from.
        folder (`str` or `os.PathLike`): folder to copy to.
        download (`bool`, *optional*, defaults to `False`): download from the Hub if `source` is not a folder.
    """
    for name in FACTS_FILES:
        found, target = _facts_file(source, name, download), Path(folder) / name
        if found is not None and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found, target)


def _facts_file(source: str | os.PathLike, name: str, download: bool) -> Path | None:
    """Return a file of facts of a folder or, with `download`, of a Hub repository; `None` if it does not exist."""
    found = Path(source) / name
    if not os.path.isdir(source):
        if not download:
            return None
        try:
            found = cached_file(str(source), name, _raise_exceptions_for_missing_entries=False)
        except (OSError, ValueError):  # neither a folder nor a repository, e.g. a model made in memory
            return None
    return Path(found) if found is not None and os.path.isfile(found) else None


def overlap(training: Mapping[str, Any], subject: str, dataset: str, products: Collection[str]) -> str:
    """
    Return a sentence that says whether results on a dataset are zero-shot.

    Args:
        training (`Mapping`): contents of `training.json`, empty if there is none.
        subject (`str`): name of the trained model in the sentence, such as "the checkpoint".
        dataset (`str`): name of the dataset that was evaluated.
        products (`Collection[str]`): its products.
    """
    name = escaped(dataset)
    if "dataset" not in training:
        return f"{name}: the training data of {subject} is not recorded, so overlap cannot be excluded."
    if training["dataset"] != dataset:
        return f"{name}: zero-shot, {subject} was trained on {escaped(training['dataset'])}."
    if not training["products"]:
        return f"{name}: {subject} was trained on the same dataset; on which products is not recorded."
    measured = set(products)
    seen, chosen = measured & set(training["products"]), measured & set(training.get("held_out_products") or [])
    if seen:
        return f"{name}: **not zero-shot**, {subject} was trained on images of {_listed(seen)}."
    if chosen:
        return f"{name}: not trained on these products, but {_listed(chosen)} served for model selection."
    return f"{name}: {subject} was trained on other products of the same dataset, not on these."


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(escaped, sorted(names)))


def learned_fingerprint(folder: str | os.PathLike) -> str:
    """
    Return a hash of the learned tensors in float16. It is the same for all copies of a checkpoint: with or without
    CLIP, sharded or not, in float32 or float16. For a method without a learned part, it is the hash of its type.

    Args:
        folder (`str` or `os.PathLike`): folder of the checkpoint.

    Raises:
        FileNotFoundError: the folder has no weights.
    """
    digest = hashlib.sha256()
    files = {name: file for file in _files(folder) for name in _names(file) if not name.startswith(FROZEN_PREFIXES)}
    if not files:
        digest.update(read_config_values(folder)["model_type"].encode())
    for name in sorted(files):
        with _opened(files[name]) as weights:
            values = weights.get_tensor(name).to(torch.float16).contiguous()
        digest.update(f"{name}{list(values.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _weights(folder: Path) -> WeightFacts:
    counts, dtypes, files = {True: 0, False: 0}, set(), _files(folder)
    for file in files:
        with _opened(file) as weights:
            for name in weights.keys():  # noqa: SIM118 -- not a dict
                header = weights.get_slice(name)
                counts[name.startswith(FROZEN_PREFIXES)] += math.prod(header.get_shape())
                dtypes.add(header.get_dtype())
    return WeightFacts(counts[False], counts[True], tuple(sorted(dtypes)), sum(file.stat().st_size for file in files))


def _files(folder: str | os.PathLike) -> list[Path]:
    found = sorted(Path(folder).glob("model*.safetensors"))
    if not found:
        raise FileNotFoundError(f"{folder} has no weights (model.safetensors). Save the model into it first.")
    return found


def _opened(file: Path) -> safe_open:
    with explained(file):
        return safe_open(file, framework="pt")


def _names(file: Path) -> list[str]:
    with _opened(file) as weights:
        return list(weights.keys())


def _subject(report: Mapping[str, Any]) -> tuple:
    return tuple(sorted(report["results"])), json.dumps(report["protocol"], sort_keys=True)


def _check_statements(statements: Mapping[str, Any]) -> dict[str, str]:
    for name, value in statements.items():
        if name not in STATEMENTS:
            close = difflib.get_close_matches(name, STATEMENTS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(STATEMENTS)}."
            raise ValueError(f"{STATEMENTS_FILE} has no statement {name!r}; {hint}")
        if not isinstance(value, str):
            raise ValueError(f"{name}={value!r} in {STATEMENTS_FILE} must be a string.")
    return dict(statements)


def _read(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error


def _write(path: Path, values: Any) -> None:
    with atomic_file(path) as unfinished:
        unfinished.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
