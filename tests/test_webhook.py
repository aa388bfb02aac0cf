"""One post: headers, signature, and which answers are final."""

import base64
import hashlib
import hmac
import json
import sys
import time

import pytest

from tests.watch_run import QUICK_RETRIES
from tests.webhook_receiver import Receiver
from vcp_clip_hf.webhook import RefusedError, UnavailableError, Webhook, letter, open_client, post, read_secret


def send(receiver, number=1, **settings):
    webhook = Webhook(receiver.url, **{**QUICK_RETRIES, **settings})
    with open_client(webhook) as client:
        for _ in range(number):
            post(client, webhook, "key-1", b'{"score": 1}')


def test_a_post_has_a_key_and_a_signature(tmp_path):
    secret = bytes(range(24))
    with Receiver() as receiver:
        send(receiver, secret=secret)
        headers, body = receiver.taken[0]
    assert body == b'{"score": 1}' and headers["content-type"] == "application/json"
    assert headers["idempotency-key"] == headers["webhook-id"] == "key-1"
    assert headers["user-agent"].startswith("vcp-clip-hf/")
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    # as www.standardwebhooks.com defines it
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


def test_without_a_secret_there_is_no_signature():
    with Receiver() as receiver:
        send(receiver, number=3)
        assert len(receiver.taken) == 3 and not any("webhook-signature" in headers for headers, _ in receiver.taken)


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408, 425, 429])
def test_temporary_answers(status):
    with (
        Receiver(lambda number: (status, {"Retry-After": "7"})) as receiver,
        pytest.raises(UnavailableError) as caught,
    ):
        send(receiver)
    assert f"status {status}: answer {status}" in str(caught.value) and caught.value.retry_after == 7


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 413, 422])
def test_final_answers(status):
    with Receiver(lambda number: status) as receiver, pytest.raises(RefusedError, match=f"status {status}: answer"):
        send(receiver)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(status):
    with Receiver() as other, Receiver(lambda number: (status, {"Location": other.url})) as receiver:
        with pytest.raises(RefusedError, match="a redirect, which is not followed"):
            send(receiver)
        assert not other.requests


@pytest.mark.parametrize("answer", ["hang", "close", "cut"])
def test_broken_connections_are_temporary(answer):
    with Receiver(lambda number: answer) as receiver:
        started = time.monotonic()
        with pytest.raises(UnavailableError, match=r"ReadTimeout|RemoteProtocolError|ReadError"):
            send(receiver)
        assert time.monotonic() - started < 5


def test_nobody_listens():
    with Receiver() as receiver:
        pass
    with pytest.raises(UnavailableError, match="ConnectError"):
        send(receiver)


def test_retry_after_may_be_a_date_or_nonsense():
    dates = {"Wed, 21 Oct 2015 07:28:00 GMT": 0, "soon": 0, "-5": 0, "nan": 0, "": 0}
    for value, seconds in dates.items():
        with Receiver(lambda number, value=value: (503, {"Retry-After": value})) as receiver:
            with pytest.raises(UnavailableError) as caught:
                send(receiver)
            assert caught.value.retry_after == seconds


@pytest.mark.parametrize(
    "url",
    ["ftp://host/x", "file:///x", "host/x", "http://", "", "http:///x", "http://h:0", "http://h:99999", "http://[::1"],
)
def test_only_http_addresses(url):
    with pytest.raises(ValueError, match="must be an address such as https://host:port/path"):
        Webhook(url)


def test_an_address_that_cannot_be_used():
    with pytest.raises(ValueError, match="not a valid address"):
        open_client(Webhook("http://ho\x00st/x"))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(ImportError, match=r'pip install "vcp-clip-hf\[watch\]"'):
        open_client(Webhook("http://host"))


def test_secrets(tmp_path):
    path = tmp_path / "secret"
    path.write_text("a secret of some length\n")
    assert read_secret(path) == b"a secret of some length"
    path.write_text("whsec_" + base64.b64encode(bytes(range(24))).decode())
    assert read_secret(path) == bytes(range(24))
    for text, problem in (("short", "has 5 bytes"), ("", "has 0 bytes"), ("whsec_***", "must be base64")):
        path.write_text(text)
        with pytest.raises(ValueError, match=problem):
            read_secret(path)
    assert "secret of" not in repr(Webhook("http://host", b"a secret of some length"))


def test_a_letter_is_the_record(tmp_path):
    (tmp_path / "overlays").mkdir()
    (tmp_path / "overlays" / "a.jpg").write_bytes(b"picture")
    record = {"image": "/in/\udcff.png", "sequence": 3, "overlay": "overlays/a.jpg"}
    assert json.loads(letter(record, tmp_path, False)) == record
    body = json.loads(letter(record, tmp_path, True))
    assert base64.b64decode(body.pop("overlay_base64")) == b"picture" and body == record
    (tmp_path / "overlays" / "a.jpg").unlink()
    assert json.loads(letter(record, tmp_path, True))["overlay_base64"] is None
    (tmp_path / "elsewhere").write_bytes(b"not a picture of this folder")
    for other in ("elsewhere", "overlays/../elsewhere", str(tmp_path / "elsewhere")):
        assert json.loads(letter({"overlay": other}, tmp_path, True))["overlay_base64"] is None
    assert letter(record, tmp_path, True) == letter(dict(record), tmp_path, True)
