"""Routes of images: one, or several in a batch."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from starlette.responses import JSONResponse, Response

from .problems import problems
from .request import SegmentationRequest
from .request_images import ImageSource, image_bodies, read_sources
from .responses import PNG, as_json, as_png, png_response, requested_picture
from .schemas import BatchAnswer, BatchQuery, Segmented, SegmentQuery
from .state import RunningServer, running_server, unless_client_leaves


__all__ = ["segment_routes"]

_FAILURES = problems(400, 403, 404, 408, 413, 415, 422, 503)
_PNG_SCHEMA = {"schema": {"type": "string", "format": "binary"}}
# Failures of the server, not of one image
_OF_ALL = (503,)

segment_routes = APIRouter(prefix="/v1/segment", tags=["segment"])
Server = Annotated[RunningServer, Depends(running_server)]


@segment_routes.post(
    "",
    summary="Segment one image",
    responses={200: {"model": Segmented, "content": {PNG: _PNG_SCHEMA}}, **_FAILURES, **problems(406)},
    openapi_extra=image_bodies(several=False),
)
async def segment(request: Request, query: Annotated[SegmentQuery, Query()], server: Server) -> Response:
    """
    Find and outline anomalies in one image: the body itself, a file in a form, or base64 in JSON.

    With `Accept: image/png`, the response is the picture that `include` names; the values are in its headers.
    """
    picture = requested_picture(request.headers.get("accept", ""), query.parts)
    template = server.template(query.recipe, query.parts)
    async with server.admission.hold(server.retry_seconds()):
        (source,) = await read_sources(request, server.settings, several=False)
        encode = as_json if picture is None else as_png
        answer = await unless_client_leaves(request, server.segment(source, template, query.parts, encode))
    provenance = server.provenance(template.recipe)
    if picture is None:
        return await server.compute(JSONResponse, {**answer, **provenance})
    values, content = answer
    return png_response(content, values, provenance)


@segment_routes.post(
    "/batch",
    summary="Segment several images",
    responses={200: {"model": BatchAnswer}, **_FAILURES},
    openapi_extra=image_bodies(several=True),
)
async def segment_batch(request: Request, query: Annotated[BatchQuery, Query()], server: Server) -> Response:
    """
    Find and outline anomalies in several images: files in a form, or base64 in JSON.

    If an image cannot be read, its entry has `error`, and the other images are segmented.
    """
    template = server.template(query.recipe, query.parts)
    async with server.admission.hold(server.retry_seconds()):
        sources = await read_sources(request, server.settings, several=True)
        work = _segment_all(server, sources, template, query.parts)
        results = await unless_client_leaves(request, work)
    return await server.compute(JSONResponse, {"results": results, **server.provenance(template.recipe)})


async def _segment_all(
    server: RunningServer, sources: list[ImageSource], template: SegmentationRequest, parts: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Return a result or an error for each image; a full queue fails the whole batch."""
    settings = server.settings
    # Enough images to fill a batch of the model; the rest of the queue stays free for other clients
    together = asyncio.Semaphore(min(settings.max_batch_size, settings.max_waiting))

    async def segment_one(source: ImageSource) -> dict[str, Any]:
        async with together:
            try:
                return await server.segment(source, template, parts, as_json)
            except HTTPException as error:
                if error.status_code in _OF_ALL:
                    raise
                server.metrics.images.labels("error").inc()
                return {"name": source.name, "error": error.detail, "status": error.status_code}

    tasks = [asyncio.create_task(segment_one(source)) for source in sources]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
