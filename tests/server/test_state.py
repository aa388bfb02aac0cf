"""The way of an image through the server: clients that leave, and what is bounded."""

import asyncio

import pytest
from starlette.requests import ClientDisconnect, Request

from tests.server.serving import PNG, png, serving
from vcp_clip_hf.server.state import unless_client_leaves


def request_that_ends_after(seconds: float) -> Request:
    async def receive():
        await asyncio.sleep(seconds)
        return {"type": "http.disconnect"}

    return Request({"type": "http", "headers": []}, receive)


def test_the_work_for_a_client_that_leaves_is_cancelled():
    cancelled = []

    async def work() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def leave() -> None:
        with pytest.raises(ClientDisconnect):
            await unless_client_leaves(request_that_ends_after(0.01), work())
        await asyncio.sleep(0)

    asyncio.run(leave())
    assert cancelled == [True]


def test_a_result_or_an_error_reaches_a_client_that_stays():
    async def give(value: int) -> int:
        if value < 0:
            raise ValueError("negative")
        return value

    assert asyncio.run(unless_client_leaves(request_that_ends_after(5), give(3))) == 3
    with pytest.raises(ValueError, match="negative"):
        asyncio.run(unless_client_leaves(request_that_ends_after(5), give(-1)))


def test_too_many_requests_at_one_time_are_refused_before_their_body_is_read(tmp_path):
    with serving(tmp_path) as client:
        admission = client.app.state.server.admission
        admission.count = admission.max_requests
        answer = client.post("/v1/segment", content=png(), headers=PNG)
        assert answer.status_code == 503 and "being read or computed" in answer.json()["detail"]
        assert int(answer.headers["retry-after"]) >= 1
        admission.count = 0
        assert client.post("/v1/segment", content=png(), headers=PNG).status_code == 200
        assert admission.count == 0


def test_a_batch_larger_than_the_queue_is_answered(tmp_path):
    with serving(tmp_path, max_waiting=1, max_batch_size=1, max_images=6) as client:
        answer = client.post("/v1/segment/batch", files=[("image", png(seed=seed)) for seed in range(6)])
        assert answer.status_code == 200 and len(answer.json()["results"]) == 6
