"""The log of a training run, `log.jsonl`: written by the run, and read by reports during the run or after its end.

A line is one of:

- a loss: `step`, `loss`, `epoch` (passes completed before it), `image_loss` with an image head, the learning rate of
  each group of parameters under the name of its setting, `images` (training images seen since the start), `seconds`
  (spent on steps since the start, in all sessions), `peak_memory_bytes` (of the session's first process), `time`;
- a validation: `step`, `validation/<metric>` as fractions, `validation_seconds`, `time`;
- an event: `step`, `event` and `time`. `event` is "started", "resumed", "finished", "interrupted" or "diverged"; the
  first two come with `total_steps`, `steps_per_epoch`, `processes` and `device`.

Logs of version 0.1.0 have `step`, `loss`, `epoch` and `validation/<metric>` only.
"""

import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .json_lines import append_json_line, read_json_lines


__all__ = ["LOG_FILE", "VALIDATION_PREFIX", "Session", "TrainingHistory", "TrainingLog", "read_training_log"]

LOG_FILE = "log.jsonl"
VALIDATION_PREFIX = "validation/"
_STARTS = ("started", "resumed")
_ENDS = ("finished", "interrupted", "diverged")


class TrainingLog:
    """
    Append the records of a run to its log.

    Args:
        output_dir (`Path`): folder of the run; it must exist when the first record is written.
    """

    def __init__(self, output_dir: Path):
        self.path = output_dir / LOG_FILE

    def write(self, step: int, **values: Any) -> None:
        """Append a record with the present time."""
        append_json_line(self.path, {"step": step, **values, "time": _now()})


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


@dataclass
class Session:
    """
    Part of a run between a start and an end or a kill.

    Args:
        step (`int`): optimizer steps done when it began.
        resumed (`bool`): whether it continued from a checkpoint.
        recorded (`bool`): whether the log states the beginning; otherwise it follows from repeated steps.
        reached (`int`): last step with a record.
        until (`str`, *optional*): time of the last record, ISO 8601 in UTC.
        facts (`dict`): the event's further values: `time`, `total_steps`, `steps_per_epoch`, `processes`, `device`.
    """

    step: int
    resumed: bool
    recorded: bool = True
    reached: int = 0
    until: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainingHistory:
    """
    The valid records of a log: if a resumed run repeated a step, only the later record of this step is valid.

    Args:
        losses (`list[dict]`): records with `loss`, by step.
        validations (`list[dict]`): records with `validation/<metric>`, by step.
        sessions (`list[Session]`): starts and resumes, in order.
        end (`dict`, *optional*): the event that ended the run; `None` while it runs, or if it was killed.
        num_replaced (`int`): records left out because their steps were repeated.
        num_damaged (`int`): lines that could not be read, such as an incomplete last one.
        as_of (`datetime.datetime`): time of the last change of the log, in UTC.
    """

    losses: list[dict[str, Any]] = field(default_factory=list)
    validations: list[dict[str, Any]] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    end: dict[str, Any] | None = None
    num_replaced: int = 0
    num_damaged: int = 0
    as_of: datetime.datetime | None = None

    @property
    def last_step(self) -> int:
        """Return the last step that has a record."""
        newest = [kind[-1]["step"] for kind in (self.losses, self.validations) if kind]
        newest += [self.sessions[-1].step] if self.sessions else []
        return max([0, *newest, *([self.end["step"]] if self.end else [])])

    @property
    def total_steps(self) -> int | None:
        """Return the number of steps of the whole run, or `None` if the log does not state it."""
        return next((each.facts["total_steps"] for each in self.sessions[::-1] if "total_steps" in each.facts), None)

    @property
    def resumed_steps(self) -> list[int]:
        """Return the steps after which the run was resumed."""
        return [each.step for each in self.sessions if each.resumed]


def read_training_log(output_dir: Path) -> TrainingHistory:
    """
    Read the log of a run that is running, has ended, or was killed and resumed.

    Args:
        output_dir (`Path`): folder that a training run writes.

    Raises:
        FileNotFoundError: the folder has no log.
        ValueError: the log has no record of a training run.
    """
    path = output_dir / LOG_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{output_dir} has no {LOG_FILE}, so it is not the output folder of a training run (output_dir)."
        )
    changed = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.timezone.utc)
    records, num_damaged = read_json_lines(path)
    history = TrainingHistory(num_damaged=num_damaged, as_of=changed)
    for record in records:
        if not _is_count(record.get("step")) or not _add(history, record):
            history.num_damaged += 1
        elif history.sessions:
            history.sessions[-1].reached, history.sessions[-1].until = record["step"], record.get("time")
    if not (history.losses or history.validations or history.sessions):
        raise ValueError(f"{path} has no record of a training run: none of its {history.num_damaged} lines has one.")
    return history


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _add(history: TrainingHistory, record: dict[str, Any]) -> bool:
    """Add a record; return whether it is one of a training run."""
    step, event = record["step"], record.get("event")
    if event in _STARTS:
        _forget(history, step + 1)
        facts = {name: value for name, value in record.items() if name not in ("step", "event")}
        if not _is_count(facts.get("total_steps")):
            facts.pop("total_steps", None)
        history.sessions.append(Session(step, event == "resumed", facts=facts))
        return True
    if event in _ENDS:
        history.end = record
        return True
    is_loss = isinstance(record.get("loss"), (int, float))
    if not is_loss and not any(name.startswith(VALIDATION_PREFIX) for name in record):
        return False
    kind = history.losses if is_loss else history.validations
    if step < history.last_step or (kind and step == kind[-1]["step"]):
        # in a log without events, repeated steps show that the run was resumed before them
        _forget(history, step)
        before = max((each[-1]["step"] for each in (history.losses, history.validations) if each), default=0)
        history.sessions.append(Session(before, resumed=True, recorded=False))
    kind.append(record)
    history.end = None
    return True


def _forget(history: TrainingHistory, first: int) -> None:
    """Leave out the records of step `first` and later steps, which the run repeats."""
    history.end = None
    for kind in (history.losses, history.validations):
        kept = [record for record in kind if record["step"] < first]
        history.num_replaced += len(kind) - len(kept)
        kind[:] = kept
