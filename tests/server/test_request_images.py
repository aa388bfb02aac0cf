"""Limits of images, and the description of bodies with images for OpenAPI."""

import io

import pytest
from fastapi import HTTPException
from PIL import Image

from tests.server.serving import png
from vcp_clip_hf.server.request_images import check_picture, image_bodies, load_source


def test_openapi_names_every_form_of_a_body():
    one, several = (image_bodies(each)["requestBody"]["content"] for each in (False, True))
    assert set(one) == {
        "multipart/form-data",
        "application/json",
        "image/png",
        "image/jpeg",
        "application/octet-stream",
    }
    assert set(several) == {"multipart/form-data", "application/json"}
    # references to definitions would lead nowhere, because the schema is part of a larger document
    assert "$ref" not in str(one) + str(several)


@pytest.mark.parametrize("function", [check_picture, lambda *values: load_source(*values, None)])
def test_pixels_are_counted_by_the_header(function):
    content = png(width=100, height=100)
    function(content, 10_000)
    # only the header is left: nothing can have been decoded
    with pytest.raises(HTTPException, match="100 x 100 pixels exceed max_pixels=9999") as error:
        function(content[:60], 9_999)
    assert error.value.status_code == 413
    with pytest.raises(HTTPException) as error:
        function(b"broken", 10)
    assert error.value.status_code == 422


@pytest.mark.parametrize("function", [check_picture, lambda *values: load_source(*values, None)])
def test_scans_of_a_jpeg_file_are_limited(function):
    file = io.BytesIO()
    Image.new("L", (64, 64), 128).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    # the last scan, again and again: each of them goes over the whole picture
    scan = content[content.rindex(b"\xff\xda") : -2]
    function(content[:-2] + 100 * scan + content[-2:], 10_000)
    with pytest.raises(HTTPException, match=r"has \d+ scans; expected at most 500") as error:
        function(content[:-2] + 500 * scan + content[-2:], 10_000)
    assert error.value.status_code == 422
