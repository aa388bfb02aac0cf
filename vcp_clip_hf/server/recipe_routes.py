"""Routes of recipes: read, change, delete, with versions as ETags (RFC 9110, sections 8.8.3 and 13.1)."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, HTTPException, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, JSONResponse, Response

from ..version import __version__
from .authorization import require_token
from .problems import problems
from .recipe import Recipe
from .recipes import UnknownRecipe, VersionConflict
from .request_images import check_picture, image_bodies, read_sources
from .schemas import RecipeAnswer, RecipeList, RecipeValues
from .settings import ServerSettings
from .state import RunningServer, running_server


__all__ = ["recipe_routes"]

_VERSION = re.compile(r'(?:W/)?"?(\d{1,18})"?')
_CHANGES = problems(400, 401, 403, 408, 412, 413, 422, 503, 507)
_UPLOADS = {**_CHANGES, **problems(415)}
_ETAG = {"ETag": {"description": "Version of the recipe, for `If-Match`.", "schema": {"type": "string"}}}
_RECIPE = {200: {"model": RecipeAnswer, "headers": _ETAG}}

Server = Annotated[RunningServer, Depends(running_server)]
IfMatch = Annotated[
    str | None,
    Header(description='Version that the change is based on, such as "3"; 412 if the recipe has another version.'),
]
IfNoneMatch = Annotated[str | None, Header(description="`*`: only if there is no such recipe yet.")]


def recipe_routes(settings: ServerSettings) -> APIRouter:
    """
    Make the routes of recipes.

    Args:
        settings (`ServerSettings`): the token that changes need, and limits.
    """
    routes = APIRouter(prefix="/v1", tags=["recipes"])
    token = [Depends(require_token(settings.token))]
    name = "/recipes/{name}"
    add = routes.add_api_route
    add("/recipes", list_recipes, summary="List recipes", response_model=RecipeList, responses=problems(503))
    add(name, get_recipe, summary="Read a recipe", responses={**_RECIPE, **problems(404, 422, 503)})
    add(
        f"{name}/history",
        get_history,
        summary="Read all versions of a recipe, the oldest first",
        response_model=list[RecipeAnswer],
        responses=problems(404, 422, 503),
    )
    add(
        "/files/{key}",
        get_file,
        summary="Read a region of interest or a reference",
        response_class=FileResponse,
        responses={200: {"content": {"application/octet-stream": {}}}, **problems(404, 422, 503)},
    )
    put = {"methods": ["PUT"], "dependencies": token}
    add(name, put_recipe, summary="Set the values of a recipe", responses={**_RECIPE, **_CHANGES}, **put)
    add(
        f"{name}/roi",
        put_roi,
        summary="Set the region of interest",
        responses={**_RECIPE, **_UPLOADS},
        openapi_extra=image_bodies(several=False),
        **put,
    )
    add(
        f"{name}/references",
        put_references,
        summary="Set the normal images to compare with",
        responses={**_RECIPE, **_UPLOADS},
        openapi_extra=image_bodies(several=True),
        **put,
    )
    delete = {"methods": ["DELETE"], "dependencies": token}
    add(
        name,
        delete_recipe,
        summary="Delete a recipe; its history stays",
        status_code=204,
        responses=problems(401, 403, 404, 409, 412, 422, 503, 507),
        **delete,
    )
    removed = {**_RECIPE, **problems(401, 403, 404, 412, 422, 503, 507)}
    add(f"{name}/roi", delete_roi, summary="Remove the region of interest", responses=removed, **delete)
    add(f"{name}/references", delete_references, summary="Remove the references", responses=removed, **delete)
    return routes


def list_recipes(server: Server) -> RecipeList:
    """List the recipes with their versions, and the facts about the model."""
    recipes = [server.store.get(name) for name in server.store.names()]
    used = [{"name": recipe.name, "version": recipe.version} for recipe in recipes]
    return RecipeList(recipes=used, model=server.model, package_version=__version__)


def get_recipe(name: str, server: Server) -> Response:
    """Read the version of a recipe that is in force."""
    return _answer(server.store.get(name))


def get_history(name: str, server: Server) -> list[RecipeAnswer]:
    """Read all versions of a recipe, those before a deletion included."""
    return [RecipeAnswer(**recipe.as_json()) for recipe in server.store.history(name)]


def get_file(key: str, server: Server) -> Response:
    """Read an image by its key in recipes, the SHA-256 of its content."""
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "max-age=31536000, immutable"}
    return FileResponse(server.store.file(key), media_type="application/octet-stream", headers=headers)


def put_recipe(
    name: str, values: RecipeValues, server: Server, if_match: IfMatch = None, if_none_match: IfNoneMatch = None
) -> Response:
    """
    Set all values of a recipe, or make a new one; a missing value goes back to the checkpoint's own.

    The region of interest and the references stay as they are.
    """
    expected = _expected(name, server, if_match, if_none_match)
    return _changed(server.store.put, name, values.model_dump(), expected)


async def put_roi(request: Request, name: str, server: Server, if_match: IfMatch = None) -> Response:
    """Set the region of interest: an image of the same size; pixels where it is black are not inspected."""
    (content,) = await _pictures(request, server, several=False)
    expected = _expected(name, server, if_match)
    return await run_in_threadpool(_changed, server.store.set_roi, name, content, expected)


async def put_references(request: Request, name: str, server: Server, if_match: IfMatch = None) -> Response:
    """Set the normal images of the product that inspected images are compared with."""
    contents = await _pictures(request, server, several=True)
    expected = _expected(name, server, if_match)
    return await run_in_threadpool(_changed, server.store.set_references, name, contents, expected)


def delete_recipe(name: str, server: Server, if_match: IfMatch = None) -> Response:
    """Delete a recipe. Its version numbers are never used again."""
    expected = _expected(name, server, if_match)
    if name == "default":
        raise HTTPException(409, "The recipe 'default' cannot be deleted; PUT {} sets the checkpoint's values.")
    with _failures():
        server.store.delete(name, expected)
    return Response(status_code=204)


def delete_roi(name: str, server: Server, if_match: IfMatch = None) -> Response:
    """Remove the region of interest, so that whole images are inspected."""
    server.store.get(name)
    return _changed(server.store.set_roi, name, None, _expected(name, server, if_match))


def delete_references(name: str, server: Server, if_match: IfMatch = None) -> Response:
    """Compare with the checkpoint's own references, if it has any, or segment zero-shot."""
    server.store.get(name)
    return _changed(server.store.set_references, name, (), _expected(name, server, if_match))


