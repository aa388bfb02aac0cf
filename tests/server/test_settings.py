"""Settings of a server: what is refused."""

import pytest

from vcp_clip_hf.server.settings import ServerSettings


def test_limits_must_be_positive():
    for name in ("max_body_bytes", "max_pixels", "max_images", "max_waiting", "body_seconds", "drain_seconds"):
        with pytest.raises(ValueError, match=f"{name}=0 must be positive"):
            ServerSettings(**{name: 0})
    with pytest.raises(ValueError, match="max_wait_ms=-1 must be positive"):
        ServerSettings(max_wait_ms=-1)
    assert ServerSettings(max_wait_ms=0).max_wait_ms == 0


def test_the_number_of_requests_follows_from_the_queue():
    assert ServerSettings(max_waiting=10, max_batch_size=4).max_requests == 18
