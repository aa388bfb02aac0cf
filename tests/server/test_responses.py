"""Which answer a client wants."""

import pytest
from fastapi import HTTPException

from vcp_clip_hf.server.responses import requested_picture


@pytest.mark.parametrize(
    ("accept", "picture"),
    [
        ("", None),
        ("*/*", None),
        ("application/json", None),
        ("image/png", "map"),
        ("IMAGE/PNG; q=0.9", "map"),
        ("image/png, application/json", None),
        ("image/webp, image/png", "map"),
    ],
)
def test_json_wins_unless_only_a_picture_is_accepted(accept, picture):
    assert requested_picture(accept, ("map",)) == picture


def test_exactly_one_picture():
    for parts in ((), ("regions",), ("map", "mask")):
        with pytest.raises(HTTPException, match="406"):
            requested_picture("image/png", parts)
