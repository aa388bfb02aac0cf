"""Metrics in Prometheus' text format."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.serving import PNG, png, serving


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    """Return name and labels -> value after some requests."""
    with serving(tmp_path_factory.mktemp("metrics")) as client:
        client.post("/v1/segment", content=png(), headers=PNG)
        client.post("/v1/segment", content=b"broken", headers=PNG)
        client.post("/v1/segment/batch", files=[("image", ("a", png())), ("image", ("b", b"broken"))])
        for number in range(20):
            client.get(f"/v1/recipes/unknown-{number}")
            client.get(f"/nowhere/{number}")
        client.request("BREW", "/v1/segment")
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = [each for family in text_string_to_metric_families(answer.text) for each in family.samples]
    return {(each.name, *sorted(each.labels.items())): each.value for each in samples}


def requests(values, route: str, status: int, method: str = "GET") -> float:
    return values["vcp_clip_requests_total", ("method", method), ("route", route), ("status", str(status))]


def test_requests_are_counted_under_the_path_of_their_route(values):
    assert requests(values, "/v1/segment", 200, "POST") == 1 and requests(values, "/v1/segment", 422, "POST") == 1
    assert requests(values, "/v1/recipes/{name}", 404) == 20
    assert requests(values, "unknown", 404) == 20
    # neither paths nor methods of clients make new time series
    assert not [key for key in values if "unknown-1" in str(key) or "nowhere" in str(key) or "BREW" in str(key)]
    assert values["vcp_clip_request_seconds_count", ("route", "/v1/segment")] >= 2


def test_images_batches_and_refusals_are_counted(values):
    outcomes = {key[1][1]: value for key, value in values.items() if key[0] == "vcp_clip_images_total"}
    assert outcomes.pop("error") == 1 and sum(outcomes.values()) == 2
    assert values["vcp_clip_batch_size_sum",] == 2 and values["vcp_clip_model_seconds_sum",] > 0
    assert values["vcp_clip_queue_length",] == 0
    assert values["vcp_clip_rejected_total", ("status", "422")] == 1
    assert values["process_resident_memory_bytes",] > 0
