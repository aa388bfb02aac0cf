"""Responses to requests that fail: one sentence each.

For an unexpected error, the response has only an id; the log has the traceback under this id.
"""

import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .recipes import UnknownRecipe
from .schemas import Problem


__all__ = ["CLIENT_LEFT", "HideErrors", "answer_problems", "describe_errors", "problem", "problems"]

logger = logging.getLogger(__name__)

# Status in the metrics for a client that disconnected, as in nginx; it is never sent
CLIENT_LEFT = 499
_LONGEST_LIST = 5
# Instead of Starlette's "Not Found" and "Method Not Allowed"
_NO_ROUTE = "There is no such route; /docs lists all of them."
_NO_METHOD = "This route does not accept this method; the header 'Allow' lists the accepted ones."
_MEANINGS = {
    400: "The body cannot be parsed.",
    401: "The token is missing or wrong.",
    403: "The server was started without the option that this request needs.",
    404: "There is no such recipe.",
    406: "`Accept: image/png` without exactly one picture in `include`.",
    408: "The body did not arrive in time.",
    409: "The recipe `default` cannot be deleted.",
    412: "The recipe does not have the version in `If-Match`, or exists in spite of `If-None-Match: *`.",
    413: "Too many bytes, pixels or images.",
    415: "The media type of the body is not known, or the body is compressed.",
    422: "The image, the query or a value is wrong.",
    500: "An unexpected error; the log has it under the `id` of the response.",
    503: "The queue is full, or the model is loading; `Retry-After` says when to try again.",
    507: "The recipe could not be written to the disk.",
}


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None, **more: str) -> JSONResponse:
    """Make the response to a request that fails."""
    return JSONResponse({"detail": detail, **more}, status, headers=dict(headers or {}))


def problems(*statuses: int) -> dict[int, dict[str, Any]]:
    """Return the part of OpenAPI that describes failures of a route, by status."""
    return {status: {"model": Problem, "description": _MEANINGS[status]} for status in sorted({*statuses, 500})}


def describe_errors(errors: Sequence[Mapping[str, Any]], whole: str) -> str:
    """
    Return the errors of pydantic as one sentence each. The rejected value itself is not repeated.

    Args:
        errors (`Sequence[Mapping]`): errors with `loc` and `msg`.
        whole (`str`): name of what was checked, for errors that concern all of it.
    """
    sentences = []
    for error in errors[:_LONGEST_LIST]:
        place = ".".join(str(part)[:100] for part in error["loc"] if part not in ("query", "path", "header", "body"))
        sentences.append(f"{place or whole}: {error['msg']}.")
    if len(errors) > _LONGEST_LIST:
        sentences.append(f"{len(errors) - _LONGEST_LIST} more values are wrong.")
    return " ".join(sentences)


def answer_problems(app: FastAPI) -> None:
    """Register the responses to expected exceptions."""

    @app.exception_handler(HTTPException)
    async def answer(request: Request, error: HTTPException) -> Response:
        if error.status_code == 405:
            return problem(405, _NO_METHOD, _allowed(request))
        is_without_route = error.status_code == 404 and error.detail == "Not Found"
        return problem(error.status_code, _NO_ROUTE if is_without_route else str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def explain(request: Request, error: RequestValidationError) -> Response:
        return problem(422, describe_errors(error.errors(), "the body"))

    @app.exception_handler(UnknownRecipe)
    async def not_found(request: Request, error: UnknownRecipe) -> Response:
        return problem(404, str(error))

    @app.exception_handler(ClientDisconnect)
    async def nobody_listens(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_LEFT)


def _allowed(request: Request) -> dict[str, str]:
    """Return the header with all methods of a path; Starlette names those of one route only."""
    path = getattr(request.scope.get("route"), "path", None)
    methods = request.app.openapi()["paths"].get(path, ())
    return {"Allow": ", ".join(method.upper() for method in methods)} if methods else {}


class HideErrors:
    """
    ASGI middleware: an unexpected exception is written to the log with an id, and the client gets only this id.

    Args:
        app (`ASGIApp`): application.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application; answer 500 if it raises."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def remember(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, remember)
        except Exception:
            number = uuid.uuid4().hex[:12]
            logger.exception("Error %s in %s %r", number, scope["method"], scope["path"])
            if not started:
                detail = f"An unexpected error occurred. The server's log has it under the id {number}."
                await problem(500, detail, id=number)(scope, receive, send)
