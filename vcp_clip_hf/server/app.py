"""The server as an ASGI application: routes, limits, metrics and documentation."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from ..version import __version__
from .limits import BodyLimits
from .metrics import CountRequests
from .problems import HideErrors, answer_problems
from .recipe_routes import recipe_routes
from .segment_routes import segment_routes
from .service_routes import service_routes
from .settings import ServerSettings
from .state import OpenParts, RunningServer


__all__ = ["create_app"]

_DESCRIPTION = (
    "Finds and outlines defects in images of products. Recipes hold the settings of each product; every result names"
    " the version of its recipe and the fingerprint of the model."
)


def create_app(open_parts: OpenParts, settings: ServerSettings) -> FastAPI:
    """
    Make the application.

    Args:
        open_parts (`Callable`):
            Returns engine and recipes. It is called in a thread when the server starts, so that `/health/live` works
            during this time.
        settings (`ServerSettings`): limits, times and the token.

    Returns:
        `FastAPI`: application; `app.state.server` is its `RunningServer`.
    """
    server = RunningServer(settings)

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        server.start(open_parts)
        yield
        await server.stop()

    app = FastAPI(
        title="vcp-clip serve",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=running,
        # FastAPI's own pages load scripts from the network
        docs_url=None,
        redoc_url=None,
    )
    app.state.server = server
    for routes in (segment_routes, recipe_routes(settings), service_routes):
        app.include_router(routes)
    answer_problems(app)
    # A request passes the middleware that was added last first
    app.add_middleware(BodyLimits, max_bytes=settings.max_body_bytes, seconds=settings.body_seconds)
    app.add_middleware(HideErrors)
    app.add_middleware(CountRequests, metrics=server.metrics)
    return app
