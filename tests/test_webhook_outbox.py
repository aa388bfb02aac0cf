"""Posting in order, with retries, across restarts; dead letters."""

import itertools
import json
import sys
import threading
import time

import pytest

from tests.watch_run import QUICK_RETRIES
from tests.webhook_receiver import Receiver
from vcp_clip_hf.dead_letters import count_dead_letters
from vcp_clip_hf.watch_journal import WatchJournal
from vcp_clip_hf.webhook import Webhook
from vcp_clip_hf.webhook_outbox import WebhookOutbox


@pytest.fixture
def journal(tmp_path):
    opened = WatchJournal(tmp_path)
    yield opened
    opened.close()


def record(journal, count, outbox=None):
    for _ in range(count):
        name = f"{journal.last:03d}"
        journal.append({"image": f"/in/{name}.png", "name": name, "bytes": 1, "mtime_ns": journal.last})
    journal.sync()
    if outbox is not None:
        outbox.wake()


def webhook(receiver, **settings):
    return Webhook(receiver.url, **{**QUICK_RETRIES, **settings})


def sequences(receiver):
    return [body["sequence"] for body in receiver.bodies()]


def wait_until(done):
    end = time.monotonic() + 20
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_records_are_posted_in_order_once(tmp_path, journal):
    record(journal, 2)  # before the webhook was given
    with Receiver() as receiver:
        outbox = WebhookOutbox(tmp_path, journal, webhook(receiver))
        for _ in range(10):
            record(journal, 3, outbox)
        receiver.wait_for(30)
        outbox.close(5)
        assert sequences(receiver) == list(range(3, 33)) and (outbox.posted, outbox.waiting) == (30, 0)
        again = WebhookOutbox(tmp_path, journal, webhook(receiver))
        record(journal, 1, again)
        receiver.wait_for(31)
        again.close(5)
        assert sequences(receiver)[-1] == 33 and len(set(receiver.received_keys())) == 31
        assert len({key.rpartition("-")[0] for key in receiver.received_keys()}) == 1


def test_a_receiver_that_fails_for_a_while(tmp_path, journal):
    """Every way to fail, one after the other; the order stays."""
    answers = [503, "close", 200, "hang", "cut", 429, 200, 500]
    with Receiver(lambda number: answers[number] if number < len(answers) else 200) as receiver:
        outbox = WebhookOutbox(tmp_path, journal, webhook(receiver))
        record(journal, 5, outbox)
        wait_until(lambda: outbox.posted == 5)
        outbox.close(5)
        assert sequences(receiver) == [1, 2, 3, 4, 5] and not outbox.problem and not outbox.dead
        # each attempt of a record has its key and its body
        bodies = {}
        for headers, body in receiver.requests:
            assert bodies.setdefault(headers["idempotency-key"], body) == body
        assert len(receiver.requests) == 11 and count_dead_letters(tmp_path) == 0


def test_waits_grow_and_have_a_limit(tmp_path, journal):
    times = []

    def answer(number):
        times.append(time.monotonic())
        return 200 if number == 6 else 503

    with Receiver(answer) as receiver:
        outbox = WebhookOutbox(tmp_path, journal, webhook(receiver, first_wait_seconds=0.04, longest_wait_seconds=0.1))
        record(journal, 1, outbox)
        wait_until(lambda: outbox.posted)
        outbox.close(5)
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert waits[0] >= 0.04 and waits[1] >= 0.08 and all(wait >= 0.1 for wait in waits[2:])


def test_a_retry_after_is_respected_up_to_the_limit(tmp_path, journal):
    times = []

    def answer(number):
        times.append(time.monotonic())
        return (503, {"Retry-After": "3600"}) if number == 0 else 200

    with Receiver(answer) as receiver:
        outbox = WebhookOutbox(tmp_path, journal, webhook(receiver, longest_wait_seconds=0.5))
        record(journal, 1, outbox)
        wait_until(lambda: outbox.posted)
        outbox.close(5)
    assert 0.5 <= times[1] - times[0] < 5


def test_refused_results_are_dead_letters_and_hold_nothing_up(tmp_path, journal):
    with Receiver(lambda number: 400 if number == 1 else 200) as receiver:
        outbox = WebhookOutbox(tmp_path, journal, webhook(receiver))
        record(journal, 3, outbox)
        wait_until(lambda: outbox.posted == 2)
        outbox.close(5)
        assert sequences(receiver) == [1, 3] and outbox.dead == 1
        content = json.loads((tmp_path / "dead_letters" / "000000002.json").read_text())
        assert content["reason"] == "status 400: answer 400" and content["record"]["sequence"] == 2
        assert content["key"] == receiver.requests[1][0]["idempotency-key"]


