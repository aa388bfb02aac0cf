"""Results as responses: JSON, or one picture (map, mask or overlay) as a PNG file."""

import base64
import io
from typing import Any

from fastapi import HTTPException
from starlette.responses import Response

from ..map_pictures import save_map_png
from .schemas import PICTURES


__all__ = ["PNG", "as_json", "as_png", "png_response", "requested_picture"]

PNG = "image/png"
# Level 1 of 9: overlays of photographs are 10 % larger than with level 6, and are written five times faster
_FAST = 1


def requested_picture(accept: str, parts: tuple[str, ...]) -> str | None:
    """
    Return the picture that a request asks for as its response, or `None` if it asks for JSON.

    Args:
        accept (`str`): header `Accept`.
        parts (`tuple[str, ...]`): requested parts.

    Raises:
        HTTPException: 406, the request asks for a PNG file and does not name exactly one picture.
    """
    kinds = {each.partition(";")[0].strip().lower() for each in accept.split(",")}
    if PNG not in kinds or kinds & {"application/json", "*/*"}:
        return None
    if len(parts) != 1 or parts[0] not in PICTURES:
        raise HTTPException(
            406, f"With 'Accept: {PNG}', `include` must name one of {', '.join(PICTURES)}; got {','.join(parts)!r}."
        )
    return parts[0]


def as_png(name: str | None, result: dict[str, Any], parts: tuple[str, ...]) -> tuple[dict[str, Any], bytes]:
    """
    Return the numbers of a result, and one picture.

    Args:
        name (`str`, *optional*): name of the image.
        result (`dict`): result of an engine.
        parts (`tuple[str, ...]`): the picture.
    """
    return as_json(name, result, ()), _picture(result, parts[0])


def as_json(name: str | None, result: dict[str, Any], parts: tuple[str, ...]) -> dict[str, Any]:
    """
    Return a result as plain JSON values.

    Args:
        name (`str`, *optional*): name of the image.
        result (`dict`): result of an engine.
        parts (`tuple[str, ...]`): requested parts; pictures become base64.

    Raises:
        ValueError: a mask was requested, and there is no threshold.
    """
    height, width = result["anomaly_map"].shape
    values = {
        "name": name,
        "score": float(result["score"]),
        **{each: result[each] for each in ("label", "threshold", "image_threshold")},
        "height": height,
        "width": width,
    }
    for part in parts:
        values[part] = base64.b64encode(_picture(result, part)).decode() if part in PICTURES else result[part]
    return values


def _picture(result: dict[str, Any], part: str) -> bytes:
    file = io.BytesIO()
    if part == "map":
        save_map_png(result["anomaly_map"], file)
    elif part == "overlay":
        result["heatmap"].save(file, format="PNG", compress_level=_FAST)
    elif result["mask"] is None:
        raise ValueError("A mask needs a threshold, and there is none: set `threshold` in the recipe.")
    else:
        result["mask"].save(file, format="PNG")
    return file.getvalue()


def png_response(picture: bytes, values: dict[str, Any], provenance: dict[str, Any]) -> Response:
    """
    Make the response with a PNG file; its headers have the values that JSON would have.

    Args:
        picture (`bytes`): content of the file.
        values (`dict`): numbers of the result, from `as_png`.
        provenance (`dict`): recipe, model and version of the package.
    """
    headers = {
        "X-Score": f"{values['score']:.6f}",
        "X-Label": values["label"] or "",
        "X-Recipe": provenance["recipe"]["name"],
        "X-Recipe-Version": str(provenance["recipe"]["version"]),
        "X-Model-Fingerprint": provenance["model"]["fingerprint"],
        "X-Package-Version": provenance["package_version"],
    }
    return Response(picture, media_type=PNG, headers=headers)
