"""Images of a request: a multipart form, the body itself, or JSON with base64 or URLs."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import python_multipart  # noqa: F401 - Starlette imports it only with the first form; fail at the start instead
from fastapi import HTTPException
from PIL import Image
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request

from ..image_loading import load_image
from ..image_opening import TooManyPixels, open_picture
from ..image_sources import decode_data_uri, download
from .problems import describe_errors
from .schemas import ImageBody, ImagesBody
from .settings import ServerSettings


__all__ = ["ImageSource", "check_picture", "image_bodies", "load_source", "read_sources"]

_KINDS = (
    "Send the image as the body with its media type ('Content-Type: image/png'), in a form (multipart/form-data), or"
    " in base64 in JSON (application/json)."
)
_BINARY = {"schema": {"type": "string", "format": "binary"}}


@dataclass(frozen=True)
class ImageSource:
    """
    One image of a request, not yet decoded.

    Args:
        name (`str`, *optional*): name or file name in the request.
        read (`Callable[[], bytes]`): returns the content of the image file; raises an `HTTPException` if there is
            none. It may wait for the network.
    """

    name: str | None
    read: Callable[[], bytes]


async def read_sources(request: Request, settings: ServerSettings, several: bool) -> list[ImageSource]:
    """
    Read the images of a request.

    Args:
        request (`Request`): request whose body was not read yet.
        settings (`ServerSettings`): limits.
        several (`bool`): whether there may be more than one image.

    Returns:
        `list[ImageSource]`: one or more.

    Raises:
        HTTPException: 400, 408, 413, 415 or 422, with a sentence.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        sources = await _from_form(request)
    elif kind == "application/json":
        sources = await _from_json(request, settings, several)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        content = await request.body()
        sources = [ImageSource(None, lambda: content)]
    else:
        raise HTTPException(415, f"The media type {kind[:100]!r} of the body is not known. {_KINDS}")
    highest = settings.max_images if several else 1
    if len(sources) > highest:
        raise HTTPException(413, f"The request has {len(sources)} images; expected at most {highest}.")
    return sources


async def _from_form(request: Request) -> list[ImageSource]:
    sources = []
    async with request.form() as form:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                raise HTTPException(
                    422,
                    f"The field {name[:100]!r} is not a file. Options are part of the query: ?recipe=...&include=...",
                )
            content = await value.read()
            sources.append(ImageSource(value.filename or None, partial(bytes, content)))
    if not sources:
        raise HTTPException(422, "The form has no file; expected a field with an image file, such as `image`.")
    return sources


async def _from_json(request: Request, settings: ServerSettings, several: bool) -> list[ImageSource]:
    model = ImagesBody if several else ImageBody
    try:
        body = await run_in_threadpool(model.model_validate_json, await request.body())
    except ValidationError as error:
        raise HTTPException(422, describe_errors(error.errors(include_input=False), "the body")) from None
    bodies = body.images if several else [body]
    return [ImageSource(each.name, partial(_content, each, settings)) for each in bodies]


def _content(body: ImageBody, settings: ServerSettings) -> bytes:
    if body.url is not None and not settings.allow_urls:
        raise HTTPException(403, "This server was started without --allow-urls. Send the image itself.")
    try:
        if body.image is not None:
            return _decoded(body.image)
        if not body.url.startswith(("http://", "https://")):
            raise ValueError("`url` must begin with http:// or https://.")
        return download(body.url, settings.url_seconds, settings.max_body_bytes)
    except ValueError as error:
        raise HTTPException(422, str(error)) from None


def _decoded(text: str) -> bytes:
    if text.startswith("data:"):
        return decode_data_uri(text)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:  # not base64, or not ASCII
        raise ValueError(f"`image` ({len(text)} characters) is not base64 of an image file.") from None


def load_source(content: bytes, max_pixels: int, input_range: tuple[float, float] | None) -> Image.Image:
    """
    Decode one image. Its pixels are counted before they are decoded.

    Args:
        content (`bytes`): content of an image file.
        max_pixels (`int`): maximum number of pixels.
        input_range (`tuple[float, float]`, *optional*): see [`load_image`].

    Returns:
        `PIL.Image.Image`: upright, mode RGB.

    Raises:
        HTTPException: 413 for too many pixels, 422 for a broken image, with the loader's sentence.
    """
    try:
        return load_image(content, input_range, max_pixels=max_pixels)
    except TooManyPixels as error:
        raise HTTPException(413, str(error)) from None
    except ValueError as error:
        raise HTTPException(422, str(error)) from None


def check_picture(content: bytes, max_pixels: int) -> None:
    """
    Count the pixels of an image without decoding them.

    Args:
        content (`bytes`): content of an image file.
        max_pixels (`int`): maximum number of pixels.

    Raises:
        HTTPException: as [`load_source`].
    """
    try:
        open_picture(content, max_pixels=max_pixels)[1].close()
    except TooManyPixels as error:
        raise HTTPException(413, str(error)) from None
    except ValueError as error:
        raise HTTPException(422, str(error)) from None


def image_bodies(several: bool) -> dict[str, Any]:
    """Return the part of OpenAPI that describes the body of a request with images."""
    file = {"type": "string", "format": "binary", "description": "Image file in any format that Pillow reads."}
    json_schema = ImageBody.model_json_schema()
    if several:
        json_schema = {
            **{name: value for name, value in ImagesBody.model_json_schema().items() if name != "$defs"},
            "properties": {"images": {"type": "array", "minItems": 1, "items": json_schema}},
        }
    field = {"type": "array", "minItems": 1, "items": file} if several else file
    form = {"type": "object", "properties": {"image": field}, "required": ["image"]}
    content = {"multipart/form-data": {"schema": form}, "application/json": {"schema": json_schema}}
    if not several:
        content |= {"image/png": _BINARY, "image/jpeg": _BINARY, "application/octet-stream": _BINARY}
    return {"requestBody": {"required": True, "content": content}}