def test_old_results_are_given_up(tmp_path, journal):
    with Receiver(lambda number: 503) as receiver:
        outbox = WebhookOutbox(tmp_path, journal, webhook(receiver, give_up_hours=0.3 / 3600))
        record(journal, 2, outbox)
        wait_until(lambda: outbox.dead == 2)
        outbox.close(5)
    content = json.loads((tmp_path / "dead_letters" / "000000001.json").read_text())
    assert content["reason"].startswith("given up after") and "503" in content["reason"]
    assert outbox.waiting == 0 and outbox.posted == 0


def test_a_restart_goes_on_where_posting_ended(tmp_path, journal):
    with Receiver(lambda number: 200 if number < 2 else 503) as receiver:
        outbox = WebhookOutbox(tmp_path, journal, webhook(receiver))
        record(journal, 4, outbox)
        wait_until(lambda: outbox.problem)
        started = time.monotonic()
        outbox.close(0.1)
        assert time.monotonic() - started < 3 and outbox.waiting == 2
        receiver.answers = lambda number: 200
        outbox = WebhookOutbox(tmp_path, journal, webhook(receiver))
        receiver.wait_for(4)
        outbox.close(5)
        assert sequences(receiver) == [1, 2, 3, 4]


def test_a_stop_while_the_receiver_hangs_ends_soon(tmp_path, journal):
    with Receiver(lambda number: "hang") as receiver:
        outbox = WebhookOutbox(tmp_path, journal, webhook(receiver))
        record(journal, 1, outbox)
        wait_until(lambda: receiver.requests)
        started = time.monotonic()
        outbox.close(0)
        assert time.monotonic() - started < 3 and outbox.waiting == 1 and not outbox.dead


def test_a_removed_journal_gets_new_keys(tmp_path, journal):
    with Receiver() as receiver:
        for _ in range(2):
            current = WatchJournal(tmp_path)
            outbox = WebhookOutbox(tmp_path, current, webhook(receiver))
            record(current, 2, outbox)
            wait_until(lambda outbox=outbox: outbox.posted == 2)
            outbox.close(5)
            current.close()
            current.path.unlink()
        assert sequences(receiver) == [1, 2, 1, 2] and len(set(receiver.received_keys())) == 4


def test_a_damaged_state_is_an_error(tmp_path, journal):
    (tmp_path / "webhook.json").write_text('{"last": "x"}')
    with pytest.raises(ValueError, match=r"webhook\.json is damaged"):
        WebhookOutbox(tmp_path, journal, Webhook("http://127.0.0.1:9"))


def test_a_full_disk_does_not_end_the_thread(tmp_path, journal, monkeypatch):
    monkeypatch.setattr("vcp_clip_hf.webhook_outbox._PAUSE_SECONDS", 0.05)
    full = tmp_path / ".webhook.json.unfinished"
    with Receiver() as receiver:
        outbox = WebhookOutbox(tmp_path, journal, webhook(receiver))
        full.symlink_to("/dev/full")
        record(journal, 3, outbox)
        receiver.wait_for(3)
        full.unlink(missing_ok=True)
        record(journal, 1, outbox)
        wait_until(lambda: outbox.posted == 4)
        outbox.close(5)
        assert sequences(receiver) == [1, 2, 3, 4]
        assert json.loads((tmp_path / "webhook.json").read_text())["last"] == 4


def test_incomplete_lines_are_passed_over(tmp_path):
    (tmp_path / "predictions.jsonl").write_bytes(b'{"image": "/in/')
    journal = WatchJournal(tmp_path)
    with Receiver() as receiver:
        outbox = WebhookOutbox(tmp_path, journal, webhook(receiver))
        record(journal, 1, outbox)
        receiver.wait_for(1)
        outbox.close(5)
    journal.close()
    assert sequences(receiver) == [1]


def test_threads_end(tmp_path, journal):
    before = threading.active_count()
    with Receiver() as receiver:
        WebhookOutbox(tmp_path, journal, webhook(receiver)).close(0)
    wait_until(lambda: threading.active_count() <= before)


def test_a_missing_package_is_named(tmp_path, journal, monkeypatch):
    monkeypatch.setitem(sys.modules, "tenacity", None)
    with pytest.raises(ImportError, match=r'pip install "vcp-clip-hf\[watch\]"'):
        WebhookOutbox(tmp_path, journal, Webhook("http://host"))
