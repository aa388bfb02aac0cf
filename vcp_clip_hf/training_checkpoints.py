"""Checkpoints of a training run: learned part, optimizer and position in the data, as safetensors and JSON.

A checkpoint is written under a temporary name and then renamed, so that a killed process leaves no incomplete one.
"""

import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .atomic_write import atomic_folder
from .backbone_loading import learned_state
from .checkpoint_errors import explained, explained_writing


__all__ = ["TrainingState", "latest_checkpoint", "load_checkpoint", "save_checkpoint"]

_WEIGHTS, _OPTIMIZER, _STATE = "learned.safetensors", "optimizer.safetensors", "state.json"


@dataclass
class TrainingState:
    """
    Position of a training run.

    Args:
        step (`int`): optimizer steps done.
        epoch (`int`): passes over the data completed.
        step_in_epoch (`int`): optimizer steps done in the current pass.
        best_metric (`float`, *optional*): best value so far on the held-out products.
        best_step (`int`, *optional*): step that reached it.
        settings (`dict`): settings that a resumed run must have too, since order and arithmetic depend on them.
        scaler (`dict`, *optional*): state of the gradient scaler of mixed precision with float16.
        seconds (`float`): time spent on the steps.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    best_metric: float | None = None
    best_step: int | None = None
    settings: dict | None = None
    scaler: dict | None = None
    seconds: float = field(default=0.0, compare=False)


def _learned_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_checkpoint(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: TrainingState, keep: int
) -> Path:
    """
    Write `folder/step-<n>` and remove all but the newest checkpoints.

    Args:
        folder (`Path`): folder of all checkpoints of the run.
        model (`torch.nn.Module`): model, not wrapped.
        optimizer (`torch.optim.Optimizer`): optimizer, not wrapped.
        state ([`TrainingState`]): position of the run.
        keep (`int`): number of checkpoints to keep.

    Returns:
        The new checkpoint's folder.
    """
    optimizer_tensors = {
        f"{name}.{key}": value.detach().clone().reshape(value.shape)
        for name, parameter in _learned_parameters(model).items()
        for key, value in optimizer.state[parameter].items()
    }

    weights = {name: tensor.detach().contiguous() for name, tensor in learned_state(model.state_dict()).items()}
    checkpoint = folder / f"step-{state.step:08d}"
    with atomic_folder(checkpoint) as path, explained_writing(checkpoint):
        save_file(weights, path / _WEIGHTS, metadata={"format": "pt"})
        save_file(optimizer_tensors, path / _OPTIMIZER, metadata={"format": "pt"})
        (path / _STATE).write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return checkpoint


def load_checkpoint(
    checkpoint: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, settings: dict
) -> TrainingState:
    """
    Load a checkpoint into model and optimizer.

    Args:
        checkpoint (`Path`): folder of the checkpoint.
        model (`torch.nn.Module`): model, not wrapped.
        optimizer (`torch.optim.Optimizer`): optimizer, not wrapped.
        settings (`dict`): settings of the present run, see [`TrainingState`].

    Returns:
        The state that was saved with it.

    Raises:
        FileNotFoundError: the checkpoint does not exist or is incomplete.
        ValueError: it belongs to a run with other settings, or to another architecture; the message names them.
    """
    missing = [name for name in (_STATE, _WEIGHTS, _OPTIMIZER) if not (checkpoint / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{checkpoint} is not a complete checkpoint: {', '.join(missing)} missing.")
    try:
        state = TrainingState(**json.loads((checkpoint / _STATE).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{checkpoint / _STATE} is damaged ({error}). Remove that checkpoint and resume from an earlier one."
        ) from error
    changed = [
        f"{name}: {before!r} then, {settings.get(name)!r} now"
        for name, before in (state.settings or {}).items()
        if before != settings.get(name)
    ]
    if changed:
        raise ValueError(
            f"{checkpoint} belongs to a run with other settings ({'; '.join(changed)}). Resume with the same settings,"
            " or start a new run in another output_dir."
        )
    with explained(checkpoint):
        weights, tensors = load_file(checkpoint / _WEIGHTS), load_file(checkpoint / _OPTIMIZER)
    differences = weights.keys() ^ learned_state(model.state_dict()).keys()
    if differences:
        raise ValueError(f"{checkpoint} belongs to another architecture: {sorted(differences)[:4]} are not in both.")
    model.load_state_dict(weights, strict=False)

    fused = optimizer.defaults.get("fused")
    for name, parameter in _learned_parameters(model).items():
        entries = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if _owner(key) == name}
        optimizer.state[parameter] = {
            # Adam keeps its step count on the CPU unless it is fused
            key: value if key == "step" and not fused else value.to(parameter.device)
            for key, value in entries.items()
        }
    return state


def _owner(key: str) -> str:
    return key.rsplit(".", 1)[0]


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in a folder, or `None`."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8}", path.name))
