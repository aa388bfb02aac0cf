"""Limits of bodies and of requests at one time."""

import asyncio

import pytest
from fastapi import HTTPException

from vcp_clip_hf.server.limits import Admission, BodyLimits


def receive_through(messages: list[tuple[float, dict]], headers: dict[str, str] | None = None, **limits):
    """Return the received body and the number of messages that were left, or the error of the limit."""
    left = list(messages)

    async def receive():
        seconds, message = left.pop(0)
        await asyncio.sleep(seconds)
        return message

    async def app(scope, receive, send):
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body", False):
                scope["result"] = body
                return

    scope = {"type": "http", "headers": [(n.encode(), v.encode()) for n, v in (headers or {}).items()]}
    middleware = BodyLimits(app, **{"max_bytes": 10, "seconds": 5, **limits})
    asyncio.run(middleware(scope, receive, None))
    return scope["result"], len(left)


def chunk(content: bytes, more: bool = True, after: float = 0) -> tuple[float, dict]:
    return after, {"type": "http.request", "body": content, "more_body": more}


def test_a_body_up_to_the_limit_passes():
    assert receive_through([chunk(b"01234"), chunk(b"56789", more=False)]) == (b"0123456789", 0)


def test_bytes_are_counted_while_they_arrive():
    messages = [chunk(b"0123456"), chunk(b"789a"), chunk(b"b"), chunk(b"c", more=False)]
    with pytest.raises(HTTPException, match="more than 10 bytes") as error:
        receive_through(messages)
    assert error.value.status_code == 413 and error.value.headers == {"Connection": "close"}


def test_an_announced_size_is_enough_to_refuse():
    with pytest.raises(HTTPException, match="has 11 bytes") as error:
        # this client waits for "100 Continue", so nothing may be read from it
        receive_through([], {"content-length": "11", "expect": "100-continue"})
    assert error.value.status_code == 413
    with pytest.raises(HTTPException, match="has 11 bytes"):
        receive_through([chunk(b"0123456789a", more=False)], {"content-length": "11"})


@pytest.mark.parametrize("encoding", ["gzip", "Deflate", "gzip, identity"])
def test_a_compressed_body_is_not_supported(encoding):
    with pytest.raises(HTTPException, match=f"'Content-Encoding: {encoding}' is not supported") as error:
        receive_through([chunk(b"0123", more=False)], {"content-encoding": encoding})
    assert error.value.status_code == 415 and error.value.headers == {"Connection": "close"}
    assert receive_through([chunk(b"0123", more=False)], {"content-encoding": "Identity"}) == (b"0123", 0)


def test_an_endless_body_is_not_read_to_its_end():
    messages = [chunk(b"0123456789") for _ in range(100)]
    with pytest.raises(HTTPException, match="more than 10 bytes"):
        receive_through(messages)
    with pytest.raises(IndexError):  # with a limit that is not reached, all are read
        receive_through(messages, max_bytes=10_000)


def test_the_time_runs_from_the_first_to_the_last_byte():
    messages = [chunk(b"x", after=0.04) for _ in range(5)]
    with pytest.raises(HTTPException, match=r"within 0.1 s; 2 bytes did") as error:
        receive_through(messages, seconds=0.1)
    assert error.value.status_code == 408


def test_admission_counts_what_is_under_way():
    admission = Admission(2)

    async def hold_three() -> None:
        async with admission.hold(7.6), admission.hold(7.6), admission.hold(7.6):
            pass

    with pytest.raises(HTTPException, match="2 requests") as error:
        asyncio.run(hold_three())
    assert error.value.status_code == 503 and error.value.headers == {"Retry-After": "8"}
    assert admission.count == 0
