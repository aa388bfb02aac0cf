"""Read the checkpoints of papers' authors, pickles, without running code, and check every entry."""

import hashlib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .backbone_loading import BACKBONE_PREFIX
from .modeling_frozen_clip import FrozenCLIPPreTrainedModel


__all__ = [
    "check_entries",
    "check_feature_layers",
    "describe_file",
    "fill_learned_part",
    "linear_layers",
    "read_official",
    "size_in",
]


def read_official(checkpoint: str | os.PathLike) -> dict[str, Any]:
    """
    Read the entries of an authors' file, with `weights_only=True`.

    Args:
        checkpoint (`str` or `os.PathLike`): path of the `.pth` file.

    Returns:
        `dict[str, Any]`: tensors, or other values, under dotted names such as `"trainable_linearlayer.fc.0.bias"`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, has pickled objects that are refused, or is not a dictionary.
    """
    if not os.path.isfile(checkpoint):
        raise FileNotFoundError(f"The checkpoint {os.fspath(checkpoint)!r} does not exist.")
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # other files fail in many ways: UnpicklingError, EOFError, KeyError, ...
        raise ValueError(
            f"{checkpoint} could not be read as tensors ({type(error).__name__}). It is damaged, or not a PyTorch"
            " checkpoint, or has other pickled objects, which are refused because loading them can run code. Download"
            " the authors' file again."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{checkpoint} holds a {type(content).__name__}, expected the authors' dictionary of tensors."
        )
    tensors = {}
    for name, value in content.items():
        entries = (
            {f"{name}.{key}": tensor for key, tensor in value.items()} if isinstance(value, dict) else {name: value}
        )
        tensors.update(entries)
    return tensors


def check_entries(
    tensors: Mapping[str, Any],
    expected: Mapping[str, tuple[int, ...]],
    checkpoint: str | os.PathLike,
    kind: str,
    without_effect: Collection[str] = (),
) -> None:
    """
    Check that a file has exactly the expected entries.

    Args:
        tensors (`Mapping[str, Any]`): entries of the file, from [`read_official`].
        expected (`Mapping[str, tuple[int, ...]]`): name and shape of every entry that it must have.
        checkpoint (`str` or `os.PathLike`): the file, for the message.
        kind (`str`): name of the method in the message, such as `"VCP-CLIP"`.
        without_effect (`Collection[str]`, *optional*): names of further entries that it may have, with any value.

    Raises:
        ValueError: missing or unexpected entries, wrong shapes, or values that are not finite; the message lists all.
    """
    problems = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in tensors]
    for name, value in tensors.items():
        if name in without_effect:
            continue
        if name not in expected:
            problems.append(f"unexpected: {name}")
        elif not isinstance(value, torch.Tensor):
            problems.append(f"not a tensor: {name} is a {type(value).__name__}")
        elif tuple(value.shape) != expected[name]:
            problems.append(f"wrong shape: {name} {tuple(value.shape)}, expected {expected[name]} for this backbone")
        elif not value.isfinite().all():
            problems.append(f"not finite: {name}")
    if problems:
        raise ValueError(
            f"{checkpoint} is not an official {kind} checkpoint for this backbone:\n  " + "\n  ".join(problems)
        )


def linear_layers(tensors: Mapping[str, Any]) -> int:
    """Return the number of feature layers for which a file has a linear layer, `trainable_linearlayer.fc.i`."""
    return sum(bool(re.fullmatch(r"trainable_linearlayer\.fc\.\d+\.weight", name)) for name in tensors)


def check_feature_layers(
    num_layers: int,
    given: Sequence[int] | None,
    in_use: Sequence[int],
    num_blocks: int,
    checkpoint: str | os.PathLike,
) -> None:
    """
    Check that a file has one linear layer for each feature layer.

    Args:
        num_layers (`int`): linear layers in the file, from [`linear_layers`]; 0 is reported by [`check_entries`].
        given (`Sequence[int]`, *optional*): feature layers that the caller asked for.
        in_use (`Sequence[int]`): feature layers of the model.
        num_blocks (`int`): blocks of the image tower.
        checkpoint (`str` or `os.PathLike`): the file, for the message.

    Raises:
        ValueError: the numbers differ.
    """
    if not num_layers or num_layers == len(in_use):
        return
    if given is not None:
        raise ValueError(
            f"{checkpoint} has linear layers for {num_layers} feature layers, but feature_layers={given}"
            f" names {len(given)}."
        )
    raise ValueError(
        f"{checkpoint} has linear layers for {num_layers} feature layers, but does not state to which image blocks"
        f" they belong. Pass feature_layers, {num_layers} of 1..{num_blocks}."
    )


def size_in(tensors: Mapping[str, Any], name: str, axis: int, default: int) -> int:
    """Return one size of a tensor's shape, or the default if the tensor is missing, which `check_entries` reports."""
    tensor = tensors.get(name)
    return tensor.shape[axis] if isinstance(tensor, torch.Tensor) and tensor.ndim > axis else default


def fill_learned_part(
    model: FrozenCLIPPreTrainedModel, state_dict: Mapping[str, torch.Tensor], checkpoint: str | os.PathLike
) -> None:
    """
    Load the tensors of a file as the learned part of a model, in the model's dtype.

    Args:
        model ([`FrozenCLIPPreTrainedModel`]): model on its backbone; changed.
        state_dict (`Mapping[str, torch.Tensor]`): every learned tensor by its name in the model.
        checkpoint (`str` or `os.PathLike`): the file, for the message.

    Raises:
        RuntimeError: a learned tensor of the model has no value, or a value has no place: an error of the converter.
    """
    values = {name: tensor.to(model.dtype) for name, tensor in state_dict.items()}
    result = model.load_state_dict(values, strict=False)
    unfilled = [name for name in result.missing_keys if not name.startswith(BACKBONE_PREFIX)]
    if unfilled or result.unexpected_keys:
        raise RuntimeError(
            f"The conversion of {checkpoint} left {unfilled} without a value and found no place for"
            f" {result.unexpected_keys}. Please report this, with the versions that `vcp-clip info` prints."
        )


def describe_file(checkpoint: str | os.PathLike) -> dict[str, str]:
    """Return name and SHA-256 of a file, as `training.json` stores them under `converted_from`."""
    path = Path(checkpoint)
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
