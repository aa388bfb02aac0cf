"""Post the records of a journal to a webhook, in order, in a thread of its own.

The journal itself is the outbox: `webhook.json` holds the sequence number up to which records were delivered or became
dead letters, and is written after each of them. So a kill loses no record, and the record that was being posted is
posted again, with the same key. The key is `<random identity of the folder>-<sequence number>`.

While the receiver cannot be reached, the oldest record is posted repeatedly, later records wait, and segmentation
continues.
"""

import json
import threading
import time
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .atomic_write import atomic_file
from .dead_letters import write_dead_letter
from .watch_journal import WatchJournal
from .webhook import RefusedError, UnavailableError, Webhook, letter, open_client, post


__all__ = ["WebhookOutbox"]

logger = logging.get_logger(__name__)

_FILE = "webhook.json"
# Seconds after which the thread continues after an error of the disk
_PAUSE_SECONDS = 5.0


class _StoppedError(Exception):
    """Raised to end the thread."""


class WebhookOutbox:
    """
    The thread that posts. Without a `webhook.json`, it posts only records that are appended from now on.

    Args:
        output_dir (`Path`): folder of the results.
        journal ([`WatchJournal`]): records to post.
        webhook ([`Webhook`]): the receiver.

    Attributes:
        posted (`int`), dead (`int`): records that were delivered, and that became dead letters, by this process.
        problem (`str`): reason why nothing can be delivered now; "" if there is no problem.

    Raises:
        ImportError: the extra `watch` is not installed.
        ValueError: the address cannot be used, or `webhook.json` is damaged.
    """

    def __init__(self, output_dir: Path, journal: WatchJournal, webhook: Webhook):
        import_tenacity()
        self.posted, self.dead, self.problem = 0, 0, ""
        self._output_dir, self._journal, self._webhook = output_dir, journal, webhook
        self._client = open_client(webhook)
        self._stopping, self._news = threading.Event(), threading.Event()
        self._identity, self._last = self._read_state()
        self._position = next(
            (position for position, record in journal.records() if record["sequence"] > self._last), journal.size
        )
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Return the number of records that are neither delivered nor dead letters."""
        return self._journal.last - self._last

    def wake(self) -> None:
        """Notify the thread that the journal has new records."""
        self._news.set()

    def close(self, seconds: float) -> None:
        """
        Post the remaining records, then end the thread. Records that are not posted in time are left to the next run.

        Args:
            seconds (`float`): longest time for posting.
        """
        end = time.monotonic() + seconds
        while self.waiting and time.monotonic() < end:
            time.sleep(0.01)
        self._stopping.set()
        self._news.set()
        self._thread.join(timeout=2 * self._webhook.timeout_seconds)
        self._client.close()

    def _read_state(self) -> tuple[str, int]:
        path = self._output_dir / _FILE
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            identity, last = str(state["identity"]), int(state["last"])
        except FileNotFoundError:
            identity, last = "", self._journal.last + 1
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is damaged ({error!r}). It must hold an identity and the last delivered sequence number;"
                " remove it to post only the records that are added from now on."
            ) from error
        if last > self._journal.last:  # a new journal, whose results need other keys
            identity, last = uuid.uuid4().hex, self._journal.last
            self._write_state(identity, last)
        return identity, last

    def _write_state(self, identity: str, last: int) -> None:
        with atomic_file(self._output_dir / _FILE) as unfinished:
            unfinished.write_text(json.dumps({"identity": identity, "last": last}) + "\n", encoding="utf-8")

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                record, end = self._next()
                if record is None:
                    self._news.wait()
                    self._news.clear()
                    continue
                self._deliver(record)
                self._position, self._last = end, record["sequence"]
                self._write_state(self._identity, self._last)
            except _StoppedError:
                return
            except Exception as error:  # such as a full disk; the thread must continue while the folder is watched
                logger.warning("Posting to the webhook continues in %.0f s after an error: %s", _PAUSE_SECONDS, error)
                self._stopping.wait(_PAUSE_SECONDS)

    def _next(self) -> tuple[dict[str, Any] | None, int]:
        """Return the first record that was not posted, and the position after it; `None` if all were posted."""
        while self._position < self._journal.size:
            with open(self._journal.path, "rb") as file:
                file.seek(self._position)
                line = file.readline()
            end = self._position + len(line)
            try:
                record = json.loads(line)
            except ValueError:  # the incomplete line of a killed process
                record = None
            if isinstance(record, dict) and record.get("sequence", 0) > self._last:
                return record, end
            self._position = end
        return None, self._position

    def _deliver(self, record: dict[str, Any]) -> None:
        """Post a record until it is delivered, refused or too old; in the last two cases, it becomes a dead letter."""
        import tenacity

        key = f"{self._identity}-{record['sequence']}"
        body = letter(record, self._output_dir, self._webhook.with_overlay)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(UnavailableError),
            stop=lambda state: self._stopping.is_set() or self._is_too_old(record),
            wait=self._wait_seconds,
            sleep=tenacity.nap.sleep_using_event(self._stopping),
            before_sleep=self._note_problem,
            reraise=True,
        )
        try:
            retrying(self._post, key, body)
        except UnavailableError as error:
            if self._stopping.is_set() and not self._is_too_old(record):
                raise _StoppedError from None
            reason = f"given up after {self._webhook.give_up_hours:g} hours: {error}"
        except RefusedError as error:
            reason = str(error)
        else:
            self.posted += 1
            self.problem = ""
            return
        write_dead_letter(self._output_dir, key, record, reason)
        self.dead += 1
        logger.warning(
            "%s: the result could not be delivered (%s); it is kept as a dead letter.", record["image"], reason
        )

    def _post(self, key: str, body: bytes) -> None:
        if self._stopping.is_set():  # while waiting for the next attempt
            raise _StoppedError
        post(self._client, self._webhook, key, body)

    def _is_too_old(self, record: dict[str, Any]) -> bool:
        age = time.time() - datetime.fromisoformat(record["time"]).timestamp()
        return age > 3600 * self._webhook.give_up_hours

    def _wait_seconds(self, state: Any) -> float:
        import tenacity

        first, longest = self._webhook.first_wait_seconds, self._webhook.longest_wait_seconds
        backoff = tenacity.wait_exponential(multiplier=first, max=longest) + tenacity.wait_random(0, first)
        return max(backoff(state), min(state.outcome.exception().retry_after, longest))

    def _note_problem(self, state: Any) -> None:
        problem = str(state.outcome.exception())
        if not self.problem:
            logger.warning("The webhook cannot be reached (%s). Results are kept and posted later.", problem)
        self.problem = problem


def import_tenacity() -> None:
    """Raise an ImportError with the line for pip if tenacity is not installed."""
    try:
        import tenacity  # noqa: F401
    except ImportError as error:
        raise ImportError('Webhooks need tenacity: pip install "vcp-clip-hf[watch]"') from error
