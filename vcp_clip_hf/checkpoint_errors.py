"""Sentences for checkpoints that cannot be read: which file is wrong, and what to do."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME


__all__ = ["check_dtype", "explained", "explained_writing", "read_config_values", "refuse_pickles"]

_CONFIG, _EXPORT = "config.json", "export.json"
_DTYPES = ("float32", "bfloat16", "float16", "float64")


def read_config_values(location: str | os.PathLike, **hub_arguments: Any) -> dict[str, Any]:
    """
    Read the `config.json` of a checkpoint.

    Args:
        location (`str` or `os.PathLike`): folder or Hub repository.
        hub_arguments: arguments of `from_pretrained` that locate files, such as `revision`.

    Raises:
        OSError: the folder, the repository or its file is missing or damaged; the message says which.
    """
    folder = Path(location, hub_arguments.get("subfolder") or "")
    if folder.is_dir() and not (folder / _CONFIG).is_file():
        if (folder / _EXPORT).is_file():
            program = folder / "exported_segmenter.py"
            ways = (
                f"Run it with `python {program} IMAGES`, as ExportedSegmenter({str(folder)!r}) or with `vcp-clip serve"
                f" --model {folder}`"
                if program.is_file()
                else "Load its graph (.pt2) with torch.export.load"
            )
            raise OSError(
                f"{folder} is an exported graph, not a checkpoint. {ways}; or pass the checkpoint that it was exported"
                " from."
            )
        raise OSError(f"{folder} is not a checkpoint: it has no {_CONFIG}. Pass a folder that save_pretrained wrote.")
    with explained(location):
        values, _ = PreTrainedConfig.get_config_dict(str(location), **hub_arguments)
        if not isinstance(values, dict) or "model_type" not in values:
            raise OSError(f"{_CONFIG} of {str(location)!r} names no model_type: it does not describe a checkpoint.")
    return values


def check_dtype(dtype: Any) -> None:
    """
    Check the data type of weights.

    Raises:
        ValueError: neither `"auto"`, `None` nor a floating-point type with at least 16 bits.
    """
    name = str(dtype).removeprefix("torch.")
    if dtype is not None and name not in ("auto", *_DTYPES):
        raise ValueError(f"dtype={name!r} must be one of auto, {', '.join(_DTYPES)}.")


def refuse_pickles(location: str | os.PathLike, subfolder: str = "") -> None:
    """
    Refuse a folder whose only weights are pickles, which can run code when they are loaded.

    Raises:
        OSError: the folder has `pytorch_model.bin` and no safetensors file.
    """
    folder = Path(location, subfolder)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickles = [name for name in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME) if (folder / name).is_file()]
    if pickles:
        raise OSError(f"{folder} has weights in {pickles[0]} only. {_how_to_convert(folder)}")


def _how_to_convert(folder: str | os.PathLike) -> str:
    pickle, safe = (os.path.join(str(folder), name) for name in (WEIGHTS_NAME, SAFE_WEIGHTS_NAME))
    return (
        "This file is a pickle, which can run code, and is not loaded: weights must be safetensors. Convert the"
        " authors' .pth files with `vcp-clip convert`, and other files of tensors with: python -c \"import torch,"
        f" safetensors.torch as s; s.save_file(torch.load({pickle!r}, weights_only=True), {safe!r},"
        " {'format': 'pt'})\""
    )


@contextmanager
def explained_writing(folder: str | os.PathLike) -> Iterator[None]:
    """
    Replace the error of a weight file that cannot be written by one that names the folder.

    Args:
        folder (`str` or `os.PathLike`): folder that the body writes to.

    Raises:
        OSError: with the number of the operating system's error, such as that of a full disk.
    """
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(folder)) from error


@contextmanager
def explained(location: str | os.PathLike | None) -> Iterator[None]:
    """
    Replace the errors of reading a checkpoint by sentences that name the checkpoint and the way out.

    Args:
        location (`str` or `os.PathLike`, *optional*): folder or Hub repository that the body reads.

    Raises:
        OSError: a file is missing or damaged.
        ValueError: the files contradict each other, or a value has a wrong type.
    """
    name = f"{str(location)!r}"
    try:
        yield
    except SafetensorError as error:
        raise OSError(
            f"The weights of {name} are damaged or incomplete ({error}). Copy or download the checkpoint again."
        ) from error
    except StrictDataclassError as error:
        raise ValueError(f"{_CONFIG} of {name} has a wrong value. {' '.join(str(error).split())}.") from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"The weights of {name} have other shapes than its {_CONFIG} says. Restore the {_CONFIG} that was saved"
            " with the weights, or pass the options that they were saved with. If a development version saved it with"
            " a stem branch, load it with use_stem_branch=False, or train the branch again."
        ) from error
    except OSError as error:
        sentence = _about_missing(name, location, str(error))
        if sentence is None:
            raise
        raise OSError(sentence) from error


def _about_missing(name: str, location: str | os.PathLike | None, text: str) -> str | None:
    """Return a sentence for the errors of transformers that concern a place; `None` for other errors."""
    if "not a valid JSON file" in text:
        return f"{' '.join(re.findall(r'config file at (.*) is', text)) or name} is not valid JSON. Restore the file."
    if "no file named" in text or "does not appear to have a file named" in text:
        how = "" if os.path.isdir(str(location)) else f" If it has {WEIGHTS_NAME} only: {_how_to_convert('FOLDER')}"
        return f"{name} has no weights: {SAFE_WEIGHTS_NAME} is missing. Copy or download the checkpoint again.{how}"
    if "couldn't connect" in text or "valid model identifier" in text or "Repo id must" in text:
        return (
            f"There is no folder {name}, and no such repository on the Hub or, offline (HF_HUB_OFFLINE=1), among those"
            " downloaded before. Check the spelling, connect to the network, or log in with `hf auth login` if the"
            " repository is private."
        )
    return None
