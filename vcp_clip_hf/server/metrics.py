"""Metrics of a server in Prometheus' text format, in a registry of its own."""

import time
from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .problems import CLIENT_LEFT


__all__ = ["CONTENT_TYPE_LATEST", "CountRequests", "ServerMetrics"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64)
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")


class ServerMetrics:
    """The metrics of one server: requests, images, batches of the model, and what was rejected."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "vcp_clip_requests", "Requests by route, method and status.", ("route", "method", "status"), **self._here
        )
        self.seconds = Histogram(
            "vcp_clip_request_seconds",
            "Seconds from the headers to the response.",
            ("route",),
            buckets=_SECONDS,
            **self._here,
        )
        self.images = Counter(
            "vcp_clip_images", "Images by label (normal, anomalous, none) or error.", ("outcome",), **self._here
        )
        self.rejected = Counter("vcp_clip_rejected", "Refused requests by status.", ("status",), **self._here)
        self.queue_length = Gauge("vcp_clip_queue_length", "Images that wait for the model.", **self._here)
        self.batch_size = Histogram(
            "vcp_clip_batch_size", "Images in one run of the model.", buckets=_SIZES, **self._here
        )
        self.model_seconds = Histogram(
            "vcp_clip_model_seconds", "Seconds of one run of the model.", buckets=_SECONDS, **self._here
        )

    @property
    def _here(self) -> dict[str, CollectorRegistry]:
        return {"registry": self.registry}

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Read the length of the queue from `length` whenever the metrics are read."""
        self.queue_length.set_function(length)

    def count(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request with its status and duration in seconds."""
        self.requests.labels(route, method if method in _METHODS else "other", status).inc()
        self.seconds.labels(route).observe(seconds)
        if status in (401, 403, 408, 413, 415, 422, 503):
            self.rejected.labels(status).inc()

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class CountRequests:
    """
    ASGI middleware that counts every request under the path of its route, never under the path that a client wrote.

    Args:
        app (`ASGIApp`): application.
        metrics (`ServerMetrics`): metrics to add to.
    """

    def __init__(self, app: ASGIApp, metrics: ServerMetrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application and count its response."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, start = CLIENT_LEFT, time.perf_counter()

        async def remember(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, remember)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            self.metrics.count(route, scope["method"], status, time.perf_counter() - start)
