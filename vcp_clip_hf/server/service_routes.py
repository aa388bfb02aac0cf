"""Routes for operating the server: health, metrics, documentation."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import HTMLResponse, Response

from ..version import __version__
from .docs_page import docs_page
from .metrics import CONTENT_TYPE_LATEST
from .problems import problems
from .state import RunningServer, running_server


__all__ = ["service_routes"]

service_routes = APIRouter(tags=["service"])
Server = Annotated[RunningServer, Depends(running_server)]
_TEXT = {"content": {"text/plain": {"schema": {"type": "string"}}}}
# The page must not load anything or run scripts
_NOTHING_ELSE = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}


@service_routes.get("/health/live", summary="Whether the process works")
async def live() -> dict[str, str]:
    """Return 200 as long as the process works; otherwise, a supervisor should restart it."""
    return {"status": "live"}


@service_routes.get("/health/ready", summary="Whether images are accepted", responses=problems(503))
async def ready(server: Server) -> dict[str, Any]:
    """Return 200 when the model is loaded, and 503 while it is loading or the server is stopping."""
    server.check_ready()
    return {"status": "ready", "model": server.model, "package_version": __version__}


@service_routes.get("/metrics", summary="Metrics for Prometheus", response_class=Response, responses={200: _TEXT})
def metrics(server: Server) -> Response:
    """Return requests, times, batches, queue and memory in Prometheus' text format."""
    return Response(server.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


@service_routes.get("/docs", summary="Documentation of the interface", response_class=HTMLResponse)
def docs(request: Request) -> Response:
    """Return a page that describes all routes, without scripts and without requests to a network."""
    return HTMLResponse(docs_page(request.app.openapi()), headers=_NOTHING_ELSE)
