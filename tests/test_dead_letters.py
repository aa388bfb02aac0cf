"""Results that were not delivered, and how they are posted again."""

import json

from tests.watch_run import QUICK_RETRIES
from tests.webhook_receiver import Receiver
from vcp_clip_hf.dead_letters import count_dead_letters, resend_dead_letters, write_dead_letter
from vcp_clip_hf.webhook import Webhook


def write(tmp_path, count):
    for number in range(1, count + 1):
        record = {"image": f"/in/{number}.png", "name": str(number), "sequence": number, "overlay": "overlays/x.jpg"}
        write_dead_letter(tmp_path, f"line-{number}", record, "status 400")


def resend(tmp_path, receiver, said, **settings):
    return resend_dead_letters(tmp_path, Webhook(receiver.url, **QUICK_RETRIES, **settings), said.append)


def test_letters_are_posted_again_in_order_with_their_keys(tmp_path):
    write(tmp_path, 12)
    (tmp_path / "overlays").mkdir()
    (tmp_path / "overlays" / "x.jpg").write_bytes(b"x")
    with Receiver() as receiver:
        said = []
        assert count_dead_letters(tmp_path) == 12
        assert resend(tmp_path, receiver, said, with_overlay=True) == (12, 0) and not said
        assert receiver.received_keys() == [f"line-{number}" for number in range(1, 13)]
        assert receiver.bodies()[0]["overlay_base64"] == "eA=="
        assert resend(tmp_path, receiver, said) == (0, 0)


def test_refused_letters_stay_with_the_new_reason(tmp_path):
    write(tmp_path, 3)
    with Receiver(lambda number: 422 if number == 1 else 200) as receiver:
        said = []
        assert resend(tmp_path, receiver, said) == (2, 1)
    content = json.loads((tmp_path / "dead_letters" / "000000002.json").read_text())
    assert content["reason"] == "status 422: answer 422" and content["key"] == "line-2"
    assert said == ["000000002.json: status 422: answer 422"]


def test_without_a_receiver_all_letters_stay(tmp_path):
    write(tmp_path, 3)
    with Receiver(lambda number: 503) as receiver:
        said = []
        assert resend(tmp_path, receiver, said) == (0, 3) and len(receiver.requests) == 1
    assert said == ["The webhook cannot be reached (status 503: answer 503)."]


def test_foreign_files_are_named_and_left(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "dead_letters" / "notes.json").write_text("[]")
    (tmp_path / "dead_letters" / "torn.json").write_text("{")
    with Receiver() as receiver:
        said = []
        assert resend(tmp_path, receiver, said) == (1, 2)
    assert [line.split(":")[0] for line in said] == ["notes.json", "torn.json"]
