"""Results that could not be delivered: one file each, with the reason, from which they can be posted again."""

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .atomic_write import atomic_file
from .webhook import RefusedError, UnavailableError, Webhook, letter, open_client, post


__all__ = ["DEAD_LETTERS", "count_dead_letters", "resend_dead_letters", "write_dead_letter"]

DEAD_LETTERS = "dead_letters"


def write_dead_letter(output_dir: Path, key: str, record: Mapping[str, Any], reason: str) -> None:
    """
    Keep a result that was not delivered, as `dead_letters/<sequence number>.json`.

    Args:
        output_dir (`Path`): folder of the results.
        key (`str`): identity of the result.
        record (`Mapping`): record of the journal.
        reason (`str`): reason why it was not delivered.
    """
    content = {
        "key": key,
        "reason": reason,
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "record": dict(record),
    }
    path = output_dir / DEAD_LETTERS / f"{record['sequence']:09d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def count_dead_letters(output_dir: Path) -> int:
    """Return the number of results that were not delivered."""
    return sum(1 for _ in (output_dir / DEAD_LETTERS).glob("*.json"))


def resend_dead_letters(
    output_dir: Path, webhook: Webhook, report: Callable[[str], None] = lambda line: None
) -> tuple[int, int]:
    """
    Post the dead letters again, in order, once each, with their own keys; a delivered one is removed. If the receiver
    cannot be reached, the run ends. A watch may run at the same time.

    Args:
        output_dir (`Path`): folder of the results.
        webhook ([`Webhook`]): the receiver.
        report (`Callable[[str], None]`, *optional*): function that is called with one line for each problem.

    Returns:
        `tuple[int, int]`: numbers of dead letters that were delivered, and that are left.
    """
    delivered = 0
    with open_client(webhook) as client:
        for path, content in _read_all(output_dir, report):
            record = content["record"]
            try:
                post(client, webhook, content["key"], letter(record, output_dir, webhook.with_overlay))
            except UnavailableError as error:
                report(f"The webhook cannot be reached ({error}).")
                break
            except RefusedError as error:
                report(f"{path.name}: {error}")
                write_dead_letter(output_dir, content["key"], record, str(error))
                continue
            path.unlink(missing_ok=True)
            delivered += 1
    return delivered, count_dead_letters(output_dir)


def _read_all(output_dir: Path, report: Callable[[str], None]) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted((output_dir / DEAD_LETTERS).glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            int(content["record"]["sequence"]), str(content["key"]).encode("ascii")
        except (OSError, ValueError, KeyError, TypeError) as error:
            report(f"{path.name}: not a dead letter ({error!r}).")
            continue
        yield path, content
