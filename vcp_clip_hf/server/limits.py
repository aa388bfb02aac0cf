"""Limits for the body of a request (bytes, counted while they arrive, and time) and for the number of requests.

A compressed body is refused, because its bytes are not those that the limits are about.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send


__all__ = ["Admission", "BodyLimits", "unavailable"]

# If the connection were closed at once, a client that is still sending would lose the response
_LINGER_SECONDS = 2.0
# The rest of the body is not read, so that the connection cannot be used again
_CLOSE = {"Connection": "close"}


def unavailable(sentence: str, retry_seconds: float) -> HTTPException:
    """
    Make the response 503, for a request that can be sent again later.

    Args:
        sentence (`str`): reason.
        retry_seconds (`float`): seconds after which the client may try again.
    """
    return HTTPException(503, sentence, headers={"Retry-After": str(max(1, round(retry_seconds)))})


class Admission:
    """
    Limits the number of requests that are read or computed, because each of them holds its images in memory.

    Args:
        max_requests (`int`): maximum number of requests at one time.
    """

    def __init__(self, max_requests: int):
        self.max_requests = max_requests
        self.count = 0

    @asynccontextmanager
    async def hold(self, retry_seconds: float) -> AsyncIterator[None]:
        """
        Count a request while the body runs.

        Args:
            retry_seconds (`float`): seconds that a refused client is told to wait.

        Raises:
            HTTPException: 503, the maximum number of requests is reached.
        """
        if self.count >= self.max_requests:
            raise unavailable(f"{self.count} requests are being read or computed already.", retry_seconds)
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1


class BodyLimits:
    """
    ASGI middleware: a body that is too large is answered by 413, one that takes too long by 408, and a compressed one
    by 415.

    Args:
        app (`ASGIApp`): application.
        max_bytes (`int`): maximum number of bytes of a body.
        seconds (`float`): maximum time in seconds from the first read to the last byte.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float):
        self.app, self.max_bytes, self.seconds = app, max_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application with a `receive` that raises an `HTTPException` when a limit is exceeded."""
        if scope["type"] == "http":
            receive = _LimitedReceive(receive, Headers(scope=scope), self.max_bytes, self.seconds)
        await self.app(scope, receive, send)


class _LimitedReceive:
    def __init__(self, receive: Receive, headers: Headers, max_bytes: int, seconds: float):
        self._receive, self._max_bytes, self._seconds = receive, max_bytes, seconds
        length = headers.get("content-length", "")
        self._announced = int(length) if length.isdecimal() else 0
        self._encoding = headers.get("content-encoding", "").strip()
        # Such a client sends nothing before it gets "100 Continue"
        self._waits = headers.get("expect", "").lower() == "100-continue"
        self._count, self._complete = 0, False
        self._deadline: float | None = None

    async def __call__(self) -> Message:
        if self._complete:  # the only further message is that the client has disconnected
            return await self._receive()
        if self._encoding.lower() not in ("", "identity"):
            raise await self._refusal(
                415,
                f"'Content-Encoding: {self._encoding[:100]}' is not supported; send the body uncompressed, without"
                " this header.",
            )
        if self._announced > self._max_bytes:
            raise await self._too_large(f"The body has {self._announced} bytes")
        self._deadline = self._deadline or time.monotonic() + self._seconds
        try:
            message = await asyncio.wait_for(self._receive(), self._deadline - time.monotonic())
        except asyncio.TimeoutError:
            raise HTTPException(
                408,
                f"The body did not arrive within {self._seconds:g} s; {self._count} bytes did.",
                headers=_CLOSE,
            ) from None
        self._complete = not message.get("more_body", False)
        self._count += len(message.get("body", b""))
        if self._count > self._max_bytes:
            raise await self._too_large(f"The body has more than {self._max_bytes} bytes")
        return message

    async def _too_large(self, reason: str) -> HTTPException:
        return await self._refusal(
            413, f"{reason}; this server reads at most {self._max_bytes} (--max-body-mb {self._max_bytes / 2**20:g})."
        )

    async def _refusal(self, status: int, sentence: str) -> HTTPException:
        if not self._waits:
            await self._discard()
        return HTTPException(status, sentence, headers=_CLOSE)

    async def _discard(self) -> None:
        """Read and discard the rest of the body, for a short time and up to the same number of bytes."""
        seen, end = 0, time.monotonic() + _LINGER_SECONDS
        while not self._complete and seen <= self._max_bytes:
            try:
                message = await asyncio.wait_for(self._receive(), end - time.monotonic())
            except asyncio.TimeoutError:
                return
            seen += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