async def _pictures(request: Request, server: RunningServer, several: bool) -> list[bytes]:
    async with server.admission.hold(server.retry_seconds()):
        sources = await read_sources(request, server.settings, several)
        contents = [await run_in_threadpool(source.read) for source in sources]
        for content in contents:
            await server.compute(check_picture, content, server.settings.max_pixels)
        return contents


def _answer(recipe: Recipe) -> Response:
    return JSONResponse(recipe.as_json(), headers={"ETag": f'"{recipe.version}"'})


def _expected(name: str, server: RunningServer, if_match: str | None, if_none_match: str | None = None) -> int | None:
    """Return the version that a change is based on; `None` for any."""
    if if_none_match is not None:
        if if_none_match.strip() != "*" or if_match is not None:
            raise HTTPException(422, "If-None-Match must be '*', for a new recipe, and without If-Match.")
        return 0
    if if_match is None:
        return None
    try:
        version = server.store.get(name).version
    except UnknownRecipe as error:
        raise HTTPException(412, str(error)) from None
    if if_match.strip() == "*":
        return version
    found = _VERSION.fullmatch(if_match.strip())
    if found is None:
        raise HTTPException(
            412, f'If-Match {if_match[:40]!r} is not a version; expected a number such as "{version}".'
        )
    return int(found[1])


def _changed(change: Callable[..., Recipe], name: str, value: Any, expected: int | None) -> Response:
    with _failures():
        return _answer(change(name, value, expected_version=expected))


@contextmanager
def _failures() -> Iterator[None]:
    """Turn the exceptions of the store into responses."""
    try:
        yield
    except VersionConflict as error:
        raise HTTPException(412, str(error)) from None
    except (ValueError, TypeError) as error:
        raise HTTPException(422, str(error)) from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise HTTPException(
            507, f"The recipe could not be stored ({reason}). The previous version stays in force."
        ) from None
